/* kernels/cpu/pack.c - RMSNorm of rows, rounding and packing of activations. */
#include "pack.h"

#include <math.h>

#include "../numeric.h"

static v16 load_weight(const mavk_array *w, int64_t i, int64_t n) {
  if (n >= 16) {
    if (w->dtype == MAVK_F32) return v16_load((const float *)w->p + i);
    if (w->dtype == MAVK_BF16) return v16_load_bf16((const uint16_t *)w->p + i);
    return v16_load_f16((const uint16_t *)w->p + i);
  }
  float f[16] = {0};
  for (int64_t k = 0; k < n; k++) f[k] = mavk_f32_at(w->p, w->dtype, i + k);
  return v16_load(f);
}

void MAVK_CPU(norm_row)(float *dst, const float *x, const mavk_array *w, int64_t D, float eps) {
  v16 ss = v16_zero();
  for (int64_t i = 0; i < D; i += 16) {
    v16 v = v16_load_n(x + i, mavk_min(16, D - i));
    ss = v16_fma(v, v, ss);
  }
  const v16 r = v16_set1(1.0f / sqrtf(v16_sum(ss) / (float)D + eps));
  for (int64_t i = 0; i < D; i += 16) {
    const int64_t n = mavk_min(16, D - i);
    v16 v = v16_mul(n == 16 ? v16_load(x + i) : v16_load_n(x + i, n), r);
    if (w) v = v16_mul(v, load_weight(w, i, n));
    if (n == 16) v16_store(dst + i, v); /* masked stores are slow on some processors */
    else v16_store_n(dst + i, v, n);
  }
}

/* Rounds K floats to e4m3 codes (as floats); returns what a code is worth. */
static float round_row(float *x, int64_t K, int32_t act, float in_scale) {
  float s = in_scale;
  if (act == MAVK_ACT_DYNAMIC) {
    float most = 0;
    for (int64_t k = 0; k < K; k++) most = fmaxf(most, fabsf(x[k]));
    s = most > 0 ? most / MAVK_F8_MAX : 1;
  }
  for (int64_t k = 0; k < K; k++) x[k] = mavk_f32_from_f8(mavk_f8_from_f32(x[k] / s));
  return s;
}

/* One row, zero padded to ld, in the column order of the weight's blocks. */
static void order_row(float *dst, const float *src, int64_t ld, int32_t dtype) {
  const v16 scale = v16_set1(dot_prescale(dtype));
  if (dtype == MAVK_BF16) {
    for (int64_t i = 0; i < ld; i += 32) {
      v16 a = v16_load(src + i), b = v16_load(src + i + 16);
      v16_store(dst + i, v16_even(a, b));
      v16_store(dst + i + 16, v16_odd(a, b));
    }
  } else if (dtype == MAVK_F8) {
    for (int64_t i = 0; i < ld; i += 64) {
      v16 a = v16_mul(v16_load(src + i), scale), b = v16_mul(v16_load(src + i + 16), scale);
      v16 c = v16_mul(v16_load(src + i + 32), scale), d = v16_mul(v16_load(src + i + 48), scale);
      v16 even_ab = v16_even(a, b), odd_ab = v16_odd(a, b), even_cd = v16_even(c, d), odd_cd = v16_odd(c, d);
      v16_store(dst + i, v16_even(even_ab, even_cd));
      v16_store(dst + i + 16, v16_even(odd_ab, odd_cd));
      v16_store(dst + i + 32, v16_odd(even_ab, even_cd));
      v16_store(dst + i + 48, v16_odd(odd_ab, odd_cd));
    }
  } else {
    for (int64_t i = 0; i < ld; i += 16) v16_store(dst + i, v16_load(src + i));
  }
}

static void pack_row(const pack_rows *in, const mavk_weight *w, int64_t r, int64_t ld, float *tmp, float *dst, float *row_scale) {
  const float *src = in->x + (in->source ? in->source[r] : r) * in->ld;
  const int64_t K = in->K;
  if (in->norm) MAVK_CPU(norm_row)(tmp, src, in->norm, K, in->eps);
  else memcpy(tmp, src, (size_t)K * sizeof *tmp);
  if (in->score)
    for (int64_t k = 0; k < K; k++) tmp[k] *= in->score[r];
  if (row_scale) row_scale[r] = round_row(tmp, K, w->act, w->in_scale);
  for (int64_t k = K; k < ld; k++) tmp[k] = 0;
  order_row(dst + r * ld, tmp, ld - PACK_GAP, w->a.dtype);
}

packed MAVK_CPU(pack)(mavk_thread *t, scratch *s, const pack_rows *in, const mavk_weight *w) {
  const int64_t ld = mavk_round_up(in->K, dot_block(w->a.dtype)) + PACK_GAP;
  const bool own = in->rows <= PACK_PRIVATE_ROWS, rounded = w->act != MAVK_ACT_NONE;
  char **arena = own ? &s->own : &s->shared;
  float *x = scratch_take(arena, in->rows * ld * 4), *row_scale = rounded ? scratch_take(arena, in->rows * 4) : NULL;
  float *tmp = scratch_floats(s, ld);
  if (own) {
    for (int64_t r = 0; r < in->rows; r++) pack_row(in, w, r, ld, tmp, x, row_scale);
  } else {
    for (int64_t r; (r = mavk_claim(t) * 8) < in->rows;)
      for (int64_t i = r; i < mavk_min(r + 8, in->rows); i++) pack_row(in, w, i, ld, tmp, x, row_scale);
    mavk_phase(t);
  }
  return (packed){x, ld, row_scale};
}
