/* tests/core/test_graph.c - calling ops, capture, planning and replay. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "graph.h"

#include "device.h"

static mav_runtime *rt;

static int setup(void **state) { return mav_runtime_new(&rt, &(mav_runtime_options){.device = *state}, NULL); }

static int teardown(void **state) {
  (void)state;
  release_device(rt);
  return 0;
}

static mav_tensor *zeros(int64_t n) {
  mav_tensor *t;
  assert_int_equal(mav_tensor_new(&t, rt, MAV_DTYPE_F32, 1, &n), MAV_OK);
  return t;
}

/* y = a op b; a new reference. */
static mav_tensor *binary(const char *name, mav_tensor *a, mav_tensor *b) {
  mav_arg args[MAV_ARGS_MAX] = {{.given = true, .tensor = a}, {.given = true, .tensor = b}};
  assert_int_equal(mav_op_call(rt, mav_op_find(name), args), MAV_OK);
  return args[2].tensor;
}

static void test_descriptions(void **state) {
  (void)state;
  for (int i = 0; i < mav_op_count(); i++) {
    const mav_op_desc *d = mav_op_get(i);
    assert_int_equal(mav_op_find(d->name), i);
    assert_true(d->args > 0 && d->args <= MAV_ARGS_MAX && d->args_bytes <= 2048 && strlen(d->doc) > 5);
    for (int k = 0; k < d->args; k++) assert_true(d->arg[k].name && d->arg[k].offset < d->args_bytes);
  }
  assert_int_equal(mav_op_find("no_such_op"), -1);
  assert_null(mav_op_get(-1));
}

static void test_eager(void **state) {
  (void)state;
  mav_tensor *a = zeros(4), *b = zeros(4);
  for (int i = 0; i < 4; i++) mav_tensor_set(a, i, i), mav_tensor_set(b, i, 10);
  mav_tensor *y = binary("add", a, b);
  double x;
  assert_int_equal(mav_tensor_get(y, 3, &x), MAV_OK);
  assert_true(x == 13);
  mav_tensor_release(a), mav_tensor_release(b), mav_tensor_release(y);
}

static void test_errors_name_the_argument(void **state) {
  (void)state;
  mav_tensor *a = zeros(4), *b = zeros(3);
  mav_arg args[MAV_ARGS_MAX] = {{.given = true, .tensor = a}, {.given = true, .tensor = b}};
  assert_int_equal(mav_op_call(rt, mav_op_find("add"), args), MAV_ERR_SHAPE);
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "(4) and (3)"));
  args[1].given = false;
  assert_int_equal(mav_op_call(rt, mav_op_find("add"), args), MAV_ERR_INVALID);
  assert_string_equal(mav_runtime_diag(rt)->op, "add");
  mav_arg norm[MAV_ARGS_MAX] = {{.given = true, .tensor = a}, {.given = true, .tensor = b}};
  assert_int_equal(mav_op_call(rt, mav_op_find("rmsnorm"), norm), MAV_ERR_SHAPE);
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "w has D = 3, but x has D = 4"));
  mav_tensor_release(a), mav_tensor_release(b);
}

/* A chain of n additions of `one` onto x; only the last is kept. */
static mav_graph *chain(int n, mav_tensor *x, mav_tensor *one, mav_rows *rows, mav_tensor **last, mav_tensor **middle) {
  mav_graph *g;
  assert_int_equal(mav_graph_begin(&g, rt, rows), MAV_OK);
  mav_tensor *t = mav_tensor_retain(x);
  *middle = NULL;
  for (int i = 0; i < n; i++) {
    mav_tensor *next = binary("add", t, one);
    if (i == n / 2) *middle = mav_tensor_retain(next);
    mav_tensor_release(t);
    t = next;
  }
  assert_int_equal(mav_graph_keep(g, t), MAV_OK);
  assert_int_equal(mav_graph_end(g), MAV_OK);
  *last = t;
  return g;
}

static void test_replay(void **state) {
  (void)state;
  mav_rows *rows;
  assert_int_equal(mav_rows_new(&rows, rt, 1), MAV_OK);
  mav_tensor *x = zeros(1000), *one = zeros(1000), *last, *middle;
  for (int i = 0; i < 1000; i++) mav_tensor_set(one, i, 1);
  mav_graph *g = chain(50, x, one, rows, &last, &middle);
  mav_graph_stats stats;
  mav_graph_get_stats(g, &stats);
  assert_int_equal(stats.ops, 50);
  assert_true(stats.planned_bytes <= 2 * 4096); /* two tensors in turn */
  assert_int_equal(stats.unplanned_bytes, 49 * 4000);
  double v;
  assert_int_equal(mav_tensor_get(middle, 0, &v), MAV_ERR_STATE); /* planned and not kept */
  assert_true(mav_tensor_is_planned(middle) && !mav_tensor_is_planned(last));

  mav_tensor_set(x, 7, 5);
  int64_t before = mav__mem_allocs();
  for (int i = 0; i < 10; i++) {
    assert_int_equal(mav_graph_launch(g), MAV_OK);
    assert_int_equal(mav_graph_wait(g), MAV_OK);
  }
  assert_int_equal(mav__mem_allocs(), before);
  assert_int_equal(mav_tensor_get(last, 7, &v), MAV_OK);
  assert_true(v == 55);

  mav_tensor *x2 = zeros(100000), *one2 = zeros(100000), *last2, *middle2; /* a larger graph moves the arena */
  mav_graph *g2 = chain(5, x2, one2, rows, &last2, &middle2);
  assert_int_equal(mav_graph_launch(g2), MAV_OK);
  assert_int_equal(mav_graph_launch(g), MAV_OK);
  assert_int_equal(mav_tensor_get(last, 7, &v), MAV_OK);
  assert_true(v == 55);

  mav_arg stale[MAV_ARGS_MAX] = {{.given = true, .tensor = middle}, {.given = true, .tensor = one}};
  assert_int_equal(mav_op_call(rt, mav_op_find("add"), stale), MAV_ERR_STATE);
  mav_graph_release(g), mav_graph_release(g2);
  assert_int_equal(mav_tensor_get(last, 7, &v), MAV_OK); /* a kept tensor outlives its graph */
  mav_tensor *all[] = {x, one, last, middle, x2, one2, last2, middle2};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) mav_tensor_release(all[i]);
  mav_rows_release(rows);
}

static void test_capture_states(void **state) {
  (void)state;
  mav_rows *rows;
  mav_graph *g, *h;
  assert_int_equal(mav_rows_new(&rows, rt, 1), MAV_OK);
  assert_int_equal(mav_graph_begin(&g, rt, rows), MAV_OK);
  assert_int_equal(mav_graph_begin(&h, rt, rows), MAV_ERR_STATE);
  assert_int_equal(mav_graph_launch(g), MAV_ERR_STATE);
  mav_graph_abort(g);
  assert_int_equal(mav_graph_end(g), MAV_ERR_STATE);
  assert_int_equal(mav_graph_begin(&h, rt, rows), MAV_OK); /* the runtime is free again */
  mav_graph_release(h);
  assert_int_equal(mav_graph_begin(&h, rt, rows), MAV_OK); /* releasing an open capture closes it */
  mav_graph_release(h), mav_graph_release(g), mav_rows_release(rows);
}

static void test_launch_checks_rows(void **state) {
  (void)state;
  mav_rows *rows;
  mav_tensor *table;
  mav_graph *g;
  assert_int_equal(mav_rows_new(&rows, rt, 2), MAV_OK);
  assert_int_equal(mav_tensor_new(&table, rt, MAV_DTYPE_BF16, 2, (int64_t[]){8, 4}), MAV_OK);
  assert_int_equal(mav_graph_begin(&g, rt, rows), MAV_OK);
  mav_arg args[MAV_ARGS_MAX] = {{.given = true, .rows = rows}, {.given = true, .tensor = table}};
  assert_int_equal(mav_op_call(rt, mav_op_find("embed"), args), MAV_OK);
  assert_int_equal(mav_graph_end(g), MAV_OK);
  assert_int_equal(mav_rows_set(rows, 0, 7, 0, 0, -1, -1), MAV_OK);
  assert_int_equal(mav_graph_launch(g), MAV_OK);
  assert_int_equal(mav_rows_set(rows, 1, 8, 0, 1, 0, -1), MAV_OK);
  assert_int_equal(mav_graph_launch(g), MAV_ERR_RANGE);
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "token id 8"));
  assert_int_equal(mav_rows_set(rows, 1, 3, 0, 5, 0, -1), MAV_ERR_INVALID); /* does not follow its parent */
  mav_tensor_release(args[2].tensor), mav_tensor_release(table), mav_graph_release(g), mav_rows_release(rows);
}

/* An index that is computed inside a capture must come from an op that promises its bound. */
static void test_computed_indices(void **state) {
  (void)state;
  mav_rows *rows;
  mav_graph *g;
  mav_tensor *x, *far = zeros(3);
  assert_int_equal(mav_rows_new(&rows, rt, 1), MAV_OK);
  assert_int_equal(mav_tensor_new(&x, rt, MAV_DTYPE_F32, 2, (int64_t[]){8, 4}), MAV_OK);
  for (int i = 0; i < 3; i++) mav_tensor_set(far, i, 1e6);
  assert_int_equal(mav_graph_begin(&g, rt, rows), MAV_OK);
  mav_arg cast[MAV_ARGS_MAX] = {{.given = true, .tensor = far}, {.given = true, .number = MAV_DTYPE_I32}};
  assert_int_equal(mav_op_call(rt, mav_op_find("cast"), cast), MAV_OK);
  mav_arg bad[MAV_ARGS_MAX] = {{.given = true, .tensor = x}, {.given = true, .tensor = cast[2].tensor}};
  assert_int_equal(mav_op_call(rt, mav_op_find("gather"), bad), MAV_ERR_RANGE);
  mav_arg best[MAV_ARGS_MAX] = {{.given = true, .tensor = x}};
  assert_int_equal(mav_op_call(rt, mav_op_find("argmax"), best), MAV_OK); /* (8) below 4 */
  mav_arg good[MAV_ARGS_MAX] = {{.given = true, .tensor = x}, {.given = true, .tensor = best[1].tensor}};
  assert_int_equal(mav_op_call(rt, mav_op_find("gather"), good), MAV_OK);
  assert_int_equal(mav_graph_end(g), MAV_OK);
  assert_int_equal(mav_graph_launch(g), MAV_OK);
  mav_graph_release(g);

  /* The same through memory of the caller's: the values the host sees now are not those the op will read. */
  mav_tensor *mine, *wide = zeros(1000);
  assert_int_equal(mav_tensor_new(&mine, rt, MAV_DTYPE_I32, 1, (int64_t[]){1}), MAV_OK);
  mav_tensor *wide2;
  assert_int_equal(mav_tensor_reshape(&wide2, wide, 2, (int64_t[]){1, 1000}), MAV_OK);
  assert_int_equal(mav_graph_begin(&g, rt, rows), MAV_OK);
  mav_arg into[MAV_ARGS_MAX] = {{.given = true, .tensor = wide2}, {.given = true, .tensor = mine}};
  assert_int_equal(mav_op_call(rt, mav_op_find("argmax"), into), MAV_OK); /* below 1000 */
  mav_arg late[MAV_ARGS_MAX] = {{.given = true, .tensor = x}, {.given = true, .tensor = mine}};
  assert_int_equal(mav_op_call(rt, mav_op_find("gather"), late), MAV_ERR_RANGE); /* x has 8 rows */
  mav_graph_abort(g);
  mav_tensor_release(mine), mav_tensor_release(wide), mav_tensor_release(wide2);
  mav_tensor *all[] = {x, far, cast[2].tensor, best[1].tensor, good[2].tensor};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) mav_tensor_release(all[i]);
  mav_graph_release(g), mav_rows_release(rows);
}

/* What a call promised that was refused, and what ops write that read and write in place, is no promise. */
static void test_promises(void **state) {
  (void)state;
  mav_rows *rows;
  mav_graph *g;
  mav_tensor *x, *mine, *values, *index, *part;
  assert_int_equal(mav_rows_new(&rows, rt, 2), MAV_OK);
  assert_int_equal(mav_tensor_new(&x, rt, MAV_DTYPE_F32, 2, (int64_t[]){1, 4}), MAV_OK);
  assert_int_equal(mav_tensor_new(&mine, rt, MAV_DTYPE_I32, 2, (int64_t[]){1, 2}), MAV_OK);
  assert_int_equal(mav_tensor_new(&values, rt, MAV_DTYPE_F32, 2, (int64_t[]){1, 2}), MAV_OK);
  assert_int_equal(mav_tensor_reshape(&index, mine, 1, (int64_t[]){2}), MAV_OK);
  assert_int_equal(mav_tensor_slice(&part, index, 0, 0, 1, 1), MAV_OK);
  const int topk = mav_op_find("topk"), gather = mav_op_find("gather"), distinct = mav_op_find("count_distinct");

  bool done = false;
  for (int n = 1; !done; n++) { /* topk fails at every allocation; gather then still looks at what is there */
    assert_int_equal(mav_graph_begin(&g, rt, rows), MAV_OK);
    mav_arg best[MAV_ARGS_MAX] = {{.given = true, .tensor = x}, {.given = true, .number = 2}, {.given = true, .tensor = values}, {.given = true, .tensor = mine}};
    mav__mem_fail_at(n);
    done = mav_op_call(rt, topk, best) == MAV_OK;
    mav__mem_fail_at(0);
    mav_arg get[MAV_ARGS_MAX] = {{.given = true, .tensor = x}, {.given = true, .tensor = part}};
    const mav_err err = mav_op_call(rt, gather, get); /* x has 1 row */
    assert_int_equal(err, done ? MAV_ERR_RANGE : MAV_OK);
    assert_int_equal(mav_graph_end(g), MAV_OK);
    mav_tensor_set(part, 0, 3);
    assert_int_equal(mav_graph_launch(g), done ? MAV_OK : MAV_ERR_RANGE);
    mav_tensor_set(part, 0, 0);
    mav_tensor_release(get[2].tensor), mav_graph_release(g);
  }

  assert_int_equal(mav_graph_begin(&g, rt, rows), MAV_OK);
  mav_arg count[MAV_ARGS_MAX] = {{.given = true, .tensor = mine}, {.given = true, .tensor = part}};
  assert_int_equal(mav_op_call(rt, distinct, count), MAV_OK);
  mav_arg get[MAV_ARGS_MAX] = {{.given = true, .tensor = x}, {.given = true, .tensor = part}};
  assert_int_equal(mav_op_call(rt, gather, get), MAV_ERR_RANGE);
  count[1].tensor = mav_rows_ids(rows);
  assert_int_equal(mav_op_call(rt, distinct, count), MAV_ERR_INVALID);
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "the memory of the rows"));
  mav_graph_release(g);
  assert_int_equal(mav_op_call(rt, distinct, count), MAV_OK); /* at once, anybody may */
  mav_tensor *all[] = {x, mine, values, index, part};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) mav_tensor_release(all[i]);
  mav_rows_release(rows);
}

/* Every planned tensor must not overlap any other that is alive at the same node: random graphs, results compared with the
 * same ops run eagerly. */
static void test_random_graphs(void **state) {
  (void)state;
  enum { NODES = 60 };
  mav_rows *rows;
  assert_int_equal(mav_rows_new(&rows, rt, 1), MAV_OK);
  static const char *const ops[] = {"add", "sub", "maximum", "minimum"};
  for (uint32_t seed = 1; seed < 40; seed++) {
    mav_tensor *eager[NODES + 2], *recorded[NODES + 2];
    mav_graph *g = NULL;
    for (int pass = 0; pass < 2; pass++) {
      uint32_t random = seed;
      mav_tensor **t = pass ? recorded : eager;
      for (int i = 0; i < 2; i++) {
        t[i] = pass ? mav_tensor_retain(eager[i]) : zeros(64 + seed);
        for (int k = 0; k < 64 && !pass; k++) mav_tensor_set(t[i], k, (double)(k * (i + 3) % 17));
      }
      if (pass) assert_int_equal(mav_graph_begin(&g, rt, rows), MAV_OK);
      for (int i = 2; i < NODES + 2; i++) {
        random = random * 1664525 + 1013904223;
        t[i] = binary(ops[random >> 30], t[(random >> 8) % (uint32_t)i], t[(random >> 17) % (uint32_t)i]);
      }
      if (pass) {
        assert_int_equal(mav_graph_keep(g, t[NODES + 1]), MAV_OK);
        assert_int_equal(mav_graph_end(g), MAV_OK);
        assert_int_equal(mav_graph_launch(g), MAV_OK);
      }
    }
    float a[128], b[128];
    assert_int_equal(mav_tensor_read(eager[NODES + 1], a, (64 + seed) * sizeof(float)), MAV_OK);
    assert_int_equal(mav_tensor_read(recorded[NODES + 1], b, (64 + seed) * sizeof(float)), MAV_OK);
    assert_memory_equal(a, b, (64 + seed) * sizeof(float));
    for (int i = 0; i < NODES + 2; i++) mav_tensor_release(eager[i]), mav_tensor_release(recorded[i]);
    mav_graph_release(g);
  }
  mav_rows_release(rows);
}

/* Every allocation of a capture and an eager call fails once; nothing leaks and the runtime stays usable. */
static void test_allocation_failures(void **state) {
  (void)state;
  mav_rows *rows;
  assert_int_equal(mav_rows_new(&rows, rt, 1), MAV_OK);
  mav_tensor *x = zeros(10), *one = zeros(10);
  int64_t live = mav__mem_live();
  bool reached_end = false;
  for (int n = 1; n < 200 && !reached_end; n++) {
    mav_graph *g;
    mav_arg args[MAV_ARGS_MAX] = {{.given = true, .tensor = x}, {.given = true, .tensor = one}};
    mav__mem_fail_at(n);
    mav_err err = mav_graph_begin(&g, rt, rows);
    if (!err) {
      err = mav_op_call(rt, mav_op_find("add"), args);
      if (!err) err = mav_graph_keep(g, args[2].tensor);
      if (!err) err = mav_graph_end(g);
      mav_tensor_release(args[2].tensor);
      mav_graph_release(g);
    }
    reached_end = err == MAV_OK;
    if (err) assert_int_equal(err, MAV_ERR_NOMEM);
    mav__mem_fail_at(0);
    if (!reached_end) assert_int_equal(mav__mem_live(), live);
  }
  assert_true(reached_end);
  mav_tensor_release(x), mav_tensor_release(one), mav_rows_release(rows);
}


int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_descriptions),   cmocka_unit_test(test_eager),         cmocka_unit_test(test_errors_name_the_argument), cmocka_unit_test(test_replay),
      cmocka_unit_test(test_capture_states), cmocka_unit_test(test_launch_checks_rows), cmocka_unit_test(test_random_graphs),       cmocka_unit_test(test_allocation_failures),
      cmocka_unit_test(test_computed_indices), cmocka_unit_test(test_promises),
  };
  return run_on_devices(tests, sizeof tests / sizeof *tests, setup, teardown);
}
