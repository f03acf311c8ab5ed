/* kernels/cuda/topk.cu - the k largest values of every row and where they are, in order.
 *
 * select.h finds the k-th; what is at or above it, k elements, is sorted by one block a row: in shared memory for k up to BINS.
 * Exact. */
#include "select.h"

extern "C" int mavk_cuda_topk(const mavk_args_topk *a, mavk_cuda *c) {
  select_job j = {};
  j.y = (float *)a->values.p;
  j.index = (int32_t *)a->index.p;
  j.k = a->k;
  return run_select<SELECT_TOPK>(c, &a->x, j);
}
