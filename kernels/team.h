/* kernels/team.h - how a CPU kernel shares its work: every thread of the team calls the kernel; inside, threads claim
 * pieces by a shared counter, so a thread that loses its processor loses only the pieces it holds.
 *
 * Invariants: (1) what a piece computes does not depend on who claims it; (2) all threads call the same sequence of
 * mavk_phase; (3) the runner puts a barrier after every op, so a kernel needs one only between its own phases.
 * The team itself (threads, parking) is core/threads.c.
 */
#ifndef MAVK_TEAM_H
#define MAVK_TEAM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define MAVK_COUNTERS 3 /* one in use, one being left by slow threads, one clean */

typedef struct mavk_team {
  int count;
  void *shared; /* scratch that all threads see; mapped on demand, so any size up to shared_bytes costs only what is touched */
  size_t shared_bytes;
  _Alignas(64) _Atomic int32_t arrived;
  _Alignas(64) _Atomic uint32_t round; /* barriers passed */
  struct {
    _Alignas(64) _Atomic int64_t next;
  } counter[MAVK_COUNTERS];
  void (*relax)(struct mavk_team *team, uint32_t round); /* wait a little for `round` to pass: spin, then park */
  void (*wake)(struct mavk_team *team);                  /* the last to arrive wakes those who parked */
} mavk_team;

typedef struct mavk_thread {
  mavk_team *team;
  int index;        /* 0 .. team->count - 1 */
  uint32_t phase;   /* which counter is in use */
  void *scratch;    /* private to this thread, 64-byte aligned, mapped on demand */
  size_t scratch_bytes;
} mavk_thread;

/* The next unclaimed piece; the caller stops at its own count. */
static inline int64_t mavk_claim(mavk_thread *t) {
  return atomic_fetch_add_explicit(&t->team->counter[t->phase].next, 1, memory_order_relaxed);
}

/* Barrier: what any thread wrote before it, every thread sees after it. Starts a fresh counter. */
static inline void mavk_phase(mavk_thread *t) {
  mavk_team *m = t->team;
  uint32_t next = (t->phase + 1) % MAVK_COUNTERS, clean = (t->phase + 2) % MAVK_COUNTERS;
  const int count = m->count; /* before arriving: the runner may change it once all have */
  t->phase = next;
  if (count == 1) {
    atomic_store_explicit(&m->counter[clean].next, 0, memory_order_relaxed);
    return;
  }
  uint32_t round = atomic_load_explicit(&m->round, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&m->arrived, 1, memory_order_acq_rel) == count - 1) {
    atomic_store_explicit(&m->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&m->counter[clean].next, 0, memory_order_relaxed);
    atomic_store_explicit(&m->round, round + 1, memory_order_release);
    m->wake(m);
  } else {
    while (atomic_load_explicit(&m->round, memory_order_acquire) == round) m->relax(m, round);
  }
}

#endif
