/* tests/fuzz/fuzz_gguf.c - any bytes as a GGUF file: refused with one line, or every key has the values it says and every tensor
 * lies inside the file; those that can be read are read. */
#include "fuzz.h"
#include "mav.h"
#include "mem.h"

static const char *base; /* of the input, to keep reads from being optimized away */

static void check_value(const mav_gguf *g, int i) {
  const mav_gguf_value *v = mav_gguf_get_key(g, i);
  FUZZ_CHECK(v->key && v->key[0] && mav_gguf_find_key(g, v->key) == i);
  FUZZ_CHECK(v->of != MAV_GGUF_ARRAY && (v->type == MAV_GGUF_ARRAY || (v->type == v->of && v->count == 1)));
  const void *at = NULL;
  mav_gguf_item item;
  uint64_t count = 0;
  unsigned sum = 0;
  for (; mav_gguf_next(v, &at, &item); count++) {
    FUZZ_CHECK(item.index == count + 1 && (v->of == MAV_GGUF_STRING) == (item.text != NULL));
    for (size_t b = 0; b < item.bytes; b++) sum += (unsigned char)item.text[b];
  }
  FUZZ_CHECK(count == v->count);
  if (sum == 12345) base = NULL;
}

static void check_entry(mav_gguf *g, int i, mav_runtime *rt) {
  const mav_gguf_entry *e = mav_gguf_get(g, i);
  FUZZ_CHECK(e->name && e->name[0] && mav_gguf_find(g, e->name) == i && e->type[0]);
  FUZZ_CHECK(e->dims >= 0 && e->dims <= MAV_DIMS_MAX && (unsigned)e->dtype < MAV_DTYPE_COUNT);
  int64_t rows = 1;
  for (int d = 0; d < e->dims; d++) FUZZ_CHECK(e->shape[d] > 0);
  for (int d = 0; d + 1 < e->dims; d++) rows *= e->shape[d];
  FUZZ_CHECK(rows > 0);
  unsigned sum = 0;
  for (size_t b = 0; b < e->bytes; b += 64) sum += ((const unsigned char *)e->data)[b];
  if (sum == 12345) base = NULL;
  mav_tensor *t;
  const int64_t first = rows / 3, count = rows - first < 5 ? rows - first : 5;
  mav_err err = mav_gguf_rows(g, i, rt, first, count, &t);
  FUZZ_CHECK(e->unreadable ? err == MAV_ERR_UNSUPPORTED : !err);
  FUZZ_CHECK(mav_gguf_rows(g, i, rt, rows, 1, &(mav_tensor *){NULL}) != MAV_OK);
  if (err) return;
  double value;
  FUZZ_CHECK(mav_tensor_size(t, 0) == count && mav_tensor_dtype(t) == e->dtype);
  FUZZ_CHECK(!mav_tensor_get(t, mav_tensor_count(t) - 1, &value));
  mav_tensor_release(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  int64_t live = mav__mem_live();
  mav_runtime *rt;
  mav_diag diag = {0};
  FUZZ_CHECK(!mav_runtime_new(&rt, &(mav_runtime_options){.device = "ref"}, &diag));
  mav_gguf *g;
  mav_err err = mav_gguf_open(&g, fuzz_file(data, bytes), &diag);
  base = (const char *)data;
  if (err) {
    FUZZ_CHECK(!g && err == diag.code && diag.text[0] && !strchr(diag.text, '\n'));
  } else {
    for (int i = 0; i < mav_gguf_keys(g); i++) check_value(g, i);
    for (int i = 0; i < mav_gguf_count(g); i++) check_entry(g, i, rt);
    mav_gguf_release(g);
  }
  mav_runtime_release(rt);
  FUZZ_CHECK(mav__mem_live() == live);
  return 0;
}
