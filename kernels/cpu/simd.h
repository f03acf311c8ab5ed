/* kernels/cpu/simd.h - v16: sixteen float lanes, one zmm or two ymm. Every function gives the same bits in both builds:
 * the operations are IEEE, the lanes the same, and sums fold in one fixed order.
 */
#ifndef MAVK_SIMD_H
#define MAVK_SIMD_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define V16_INLINE static inline __attribute__((always_inline))

#if MAVK_ISA_avx512

typedef __m512 v16;
#define V16_1(name, zmm) \
  V16_INLINE v16 name(v16 a) { return zmm(a); }
#define V16_2(name, zmm, ymm) \
  V16_INLINE v16 name(v16 a, v16 b) { return zmm(a, b); }

V16_INLINE v16 v16_zero(void) { return _mm512_setzero_ps(); }
V16_INLINE v16 v16_set1(float x) { return _mm512_set1_ps(x); }
V16_INLINE v16 v16_load(const float *p) { return _mm512_loadu_ps(p); }
V16_INLINE void v16_store(float *p, v16 a) { _mm512_storeu_ps(p, a); }
/* The first n lanes (0..16); the others are 0 and their memory is not touched. */
V16_INLINE v16 v16_load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
V16_INLINE void v16_store_n(float *p, v16 a, int64_t n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a); }
V16_INLINE v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); } /* a b + c */
V16_INLINE v16 v16_select_lt(v16 a, v16 b, v16 yes, v16 no) { /* a < b ? yes : no */
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
V16_INLINE v16 v16_select_eq(v16 a, v16 b, v16 yes, v16 no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), no, yes);
}
V16_INLINE v16 v16_round(v16 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* 2^n for integral n in [-126, 127] */
V16_INLINE v16 v16_exp2i(v16 n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
V16_INLINE v16 v16_load_bf16(const uint16_t *p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
V16_INLINE v16 v16_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
/* to nearest even; NaN stays NaN */
V16_INLINE void v16_store_bf16(uint16_t *p, v16 a) {
  __m512i u = _mm512_castps_si512(a);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  r = _mm512_mask_or_epi32(r, nan, _mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(r));
}
V16_INLINE __m256 v16_low(v16 a) { return _mm512_castps512_ps256(a); }
V16_INLINE __m256 v16_high(v16 a) { return _mm512_extractf32x8_ps(a, 1); }

V16_INLINE v16 v16_pick(v16 a, v16 b, int odd) {
  const __m512i i = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_permutex2var_ps(a, odd ? _mm512_add_epi32(i, _mm512_set1_epi32(1)) : i, b);
}
/* a0 b0 a1 b1 ..: the first (last) eight of each. */
V16_INLINE v16 v16_zip_low(v16 a, v16 b) {
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b);
}
V16_INLINE v16 v16_zip_high(v16 a, v16 b) {
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b);
}

V16_1(v16_abs, _mm512_abs_ps)
V16_1(v16_sqrt, _mm512_sqrt_ps)
#else

typedef struct v16 {
  __m256 a, b;
} v16;
#define V16_2(name, zmm, ymm) \
  V16_INLINE v16 name(v16 x, v16 y) { return (v16){ymm(x.a, y.a), ymm(x.b, y.b)}; }

V16_INLINE v16 v16_zero(void) { return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
V16_INLINE v16 v16_set1(float x) { return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
V16_INLINE v16 v16_load(const float *p) { return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
V16_INLINE void v16_store(float *p, v16 a) {
  _mm256_storeu_ps(p, a.a);
  _mm256_storeu_ps(p + 8, a.b);
}
V16_INLINE __m256i v16_mask8(int64_t n) { /* n clamped to 0..8 */
  int32_t m = (int32_t)(n < 0 ? 0 : n > 8 ? 8 : n);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(m), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
V16_INLINE v16 v16_load_n(const float *p, int64_t n) {
  return (v16){_mm256_maskload_ps(p, v16_mask8(n)), _mm256_maskload_ps(p + 8, v16_mask8(n - 8))};
}
V16_INLINE void v16_store_n(float *p, v16 a, int64_t n) {
  _mm256_maskstore_ps(p, v16_mask8(n), a.a);
  _mm256_maskstore_ps(p + 8, v16_mask8(n - 8), a.b);
}
V16_INLINE v16 v16_fma(v16 x, v16 y, v16 z) { return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
V16_INLINE v16 v16_select_lt(v16 a, v16 b, v16 yes, v16 no) {
  return (v16){_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
               _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ))};
}
V16_INLINE v16 v16_select_eq(v16 a, v16 b, v16 yes, v16 no) {
  return (v16){_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(a.a, b.a, _CMP_EQ_OQ)),
               _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(a.b, b.b, _CMP_EQ_OQ))};
}
V16_INLINE __m256 v16_exp2i8(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
V16_INLINE v16 v16_round(v16 x) {
  return (v16){_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
               _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
V16_INLINE v16 v16_exp2i(v16 n) { return (v16){v16_exp2i8(n.a), v16_exp2i8(n.b)}; }
V16_INLINE __m256 v16_bf16x8(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
V16_INLINE v16 v16_load_bf16(const uint16_t *p) {
  return (v16){v16_bf16x8(_mm_loadu_si128((const __m128i *)p)), v16_bf16x8(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
V16_INLINE v16 v16_load_f16(const uint16_t *p) {
  return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
V16_INLINE __m128i v16_to_bf16x8(__m256 a) {
  __m256i u = _mm256_castps_si256(a);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
  r = _mm256_blendv_epi8(r, quiet, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
  return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
V16_INLINE void v16_store_bf16(uint16_t *p, v16 a) {
  _mm_storeu_si128((__m128i *)p, v16_to_bf16x8(a.a));
  _mm_storeu_si128((__m128i *)(p + 8), v16_to_bf16x8(a.b));
}
V16_INLINE __m256 v16_pick8(__m256 a, __m256 b, int odd) {
  __m256 m = odd ? _mm256_shuffle_ps(a, b, 0xdd) : _mm256_shuffle_ps(a, b, 0x88);
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(m), 0xd8));
}
V16_INLINE v16 v16_pick(v16 x, v16 y, int odd) { return (v16){v16_pick8(x.a, x.b, odd), v16_pick8(y.a, y.b, odd)}; }
V16_INLINE v16 v16_zip8(__m256 a, __m256 b) {
  const __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
  return (v16){_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}
V16_INLINE v16 v16_zip_low(v16 x, v16 y) { return v16_zip8(x.a, y.a); }
V16_INLINE v16 v16_zip_high(v16 x, v16 y) { return v16_zip8(x.b, y.b); }
V16_INLINE __m256 v16_low(v16 a) { return a.a; }
V16_INLINE __m256 v16_high(v16 a) { return a.b; }
V16_INLINE v16 v16_abs(v16 x) {
  __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return (v16){_mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m)};
}
V16_INLINE v16 v16_sqrt(v16 x) { return (v16){_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
#endif

V16_2(v16_add, _mm512_add_ps, _mm256_add_ps)
V16_2(v16_sub, _mm512_sub_ps, _mm256_sub_ps)
V16_2(v16_mul, _mm512_mul_ps, _mm256_mul_ps)
V16_2(v16_div, _mm512_div_ps, _mm256_div_ps)
V16_2(v16_max, _mm512_max_ps, _mm256_max_ps) /* b where either is NaN */
V16_2(v16_min, _mm512_min_ps, _mm256_min_ps)

/* The even (odd) elements of the 32 in a then b. */
V16_INLINE v16 v16_even(v16 a, v16 b) { return v16_pick(a, b, 0); }
V16_INLINE v16 v16_odd(v16 a, v16 b) { return v16_pick(a, b, 1); }

/* Folds 16 lanes in a fixed order: halves, quarters, eighths, pairs. */
V16_INLINE float v16_sum(v16 a) {
  __m256 s8 = _mm256_add_ps(v16_low(a), v16_high(a));
  __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
/* The sums of four, each bit for bit what v16_sum gives: they fold side by side, which takes a third of the instructions. */
V16_INLINE __m128 v16_sum4(v16 a, v16 b, v16 c, v16 d) {
#if MAVK_ISA_avx512
  /* halves: 8 lanes of a | 8 of b */
  __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
  /* quarters: 4 lanes of each */
  __m512 q = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  q = _mm512_add_ps(q, _mm512_shuffle_ps(q, q, 0x4e));
  q = _mm512_add_ps(q, _mm512_shuffle_ps(q, q, 0xb1));
  return _mm512_castps512_ps128(_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), q));
#else
  __m256 ha = _mm256_add_ps(a.a, a.b), hb = _mm256_add_ps(b.a, b.b), hc = _mm256_add_ps(c.a, c.b), hd = _mm256_add_ps(d.a, d.b);
  __m256 ac = _mm256_add_ps(_mm256_permute2f128_ps(ha, hc, 0x20), _mm256_permute2f128_ps(ha, hc, 0x31));
  __m256 bd = _mm256_add_ps(_mm256_permute2f128_ps(hb, hd, 0x20), _mm256_permute2f128_ps(hb, hd, 0x31));
  __m256d x = _mm256_castps_pd(ac), y = _mm256_castps_pd(bd);
  __m256 p = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y))); /* a a b b | c c d d */
  __m256 s = _mm256_add_ps(p, _mm256_movehdup_ps(p));
  return _mm_shuffle_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1), 0x88);
#endif
}
V16_INLINE float v16_hmax(v16 a) {
  __m256 s8 = _mm256_max_ps(v16_low(a), v16_high(a));
  __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
}

/* e^x, within 2 ulp on [-87, 88]; smaller gives 0, larger inf. NaN gives NaN or 0. Cody-Waite reduction, degree-6 polynomial. */
V16_INLINE v16 v16_exp(v16 x) {
  v16 n = v16_round(v16_mul(x, v16_set1(0x1.715476p+0f)));
  n = v16_min(v16_max(n, v16_set1(-126)), v16_set1(127));
  v16 r = v16_fma(n, v16_set1(-0x1.62e400p-1f), x);
  r = v16_fma(n, v16_set1(-0x1.7f7d1cp-20f), r);
  v16 p = v16_set1(0x1.6850e4p-10f);
  p = v16_fma(p, r, v16_set1(0x1.123bccp-7f));
  p = v16_fma(p, r, v16_set1(0x1.555b98p-5f));
  p = v16_fma(p, r, v16_set1(0x1.55548ep-3f));
  p = v16_fma(p, r, v16_set1(0x1.fffff8p-2f));
  v16 y = v16_fma(v16_mul(r, r), p, v16_add(r, v16_set1(1)));
  y = v16_mul(y, v16_exp2i(n));
  y = v16_select_lt(x, v16_set1(-87.33654f), v16_zero(), y);
  return v16_select_lt(v16_set1(88.72283f), x, v16_set1(__builtin_inff()), y);
}
V16_INLINE v16 v16_sigmoid(v16 x) {
  return v16_div(v16_set1(1), v16_add(v16_set1(1), v16_exp(v16_sub(v16_zero(), x))));
}
V16_INLINE v16 v16_silu(v16 x) { return v16_mul(x, v16_sigmoid(x)); }

#endif
