/* kernels/cuda/product_block.h - what a block does with tiles, from product.h, activations.h and tile.h: the order of things.
 *
 *   open       the warp's first weights are on their way (before the wait, if they do not depend on the kernel before)
 *   pdl_wait
 *   tokens     lists of rows; measure: what their norm and rounding need
 *   pieces     stage, barrier, multiply, barrier
 *   fold       warps to shared memory; join: blocks that share a tile's steps
 *   put        the op's own end, a value at a time
 */
#ifndef MAVK_CUDA_PRODUCT_BLOCK_H
#define MAVK_CUDA_PRODUCT_BLOCK_H

#include "tile.h"

/* Before the sums in shared memory. */
struct product_header {
  product_tokens tokens[2];
  int32_t is_last, spare[3];
};

/* A warp's part. G groups of eight columns; G == 0: multiply-adds. */
template <int G>
struct product_warp {
  weight_stream<product_depth(G)> stream;
  float sum[G][2][4];
  int item, warp, warps;

  __device__ __forceinline__ void begin(const product_plan &plan) {
    const int w = (int)threadIdx.x / WARP;
    warps = plan.warps, item = w >> plan.warps_log2, warp = w & (warps - 1);
    stream.count = 0;
  }
  __device__ __forceinline__ void open(const product_matrix &m, int way, int64_t tile, int first, int end) {
    if (way == WAY_F8)
      stream.template open<WAY_F8>(m, tile, first, end, warp, warps);
    else
      stream.template open<WAY_BF16>(m, tile, first, end, warp, warps);
  }
  __device__ __forceinline__ void close() { stream.count = 0; }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int q = 0; q < G; q++)
#pragma unroll
      for (int i = 0; i < 8; i++) sum[q][i / 4][i % 4] = 0;
  }
  /* Steps p .. p + n of a range that began at `first`, whose cells are there. */
  __device__ __forceinline__ void take(const product_plan &plan, const unsigned char *cells, const product_tokens *t, int first, int p,
                                       int n, int K) {
    const cell_place place = cell_place_of(t->n, t->act == MAVK_ACT_NONE ? 2 : 1);
    const int it0 = (p - first) >> plan.warps_log2, it1 = it0 + ((n + warps - 1) >> plan.warps_log2);
    cells += warp * place.columns * 64;
    (void)K;
    if (t->way == WAY_F8)
      multiply<WAY_F8, G>(stream, sum, it0, it1, cells, place, warps);
    else
      multiply<WAY_BF16, G>(stream, sum, it0, it1, cells, place, warps);
  }
  __device__ __forceinline__ void finish(const product_plan &plan, const product_tokens *t, float *sums) {
    fold<G>(sum, sums + (item * warps + warp) * plan.tokens * SUM_STRIDE, t->n, t->act == MAVK_ACT_NONE ? 2 : 1);
  }
};

template <>
struct product_warp<0> {
  product_matrix m;
  int64_t tile;
  float sum[2][TOKENS_MAX];
  int item, warp, warps;
  bool is_open;

  __device__ __forceinline__ void begin(const product_plan &plan) {
    const int w = (int)threadIdx.x / WARP;
    warps = plan.warps, item = w >> plan.warps_log2, warp = w & (warps - 1), is_open = false;
  }
  __device__ __forceinline__ void open(const product_matrix &matrix, int, int64_t which, int, int) {
    m = matrix, tile = which, is_open = true;
  }
  __device__ __forceinline__ void close() { is_open = false; }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < TOKENS_MAX; i++) sum[0][i] = sum[1][i] = 0;
  }
  __device__ __forceinline__ void take(const product_plan &, const unsigned char *cells, const product_tokens *t, int, int p, int n,
                                       int K) {
    if (is_open) multiply_fma(m, tile, sum, cells, t->n, p * STEP_COLUMNS, n, K, warp, warps);
  }
  __device__ __forceinline__ void finish(const product_plan &plan, const product_tokens *t, float *sums) {
    fold_fma(sum, sums + (item * warps + warp) * plan.tokens * SUM_STRIDE, t->n);
  }
};

/* Tokens first .. first + n of a batch, one after the other. Thread 0 .. n of the block. */
__device__ static __forceinline__ void list_tokens(product_tokens *t, int64_t first, int n, int way, const mavk_weight &w) {
  const int i = (int)threadIdx.x;
  if (i == 0) t->n = n, t->way = way, t->act = w.act, t->in_scale = w.in_scale;
  if (i < n) t->from[i] = t->to[i] = (int32_t)(first + i), t->score[i] = 1;
}

template <int G>
__device__ static __forceinline__ void stage_way(const product_input &in, const product_tokens *t, unsigned char *cells, int k, int steps) {
  if (G == 0)
    stage<WAY_FMA>(in, t, cells, k, steps);
  else if (t->way == WAY_F8)
    stage<WAY_F8>(in, t, cells, k, steps);
  else
    stage<WAY_BF16>(in, t, cells, k, steps);
}

/* Steps first .. end, piece by piece, for every warp of the block. regions: 1, or one for every item, each with its tokens. staged: the
 * cells are there already (one piece). */
template <int G>
__device__ static __forceinline__ void product_range(const product_plan &plan, const product_input &in, product_warp<G> &w,
                                                     const product_tokens *tokens, unsigned char *cells, int regions, int first, int end,
                                                     bool staged) {
  const int region = regions == 1 ? 0 : w.item;
  for (int p = first; p < end; p += plan.piece) {
    const int n = end - p < plan.piece ? end - p : plan.piece;
    if (!staged) {
      if (p != first) __syncthreads();
      for (int r = 0; r < regions; r++) stage_way<G>(in, tokens + r, cells + r * plan.cells_bytes, p * STEP_COLUMNS, n);
      __syncthreads();
    }
    w.take(plan, cells + region * plan.cells_bytes, tokens + region, first, p, n, in.K);
  }
}

/* The sum of a row of an item's tile with a token: its parts in order. */
__device__ static __forceinline__ float product_sum(const product_plan &plan, const float *sums, int parts, int item, int token, int row) {
  const float *p = sums + (item * plan.warps * plan.tokens + token) * SUM_STRIDE + row;
  float sum = 0;
  for (int i = 0; i < parts; i++) sum += p[i * plan.tokens * SUM_STRIDE];
  return sum;
}

/* Scaled as the token and the weight ask. */
__device__ static __forceinline__ float product_scaled(float sum, const product_tokens *t, int token, float scale) {
  sum *= t->back[token];
  if (t->step[token] > 0) sum *= t->step[token];
  return sum * scale;
}

/* After fold and a barrier. Blocks that share a tile (number `share`) hand in their sums; how many parts product_sum has to add: 0 in all
 * but the last of them, which has nothing more to do. scratch: (shares, splits, tokens, 16) floats. One item. */
__device__ static __forceinline__ int product_join(const product_plan &plan, product_header *header, float *sums, int n, float *scratch,
                                                   uint32_t *tickets, int64_t share, int split) {
  if (plan.splits == 1) return plan.warps;
  float *mine = scratch + (share * plan.splits + split) * plan.tokens * TILE_ROWS;
  for (int o = (int)threadIdx.x; o < n * TILE_ROWS; o += (int)blockDim.x)
    __stcg(mine + o, product_sum(plan, sums, plan.warps, 0, o / TILE_ROWS, o % TILE_ROWS));
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool last = atomicAdd(tickets + share, 1u) == (uint32_t)plan.splits - 1;
    if (last) tickets[share] = 0;
    header->is_last = last;
  }
  __syncthreads();
  if (!header->is_last) return 0;
  __threadfence();
  const float *all = scratch + share * plan.splits * plan.tokens * TILE_ROWS;
  for (int o = (int)threadIdx.x; o < n * TILE_ROWS; o += (int)blockDim.x) {
    float sum = 0;
    for (int s = 0; s < plan.splits; s++) sum += __ldcg(all + s * plan.tokens * TILE_ROWS + o);
    sums[o / TILE_ROWS * SUM_STRIDE + o % TILE_ROWS] = sum;
  }
  __syncthreads();
  return 1;
}

/* ---- y = put(norm(x) w^T): norm_qkv, proj_residual, lm_head, matmul --------------------------------------------------------------------
 */

/* What their jobs begin with. Grid: tiles (or fewer: a block goes on with the next free one), groups of 16 tokens, splits. */
struct product_job {
  product_plan plan;
  product_input in;
  mavk_weight w;
  int64_t tokens, tiles;
  int32_t way;
  float *scratch;
  uint32_t *tickets;
};

/* Sets everything up; the tokens that one launch may have are its result, 0 after c->fail. */
static inline int64_t product_job_init(product_job *j, mavk_cuda *c, const mavk_array *x, const mavk_array *norm, float eps,
                                       const mavk_weight *w, int64_t tokens) {
  const int64_t N = w->a.n[0], K = w->a.n[1];
  j->in = product_input_of(x, K, norm, eps);
  j->w = *w;
  j->tokens = tokens;
  j->tiles = ceil_div(N, TILE_ROWS);
  j->way = product_way(w, c);
  j->scratch = (float *)c->scratch;
  j->tickets = c->tickets;
  j->plan = product_plan_of(c, K, j->tiles, 1, 1, tokens, product_parts(w), j->way == WAY_FMA, norm != NULL, true, sizeof(product_header));
  if (j->plan.shared_bytes > c->shared_bytes_max) return c->fail(c, "a product needs %u bytes of shared memory", j->plan.shared_bytes), 0;
  if (j->plan.splits == 1) return tokens;
  const int64_t bytes = j->tiles * j->plan.splits * j->plan.tokens * TILE_ROWS * 4;
  int64_t groups = (int64_t)(c->scratch_bytes / (size_t)bytes);
  if (groups > MAVK_CUDA_TICKETS / j->tiles) groups = MAVK_CUDA_TICKETS / j->tiles;
  if (!groups) return c->fail(c, "a product needs %lld bytes of scratch memory", (long long)bytes), 0;
  return groups * TOKENS_MAX;
}

/* J::put(sums, parts, tokens, tile) takes the results of a tile. LOOP: there may be fewer blocks than tiles. */
template <int G, bool LOOP, typename J>
__device__ static __forceinline__ void product_block(const J &j, unsigned char *shared) {
  const product_plan &plan = j.plan;
  product_header *header = (product_header *)shared;
  product_tokens *tokens = header->tokens;
  float *sums = (float *)(shared + plan.sums_at);
  unsigned char *cells = shared + plan.cells_at;
  const int first = (int)blockIdx.z * plan.split_steps, end = first + plan.split_steps < plan.steps ? first + plan.split_steps : plan.steps;
  const int64_t token = (int64_t)blockIdx.y * TOKENS_MAX;
  const int n = (int)(j.tokens - token < TOKENS_MAX ? j.tokens - token : TOKENS_MAX);
  pdl_launch();
  const product_matrix m = matrix_of(j.w, 0);
  product_warp<G> w;
  w.begin(plan);
  if (plan.prefetch) w.open(m, j.way, blockIdx.x, first, end);
  pdl_wait();
  if (!plan.prefetch) w.open(m, j.way, blockIdx.x, first, end);
  list_tokens(tokens, token, n, j.way, j.w);
  __syncthreads();
  measure(j.in, tokens, 1, (unsigned char *)sums);
  bool staged = false;
  for (int64_t tile = blockIdx.x;;) {
    w.clear();
    product_range<G>(plan, j.in, w, tokens, cells, 1, first, end, staged);
    staged = end - first <= plan.piece;
    w.finish(plan, tokens, sums);
    const int64_t next = tile + gridDim.x;
    if (LOOP && next < j.tiles) w.open(m, j.way, next, first, end);
    __syncthreads();
    const int parts = product_join(plan, header, sums, n, j.scratch, j.tickets, (int64_t)blockIdx.y * j.tiles + tile, (int)blockIdx.z);
    if (parts) j.put(sums, parts, tokens, tile);
    if (!LOOP || next >= j.tiles) break;
    tile = next;
    __syncthreads();
  }
}

#endif
