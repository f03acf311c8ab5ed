/* core/mem.c - counted host allocation. Invariants: (1) every block carries its size in front, so live bytes are exact;
 * (2) the counters are the only process-wide state of the core, and atomic. Any thread may call it. */
#include "mem.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "mav.h"

#define HEADER 16 /* keeps malloc's alignment */

static _Atomic int64_t live, allocs, fail_at, device_live, device_fail_at;
static _Atomic int device_fault;

static bool injected(void) {
  if (atomic_load_explicit(&fail_at, memory_order_relaxed) == 0) return false;
  return atomic_fetch_sub(&fail_at, 1) == 1;
}

void *mav__alloc(size_t bytes) {
  atomic_fetch_add_explicit(&allocs, 1, memory_order_relaxed);
  if (bytes > PTRDIFF_MAX - HEADER || injected()) return NULL;
  char *p = calloc(1, bytes + HEADER);
  if (!p) return NULL;
  memcpy(p, &bytes, sizeof bytes);
  atomic_fetch_add_explicit(&live, (int64_t)bytes, memory_order_relaxed);
  return p + HEADER;
}

void *mav__realloc(void *old, size_t bytes) {
  if (!old) return mav__alloc(bytes);
  atomic_fetch_add_explicit(&allocs, 1, memory_order_relaxed);
  if (bytes > PTRDIFF_MAX - HEADER || injected()) return NULL;
  char *base = (char *)old - HEADER;
  size_t before;
  memcpy(&before, base, sizeof before);
  char *p = realloc(base, bytes + HEADER);
  if (!p) return NULL;
  memcpy(p, &bytes, sizeof bytes);
  atomic_fetch_add_explicit(&live, (int64_t)bytes - (int64_t)before, memory_order_relaxed);
  return p + HEADER;
}

char *mav__strndup(const char *s, size_t n) {
  char *p = mav__alloc(n + 1);
  if (p) memcpy(p, s, n);
  return p;
}

char *mav__strdup(const char *s) { return mav__strndup(s, strlen(s)); }

void mav__free(void *p) {
  if (!p) return;
  char *base = (char *)p - HEADER;
  size_t bytes;
  memcpy(&bytes, base, sizeof bytes);
  atomic_fetch_sub_explicit(&live, (int64_t)bytes, memory_order_relaxed);
  free(base);
}

int64_t mav__mem_live(void) { return atomic_load(&live); }
int64_t mav__mem_allocs(void) { return atomic_load(&allocs); }
void mav__mem_fail_at(int64_t n) { atomic_store(&fail_at, n); }

int64_t mav__device_live(void) { return atomic_load(&device_live); }
void mav__device_count(int64_t bytes) { atomic_fetch_add(&device_live, bytes); }
void mav__device_fail_at(int64_t n, mav__fault fault) {
  atomic_store(&device_fault, fault);
  atomic_store(&device_fail_at, n);
}
mav__fault mav__device_fails(void) {
  if (atomic_load_explicit(&device_fail_at, memory_order_relaxed) <= 0) return MAV__FAULT_NONE;
  return atomic_fetch_sub(&device_fail_at, 1) == 1 ? (mav__fault)atomic_load(&device_fault) : MAV__FAULT_NONE;
}

void mav_free(void *p) { mav__free(p); }
