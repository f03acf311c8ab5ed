/* kernels/cuda/kv.h - the paged cache and what happens to a head before it gets there: where a channel lies, storing and loading in the
 * cache's dtype, RoPE, the temperature of NoPE layers. The formulas of ref/ref.h; norm_qkv, rope_append, attention and kv_move share
 * them.
 *
 * A loop over the channels of one slot looks its page up once: kv_page, then kv_k_at / kv_v_at, whose strides are kv->page (keys) and
 * 1 (values). Nothing here checks seq: callers leave idle rows out.
 */
#ifndef MAVK_CUDA_KV_H
#define MAVK_CUDA_KV_H

#include "cuda.h"

#define KV_FN __device__ static __forceinline__

/* ---- where ---------------------------------------------------------------------------------------------------------------------- */

/* The page that holds a slot of a sequence. Slots are 32 bits wide: the division is a short one. */
KV_FN int64_t kv_page(const mavk_kv *kv, int32_t seq, int32_t slot) {
  return kv->table[seq * kv->table_stride + (uint32_t)slot / (uint32_t)kv->page];
}

/* Its place in that page. */
KV_FN int64_t kv_in_page(const mavk_kv *kv, int32_t slot) { return (uint32_t)slot % (uint32_t)kv->page; }

/* Channel c of head h; `at` is kv_in_page. Keys are transposed within a page. */
KV_FN int64_t kv_k_at(const mavk_kv *kv, int64_t page, int64_t at, int64_t h, int64_t c) {
  return ((page * kv->kv_heads + h) * kv->head_dim + c) * kv->page + at;
}
KV_FN int64_t kv_v_at(const mavk_kv *kv, int64_t page, int64_t at, int64_t h, int64_t c) {
  return ((page * kv->kv_heads + h) * kv->page + at) * kv->head_dim + c;
}

/* ---- dtypes --------------------------------------------------------------------------------------------------------------------- */

/* One element, widened; scale is the cache's k_scale or v_scale and counts for F8 only. */
KV_FN float kv_load(int32_t dtype, const void *p, int64_t at, float scale) {
  if (dtype == MAVK_BF16) return mavk_f32_from_bf16(((const uint16_t *)p)[at]);
  if (dtype == MAVK_F8) return mavk_f32_from_f8(((const uint8_t *)p)[at]) * scale;
  return ((const float *)p)[at];
}

/* Narrowed: nearest even, F8 saturating at +-448. */
KV_FN void kv_store(int32_t dtype, void *p, int64_t at, float x, float scale) {
  if (dtype == MAVK_BF16)
    ((uint16_t *)p)[at] = mavk_bf16_from_f32(x);
  else if (dtype == MAVK_F8)
    ((uint8_t *)p)[at] = mavk_f8_from_f32(x / scale);
  else
    ((float *)p)[at] = x;
}

/* How many elements sixteen bytes hold. */
template <int DTYPE>
struct kv_vector {
  static const int count = DTYPE == MAVK_F32 ? 4 : DTYPE == MAVK_BF16 ? 8 : 16;
};

/* Sixteen bytes of the cache, widened in order. F8 codes: the four bits of exponent and three of mantissa, moved to where f32 has its
 * own, are the value times 2^-120, subnormals included (a NaN code becomes 480). */
template <int DTYPE>
KV_FN void kv_widen(float *y /* kv_vector<DTYPE>::count */, uint4 v, float scale) {
  const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t w = word[i];
    if (DTYPE == MAVK_F32) {
      y[i] = mavk_f32_from_bits(w);
    } else if (DTYPE == MAVK_BF16) {
      y[2 * i] = mavk_f32_from_bits(w << 16);
      y[2 * i + 1] = mavk_f32_from_bits(w & 0xffff0000u);
    } else {
#pragma unroll
      for (int b = 0; b < 4; b++) {
        const uint32_t c = w >> 8 * b & 0xffu;
        y[4 * i + b] = mavk_f32_from_bits((c & 0x80u) << 24 | (c & 0x7fu) << 20) * 0x1p120f * scale;
      }
    }
  }
}

/* ---- RoPE and temperature --------------------------------------------------------------------------------------------------------- */

/* Cosine and sine of pos * frequency. The angle is rounded to f32, as in the model; the quadrant is removed in double, so that angles
 * of any size lose nothing. (The library's double sine keeps a table in local memory for huge angles; positions are below 2^31.) */
KV_FN void rope_cos_sin(int32_t pos, float frequency, float *cosine, float *sine) {
  const double x = (double)((float)pos * frequency), k = rint(x * 0.63661977236758134308);
  const double r = (x - k * 1.57079632673412561417) - k * 6.07710050650619224932e-11, z = r * r; /* pi / 2 in two parts */
  const double s = r + r * z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 - z * (1.0 / 39916800)))));
  const double c = 1 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 + z * (-1.0 / 3628800 + z * (1.0 / 479001600))))));
  const int32_t q = (int32_t)((int64_t)k & 3);
  const double cq = q & 1 ? s : c, sq = q & 1 ? c : s;
  *cosine = (float)((q + 1) & 2 ? -cq : cq);
  *sine = (float)(q & 2 ? -sq : sq);
}

/* The channels of pair i of a head: neighbours, or one of either half. */
KV_FN int64_t rope_first(int64_t i, bool half) { return half ? i : 2 * i; }
KV_FN int64_t rope_second(int64_t i, int64_t C, bool half) { return half ? i + C / 2 : 2 * i + 1; }

KV_FN void rope_rotate(float *x0, float *x1, float cosine, float sine) {
  const float y0 = *x0 * cosine - *x1 * sine, y1 = *x0 * sine + *x1 * cosine;
  *x0 = y0;
  *x1 = y1;
}

/* What the queries of a NoPE layer are multiplied by. */
KV_FN float rope_temperature(int32_t pos, float attn_scale, float floor_scale) {
  return attn_scale == 0 ? 1 : 1 + attn_scale * log1pf(floorf(((float)pos + 1) / floor_scale));
}

/* ---- appending -------------------------------------------------------------------------------------------------------------------- */

/* Where the projected channels of one row go: heads 0 .. H - 1 are queries, then K heads of keys, K of values. */
struct kv_target {
  float *q; /* (H, C) of the row */
  int64_t H, page, at;
};

KV_FN kv_target kv_target_of(float *q /* (T, H, C) */, int64_t H, const mavk_kv *kv, const mavk_rows *rows, int64_t r) {
  const kv_target t = {q + r * H * kv->head_dim, H, kv_page(kv, rows->seq[r], rows->slot[r]), kv_in_page(kv, rows->slot[r])};
  return t;
}

KV_FN void kv_place(const kv_target *t, const mavk_kv *kv, int64_t head, int64_t c, float x) {
  const int64_t K = kv->kv_heads;
  if (head < t->H)
    t->q[head * kv->head_dim + c] = x;
  else if (head < t->H + K)
    kv_store(kv->dtype, kv->k, kv_k_at(kv, t->page, t->at, head - t->H, c), x, kv->k_scale);
  else
    kv_store(kv->dtype, kv->v, kv_v_at(kv, t->page, t->at, head - t->H - K, c), x, kv->v_scale);
}

#endif
