/* core/pages.c - memory blocks for the host backends. Large blocks are mapped, aligned for huge pages (weights are read
 * front to back: with small pages the translation misses cost a tenth of the bandwidth); freed ones up to a limit are kept,
 * because eager ops ask for the same sizes again and again.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "backend.h"
#include "mem.h"

#define LARGE ((size_t)1 << 20)
#define HUGE ((size_t)2 << 20)
#define CACHE_BLOCKS 32
#define CACHE_BYTES ((size_t)256 << 20)

struct mav__pages {
  struct {
    void *p;
    size_t bytes; /* as mapped */
  } cache[CACHE_BLOCKS];
  size_t cached;
};

static size_t mapped_bytes(size_t bytes) {
  size_t unit = bytes < 4 * HUGE ? (size_t)1 << 16 : HUGE;
  return (bytes + unit - 1) / unit * unit;
}

static void *map(size_t bytes) {
  if (bytes < HUGE) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
  }
  char *p = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return NULL;
  size_t skip = (HUGE - (uintptr_t)p % HUGE) % HUGE; /* give back what alignment does not need */
  if (skip) munmap(p, skip);
  if (HUGE - skip) munmap(p + skip + bytes, HUGE - skip);
  madvise(p + skip, bytes, MADV_HUGEPAGE);
  return p + skip;
}

mav__pages *mav__pages_new(void) { return mav__alloc(sizeof(mav__pages)); }

void mav__pages_free_all(mav__pages *g) {
  if (!g) return;
  for (int i = 0; i < CACHE_BLOCKS; i++)
    if (g->cache[i].p) munmap(g->cache[i].p, g->cache[i].bytes);
  mav__free(g);
}

/* Small blocks sit behind a pointer to their allocation, on the next 64-byte line. */
static void *small_alloc(size_t bytes) {
  char *base = mav__alloc(bytes + 128);
  if (!base) return NULL;
  char *p = (char *)(((uintptr_t)base + 127) & ~(uintptr_t)63);
  memcpy(p - sizeof base, &base, sizeof base);
  return p;
}

void *mav__pages_alloc(mav__pages *g, size_t bytes, bool zero) {
  if (bytes < LARGE) return small_alloc(bytes);
  size_t n = mapped_bytes(bytes);
  if (n < bytes) return NULL;
  for (int i = 0; !zero && i < CACHE_BLOCKS; i++) {
    if (g->cache[i].bytes != n) continue;
    void *p = g->cache[i].p;
    g->cache[i].p = NULL;
    g->cache[i].bytes = 0;
    g->cached -= n;
    return p;
  }
  return map(n); /* zero by nature */
}

void mav__pages_free(mav__pages *g, void *p, size_t bytes) {
  if (bytes < LARGE) {
    void *base;
    memcpy(&base, (char *)p - sizeof base, sizeof base);
    mav__free(base);
    return;
  }
  size_t n = mapped_bytes(bytes);
  if (g->cached + n <= CACHE_BYTES)
    for (int i = 0; i < CACHE_BLOCKS; i++)
      if (!g->cache[i].p) {
        g->cache[i].p = p;
        g->cache[i].bytes = n;
        g->cached += n;
        return;
      }
  munmap(p, n);
}
