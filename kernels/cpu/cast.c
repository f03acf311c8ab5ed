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

#define TILE_ROWS 32
#define TILE_COLUMNS 64

/* Up to TILE_ROWS rows of n elements, a step apart, where rows begin at x[from[r]] and y[to[r]]. A transposed x is read along
 * its own lines into a small square and written from there, so neither side jumps through the cache. */
#define MOVE(type)                                                                                               \
  do {                                                                                                           \
    type square[TILE_COLUMNS][TILE_ROWS];                                                                        \
    for (int64_t k = 0; k < n; k++)                                                                              \
      for (int64_t r = 0; r < rows; r++) square[k][r] = ((const type *)a->x.p)[from[r] + k * xstep];             \
    for (int64_t r = 0; r < rows; r++)                                                                           \
      for (int64_t k = 0; k < n; k++) ((type *)a->y.p)[to[r] + k * ystep] = square[k][r];                        \
  } while (0)
static void move_tile(const mavk_args_cast *a, const int64_t *from, const int64_t *to, int64_t rows, int64_t n, int64_t xstep, int64_t ystep) {
  const size_t size = a->x.dtype == a->y.dtype ? mavk_dtype_bytes(a->x.dtype) : 0;
  if (size == 2) MOVE(uint16_t);
  else if (size == 4) MOVE(uint32_t);
  else if (size == 1) MOVE(uint8_t);
  else
    for (int64_t k = 0; k < n; k++)
      for (int64_t r = 0; r < rows; r++) mavk_convert(a->y.p, a->y.dtype, to[r] + k * ystep, a->x.p, a->x.dtype, from[r] + k * xstep);
}

static void cast_dense(const mavk_args_cast *a, int64_t total, mavk_thread *t) {
  for (int64_t i; (i = mavk_claim(t) * PIECE) < total;)
    convert((char *)a->y.p + i * (int64_t)mavk_dtype_bytes(a->y.dtype), a->y.dtype,
            (const char *)a->x.p + i * (int64_t)mavk_dtype_bytes(a->x.dtype), a->x.dtype, mavk_min(PIECE, total - i));
}

void MAVK_CPU(cast)(const mavk_args_cast *a, mavk_thread *t) {
  const int64_t N = mavk_row_size(&a->x), rows = mavk_row_count(&a->x);
  if (N * rows == 0) return;
  if (is_dense(&a->x) && is_dense(&a->y)) {
    cast_dense(a, N * rows, t);
    return;
  }
  const int last = a->x.nd - 1;
  const int64_t xstep = a->x.s[last], ystep = a->y.s[last];
  const bool lines = N == 1 || (xstep == 1 && ystep == 1);
  int64_t from[TILE_ROWS], to[TILE_ROWS];
  for (int64_t first; (first = mavk_claim(t) * TILE_ROWS) < rows;) {
    const int64_t count = mavk_min(TILE_ROWS, rows - first);
    for (int64_t r = 0; r < count; r++) from[r] = row_at(&a->x, first + r), to[r] = row_at(&a->y, first + r);
    for (int64_t k = 0; k < N; k += lines ? N : TILE_COLUMNS) {
      if (!lines) move_tile(a, from, to, count, mavk_min(TILE_COLUMNS, N - k), xstep, ystep);
      for (int64_t r = 0; r < count; r++) {
        if (lines)
          convert((char *)a->y.p + to[r] * (int64_t)mavk_dtype_bytes(a->y.dtype), a->y.dtype,
                  (const char *)a->x.p + from[r] * (int64_t)mavk_dtype_bytes(a->x.dtype), a->x.dtype, N);
        from[r] += TILE_COLUMNS * xstep, to[r] += TILE_COLUMNS * ystep;
      }
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
