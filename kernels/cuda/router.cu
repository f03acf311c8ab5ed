/* kernels/cuda/router.cu - RMSNorm, router logits, top-k of the raw logits (lowest index first on ties), sigmoid of the chosen ones, in one
 * launch. The product itself is explained in product.h.
 *
 *   x (T, D) f32, norm (D), w (E, D), usually bf16; index (T, k) i32, score (T, k) f32.
 *
 * Grid: a block a tile of 16 experts, group of 16 tokens and part of D (for Maverick 8 x 10 blocks). The last block of a group of tokens,
 * by ticket, adds the sums in order and picks: a warp a token. Bytes: w once; too little to be bound by memory: latency. Tolerance 2e-5
 * (scores; an index differs only where two logits are that close).
 */
#include "product_block.h"

struct router_job : product_job {
  int64_t E, k;
  int32_t *index;
  float *score;
};

/* The largest logit that comes after (above, above_index) in order, over a warp; index -1: none. */
__device__ static __forceinline__ void next_best(const float *logits, int E, float above, int above_index, float *best, int *best_index) {
  const int lane = (int)threadIdx.x % WARP;
  float b = 0;
  int at = -1;
  for (int e = lane; e < E; e += WARP) {
    const float v = logits[e];
    const bool left = v < above || (v == above && e > above_index);
    if (left && (at < 0 || v > b)) b = v, at = e;
  }
  for (int i = WARP / 2; i; i /= 2) {
    const float v = __shfl_xor_sync(ALL_LANES, b, i);
    const int e = __shfl_xor_sync(ALL_LANES, at, i);
    if (e >= 0 && (at < 0 || v > b || (v == b && e < at))) b = v, at = e;
  }
  *best = b;
  *best_index = at;
}

template <int G>
__global__ void __launch_bounds__(PRODUCT_80_REGISTERS(G)) router(const __grid_constant__ router_job j) {
  MAVK_SHARED(shared);
  const product_plan &plan = j.plan;
  product_header *header = (product_header *)shared;
  product_tokens *tokens = header->tokens;
  float *sums = (float *)(shared + plan.sums_at),
        *logits = (float *)(shared + plan.cells_at); /* logits: when the activations are not needed any more */
  const int first = (int)blockIdx.z * plan.split_steps, end = first + plan.split_steps < plan.steps ? first + plan.split_steps : plan.steps;
  const int64_t token = (int64_t)blockIdx.y * TOKENS_MAX;
  const int n = (int)(j.tokens - token < TOKENS_MAX ? j.tokens - token : TOKENS_MAX);
  pdl_launch();
  product_warp<G> w;
  w.begin(plan);
  if (plan.prefetch) w.open(matrix_of(j.w, 0), j.way, blockIdx.x, first, end);
  pdl_wait();
  if (!plan.prefetch) w.open(matrix_of(j.w, 0), j.way, blockIdx.x, first, end);
  list_tokens(tokens, token, n, j.way, j.w);
  __syncthreads();
  measure(j.in, tokens, 1, (unsigned char *)sums);
  w.clear();
  product_range<G>(plan, j.in, w, tokens, shared + plan.cells_at, 1, first, end, false);
  w.finish(plan, tokens, sums);
  __syncthreads();
  float *all = j.scratch + blockIdx.y * j.tiles * plan.splits * plan.tokens * TILE_ROWS,
        *mine = all + (blockIdx.x * plan.splits + blockIdx.z) * plan.tokens * TILE_ROWS;
  for (int o = (int)threadIdx.x; o < n * TILE_ROWS; o += (int)blockDim.x)
    __stcg(mine + o, product_sum(plan, sums, plan.warps, 0, o / TILE_ROWS, o % TILE_ROWS));
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool last = atomicAdd(j.tickets + blockIdx.y, 1u) == gridDim.x * gridDim.z - 1;
    if (last) j.tickets[blockIdx.y] = 0;
    header->is_last = last;
  }
  __syncthreads();
  if (!header->is_last) return;
  __threadfence();
  const int E = (int)j.E;
  for (int o = (int)threadIdx.x; o < n * E; o += (int)blockDim.x) {
    const int i = o / E, e = o % E;
    const float *p = all + e / TILE_ROWS * plan.splits * plan.tokens * TILE_ROWS + i * TILE_ROWS + e % TILE_ROWS;
    float sum = 0;
    for (int s = 0; s < plan.splits; s++) sum += __ldcg(p + s * plan.tokens * TILE_ROWS);
    logits[o] = product_scaled(sum, tokens, i, weight_scale(j.w, 0, e));
  }
  __syncthreads();
  const int warps = (int)blockDim.x / WARP, lane = (int)threadIdx.x % WARP;
  for (int i = (int)threadIdx.x / WARP; i < n; i += warps) {
    float above = INFINITY;
    int above_index = -1;
    for (int a = 0; a < (int)j.k; a++) {
      float best;
      int at;
      next_best(logits + i * E, E, above, above_index, &best, &at);
      if (at < 0) at = a, best = NAN; /* only NaN is left: any index that exists */
      if (lane == 0) {
        j.index[(token + i) * j.k + a] = at;
        j.score[(token + i) * j.k + a] = 1 / (1 + expf(-best));
      }
      above = best, above_index = at;
    }
  }
}

extern "C" int mavk_cuda_router(const mavk_args_router *a, mavk_cuda *c) {
  const int64_t T = a->x.n[0];
  router_job j;
  if (!product_job_init(&j, c, &a->x, &a->norm, a->eps, &a->w, T)) return 1;
  j.E = a->w.a.n[0];
  j.k = a->index.n[1];
  const size_t logits = j.plan.cells_at + (size_t)(j.plan.tokens * j.E * 4),
               group = (size_t)(j.tiles * j.plan.splits * j.plan.tokens * TILE_ROWS * 4);
  if (logits > j.plan.shared_bytes) j.plan.shared_bytes = (uint32_t)logits;
  if (j.plan.shared_bytes > c->shared_bytes_max) return c->fail(c, "%lld experts are more than the router can choose from", (long long)j.E);
  int64_t most = (int64_t)(c->scratch_bytes / group);
  if (most > MAVK_CUDA_TICKETS) most = MAVK_CUDA_TICKETS;
  if (!most) return c->fail(c, "a router needs %zu bytes of scratch memory", group);
  most *= TOKENS_MAX;
  for (int64_t first = 0; first < T; first += most) {
    const int64_t n = T - first < most ? T - first : most;
    j.tokens = n;
    j.in.x = (const float *)a->x.p + first * j.in.K;
    j.index = (int32_t *)a->index.p + first * j.k;
    j.score = (float *)a->score.p + first * j.k;
    const dim3 grid((unsigned)j.tiles, (unsigned)ceil_div(n, TOKENS_MAX), (unsigned)j.plan.splits);
    const int groups = j.way == WAY_FMA ? 0 : product_groups(&j.plan, product_parts(&a->w));
    void (*kernel)(router_job) = groups == 0 ? router<0> : groups == 1 ? router<1> : router<4>;
    MAVK_TRY_CUDA(mavk_run(c, kernel, grid, product_threads(&j.plan), j.plan.shared_bytes, j));
  }
  return 0;
}
