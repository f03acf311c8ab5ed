/* kernels/cuda/experts.h - pairs of a token and one of its experts, grouped by expert, so that a block reads an expert's weights once for
 * all tokens that chose it. Pair p = token A + choice. Of the pairs with one expert, numbered in order, those numbered 16 i lead a group of
 * up to 16. */
#ifndef MAVK_CUDA_EXPERTS_H
#define MAVK_CUDA_EXPERTS_H

#include "product_block.h"

/* Where the input row of pair q = token A + choice is: row token S, or token S + first + choice if every choice has its own. */
struct pair_rows {
  int32_t S, first; /* first < 0: a token's choices share a row */
};

/* The group that pair p leads, as the tokens of t: from as `rows` has it, to = q, score. 0 if p leads none. Every warp finds out on its
 * own; warp 0 writes, and a barrier makes it visible. */
__device__ static __forceinline__ int list_pairs(product_tokens *t, const int32_t *index, const float *score, int64_t pairs, int64_t A,
                                                 int64_t p, pair_rows rows, int way, const mavk_weight &w) {
  const int lane = (int)threadIdx.x % WARP;
  const bool writes = threadIdx.x < WARP;
  const int32_t expert = index[p];
  int before = 0, n = 0;
  for (int64_t first = 0; first < pairs && n < TOKENS_MAX; first += WARP) {
    const int64_t q = first + lane;
    const uint32_t same = __ballot_sync(ALL_LANES, q < pairs && index[q] == expert);
    const uint32_t early = p >= first + WARP ? ALL_LANES : p <= first ? 0 : (1u << (p - first)) - 1, late = same & ~early;
    before += __popc(same & early);
    const int place = n + __popc(late & ((1u << lane) - 1));
    if (writes && late >> lane & 1 && place < TOKENS_MAX) {
      const int32_t token = (int32_t)((uint32_t)q / (uint32_t)A);
      t->from[place] = rows.first < 0 ? token * rows.S : token * rows.S + rows.first + (int32_t)q - token * (int32_t)A;
      t->to[place] = (int32_t)q;
      t->score[place] = score ? score[q] : 1;
    }
    n += __popc(late);
  }
  if (before % TOKENS_MAX) return 0;
  n = n < TOKENS_MAX ? n : TOKENS_MAX;
  if (threadIdx.x == 0) t->n = n, t->way = way, t->act = w.act, t->in_scale = w.in_scale;
  return n;
}

/* y (T, A, N) = (score x) w[index]^T; score: NULL for 1. expert_matmul.cu */
int expert_product(mavk_cuda *c, const product_input *in, pair_rows rows, const mavk_weight *w, const int32_t *index, const float *score,
                   float *y, int64_t T, int64_t A);

#endif
