/* kernels/cpu/cast.c - conversions of dtypes: cast, quantize. Floats are converted sixteen at a time, through f32.
 *
 * A transposed x is read by strips of 64 columns, whole cache lines each, and turned in registers. Tried, bf16 (4096, 5120) and
 * (5120, 16384) transposed, one thread of an EPYC with AVX2, GB/s read:
 *   0.6       squares of 32 x 64, an element at a time
 *   3.0 4.8   strips of 128 x 64 elements, turned in registers of 128 bits
 *   3.3 4.4   64 x 64
 *   4.3 5.1   64 x 128: rows of y are written in longer runs. This one
 *   4.9 4.9   128 x 128; f32 falls from 5.9 to 3.6, its strips no longer fit the first-level cache
 *   3.0 3.8   256 x 64
 * Also there: dense copies 9.4; quantize of bf16 3.0, of a transposed one by way of a copy 1.6; f8 to f32 0.5 -> 3.4, bf16 to f8
 * 0.45 -> 4.7, f8 to bf16 0.2 -> 2.7 since every pair of float dtypes has a vector loop.
 */
#include <string.h>

#include "cpu.h"
#include "lanes.h"
#include "transpose.h"

#include "../numeric.h"

#define PIECE 8192

/* Sixteen floats of a dtype from, and to, element i. */
V16_INLINE v16 load_float(const void *x, int32_t dtype, int64_t i) {
  if (dtype == MAVK_BF16) return v16_load_bf16((const uint16_t *)x + i);
  if (dtype == MAVK_F16) return v16_load_f16((const uint16_t *)x + i);
  if (dtype == MAVK_F8) return v16_from_f8(v16i_load_u8((const uint8_t *)x + i));
  return v16_load((const float *)x + i);
}
V16_INLINE void store_float(void *y, int32_t dtype, int64_t i, v16 v) {
  if (dtype == MAVK_BF16) v16_store_bf16((uint16_t *)y + i, v);
  else if (dtype == MAVK_F16) v16_store_f16((uint16_t *)y + i, v);
  else if (dtype == MAVK_F8) v16i_store_u8((uint8_t *)y + i, v16_to_f8(v));
  else v16_store((float *)y + i, v);
}

/* The multiple of 16 up to n. */
V16_INLINE int64_t convert_floats(void *y, int32_t to, const void *x, int32_t from, int64_t n) {
  for (int64_t i = 0; i + 16 <= n; i += 16) store_float(y, to, i, load_float(x, from, i));
  return n & ~(int64_t)15;
}
/* A loop for every pair of dtypes. */
V16_INLINE int64_t convert_to(void *y, int32_t to, const void *x, int32_t from, int64_t n) {
  switch (from) {
    case MAVK_F32: return convert_floats(y, to, x, MAVK_F32, n);
    case MAVK_BF16: return convert_floats(y, to, x, MAVK_BF16, n);
    case MAVK_F16: return convert_floats(y, to, x, MAVK_F16, n);
    case MAVK_F8: return convert_floats(y, to, x, MAVK_F8, n);
    default: return 0;
  }
}

/* y[0..n) from x[0..n), both dense. */
static void convert(void *y, int32_t to, const void *x, int32_t from, int64_t n) {
  int64_t i = 0;
  if (to == from) {
    memcpy(y, x, (size_t)n * mavk_dtype_bytes(to));
    return;
  }
  switch (to) {
    case MAVK_F32: i = convert_to(y, MAVK_F32, x, from, n); break;
    case MAVK_BF16: i = convert_to(y, MAVK_BF16, x, from, n); break;
    case MAVK_F16: i = convert_to(y, MAVK_F16, x, from, n); break;
    case MAVK_F8: i = convert_to(y, MAVK_F8, x, from, n); break;
    default: break;
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

#define TILE_ROWS 64 /* of y */
#define TILE_COLUMNS 128

/* n columns of up to TILE_ROWS rows, one by one: row r begins at x[from[r]] and y[to[r]], the next column is a step away. */
#define MOVE(type)                         \
  for (int64_t r = 0; r < rows; r++)       \
    for (int64_t k = 0; k < n; k++) ((type *)a->y.p)[to[r] + k * ystep] = ((const type *)a->x.p)[from[r] + k * xstep];
static void move_each(const mavk_args_cast *a, const int64_t *from, const int64_t *to, int64_t rows, int64_t n, int64_t xstep, int64_t ystep) {
  const size_t size = a->x.dtype == a->y.dtype ? mavk_dtype_bytes(a->x.dtype) : 0;
  if (size == 1) MOVE(uint8_t)
  else if (size == 2) MOVE(uint16_t)
  else if (size == 4) MOVE(uint32_t)
  else
    for (int64_t r = 0; r < rows; r++)
      for (int64_t k = 0; k < n; k++) mavk_convert(a->y.p, a->y.dtype, to[r] + k * ystep, a->x.p, a->x.dtype, from[r] + k * xstep);
}

/* square[r][k] = strip[k][r], both dense but for their pitch; `size` bytes an element. */
V16_INLINE void turn(char *square, int64_t square_pitch, const char *strip, int64_t strip_pitch, int64_t rows, int64_t n, int64_t size) {
  const int64_t side = 16 / size, whole_rows = rows / side * side, whole_n = n / side * side;
  for (int64_t r = 0; r < whole_rows; r += side)
    for (int64_t k = 0; k < whole_n; k += side) {
      char *y = square + r * square_pitch + k * size;
      const char *x = strip + k * strip_pitch + r * size;
      if (size == 1) transpose_8(y, square_pitch, x, strip_pitch);
      else if (size == 2) transpose_16(y, square_pitch, x, strip_pitch);
      else transpose_32(y, square_pitch, x, strip_pitch);
    }
  for (int64_t r = 0; r < rows; r++)
    for (int64_t k = r < whole_rows ? whole_n : 0; k < n; k++)
      memcpy(square + r * square_pitch + k * size, strip + k * strip_pitch + r * size, (size_t)size);
}

/* The same where x is dense along the rows, as a transposed matrix is: whole lines of x go into a strip in the cache, from there, turned,
 * into a square, and from there, converted, to y. */
V16_INLINE void move_turned(const mavk_args_cast *a, int64_t from, const int64_t *to, int64_t rows, int64_t n, int64_t xstep, int64_t size) {
  _Alignas(64) char strip[TILE_COLUMNS * TILE_ROWS * 4], square[16 * TILE_COLUMNS * 4];
  const int64_t pitch = TILE_ROWS * size, out = (int64_t)mavk_dtype_bytes(a->y.dtype);
  const char *x = (const char *)a->x.p + from * size;
  for (int64_t k = 0; k < n; k++) /* the usual length is a constant: moves instead of a call */
    memcpy(strip + k * pitch, x + k * xstep * size, rows == TILE_ROWS ? (size_t)(TILE_ROWS * size) : (size_t)(rows * size));
  for (int64_t r = 0; r < rows; r += 16) {
    const int64_t count = mavk_min(16, rows - r);
    turn(square, TILE_COLUMNS * size, strip + r * size, pitch, count, n, size);
    for (int64_t i = 0; i < count; i++)
      convert((char *)a->y.p + to[r + i] * out, a->y.dtype, square + i * TILE_COLUMNS * size, a->x.dtype, n);
  }
}

static void move_tile(const mavk_args_cast *a, const int64_t *from, const int64_t *to, int64_t rows, int64_t n, int64_t xstep, int64_t ystep) {
  const int64_t size = (int64_t)mavk_dtype_bytes(a->x.dtype);
  for (int64_t r = 0, count; r < rows; r += count) { /* runs of rows that are neighbours in x */
    for (count = 1; r + count < rows && from[r + count] == from[r] + count; count++) {}
    if (ystep != 1 || size > 4 || count < 4) move_each(a, from + r, to + r, count, n, xstep, ystep);
    else if (size == 1) move_turned(a, from[r], to + r, count, n, xstep, 1);
    else if (size == 2) move_turned(a, from[r], to + r, count, n, xstep, 2);
    else move_turned(a, from[r], to + r, count, n, xstep, 4);
  }
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
