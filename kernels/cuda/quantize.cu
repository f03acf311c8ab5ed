/* kernels/cuda/quantize.cu - rows to e4m3 with a scale each: scale = max|row| / 448 (1 for a zero row), y = e4m3(x / scale).
 *
 *   x (*, D) f32, bf16 or f16; y (*, D) e4m3; scale (*) f32.
 *
 * Grid: a block a row: the largest magnitude, then the codes. A maximum has no order, so the bits are ref's. Bytes: x once (and again from
 * the cache), y once; bound by latency for few rows, by memory for many. Tolerance 0. */
#include "cuda.h"

struct quantize_job {
  mavk_array x;
  uint8_t *y;
  float *scale;
  int64_t D;
};

__global__ void __launch_bounds__(256) quantize(const __grid_constant__ quantize_job j) {
  MAVK_SHARED(shared);
  pdl_launch();
  pdl_wait();
  const int64_t first = (int64_t)blockIdx.x * j.D;
  float most = 0;
  for (int64_t d = threadIdx.x; d < j.D; d += blockDim.x) most = fmaxf(most, fabsf(mavk_f32_at(j.x.p, j.x.dtype, first + d)));
  most = block_max(most, (float *)shared);
  const float scale = most > 0 ? most / MAVK_F8_MAX : 1;
  if (threadIdx.x == 0) j.scale[blockIdx.x] = scale;
  for (int64_t d = threadIdx.x; d < j.D; d += blockDim.x)
    j.y[first + d] = mavk_f8_from_f32(mavk_f32_at(j.x.p, j.x.dtype, first + d) / scale);
}

extern "C" int mavk_cuda_quantize(const mavk_args_quantize *a, mavk_cuda *c) {
  const int64_t D = a->x.nd ? a->x.n[a->x.nd - 1] : 1;
  int64_t rows = 1;
  for (int i = 0; i + 1 < a->x.nd; i++) rows *= a->x.n[i];
  if (!rows) return 0;
  const quantize_job j = {a->x, (uint8_t *)a->y.p, (float *)a->scale.p, D};
  return mavk_run(c, quantize, dim3((unsigned)rows), dim3(256), 32 * sizeof(float), j);
}
