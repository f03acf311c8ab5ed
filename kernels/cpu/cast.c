/* kernels/cpu/cast.c - conversions of dtypes: cast, quantize. Bound by memory for the pairs that have a vector path. */
#include <string.h>

#include "cpu.h"
#include "lanes.h"

#include "../numeric.h"

#define PIECE 8192

/* y[0..n) from x[0..n), both dense. */
static void convert(void *y, int32_t to, const void *x, int32_t from, int64_t n) {
  int64_t i = 0;
  if (to == from) {
    memcpy(y, x, (size_t)n * mavk_dtype_bytes(to));
    return;
  }
  if (from == MAVK_F32 && to != MAVK_I32 && to != MAVK_I64 && to != MAVK_U8) {
    for (; i + 16 <= n; i += 16) {
      const v16 v = v16_load((const float *)x + i);
      if (to == MAVK_BF16) v16_store_bf16((uint16_t *)y + i, v);
      else if (to == MAVK_F16) v16_store_f16((uint16_t *)y + i, v);
      else v16i_store_u8((uint8_t *)y + i, v16_to_f8(v));
    }
  } else if (to == MAVK_F32 && (from == MAVK_BF16 || from == MAVK_F16)) {
    for (; i + 16 <= n; i += 16)
      v16_store((float *)y + i, from == MAVK_BF16 ? v16_load_bf16((const uint16_t *)x + i) : v16_load_f16((const uint16_t *)x + i));
  }
  for (; i < n; i++) mavk_convert(y, to, i, x, from, i);
}

/* Where row `row` of x, in the order of its shape, begins. */
static int64_t row_at(const mavk_array *x, int64_t row) {
  int64_t at = 0;
  for (int d = x->nd - 2; d >= 0; d--) {
    at += row % x->n[d] * x->s[d];
    row /= x->n[d];
  }
  return at;
}

/* Rows side by side as one, when x is dense. */
static bool is_dense(const mavk_array *x) {
  int64_t stride = 1;
  for (int d = x->nd - 1; d >= 0; d--) {
    if (x->n[d] > 1 && x->s[d] != stride) return false;
    stride *= x->n[d];
  }
  return true;
}

void MAVK_CPU(cast)(const mavk_args_cast *a, mavk_thread *t) {
  const bool dense = is_dense(&a->x);
  const int64_t total = mavk_row_count(&a->x) * mavk_row_size(&a->x), N = dense ? total : mavk_row_size(&a->x);
  const int64_t step = dense || a->x.nd == 0 ? 1 : a->x.s[a->x.nd - 1];
  if (total == 0) return;
  const int64_t per_row = mavk_ceil_div(N, PIECE), rows = total / N, rows_each = mavk_max(1, PIECE / N);
  for (int64_t i; (i = mavk_claim(t)) < mavk_ceil_div(rows, rows_each) * per_row;) {
    const int64_t start = i % per_row * PIECE, end = mavk_min(start + PIECE, N), first = i / per_row * rows_each;
    for (int64_t r = first; r < mavk_min(first + rows_each, rows); r++) {
      const int64_t at = dense ? 0 : row_at(&a->x, r);
      const char *x = (const char *)a->x.p + (at + start * step) * (int64_t)mavk_dtype_bytes(a->x.dtype);
      char *y = (char *)a->y.p + (r * N + start) * (int64_t)mavk_dtype_bytes(a->y.dtype);
      if (step == 1 || N == 1) convert(y, a->y.dtype, x, a->x.dtype, end - start);
      else
        for (int64_t k = 0; k < end - start; k++) mavk_convert(y, a->y.dtype, k, x, a->x.dtype, k * step);
    }
  }
}

void MAVK_CPU(quantize)(const mavk_args_quantize *a, mavk_thread *t) {
  const int64_t D = mavk_row_size(&a->x), rows = mavk_row_count(&a->x);
  float *x = t->scratch; /* one row, widened and padded with zeros */
  for (int64_t r; (r = mavk_claim(t)) < rows;) {
    const char *src = (const char *)a->x.p + r * D * (int64_t)mavk_dtype_bytes(a->x.dtype);
    uint8_t *y = (uint8_t *)a->y.p + r * D;
    v16 most = v16_zero();
    convert(x, MAVK_F32, src, a->x.dtype, D);
    for (int64_t i = D; i % 16; i++) x[i] = 0;
    for (int64_t i = 0; i < D; i += 16) most = v16_max(v16_abs(v16_load(x + i)), most);
    const float largest = v16_hmax(most), scale = largest > 0 ? largest / MAVK_F8_MAX : 1;
    ((float *)a->scale.p)[r] = scale;
    for (int64_t i = 0; i < D; i += 16) {
      const v16i code = v16_to_f8(v16_div(v16_load(x + i), v16_set1(scale)));
      uint8_t last[16];
      v16i_store_u8(D - i >= 16 ? y + i : last, code);
      if (D - i < 16) memcpy(y + i, last, (size_t)(D - i));
    }
  }
}
