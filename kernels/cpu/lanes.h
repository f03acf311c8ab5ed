/* kernels/cpu/lanes.h - what the general ops need beside v16: sixteen 32-bit integers, sixteen doubles to sum in, and the
 * functions made of them (ln, tanh, e4m3 codes). The same bits in both builds, as in simd.h.
 */
#ifndef MAVK_LANES_H
#define MAVK_LANES_H

#include <stdbool.h>

#include "simd.h"

#if MAVK_ISA_avx512

typedef __m512i v16i;
#define V16I_2(name, zmm, ymm) \
  V16_INLINE v16i name(v16i a, v16i b) { return zmm(a, b); }
#define V16I_SHIFT(name, zmm, ymm) \
  V16_INLINE v16i name(v16i a, int n) { return zmm(a, (unsigned)n); }

V16_INLINE v16i v16i_set1(int32_t x) { return _mm512_set1_epi32(x); }
V16_INLINE v16i v16i_load(const int32_t *p) { return _mm512_loadu_si512(p); }
V16_INLINE void v16i_store(int32_t *p, v16i a) { _mm512_storeu_si512(p, a); }
V16_INLINE v16i v16i_load_u8(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
/* The low byte of each lane. */
V16_INLINE void v16i_store_u8(uint8_t *p, v16i a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a)); }
V16_INLINE v16i v16_bits(v16 a) { return _mm512_castps_si512(a); }
V16_INLINE v16 v16_from_bits(v16i a) { return _mm512_castsi512_ps(a); }
V16_INLINE v16 v16_from_i32(v16i a) { return _mm512_cvtepi32_ps(a); }
/* Both halves of the unsigned product with m. */
V16_INLINE void v16i_mul_wide(v16i a, uint32_t m, v16i *low, v16i *high) {
  v16i f = _mm512_set1_epi32((int32_t)m), even = _mm512_mul_epu32(a, f), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), f);
  *low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  *high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
}
V16_INLINE bool v16_any_eq(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ) != 0; }
V16_INLINE bool v16_any_lt(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) != 0; }
V16_INLINE void v16_store_f16(uint16_t *p, v16 a) {
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

typedef struct v16d {
  __m512d a, b;
} v16d;
V16_INLINE v16d v16d_zero(void) { return (v16d){_mm512_setzero_pd(), _mm512_setzero_pd()}; }
V16_INLINE v16d v16d_add(v16d s, v16 x) {
  return (v16d){_mm512_add_pd(s.a, _mm512_cvtps_pd(v16_low(x))), _mm512_add_pd(s.b, _mm512_cvtps_pd(v16_high(x)))};
}
V16_INLINE void v16d_store(double *p, v16d s) {
  _mm512_storeu_pd(p, s.a);
  _mm512_storeu_pd(p + 8, s.b);
}

#else

typedef struct v16i {
  __m256i a, b;
} v16i;
#define V16I_2(name, zmm, ymm) \
  V16_INLINE v16i name(v16i x, v16i y) { return (v16i){ymm(x.a, y.a), ymm(x.b, y.b)}; }
#define V16I_SHIFT(name, zmm, ymm) \
  V16_INLINE v16i name(v16i x, int n) { return (v16i){ymm(x.a, n), ymm(x.b, n)}; }

V16_INLINE v16i v16i_set1(int32_t x) { return (v16i){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
V16_INLINE v16i v16i_load(const int32_t *p) {
  return (v16i){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 8))};
}
V16_INLINE void v16i_store(int32_t *p, v16i a) {
  _mm256_storeu_si256((__m256i *)p, a.a);
  _mm256_storeu_si256((__m256i *)(p + 8), a.b);
}
V16_INLINE v16i v16i_load_u8(const uint8_t *p) {
  __m128i bytes = _mm_loadu_si128((const __m128i *)p);
  return (v16i){_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
V16_INLINE void v16i_store_u8(uint8_t *p, v16i x) {
  __m256i low = _mm256_set1_epi32(255), words = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
  words = _mm256_permute4x64_epi64(words, 0xd8);
  _mm_storeu_si128((__m128i *)p, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
V16_INLINE v16i v16_bits(v16 x) { return (v16i){_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
V16_INLINE v16 v16_from_bits(v16i x) { return (v16){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
V16_INLINE v16 v16_from_i32(v16i x) { return (v16){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
V16_INLINE void v16i_mul_wide8(__m256i a, uint32_t m, __m256i *low, __m256i *high) {
  __m256i f = _mm256_set1_epi32((int32_t)m), even = _mm256_mul_epu32(a, f), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), f);
  *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
}
V16_INLINE void v16i_mul_wide(v16i x, uint32_t m, v16i *low, v16i *high) {
  v16i_mul_wide8(x.a, m, &low->a, &high->a);
  v16i_mul_wide8(x.b, m, &low->b, &high->b);
}
V16_INLINE bool v16_any_eq(v16 x, v16 y) {
  return (_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ)) | _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ))) != 0;
}
V16_INLINE bool v16_any_lt(v16 x, v16 y) {
  return (_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)) | _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))) != 0;
}
V16_INLINE void v16_store_f16(uint16_t *p, v16 x) {
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

typedef struct v16d {
  __m256d a, b, c, d;
} v16d;
V16_INLINE v16d v16d_zero(void) { return (v16d){_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()}; }
V16_INLINE v16d v16d_add(v16d s, v16 x) {
  return (v16d){_mm256_add_pd(s.a, _mm256_cvtps_pd(_mm256_castps256_ps128(x.a))),
                _mm256_add_pd(s.b, _mm256_cvtps_pd(_mm256_extractf128_ps(x.a, 1))),
                _mm256_add_pd(s.c, _mm256_cvtps_pd(_mm256_castps256_ps128(x.b))),
                _mm256_add_pd(s.d, _mm256_cvtps_pd(_mm256_extractf128_ps(x.b, 1)))};
}
V16_INLINE void v16d_store(double *p, v16d s) {
  _mm256_storeu_pd(p, s.a);
  _mm256_storeu_pd(p + 4, s.b);
  _mm256_storeu_pd(p + 8, s.c);
  _mm256_storeu_pd(p + 12, s.d);
}
#endif

V16I_2(v16i_add, _mm512_add_epi32, _mm256_add_epi32)
V16I_2(v16i_sub, _mm512_sub_epi32, _mm256_sub_epi32)
V16I_2(v16i_and, _mm512_and_si512, _mm256_and_si256)
V16I_2(v16i_or, _mm512_or_si512, _mm256_or_si256)
V16I_2(v16i_xor, _mm512_xor_si512, _mm256_xor_si256)
V16I_SHIFT(v16i_shl, _mm512_slli_epi32, _mm256_slli_epi32)
V16I_SHIFT(v16i_shr, _mm512_srli_epi32, _mm256_srli_epi32) /* logical */
V16I_SHIFT(v16i_sra, _mm512_srai_epi32, _mm256_srai_epi32) /* arithmetic */

/* Folds 16 doubles in a fixed order: halves, quarters, eighths, pairs. */
V16_INLINE double v16d_sum(v16d s) {
  double d[16];
  v16d_store(d, s);
  for (int w = 8; w; w /= 2)
    for (int i = 0; i < w; i++) d[i] += d[i + w];
  return d[0];
}

/* ln x of positive normal x: the operations of mavk_log (kernels/noise.h), so the same bits. */
V16_INLINE v16 v16_log_normal(v16 x) {
  v16i b = v16i_sub(v16_bits(x), v16i_set1(0x3f3504f3));
  v16 e = v16_from_i32(v16i_sra(b, 23));
  v16 m = v16_from_bits(v16i_add(v16i_and(b, v16i_set1(0x7fffff)), v16i_set1(0x3f3504f3)));
  v16 s = v16_div(v16_sub(m, v16_set1(1)), v16_add(m, v16_set1(1)));
  v16 z = v16_mul(s, s);
  v16 r = v16_mul(z, v16_set1(2.0f / 9.0f));
  r = v16_mul(z, v16_add(r, v16_set1(2.0f / 7.0f)));
  r = v16_mul(z, v16_add(r, v16_set1(2.0f / 5.0f)));
  r = v16_mul(z, v16_add(r, v16_set1(2.0f / 3.0f)));
  r = v16_add(v16_mul(s, r), v16_add(s, s));
  return v16_add(v16_mul(e, v16_set1(0.693359375f)), v16_add(r, v16_mul(e, v16_set1(-2.12194440e-4f))));
}

/* ln x of any x: -inf at 0, NaN below and for NaN. */
V16_INLINE v16 v16_log(v16 x) {
  const v16 tiny = v16_set1(0x1p-126f), inf = v16_set1(__builtin_inff());
  v16 y = v16_log_normal(v16_select_lt(x, tiny, v16_mul(x, v16_set1(0x1p24f)), x)); /* subnormal numbers are scaled */
  y = v16_select_lt(x, tiny, v16_sub(y, v16_set1(16.635532333438686f)), y);
  y = v16_select_eq(x, inf, inf, y);
  y = v16_select_eq(x, v16_zero(), v16_sub(v16_zero(), inf), y);
  y = v16_select_lt(x, v16_zero(), v16_set1(__builtin_nanf("")), y);
  return v16_select_eq(x, x, y, x);
}

/* tanh x, within 2 ulp: a polynomial near 0 (Cephes tanhf, S. Moshier), 1 - 2 / (e^2x + 1) beyond. */
V16_INLINE v16 v16_tanh(v16 x) {
  const v16 sign = v16_from_bits(v16i_and(v16_bits(x), v16i_set1(INT32_MIN))), a = v16_abs(x), z = v16_mul(x, x);
  v16 p = v16_set1(-5.70498872745e-3f);
  p = v16_fma(p, z, v16_set1(2.06390887954e-2f));
  p = v16_fma(p, z, v16_set1(-5.37397155531e-2f));
  p = v16_fma(p, z, v16_set1(1.33314422036e-1f));
  p = v16_fma(p, z, v16_set1(-3.33332819422e-1f));
  p = v16_fma(v16_mul(p, z), x, x);
  v16 y = v16_sub(v16_set1(1), v16_div(v16_set1(2), v16_add(v16_exp(v16_add(a, a)), v16_set1(1))));
  y = v16_from_bits(v16i_or(v16_bits(y), v16_bits(sign)));
  y = v16_select_lt(a, v16_set1(0.625f), p, y);
  return v16_select_eq(x, x, y, x);
}

/* The e4m3 code of each lane in its low byte: mavk_f8_from_f32 (kernels/numeric.h). */
V16_INLINE v16i v16_to_f8(v16 x) {
  v16i b = v16_bits(x), a = v16i_and(b, v16i_set1(0x7fffffff));
  v16 m = v16_from_bits(a);
  v16i odd = v16i_and(v16i_shr(a, 20), v16i_set1(1));
  v16i normal = v16i_sub(v16i_shr(v16i_add(v16i_add(a, odd), v16i_set1(0x7ffff)), 20), v16i_set1(120 << 3));
  v16i small = v16i_sub(v16_bits(v16_add(m, v16_set1(0x1p14f))), v16i_set1(0x46800000));
  v16 code = v16_select_lt(m, v16_set1(0x1p-6f), v16_from_bits(small), v16_from_bits(normal)); /* only moves bits */
  code = v16_select_lt(m, v16_set1(448), code, v16_from_bits(v16i_set1(0x7e)));
  code = v16_select_eq(x, x, code, v16_from_bits(v16i_set1(0x7f)));
  return v16i_or(v16_bits(code), v16i_and(v16i_shr(b, 24), v16i_set1(0x80)));
}

/* The value of the e4m3 code in each lane (0..255): mavk_f32_from_f8. */
V16_INLINE v16 v16_from_f8(v16i code) {
  const v16i a = v16i_and(code, v16i_set1(0x7f)), sign = v16i_shl(v16i_and(code, v16i_set1(0x80)), 24);
  const v16 number = v16_from_i32(a), normal = v16_from_bits(v16i_add(v16i_shl(a, 20), v16i_set1(120 << 23)));
  v16 x = v16_select_lt(number, v16_set1(8), v16_mul(number, v16_set1(0x1p-9f)), normal);
  x = v16_select_eq(number, v16_set1(127), v16_from_bits(v16i_set1(0x7ff00000)), x);
  return v16_from_bits(v16i_or(v16_bits(x), sign));
}

#endif
