/* kernels/cuda/gumbel.h - the noise of kernels/noise.h by fours: a counter makes the words of ids 4 i to 4 i + 3; and the best of a row by
 * parts (rows.h), the lowest id on ties. */
#ifndef MAVK_CUDA_GUMBEL_H
#define MAVK_CUDA_GUMBEL_H

#include "rows.h"

struct noise_key {
  uint64_t seed;
  int64_t sequence;
  int32_t position;
};

/* The noise of ids first to first + 3; first: a multiple of 4. */
__device__ static __forceinline__ void noise_of(float g[4], const noise_key &n, int32_t first) {
  const uint64_t key = (uint64_t)n.sequence;
  uint32_t word[4] = {(uint32_t)first / 4, (uint32_t)n.position + 1u, (uint32_t)key, (uint32_t)(key >> 32)};
  mavk_philox(word, (uint32_t)n.seed, (uint32_t)(n.seed >> 32));
#pragma unroll
  for (int i = 0; i < 4; i++) g[i] = mavk_gumbel(word[i]);
}

/* An id and its value as one number: the larger value is larger, then the lower id. What is not above -inf is `none`. */
typedef unsigned long long ranked;
__device__ static __forceinline__ ranked rank_of(float y, int32_t id) {
  return y > -INFINITY ? (ranked)ordered_bits(y) << 32 | (0xffffffffu - (uint32_t)id) : 0;
}
__device__ static __forceinline__ int32_t id_of(ranked r) { return r ? (int32_t)(0xffffffffu - (uint32_t)r) : 0; }

/* The best of logit(id) + noise over a part of a row, to every thread. An id whose logit is -inf is never drawn. */
template <typename F>
__device__ static __forceinline__ ranked draw_part(const row_part &p, const noise_key &n, void *space, F logit) {
  ranked best = 0;
  for (int i = 4 * (int)threadIdx.x; i < p.count; i += 4 * (int)blockDim.x) {
    const int32_t first = (int32_t)p.first + i;
    float x[4], g[4];
    bool any = false;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      x[k] = i + k < p.count ? logit(first + k) : -INFINITY;
      any = any || x[k] > -INFINITY;
    }
    if (!any) continue;
    noise_of(g, n, first);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const ranked r = x[k] > -INFINITY ? rank_of(x[k] + g[k], first + k) : 0;
      best = r > best ? r : best;
    }
  }
  return block_fold(best, space, fold_max());
}

#endif
