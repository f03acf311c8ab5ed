/* tests/core/test_rows.c - row tables, parts of them, and rows that the ops of a capture write: what a launch refuses, and that a
 * refused launch has written nothing. */
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

static mav_rows *table(int64_t count) {
  mav_rows *r;
  assert_int_equal(mav_rows_new(&r, rt, count), MAV_OK);
  return r;
}

static mav_rows *slice(mav_rows *r, int64_t first, int64_t count) {
  mav_rows *part;
  assert_int_equal(mav_rows_slice(&part, r, first, count), MAV_OK);
  return part;
}

/* ---- parts ------------------------------------------------------------------------------------------------------------------ */

static void test_parts(void **state) {
  (void)state;
  mav_rows *whole = table(8), *part = slice(whole, 2, 5), *inner = slice(part, 1, 2);
  for (int i = 0; i < 8; i++) assert_int_equal(mav_rows_set(whole, i, 10 + i, 0, i, i - 1, -1), MAV_OK);
  assert_int_equal(mav_rows_count(part), 5);
  assert_int_equal(mav_rows_count(inner), 2);
  const mavk_rows k = mav__rows_host(inner);
  assert_true(k.n == 2 && k.first == 3 && k.id[0] == 13 && k.pos[1] == 4 && k.parent[0] == 2);
  assert_true(mavk_parent(&k, 0) == -1 && mavk_parent(&k, 1) == 0);
  double id;
  assert_int_equal(mav_tensor_get(mav_rows_ids(inner), 1, &id), MAV_OK);
  assert_true(mav_tensor_count(mav_rows_ids(inner)) == 2 && id == 14);
  assert_int_equal(mav_tensor_set(mav_rows_ids(inner), 1, 77), MAV_OK); /* the same memory */
  assert_int_equal(mav__rows_at(whole, MAV__ROWS_ID)[4], 77);
  assert_ptr_equal(mav__rows_base(inner), whole);
  assert_int_equal(mav_rows_set(part, 0, 1, 0, 0, -1, -1), MAV_ERR_STATE);
  assert_int_equal(mav_rows_set(inner, 0, 1, -1, 0, -1, -1), MAV_ERR_STATE);
  assert_int_equal(mav__rows_at(whole, MAV__ROWS_ID)[2], 12);
  mav_rows_release(whole), mav_rows_release(part); /* a part keeps its table */
  assert_int_equal(mav__rows_at(inner, MAV__ROWS_ID)[0], 13);
  mav_rows_release(inner);
}

static void test_bounds_of_parts(void **state) {
  (void)state;
  mav_rows *whole = table(8), *part = slice(whole, 2, 5), *bad;
  static const int64_t wrong[][2] = {{-1, 2}, {0, 0}, {0, -1}, {0, 6}, {5, 1}, {4, 2}, {1, INT64_MAX}, {5, INT64_MAX}, {INT64_MAX, 1}, {INT64_MIN, 1}, {0, INT64_MIN}};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    assert_int_equal(mav_rows_slice(&bad, part, wrong[i][0], wrong[i][1]), MAV_ERR_RANGE);
    assert_null(bad);
  }
  mav_rows *all = slice(part, 0, 5), *last = slice(part, 4, 1);
  assert_int_equal(mav__rows_kernel(last).first, 6);
  const int64_t live = mav__mem_live();
  for (int n = 1;; n++) {
    mav__mem_fail_at(n);
    const mav_err err = mav_rows_slice(&bad, whole, 1, 2);
    mav__mem_fail_at(0);
    if (!err) break;
    assert_int_equal(err, MAV_ERR_NOMEM);
    assert_true(!bad && mav__mem_live() == live && n < 20);
  }
  mav_rows *rows[] = {whole, part, all, last, bad};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) mav_rows_release(rows[i]);
}

static void test_set(void **state) {
  (void)state;
  mav_rows *r = table(2), *none;
  assert_int_equal(mav_rows_new(&none, rt, 0), MAV_ERR_RANGE);
  assert_int_equal(mav_rows_new(&none, rt, (1 << 20) + 1), MAV_ERR_RANGE);
  assert_int_equal(mav_rows_set(r, 2, 0, 0, 0, -1, -1), MAV_ERR_RANGE);
  assert_int_equal(mav_rows_set(r, -1, 0, 0, 0, -1, -1), MAV_ERR_RANGE);
  assert_int_equal(mav_rows_set(r, 0, -1, 0, 0, -1, -1), MAV_ERR_RANGE);
  assert_int_equal(mav_rows_set(r, 0, 0, 0, -1, -1, -1), MAV_ERR_RANGE);
  assert_int_equal(mav_rows_set(r, 0, 0, 0, INT32_MAX, -1, -1), MAV_ERR_RANGE); /* there is a next position */
  assert_int_equal(mav_rows_set(r, 0, 0, 0, 0, -1, INT32_MAX), MAV_ERR_RANGE);
  assert_int_equal(mav_rows_set(r, 0, 0, 0, 0, 0, -1), MAV_ERR_RANGE);
  assert_int_equal(mav_rows_set(r, 0, 0, 0, MAV__ROWS_POS_MAX, -1, -1), MAV_OK);
  assert_int_equal(mav_rows_set(r, 1, 0, 0, 5, 0, -1), MAV_ERR_INVALID);
  assert_int_equal(mav_rows_set(r, 1, 0, 1, 1, 0, -1), MAV_ERR_INVALID);
  mav_rows_release(r);
}

/* ---- captures -------------------------------------------------------------------------------------------------------------------- */

#define V 32
#define D 4
#define ROWS_MAX 16

/* What the ops of these tests need. Every table and the cache are compared before and after a refused launch. */
typedef struct world {
  mav_kv *kv;
  mav_tensor *embeddings, *narrow, *norm, *w;           /* narrow: half the vocabulary */
  mav_tensor *accepted[ROWS_MAX + 1], *choice[ROWS_MAX + 1]; /* by number of rows; all accepted 0, choice 3 */
  mav_rows *rows[8];
  int tables, seq[2];
  mav_graph *g;
} world;

static mav_tensor *floats(int dims, const int64_t *shape) {
  mav_tensor *t;
  assert_int_equal(mav_tensor_new(&t, rt, MAV_DTYPE_F32, dims, shape), MAV_OK);
  float *p = host_of(t);
  for (int64_t i = 0; i < mav_tensor_count(t); i++) p[i] = (float)(i % 7) - 2.5f;
  return t;
}

static world world_new(void) {
  world w = {0};
  mav_kv_options o = {.layers = 1, .kv_heads = 1, .head_dim = D, .dtype = MAV_DTYPE_F32, .tokens = 256, .sequences = 4, .page = 16};
  assert_int_equal(mav_kv_new(&w.kv, rt, &o), MAV_OK);
  for (int i = 0; i < 2; i++) assert_int_equal(mav_kv_sequence_new(w.kv, i, &w.seq[i]), MAV_OK);
  w.embeddings = floats(2, (int64_t[]){V, D}), w.narrow = floats(2, (int64_t[]){V / 2, D});
  w.norm = floats(1, (int64_t[]){D}), w.w = floats(2, (int64_t[]){3 * D, D});
  for (int64_t n = 1; n <= ROWS_MAX; n++) {
    assert_int_equal(mav_tensor_new(&w.accepted[n], rt, MAV_DTYPE_I32, 1, &n), MAV_OK);
    assert_int_equal(mav_tensor_new(&w.choice[n], rt, MAV_DTYPE_I32, 1, &n), MAV_OK);
    for (int64_t i = 0; i < n; i++) ((int32_t *)host_of(w.choice[n]))[i] = 3;
  }
  return w;
}

static void world_free(world *w) {
  mav_graph_release(w->g);
  for (int i = 0; i < w->tables; i++) mav_rows_release(w->rows[i]);
  for (int n = 1; n <= ROWS_MAX; n++) mav_tensor_release(w->accepted[n]), mav_tensor_release(w->choice[n]);
  mav_tensor_release(w->embeddings), mav_tensor_release(w->narrow), mav_tensor_release(w->norm), mav_tensor_release(w->w);
  mav_kv_release(w->kv);
}

/* Trees of n rows each, chains, one after the other; sequence by tree. */
static mav_rows *chains(world *w, int trees, int n, const int *seq, int32_t pos) {
  mav_rows *r = w->rows[w->tables++] = table(trees * n);
  for (int t = 0; t < trees; t++)
    for (int i = 0; i < n; i++) assert_int_equal(mav_rows_set(r, t * n + i, 1, seq[t], pos + i, i ? t * n + i - 1 : -1, -1), MAV_OK);
  return r;
}

static void append(world *w, int seq, int64_t count) {
  assert_int_equal(mav_kv_sequence_reserve(w->kv, w->seq[seq], count), MAV_OK);
  assert_int_equal(mav_kv_sequence_commit(w->kv, w->seq[seq], count), MAV_OK);
}

static void reserve(world *w, int seq, int64_t count) { assert_int_equal(mav_kv_sequence_reserve(w->kv, w->seq[seq], count), MAV_OK); }

static mav_arg tensor_arg(mav_tensor *t) { return (mav_arg){.given = true, .tensor = t}; }
static mav_arg rows_arg(mav_rows *r) { return (mav_arg){.given = true, .rows = r}; }
static mav_arg kv_arg(world *w) { return (mav_arg){.given = true, .kv = {w->kv, 0}}; }
static mav_arg number_arg(double x) { return (mav_arg){.given = true, .number = x}; }

/* One op; its results are released. */
static mav_err call(const char *name, mav_arg *args) {
  const int op = mav_op_find(name);
  const mav_op_desc *d = mav_op_get(op);
  const mav_err err = mav_op_call(rt, op, args);
  for (int i = 0; i < d->args && !err; i++)
    if (d->arg[i].kind == MAV_ARG_OUT) mav_tensor_release(args[i].tensor);
  return err;
}

static mav_err advance(world *w, mav_rows *rows, mav_rows *next, int shift) {
  const int64_t n = mav_rows_count(rows);
  return call("rows_advance", (mav_arg[MAV_ARGS_MAX]){rows_arg(rows), tensor_arg(w->accepted[n]), tensor_arg(w->choice[n]), rows_arg(next), number_arg(V), number_arg(shift)});
}

static mav_err follow(world *w, mav_rows *rows, mav_rows *next) {
  const int64_t n = mav_rows_count(rows);
  return call("rows_follow", (mav_arg[MAV_ARGS_MAX]){rows_arg(rows), tensor_arg(w->accepted[n]), tensor_arg(w->choice[n]), rows_arg(next), number_arg(V)});
}

static mav_err put(world *w, mav_rows *next, double vocab) {
  return call("rows_put", (mav_arg[MAV_ARGS_MAX]){tensor_arg(w->choice[mav_rows_count(next)]), rows_arg(next), number_arg(vocab)});
}

static mav_err embed(mav_tensor *embeddings, mav_rows *rows) { return call("embed", (mav_arg[MAV_ARGS_MAX]){rows_arg(rows), tensor_arg(embeddings)}); }

/* embed, norm_qkv, attention. */
static mav_err layer(world *w, mav_rows *rows) {
  mav_arg e[MAV_ARGS_MAX] = {rows_arg(rows), tensor_arg(w->embeddings)};
  MAV_TRY(mav_op_call(rt, mav_op_find("embed"), e));
  mav_arg q[MAV_ARGS_MAX] = {tensor_arg(e[2].tensor), tensor_arg(w->norm), tensor_arg(w->w), rows_arg(rows), kv_arg(w)};
  const int op = mav_op_find("norm_qkv"), out = mav_op_get(op)->args - 1;
  mav_err err = mav_op_call(rt, op, q);
  if (!err) {
    err = call("attention", (mav_arg[MAV_ARGS_MAX]){tensor_arg(q[out].tensor), rows_arg(rows), kv_arg(w)});
    mav_tensor_release(q[out].tensor);
  }
  mav_tensor_release(e[2].tensor);
  return err;
}

static void capture(world *w, mav_rows *rows) {
  mav_graph_release(w->g);
  assert_int_equal(mav_graph_begin(&w->g, rt, rows), MAV_OK);
}
static void capture_end(world *w) { assert_int_equal(mav_graph_end(w->g), MAV_OK); }

static size_t snapshot(const world *w, char *to) {
  size_t at = 0;
  for (int i = 0; i < w->tables; i++) {
    const size_t n = (size_t)w->rows[i]->total * MAV__ROWS_FIELDS * sizeof(int32_t);
    if (to) memcpy(to + at, mav__rows_at(w->rows[i], MAV__ROWS_ID), n);
    at += n;
  }
  mav__buffer *kv[] = {w->kv->layer[0].k, w->kv->layer[0].v};
  for (int i = 0; i < 2; i++) {
    if (to) assert_int_equal(mav__buffer_get(kv[i], 0, to + at, kv[i]->bytes), MAV_OK);
    at += kv[i]->bytes;
  }
  return at;
}

/* The launch is refused, by an error that says why, and nothing was written. */
static void refused(world *w, mav_err err, const char *text) {
  const size_t bytes = snapshot(w, NULL);
  char *before = malloc(2 * bytes);
  snapshot(w, before);
  mav_graph_stats stats[2];
  mav_graph_get_stats(w->g, &stats[0]);
  const mav_err got = mav_graph_launch(w->g);
  snapshot(w, before + bytes);
  mav_graph_get_stats(w->g, &stats[1]);
  const int changed = memcmp(before, before + bytes, bytes);
  free(before);
  assert_int_equal(got, err);
  if (!strstr(mav_runtime_diag(rt)->text, text)) fail_msg("'%s' expected in: %s", text, mav_runtime_diag(rt)->text);
  assert_int_equal(changed, 0);
  assert_int_equal(stats[0].launches, stats[1].launches);
}

static void launched(world *w) {
  const mav_err err = mav_graph_launch(w->g);
  if (err) fail_msg("%s", mav_runtime_diag(rt)->text);
}

static const int32_t *field(const mav_rows *r, mav__rows_field f) { return mav__rows_at(r, f); }

/* Rows of sequence 0, positions 10 and 11; a next tree of 4: its slots reach up to position 11 + 4. */
static void test_slots_reserved_ahead(void **state) {
  (void)state;
  for (int shift = -1; shift <= 0; shift++) {
    world w = world_new();
    append(&w, 0, 10);
    mav_rows *rows = chains(&w, 1, 2, w.seq, 10), *next = chains(&w, 1, 4, w.seq, 0);
    capture(&w, rows);
    assert_int_equal(layer(&w, rows), MAV_OK);
    assert_int_equal(advance(&w, rows, next, shift), MAV_OK);
    assert_int_equal(layer(&w, next), MAV_OK);
    capture_end(&w);
    for (int64_t n = 2; n < 2 + 4 + shift; n++) {
      reserve(&w, 0, n);
      refused(&w, MAV_ERR_STATE, "leaves no room for the");
    }
    reserve(&w, 0, 2 + 4 + shift);
    launched(&w);
    assert_int_equal(field(next, MAV__ROWS_ID)[0], 3);
    for (int i = 0; i < 4; i++) assert_true(field(next, MAV__ROWS_POS)[i] == 11 + shift + i && field(next, MAV__ROWS_SLOT)[i] == 11 + shift + i);
    append(&w, 0, 1); /* the first row is committed now */
    refused(&w, MAV_ERR_STATE, "");
    world_free(&w);
  }
}

/* The same without ops that read the first rows: they are still what the next ones are made of. */
static void test_sources_are_checked(void **state) {
  (void)state;
  world w = world_new();
  append(&w, 0, 40);
  mav_rows *rows = chains(&w, 1, 2, w.seq, 40), *next = chains(&w, 1, 8, w.seq, 0);
  capture(&w, rows);
  assert_int_equal(advance(&w, rows, next, 0), MAV_OK);
  assert_int_equal(layer(&w, next), MAV_OK);
  capture_end(&w);
  reserve(&w, 0, 60);
  launched(&w);
  mav_rows_set(rows, 0, 1, w.seq[0], 34, -1, -1), mav_rows_set(rows, 1, 1, w.seq[0], 35, 0, -1); /* 35 + 8 is not committed, but 36 is */
  refused(&w, MAV_ERR_STATE, "position 34");
  mav_rows_set(rows, 0, 1, w.seq[0], 40, -1, -1), mav_rows_set(rows, 1, 1, 3, 40, -1, -1);
  refused(&w, MAV_ERR_INVALID, "there is no sequence 3");
  mav_rows_set(rows, 1, 1, w.seq[1], 0, -1, -1);
  refused(&w, MAV_ERR_STATE, "of sequence 1 leaves no room");
  mav_rows_set(rows, 1, 1, w.seq[0], MAV__ROWS_POS_MAX, -1, -1);
  refused(&w, MAV_ERR_STATE, "leaves no room");
  mav_rows_set(rows, 1, 1, -1, 0, -1, -1);
  launched(&w);
  mav_kv_sequence_free(w.kv, w.seq[0]);
  refused(&w, MAV_ERR_INVALID, "there is no sequence");
  world_free(&w);
}

static void test_next_trees(void **state) {
  (void)state;
  world w = world_new();
  reserve(&w, 0, 40), reserve(&w, 1, 40);
  mav_rows *rows = chains(&w, 2, 2, w.seq, 0), *next = chains(&w, 2, 3, w.seq, 0);
  capture(&w, rows);
  assert_int_equal(advance(&w, rows, next, 0), MAV_OK);
  assert_int_equal(layer(&w, next), MAV_OK);
  capture_end(&w);
  launched(&w);
  for (int i = 2; i < 4; i++) mav_rows_set(rows, i, 1, -1, 0, -1, -1);
  refused(&w, MAV_ERR_STATE, "is not among the verified rows");
  for (int i = 3; i < 6; i++) mav_rows_set(next, i, 1, -1, 0, -1, -1); /* an idle tree needs nothing */
  launched(&w);
  for (int i = 0; i < 2; i++) mav_rows_set(rows, 2 + i, 1, w.seq[1], i, i ? 2 : -1, -1);
  mav_rows_set(next, 0, 1, w.seq[0], 0, -1, -1), mav_rows_set(next, 1, 1, w.seq[1], 0, -1, -1);
  mav_rows_set(next, 2, 1, w.seq[0], 1, 0, -1); /* behind another tree's root */
  refused(&w, MAV_ERR_INVALID, "does not belong to the tree before it");
  mav_rows_set(next, 2, 1, w.seq[1], 1, 1, -1);
  launched(&w);
  mav_rows_set(next, 1, 1, -1, 0, -1, -1); /* a child without its parent */
  refused(&w, MAV_ERR_INVALID, "row 2");
  world_free(&w);
}

/* Two advances in one capture: the second starts from rows that are not there yet. */
static void test_chained(void **state) {
  (void)state;
  world w = world_new();
  append(&w, 0, 10);
  reserve(&w, 1, 40);
  mav_rows *a = chains(&w, 2, 2, w.seq, 10), *b = chains(&w, 1, 3, w.seq, 0), *c = chains(&w, 1, 4, w.seq, 0);
  mav_rows_set(a, 2, 1, w.seq[1], 0, -1, -1), mav_rows_set(a, 3, 1, w.seq[1], 1, 2, -1);
  capture(&w, a);
  assert_int_equal(advance(&w, a, b, 0), MAV_OK);
  assert_int_equal(advance(&w, b, c, -1), MAV_OK);
  assert_int_equal(layer(&w, c), MAV_OK);
  capture_end(&w);
  for (int64_t n = 2; n < 2 + 3 + 3; n++) {
    reserve(&w, 0, n);
    refused(&w, MAV_ERR_STATE, "leaves no room for the 6 slots");
  }
  reserve(&w, 0, 2 + 3 + 3);
  launched(&w);
  for (int i = 0; i < 3; i++) mav_rows_set(b, i, 1, w.seq[1], i, i - 1, -1); /* c's sequence is in a, but not in b */
  refused(&w, MAV_ERR_STATE, "is not among the verified rows");
  for (int i = 0; i < 4; i++) mav_rows_set(c, i, 1, w.seq[1], i, i - 1, -1);
  launched(&w);
  for (int i = 2; i < 4; i++) mav_rows_set(a, i, 1, -1, 0, -1, -1); /* b's is not in a */
  refused(&w, MAV_ERR_STATE, "is not among the verified rows");
  world_free(&w);
}

/* The verified rows are the first of the table that is moved. */
static void test_in_place(void **state) {
  (void)state;
  world w = world_new();
  mav_rows *tree = chains(&w, 1, 5, w.seq, 0), *rows = slice(tree, 0, 3);
  capture(&w, rows);
  assert_int_equal(layer(&w, rows), MAV_OK);
  assert_int_equal(advance(&w, rows, tree, 0), MAV_OK);
  mav_rows *level = slice(tree, 0, 2);
  assert_int_equal(layer(&w, level), MAV_OK); /* of the next step */
  capture_end(&w);
  for (int step = 0; step < 5; step++) {
    reserve(&w, 0, 3 + 4);
    refused(&w, MAV_ERR_STATE, "leaves no room for the 5 slots");
    reserve(&w, 0, 3 + 5);
    launched(&w);
    for (int i = 0; i < 5; i++) assert_int_equal(field(tree, MAV__ROWS_POS)[i], 1 + step + i);
    assert_int_equal(mav_kv_sequence_commit(w.kv, w.seq[0], 1), MAV_OK); /* accepted: 0 everywhere, so the root is the last */
    assert_int_equal(mav_kv_sequence_truncate(w.kv, w.seq[0], step + 1), MAV_OK);
  }
  for (int i = 0; i < 3; i++) ((int32_t *)host_of(w.accepted[3]))[i] = i;
  reserve(&w, 0, 8);
  launched(&w);
  assert_int_equal(field(tree, MAV__ROWS_POS)[0], 5 + 3);
  mav_rows_release(rows), mav_rows_release(level);
  world_free(&w);
}

static void test_advance_refuses(void **state) {
  (void)state;
  world w = world_new();
  reserve(&w, 0, 40);
  mav_rows *rows = chains(&w, 1, 2, w.seq, 0), *next = chains(&w, 1, 2, w.seq, 0), *part = slice(next, 0, 2);
  for (int captured = 0; captured < 2; captured++) {
    if (captured) capture(&w, rows);
    assert_int_equal(advance(&w, rows, part, 0), MAV_ERR_INVALID);
    assert_non_null(strstr(mav_runtime_diag(rt)->text, "a whole table"));
    assert_int_equal(follow(&w, rows, part), MAV_ERR_INVALID);
    assert_int_equal(advance(&w, rows, next, 1), MAV_ERR_RANGE);
    assert_int_equal(advance(&w, rows, next, -2), MAV_ERR_RANGE);
    assert_int_equal(put(&w, next, 0), MAV_ERR_RANGE);
    assert_int_equal(put(&w, next, 1e12), MAV_ERR_RANGE);
  }
  assert_int_equal(advance(&w, rows, next, 0), MAV_OK);
  capture_end(&w);
  for (int i = 0; i < 2; i++) {
    int32_t *choice = host_of(w.choice[2]);
    choice[1] = i ? V : -1;
    refused(&w, MAV_ERR_RANGE, "outside 0 to 31");
  }
  ((int32_t *)host_of(w.choice[2]))[1] = V - 1;
  launched(&w);
  mav_rows_release(part);
  world_free(&w);
}

/* rows_follow makes rows idle on the device: what comes after cannot rely on their sequences. */
static void test_follow(void **state) {
  (void)state;
  world w = world_new();
  append(&w, 0, 10);
  mav_rows *rows = chains(&w, 1, 3, w.seq, 10), *followed = w.rows[w.tables++] = table(3), *next = chains(&w, 1, 4, w.seq, 0);
  capture(&w, rows);
  assert_int_equal(follow(&w, rows, followed), MAV_OK);
  assert_int_equal(advance(&w, followed, next, 0), MAV_ERR_INVALID);
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "writes rows in this capture"));
  mav_graph_abort(w.g);

  mav_rows *other = w.rows[w.tables++] = table(3);
  capture(&w, rows);
  assert_int_equal(follow(&w, rows, other), MAV_OK);
  assert_int_equal(advance(&w, rows, other, 0), MAV_ERR_INVALID);
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "writes next in this capture"));
  mav_graph_abort(w.g);

  capture(&w, rows);
  assert_int_equal(follow(&w, rows, followed), MAV_OK);
  assert_int_equal(layer(&w, followed), MAV_OK);
  assert_int_equal(follow(&w, followed, other), MAV_OK);
  assert_int_equal(layer(&w, other), MAV_OK);
  capture_end(&w);
  reserve(&w, 0, 2);
  refused(&w, MAV_ERR_STATE, "leaves no room for the 0 slots");
  reserve(&w, 0, 3);
  static const int32_t path[] = {0, -1, 1}; /* the second row was rejected */
  memcpy(host_of(w.accepted[3]), path, sizeof path);
  launched(&w);
  assert_true(field(followed, MAV__ROWS_SEQ)[1] == -1 && field(followed, MAV__ROWS_POS)[2] == 12 && field(followed, MAV__ROWS_PARENT)[2] == -1);
  assert_int_equal(field(other, MAV__ROWS_SEQ)[1], -1);
  launched(&w); /* again, over what is there */
  append(&w, 0, 1);
  refused(&w, MAV_ERR_STATE, "");

  capture(&w, next); /* in another capture the followed rows are like any */
  assert_int_equal(advance(&w, followed, next, 0), MAV_OK);
  assert_int_equal(layer(&w, next), MAV_OK);
  capture_end(&w);
  assert_int_equal(mav_kv_sequence_truncate(w.kv, w.seq[0], 10), MAV_OK);
  reserve(&w, 0, 7);
  launched(&w);
  for (int i = 0; i < 3; i++) mav_rows_set(followed, i, 0, -1, 0, -1, -1);
  refused(&w, MAV_ERR_STATE, "is not among the verified rows");

  capture(&w, rows); /* rows that follow an advanced tree */
  assert_int_equal(advance(&w, rows, next, 0), MAV_OK);
  mav_rows *four = w.rows[w.tables++] = table(4);
  assert_int_equal(follow(&w, next, four), MAV_OK);
  assert_int_equal(layer(&w, four), MAV_OK);
  capture_end(&w);
  assert_int_equal(mav_kv_sequence_truncate(w.kv, w.seq[0], 10), MAV_OK);
  reserve(&w, 0, 6);
  refused(&w, MAV_ERR_STATE, "leaves no room for the 4 slots"); /* from positions 10 to 12 on */
  reserve(&w, 0, 7);
  launched(&w);
  world_free(&w);
}

static void test_ids(void **state) {
  (void)state;
  world w = world_new();
  mav_rows *tree = chains(&w, 1, 4, w.seq, 0), *part = slice(tree, 1, 2), *rows = chains(&w, 1, 4, w.seq, 0);
  capture(&w, tree);
  assert_int_equal(put(&w, part, V), MAV_OK);
  assert_int_equal(embed(w.narrow, tree), MAV_ERR_RANGE);
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "writes ids below 32 into the rows; they must be below 16"));
  assert_int_equal(embed(w.embeddings, tree), MAV_OK);
  mav_graph_abort(w.g);

  capture(&w, tree);
  assert_int_equal(advance(&w, rows, tree, 0), MAV_OK); /* below V */
  assert_int_equal(put(&w, part, V / 2), MAV_OK);       /* only a part: the promise is still V */
  assert_int_equal(embed(w.narrow, tree), MAV_ERR_RANGE);
  mav_graph_abort(w.g);

  capture(&w, tree);
  assert_int_equal(embed(w.narrow, tree), MAV_OK); /* before they are written */
  assert_int_equal(put(&w, part, V), MAV_OK);
  capture_end(&w);
  launched(&w);
  for (int i = 0; i < 2; i++) ((int32_t *)host_of(w.choice[2]))[i] = V / 2;
  launched(&w); /* read, then written */
  refused(&w, MAV_ERR_RANGE, "token id 16 is outside the vocabulary of 16");

  capture(&w, tree);
  assert_int_equal(put(&w, part, V), MAV_OK);
  assert_int_equal(embed(w.embeddings, tree), MAV_OK);
  capture_end(&w);
  mav_rows_set(tree, 3, V, w.seq[0], 3, 2, -1); /* not among those that are written */
  refused(&w, MAV_ERR_RANGE, "row 3: token id 32");
  mav_rows_set(tree, 3, V - 1, w.seq[0], 3, 2, -1);
  launched(&w);

  /* ids that the capture computes need a promise */
  mav_tensor *x = floats(2, (int64_t[]){4, V});
  capture(&w, tree);
  mav_arg best[MAV_ARGS_MAX] = {tensor_arg(x)};
  assert_int_equal(mav_op_call(rt, mav_op_find("argmax"), best), MAV_OK);
  assert_int_equal(call("rows_put", (mav_arg[MAV_ARGS_MAX]){tensor_arg(best[1].tensor), rows_arg(tree), number_arg(V / 2)}), MAV_ERR_RANGE);
  assert_int_equal(call("rows_put", (mav_arg[MAV_ARGS_MAX]){tensor_arg(best[1].tensor), rows_arg(tree), number_arg(V)}), MAV_OK);
  capture_end(&w);
  launched(&w);
  mav_tensor_release(best[1].tensor), mav_tensor_release(x), mav_rows_release(part);
  world_free(&w);
}

/* Acceptance looks ids up in probabilities. */
static void test_acceptance_checks_ids(void **state) {
  (void)state;
  world w = world_new();
  mav_rows *rows = chains(&w, 1, 2, w.seq, 0);
  mav_tensor *p = floats(2, (int64_t[]){2, V});
  float *v = host_of(p);
  for (int i = 0; i < 2 * V; i++) v[i] = 1.0f / V;
  for (int typical = 0; typical < 2; typical++) {
    mav_arg rejection[MAV_ARGS_MAX] = {rows_arg(rows), tensor_arg(p), {0}, kv_arg(&w)}, choose[MAV_ARGS_MAX] = {rows_arg(rows), tensor_arg(p), tensor_arg(w.choice[2])};
    const char *name = typical ? "accept_typical" : "accept_rejection";
    mav_rows_set(rows, 1, V, w.seq[0], 1, 0, -1);
    mav_arg *args = typical ? choose : rejection, again[MAV_ARGS_MAX];
    memcpy(again, args, sizeof again);
    assert_int_equal(call(name, args), MAV_ERR_RANGE);
    capture(&w, rows);
    assert_int_equal(call(name, again), MAV_OK);
    capture_end(&w);
    refused(&w, MAV_ERR_RANGE, "token id 32");
    mav_rows_set(rows, 1, V - 1, w.seq[0], 1, 0, -1);
    launched(&w);
  }
  mav_tensor_release(p);
  world_free(&w);
}

/* ---- with a cache ------------------------------------------------------------------------------------------------------------- */

/* A part's ancestors lie before it: attention goes up to them, so they must be sound too. */
static void test_ancestors_before_a_part(void **state) {
  (void)state;
  world w = world_new();
  append(&w, 0, 5);
  reserve(&w, 0, 6);
  mav_rows *tree = w.rows[w.tables++] = table(5);
  const struct {
    int32_t pos, parent, slot;
  } rows[] = {{5, -1, 5}, {6, 0, 6}, {6, 0, 7}, {7, 2, 8}, {8, 3, 9}};
  for (int i = 0; i < 5; i++) assert_int_equal(mav_rows_set(tree, i, 1, w.seq[0], rows[i].pos, rows[i].parent, rows[i].slot), MAV_OK);
  mav_rows *part = slice(tree, 4, 1);
  capture(&w, part);
  assert_int_equal(layer(&w, part), MAV_OK);
  capture_end(&w);
  launched(&w);
  static const struct {
    mav__rows_field field;
    int row;
    int32_t value;
  } wrong[] = {{MAV__ROWS_SLOT, 3, 1000000}, {MAV__ROWS_SLOT, 3, -1}, {MAV__ROWS_SLOT, 2, 11}, {MAV__ROWS_POS, 2, 5}, {MAV__ROWS_SEQ, 2, 1},
               {MAV__ROWS_SLOT, 0, 1 << 30}, {MAV__ROWS_SEQ, 0, -1},   {MAV__ROWS_POS, 0, 100}};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    int32_t *cell = mav__rows_edit(tree, wrong[i].field) + wrong[i].row, before = *cell;
    *cell = wrong[i].value;
    refused(&w, MAV_ERR_STATE, "row 0: its ancestor, row");
    assert_int_equal(layer(&w, part), MAV_ERR_STATE); /* nor at once */
    mav__rows_edit(tree, wrong[i].field)[wrong[i].row] = before;
    launched(&w);
  }
  for (int i = 0; i < 5; i++) mav__rows_edit(tree, MAV__ROWS_POS)[i] += 20; /* a tree that hangs in the air */
  refused(&w, MAV_ERR_STATE, "the root of its tree is at position 25");
  mav_rows_release(part);
  world_free(&w);
}

/* kv_move writes to the slots of positions: those must be free to write. */
static void test_kv_move(void **state) {
  (void)state;
  world w = world_new();
  append(&w, 0, 5);
  reserve(&w, 0, 3);
  mav_rows *rows = w.rows[w.tables++] = table(2);
  mav_rows_set(rows, 0, 1, w.seq[0], 5, -1, -1), mav_rows_set(rows, 1, 1, w.seq[0], 6, 0, 7);
  capture(&w, rows);
  assert_int_equal(call("kv_move", (mav_arg[MAV_ARGS_MAX]){rows_arg(rows), tensor_arg(w.accepted[2]), kv_arg(&w)}), MAV_OK);
  capture_end(&w);
  launched(&w);
  mav_rows_set(rows, 0, 1, w.seq[0], 2, -1, 6), mav_rows_set(rows, 1, 1, w.seq[0], 3, 0, 7); /* an old position looked at again */
  assert_int_equal(layer(&w, rows), MAV_OK);
  refused(&w, MAV_ERR_STATE, "is no place to move to");

  mav_rows *many = table(100); /* too many to search for shared slots */
  for (int i = 0; i < 100; i++) assert_int_equal(mav_rows_set(many, i, 1, w.seq[0], 5 + i, i - 1, i ? 6 : 5), MAV_OK);
  mav_tensor *accepted;
  assert_int_equal(mav_tensor_new(&accepted, rt, MAV_DTYPE_I32, 1, (int64_t[]){100}), MAV_OK);
  assert_int_equal(call("kv_move", (mav_arg[MAV_ARGS_MAX]){rows_arg(many), tensor_arg(accepted), kv_arg(&w)}), MAV_ERR_STATE);
  mav_tensor_release(accepted), mav_rows_release(many);
  world_free(&w);
}

/* Called at once, the same ops work on what is there. */
static void test_eager(void **state) {
  (void)state;
  world w = world_new();
  reserve(&w, 0, 10);
  mav_rows *rows = chains(&w, 1, 2, w.seq, 0), *next = chains(&w, 1, 3, w.seq, 0), *followed = w.rows[w.tables++] = table(2);
  assert_int_equal(layer(&w, rows), MAV_OK);
  assert_int_equal(advance(&w, rows, next, 0), MAV_OK);
  assert_int_equal(follow(&w, rows, followed), MAV_OK);
  assert_int_equal(put(&w, next, V), MAV_OK);
  assert_true(field(next, MAV__ROWS_POS)[0] == 1 && field(next, MAV__ROWS_ID)[2] == 3 && field(followed, MAV__ROWS_POS)[1] == 1);
  assert_int_equal(layer(&w, next), MAV_ERR_STATE); /* position 0 is not committed yet */
  assert_int_equal(mav_kv_sequence_commit(w.kv, w.seq[0], 1), MAV_OK);
  assert_int_equal(layer(&w, next), MAV_OK);
  world_free(&w);
}

/* Every allocation of a capture that writes rows fails once. The capture goes on, as a script that catches errors would: whatever
 * got recorded is still checked. */
static void test_allocation_failures(void **state) {
  (void)state;
  for (int n = 1, reached_end = 0; !reached_end; n++) {
    world w = world_new();
    append(&w, 0, 5);
    mav_rows *rows = chains(&w, 1, 2, w.seq, 5), *next = chains(&w, 1, 3, w.seq, 0), *lost = table(2);
    capture(&w, rows);
    mav__mem_fail_at(n);
    mav_err err[4] = {advance(&w, rows, next, 0), layer(&w, next), follow(&w, rows, lost), layer(&w, lost)};
    mav__mem_fail_at(0);
    mav_rows_release(lost);
    reached_end = !err[0] && !err[1] && !err[2] && !err[3];
    const mav_err end = mav_graph_end(w.g);
    if (!end && !err[0] && !err[1]) refused(&w, MAV_ERR_STATE, "");
    reserve(&w, 0, 6);
    if (reached_end) launched(&w);
    assert_true(n < 1000);
    world_free(&w);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_parts),
      cmocka_unit_test(test_bounds_of_parts),
      cmocka_unit_test(test_set),
      cmocka_unit_test(test_slots_reserved_ahead),
      cmocka_unit_test(test_sources_are_checked),
      cmocka_unit_test(test_next_trees),
      cmocka_unit_test(test_chained),
      cmocka_unit_test(test_in_place),
      cmocka_unit_test(test_advance_refuses),
      cmocka_unit_test(test_follow),
      cmocka_unit_test(test_ids),
      cmocka_unit_test(test_acceptance_checks_ids),
      cmocka_unit_test(test_ancestors_before_a_part),
      cmocka_unit_test(test_kv_move),
      cmocka_unit_test(test_eager),
      cmocka_unit_test(test_allocation_failures),
  };
  return run_on_devices(tests, sizeof tests / sizeof *tests, setup, teardown);
}
