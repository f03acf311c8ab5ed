/* core/threads.c - a small team of threads that run a whole graph together.
 *
 * Waiting threads spin first (a barrier between two ops is over in well under a microsecond) and then park on a futex, so an
 * idle host costs nothing and a busy machine gets its processor back. The thread that runs is the caller's: index 0.
 *
 *   worker: wait for job to change -> run fn -> arrive at the final barrier -> wait again
 *
 * A barrier waits for every thread, and another program may have taken one's processor. When a run was mostly such waiting, the
 * next ones are done by the caller alone, for twice as long each time it happens again: results do not depend on the number of
 * threads. A run that goes well forgets it.
 *
 * Frees nothing that a worker may still read: free joins first. Scratch is reserved address space, backed when touched.
 */
#define _GNU_SOURCE
#include "threads.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SCRATCH_BYTES ((size_t)1 << 30)
#define SPIN_NS_BARRIER 20000  /* a barrier inside a graph */
#define SPIN_NS_JOB 200000     /* between two steps of a decode loop */
#define ALONE_MIN 32           /* runs that the caller does alone after one that was mostly waiting */
#define ALONE_MAX 4096

struct mav__threads {
  mavk_team team; /* first: relax and wake get it back by address */
  void *base; /* the allocation */
  int count, started;
  pthread_t *thread;
  mavk_thread *member;
  _Alignas(64) _Atomic uint32_t job; /* grows by one per run */
  _Atomic int32_t sleepers;
  _Atomic bool stop;
  _Atomic int64_t stalled_ns; /* parked at barriers, by all threads, in this run */
  int32_t alone, alone_next;  /* runs still to be done by the caller alone; how many the next time */
  mav__threads_fn *fn;
  void *arg;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t value) { syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0); }
static void futex_wake(_Atomic uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1 << 30, NULL, NULL, 0); }

/* Waits for *word to leave `value`: spins, then parks. Returns how long it was parked. */
static int64_t wait_change(mav__threads *t, _Atomic uint32_t *word, uint32_t value, int64_t spin_ns) {
  int64_t start = 0, now = 0;
  for (int i = 1;; i++) {
    if (atomic_load_explicit(word, memory_order_acquire) != value) return 0;
    _mm_pause();
    if (i % 64) continue;
    now = mav_now_ns();
    if (!start) start = now;
    if (now - start > spin_ns) break;
  }
  atomic_fetch_add(&t->sleepers, 1);
  while (atomic_load(word) == value) futex_wait(word, value);
  atomic_fetch_sub(&t->sleepers, 1);
  return mav_now_ns() - now;
}

static void relax(mavk_team *team, uint32_t round) {
  mav__threads *t = (mav__threads *)team;
  int64_t parked = wait_change(t, &team->round, round, SPIN_NS_BARRIER);
  if (parked) atomic_fetch_add_explicit(&t->stalled_ns, parked, memory_order_relaxed);
}

static void wake(mavk_team *team) {
  mav__threads *t = (mav__threads *)team;
  atomic_thread_fence(memory_order_seq_cst); /* the new round before the look at sleepers; pairs with their fetch_add */
  if (atomic_load(&t->sleepers)) futex_wake(&team->round);
}

static void *worker(void *arg) {
  mavk_thread *self = arg;
  mav__threads *t = (mav__threads *)self->team;
  for (uint32_t seen = 0;; seen++) {
    wait_change(t, &t->job, seen, SPIN_NS_JOB);
    if (atomic_load(&t->stop)) return NULL;
    self->phase = 0;
    t->fn(t->arg, self);
    mavk_phase(self);
  }
}

static void *reserve(size_t bytes) {
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return NULL;
  madvise(p, bytes, MADV_HUGEPAGE);
  return p;
}

mav_err mav__threads_new(mav__threads **out, mav_runtime *rt, int count) {
  *out = NULL;
  void *base = mav__alloc(sizeof(mav__threads) + 64); /* the structure wants cache-line alignment */
  if (!base) return MAV_RT_NOMEM(rt, "runtime_new");
  mav__threads *t = (mav__threads *)(((uintptr_t)base + 63) & ~(uintptr_t)63);
  t->base = base;
  *out = t;
  t->count = t->team.count = count;
  t->alone_next = ALONE_MIN;
  t->team.relax = relax;
  t->team.wake = wake;
  t->thread = mav__alloc((size_t)count * sizeof *t->thread);
  t->member = mav__alloc((size_t)count * sizeof *t->member);
  if (!t->thread || !t->member) return MAV_RT_NOMEM(rt, "runtime_new");
  t->team.shared_bytes = SCRATCH_BYTES;
  if (!(t->team.shared = reserve(SCRATCH_BYTES))) return MAV_RT_NOMEM(rt, "runtime_new");
  for (int i = 0; i < count; i++) {
    t->member[i] = (mavk_thread){.team = &t->team, .index = i, .scratch = reserve(SCRATCH_BYTES), .scratch_bytes = SCRATCH_BYTES};
    if (!t->member[i].scratch) return MAV_RT_NOMEM(rt, "runtime_new");
  }
  for (int i = 1; i < count; i++, t->started++)
    if (pthread_create(&t->thread[i], NULL, worker, &t->member[i]))
      return MAV_RT_FAIL(rt, NOMEM, "runtime_new", "thread %d of %d could not be started", i + 1, count);
  return MAV_OK;
}

void mav__threads_free(mav__threads *t) {
  if (!t) return;
  atomic_store(&t->stop, true);
  atomic_fetch_add(&t->job, 1);
  futex_wake(&t->job);
  for (int i = 1; i <= t->started; i++) pthread_join(t->thread[i], NULL);
  for (int i = 0; t->member && i < t->count; i++)
    if (t->member[i].scratch) munmap(t->member[i].scratch, SCRATCH_BYTES);
  if (t->team.shared) munmap(t->team.shared, SCRATCH_BYTES);
  mav__free(t->thread);
  mav__free(t->member);
  mav__free(t->base);
}

/* Was the run mostly waiting for a thread that had no processor? */
static void judge(mav__threads *t, int64_t ns) {
  if (atomic_load_explicit(&t->stalled_ns, memory_order_relaxed) * 2 > ns) {
    t->alone = t->alone_next;
    t->alone_next = t->alone_next < ALONE_MAX ? 2 * t->alone_next : ALONE_MAX;
  } else {
    t->alone_next = ALONE_MIN;
  }
}

void mav__threads_run(mav__threads *t, mav__threads_fn *fn, void *arg) {
  const bool together = t->count > 1 && t->alone == 0;
  const int64_t start = together ? mav_now_ns() : 0;
  if (t->alone) t->alone--;
  t->fn = fn;
  t->arg = arg;
  t->team.count = together ? t->count : 1;
  t->member[0].phase = 0;
  for (int i = 0; i < MAVK_COUNTERS; i++) atomic_store_explicit(&t->team.counter[i].next, 0, memory_order_relaxed);
  if (together) {
    atomic_store_explicit(&t->stalled_ns, 0, memory_order_relaxed);
    atomic_fetch_add(&t->job, 1);
    if (atomic_load(&t->sleepers)) futex_wake(&t->job);
  }
  fn(arg, &t->member[0]);
  mavk_phase(&t->member[0]);
  if (together) judge(t, mav_now_ns() - start);
}
