/* kernels/cuda/activations.h - rows of activations on their way to a product: which rows, their RMSNorm and rounding, and the order in
 * which lanes read them from shared memory. The value of an element is that of ref_row in ref/ref.h:
 *
 *     e4m3(x * rms * norm * score / step) * step      without the rounding where the weight does not ask for it
 *
 * W8A8 codes are the same bits as ref's, so sums of squares are taken in double there, and in f32 elsewhere. */
#ifndef MAVK_CUDA_ACTIVATIONS_H
#define MAVK_CUDA_ACTIVATIONS_H

#include "product.h"

/* The tokens of an item, in shared memory. */
struct product_tokens {
  int32_t n, way, act; /* n may be 0 */
  float in_scale;
  int32_t from[TOKENS_MAX], to[TOKENS_MAX]; /* rows of the input and of the result */
  float score[TOKENS_MAX];
  float rms[TOKENS_MAX];
  float step[TOKENS_MAX]; /* what codes are multiplied by; 0: no codes */
  float fit[TOKENS_MAX];  /* power of two that values are multiplied by: for f16 to hold them, or so that step * fit is near 1 */
  float by[TOKENS_MAX], inverse[TOKENS_MAX]; /* step * fit, and 1 / that */
  float back[TOKENS_MAX];                    /* what a sum is multiplied by: undoes fit, and the powers of two that widening leaves */
};

__device__ static __forceinline__ const float *input_row(const product_input &in, const product_tokens *t, int i) {
  return in.x + (int64_t)t->from[i] * in.K;
}

/* Columns k .. k + COUNT - 1 of a row, k a multiple of COUNT (2 or 4); beyond K: 0. */
template <int COUNT>
__device__ static __forceinline__ void columns_x(const product_input &in, const float *row, int k, float v[COUNT]) {
  if (in.aligned && COUNT == 4) {
    const float4 x = *(const float4 *)(row + k);
    v[0] = x.x, v[1] = x.y, v[COUNT - 2] = x.z, v[COUNT - 1] = x.w;
  } else if (in.aligned) {
    const float2 x = *(const float2 *)(row + k);
    v[0] = x.x, v[1] = x.y;
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i++) v[i] = k + i < in.K ? row[k + i] : 0;
  }
}

/* The same columns of the norm's weight. */
template <int COUNT>
__device__ static __forceinline__ void columns_norm(const product_input &in, int k, float v[COUNT]) {
  if (in.norm_aligned && in.norm_dtype == MAVK_BF16) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
      const uint32_t w = *(const uint32_t *)((const uint16_t *)in.norm + k + i);
      v[i] = mavk_f32_from_bits(w << 16), v[i + 1] = mavk_f32_from_bits(w & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      v[i] = k + i >= in.K                ? 0
             : in.norm_dtype == MAVK_BF16 ? mavk_f32_from_bf16(((const uint16_t *)in.norm)[k + i])
             : in.norm_dtype == MAVK_F16  ? f32_from_f16(((const uint16_t *)in.norm)[k + i])
                                          : ((const float *)in.norm)[k + i];
  }
}

/* Sums of four values over a warp; lane 8 i has that of value i. The order is that of warp_sum. */
template <typename F>
__device__ static __forceinline__ F warp_sums4(const F v[4]) {
  const int lane = (int)threadIdx.x % WARP;
  const bool upper = lane & 16, right = lane & 8;
  F a = upper ? v[2] : v[0], b = upper ? v[3] : v[1];
  a += __shfl_xor_sync(ALL_LANES, upper ? v[0] : v[2], 16);
  b += __shfl_xor_sync(ALL_LANES, upper ? v[1] : v[3], 16);
  const F c = __shfl_xor_sync(ALL_LANES, right ? a : b, 8);
  a = (right ? b : a) + c;
  for (int i = 4; i; i /= 2) a += __shfl_xor_sync(ALL_LANES, a, i);
  return a;
}

/* |x| as a number that orders like it; NaN is above all. */
__device__ static __forceinline__ uint32_t magnitude(float x) { return mavk_bits_from_f32(x) & 0x7fffffffu; }

/* What a thread finds in its columns of one row: those of 4 (threadIdx + i blockDim), whatever the alignment. */
template <typename F>
__device__ static __forceinline__ void measure_columns(const product_input &in, const float *row, F *sum, uint32_t *most) {
  F s = 0;
  uint32_t m = 0;
#pragma unroll 2
  for (int k = 4 * (int)threadIdx.x; k < in.K; k += 4 * (int)blockDim.x) {
    float v[4], f[4];
    columns_x<4>(in, row, k, v);
    if (in.norm) columns_norm<4>(in, k, f);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (in.norm) s += (F)v[i] * (F)v[i];
      const uint32_t size = magnitude(in.norm ? v[i] * f[i] : v[i]);
      m = size > m ? size : m;
    }
  }
  *sum = s;
  *most = m;
}

/* Largest magnitude of the finished values of a row, as codes will be made from them. */
__device__ static __forceinline__ uint32_t measure_values(const product_input &in, const float *row, float rms, float score) {
  uint32_t m = 0;
#pragma unroll 2
  for (int k = 4 * (int)threadIdx.x; k < in.K; k += 4 * (int)blockDim.x) {
    float v[4], f[4];
    columns_x<4>(in, row, k, v);
    columns_norm<4>(in, k, f);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t size = magnitude(v[i] * rms * f[i] * score);
      m = size > m ? size : m;
    }
  }
  return m;
}

/* 1 / sqrt(m), as good as in double: two steps from the f32 estimate. */
__device__ static __forceinline__ float inverse_root(double m) {
  double y = (double)rsqrtf((float)m);
  y = y * (1.5 - 0.5 * m * y * y);
  y = y * (1.5 - 0.5 * m * y * y);
  return (float)y;
}

/* x / by, rounded as a division is, where x / by is neither tiny nor huge; inverse = 1 / by. (A division proper calls a subroutine, for
 * which the registers that hold weights would have to be put away.) */
__device__ static __forceinline__ float quotient(float x, float by, float inverse) {
  const float q = x * inverse, y = fmaf(fmaf(-q, by, x), inverse, q);
  return fabsf(q) < 0x1p100f ? y : q;
}

/* 2^-e for 2^e <= x < 2^(e+1); x is positive and finite. */
__device__ static __forceinline__ float power_near_inverse(float x) {
  const uint32_t e = mavk_bits_from_f32(x) >> 23;
  return mavk_f32_from_bits((e < 1 ? 253 : e > 253 ? 1 : 254 - e) << 23);
}

/* Whether tokens rounded by `act` need a look at their rows before the first product. */
__device__ static __forceinline__ bool measure_needed(const product_input &in, int way, int act) {
  return in.norm || act == MAVK_ACT_DYNAMIC || (act == MAVK_ACT_NONE && way == WAY_F8);
}

/* What a token's sums need to know, from the largest magnitude of its values. */
__device__ static __forceinline__ void token_scales(product_tokens *t, int i, float most) {
  const int way = t->way;
  float step = 0, fit = 1, back = 1;
  if (t->act == MAVK_ACT_NONE) {
    const uint32_t e = mavk_bits_from_f32(most) >> 23; /* most < 2^(e - 126) */
    if (way == WAY_F8 && most > 0 && e < 255) {
      const uint32_t b = e < 15 ? 253 : 268 - e;
      fit = mavk_f32_from_bits(b << 23);
      back = mavk_f32_from_bits((254 + PRODUCT_WIDEN_SHIFT - b) << 23);
    } else if (way == WAY_F8) {
      back = 1 << PRODUCT_WIDEN_SHIFT;
    }
  } else {
    step = t->act == MAVK_ACT_STATIC ? t->in_scale : quotient(most, MAVK_F8_MAX, 1 / MAVK_F8_MAX);
    if (!(step > 0)) step = 1;
    fit = power_near_inverse(step);
    t->by[i] = step * fit;
    const float near = __fdividef(1, t->by[i]);
    t->inverse[i] = fmaf(fmaf(-t->by[i], near, 1), near, near);
    if (way == WAY_F8) back = 1 << (8 + PRODUCT_WIDEN_SHIFT);
  }
  if (most != most) back = most; /* widened codes hold no NaN */
  t->step[i] = step;
  t->fit[i] = fit;
  t->back[i] = back;
}

/* Looks at the rows of one or two sets of tokens and fills in what depends on them. All threads of the block; the lists are visible before,
 * the results after. F: of the sums. space: twelve bytes for every token and warp of the block. */
template <typename F>
__device__ static void measure_rows(const product_input &in, product_tokens *tokens, int items, unsigned char *space) {
  const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, warps = (int)blockDim.x / WARP;
  int rows = 0;
  for (int i = 0; i < items; i++) rows += tokens[i].n;
  double *sums = (double *)space; /* (rows, warps) */
  uint32_t *mosts = (uint32_t *)(sums + rows * warps);
  for (int first = 0; first < rows; first += 4) {
    F sum[4];
    uint32_t most[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int r = first + i, item = r >= tokens[0].n;
      sum[i] = 0, most[i] = 0;
      if (r < rows) measure_columns<F>(in, input_row(in, tokens + item, r - (item ? tokens[0].n : 0)), &sum[i], &most[i]);
      most[i] = __reduce_max_sync(ALL_LANES, most[i]);
    }
    const F total = warp_sums4(sum);
    const int r = first + lane / 8;
    if (lane % 8 == 0 && r < rows) sums[r * warps + warp] = (double)total;
    if (lane < 4 && first + lane < rows)
      mosts[(first + lane) * warps + warp] = lane == 0 ? most[0] : lane == 1 ? most[1] : lane == 2 ? most[2] : most[3];
  }
  __syncthreads();
  bool again = false;
  for (int i = 0; i < items; i++) again = again || (in.norm && tokens[i].act == MAVK_ACT_DYNAMIC);
  for (int r = (int)threadIdx.x; r < rows; r += (int)blockDim.x) {
    const int item = r >= tokens[0].n, i = r - (item ? tokens[0].n : 0);
    product_tokens *t = &tokens[item];
    double sum = 0;
    uint32_t most = 0;
    for (int w = 0; w < warps; w++) {
      sum += sums[r * warps + w];
      most = mosts[r * warps + w] > most ? mosts[r * warps + w] : most;
    }
    t->rms[i] = in.norm ? inverse_root(sum * in.share + (double)in.eps) : 1;
    token_scales(t, i, fabsf(mavk_f32_from_bits(most) * t->rms[i] * t->score[i]));
  }
  __syncthreads();
  if (!again) return;
  for (int item = 0; item < items; item++) {
    product_tokens *t = &tokens[item];
    if (t->act != MAVK_ACT_DYNAMIC) continue;
    for (int i = 0; i < t->n; i++) {
      const uint32_t most = __reduce_max_sync(ALL_LANES, measure_values(in, input_row(in, t, i), t->rms[i], t->score[i]));
      if (lane == 0) mosts[i * warps + warp] = most;
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < t->n; i += (int)blockDim.x) {
      uint32_t most = 0;
      for (int w = 0; w < warps; w++) most = mosts[i * warps + w] > most ? mosts[i * warps + w] : most;
      token_scales(t, i, mavk_f32_from_bits(most));
    }
    __syncthreads();
  }
}

__device__ static __forceinline__ void measure(const product_input &in, product_tokens *tokens, int items, unsigned char *space) {
  bool needed = false, exact = false;
  for (int i = 0; i < items; i++) {
    needed = needed || measure_needed(in, tokens[i].way, tokens[i].act);
    exact = exact || (in.norm && tokens[i].act != MAVK_ACT_NONE);
  }
  if (needed) {
    if (exact)
      measure_rows<double>(in, tokens, items, space);
    else
      measure_rows<float>(in, tokens, items, space);
    return;
  }
  for (int item = 0; item < items; item++)
    for (int i = (int)threadIdx.x; i < tokens[item].n; i += (int)blockDim.x) {
      tokens[item].rms[i] = 1;
      token_scales(&tokens[item], i, 1);
    }
  __syncthreads();
}

/* ---- in the order of the B operand ------------------------------------------------------------------------------------------------ */

/* A cell is sixteen bytes: what lane (column, t) of a warp needs for one step, eight values of a token. Cells of a step lie side by side,
 * cell 4 column + t, so that a warp reads 512 bytes in a row. The eight values are columns
 *     2t, 2t + 1, of each of the four groups of eight        for tiles of codes (layout.h)
 *     8t .. 8t + 7                                           for rows: the sixteen bytes that the lane loads from its row of weights
 * (the order of columns within a step is free as long as A and B have the same). */
template <int WAY>
__device__ static __forceinline__ int cell_column(int t, int i) {
  return WAY == WAY_F8 ? 8 * (i / 2) + 2 * t + i % 2 : 8 * t + i;
}

/* Where the columns of token i of n are: part 0 what was rounded, part 1 what was left. */
__device__ static __forceinline__ int token_column(int i, int part, int parts, int n) {
  const int per = 8 / parts;
  return n <= per ? part * n + i : i / per * 8 + part * per + i % per;
}

__device__ static __forceinline__ uint32_t pair(uint16_t low, uint16_t high) { return (uint32_t)high << 16 | low; }

/* Two codes, in the low bytes of halves, as f16: times 2^-8. Exponent and mantissa of e4m3 where f16 has its own, subnormals included. */
__device__ static __forceinline__ uint32_t f16x2_from_codes(uint32_t c) { return (c << 7 & 0x3f803f80u) | (c << 8 & 0x80008000u); }

/* Two values as bf16: what was rounded, and what rounding left. */
__device__ static __forceinline__ void split_bf16x2(float a, float b, uint32_t *high, uint32_t *low) {
  const uint16_t ah = mavk_bf16_from_f32(a), bh = mavk_bf16_from_f32(b);
  *high = pair(ah, bh);
  *low = pair(mavk_bf16_from_f32(a - mavk_f32_from_bf16(ah)), mavk_bf16_from_f32(b - mavk_f32_from_bf16(bh)));
}

/* Fills the cells of `steps` steps from column k0 on for the tokens of an item. FMA: plain rows of f32 instead, 32 `steps` columns a token.
 * All threads; visible after the caller's barrier. */
template <int WAY>
__device__ static void stage(const product_input &in, const product_tokens *t, unsigned char *cells, int k0, int steps) {
  const int n = t->n, parts = t->act == MAVK_ACT_NONE ? 2 : 1, columns = product_columns(n, parts), each = 4 * steps;
  int i = 0, c = (int)threadIdx.x; /* token and cell of it */
#pragma unroll 1
  for (;;) {
    while (c >= each) c -= each, i++;
    if (i >= n) break;
    const int s = c / 4, lane = c % 4;
    const int k = k0 + s * STEP_COLUMNS;
    const float *row = input_row(in, t, i);
    const float rms = t->rms[i], score = t->score[i], fit = t->fit[i];
    float v[8];
#pragma unroll
    for (int e = 0; e < 8; e += 2) {
      const int at = k + cell_column<WAY>(lane, e);
      float f[2];
      v[e] = v[e + 1] = 0;
      if (WAY == WAY_FMA && at >= in.K) continue; /* the last step may be a part of one */
      columns_x<2>(in, row, at, v + e);
      if (in.norm) {
        columns_norm<2>(in, at, f);
        v[e] = v[e] * rms * f[0], v[e + 1] = v[e + 1] * rms * f[1];
      }
    }
#pragma unroll
    for (int e = 0; e < 8; e++) v[e] *= score;
    uint32_t high[4], low[4];
    if (parts == 1) {
      const float by = t->by[i], inverse = t->inverse[i];
#pragma unroll
      for (int e = 0; e < 8; e += 2) {
        const uint32_t codes = f8x2_from_f32(quotient(v[e] * fit, by, inverse), quotient(v[e + 1] * fit, by, inverse)),
                       spread = (codes & 0xffu) | (codes & 0xff00u) << 8;
        if (WAY == WAY_F8) {
          high[e / 2] = f16x2_from_codes(spread);
        } else {
          v[e] = mavk_f32_from_f8((uint8_t)(codes & 0xffu));
          v[e + 1] = mavk_f32_from_f8((uint8_t)(codes >> 8));
          high[e / 2] = pair((uint16_t)(mavk_bits_from_f32(v[e]) >> 16), (uint16_t)(mavk_bits_from_f32(v[e + 1]) >> 16));
        }
        low[e / 2] = 0;
      }
    } else if (WAY == WAY_F8) {
#pragma unroll
      for (int e = 0; e < 8; e += 2) {
        const float a = v[e] * fit, b = v[e + 1] * fit;
        const uint16_t ah = f16_from_f32(a), bh = f16_from_f32(b);
        high[e / 2] = pair(ah, bh);
        low[e / 2] = pair(f16_from_f32(a - f32_from_f16(ah)), f16_from_f32(b - f32_from_f16(bh)));
      }
    } else {
#pragma unroll
      for (int e = 0; e < 8; e += 2) split_bf16x2(v[e], v[e + 1], &high[e / 2], &low[e / 2]);
    }
    if (WAY == WAY_FMA) {
      float4 *y = (float4 *)cells + (i * steps + s) * 8 + 2 * lane;
      y[0] = make_float4(v[0], v[1], v[2], v[3]);
      y[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
      uint4 *y = (uint4 *)cells + s * columns * 4 + lane;
      y[4 * token_column(i, 0, parts, n)] = make_uint4(high[0], high[1], high[2], high[3]);
      if (parts == 2) y[4 * token_column(i, 1, parts, n)] = make_uint4(low[0], low[1], low[2], low[3]);
    }
    c += (int)blockDim.x;
  }
}

#endif
