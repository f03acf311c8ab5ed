/* tests/core/test_kv.c - pages and sequences: fork, truncate, copy on write, chunked groups, layers of different widths, a long random
 * life. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kv.h"

static mav_runtime *rt;

static int setup(void **state) {
  (void)state;
  return mav_runtime_new(&rt, &(mav_runtime_options){.device = "ref"}, NULL);
}

static int teardown(void **state) {
  (void)state;
  mav_runtime_release(rt);
  assert_int_equal(mav__mem_live(), 0);
  return 0;
}

static mav_kv *make(int64_t tokens, int sequences, const int32_t *chunk, int layers) {
  mav_kv *kv;
  mav_kv_options o = {.layers = layers, .chunk = chunk, .kv_heads = 2, .head_dim = 4, .dtype = MAV_DTYPE_F32, .tokens = tokens, .sequences = sequences, .page = 16};
  assert_int_equal(mav_kv_new(&kv, rt, &o), MAV_OK);
  return kv;
}

/* A cell of a sequence's cache: where layer 0 keeps channel 0 of head 0's value of a slot. */
static float *cell(mav_kv *kv, int seq, int64_t slot) {
  mavk_kv k = mav__kv_kernel(kv, 0);
  int64_t page = k.table[seq * k.table_stride + slot / k.page];
  assert_true(page >= 0);
  return (float *)k.v + (page * k.kv_heads * k.page + slot % k.page) * k.head_dim;
}

static void append(mav_kv *kv, int seq, int64_t count, float value) {
  int64_t from = mav_kv_sequence_length(kv, seq);
  assert_int_equal(mav_kv_sequence_reserve(kv, seq, count), MAV_OK);
  for (int64_t i = from; i < from + count; i++) *cell(kv, seq, i) = value;
  assert_int_equal(mav_kv_sequence_commit(kv, seq, count), MAV_OK);
}

static void test_options(void **state) {
  (void)state;
  mav_kv *kv = NULL;
  const mav_kv_options good = {.layers = 1, .kv_heads = 1, .head_dim = 4, .tokens = 32};
  mav_kv_options bad[] = {good, good, good, good, good, good, good};
  bad[0].layers = 0, bad[1].kv_heads = -1, bad[2].head_dim = 3, bad[3].tokens = 0, bad[4].page = 24, bad[5].dtype = MAV_DTYPE_I32, bad[6].context_max = -5;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    assert_int_not_equal(mav_kv_new(&kv, rt, &bad[i]), MAV_OK);
    assert_null(kv);
    assert_string_equal(mav_runtime_diag(rt)->op, "kv_new");
  }
}

static void test_fork_and_copy_on_write(void **state) {
  (void)state;
  mav_kv *kv = make(64, 4, NULL, 2);
  int a, b;
  assert_int_equal(mav_kv_sequence_new(kv, 7, &a), MAV_OK);
  append(kv, a, 20, 1);
  assert_int_equal(mav_kv_pages_live(kv), 2);
  assert_int_equal(mav_kv_sequence_fork(kv, a, 8, &b), MAV_OK);
  assert_int_equal(mav_kv_pages_live(kv), 2); /* shared */
  append(kv, b, 1, 2);
  assert_int_equal(mav_kv_pages_live(kv), 3); /* only the half-full page was copied */
  append(kv, a, 1, 3);
  assert_int_equal(mav_kv_pages_live(kv), 3);
  assert_true(*cell(kv, a, 20) == 3 && *cell(kv, b, 20) == 2 && *cell(kv, b, 19) == 1);
  assert_ptr_equal(cell(kv, a, 3), cell(kv, b, 3));
  assert_int_equal(mav_kv_sequence_free(kv, a), MAV_OK);
  assert_true(*cell(kv, b, 3) == 1);
  assert_int_equal(mav_kv_sequence_free(kv, b), MAV_OK);
  assert_int_equal(mav_kv_pages_live(kv), 0);
  assert_int_equal(mav_kv_sequence_free(kv, b), MAV_ERR_INVALID);
  mav_kv_release(kv);
}

static void test_truncate(void **state) {
  (void)state;
  mav_kv *kv = make(64, 2, NULL, 1);
  int a;
  assert_int_equal(mav_kv_sequence_new(kv, 0, &a), MAV_OK);
  append(kv, a, 40, 1);
  assert_int_equal(mav_kv_sequence_truncate(kv, a, 17), MAV_OK);
  assert_int_equal(mav_kv_pages_live(kv), 2);
  assert_int_equal(mav_kv_sequence_length(kv, a), 17);
  assert_int_equal(mav_kv_sequence_truncate(kv, a, 18), MAV_ERR_RANGE);
  assert_int_equal(mav_kv_sequence_reserve(kv, a, 48), MAV_ERR_FULL); /* the context ends at 64 */
  assert_int_equal(mav_kv_pages_live(kv), 2);
  assert_int_equal(mav_kv_sequence_commit(kv, a, 1), MAV_ERR_STATE); /* nothing reserved */
  mav_kv_release(kv);
}

static void test_full(void **state) {
  (void)state;
  mav_kv *kv = make(32, 3, NULL, 1); /* 2 pages and one more a sequence */
  int s[3], extra;
  for (int i = 0; i < 3; i++) assert_int_equal(mav_kv_sequence_new(kv, i, &s[i]), MAV_OK);
  assert_int_equal(mav_kv_sequence_new(kv, 0, &extra), MAV_ERR_FULL);
  append(kv, s[0], 32, 0);
  append(kv, s[1], 32, 0);
  int64_t live = mav_kv_pages_live(kv);
  assert_int_equal(mav_kv_sequence_reserve(kv, s[2], 32), MAV_ERR_FULL);
  assert_int_equal(mav_kv_pages_live(kv), live); /* a failed reserve gives back what it took */
  append(kv, s[2], 16, 0);
  mav_kv_release(kv);
}

static void test_chunked_layers_drop_old_blocks(void **state) {
  (void)state;
  const int32_t chunk[] = {32, 0};
  mav_kv *kv = make(512, 1, chunk, 2);
  int a;
  assert_int_equal(mav_kv_sequence_new(kv, 0, &a), MAV_OK);
  append(kv, a, 63, 1);
  assert_int_equal(mav_kv_sequence_floor(kv, a), 0);
  assert_int_equal(mav_kv_pages_live(kv), 8);
  append(kv, a, 1, 1); /* the third block begins: the first is gone, the second stays */
  assert_int_equal(mav_kv_sequence_floor(kv, a), 32);
  assert_int_equal(mav_kv_pages_live(kv), 4 + 2);
  assert_int_equal(mav_kv_sequence_truncate(kv, a, 31), MAV_ERR_RANGE);
  assert_int_equal(mav_kv_sequence_truncate(kv, a, 40), MAV_OK); /* back over the border */
  append(kv, a, 200, 1);
  assert_true(mav_kv_sequence_floor(kv, a) == (240 / 32 - 1) * 32);
  mav_kv_release(kv);
}

static void test_rows_that_cannot_be_served(void **state) {
  (void)state;
  mav_kv *kv = make(64, 2, NULL, 1);
  mav_rows *rows;
  int a;
  assert_int_equal(mav_rows_new(&rows, rt, 2), MAV_OK);
  assert_int_equal(mav_kv_sequence_new(kv, 0, &a), MAV_OK);
  append(kv, a, 3, 1);
  assert_int_equal(mav_kv_sequence_reserve(kv, a, 2), MAV_OK);
  assert_int_equal(mav_kv_sequence_commit(kv, a, INT64_MAX), MAV_ERR_STATE);
  assert_int_equal(mav_kv_sequence_reserve(kv, a, INT64_MAX), MAV_ERR_FULL);
  mav_rows_set(rows, 0, 1, a, 3, -1, -1), mav_rows_set(rows, 1, 1, a, 4, 0, -1);
  assert_int_equal(mav__rows_check(rows, "test", 0, 0), MAV_OK);
  assert_int_equal(mav__kv_check_rows(kv, rows, false, "test"), MAV_OK);
  mav_rows_set(rows, 0, 1, a, 1000000, -1, 3), mav_rows_set(rows, 1, 1, a, 1000001, 0, 4); /* a child whose parent moves away */
  mav_rows_set(rows, 0, 1, a, 3, -1, -1);
  assert_int_equal(mav__rows_check(rows, "test", 0, 0), MAV_ERR_INVALID);
  mav_rows_set(rows, 1, 1, a, 3, -1, -1); /* siblings in one slot */
  assert_int_equal(mav__rows_check(rows, "test", 0, 0), MAV_OK);
  assert_int_equal(mav__kv_check_rows(kv, rows, false, "test"), MAV_ERR_INVALID);
  mav_rows_set(rows, 1, 1, a, 3, -1, 4);
  assert_int_equal(mav__kv_check_rows(kv, rows, false, "test"), MAV_OK);
  mav_rows_set(rows, 1, 1, a, 3, -1, 5); /* not reserved */
  assert_int_equal(mav__kv_check_rows(kv, rows, false, "test"), MAV_ERR_STATE);
  mav_rows_release(rows);
  mav_kv_release(kv);
}

static void test_groups_have_floors_of_their_own(void **state) {
  (void)state;
  const int32_t chunk[] = {16, 64};
  mav_kv *kv = make(2048, 1, chunk, 2);
  int a;
  assert_int_equal(mav_kv_sequence_new(kv, 0, &a), MAV_OK);
  for (int i = 0; i < 100; i++) append(kv, a, 16, 1);
  assert_int_equal(mav_kv_pages_live(kv), 1 + 4); /* the block before the current one, of either size */
  mav_kv_release(kv);
}

/* Bytes of one page of a layer's keys (or values). */
static unsigned char *page_at(mav_kv *kv, int layer, bool values, int32_t page, size_t *bytes) {
  const mav__kv_layer *l = &kv->layer[layer];
  *bytes = (size_t)(l->kv_heads * kv->page * l->head_dim) * mav_dtype_bytes(kv->dtype);
  return (unsigned char *)(values ? l->v : l->k)->data + *bytes * (size_t)page;
}

static void fill_page(mav_kv *kv, int layer, int32_t page, int seed) {
  size_t n;
  for (int v = 0; v < 2; v++) {
    unsigned char *p = page_at(kv, layer, v, page, &n);
    for (size_t i = 0; i < n; i++) p[i] = (unsigned char)((size_t)seed * 31 + (size_t)layer * 7 + (size_t)v * 3 + i % 251);
  }
}

static bool page_is(mav_kv *kv, int layer, int32_t page, int seed) {
  size_t n;
  for (int v = 0; v < 2; v++) {
    const unsigned char *p = page_at(kv, layer, v, page, &n);
    for (size_t i = 0; i < n; i++)
      if (p[i] != (unsigned char)((size_t)seed * 31 + (size_t)layer * 7 + (size_t)v * 3 + i % 251)) return false;
  }
  return true;
}

static int32_t page_of(const mav_kv *kv, int layer, int seq, int64_t slot) {
  const mavk_kv k = mav__kv_kernel(kv, layer);
  return k.table[seq * k.table_stride + slot / k.page];
}

/* Every layer is copied in its own size, in its own group, and nothing beside it is touched. */
static void test_layers_of_different_widths(void **state) {
  (void)state;
  enum { LAYERS = 4 };
  static const int32_t heads[LAYERS] = {1, 8, 3, 2}, dims[LAYERS] = {64, 2, 6, 130}, chunk[LAYERS] = {0, 32, 0, 32};
  for (int type = 0; type < 2; type++) {
    mav_kv *kv;
    mav_kv_options o = {.layers = LAYERS, .chunk = chunk, .kv_heads = 99, .head_dim = 99, .layer_kv_heads = heads, .layer_head_dim = dims,
                        .dtype = type ? MAV_DTYPE_BF16 : MAV_DTYPE_F32, .tokens = 96, .sequences = 3, .page = 16};
    assert_int_equal(mav_kv_new(&kv, rt, &o), MAV_OK);
    for (int i = 0; i < LAYERS; i++) {
      const mavk_kv k = mav__kv_kernel(kv, i);
      const size_t page = (size_t)(heads[i] * dims[i] * 16) * (type ? 2 : 4);
      assert_true(k.kv_heads == heads[i] && k.head_dim == dims[i]);
      assert_int_equal(kv->layer[i].k->bytes, page * (size_t)kv->group[kv->layer[i].group].pages);
      assert_int_equal(kv->layer[i].v->bytes, kv->layer[i].k->bytes);
    }
    int a, b;
    assert_int_equal(mav_kv_sequence_new(kv, 0, &a), MAV_OK);
    assert_int_equal(mav_kv_sequence_reserve(kv, a, 40), MAV_OK);
    assert_int_equal(mav_kv_sequence_commit(kv, a, 40), MAV_OK);
    for (int i = 0; i < LAYERS; i++)
      for (int32_t page = 0; page < kv->group[kv->layer[i].group].pages; page++) fill_page(kv, i, page, page);
    assert_int_equal(mav_kv_sequence_fork(kv, a, 1, &b), MAV_OK);
    assert_int_equal(mav_kv_sequence_reserve(kv, b, 20), MAV_OK); /* the half-full page is copied, one more is new */
    for (int i = 0; i < LAYERS; i++) {
      const int32_t from = page_of(kv, i, a, 39), to = page_of(kv, i, b, 39);
      assert_int_equal(page_of(kv, i, a, 16), page_of(kv, i, b, 16));
      assert_int_not_equal(from, to);
      for (int32_t page = 0; page < kv->group[kv->layer[i].group].pages; page++) assert_true(page_is(kv, i, page, page == to ? from : page));
    }
    assert_int_equal(mav_kv_sequence_commit(kv, b, 20), MAV_OK); /* 60: the chunked layers let the first block go in b alone */
    assert_true(mav_kv_sequence_floor(kv, b) == 0 && mav_kv_sequence_floor(kv, a) == 0);
    assert_int_equal(mav_kv_sequence_truncate(kv, b, 36), MAV_OK);
    assert_int_equal(mav_kv_sequence_truncate(kv, a, 10), MAV_OK);
    assert_int_equal(mav_kv_sequence_reserve(kv, a, 1), MAV_OK); /* a's first page is still b's: copied now */
    for (int i = 0; i < LAYERS; i++) {
      const int32_t theirs = page_of(kv, i, b, 0), mine = page_of(kv, i, a, 0);
      assert_true(mine != theirs && page_is(kv, i, theirs, theirs) && page_is(kv, i, mine, theirs));
    }
    assert_int_equal(mav_kv_sequence_free(kv, a), MAV_OK);
    assert_int_equal(mav_kv_sequence_free(kv, b), MAV_OK);
    assert_int_equal(mav_kv_pages_live(kv), 0);
    mav_kv_release(kv);
  }
}

static void test_errors_name_the_layer(void **state) {
  (void)state;
  mav_kv *kv;
  const struct {
    int32_t heads[3], dims[3], chunk[3];
    const char *text;
  } bad[] = {
      {{1, 0, 1}, {2, 2, 2}, {0}, "layer 1: kv_heads = 0"},          {{1, 1, 4097}, {2, 2, 2}, {0}, "layer 2: kv_heads = 4097"},
      {{1, 1, 1}, {2, 2, 3}, {0}, "layer 2: head_dim = 3"},          {{1, 1, 1}, {1026, 2, 2}, {0}, "layer 0: head_dim = 1026"},
      {{1, 1, 1}, {2, -2, 2}, {0}, "layer 1: head_dim = -2"},        {{1, 1, 1}, {2, 2, 2}, {0, 0, -1}, "chunk of layer 2 is -1"},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    mav_kv_options o = {.layers = 3, .chunk = bad[i].chunk, .layer_kv_heads = bad[i].heads, .layer_head_dim = bad[i].dims, .tokens = 32};
    assert_int_equal(mav_kv_new(&kv, rt, &o), MAV_ERR_RANGE);
    assert_null(kv);
    assert_non_null(strstr(mav_runtime_diag(rt)->text, bad[i].text));
  }
  /* ops meet the layer's own sizes */
  mav_kv_options o = {.layers = 2, .layer_kv_heads = (int32_t[]){2, 1}, .layer_head_dim = (int32_t[]){4, 8}, .tokens = 32, .dtype = MAV_DTYPE_F32};
  assert_int_equal(mav_kv_new(&kv, rt, &o), MAV_OK);
  mav_rows *rows;
  mav_tensor *q;
  assert_int_equal(mav_rows_new(&rows, rt, 1), MAV_OK);
  assert_int_equal(mav_tensor_new(&q, rt, MAV_DTYPE_F32, 3, (int64_t[]){1, 2, 4}), MAV_OK);
  for (int layer = 0; layer < 2; layer++) {
    mav_arg args[MAV_ARGS_MAX] = {{.given = true, .tensor = q}, {.given = true, .rows = rows}, {.given = true, .kv = {kv, layer}}};
    const int op = mav_op_find("attention");
    assert_int_equal(mav_op_call(rt, op, args), layer ? MAV_ERR_SHAPE : MAV_OK);
    if (layer) assert_non_null(strstr(mav_runtime_diag(rt)->text, "kv has C = 8, but q has C = 4"));
    else mav_tensor_release(args[mav_op_get(op)->args - 1].tensor);
  }
  mav_tensor_release(q), mav_rows_release(rows), mav_kv_release(kv);
}

/* What the cache should hold, kept plainly: the value of every slot of every sequence. */
#define SEQUENCES 6
#define CONTEXT 300
static void test_random_life(void **state) {
  (void)state;
  const int32_t chunk[] = {0, 24};
  mav_kv *kv = make(CONTEXT, SEQUENCES, chunk, 2);
  static float model[SEQUENCES][CONTEXT];
  int64_t length[SEQUENCES];
  for (int i = 0; i < SEQUENCES; i++) length[i] = -1;
  uint32_t random = 1;
  float stamp = 0;
  for (int step = 0; step < 20000; step++) {
    random = random * 1664525 + 1013904223;
    int s = (int)(random >> 8) % SEQUENCES, what = (int)(random >> 16) % 10, other;
    int64_t n = (random >> 20) % 40;
    if (length[s] < 0) {
      assert_int_equal(mav_kv_sequence_new(kv, 0, &other), MAV_OK);
      length[other] = 0;
    } else if (what < 5) {
      if (length[s] + n > CONTEXT || mav_kv_sequence_reserve(kv, s, n)) continue;
      for (int64_t i = length[s]; i < length[s] + n; i++) *cell(kv, s, i) = model[s][i] = ++stamp;
      int64_t keep = n ? (random >> 5) % (n + 1) : 0; /* the rest was a rejected draft */
      assert_int_equal(mav_kv_sequence_commit(kv, s, keep), MAV_OK);
      length[s] += keep;
    } else if (what < 7) {
      int64_t to = length[s] - (n < length[s] ? n : length[s]), floor = mav_kv_sequence_floor(kv, s);
      if (to < floor) to = floor;
      assert_int_equal(mav_kv_sequence_truncate(kv, s, to), MAV_OK);
      length[s] = to;
    } else if (what < 9) {
      if (mav_kv_sequence_fork(kv, s, 0, &other)) continue;
      length[other] = length[s];
      memcpy(model[other], model[s], sizeof model[s]);
    } else {
      assert_int_equal(mav_kv_sequence_free(kv, s), MAV_OK);
      length[s] = -1;
    }
    s = (int)(random >> 3) % SEQUENCES;
    for (int64_t i = 0; i < length[s]; i += 7) assert_true(*cell(kv, s, i) == model[s][i]);
  }
  for (int i = 0; i < SEQUENCES; i++)
    if (length[i] >= 0) mav_kv_sequence_free(kv, i);
  assert_int_equal(mav_kv_pages_live(kv), 0);
  mav_kv_release(kv);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_options),  cmocka_unit_test(test_fork_and_copy_on_write),         cmocka_unit_test(test_truncate),
      cmocka_unit_test(test_full),     cmocka_unit_test(test_chunked_layers_drop_old_blocks), cmocka_unit_test(test_random_life),
      cmocka_unit_test(test_rows_that_cannot_be_served), cmocka_unit_test(test_groups_have_floors_of_their_own),
      cmocka_unit_test(test_layers_of_different_widths), cmocka_unit_test(test_errors_name_the_layer),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
