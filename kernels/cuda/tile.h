/* kernels/cuda/tile.h - a warp's share of a tile: its weights from memory, multiplied with cells of activations (activations.h).
 *
 * Bytes in flight: a lane holds product_depth(G) loads of sixteen bytes in registers and asks for the next as soon as one is used: 80 KB a
 * block of sixteen warps with ten loads. The first ones are asked for before the wait for the kernel before. */
#ifndef MAVK_CUDA_TILE_H
#define MAVK_CUDA_TILE_H

#include "activations.h"

/* One matrix of a weight: an expert of a stack, or the only one. */
struct product_matrix {
  const unsigned char *p;
  int64_t N, stride; /* rows; elements from one row to the next */
  int32_t dtype, layout;
};

__device__ static __forceinline__ product_matrix matrix_of(const mavk_weight &w, int64_t expert) {
  const bool stack = w.a.nd == 3;
  const size_t size = w.a.dtype == MAVK_F32 ? 4 : w.a.dtype == MAVK_F8 ? 1 : 2;
  const product_matrix m = {(const unsigned char *)w.a.p + (size_t)(stack ? expert * w.a.s[0] : 0) * size, stack ? w.a.n[1] : w.a.n[0],
                            stack ? w.a.s[1] : w.a.s[0], w.a.dtype, w.layout};
  return m;
}

/* What a finished sum of row n is multiplied by. */
__device__ static __forceinline__ float weight_scale(const mavk_weight &w, int64_t expert, int64_t n) {
  if (!w.scale) return 1;
  return w.scale[(w.a.nd == 3 ? expert * w.scale_s[0] : 0) + n * w.scale_s[1]];
}

/* The weights of a warp's steps, a few of them in registers: `LOADS` loads, two a step for WAY_BF16, one for WAY_F8. */
template <int LOADS>
struct weight_stream {
  uint4 w[LOADS];
  const unsigned char *p; /* the lane's, at the warp's first step */
  int32_t second;         /* WAY_BF16: bytes from row g to row g + 8 */
  uint32_t hop;           /* from a step to the warp's next */
  int count;              /* of its steps */

  template <int WAY>
  __device__ __forceinline__ void load(int slot, int it) {
    const unsigned char *at = p + (size_t)it * hop;
    if (WAY == WAY_F8) {
      w[slot] = load_once(at);
    } else {
      w[2 * slot] = load_once(at);
      w[2 * slot + 1] = load_once(at + second);
    }
  }

  /* Steps first + warp, first + warp + warps, ... < end of a tile. */
  template <int WAY>
  __device__ __forceinline__ void open(const product_matrix &m, int64_t tile, int first, int end, int warp, int warps) {
    const int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4, begin = first + warp;
    count = end > begin ? (end - begin + warps - 1) / warps : 0;
    if (WAY == WAY_F8) {
      p = m.p + (size_t)tile * TILE_ROWS * (size_t)m.stride + (size_t)begin * MAVK_MMA_TILE + (size_t)lane * MAVK_MMA_LANE_BYTES;
      hop = (uint32_t)warps * MAVK_MMA_TILE;
      second = 0;
    } else {
      int64_t a = tile * TILE_ROWS + g, b = a + 8; /* rows past the last: the last again, and nobody uses the sums */
      a = a < m.N ? a : m.N - 1, b = b < m.N ? b : m.N - 1;
      p = m.p + ((size_t)a * (size_t)m.stride + (size_t)begin * STEP_COLUMNS + (size_t)t * 8) * 2;
      hop = (uint32_t)warps * STEP_COLUMNS * 2;
      second = (int32_t)((b - a) * m.stride * 2);
    }
    constexpr int depth = WAY == WAY_F8 ? LOADS : LOADS / 2;
#pragma unroll
    for (int i = 0; i < depth; i++)
      if (i < count) load<WAY>(i, i);
    const int later = first + depth * warps;
    if (warp == 0 && later < end) { /* what follows: one piece of a tile of codes, sixteen of rows */
      const uint32_t bytes = (uint32_t)(end - later) * (WAY == WAY_F8 ? MAVK_MMA_TILE : STEP_COLUMNS * 2);
      const uint32_t most = PRODUCT_AHEAD_BYTES / (WAY == WAY_F8 ? 1 : TILE_ROWS);
      const int64_t row = tile * TILE_ROWS + (WAY == WAY_F8 ? 0 : lane);
      const size_t at = WAY == WAY_F8 ? (size_t)row * (size_t)m.stride + (size_t)later * MAVK_MMA_TILE
                                      : ((size_t)row * (size_t)m.stride + (size_t)later * STEP_COLUMNS) * 2;
      if (lane < (WAY == WAY_F8 ? 1 : TILE_ROWS) && row < m.N) prefetch_l2_range(m.p + at, bytes < most ? bytes : most);
    }
  }
};

/* A word's codes as f16 pairs: low bytes of halves are row g, high ones row g + 8 (layout.h), times 2^-PRODUCT_WIDEN_SHIFT. */
__device__ static __forceinline__ void widen_word(uint32_t w, uint32_t *row, uint32_t *row8) {
#ifdef PRODUCT_WIDEN_CVT
  const uint32_t c = __byte_perm(w, 0, 0x3120);
  *row = f16x2_from_f8x2((uint16_t)c);
  *row8 = f16x2_from_f8x2((uint16_t)(c >> 16));
  return;
#endif
  *row = (w << 7 & 0x3f803f80u) | (w << 8 & 0x80008000u);
  *row8 = (w >> 1 & 0x3f803f80u) | (w & 0x80008000u);
}

/* Where a lane's column of B lies in the cells. */
struct cell_place {
  int at;      /* bytes from the step's first cell, group 0 */
  int groups;  /* groups in use */
  int mine;    /* groups in which the lane's column is a token's */
  int columns; /* of a step */
};

__device__ static __forceinline__ cell_place cell_place_of(int n, int parts) {
  const int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4, per = 8 / parts, i = g % per, part = g / per;
  cell_place c;
  c.columns = product_columns(n, parts);
  c.groups = (n + per - 1) / per;
  c.mine = i < n ? (n - i + per - 1) / per : 0;
  c.at = ((n <= per ? part * n + i : g) * 4 + t) * 16;
  return c;
}

/* Iterations it0 <= it < it1 of the warp; cells: those of its step it0. Even and odd halves of steps have sums of their own, so that one
 * mma need not wait for the one before. */
template <int WAY, int G, int LOADS>
__device__ static __forceinline__ void multiply(weight_stream<LOADS> &s, float sum[G][2][4], int it0, int it1, const unsigned char *cells,
                                                const cell_place &place, int warps) {
  constexpr int depth = WAY == WAY_F8 ? LOADS : LOADS / 2; /* steps in registers */
  const int last = it1 < s.count ? it1 : s.count, stride = warps * place.columns * 64;
  cells += place.at;
  for (int base = it0; base < last; base += depth) {
#pragma unroll
    for (int i = 0; i < depth; i++) {
      const int it = base + i;
      if (it < last) {
        uint32_t a[2][4];
        if (WAY == WAY_F8) {
          const uint4 w = s.w[i];
          widen_word(w.x, &a[0][0], &a[0][1]);
          widen_word(w.y, &a[0][2], &a[0][3]);
          widen_word(w.z, &a[1][0], &a[1][1]);
          widen_word(w.w, &a[1][2], &a[1][3]);
        } else {
          const uint4 w = s.w[2 * i], w8 = s.w[2 * i + 1];
          a[0][0] = w.x, a[0][1] = w8.x, a[0][2] = w.y, a[0][3] = w8.y;
          a[1][0] = w.z, a[1][1] = w8.z, a[1][2] = w.w, a[1][3] = w8.w;
        }
        if (it + depth < s.count) s.template load<WAY>(i, it + depth);
#pragma unroll
        for (int q = 0; q < G; q++) {
          if (q < place.groups) {
            uint4 b = make_uint4(0, 0, 0, 0);
            if (q < place.mine) b = *(const uint4 *)(cells + q * 512);
            const uint32_t b0[2] = {b.x, b.y}, b1[2] = {b.z, b.w};
            if (WAY == WAY_F8) {
              mma_f16(sum[q][0], a[0], b0);
              mma_f16(sum[q][1], a[1], b1);
            } else {
              mma_bf16(sum[q][0], a[0], b0);
              mma_bf16(sum[q][1], a[1], b1);
            }
          }
        }
        cells += stride;
      }
    }
  }
}

/* A warp's sums to shared memory: sums[i * SUM_STRIDE + row] for token i. */
template <int G>
__device__ static __forceinline__ void fold(const float sum[G][2][4], float *sums, int n, int parts) {
  const int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int q = 0; q < G; q++) {
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      v[i] = sum[q][0][i] + sum[q][1][i];
      if (parts == 2) v[i] += __shfl_xor_sync(ALL_LANES, v[i], 2); /* what was rounded and what was left: columns c and c + 4 */
    }
    const int token = parts == 2 ? 4 * q + 2 * t : 8 * q + 2 * t;
    if (parts == 1 || t < 2) {
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (token + i % 2 < n) sums[(token + i % 2) * SUM_STRIDE + g + i / 2 * 8] = v[i];
    }
  }
}

/* ---- without tensor cores --------------------------------------------------------------------------------------------------------- */

/* Eight columns of row n of a matrix from column k on, as f32; 0 beyond K. */
__device__ static __forceinline__ void load_columns(const product_matrix &m, int64_t n, int k, int K, float v[8]) {
  const int size = m.dtype == MAVK_F32 ? 4 : m.dtype == MAVK_F8 ? 1 : 2;
  const unsigned char *at = m.p + (size_t)(n * m.stride + k) * (size_t)size;
  if (k + 8 <= K && (uintptr_t)at % (unsigned)(8 * size < 16 ? 8 * size : 16) == 0) {
    if (m.dtype == MAVK_F8) {
      const uint2 w = *(const uint2 *)at;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const uint32_t c = (i < 4 ? w.x : w.y) >> i % 4 * 8 & 0xffu;
        v[i] = mavk_f32_from_bits((c & 0x80u) << 24 | (c & 0x7fu) << 20) * 0x1p120f;
      }
    } else if (m.dtype == MAVK_F32) {
      const float4 a = ((const float4 *)at)[0], b = ((const float4 *)at)[1];
      v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else {
      const uint4 w = load_once(at);
      const uint32_t word[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const uint16_t h = (uint16_t)(word[i / 2] >> i % 2 * 16);
        v[i] = m.dtype == MAVK_BF16 ? mavk_f32_from_bf16(h) : f32_from_f16(h);
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = k + i < K ? mavk_f32_at(m.p, m.dtype, n * m.stride + k + i) : 0;
}

/* Steps `warp`, warp + warps, ... of `steps` from column k0 on; lane (g, t) has rows g and g + 8 and eight columns of a step. rows: f32 in
 * shared memory, 32 `steps` a token. */
__device__ static __forceinline__ void multiply_fma(const product_matrix &m, int64_t tile, float sum[2][TOKENS_MAX],
                                                    const unsigned char *cells, int n, int k0, int steps, int K, int warp, int warps) {
  const int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  const int64_t r0 = tile * TILE_ROWS + g, r1 = r0 + 8, a = r0 < m.N ? r0 : m.N - 1, b = r1 < m.N ? r1 : m.N - 1;
  for (int s = warp; s < steps; s += warps) {
    const int k = k0 + s * STEP_COLUMNS;
    float w[2][8];
    const float *x = (const float *)cells + s * STEP_COLUMNS;
    if (m.layout == MAVK_LAYOUT_M16N8K16) {
      const uint4 c = load_once(m.p + (size_t)tile * TILE_ROWS * (size_t)m.stride + (size_t)(k / STEP_COLUMNS) * MAVK_MMA_TILE +
                                (size_t)lane * MAVK_MMA_LANE_BYTES);
      const uint32_t word[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
      for (int i = 0; i < 8; i++) { /* columns 2t, 2t + 1 of the four groups of eight */
        const uint32_t low = word[i / 2] >> i % 2 * 16 & 0xffu, high = word[i / 2] >> (i % 2 * 16 + 8) & 0xffu;
        w[0][i] = mavk_f32_from_bits((low & 0x80u) << 24 | (low & 0x7fu) << 20) * 0x1p120f;
        w[1][i] = mavk_f32_from_bits((high & 0x80u) << 24 | (high & 0x7fu) << 20) * 0x1p120f;
      }
    } else {
      load_columns(m, a, k + 8 * t, K, w[0]);
      load_columns(m, b, k + 8 * t, K, w[1]);
    }
#pragma unroll
    for (int i = 0; i < TOKENS_MAX; i++) {
      if (i < n) {
        const float *v = x + i * steps * STEP_COLUMNS;
#pragma unroll
        for (int e = 0; e < 8; e += 2) {
          const float2 y = *(const float2 *)(v + (m.layout == MAVK_LAYOUT_M16N8K16 ? 4 * e + 2 * t : 8 * t + e));
          sum[0][i] = fmaf(y.y, w[0][e + 1], fmaf(y.x, w[0][e], sum[0][i]));
          sum[1][i] = fmaf(y.y, w[1][e + 1], fmaf(y.x, w[1][e], sum[1][i]));
        }
      }
    }
  }
}

__device__ static __forceinline__ void fold_fma(const float sum[2][TOKENS_MAX], float *sums, int n) {
  const int lane = (int)threadIdx.x % WARP, g = lane / 4;
#pragma unroll
  for (int i = 0; i < TOKENS_MAX; i++) {
    if (i < n) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float v = sum[h][i];
        v += __shfl_xor_sync(ALL_LANES, v, 1);
        v += __shfl_xor_sync(ALL_LANES, v, 2);
        if (lane % 4 == 0) sums[i * SUM_STRIDE + g + 8 * h] = v;
      }
    }
  }
}

#endif
