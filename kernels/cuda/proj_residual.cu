/* kernels/cuda/proj_residual.cu - y = x + all_reduce(a w^T): the product of matmul.cu with a residual. One rank so far.
 *
 *   a (T, N) f32: the attention's output; w (D, N); x, y (T, D) f32.
 *
 * Grid, bytes and tolerance: matmul.cu. For Maverick on 8 ranks (640 x 5120): 320 blocks of four warps, five steps each, so that all 3.3 MB
 * are in flight at once. */
#include "product_plain.h"

extern "C" int mavk_cuda_proj_residual(const mavk_args_proj_residual *a, mavk_cuda *c) {
  if (a->comm.ranks != 1) return c->fail(c, "%d ranks: the cuda backend has only one so far", (int)a->comm.ranks);
  return product_plain(c, &a->a, NULL, 0, &a->w, (const float *)a->x.p, (float *)a->y.p, a->a.n[0]);
}
