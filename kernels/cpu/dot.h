/* kernels/cpu/dot.h - the matrix product behind every projection: y[t, n] = sum_k x[t, k] w[n, k].
 *
 * Weights are read as they lie in storage, once per call, row by row (output-major), and widened in registers:
 *   bf16: a 64-byte block is 16 32-bit lanes of 2 columns:  column 2l   = lane << 16,  column 2l+1 = lane & 0xffff0000
 *   f8:   a 64-byte block is 16 32-bit lanes of 4 columns:  column 4l+j = byte j moved up and its exponent and mantissa 4 bits
 *         down (& 0x87f00000), which is the e4m3 value times 2^-120, subnormals included; activations carry 2^60 and the
 *         result the other 2^60
 *   f32, f16: columns in order, 16 at a time
 * Activations are packed to match: within a block, lane l of step j holds the column above (pack.h).
 *
 * Arithmetic: one 16-lane accumulator per (n, t), blocks and steps in ascending order, lanes folded by v16_sum. So an element
 * does not depend on T, its neighbours, the tile it falls in, the thread or the instruction set.
 *
 * Sixteen-bit lanes hold two f8 codes; both are moved to their place at once, and the four steps share the moves.
 *
 * Tiles: NR weight rows by TR tokens in registers. Few tokens are bound by memory: while a tile works, the lines of the rows
 * after it are prefetched in the order of their addresses, which keeps the memory busy as a plain sweep does (rows side by
 * side alone confuse the hardware's own prefetching and reach two thirds). Many tokens are bound by FMA: on AVX2 a tile then
 * takes one half of the lanes after the other, which makes room for twelve rows by tokens.
 */
#ifndef MAVK_DOT_H
#define MAVK_DOT_H

#include "cpu.h"
#include "simd.h"

/* A tile works on one native register at a time; DOT_PARTS of them make the 16 lanes. */
#if MAVK_ISA_avx512
#define DOT_PARTS 1
typedef __m512 dot_vec;
typedef __m512i dot_raw;
V16_INLINE dot_vec dot_zero(void) { return _mm512_setzero_ps(); }
V16_INLINE dot_vec dot_load(const float *p) { return _mm512_loadu_ps(p); }
V16_INLINE dot_vec dot_fma(dot_vec a, dot_vec b, dot_vec c) { return _mm512_fmadd_ps(a, b, c); }
V16_INLINE dot_vec dot_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
V16_INLINE dot_raw dot_raw_load(const void *p) { return _mm512_loadu_si512(p); }
V16_INLINE dot_vec dot_f32(dot_raw r) { return _mm512_castsi512_ps(r); }
V16_INLINE dot_vec dot_bf16(dot_raw r, int j) {
  return _mm512_castsi512_ps(j ? _mm512_and_si512(r, _mm512_set1_epi32((int32_t)0xffff0000)) : _mm512_slli_epi32(r, 16));
}
V16_INLINE dot_vec dot_f8(dot_raw r, int j) {
  dot_raw pair = _mm512_srai_epi16(j & 1 ? r : _mm512_slli_epi16(r, 8), 4);
  return _mm512_castsi512_ps(_mm512_and_si512(j < 2 ? _mm512_slli_epi32(pair, 16) : pair, _mm512_set1_epi32((int32_t)0x87f00000)));
}
/* An accumulator as it is summed, and four of those. */
typedef v16 dot_sum;
V16_INLINE dot_sum dot_folded(const dot_vec *parts) { return parts[0]; }
V16_INLINE __m128 dot_sum4(dot_sum a, dot_sum b, dot_sum c, dot_sum d) { return v16_sum4(a, b, c, d); }
#else
#define DOT_PARTS 2
typedef __m256 dot_vec;
typedef __m256i dot_raw;
V16_INLINE dot_vec dot_zero(void) { return _mm256_setzero_ps(); }
V16_INLINE dot_vec dot_load(const float *p) { return _mm256_loadu_ps(p); }
V16_INLINE dot_vec dot_fma(dot_vec a, dot_vec b, dot_vec c) { return _mm256_fmadd_ps(a, b, c); }
V16_INLINE dot_vec dot_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
V16_INLINE dot_raw dot_raw_load(const void *p) { return _mm256_loadu_si256(p); }
V16_INLINE dot_vec dot_f32(dot_raw r) { return _mm256_castsi256_ps(r); }
V16_INLINE dot_vec dot_bf16(dot_raw r, int j) {
  return _mm256_castsi256_ps(j ? _mm256_and_si256(r, _mm256_set1_epi32((int32_t)0xffff0000)) : _mm256_slli_epi32(r, 16));
}
V16_INLINE dot_vec dot_f8(dot_raw r, int j) {
  dot_raw pair = _mm256_srai_epi16(j & 1 ? r : _mm256_slli_epi16(r, 8), 4);
  return _mm256_castsi256_ps(_mm256_and_si256(j < 2 ? _mm256_slli_epi32(pair, 16) : pair, _mm256_set1_epi32((int32_t)0x87f00000)));
}
/* An accumulator as it is summed, folded once, and four of those: the order of v16_sum. */
typedef __m256 dot_sum;
V16_INLINE dot_sum dot_folded(const dot_vec *parts) { return _mm256_add_ps(parts[0], parts[1]); }
V16_INLINE __m128 dot_sum4(dot_sum a, dot_sum b, dot_sum c, dot_sum d) {
  const __m256 ac = _mm256_add_ps(_mm256_permute2f128_ps(a, c, 0x20), _mm256_permute2f128_ps(a, c, 0x31));
  const __m256 bd = _mm256_add_ps(_mm256_permute2f128_ps(b, d, 0x20), _mm256_permute2f128_ps(b, d, 0x31));
  const __m256d x = _mm256_castps_pd(ac), y = _mm256_castps_pd(bd);
  /* a a b b | c c d d */
  const __m256 p = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
  const __m256 s = _mm256_add_ps(p, _mm256_movehdup_ps(p));
  return _mm_shuffle_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1), 0x88);
}
#endif
#define DOT_LANES (16 / DOT_PARTS)

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

/* y[t * ldy + n - n0] for n in [n0, n1) and t in [0, T) of expert e (0 for a plain matrix). next: the rows that this thread
 * will read after these, to be prefetched meanwhile; NULL: not known. */
void MAVK_CPU(dot)(const mavk_weight *w, int64_t e, int64_t n0, int64_t n1, const packed *x, int64_t T, float *y, int64_t ldy,
                   const void *next);

/* Where row n of expert e begins. */
static inline const void *dot_row(const mavk_weight *w, int64_t e, int64_t n) {
  const int nd = w->a.nd;
  return (const char *)w->a.p + ((nd == 3 ? e * w->a.s[0] : 0) + n * w->a.s[nd - 2]) * dot_element(w->a.dtype);
}

/* Weight rows that make a fair piece of work, a multiple of 8: small enough that no thread goes without, large enough that
 * the start of a run of rows, which nothing has prefetched, costs little (32 KiB runs lose a fifth of the bandwidth), and that
 * the tokens' tiles, which pass once per piece when there are many, cost little beside the rows, which stay in the
 * second-level cache. */
static inline int64_t dot_piece(const mavk_weight *w, int64_t N, int64_t K, int64_t T, int threads) {
  int64_t rows = ((T > 16 ? 256 : 128) << 10) / (K * dot_element(w->a.dtype) + 1);
  rows = mavk_min(rows, mavk_ceil_div(N, 4 * threads));
  return mavk_max(8, mavk_min(128, mavk_round_up(rows, 8)));
}

#endif
