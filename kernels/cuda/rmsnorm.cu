/* kernels/cuda/rmsnorm.cu - y = x / sqrt(mean(x^2) + eps) * w over the last dimension; without w, the plain normalization.
 *
 *   x, y (*, D) f32; w (D).
 *
 * Grid: a block a row. A thread has columns threadIdx + i blockDim; its sum, then those of lanes, then of warps are added in a fixed order,
 * in f32. Bytes: x once (and again from the cache), y once; bound by latency for few rows, by memory for many. Tolerance 2e-5. */
#include "cuda.h"

struct rmsnorm_job {
  const float *x;
  float *y;
  mavk_array w; /* p == NULL: none */
  int64_t D;
  float eps;
};

__global__ void __launch_bounds__(256) rmsnorm(const __grid_constant__ rmsnorm_job j) {
  MAVK_SHARED(shared);
  pdl_launch();
  pdl_wait();
  const float *x = j.x + (int64_t)blockIdx.x * j.D;
  float *y = j.y + (int64_t)blockIdx.x * j.D, sum = 0;
  for (int64_t d = threadIdx.x; d < j.D; d += blockDim.x) sum = fmaf(x[d], x[d], sum);
  const float rms = 1 / sqrtf(block_sum(sum, (float *)shared) / (float)j.D + j.eps);
  for (int64_t d = threadIdx.x; d < j.D; d += blockDim.x) y[d] = x[d] * rms * (j.w.p ? mavk_f32_at(j.w.p, j.w.dtype, d) : 1);
}

extern "C" int mavk_cuda_rmsnorm(const mavk_args_rmsnorm *a, mavk_cuda *c) {
  const int64_t D = a->x.nd ? a->x.n[a->x.nd - 1] : 1;
  int64_t rows = 1;
  for (int i = 0; i + 1 < a->x.nd; i++) rows *= a->x.n[i];
  if (!rows || !D) return 0;
  const rmsnorm_job j = {(const float *)a->x.p, (float *)a->y.p, a->w, D, a->eps};
  return mavk_run(c, rmsnorm, dim3((unsigned)rows), dim3(256), 32 * sizeof(float), j);
}
