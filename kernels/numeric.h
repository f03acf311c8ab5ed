/* kernels/numeric.h - exact conversions between the dtypes of mavk.h, one element at a time.
 *
 * Widening is exact. Narrowing rounds to nearest even (in the default rounding mode); f8 saturates at +-448, infinities
 * included; f16 and bf16 overflow to infinity; NaN stays NaN. Floats become integers toward zero, saturating, NaN as 0;
 * integers saturate too, and become narrow floats by way of f32. Golden bit patterns: tests/kernels/test_numeric.c.
 */
#ifndef MAVK_NUMERIC_H
#define MAVK_NUMERIC_H

#include <string.h>

#include "mavk.h"

#define MAVK_F8_MAX 448.0f

MAVK_FN uint32_t mavk_bits_from_f32(float x) {
  uint32_t b;
  memcpy(&b, &x, sizeof b);
  return b;
}

MAVK_FN float mavk_f32_from_bits(uint32_t b) {
  float x;
  memcpy(&x, &b, sizeof x);
  return x;
}

/* ---- bf16: 1 sign, 8 exponent, 7 mantissa bits ----------------------------------------------------------------- */

MAVK_FN float mavk_f32_from_bf16(uint16_t h) { return mavk_f32_from_bits((uint32_t)h << 16); }

MAVK_FN uint16_t mavk_bf16_from_f32(float x) {
  uint32_t b = mavk_bits_from_f32(x);
  if ((b & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(b >> 16 | 0x40u); /* NaN, quiet */
  return (uint16_t)((b + 0x7fffu + (b >> 16 & 1u)) >> 16);
}

/* ---- f16: 1 sign, 5 exponent (bias 15), 10 mantissa bits -------------------------------------------------------- */

MAVK_FN float mavk_f32_from_f16(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 1023u;
  if (exponent == 31) return mavk_f32_from_bits(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) return mavk_f32_from_bits(sign | mavk_bits_from_f32((float)mantissa * 0x1p-24f));
  return mavk_f32_from_bits(sign | (exponent + 112u) << 23 | mantissa << 13);
}

MAVK_FN uint16_t mavk_f16_from_f32(float x) {
  uint32_t b = mavk_bits_from_f32(x), a = b & 0x7fffffffu;
  uint16_t sign = (uint16_t)(b >> 16 & 0x8000u);
  if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x3ffu)); /* NaN, quiet */
  if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);                     /* from 65520 on: infinity */
  if (a < 0x38800000u) /* below 2^-14 the step is 2^-24, the step of floats at 0.5: the addition rounds */
    return (uint16_t)(sign | (mavk_bits_from_f32(mavk_f32_from_bits(a) + 0.5f) - 0x3f000000u));
  return (uint16_t)(sign | (((a + 0xfffu + (a >> 13 & 1u)) >> 13) - (112u << 10)));
}

/* ---- f8, e4m3fn: 1 sign, 4 exponent (bias 7), 3 mantissa bits; 0x7f is NaN, there is no infinity ----------------- */

MAVK_FN float mavk_f32_from_f8(uint8_t c) {
  uint32_t sign = (uint32_t)(c & 0x80u) << 24, a = c & 0x7fu;
  if (a == 0x7fu) return mavk_f32_from_bits(sign | 0x7ff00000u);
  if (a < 8) return mavk_f32_from_bits(sign | mavk_bits_from_f32((float)a * 0x1p-9f));
  return mavk_f32_from_bits(sign | ((a << 20) + (120u << 23)));
}

MAVK_FN uint8_t mavk_f8_from_f32(float x) {
  uint32_t b = mavk_bits_from_f32(x), a = b & 0x7fffffffu;
  uint8_t sign = (uint8_t)(b >> 24 & 0x80u);
  if (a > 0x7f800000u) return (uint8_t)(sign | 0x7fu);
  if (a >= 0x43e00000u) return (uint8_t)(sign | 0x7eu); /* from 448 on */
  if (a < 0x3c800000u) /* below 2^-6 the step is 2^-9, the step of floats at 2^14 */
    return (uint8_t)(sign | (mavk_bits_from_f32(mavk_f32_from_bits(a) + 0x1p14f) - 0x46800000u));
  return (uint8_t)(sign | (((a + 0x7ffffu + (a >> 20 & 1u)) >> 20) - (120u << 3)));
}

/* ---- any dtype --------------------------------------------------------------------------------------------------- */

MAVK_FN size_t mavk_dtype_bytes(int32_t dtype) {
  static const uint8_t bytes[MAVK_DTYPE_COUNT] = {4, 2, 2, 1, 4, 8, 1};
  return bytes[dtype];
}

MAVK_FN bool mavk_dtype_is_float(int32_t dtype) { return dtype <= MAVK_F8; }

/* Element i of p, as f32. */
MAVK_FN float mavk_f32_at(const void *p, int32_t dtype, int64_t i) {
  switch (dtype) {
    case MAVK_BF16: return mavk_f32_from_bf16(((const uint16_t *)p)[i]);
    case MAVK_F16: return mavk_f32_from_f16(((const uint16_t *)p)[i]);
    case MAVK_F8: return mavk_f32_from_f8(((const uint8_t *)p)[i]);
    case MAVK_I32: return (float)((const int32_t *)p)[i];
    case MAVK_I64: return (float)((const int64_t *)p)[i];
    case MAVK_U8: return (float)((const uint8_t *)p)[i];
    default: return ((const float *)p)[i];
  }
}

/* Element i of an integer array. */
MAVK_FN int64_t mavk_i64_at(const void *p, int32_t dtype, int64_t i) {
  switch (dtype) {
    case MAVK_I32: return ((const int32_t *)p)[i];
    case MAVK_U8: return ((const uint8_t *)p)[i];
    default: return ((const int64_t *)p)[i];
  }
}

MAVK_FN int64_t mavk_i64_from_f32(float x) {
  if (x != x) return 0;
  if (x >= 0x1p63f) return INT64_MAX;
  if (x <= -0x1p63f) return INT64_MIN;
  return (int64_t)x;
}

MAVK_FN void mavk_put_i64(void *p, int32_t dtype, int64_t i, int64_t x) {
  switch (dtype) {
    case MAVK_I32: ((int32_t *)p)[i] = (int32_t)(x < INT32_MIN ? INT32_MIN : x > INT32_MAX ? INT32_MAX : x); break;
    case MAVK_U8: ((uint8_t *)p)[i] = (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x); break;
    default: ((int64_t *)p)[i] = x;
  }
}

MAVK_FN void mavk_put_f32(void *p, int32_t dtype, int64_t i, float x) {
  switch (dtype) {
    case MAVK_F32: ((float *)p)[i] = x; break;
    case MAVK_BF16: ((uint16_t *)p)[i] = mavk_bf16_from_f32(x); break;
    case MAVK_F16: ((uint16_t *)p)[i] = mavk_f16_from_f32(x); break;
    case MAVK_F8: ((uint8_t *)p)[i] = mavk_f8_from_f32(x); break;
    default: mavk_put_i64(p, dtype, i, mavk_i64_from_f32(x));
  }
}

/* dst[i] = src[j], converted: what op `cast` does to every element. */
MAVK_FN void mavk_convert(void *dst, int32_t to, int64_t i, const void *src, int32_t from, int64_t j) {
  if (mavk_dtype_is_float(to) || mavk_dtype_is_float(from))
    mavk_put_f32(dst, to, i, mavk_f32_at(src, from, j));
  else
    mavk_put_i64(dst, to, i, mavk_i64_at(src, from, j));
}

#endif
