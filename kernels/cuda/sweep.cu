/* kernels/cuda/sweep.cu - how fast the device reads its memory: what mav_runtime_bandwidth times.
 *
 * Grid: as many blocks as are resident at a time; neighbouring lanes read neighbouring 16 bytes, four loads of a thread in flight.
 * The sum is compared with a number that it will not be, so that no load is dropped. */
#include "cuda.h"
#include "service.h"

struct sweep_job {
  const uint4 *p;
  int64_t count; /* of 16 bytes */
  uint32_t *sink;
};

__global__ void __launch_bounds__(512) sweep(const __grid_constant__ sweep_job j) {
  pdl_launch();
  pdl_wait();
  const int64_t step = (int64_t)gridDim.x * blockDim.x;
  uint32_t sum = 0;
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i + 3 * step < j.count; i += 4 * step) {
    const uint4 a = load_once(j.p + i), b = load_once(j.p + i + step), c = load_once(j.p + i + 2 * step), d = load_once(j.p + i + 3 * step);
    sum += a.x + a.y + a.z + a.w + b.x + b.y + b.z + b.w + c.x + c.y + c.z + c.w + d.x + d.y + d.z + d.w;
  }
  for (; i < j.count; i += step) {
    const uint4 a = load_once(j.p + i);
    sum += a.x + a.y + a.z + a.w;
  }
  if (sum == 0x9e3779b9u) *j.sink = sum;
}

extern "C" int mavk_cuda_sweep(mavk_cuda *c, const void *p, int64_t bytes, uint32_t *sink) {
  const sweep_job j = {(const uint4 *)p, bytes / 16, sink};
  return mavk_run(c, sweep, dim3((unsigned)(4 * c->multiprocessors)), dim3(512), 0, j);
}
