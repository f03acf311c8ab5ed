/* kernels/cuda/ffn_up.cu - RMSNorm, gate and up projections and SwiGLU, h = silu(g) u, of the dense layer or the shared expert (slot 0) and
 * of the routed experts (slot 1 + a), in one launch. The product itself is explained in product.h.
 *
 *   x (T, D) f32, norm (D), gate and up (F, D), expert_gate and expert_up (E, F, D), index and score (T, A), h (T, A+1, F) f32.
 *
 * Grid: a block a tile of 16 rows of both gate and up, eight warps for each, over the same staged activations; first the tiles of slot 0
 * (times groups of 16 tokens), then those of every pair of a token and an expert, of which the first with an expert does the work of all
 * (experts.h). So both halves run side by side on blocks of their own, and the shared half has its weights before the wait for the router.
 * For Maverick on 8 ranks and one token: 64 + 64 blocks of 160 KB each. Bytes: gate, up and the chosen experts' once each; bound by memory.
 * Tolerance 2e-5. More than GEMM_ROWS tokens: slot 0 as in gemm.h, the experts in a launch of their own.
 */
#include "experts.h"
#include "gemm.h"

__device__ static __forceinline__ float silu(float x) { return x / (1 + expf(-x)); }

struct up_job {
  product_plan plan;
  product_input in;
  mavk_weight gate, up, expert_gate, expert_up;
  const int32_t *index;
  const float *score;
  float *h; /* (T, S, F) */
  int64_t T, F, A, S;
  uint32_t tiles, groups, skip; /* groups of tokens for slot 0; blocks that another launch does */
  int32_t way, expert_way;

  __device__ __forceinline__ void put(const float *sums, int parts, const product_tokens *t, int64_t tile, bool routed = false,
                                      int32_t expert = 0) const {
    const mavk_weight &gate_weight = routed ? expert_gate : gate, &up_weight = routed ? expert_up : up;
    for (int o = (int)threadIdx.x; o < t->n * TILE_ROWS; o += (int)blockDim.x) {
      const int i = o / TILE_ROWS, row = o % TILE_ROWS;
      const int64_t r = tile * TILE_ROWS + row, to = t->to[i];
      if (r >= F) continue;
      const float g = product_scaled(product_sum(plan, sums, parts, 0, i, row), t, i, weight_scale(gate_weight, expert, r));
      const float u = product_scaled(product_sum(plan, sums, parts, 1, i, row), t, i, weight_scale(up_weight, expert, r));
      const int64_t slot = routed ? to / A * S + 1 + to % A : to * S;
      h[slot * F + r] = silu(g) * u;
    }
  }
};

template <int G>
__global__ void __launch_bounds__(PRODUCT_80_REGISTERS(G)) ffn_up(const __grid_constant__ up_job j) {
  MAVK_SHARED(shared);
  product_tokens *tokens = ((product_header *)shared)->tokens;
  float *sums = (float *)(shared + j.plan.sums_at);
  const uint32_t b = blockIdx.x + j.skip, y = b / j.tiles, tile = b % j.tiles;
  const bool routed = y >= j.groups;
  pdl_launch();
  product_warp<G> w;
  w.begin(j.plan);
  if (!routed && j.plan.prefetch) w.open(matrix_of(w.item ? j.up : j.gate, 0), j.way, tile, 0, j.plan.steps);
  pdl_wait();
  int32_t expert = 0;
  int n;
  if (routed) {
    const int64_t p = y - j.groups;
    n = list_pairs(tokens, j.index, j.score, j.T * j.A, j.A, p, {1, -1}, j.expert_way, j.expert_gate);
    if (!n) return;
    expert = j.index[p];
    w.open(matrix_of(w.item ? j.expert_up : j.expert_gate, expert), j.expert_way, tile, 0, j.plan.steps);
  } else {
    const int64_t first = (int64_t)y * TOKENS_MAX;
    n = (int)(j.T - first < TOKENS_MAX ? j.T - first : TOKENS_MAX);
    list_tokens(tokens, first, n, j.way, j.gate);
    if (!j.plan.prefetch) w.open(matrix_of(w.item ? j.up : j.gate, 0), j.way, tile, 0, j.plan.steps);
  }
  __syncthreads();
  measure(j.in, tokens, 1, (unsigned char *)sums);
  w.clear();
  product_range<G>(j.plan, j.in, w, tokens, shared + j.plan.cells_at, 1, 0, j.plan.steps, false);
  w.finish(j.plan, tokens, sums);
  __syncthreads();
  j.put(sums, j.plan.warps, tokens, tile, routed, expert);
}

extern "C" int mavk_cuda_ffn_up(const mavk_args_ffn_up *a, mavk_cuda *c) {
  up_job j;
  j.T = a->x.n[0], j.S = a->h.n[1], j.F = a->h.n[2], j.A = j.S - 1;
  const bool experts = a->expert_gate.a.p != NULL && j.A > 0;
  if (!j.T) return 0;
  j.in = product_input_of(&a->x, a->x.n[1], &a->norm, a->eps);
  j.gate = a->gate, j.up = a->up, j.expert_gate = a->expert_gate, j.expert_up = a->expert_up;
  j.index = (const int32_t *)a->index.p;
  j.score = (const float *)a->score.p;
  j.h = (float *)a->h.p;
  j.tiles = (uint32_t)ceil_div(j.F, TILE_ROWS);
  j.groups = (uint32_t)ceil_div(j.T, TOKENS_MAX);
  j.way = product_way(&a->gate, c);
  const bool library = gemm_takes(c, &a->gate, j.T) && gemm_takes(c, &a->up, j.T); /* slot 0 */
  bool is_fma = !library && (j.way == WAY_FMA || product_way(&a->up, c) != j.way);
  int parts = product_parts(&a->gate);
  if (experts) {
    j.expert_way = product_way(&a->expert_gate, c);
    is_fma = is_fma || j.expert_way == WAY_FMA || product_way(&a->expert_up, c) != j.expert_way;
    if (product_parts(&a->expert_gate) > parts) parts = product_parts(&a->expert_gate);
  }
  if (is_fma) j.way = j.expert_way = WAY_FMA;
  const int64_t pairs = experts ? j.T * j.A : 0;
  j.plan = product_plan_of(c, j.in.K, j.tiles, 2, 1, pairs > j.T ? pairs : j.T, parts, is_fma, true, false, sizeof(product_header));
  if (j.plan.shared_bytes > c->shared_bytes_max) return c->fail(c, "a product needs %u bytes of shared memory", j.plan.shared_bytes);
  const int groups = is_fma ? 0 : product_groups(&j.plan, parts);
  void (*kernel)(up_job) = groups == 0 ? ffn_up<0> : groups == 1 ? ffn_up<1> : ffn_up<4>;
  const uint32_t dense = j.tiles * j.groups, all = dense + j.tiles * (uint32_t)pairs;
  const bool apart = pairs && (library || c->off & MAVK_CUDA_OFF_SPATIAL);
  j.skip = 0;
  if (library) {
    const mavk_weight *weights[2] = {&a->gate, &a->up};
    MAVK_TRY_CUDA(product_gemm(c, &j, &j.in, j.T, 1, weights, 2, 0));
  } else {
    MAVK_TRY_CUDA(mavk_run(c, kernel, dim3(apart ? dense : all), product_threads(&j.plan), j.plan.shared_bytes, j));
  }
  if (!apart) return 0;
  j.skip = dense;
  return mavk_run(c, kernel, dim3(all - dense), product_threads(&j.plan), j.plan.shared_bytes, j);
}
