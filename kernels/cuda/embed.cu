/* kernels/cuda/embed.cu - y[t] = table[id[t]], widened to f32.
 *
 * Grid: one block a row. Moves D elements in and 4 D bytes out; bound by latency. */
#include "cuda.h"

struct embed_job {
  mavk_array table; /* (V, D) */
  mavk_rows rows;
  float *y; /* (T, D) */
};

__global__ void embed_rows(const __grid_constant__ embed_job j) {
  pdl_launch();
  pdl_wait();
  const int64_t r = blockIdx.x, D = j.table.n[1];
  const bool idle = j.rows.seq[r] < 0;
  const int64_t from = idle ? 0 : j.rows.id[r] * j.table.s[0];
  for (int64_t d = threadIdx.x; d < D; d += blockDim.x) j.y[r * D + d] = idle ? 0 : mavk_f32_at(j.table.p, j.table.dtype, from + d);
}

extern "C" int mavk_cuda_embed(const mavk_args_embed *a, mavk_cuda *c) {
  const embed_job j = {a->table, a->rows, (float *)a->y.p};
  return mavk_run(c, embed_rows, dim3((unsigned)a->rows.n), dim3(256), 0, j);
}
