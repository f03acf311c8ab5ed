/* kernels/cuda/product_plain.h - the product that matmul.cu holds, for the ops that are little else. */
#ifndef MAVK_CUDA_PRODUCT_PLAIN_H
#define MAVK_CUDA_PRODUCT_PLAIN_H

#include "product_block.h"

struct plain_job : product_job {
  const float *residual; /* (T, N); NULL: none */
  float *y;              /* (T, N) */
  int64_t N;

  __device__ __forceinline__ void put(const float *sums, int parts, const product_tokens *t, int64_t tile) const {
    for (int o = (int)threadIdx.x; o < t->n * TILE_ROWS; o += (int)blockDim.x) {
      const int i = o / TILE_ROWS, row = o % TILE_ROWS;
      const int64_t r = tile * TILE_ROWS + row, at = t->to[i] * N + r;
      if (r >= N) continue;
      const float v = product_scaled(product_sum(plan, sums, parts, 0, i, row), t, i, weight_scale(w, 0, r));
      y[at] = residual ? residual[at] + v : v;
    }
  }
};

/* y (T, N) = [residual +] norm(x) w^T. norm, residual: NULL for none. */
int product_plain(mavk_cuda *c, const mavk_array *x, const mavk_array *norm, float eps, const mavk_weight *w, const float *residual,
                  float *y, int64_t T);

#endif
