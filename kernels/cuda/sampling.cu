/* kernels/cuda/sampling.cu - filters on rows of logits: what is dropped becomes -inf.
 *
 * top_k_mask, top_p_mask: select.h finds the smallest value that stays. min_p_mask: one launch for rows of up to ROW_PART elements,
 * for longer ones a launch for the largest value of every part and one for the result; grid as in rows.h. Exact but where a
 * probability lies within rounding of the limit: sums are taken in integers instead of in doubles in ascending order. */
#include "select.h"

extern "C" int mavk_cuda_top_k_mask(const mavk_args_top_k_mask *a, mavk_cuda *c) {
  select_job j = {};
  const int64_t n = a->x.n[a->x.nd - 1];
  j.y = (float *)a->y.p;
  j.k = a->k < n ? a->k : n;
  return run_select<SELECT_TOP_K>(c, &a->x, j);
}

extern "C" int mavk_cuda_top_p_mask(const mavk_args_top_p_mask *a, mavk_cuda *c) {
  select_job j = {};
  j.y = (float *)a->y.p;
  j.drop = 1 - (double)a->p;
  return run_select<SELECT_TOP_P>(c, &a->x, j);
}

/* ---- min_p --------------------------------------------------------------------------------------------------------- */

struct min_p_job {
  const float *x; /* (rows, N) */
  float *y;       /* (rows, N) */
  float *best;    /* (rows, parts) */
  float p;
  row_cut cut;
};

__device__ static __forceinline__ float best_of(const float (&v)[ROW_EACH], void *space) {
  float best = -INFINITY;
#pragma unroll
  for (int k = 0; k < ROW_EACH; k++) best = fold_max()(best, v[k]);
  return block_fold(best, space, fold_max());
}

static __global__ void min_p_parts(const __grid_constant__ min_p_job j) {
  MAVK_SHARED(space);
  pdl_launch();
  pdl_wait();
  const row_part p = row_part_of(j.cut);
  float v[ROW_EACH];
  row_load(v, j.x + p.row * j.cut.n + p.first, p.count, -INFINITY);
  const float best = best_of(v, space);
  if (threadIdx.x == 0) j.best[p.row * j.cut.parts + p.part] = best;
}

static __global__ void min_p_rows(const __grid_constant__ min_p_job j) {
  MAVK_SHARED(space);
  pdl_launch();
  pdl_wait();
  const row_part p = row_part_of(j.cut);
  float v[ROW_EACH], *y = j.y + p.row * j.cut.n + p.first;
  row_load(v, j.x + p.row * j.cut.n + p.first, p.count, -INFINITY);
  const float best = j.cut.parts == 1 ? best_of(v, space)
                                      : parts_fold(j.best + p.row * j.cut.parts, j.cut.parts, -INFINITY, space, fold_max());
#pragma unroll
  for (int k = 0; k < ROW_EACH; k++) {
    const int i = k * (int)blockDim.x + (int)threadIdx.x;
    if (i < p.count) y[i] = expf(v[k] - best) < j.p ? -INFINITY : v[k];
  }
}

extern "C" int mavk_cuda_min_p_mask(const mavk_args_min_p_mask *a, mavk_cuda *c) {
  min_p_job j = {};
  j.cut = row_cut_of(&a->x);
  const int64_t rows = j.cut.rows, n = j.cut.n;
  if (rows == 0 || n == 0) return 0;
  const int64_t group = row_group(c, &j.cut, j.cut.parts > 1 ? (size_t)j.cut.parts * sizeof(float) : 0);
  if (group == 0) return c->fail(c, "rows of %lld elements do not fit the scratch memory", (long long)n);
  j.best = (float *)c->scratch;
  j.p = a->p;
  for (int64_t r = 0; r < rows; r += group) {
    j.x = (const float *)a->x.p + r * n;
    j.y = (float *)a->y.p + r * n;
    j.cut.rows = rows - r < group ? rows - r : group;
    const dim3 grid((unsigned)(j.cut.rows * j.cut.parts)), block((unsigned)j.cut.threads);
    if (j.cut.parts > 1) MAVK_TRY_CUDA(mavk_run(c, min_p_parts, grid, block, ROW_SPACE, j));
    MAVK_TRY_CUDA(mavk_run(c, min_p_rows, grid, block, ROW_SPACE, j));
  }
  return 0;
}
