/* kernels/cuda/cuda.h - what every kernel of this folder includes: the seam, PTX by name, warps and blocks. */
#ifndef MAVK_CUDA_H
#define MAVK_CUDA_H

#include <cuda_runtime.h>

#include "../noise.h"
#include "../numeric.h"
#include "launch.h"
#include "ptx.h"

#ifndef MAVK_SIMT /* tests/simt has its own */
#define MAVK_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

/* Launches kernel(p) for an op. */
template <typename P>
static inline int mavk_run(mavk_cuda *c, void (*kernel)(P), dim3 grid, dim3 block, size_t shared_bytes, const P &p) {
#ifdef MAVK_SIMT
  simt_kernel(kernel); /* how to call it with a pointer to its argument */
#endif
  mavk_cuda_launch l = {(const void *)kernel, &p, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes};
  return c->launch(c, &l);
}

#define MAVK_TRY_CUDA(x)                \
  do {                                  \
    int mavk_error_ = (x);              \
    if (mavk_error_) return mavk_error_; \
  } while (0)

#define WARP 32
#define ALL_LANES 0xffffffffu

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Of all lanes of a full warp, to every lane; a fixed order. */
__device__ static __forceinline__ float warp_sum(float x) {
  for (int i = WARP / 2; i; i /= 2) x += __shfl_xor_sync(ALL_LANES, x, i);
  return x;
}
__device__ static __forceinline__ float warp_max(float x) {
  for (int i = WARP / 2; i; i /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, i));
  return x;
}

/* Of all threads of a block of full warps, to every thread; a fixed order. space: 32 floats of shared memory, free for other use after
 * the next __syncthreads of the caller. */
__device__ static __forceinline__ float block_sum(float x, float *space) {
  const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, warps = (int)blockDim.x / WARP;
  x = warp_sum(x);
  __syncthreads();
  if (lane == 0) space[warp] = x;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < warps; i++) sum += space[i];
  return sum;
}
__device__ static __forceinline__ float block_max(float x, float *space) {
  const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, warps = (int)blockDim.x / WARP;
  x = warp_max(x);
  __syncthreads();
  if (lane == 0) space[warp] = x;
  __syncthreads();
  float most = space[0];
  for (int i = 1; i < warps; i++) most = fmaxf(most, space[i]);
  return most;
}

#endif
