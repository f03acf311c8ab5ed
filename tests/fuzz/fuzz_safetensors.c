/* tests/fuzz/fuzz_safetensors.c - any bytes as a safetensors file: refused with one line, or every entry is what it says. */
#include "fuzz.h"
#include "mav.h"
#include "mem.h"
#include "safetensors.h"

static void check_entry(const mav_safetensors *s, const mav_safetensors_entry *e, const uint8_t **end) {
  const uint8_t *p = e->data;
  FUZZ_CHECK(e->name && e->name[0] && mav__safetensors_find(s, e->name) == e);
  FUZZ_CHECK(!*end || p == *end); /* in order, no hole, no overlap */
  *end = p + e->bytes;
  unsigned sum = 0;
  for (size_t i = 0; i < e->bytes; i++) sum += p[i];
  FUZZ_CHECK(sum != 1 || e->bytes > 0); /* uses sum: every byte was readable */
  FUZZ_CHECK(e->dims >= 0 && e->dims <= MAV_DIMS_MAX);
  if (e->unreadable) {
    FUZZ_CHECK(e->unreadable[0]);
    return;
  }
  static const size_t width[MAV_DTYPE_COUNT] = {4, 2, 2, 1, 4, 8, 1};
  FUZZ_CHECK((unsigned)e->dtype < MAV_DTYPE_COUNT);
  size_t bytes = width[e->dtype];
  for (int d = 0; d < e->dims; d++) bytes *= (size_t)e->shape[d];
  FUZZ_CHECK(bytes == e->bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  int64_t live = mav__mem_live();
  mav_safetensors *s;
  mav_diag diag = {0};
  mav_err err = mav_safetensors_open(&s, fuzz_file(data, bytes), &diag);
  if (err) {
    FUZZ_CHECK(!s && err == diag.code && diag.text[0] && !strchr(diag.text, '\n'));
  } else {
    const uint8_t *end = NULL;
    for (int i = 0; i < mav_safetensors_count(s); i++) check_entry(s, mav_safetensors_get(s, i), &end);
    mav_safetensors_close(s);
  }
  FUZZ_CHECK(mav__mem_live() == live);
  return 0;
}
