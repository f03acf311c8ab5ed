/* kernels/cuda/attention.h - pieces of attention.cu: how a past is cut, what a row sees, pairs of cached elements as fragments of
 * mma.m16n8k16. */
#ifndef MAVK_CUDA_ATTENTION_H
#define MAVK_CUDA_ATTENTION_H

#include "kv.h"

/* ---- splits ---------------------------------------------------------------------------------------------------------------------
 *
 * A past begins at position `first`: 0, or the start of a chunk. Its tiles are the multiples of TILE positions, counted from the one
 * that holds `first`. Split s is tile s up to 128 tiles; from there every doubling of the past is 64 splits, so that a past of any length
 * has a few hundred, none longer than a 64th of it. Where splits lie depends on `first` alone. */

#define TILE 64
#define FOLD 16 /* splits whose results are folded together, before those of all folds are */
#define SPLITS_EVEN 128
#define SPLITS_EACH 64

MAVK_FN int32_t split_begin(int32_t s) {
  if (s < SPLITS_EVEN) return s;
  const int32_t octave = (s - SPLITS_EVEN) / SPLITS_EACH, k = (s - SPLITS_EVEN) % SPLITS_EACH;
  return (SPLITS_EVEN + k * (SPLITS_EVEN / SPLITS_EACH)) << octave;
}

/* The split that tile i is in. */
MAVK_FN int32_t split_of(int32_t i) {
  int32_t octave = 0;
  while (i >> octave >= 2 * SPLITS_EVEN) octave++;
  if (i < SPLITS_EVEN) return i;
  return SPLITS_EVEN + octave * SPLITS_EACH + ((i >> octave) - SPLITS_EVEN) / (SPLITS_EVEN / SPLITS_EACH);
}

/* ---- rows -----------------------------------------------------------------------------------------------------------------------
 *
 * Position j of a row's past lies at slot j, if the row's own slot is its position, or j is before its first ancestor in the table.
 * Otherwise (side branches of a draft tree) it lies at the slot of the ancestor at that position. */

#define IN_PLACE INT32_MAX

struct row_view {
  int32_t seq, pos, first, base; /* base: the position of the first ancestor of a side branch; IN_PLACE */
};

struct ancestry {
  const int32_t *parent, *slot; /* of the batch, by row; both reach back to the start of its table */
  int64_t first;
};

__device__ static __forceinline__ int32_t side_base(const ancestry &a, int64_t r, int32_t pos) {
  int32_t base = pos;
  for (int64_t p; (p = a.parent[r]) >= 0; r = p - a.first) base--;
  return base;
}

/* Of row r of a side branch at position pos. */
__device__ static __forceinline__ int32_t side_slot(const ancestry &a, int64_t r, const row_view &v, int32_t j) {
  if (j < v.base) return j;
  for (int32_t pos = v.pos; pos > j; pos--) r = a.parent[r] - a.first;
  return a.slot[r];
}

/* ---- fragments ------------------------------------------------------------------------------------------------------------------
 *
 * A pair: two elements that lie side by side in the cache, both of one column k of the A operand; its rows g and g + 8 are given to
 * neighbouring positions (keys) or channels (values) 2g and 2g + 1. */

template <int DTYPE>
struct pair {
  uint32_t w[DTYPE == MAVK_F32 ? 2 : 1];
};

/* How many bf16 numbers a cached element is the sum of. */
template <int DTYPE>
struct planes {
  static const int count = DTYPE == MAVK_F32 ? 3 : 1;
};

template <int DTYPE>
KV_FN pair<DTYPE> pair_zero() {
  pair<DTYPE> p = {};
  return p;
}

/* Elements at, at + 1; at: even. */
template <int DTYPE>
KV_FN pair<DTYPE> pair_load(const void *data, int64_t at) {
  pair<DTYPE> p;
  if (DTYPE == MAVK_F32) {
    const uint2 v = *(const uint2 *)((const uint32_t *)data + at);
    p.w[0] = v.x;
    p.w[DTYPE == MAVK_F32] = v.y;
  } else if (DTYPE == MAVK_BF16) {
    p.w[0] = *(const uint32_t *)((const uint16_t *)data + at);
  } else {
    p.w[0] = *(const uint16_t *)((const uint8_t *)data + at);
  }
  return p;
}

/* Two elements from anywhere; one that is not there is 0. */
template <int DTYPE>
KV_FN pair<DTYPE> pair_gather(const void *data, bool has_low, int64_t low, bool has_high, int64_t high) {
  pair<DTYPE> p;
  if (DTYPE == MAVK_F32) {
    p.w[0] = has_low ? ((const uint32_t *)data)[low] : 0;
    p.w[DTYPE == MAVK_F32] = has_high ? ((const uint32_t *)data)[high] : 0;
  } else if (DTYPE == MAVK_BF16) {
    const uint32_t a = has_low ? ((const uint16_t *)data)[low] : 0, b = has_high ? ((const uint16_t *)data)[high] : 0;
    p.w[0] = a | b << 16;
  } else {
    const uint32_t a = has_low ? ((const uint8_t *)data)[low] : 0, b = has_high ? ((const uint8_t *)data)[high] : 0;
    p.w[0] = a | b << 8;
  }
  return p;
}

/* The upper halves of two numbers, low in the lower half. */
KV_FN uint32_t upper_halves(uint32_t low, uint32_t high) { return __byte_perm(low, high, 0x7632); }

/* Both elements of a pair as f32 bits. F8 codes without their scale (kv.h, kv_widen: subnormals too). */
template <int DTYPE>
KV_FN void pair_widen(uint32_t x[2], const pair<DTYPE> &p) {
  if (DTYPE == MAVK_F32) {
    x[0] = p.w[0];
    x[1] = p.w[DTYPE == MAVK_F32];
  } else if (DTYPE == MAVK_BF16) {
    x[0] = p.w[0] << 16;
    x[1] = p.w[0] & 0xffff0000u;
  } else {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t c = p.w[0] >> 8 * i & 0xffu;
      x[i] = mavk_bits_from_f32(mavk_f32_from_bits((c & 0x80u) << 24 | (c & 0x7fu) << 20) * 0x1p120f);
    }
  }
}

/* The next bf16 plane of x, in the upper half, which is taken away from it. Three planes hold all 24 bits. */
KV_FN uint32_t plane_take(uint32_t *x) {
  const uint32_t top = *x & 0xffff0000u;
  *x = mavk_bits_from_f32(mavk_f32_from_bits(*x) - mavk_f32_from_bits(top));
  return top;
}

/* The same, but nearest: two planes leave 2^-18 of x. For finite numbers. */
KV_FN uint32_t plane_round(uint32_t *x) {
  const uint32_t top = (*x + 0x7fffu + (*x >> 16 & 1u)) & 0xffff0000u;
  *x = mavk_bits_from_f32(mavk_f32_from_bits(*x) - mavk_f32_from_bits(top));
  return top;
}

/* The A operand from pairs of columns 2t, 2t + 1, 2t + 8, 2t + 9. */
template <int DTYPE>
KV_FN void pair_fragment(uint32_t (&a)[planes<DTYPE>::count][4], const pair<DTYPE> (&p)[4]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t x[2], y[2];
    pair_widen<DTYPE>(x, p[2 * half]);
    pair_widen<DTYPE>(y, p[2 * half + 1]);
#pragma unroll
    for (int plane = 0; plane < planes<DTYPE>::count; plane++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const bool last = plane + 1 == planes<DTYPE>::count;
        const uint32_t low = last ? x[i] : plane_take(&x[i]), high = last ? y[i] : plane_take(&y[i]);
        a[plane][2 * half + i] = upper_halves(low, high);
      }
  }
}

/* d += the product of all planes of A and B whose orders together are below 3: what is left out is below 2^-24 of the whole. */
template <int A, int B>
KV_FN void mma_planes(float d[4], const uint32_t (&a)[A][4], const uint32_t (&b)[B][2]) {
#pragma unroll
  for (int order = 2; order >= 0; order--)
#pragma unroll
    for (int i = 0; i < A; i++)
      if (order >= i && order - i < B) mma_bf16(d, a[i], b[order - i < B && order >= i ? order - i : 0]);
}

#endif
