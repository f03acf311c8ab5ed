/* kernels/cpu/rope.h - what happens to query, key and value rows after their projection: RoPE or temperature, qk norm,
 * and the append to the cache.
 */
#ifndef MAVK_ROPE_H
#define MAVK_ROPE_H

#include <math.h>

#include "../numeric.h"
#include "cpu.h"

/* Cosines and sines of pos * frequency[i], i < n. The angle is rounded to f32, as in the model; the quadrant is removed in
 * double precision, so angles of any size lose nothing. Written so that the loop vectorizes. */
static inline void rope_cos_sin(int32_t pos, const float *frequency, int64_t n, float *cosine, float *sine) {
  for (int64_t i = 0; i < n; i++) {
    const double x = (double)((float)pos * frequency[i]), k = nearbyint(x * 0.63661977236758134308);
    const double r = x - k * 1.57079632679489661923, z = r * r;
    const double s = r + r * z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 - z * (1.0 / 39916800)))));
    const double c = 1 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 + z * (-1.0 / 3628800 + z * (1.0 / 479001600))))));
    const int32_t q = (int32_t)k & 3;
    const double cq = q & 1 ? s : c, sq = q & 1 ? c : s;
    cosine[i] = (float)((q + 1) & 2 ? -cq : cq);
    sine[i] = (float)(q & 2 ? -sq : sq);
  }
}

/* x rotated by pairs: neighbours, or first half against second. n is even. */
static inline void rope_rotate(float *x, int64_t n, const float *cosine, const float *sine, bool half) {
  const int64_t step = half ? 1 : 2, other = half ? n / 2 : 1;
  for (int64_t i = 0; i < n / 2; i++) {
    const float x0 = x[i * step], x1 = x[i * step + other];
    x[i * step] = x0 * cosine[i] - x1 * sine[i];
    x[i * step + other] = x0 * sine[i] + x1 * cosine[i];
  }
}

/* q *= this on NoPE layers. */
static inline float rope_temperature(int32_t pos, float attn_scale, float floor_scale) {
  return attn_scale == 0 ? 1 : 1 + attn_scale * log1pf(floorf(((float)pos + 1) / floor_scale));
}

static inline void rope_put(void *p, int32_t dtype, int64_t i, float x, float scale) {
  mavk_put_f32(p, dtype, i, dtype == MAVK_F8 ? x / scale : x);
}

/* n consecutive channels from c on of one head's key (transposed in its page) or value. */
static inline void rope_append_key(const mavk_kv *kv, int32_t seq, int32_t slot, int64_t head, int64_t c, int64_t n, const float *x) {
  const int64_t page = kv->table[seq * kv->table_stride + slot / kv->page];
  const int64_t at = ((page * kv->kv_heads + head) * kv->head_dim + c) * kv->page + slot % kv->page;
  for (int64_t i = 0; i < n; i++) rope_put(kv->k, kv->dtype, at + i * kv->page, x[i], kv->k_scale);
}
static inline void rope_append_value(const mavk_kv *kv, int32_t seq, int32_t slot, int64_t head, int64_t c, int64_t n, const float *x) {
  const int64_t page = kv->table[seq * kv->table_stride + slot / kv->page];
  const int64_t at = ((page * kv->kv_heads + head) * kv->page + slot % kv->page) * kv->head_dim + c;
  for (int64_t i = 0; i < n; i++) rope_put(kv->v, kv->dtype, at + i, x[i], kv->v_scale);
}

#endif
