/* kernels/cuda/ffn_down.cu - y = x + all_reduce(sum over slots of h_s down_s^T), in one launch. The product itself is explained in
 * product.h. One rank so far.
 *
 *   h (T, S, F) f32, S = 1 + A; down (D, F), expert_down (E, D, F), index (T, A), x and y (T, D) f32.
 *
 * Grid: a block a tile of 16 rows of D and up to 16 tokens; it does slot 0 and every expert that its tokens chose, each once (16 pairs at a
 * time), two side by side, so the sum over slots stays in the block: slot by slot in order, then x. The shared weights are on their way
 * before the wait, an expert's while the one before is finished. For Maverick on 8 ranks and one token: 320 blocks of eight warps and 32
 * KB. Bytes: down and the chosen experts' once each; bound by memory. Tolerance 2e-5.
 *
 * More than GEMM_ROWS tokens: the experts' results go to scratch memory, each expert's weights read once for up to 16 of all tokens, and
 * the end of slot 0's product (gemm.h) adds them in the same order.
 */
#include "experts.h"
#include "gemm.h"

struct down_job {
  product_plan plan;
  product_input in;
  mavk_weight down, expert_down;
  const int32_t *index;
  const float *x;
  float *y;
  int64_t T, D, A, S;
  int32_t tokens, way, expert_way; /* tokens of a block; plan.tokens is what one expert may get of them */
  uint32_t lists_at, slots_at;     /* in shared memory: what is known of pairs; results by token and slot, 16 rows each */
};

/* Of the block's pairs, in shared memory. */
struct pair_lists {
  int32_t *expert, *rank, *total, *leader; /* its expert; its number among the pairs with it, of so many; the pair that leads group i */
};

__device__ static __forceinline__ pair_lists pair_lists_at(unsigned char *p, int most) {
  int32_t *at = (int32_t *)p;
  const pair_lists l = {at, at + most, at + 2 * most, at + 3 * most};
  return l;
}

/* Groups by expert; returns how many there are. All threads; ends with a barrier. */
__device__ static __forceinline__ int group_pairs(const pair_lists &l, const int32_t *index, int pairs) {
  int groups = 0;
  if (pairs == 1) {
    if (threadIdx.x == 0) *l.expert = *index, *l.rank = 0, *l.total = 1, *l.leader = 0;
    __syncthreads();
    return 1;
  }
  for (int p = (int)threadIdx.x; p < pairs; p += (int)blockDim.x) l.expert[p] = index[p];
  __syncthreads();
  for (int first = 0; first < pairs; first += (int)blockDim.x) {
    const int p = first + (int)threadIdx.x;
    bool leads = false;
    if (p < pairs) {
      int rank = 0, total = 0;
      for (int q = 0; q < pairs; q++) {
        const int same = l.expert[q] == l.expert[p];
        total += same;
        if (q < p) rank += same;
      }
      l.rank[p] = rank, l.total[p] = total;
      leads = rank % TOKENS_MAX == 0;
    }
    groups += __syncthreads_count(leads);
  }
  for (int p = (int)threadIdx.x; p < pairs; p += (int)blockDim.x) {
    if (l.rank[p] % TOKENS_MAX) continue;
    int place = 0;
    for (int q = 0; q < p; q++) place += l.rank[q] % TOKENS_MAX == 0;
    l.leader[place] = p;
  }
  __syncthreads();
  return groups;
}

/* The tokens of the group that pair `leader` leads. from: row of h; to: token of the block and slot. */
__device__ static __forceinline__ void list_group(product_tokens *t, const pair_lists &l, int pairs, int leader, const down_job &j,
                                                  int64_t token) {
  const int rest = l.total[leader] - l.rank[leader];
  if (threadIdx.x == 0) {
    t->n = rest < TOKENS_MAX ? rest : TOKENS_MAX;
    t->way = j.expert_way, t->act = j.expert_down.act, t->in_scale = j.expert_down.in_scale;
  }
  for (int p = (int)threadIdx.x; p < pairs; p += (int)blockDim.x) {
    if (l.expert[p] != l.expert[leader] || l.rank[p] / TOKENS_MAX != l.rank[leader] / TOKENS_MAX) continue;
    const int place = l.rank[p] % TOKENS_MAX, slot = p / (int)j.A * (int)j.S + 1 + p % (int)j.A;
    t->from[place] = (int32_t)(token * j.S) + slot;
    t->to[place] = slot;
    t->score[place] = 1;
  }
}

template <int G>
__global__ void __launch_bounds__(PRODUCT_96_REGISTERS(G)) ffn_down(const __grid_constant__ down_job j) {
  MAVK_SHARED(shared);
  const product_plan &plan = j.plan;
  product_tokens *tokens = ((product_header *)shared)->tokens;
  float *sums = (float *)(shared + plan.sums_at), *slots = (float *)(shared + j.slots_at);
  const uint32_t tile = blockIdx.x;
  const int64_t token = (int64_t)blockIdx.y * j.tokens;
  const int n = (int)(j.T - token < j.tokens ? j.T - token : j.tokens), pairs = n * (int)j.A;
  const pair_lists lists = pair_lists_at(shared + j.lists_at, j.tokens * (int)j.A);
  pdl_launch();
  product_warp<G> w;
  w.begin(plan);
  if (plan.prefetch && w.item == 0) w.open(matrix_of(j.down, 0), j.way, tile, 0, plan.steps);
  pdl_wait();
  if (!plan.prefetch && w.item == 0) w.open(matrix_of(j.down, 0), j.way, tile, 0, plan.steps);
  const int work = 1 + (pairs ? group_pairs(lists, j.index + token * j.A, pairs) : 0); /* slot 0, then the experts */
  if (w.item == 1 && work > 1) w.open(matrix_of(j.expert_down, lists.expert[lists.leader[0]]), j.expert_way, tile, 0, plan.steps);
  for (int first = 0; first < work; first += plan.items) {
    for (int i = 0; i < plan.items; i++) {
      product_tokens *t = tokens + i;
      if (first + i == 0) {
        list_tokens(t, 0, n, j.way, j.down);
        if ((int)threadIdx.x < n)
          t->from[threadIdx.x] = (int32_t)((token + threadIdx.x) * j.S), t->to[threadIdx.x] = (int32_t)(threadIdx.x * j.S);
      } else if (first + i < work) {
        list_group(t, lists, pairs, lists.leader[first + i - 1], j, token);
      } else if (threadIdx.x == 0) {
        t->n = 0, t->way = j.expert_way, t->act = j.expert_down.act;
      }
    }
    __syncthreads();
    measure(j.in, tokens, plan.items, (unsigned char *)sums);
    w.clear();
    product_range<G>(plan, j.in, w, tokens, shared + plan.cells_at, plan.items, 0, plan.steps, false);
    w.finish(plan, tokens + w.item, sums);
    const int next = first + plan.items + w.item;
    if (next < work)
      w.open(matrix_of(j.expert_down, lists.expert[lists.leader[next - 1]]), j.expert_way, tile, 0, plan.steps);
    else
      w.close();
    __syncthreads();
    for (int i = 0; i < plan.items; i++) {
      const product_tokens *t = tokens + i;
      const bool routed = first + i > 0;
      const int32_t expert = routed && first + i < work ? lists.expert[lists.leader[first + i - 1]] : 0;
      for (int o = (int)threadIdx.x; o < t->n * TILE_ROWS; o += (int)blockDim.x) {
        const int at = o / TILE_ROWS, row = o % TILE_ROWS;
        const int64_t r = (int64_t)tile * TILE_ROWS + row;
        if (r >= j.D) continue;
        const float scale = weight_scale(routed ? j.expert_down : j.down, expert, r);
        slots[t->to[at] * TILE_ROWS + row] = product_scaled(product_sum(plan, sums, plan.warps, i, at, row), t, at, scale);
      }
    }
    __syncthreads();
  }
  for (int o = (int)threadIdx.x; o < n * TILE_ROWS; o += (int)blockDim.x) {
    const int i = o / TILE_ROWS, row = o % TILE_ROWS;
    const int64_t r = (int64_t)tile * TILE_ROWS + row, at = (token + i) * j.D + r;
    if (r >= j.D) continue;
    float sum = 0;
    for (int s = 0; s < (int)j.S; s++) sum += slots[(i * (int)j.S + s) * TILE_ROWS + row];
    j.y[at] = sum + j.x[at];
  }
}

/* The end of slot 0's product, many tokens. */
struct down_end {
  product_plan plan;
  mavk_weight down;
  const float *routed, *x; /* (T, A, D), (T, D) */
  float *y;
  int64_t D, A;

  __device__ __forceinline__ void put(const float *sums, int parts, const product_tokens *t, int64_t tile) const {
    for (int o = (int)threadIdx.x; o < t->n * TILE_ROWS; o += (int)blockDim.x) {
      const int i = o / TILE_ROWS, row = o % TILE_ROWS;
      const int64_t r = tile * TILE_ROWS + row, token = t->to[i];
      if (r >= D) continue;
      float sum = product_scaled(product_sum(plan, sums, parts, 0, i, row), t, i, weight_scale(down, 0, r));
      for (int64_t s = 0; s < A; s++) sum += routed[(token * A + s) * D + r];
      y[token * D + r] = sum + x[token * D + r];
    }
  }
};

/* Tokens by chunks whose routed results fit half of scratch memory; how much is reserved for them does not depend on T. */
static int many_down(const mavk_args_ffn_down *a, mavk_cuda *c, const product_input *in) {
  const int64_t T = a->h.n[0], S = a->h.n[1], A = S - 1, D = a->x.n[1], each = A * D * (int64_t)sizeof(float);
  int64_t most = each ? (int64_t)(c->scratch_bytes / 2) / each : GEMM_CHUNK_ROWS;
  if (most > GEMM_CHUNK_ROWS) most = GEMM_CHUNK_ROWS;
  if (most < 1) return c->fail(c, "%lld experts a token need more scratch memory than there is", (long long)A);
  const size_t reserved = (size_t)(most * each);
  float *routed = (float *)((char *)c->scratch + c->scratch_bytes - reserved);
  const mavk_weight *down = &a->down;
  for (int64_t first = 0; first < T; first += most) {
    const int64_t n = T - first < most ? T - first : most;
    product_input rows = *in;
    rows.x += first * S * in->K;
    const int32_t *index = (const int32_t *)a->index.p + first * A;
    if (A) MAVK_TRY_CUDA(expert_product(c, &rows, {(int32_t)S, 1}, &a->expert_down, index, NULL, routed, n, A));
    down_end end = {{}, a->down, routed, (const float *)a->x.p + first * D, (float *)a->y.p + first * D, D, A};
    MAVK_TRY_CUDA(product_gemm(c, &end, &rows, n, S, &down, 1, reserved));
  }
  return 0;
}

extern "C" int mavk_cuda_ffn_down(const mavk_args_ffn_down *a, mavk_cuda *c) {
  if (a->comm.ranks != 1) return c->fail(c, "%d ranks: the cuda backend has only one so far", (int)a->comm.ranks);
  down_job j;
  j.T = a->h.n[0], j.S = a->h.n[1], j.A = j.S - 1, j.D = a->x.n[1];
  if (!j.T) return 0;
  const bool experts = j.A > 0;
  j.in = product_input_of(&a->h, a->h.n[2], NULL, 0);
  if (gemm_takes(c, &a->down, j.T)) return many_down(a, c, &j.in);
  j.down = a->down, j.expert_down = a->expert_down;
  j.index = (const int32_t *)a->index.p;
  j.x = (const float *)a->x.p;
  j.y = (float *)a->y.p;
  j.way = product_way(&a->down, c);
  bool is_fma = j.way == WAY_FMA;
  int parts = product_parts(&a->down);
  if (experts) {
    j.expert_way = product_way(&a->expert_down, c);
    is_fma = is_fma || j.expert_way == WAY_FMA;
    if (product_parts(&a->expert_down) > parts) parts = product_parts(&a->expert_down);
  }
  if (is_fma) j.way = j.expert_way = WAY_FMA;
  const int64_t tiles = ceil_div(j.D, TILE_ROWS);
  for (int64_t tokens = j.T < TOKENS_MAX ? j.T : TOKENS_MAX;; tokens = ceil_div(tokens, 2)) { /* a few if there are very many slots */
    j.tokens = (int32_t)tokens;
    j.lists_at = (uint32_t)sizeof(product_header);
    j.slots_at = j.lists_at + (uint32_t)(4 * tokens * j.A * 4);
    const size_t header = j.slots_at + (size_t)(tokens * j.S * TILE_ROWS * 4);
    j.plan = product_plan_of(c, j.in.K, tiles, experts ? 2 : 1, experts ? 2 : 1, experts ? tokens * j.A : tokens, parts, is_fma, false,
                             false, header);
    if (j.plan.shared_bytes <= c->shared_bytes_max) break;
    if (tokens == 1) return c->fail(c, "a product needs %u bytes of shared memory", j.plan.shared_bytes);
  }
  const int groups = is_fma ? 0 : product_groups(&j.plan, parts);
  void (*kernel)(down_job) = groups == 0 ? ffn_down<0> : groups == 1 ? ffn_down<1> : ffn_down<4>;
  const dim3 grid((unsigned)tiles, (unsigned)ceil_div(j.T, j.tokens));
  return mavk_run(c, kernel, grid, product_threads(&j.plan), j.plan.shared_bytes, j);
}
