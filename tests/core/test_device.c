/* tests/core/test_device.c - the cuda backend (or its emulation, MAV_CUDA_LIBRARY): what host and device share, graphs that are still under
 * way, shuffled weights, errors of opening, and every call to the device failing in turn. Without such a device most of it is skipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "graph.h"
#include "layout.h"
#include "numeric.h"

static mav_runtime *rt;

static int setup(void **state) {
  (void)state;
  return mav_runtime_new(&rt, &(mav_runtime_options){.device = "cuda"}, NULL);
}

static int teardown(void **state) {
  (void)state;
  mav_runtime_release(rt);
  assert_int_equal(mav__mem_live(), 0);
  assert_int_equal(mav__device_live(), 0);
  return 0;
}

static void ok(mav_err err, const char *call, int line) {
  if (err) fail_msg("line %d: %s: %s", line, call, mav_runtime_diag(rt)->text);
}
#define OK(call) ok((call), #call, __LINE__)

static mav_tensor *tensor(mav_dtype dtype, int64_t n) {
  mav_tensor *t;
  OK(mav_tensor_new(&t, rt, dtype, 1, &n));
  return t;
}

static double get(mav_tensor *t, int64_t i) {
  double x;
  OK(mav_tensor_get(t, i, &x));
  return x;
}

static mav_arg tensor_arg(mav_tensor *t) { return (mav_arg){.given = true, .tensor = t}; }
static mav_arg rows_arg(mav_rows *r) { return (mav_arg){.given = true, .rows = r}; }
static mav_arg number_arg(double x) { return (mav_arg){.given = true, .number = x}; }

/* y = a + b, into out or a new tensor. */
static mav_tensor *add(mav_tensor *a, mav_tensor *b, mav_tensor *out) {
  mav_arg args[MAV_ARGS_MAX] = {tensor_arg(a), tensor_arg(b), {.given = out != NULL, .tensor = out}};
  OK(mav_op_call(rt, mav_op_find("add"), args));
  return args[2].tensor;
}

/* ---- what both sides share ---------------------------------------------------------------------------------------------- */

static void test_copies(void **state) {
  (void)state;
  static const mav_dtype dtypes[] = {MAV_DTYPE_F32, MAV_DTYPE_BF16, MAV_DTYPE_F16, MAV_DTYPE_F8, MAV_DTYPE_I32, MAV_DTYPE_I64, MAV_DTYPE_U8};
  for (size_t k = 0; k < sizeof dtypes / sizeof *dtypes; k++) {
    mav_tensor *t = tensor(dtypes[k], 1000), *part;
    assert_true(get(t, 999) == 0);
    for (int i = 0; i < 1000; i += 7) OK(mav_tensor_set(t, i, i % 16));
    OK(mav_tensor_slice(&part, t, 0, 7, 100, 7));
    for (int i = 0; i < 100; i++) assert_true(get(part, i) == (7 + 7 * i) % 16);
    void *data;
    assert_int_equal(mav_tensor_data(t, &data), MAV_ERR_UNSUPPORTED);
    mav_tensor_release(t), mav_tensor_release(part);
  }
  /* more than the ring of pinned memory holds, from memory that changes at once */
  const int64_t n = (int64_t)7 << 20;
  mav_tensor *t = tensor(MAV_DTYPE_U8, n);
  unsigned char *bytes = malloc((size_t)n), *back = malloc((size_t)n);
  assert_true(bytes && back);
  for (int64_t i = 0; i < n; i++) bytes[i] = (unsigned char)(i * 31 >> 3);
  OK(mav_tensor_write(t, bytes, (size_t)n));
  memset(bytes, 0, (size_t)n);
  OK(mav_tensor_read(t, back, (size_t)n));
  for (int64_t i = 0; i < n; i++) assert_int_equal(back[i], (unsigned char)(i * 31 >> 3));
  free(bytes), free(back);
  mav_tensor_release(t);
  assert_int_equal(mav_tensor_wrap(&t, rt, MAV_DTYPE_U8, 1, (int64_t[]){1}, &rt), MAV_ERR_UNSUPPORTED);
}

/* Rows are the host's and the device's: what either writes the other sees. */
static void test_rows_of_both_sides(void **state) {
  (void)state;
  enum { N = 5 };
  mav_rows *rows, *part;
  OK(mav_rows_new(&rows, rt, N));
  for (int i = 0; i < N; i++) OK(mav_rows_set(rows, i, 10 + i, 0, i, i - 1, -1));
  OK(mav_rows_slice(&part, rows, 2, 2));
  mav_tensor *ids = tensor(MAV_DTYPE_I32, 2);
  for (int round = 0; round < 3; round++) {
    OK(mav_tensor_set(ids, 0, 100 + round)), OK(mav_tensor_set(ids, 1, 200 + round));
    mav_arg put[MAV_ARGS_MAX] = {tensor_arg(ids), rows_arg(part), number_arg(1000)};
    OK(mav_op_call(rt, mav_op_find("rows_put"), put)); /* at once */
    OK(mav_rows_set(rows, 0, 50 + round, 0, 0, -1, -1));
    static const int32_t kept[] = {11, 14};
    assert_int_equal(mav__rows_at(rows, MAV__ROWS_ID)[0], 50 + round);
    assert_int_equal(mav__rows_at(rows, MAV__ROWS_ID)[1], kept[0]);
    assert_int_equal(mav__rows_at(rows, MAV__ROWS_ID)[2], 100 + round);
    assert_int_equal(mav__rows_at(rows, MAV__ROWS_ID)[3], 200 + round);
    assert_int_equal(mav__rows_at(rows, MAV__ROWS_ID)[4], kept[1]);
    assert_true(get(mav_rows_ids(part), 1) == 200 + round);
  }
  mav_tensor_release(ids), mav_rows_release(part), mav_rows_release(rows);
}

/* Launches follow each other without a wait; between them the host writes what they read, and reads what they wrote. */
static void test_launches_under_way(void **state) {
  (void)state;
  mav_rows *rows;
  mav_graph *g;
  OK(mav_rows_new(&rows, rt, 1));
  mav_tensor *x = tensor(MAV_DTYPE_F32, 64), *sum = tensor(MAV_DTYPE_F32, 64), *large = tensor(MAV_DTYPE_F32, 8192), *more = tensor(MAV_DTYPE_F32, 8192);
  OK(mav_tensor_set(more, 5, 2));
  OK(mav_graph_begin(&g, rt, rows));
  mav_tensor *twice = add(x, x, NULL);
  add(sum, twice, sum);
  add(large, more, large); /* too much for the mail */
  OK(mav_graph_keep(g, twice));
  OK(mav_graph_end(g));
  assert_true(mav_graph_poll(g)); /* nothing was launched */
  OK(mav_graph_wait(g));
  double expected = 0;
  for (int i = 1; i <= 40; i++) {
    OK(mav_tensor_set(x, 3, i));
    const int64_t before = mav__mem_allocs();
    OK(mav_graph_launch(g));
    assert_int_equal(mav__mem_allocs(), before);
    expected += 2 * i;
    if (i % 5 == 0) assert_true(get(sum, 3) == expected); /* waits */
    if (i % 7 == 0) {
      assert_true(get(twice, 3) == 2 * i);
      OK(mav_tensor_set(sum, 3, 1000)); /* the host's turn */
      expected = 1000;
    }
    if (i % 11 == 0) {
      while (!mav_graph_poll(g)) {
      }
      mav_graph_stats stats;
      mav_graph_get_stats(g, &stats);
      assert_true(stats.last_ns > 0 && stats.launches == i);
    }
    if (i == 20) {
      assert_true(get(large, 5) == 40 && get(large, 4) == 0);
      OK(mav_tensor_set(large, 4, 7));
    }
  }
  OK(mav_graph_wait(g));
  assert_true(get(sum, 3) == expected && get(large, 5) == 80 && get(large, 4) == 7);

  /* another graph makes x a result, and so memory of both sides: the first one must still see what the host writes there */
  mav_graph *g2;
  OK(mav_graph_begin(&g2, rt, rows));
  add(sum, sum, x);
  OK(mav_graph_end(g2));
  OK(mav_tensor_set(x, 3, 5));
  OK(mav_tensor_set(sum, 3, 0));
  OK(mav_graph_launch(g));
  assert_true(get(sum, 3) == 10);
  OK(mav_graph_launch(g2));
  OK(mav_graph_launch(g)); /* under way when it is released */
  mav_graph_release(g2);
  assert_true(get(x, 3) == 20 && get(sum, 3) == 50);

  int op[8];
  int64_t ns[8];
  OK(mav_graph_profile(g, op, ns));
  assert_true(op[0] == mav_op_find("add") && ns[0] >= 0);
  assert_true(get(sum, 3) == 90);
  mav_graph_release(g);
  mav_tensor *all[] = {x, sum, large, more, twice};
  for (int i = 0; i < 5; i++) mav_tensor_release(all[i]);
  mav_rows_release(rows);
}

/* Indices are fetched and checked when they may have changed, whoever wrote them. */
static void test_indices(void **state) {
  (void)state;
  mav_rows *rows;
  mav_graph *g;
  OK(mav_rows_new(&rows, rt, 1));
  mav_tensor *x, *index = tensor(MAV_DTYPE_I32, 3), *logits;
  OK(mav_tensor_new(&x, rt, MAV_DTYPE_F32, 2, (int64_t[]){4, 2}));
  OK(mav_tensor_new(&logits, rt, MAV_DTYPE_F32, 2, (int64_t[]){3, 8}));
  for (int i = 0; i < 8; i++) OK(mav_tensor_set(x, i, i));
  const int gather = mav_op_find("gather");
  mav_arg args[MAV_ARGS_MAX] = {tensor_arg(x), tensor_arg(index)};
  OK(mav_graph_begin(&g, rt, rows));
  OK(mav_op_call(rt, gather, args));
  mav_tensor *y = args[2].tensor;
  OK(mav_graph_keep(g, y));
  OK(mav_graph_end(g));
  for (int i = 0; i < 4; i++) {
    OK(mav_tensor_set(index, 1, i));
    OK(mav_graph_launch(g)), OK(mav_graph_launch(g));
    assert_true(get(y, 3) == 2 * i + 1);
  }
  OK(mav_tensor_set(index, 1, 4));
  assert_int_equal(mav_graph_launch(g), MAV_ERR_RANGE);
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "index 4 (element 1)"));
  mav_arg eager[MAV_ARGS_MAX] = {tensor_arg(x), tensor_arg(index)};
  assert_int_equal(mav_op_call(rt, gather, eager), MAV_ERR_RANGE);
  /* written by an op: argmax of 8 logits promises too little, but keeps below 4 this time */
  mav_arg best[MAV_ARGS_MAX] = {tensor_arg(logits), {.given = true, .tensor = index}};
  OK(mav_tensor_set(logits, 8 + 3, 1));
  OK(mav_op_call(rt, mav_op_find("argmax"), best));
  OK(mav_graph_launch(g));
  assert_true(get(y, 3) == 7);
  OK(mav_tensor_set(logits, 8 + 6, 2));
  OK(mav_op_call(rt, mav_op_find("argmax"), best));
  assert_int_equal(mav_graph_launch(g), MAV_ERR_RANGE);
  mav_tensor *all[] = {x, index, logits, y};
  for (int i = 0; i < 4; i++) mav_tensor_release(all[i]);
  mav_graph_release(g), mav_rows_release(rows);
}

/* Forks copy pages on the device; tables and keys reach it. */
static void test_cache(void **state) {
  (void)state;
  mav_kv *kv;
  mav_rows *rows;
  int a, b;
  OK(mav_kv_new(&kv, rt, &(mav_kv_options){.layers = 1, .kv_heads = 1, .head_dim = 2, .dtype = MAV_DTYPE_F32, .tokens = 256, .sequences = 4, .page = 16}));
  OK(mav_rows_new(&rows, rt, 2));
  mav_tensor *qkv, *q;
  OK(mav_tensor_new(&qkv, rt, MAV_DTYPE_F32, 2, (int64_t[]){2, 6}));
  OK(mav_tensor_new(&q, rt, MAV_DTYPE_F32, 3, (int64_t[]){2, 1, 2}));
  OK(mav_kv_sequence_new(kv, 1, &a));
  OK(mav_kv_sequence_reserve(kv, a, 20)), OK(mav_kv_sequence_commit(kv, a, 18));
  for (int fork = 0; fork < 2; fork++) {
    if (fork) OK(mav_kv_sequence_fork(kv, a, 2, &b));
    else b = a;
    OK(mav_kv_sequence_reserve(kv, b, 2)); /* the fork's own page, copied */
    for (int i = 0; i < 2; i++) OK(mav_rows_set(rows, i, 0, b, 18 + i, i - 1, -1));
    for (int i = 0; i < 12; i++) OK(mav_tensor_set(qkv, i, 10 * (fork + 1) + i));
    mav_arg args[MAV_ARGS_MAX] = {tensor_arg(qkv), rows_arg(rows), {.given = true, .kv = {kv, 0}}};
    args[9] = tensor_arg(q);
    const mav_op_desc *d = mav_op_get(mav_op_find("rope_append"));
    for (int i = 0; i < d->args; i++)
      if (d->arg[i].kind == MAV_ARG_OUT) args[i] = tensor_arg(q);
    OK(mav_op_call(rt, mav_op_find("rope_append"), args));
    if (!fork) OK(mav_kv_sequence_commit(kv, a, 1));
    mav__kv_layer *l = &kv->layer[0];
    float values[16 * 2];
    const int32_t *table = mav__host_read(kv->group[0].table->buffer);
    const int32_t page = table[b * kv->stride + 1];
    OK(mav__buffer_get(l->v, (size_t)page * sizeof values, values, sizeof values));
    assert_true(values[2 * 2] == 10 * (fork + 1) + 4 && values[3 * 2 + 1] == 10 * (fork + 1) + 11);
    if (fork) { /* the first one's page is what it was */
      OK(mav__buffer_get(l->v, (size_t)table[a * kv->stride + 1] * sizeof values, values, sizeof values));
      assert_true(values[2 * 2] == 14);
    }
    if (!fork) OK(mav_kv_sequence_truncate(kv, a, 18));
  }
  mav_tensor_release(qkv), mav_tensor_release(q), mav_rows_release(rows), mav_kv_release(kv);
}

/* ---- weights ------------------------------------------------------------------------------------------------------------ */

static void test_shuffled(void **state) {
  (void)state;
  enum { E = 2, N = 32, D = 64 };
  static uint8_t codes[E * N * D], packed[E * N * D], back[E * N * D];
  mav_tensor *w, *scale, *s, *part, *x, *y[2];
  OK(mav_tensor_new(&w, rt, MAV_DTYPE_F8, 3, (int64_t[]){E, N, D}));
  OK(mav_tensor_new(&scale, rt, MAV_DTYPE_F32, 2, (int64_t[]){E, N}));
  for (int i = 0; i < E * N * D; i++) codes[i] = (uint8_t)(i * 37 % 0x70);
  for (int i = 0; i < E * N; i++) OK(mav_tensor_set(scale, i, 1 + i % 3));
  OK(mav_tensor_write(w, codes, sizeof codes));
  OK(mav_tensor_set_scale(w, scale, MAV_ACT_NONE, 0));
  OK(mav_tensor_shuffle(&s, w));
  assert_true(s != w && mav_tensor_is_shuffled(s) && mav_tensor_scale(s) == scale);
  mavk_mma_pack(packed, codes, E * N, D);
  OK(mav__buffer_get(s->buffer, 0, back, sizeof back));
  assert_memory_equal(packed, back, sizeof back);

  OK(mav_tensor_new(&x, rt, MAV_DTYPE_F32, 2, (int64_t[]){3, D}));
  for (int i = 0; i < 3 * D; i++) OK(mav_tensor_set(x, i, i % 5 - 2));
  for (int i = 0; i < 2; i++) { /* an expert, its lower half */
    mav_tensor *expert;
    OK(mav_tensor_select(&expert, i ? s : w, 0, 1));
    OK(mav_tensor_slice(&part, expert, 0, 16, 16, 1));
    mav_arg args[MAV_ARGS_MAX] = {tensor_arg(x), tensor_arg(part)};
    OK(mav_op_call(rt, mav_op_find("matmul"), args));
    y[i] = args[2].tensor;
    mav_tensor_release(expert), mav_tensor_release(part);
  }
  for (int i = 0; i < 3 * 16; i++) assert_true(get(y[0], i) != 0 && get(y[0], i) == get(y[1], i));

  mav_tensor *v = NULL;
  double value;
  mav_arg cast[MAV_ARGS_MAX] = {tensor_arg(s), number_arg(MAV_DTYPE_F32)};
  assert_int_equal(mav_tensor_read(s, back, sizeof back), MAV_ERR_INVALID);
  assert_int_equal(mav_tensor_get(s, 0, &value), MAV_ERR_INVALID);
  assert_int_equal(mav_op_call(rt, mav_op_find("cast"), cast), MAV_ERR_INVALID);
  assert_int_equal(mav_tensor_slice(&v, s, 1, 0, 16, 1), MAV_ERR_INVALID);
  assert_int_equal(mav_tensor_transpose(&v, s, 0, 1), MAV_ERR_INVALID);
  assert_int_equal(mav_tensor_reshape(&v, s, 2, (int64_t[]){E * N, D}), MAV_ERR_INVALID);
  assert_int_equal(mav_tensor_copy_into(s, w), MAV_ERR_INVALID);
  assert_int_equal(mav_tensor_copy_into(w, s), MAV_ERR_INVALID);
  OK(mav_tensor_slice(&part, w, 2, 0, 32, 1)); /* not contiguous: stays as it is */
  OK(mav_tensor_shuffle(&v, part));
  assert_ptr_equal(v, part);
  mav_tensor_release(v), mav_tensor_release(part);
  OK(mav_tensor_shuffle(&v, x));
  assert_ptr_equal(v, x);
  mav_tensor *all[] = {v, w, scale, s, x, y[0], y[1]};
  for (int i = 0; i < 7; i++) mav_tensor_release(all[i]);
}

/* ---- products of many rows, by cuBLASLt ---------------------------------------------------------------------------------- */

enum { MANY = 100, MANY_N = 48, MANY_K = 64 };

/* x w^T with rows of x from `first` on; codes are shuffled, others bf16. */
static mav_tensor *product(mav_tensor *x, mav_tensor *w, int64_t first, int64_t n) {
  mav_tensor *part;
  OK(mav_tensor_slice(&part, x, 0, first, n, 1));
  mav_arg args[MAV_ARGS_MAX] = {tensor_arg(part), tensor_arg(w)};
  OK(mav_op_call(rt, mav_op_find("matmul"), args));
  mav_tensor_release(part);
  return args[2].tensor;
}

/* The same numbers as of few rows, at once and in a graph, whose capture must not need anything that capturing forbids. */
static void test_many_rows(void **state) {
  (void)state;
  static float values[MANY * MANY_K], weights[MANY_N * MANY_K], scales[MANY_N], all[MANY * MANY_N], few[20 * MANY_N];
  mav_tensor *x, *w[3], *scale;
  for (int i = 0; i < MANY * MANY_K; i++) values[i] = (float)(i * 37 % 101 - 50) / 16;
  for (int i = 0; i < MANY_N * MANY_K; i++) weights[i] = (float)(i * 29 % 31 - 15) / 8;
  for (int i = 0; i < MANY_N; i++) scales[i] = (float)(1 + i % 3);
  OK(mav_tensor_new(&x, rt, MAV_DTYPE_F32, 2, (int64_t[]){MANY, MANY_K}));
  OK(mav_tensor_write(x, values, sizeof values));
  OK(mav_tensor_new(&scale, rt, MAV_DTYPE_F32, 1, (int64_t[]){MANY_N}));
  OK(mav_tensor_write(scale, scales, sizeof scales));
  for (int k = 0; k < 3; k++) { /* bf16, f8, W8A8 */
    uint8_t codes[MANY_N * MANY_K];
    uint16_t halves[MANY_N * MANY_K];
    mav_tensor *made;
    for (int i = 0; i < MANY_N * MANY_K; i++) codes[i] = mavk_f8_from_f32(weights[i]), halves[i] = mavk_bf16_from_f32(weights[i]);
    OK(mav_tensor_new(&made, rt, k ? MAV_DTYPE_F8 : MAV_DTYPE_BF16, 2, (int64_t[]){MANY_N, MANY_K}));
    OK(mav_tensor_write(made, k ? (void *)codes : halves, k ? sizeof codes : sizeof halves));
    if (k) OK(mav_tensor_set_scale(made, scale, k == 2 ? MAV_ACT_DYNAMIC : MAV_ACT_NONE, 0));
    OK(mav_tensor_shuffle(&w[k], made));
    assert_true(mav_tensor_is_shuffled(w[k]) == (k > 0));
    mav_tensor_release(made);
  }
  mav_rows *rows;
  OK(mav_rows_new(&rows, rt, 1));
  for (int k = 0; k < 6; k++) { /* graphs first: their captures find the library closed, and nothing chosen */
    mav_graph *g = NULL;
    mav_tensor *y;
    if (k < 3) OK(mav_graph_begin(&g, rt, rows));
    y = product(x, w[k % 3], 0, MANY);
    if (g) OK(mav_graph_keep(g, y)), OK(mav_graph_end(g)), OK(mav_graph_launch(g)), OK(mav_graph_wait(g));
    OK(mav_tensor_read(y, all, sizeof all));
    for (int64_t first = 0; first < MANY; first += 20) {
      mav_tensor *part = product(x, w[k % 3], first, 20);
      OK(mav_tensor_read(part, few, sizeof few));
      for (int64_t i = 0; i < 20 * MANY_N; i++) assert_float_equal(all[first * MANY_N + i], few[i], 1e-3);
      mav_tensor_release(part);
    }
    mav_tensor_release(y), mav_graph_release(g);
  }
  mav_rows_release(rows), mav_tensor_release(x), mav_tensor_release(scale);
  for (int k = 0; k < 3; k++) mav_tensor_release(w[k]);
}

/* Without the library only products of many rows are refused, and not where it is switched off. */
static void test_no_library(void **state) {
  (void)state;
  mav_tensor *x, *w;
  setenv("MAV_CUBLASLT", "/no/such/libcublasLt.so", 1);
  for (int off = 0; off < 2; off++) {
    mav_runtime_release(rt);
    assert_int_equal(mav_runtime_new(&rt, &(mav_runtime_options){.device = "cuda", .off = off ? "blas" : NULL}, NULL), MAV_OK);
    OK(mav_tensor_new(&x, rt, MAV_DTYPE_F32, 2, (int64_t[]){MANY, MANY_K}));
    OK(mav_tensor_new(&w, rt, MAV_DTYPE_BF16, 2, (int64_t[]){MANY_N, MANY_K}));
    mav_tensor_release(product(x, w, 0, 20));
    mav_arg args[MAV_ARGS_MAX] = {tensor_arg(x), tensor_arg(w)};
    assert_int_equal(mav_op_call(rt, mav_op_find("matmul"), args), off ? MAV_OK : MAV_ERR_UNSUPPORTED);
    if (off) mav_tensor_release(args[2].tensor);
    else assert_non_null(strstr(mav_runtime_diag(rt)->text, "need cuBLASLt: /no/such/libcublasLt.so"));
    mav_tensor_release(product(x, w, 0, 20));
    mav_tensor_release(x), mav_tensor_release(w);
  }
  unsetenv("MAV_CUBLASLT");
}

/* ---- errors ------------------------------------------------------------------------------------------------------------- */

static void refused(const mav_runtime_options *o, mav_err code, const char *text) {
  mav_runtime *r;
  mav_diag diag = {0};
  assert_int_equal(mav_runtime_new(&r, o, &diag), code);
  assert_null(r);
  if (!strstr(diag.text, text)) fail_msg("'%s' expected in: %s", text, diag.text);
  assert_int_equal(mav__mem_live(), 0);
  assert_int_equal(mav__device_live(), 0);
}

/* Needs no device. */
static void test_opening(void **state) {
  (void)state;
  refused(&(mav_runtime_options){.device = "cuda", .library = "/no/such/file.so"}, MAV_ERR_INVALID, "/no/such/file.so");
  refused(&(mav_runtime_options){.device = "cuda", .library = "libm.so.6"}, MAV_ERR_INVALID, "libm.so.6 is no backend of Mav");
  refused(&(mav_runtime_options){.device = "gpu"}, MAV_ERR_UNSUPPORTED, "unknown device \"gpu\"; there are auto, cuda, cpu and ref");
  refused(&(mav_runtime_options){.library = "/no/such/file.so"}, MAV_ERR_INVALID, "/no/such/file.so"); /* auto too: it was named */
}

/* Machines without what the device needs; "auto" takes the processor there. Only the emulator can play them. */
static void test_no_driver(void **state) {
  (void)state;
  static const char *const machines[][3] = {{"MAV_SIMT_DRIVER", "0", "no NVIDIA driver is installed"},
                                            {"MAV_SIMT_DRIVER", "12040", "the NVIDIA driver is too old: it knows CUDA 12.4, and this library needs 13.0"},
                                            {"CUDA_VISIBLE_DEVICES", "", "there is no CUDA device"}};
  if (!strstr(getenv("MAV_CUDA_LIBRARY") ? getenv("MAV_CUDA_LIBRARY") : "", "simt")) skip();
  mav_runtime_release(rt);
  for (int i = 0; i < 3; i++) {
    setenv(machines[i][0], machines[i][1], 1);
    refused(&(mav_runtime_options){.device = "cuda"}, MAV_ERR_UNSUPPORTED, machines[i][2]);
    assert_int_equal(mav_runtime_new(&rt, NULL, NULL), MAV_OK);
    assert_string_equal(mav_runtime_device(rt), "cpu");
    assert_non_null(strstr(mav_runtime_fallback(rt), machines[i][2]));
    mav_runtime_release(rt);
    unsetenv(machines[i][0]);
  }
  assert_int_equal(mav_runtime_new(&rt, &(mav_runtime_options){.device = "cuda"}, NULL), MAV_OK);
}

static void test_off(void **state) {
  (void)state;
  mav_runtime_release(rt);
  refused(&(mav_runtime_options){.device = "cuda", .off = "pdl,gpu"}, MAV_ERR_INVALID, "\"gpu\" cannot be switched off");
  static const char *const off[] = {"graphs", "pdl", "pdl,graphs", "prefetch,spatial,tensor,blas", ""};
  for (size_t i = 0; i < sizeof off / sizeof *off; i++) {
    assert_int_equal(mav_runtime_new(&rt, &(mav_runtime_options){.device = "cuda", .off = off[i]}, NULL), MAV_OK);
    mav_rows *rows;
    mav_graph *g;
    OK(mav_rows_new(&rows, rt, 1));
    mav_tensor *x = tensor(MAV_DTYPE_F32, 10), *y;
    OK(mav_graph_begin(&g, rt, rows));
    y = add(x, x, NULL);
    OK(mav_graph_keep(g, y));
    OK(mav_graph_end(g));
    for (int k = 1; k < 4; k++) {
      OK(mav_tensor_set(x, 9, k));
      OK(mav_graph_launch(g)), OK(mav_graph_wait(g));
      assert_true(get(y, 9) == 2 * k);
    }
    mav_tensor_release(x), mav_tensor_release(y), mav_graph_release(g), mav_rows_release(rows);
    if (i + 1 < sizeof off / sizeof *off) mav_runtime_release(rt);
  }
}

static void test_bandwidth(void **state) {
  (void)state;
  double rate = 0;
  OK(mav_runtime_bandwidth(rt, 1 << 20, 1, &rate));
  assert_true(rate > 0);
}

/* More than there is: an error, and the runtime goes on. */
static void test_out_of_memory(void **state) {
  (void)state;
  mav_tensor *t;
  assert_int_equal(mav_tensor_new(&t, rt, MAV_DTYPE_U8, 1, (int64_t[]){(int64_t)1 << 50}), MAV_ERR_NOMEM);
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "out of memory on cuda"));
  t = tensor(MAV_DTYPE_F32, 100);
  assert_true(get(t, 99) == 0);
  mav_tensor_release(t);
}

/* A life of a runtime that touches every call: the first error, or MAV_OK. */
static mav_err life(void) {
  mav_runtime *r = NULL;
  mav_rows *rows = NULL;
  mav_graph *g = NULL;
  mav_kv *kv = NULL;
  mav_tensor *x = NULL, *y = NULL, *w = NULL, *s = NULL, *many = NULL, *products = NULL;
  mav_arg args[MAV_ARGS_MAX] = {{0}};
  mav_diag diag = {0};
  int seq, fork, op[4];
  int64_t ns[4];
  double v;
  mav_err err = mav_runtime_new(&r, &(mav_runtime_options){.device = "cuda"}, &diag);
  if (err) {
    assert_int_equal(diag.code, err);
    return err;
  }
  MAV_GOTO(mav_tensor_new(&x, r, MAV_DTYPE_F32, 1, (int64_t[]){8}));
  MAV_GOTO(mav_tensor_new(&w, r, MAV_DTYPE_F8, 2, (int64_t[]){16, 32}));
  MAV_GOTO(mav_tensor_set(x, 1, 4));
  MAV_GOTO(mav_tensor_shuffle(&s, w));
  MAV_GOTO(mav_tensor_new(&many, r, MAV_DTYPE_F32, 2, (int64_t[]){80, 32}));
  MAV_GOTO(mav_rows_new(&rows, r, 1));
  MAV_GOTO(mav_kv_new(&kv, r, &(mav_kv_options){.layers = 1, .kv_heads = 1, .head_dim = 2, .dtype = MAV_DTYPE_F32, .tokens = 64, .sequences = 2, .page = 16}));
  MAV_GOTO(mav_kv_sequence_new(kv, 0, &seq));
  MAV_GOTO(mav_kv_sequence_reserve(kv, seq, 3));
  MAV_GOTO(mav_kv_sequence_commit(kv, seq, 3));
  MAV_GOTO(mav_kv_sequence_fork(kv, seq, 0, &fork));
  MAV_GOTO(mav_kv_sequence_reserve(kv, fork, 1));
  MAV_GOTO(mav_graph_begin(&g, r, rows));
  args[0] = args[1] = tensor_arg(x);
  MAV_GOTO(mav_op_call(r, mav_op_find("add"), args));
  y = args[2].tensor;
  MAV_GOTO(mav_graph_keep(g, y));
  args[0] = tensor_arg(many), args[1] = tensor_arg(s), args[2] = (mav_arg){0};
  MAV_GOTO(mav_op_call(r, mav_op_find("matmul"), args));
  products = args[2].tensor;
  MAV_GOTO(mav_graph_keep(g, products));
  MAV_GOTO(mav_graph_end(g));
  MAV_GOTO(mav_graph_launch(g));
  MAV_GOTO(mav_graph_wait(g));
  MAV_GOTO(mav_graph_launch(g));
  MAV_GOTO(mav_tensor_get(y, 1, &v));
  assert_true(v == 8);
  args[0] = args[1] = tensor_arg(x), args[2] = (mav_arg){.given = true, .tensor = y};
  MAV_GOTO(mav_graph_profile(g, op, ns));
  MAV_GOTO(mav_tensor_get(y, 1, &v));
  args[2].given = true;
  MAV_GOTO(mav_op_call(r, mav_op_find("add"), args));
  MAV_GOTO(mav_tensor_copy_into(x, y));
  MAV_GOTO(mav_tensor_get(x, 1, &v));
  assert_true(v == 8);
  MAV_GOTO(mav_runtime_bandwidth(r, 1 << 20, 1, &v));
done:
  if (err) {
    const mav_diag first = *mav_runtime_diag(r);
    mav_tensor *t;
    assert_int_equal(first.code, err);
    assert_true(first.text[0] && first.op[0]);
    if (r->capture) mav_graph_abort(g);
    if (r->failed) { /* every later call says the same */
      if (x) assert_int_equal(mav_tensor_get(x, 0, &v), err);
      assert_int_equal(mav_tensor_new(&t, r, MAV_DTYPE_F32, 1, (int64_t[]){4}), err);
      assert_memory_equal(&first, mav_runtime_diag(r), sizeof first);
      if (g) assert_int_not_equal(mav_graph_launch(g), MAV_OK);
      assert_int_equal(err, MAV_ERR_DEVICE);
      assert_non_null(strstr(first.text, "cudaErrorLaunchFailure (719)"));
      assert_int_equal(first.native, 719);
    } else {
      assert_int_equal(mav_tensor_new(&t, r, MAV_DTYPE_F32, 1, (int64_t[]){4}), MAV_OK); /* it goes on */
      assert_true(mav_tensor_set(t, 0, 5) == MAV_OK && mav_tensor_get(t, 0, &v) == MAV_OK && v == 5);
      mav_tensor_release(t);
    }
  }
  mav_tensor_release(x), mav_tensor_release(y), mav_tensor_release(w), mav_tensor_release(s);
  mav_tensor_release(many), mav_tensor_release(products);
  mav_graph_release(g), mav_rows_release(rows), mav_kv_release(kv), mav_runtime_release(r);
  return err;
}

/* Every call to the device fails once, with an error that passes and with one that takes the device; and every allocation. */
static void test_failures(void **state) {
  (void)state;
  mav_runtime_release(rt);
  static const mav__fault faults[] = {MAV__FAULT_CALL, MAV__FAULT_DEVICE, MAV__FAULT_NONE};
  mav_runtime *cpu;
  assert_int_equal(mav_runtime_new(&cpu, &(mav_runtime_options){.device = "ref"}, NULL), MAV_OK);
  const int64_t live = mav__mem_live();
  for (int k = 0; k < 3; k++) {
    int64_t n = 1;
    for (mav_err err = MAV_ERR_DEVICE; err; n++) {
      assert_true(n < 2000);
      if (faults[k]) mav__device_fail_at(n, faults[k]);
      else mav__mem_fail_at(n);
      err = life();
      mav__device_fail_at(0, MAV__FAULT_NONE);
      mav__mem_fail_at(0);
      if (err && faults[k] == MAV__FAULT_NONE) assert_int_equal(err, MAV_ERR_NOMEM);
      assert_int_equal(mav__mem_live(), live);
      assert_int_equal(mav__device_live(), 0);
    }
    if (n < 30) fail_msg("only %lld calls were made to fail", (long long)n);
    mav_tensor *t; /* others go on */
    assert_int_equal(mav_tensor_new(&t, cpu, MAV_DTYPE_F32, 1, (int64_t[]){4}), MAV_OK);
    mav_tensor_release(t);
  }
  mav_runtime_release(cpu);
  assert_int_equal(mav_runtime_new(&rt, &(mav_runtime_options){.device = "cuda"}, NULL), MAV_OK);
}

int main(void) {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
  const struct CMUnitTest tests[] = {T(test_copies), T(test_rows_of_both_sides), T(test_launches_under_way), T(test_indices), T(test_cache),
                                     T(test_shuffled), T(test_many_rows), T(test_no_library), T(test_no_driver), T(test_off), T(test_bandwidth), T(test_out_of_memory), T(test_failures)};
  const struct CMUnitTest always[] = {cmocka_unit_test(test_opening)};
  int failed = cmocka_run_group_tests(always, NULL, NULL);
  mav_runtime *probe;
  mav_diag diag;
  if (mav_runtime_new(&probe, &(mav_runtime_options){.device = "cuda"}, &diag)) {
    printf("skipped: %s\n", diag.text);
    return failed;
  }
  mav_runtime_release(probe);
  return failed + cmocka_run_group_tests(tests, NULL, NULL);
}
