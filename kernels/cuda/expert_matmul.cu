/* kernels/cuda/expert_matmul.cu - y[t,a] = (score[t,a] x[t,a or 0]) w[index[t,a]]^T. The product itself is explained in product.h.
 *
 *   x (T, B, D) f32, B = A or 1; w (E, N, D); index (T, A); score (T, A) or none; y (T, A, N) f32.
 *
 * Grid: a block a pair of token and expert and tile of 16 rows; the first of the pairs with one expert does the work of all (16 at a time),
 * the blocks of the others end at once. Bytes: the chosen experts' weights, once each; bound by memory. Weights cannot be asked for before
 * the wait: the index comes from the kernel before. Tolerance 2e-5. */
#include "experts.h"

struct expert_job {
  product_plan plan;
  product_input in;
  mavk_weight w;
  const int32_t *index;
  const float *score; /* NULL: 1 */
  float *y;
  int64_t pairs, A, N, tiles;
  pair_rows rows;
  int32_t way;
};

template <int G>
__global__ void __launch_bounds__(PRODUCT_80_REGISTERS(G)) expert_matmul(const __grid_constant__ expert_job j) {
  MAVK_SHARED(shared);
  product_tokens *tokens = ((product_header *)shared)->tokens;
  float *sums = (float *)(shared + j.plan.sums_at);
  const uint32_t p = blockIdx.x / (uint32_t)j.tiles, tile = blockIdx.x % (uint32_t)j.tiles;
  pdl_launch();
  product_warp<G> w;
  w.begin(j.plan);
  pdl_wait();
  const int n = list_pairs(tokens, j.index, j.score, j.pairs, j.A, p, j.rows, j.way, j.w);
  if (!n) return;
  const int32_t expert = j.index[p];
  w.open(matrix_of(j.w, expert), j.way, tile, 0, j.plan.steps);
  __syncthreads();
  measure(j.in, tokens, 1, (unsigned char *)sums);
  w.clear();
  product_range<G>(j.plan, j.in, w, tokens, shared + j.plan.cells_at, 1, 0, j.plan.steps, false);
  w.finish(j.plan, tokens, sums);
  __syncthreads();
  for (int o = (int)threadIdx.x; o < n * TILE_ROWS; o += (int)blockDim.x) {
    const int i = o / TILE_ROWS, row = o % TILE_ROWS;
    const int64_t r = (int64_t)tile * TILE_ROWS + row;
    if (r < j.N)
      j.y[tokens->to[i] * j.N + r] =
          product_scaled(product_sum(j.plan, sums, j.plan.warps, 0, i, row), tokens, i, weight_scale(j.w, expert, r));
  }
}

int expert_product(mavk_cuda *c, const product_input *in, pair_rows rows, const mavk_weight *w, const int32_t *index, const float *score,
                   float *y, int64_t T, int64_t A) {
  expert_job j;
  j.A = A;
  j.pairs = T * A;
  if (!j.pairs) return 0;
  j.in = *in;
  j.w = *w;
  j.index = index;
  j.score = score;
  j.y = y;
  j.N = w->a.n[1];
  j.tiles = ceil_div(j.N, TILE_ROWS);
  j.rows = rows;
  j.way = product_way(w, c);
  j.plan = product_plan_of(c, in->K, j.tiles, 1, 1, j.pairs, product_parts(w), j.way == WAY_FMA, false, false, sizeof(product_header));
  if (j.plan.shared_bytes > c->shared_bytes_max) return c->fail(c, "a product needs %u bytes of shared memory", j.plan.shared_bytes);
  const int groups = j.way == WAY_FMA ? 0 : product_groups(&j.plan, product_parts(w));
  void (*kernel)(expert_job) = groups == 0 ? expert_matmul<0> : groups == 1 ? expert_matmul<1> : expert_matmul<4>;
  return mavk_run(c, kernel, dim3((unsigned)(j.pairs * j.tiles)), product_threads(&j.plan), j.plan.shared_bytes, j);
}

extern "C" int mavk_cuda_expert_matmul(const mavk_args_expert_matmul *a, mavk_cuda *c) {
  const int64_t T = a->x.n[0], A = a->index.n[1];
  const product_input in = product_input_of(&a->x, a->x.n[2], NULL, 0);
  const bool each = a->x.n[1] == A;
  return expert_product(c, &in, {each ? (int32_t)A : 1, each ? 0 : -1}, &a->w, (const int32_t *)a->index.p, (const float *)a->score.p,
                        (float *)a->y.p, T, A);
}
