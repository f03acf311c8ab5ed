/* kernels/cuda/gemm.cu - what a product of many rows needs before the library can do it: rows of activations and slices of weights as it
 * reads them. gemm.h has the whole. */
#include "gemm.h"

/* Two codes, the first in the lowest byte, as bf16: exact. */
__device__ static __forceinline__ uint32_t bf16x2_from_codes(uint32_t c) {
  const float a = mavk_f32_from_f8((uint8_t)(c & 0xffu)), b = mavk_f32_from_f8((uint8_t)(c >> 8));
  return pair((uint16_t)(mavk_bits_from_f32(a) >> 16), (uint16_t)(mavk_bits_from_f32(b) >> 16));
}

/* ---- activations ------------------------------------------------------------------------------------------------------------------
 * Grid: a block a row, those that fill the pitch included: they are zeros. Bytes: the row, two or three times out of the cache; 4 K
 * written, or K of W8A8. */

#define STAGE_THREADS 256

struct stage_job {
  product_input in;
  void *to;
  float *step;
  int64_t first, rows, stride; /* of x */
  int32_t act, parts;
  bool codes;
  float in_scale;
};

__global__ void __launch_bounds__(STAGE_THREADS, 1) gemm_stage_row(const __grid_constant__ stage_job j) {
  MAVK_SHARED(shared);
  product_tokens *t = ((product_header *)shared)->tokens;
  pdl_launch();
  pdl_wait();
  const int64_t row = blockIdx.x, part = gridDim.x * j.in.K; /* elements of a part */
  if (row >= j.rows) {
    for (int k = 4 * (int)threadIdx.x; k < j.in.K; k += 4 * STAGE_THREADS) {
      const int64_t at = row * j.in.K + k;
      if (j.codes)
        *(uint32_t *)((uint8_t *)j.to + at) = 0;
      else
        for (int i = 0; i < j.parts; i++) *(uint2 *)((uint16_t *)j.to + i * part + at) = make_uint2(0, 0);
    }
    return;
  }
  if (threadIdx.x == 0) {
    t->n = 1, t->way = WAY_BF16, t->act = j.act, t->in_scale = j.in_scale, t->score[0] = 1;
    t->from[0] = (int32_t)((j.first + row) * j.stride);
  }
  __syncthreads();
  measure(j.in, t, 1, shared + sizeof(product_header));
  if (threadIdx.x == 0 && j.parts == 1) j.step[row] = t->step[0];
  const float *x = input_row(j.in, t, 0);
  const float rms = t->rms[0], fit = t->fit[0];
  for (int k = 4 * (int)threadIdx.x; k < j.in.K; k += 4 * STAGE_THREADS) {
    float v[4], f[4];
    columns_x<4>(j.in, x, k, v);
    if (j.in.norm) {
      columns_norm<4>(j.in, k, f);
#pragma unroll
      for (int i = 0; i < 4; i++) v[i] = v[i] * rms * f[i];
    }
    const int64_t at = row * j.in.K + k;
    if (j.parts == 2) {
      uint32_t high[2], low[2];
#pragma unroll
      for (int i = 0; i < 4; i += 2) split_bf16x2(v[i], v[i + 1], &high[i / 2], &low[i / 2]);
      *(uint2 *)((uint16_t *)j.to + at) = make_uint2(high[0], high[1]);
      *(uint2 *)((uint16_t *)j.to + part + at) = make_uint2(low[0], low[1]);
      continue;
    }
    const float by = t->by[0], inverse = t->inverse[0];
    uint32_t codes[2];
#pragma unroll
    for (int i = 0; i < 4; i += 2) codes[i / 2] = f8x2_from_f32(quotient(v[i] * fit, by, inverse), quotient(v[i + 1] * fit, by, inverse));
    if (j.codes) {
      *(uint32_t *)((uint8_t *)j.to + at) = codes[0] | codes[1] << 16;
    } else {
      *(uint2 *)((uint16_t *)j.to + at) = make_uint2(bf16x2_from_codes(codes[0]), bf16x2_from_codes(codes[1]));
    }
  }
}

int gemm_stage(const gemm_plan *g, mavk_cuda *c, const product_input *in, const mavk_weight *w, int64_t first, int64_t n, int64_t stride) {
  const stage_job j = {*in, g->x, g->step, first, n, stride, w->act, g->parts, g->dtype == MAVK_F8, w->in_scale};
  const size_t space = sizeof(product_header) + 12 * STAGE_THREADS / WARP;
  return mavk_run(c, gemm_stage_row, dim3((unsigned)gemm_pitch(n)), dim3(STAGE_THREADS), space, j);
}

/* ---- weights of codes -------------------------------------------------------------------------------------------------------------------
 * Grid: a warp a tile of 16 rows and 32 columns, eight warps a block; a lane has the sixteen codes that it would have in the layout
 * m16n8k16, as eight pairs of columns. Bytes: 1 in and 1 or 2 out for every code. */

#define WIDEN_WARPS 8

struct widen_job {
  const uint8_t *from; /* the slice's first row */
  void *to;
  int64_t tiles, across, K, stride; /* tiles in all, in a row of tiles */
  bool shuffled, codes;             /* as it lies; as it is asked for */
};

__global__ void __launch_bounds__(WIDEN_WARPS *WARP) gemm_widen_tiles(const __grid_constant__ widen_job j) {
  pdl_launch();
  pdl_wait();
  const int64_t tile = (int64_t)blockIdx.x * WIDEN_WARPS + threadIdx.x / WARP;
  if (tile >= j.tiles) return;
  const int lane = (int)threadIdx.x % WARP;
  const int64_t row = tile / j.across * MAVK_MMA_ROWS, column = tile % j.across * MAVK_MMA_COLUMNS;
  uint8_t packed[MAVK_MMA_LANE_BYTES];
  if (j.shuffled) {
    const uint4 v = load_once(j.from + tile * MAVK_MMA_TILE + lane * MAVK_MMA_LANE_BYTES);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < MAVK_MMA_LANE_BYTES; i++) packed[i] = (uint8_t)(words[i / 4] >> 8 * (i % 4));
  }
  /* byte 4 g + 2 (k % 2) + r / 8: columns 8 g + k of rows lane / 4 and lane / 4 + 8 */
#pragma unroll
  for (int g = 0; g < 4; g++) {
    const int64_t k = column + 8 * g + 2 * (lane % 4);
    if (k >= j.K) continue; /* half a tile */
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int64_t r = row + lane / 4 + 8 * half;
      const uint8_t *row_codes = j.from + r * j.stride + k;
      const uint32_t codes =
          j.shuffled ? packed[4 * g + half] | (uint32_t)packed[4 * g + 2 + half] << 8 : row_codes[0] | (uint32_t)row_codes[1] << 8;
      if (j.codes)
        *(uint16_t *)((uint8_t *)j.to + r * j.K + k) = (uint16_t)codes;
      else
        *(uint32_t *)((uint16_t *)j.to + r * j.K + k) = bf16x2_from_codes(codes);
    }
  }
}

static int widen(const gemm_plan *g, mavk_cuda *c, const mavk_weight *w, int64_t column, int64_t m) {
  const bool shuffled = w->layout == MAVK_LAYOUT_M16N8K16;
  const int64_t across = ceil_div(g->K, MAVK_MMA_COLUMNS), tiles = m / MAVK_MMA_ROWS * across, stride = shuffled ? g->K : w->a.s[0];
  const widen_job j = {(const uint8_t *)w->a.p + column * stride, g->weight, tiles, across, g->K, stride, shuffled, g->dtype == MAVK_F8};
  return mavk_run(c, gemm_widen_tiles, dim3((unsigned)ceil_div(tiles, WIDEN_WARPS)), dim3(WIDEN_WARPS * WARP), 0, j);
}

/* Whether the library reads a weight where it lies. */
static bool is_in_place(const mavk_weight *w) {
  if (w->a.dtype == MAVK_BF16) return true;
  return w->act != MAVK_ACT_NONE && w->layout == MAVK_LAYOUT_ROWS && w->a.s[0] % 16 == 0 && (uintptr_t)w->a.p % 16 == 0;
}

int gemm_sums(const gemm_plan *g, mavk_cuda *c, const mavk_weight *w, int64_t column, int64_t m, int64_t n, int item) {
  mavk_cuda_gemm product = {g->dtype, g->x, g->weight, g->sums[item], gemm_pitch(n) * g->parts, m, g->K, g->K};
  if (is_in_place(w)) {
    product.w_stride = w->a.s[0];
    product.w = (const char *)w->a.p + column * w->a.s[0] * (g->dtype == MAVK_F8 ? 1 : 2);
  } else {
    MAVK_TRY_CUDA(widen(g, c, w, column, m));
  }
  return c->gemm(c, &product);
}

/* ---- scratch memory ------------------------------------------------------------------------------------------------------------------ */

static size_t aligned_up(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

int gemm_plan_make(gemm_plan *g, mavk_cuda *c, const mavk_weight *const *w, int items, size_t reserved) {
  const bool rounds = w[0]->act != MAVK_ACT_NONE;
  bool widens = false;
  *g = {};
  g->K = w[0]->a.n[1], g->N = w[0]->a.n[0];
  g->dtype = w[0]->a.dtype == MAVK_F8 && rounds ? MAVK_F8 : MAVK_BF16;
  g->parts = rounds ? 1 : 2;
  for (int i = 0; i < items; i++) widens = widens || !is_in_place(w[i]);
  const size_t all = c->scratch_bytes > reserved ? c->scratch_bytes - reserved : 0, row = (size_t)g->K * (g->dtype == MAVK_F8 ? 1 : 2);
  const int64_t most = (int64_t)(all / 4 / (row * (size_t)g->parts)) / 16 * 16;
  g->rows = most < GEMM_CHUNK_ROWS ? most : GEMM_CHUNK_ROWS;
  const size_t x_bytes = aligned_up((size_t)(g->parts * g->rows) * row), step_bytes = aligned_up((size_t)g->rows * sizeof(float));
  const size_t left = all > x_bytes + step_bytes + 1024 ? all - x_bytes - step_bytes - 1024 : 0; /* 1024: what aligning may add */
  const size_t column = (widens ? row : 0) + (size_t)(items * g->parts * g->rows) * sizeof(float);
  int64_t slice = (int64_t)(left / column) / 16 * 16;
  if (!g->rows || !slice) return c->fail(c, "a product of %lld columns needs more than %zu bytes of scratch memory", (long long)g->K, all);
  if (slice < g->N) { /* slices of about the same size, in whole tiles of the library where it can be */
    const int64_t even = ceil_div(g->N, ceil_div(g->N, slice)), unit = ceil_div(even, 128) * 128 <= slice ? 128 : 16;
    slice = ceil_div(even, unit) * unit;
  }
  g->slice = slice < g->N ? slice : g->N;
  unsigned char *p = (unsigned char *)c->scratch;
  g->x = p, p += x_bytes;
  g->step = (float *)p, p += step_bytes;
  g->weight = p, p += widens ? aligned_up((size_t)g->slice * row) : 0;
  for (int i = 0; i < items; i++) g->sums[i] = (float *)p, p += aligned_up((size_t)(g->parts * g->rows * g->slice) * sizeof(float));
  return 0;
}
