/* kernels/cpu/dot.h - the matrix product behind every projection: y[t, n] = sum_k x[t, k] w[n, k].
 *
 * Weights are read as they lie in storage, once per call, row by row (output-major), and widened in registers:
 *   bf16: a 64-byte block is 16 32-bit lanes of 2 columns:  column 2l   = lane << 16,  column 2l+1 = lane & 0xffff0000
 *   f8:   a 64-byte block is 16 32-bit lanes of 4 columns:  column 4l+j = (lane << (24 - 8j)) >>arithmetic 4 & 0x87f00000,
 *         which is the e4m3 value times 2^-120, subnormals included; activations carry 2^60 and the result the other 2^60
 *   f32, f16: columns in order, 16 at a time
 * Activations are packed to match: within a block, lane l of step j holds the column above (pack.h).
 *
 * Arithmetic: one 16-lane accumulator per (n, t), blocks and steps in ascending order, lanes folded by v16_sum. So an element
 * does not depend on T, its neighbours, the tile it falls in, the thread or the instruction set.
 *
 * Tiles: NR weight rows by TR tokens in registers. One token streams 8 (AVX2: 4) rows side by side, with the next rows
 * prefetched, and is bound by memory; many tokens are bound by FMA.
 */
#ifndef MAVK_DOT_H
#define MAVK_DOT_H

#include "cpu.h"
#include "simd.h"

#if MAVK_ISA_avx512
typedef __m512i raw16;
V16_INLINE raw16 raw16_load(const void *p) { return _mm512_loadu_si512(p); }
V16_INLINE v16 raw16_bf16(raw16 r, int j) {
  return _mm512_castsi512_ps(j ? _mm512_and_si512(r, _mm512_set1_epi32((int32_t)0xffff0000)) : _mm512_slli_epi32(r, 16));
}
V16_INLINE v16 raw16_f8(raw16 r, int j) {
  raw16 top = j == 0 ? _mm512_slli_epi32(r, 24) : j == 1 ? _mm512_slli_epi32(r, 16) : j == 2 ? _mm512_slli_epi32(r, 8) : r;
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_srai_epi32(top, 4), _mm512_set1_epi32((int32_t)0x87f00000)));
}
V16_INLINE v16 raw16_f32(raw16 r) { return _mm512_castsi512_ps(r); }
#else
typedef struct raw16 {
  __m256i a, b;
} raw16;
V16_INLINE raw16 raw16_load(const void *p) {
  return (raw16){_mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
V16_INLINE __m256 raw8_bf16(__m256i r, int j) {
  return _mm256_castsi256_ps(j ? _mm256_and_si256(r, _mm256_set1_epi32((int32_t)0xffff0000)) : _mm256_slli_epi32(r, 16));
}
V16_INLINE v16 raw16_bf16(raw16 r, int j) { return (v16){raw8_bf16(r.a, j), raw8_bf16(r.b, j)}; }
V16_INLINE __m256 raw8_f8(__m256i r, int j) {
  __m256i top = j == 0 ? _mm256_slli_epi32(r, 24) : j == 1 ? _mm256_slli_epi32(r, 16) : j == 2 ? _mm256_slli_epi32(r, 8) : r;
  return _mm256_castsi256_ps(_mm256_and_si256(_mm256_srai_epi32(top, 4), _mm256_set1_epi32((int32_t)0x87f00000)));
}
V16_INLINE v16 raw16_f8(raw16 r, int j) { return (v16){raw8_f8(r.a, j), raw8_f8(r.b, j)}; }
V16_INLINE v16 raw16_f32(raw16 r) { return (v16){_mm256_castsi256_ps(r.a), _mm256_castsi256_ps(r.b)}; }
#endif

/* Columns and bytes of one block. */
static inline int64_t dot_block(int32_t dtype) { return dtype == MAVK_F8 ? 64 : dtype == MAVK_BF16 ? 32 : 16; }
static inline int64_t dot_element(int32_t dtype) { return dtype == MAVK_F32 ? 4 : dtype == MAVK_F8 ? 1 : 2; }

/* What a packed activation is multiplied by, and a result too: together 2^120 for f8. */
static inline float dot_prescale(int32_t dtype) { return dtype == MAVK_F8 ? 0x1p60f : 1.0f; }

/* Activations packed for one weight dtype: T rows of ld floats, zero beyond K. row_scale: what row t's results are
 * multiplied by (activation quantization), NULL: 1. */
typedef struct packed {
  const float *x;
  int64_t ld;
  const float *row_scale;
} packed;

/* y[t * ldy + n - n0] for n in [n0, n1) and t in [0, T) of expert e (0 for a plain matrix). */
void MAVK_CPU(dot)(const mavk_weight *w, int64_t e, int64_t n0, int64_t n1, const packed *x, int64_t T, float *y, int64_t ldy);

/* Weight rows that make a fair piece of work, a multiple of 8: small enough that no thread goes without, large enough that
 * the tokens' tiles, which pass once per piece when there are many, cost little beside the rows, which stay in the
 * second-level cache. */
static inline int64_t dot_piece(const mavk_weight *w, int64_t N, int64_t K, int64_t T, int threads) {
  int64_t rows = ((T > 16 ? 256 : 48) << 10) / (K * dot_element(w->a.dtype) + 1);
  rows = mavk_min(rows, mavk_ceil_div(N, 4 * threads));
  return mavk_max(8, mavk_min(128, mavk_round_up(rows, 8)));
}

#endif
