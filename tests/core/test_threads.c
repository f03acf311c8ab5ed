/* tests/core/test_threads.c - the team: every piece is claimed once, phases order memory, and a thread that is held up makes the
 * caller go on alone without a change of results. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#include "threads.h"

#define PIECES 1000
#define PHASES 5

typedef struct work {
  _Atomic int32_t claimed[PHASES][PIECES];
  int32_t value[PHASES][PIECES]; /* plain memory: each phase reads what the one before wrote */
  _Atomic int threads;
  int hold_up_ms; /* all threads but the caller's sleep this long first */
  bool wrong;
} work;

static void run(void *arg, mavk_thread *t) {
  work *w = arg;
  w->threads++;
  if (t->index && w->hold_up_ms) nanosleep(&(struct timespec){.tv_nsec = w->hold_up_ms * 1000000L}, NULL);
  for (int p = 0; p < PHASES; p++) {
    for (int64_t i; (i = mavk_claim(t)) < PIECES;) {
      w->claimed[p][i]++;
      if (p && w->value[p - 1][PIECES - 1 - i] != p) w->wrong = true;
      w->value[p][i] = p + 1;
    }
    if (p + 1 < PHASES) mavk_phase(t);
  }
}

/* One run: right, and with as many threads as said (0: the whole team, or the caller alone where the machine is busy). */
static void check(mav__threads *team, work *w, int count, int threads) {
  memset(w->value, 0, sizeof w->value);
  for (int p = 0; p < PHASES; p++)
    for (int i = 0; i < PIECES; i++) w->claimed[p][i] = 0;
  w->threads = 0;
  mav__threads_run(team, run, w);
  assert_false(w->wrong);
  if (threads) assert_int_equal(w->threads, threads);
  else assert_true(w->threads == count || w->threads == 1);
  for (int p = 0; p < PHASES; p++)
    for (int i = 0; i < PIECES; i++) assert_int_equal(w->claimed[p][i], 1);
}

static void test_team(void **state) {
  (void)state;
  mav_runtime *rt;
  assert_int_equal(mav_runtime_new(&rt, &(mav_runtime_options){.device = "ref"}, NULL), MAV_OK);
  for (int count = 1; count <= 3; count++) {
    mav__threads *team;
    work *w = calloc(1, sizeof *w);
    assert_int_equal(mav__threads_new(&team, rt, count), MAV_OK);
    for (int i = 0; i < 500; i++) check(team, w, count, 0);
    mav__threads_free(team);
    free(w);
  }
  mav_runtime_release(rt);
}

static void test_a_thread_is_held_up(void **state) {
  (void)state;
  mav_runtime *rt;
  mav__threads *team;
  work *w = calloc(1, sizeof *w);
  assert_int_equal(mav_runtime_new(&rt, &(mav_runtime_options){.device = "ref"}, NULL), MAV_OK);
  assert_int_equal(mav__threads_new(&team, rt, 2), MAV_OK);
  w->hold_up_ms = 20;
  check(team, w, 2, 2);
  for (int i = 0; i < 32; i++) check(team, w, 2, 1);
  check(team, w, 2, 2); /* tries again, and is held up again */
  for (int i = 0; i < 64; i++) check(team, w, 2, 1);
  w->hold_up_ms = 0;
  check(team, w, 2, 2); /* and forgets it when all goes well */
  mav__threads_free(team);
  free(w);
  mav_runtime_release(rt);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_team), cmocka_unit_test(test_a_thread_is_held_up)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
