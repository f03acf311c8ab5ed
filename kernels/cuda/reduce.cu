/* kernels/cuda/reduce.cu - over the last dimension: sum, mean, max, min, argmax, entropy in one launch; softmax, log_softmax, cumsum
 * in one for rows of up to ROW_PART elements and in two for longer ones. topk: topk.cu.
 *
 * Grid: rows x parts (rows.h), up to 256 threads, 16 elements a thread in registers, so that a part is read once for its maximum and
 * its sum. Moves x once (softmax of long rows: twice, the second time from the L2 cache) and y once; bound by latency for a few rows
 * of logits, by memory for many. Sums are taken in double in a fixed order; each part's exponentials refer to the part's own largest
 * value and are brought to the row's when parts are folded. Tolerances: 1e-5 (sums, entropy), 2e-6 (softmax), exact (max, min, argmax). */
#include "rows.h"

/* What a part leaves. */
struct part_sums {
  double sum, weighted; /* of e^(x - largest), or of x; of e^(x - largest) (x - largest) */
  float largest;
};

struct reduce_job {
  const float *x; /* (rows, N) */
  void *y;        /* (rows) or (rows, N) */
  row_cut cut;
  void *part; /* (rows, parts) of what a part leaves */
  uint32_t *tickets;
};

/* Rows in groups that scratch and tickets allow: launches run(first row's job) for each. */
template <typename RUN>
static int by_groups(mavk_cuda *c, const mavk_array *x, void *y, size_t y_bytes, size_t part_bytes, RUN run) {
  reduce_job j = {};
  j.cut = row_cut_of(x);
  const int64_t rows = j.cut.rows, group = row_group(c, &j.cut, j.cut.parts > 1 ? (size_t)j.cut.parts * part_bytes : 0);
  if (rows > 0 && group == 0) return c->fail(c, "rows of %lld elements do not fit the scratch memory", (long long)j.cut.n);
  j.part = c->scratch;
  j.tickets = c->tickets;
  for (int64_t r = 0; r < rows; r += group) {
    j.x = (const float *)x->p + r * j.cut.n;
    j.y = (char *)y + (size_t)r * y_bytes;
    j.cut.rows = rows - r < group ? rows - r : group;
    MAVK_TRY_CUDA(run(j));
  }
  return 0;
}

static dim3 grid_of(const row_cut &w) { return dim3((unsigned)(w.rows * w.parts)); }

/* ---- one number a row ---------------------------------------------------------------------------------------------- */

/* T: what is folded; from(x, index): an element as that; put: the result. */
struct r_sum {
  typedef double type;
  typedef fold_sum fold;
  __device__ static double none() { return 0; }
  __device__ static double from(float x, int64_t) { return x; }
  __device__ static void put(void *y, int64_t r, double v, int64_t) { ((float *)y)[r] = (float)v; }
};
struct r_mean : r_sum {
  __device__ static void put(void *y, int64_t r, double v, int64_t n) { ((float *)y)[r] = (float)(v / (double)n); }
};
struct r_max {
  typedef float type;
  typedef fold_max fold;
  __device__ static float none() { return -INFINITY; }
  __device__ static float from(float x, int64_t) { return x; }
  __device__ static void put(void *y, int64_t r, float v, int64_t) { ((float *)y)[r] = v; }
};
struct r_min : r_max {
  typedef fold_min fold;
  __device__ static float none() { return INFINITY; }
};
struct r_argmax { /* by value, then by the lower index */
  typedef unsigned long long type;
  typedef fold_max fold;
  __device__ static type none() { return 0; }
  __device__ static type from(float x, int64_t i) { return (type)ordered_bits(x) << 32 | (0xffffffffu - (uint32_t)i); }
  __device__ static void put(void *y, int64_t r, type v, int64_t) { ((int32_t *)y)[r] = (int32_t)(0xffffffffu - (uint32_t)v); }
};

template <typename R>
static __global__ void reduce_rows(const __grid_constant__ reduce_job j) {
  typedef typename R::type T;
  typedef typename R::fold F;
  MAVK_SHARED(space);
  pdl_launch();
  pdl_wait();
  const row_part p = row_part_of(j.cut);
  const float *x = j.x + p.row * j.cut.n + p.first;
  T v = R::none();
#pragma unroll
  for (int k = 0; k < ROW_EACH; k++) {
    const int i = k * (int)blockDim.x + (int)threadIdx.x;
    if (i < p.count) v = F()(v, R::from(x[i], p.first + i));
  }
  v = block_fold(v, space, F());
  if (j.cut.parts > 1) {
    T *part = (T *)j.part + p.row * j.cut.parts;
    if (threadIdx.x == 0) part[p.part] = v;
    if (!row_is_last(&j.tickets[p.row], j.cut.parts, space)) return;
    v = parts_fold(part, j.cut.parts, R::none(), space, F());
  }
  if (threadIdx.x == 0) R::put(j.y, p.row, v, j.cut.n);
}

template <typename R>
static int run_reduce(mavk_cuda *c, const mavk_array *x, const mavk_array *y) {
  return by_groups(c, x, y->p, sizeof(float), sizeof(typename R::type), [c](const reduce_job &j) {
    return mavk_run(c, reduce_rows<R>, grid_of(j.cut), dim3((unsigned)j.cut.threads), ROW_SPACE, j);
  });
}

extern "C" int mavk_cuda_sum(const mavk_args_sum *a, mavk_cuda *c) { return run_reduce<r_sum>(c, &a->x, &a->y); }
extern "C" int mavk_cuda_mean(const mavk_args_mean *a, mavk_cuda *c) { return run_reduce<r_mean>(c, &a->x, &a->y); }
extern "C" int mavk_cuda_max(const mavk_args_max *a, mavk_cuda *c) { return run_reduce<r_max>(c, &a->x, &a->y); }
extern "C" int mavk_cuda_min(const mavk_args_min *a, mavk_cuda *c) { return run_reduce<r_min>(c, &a->x, &a->y); }
extern "C" int mavk_cuda_argmax(const mavk_args_argmax *a, mavk_cuda *c) { return run_reduce<r_argmax>(c, &a->x, &a->index); }

/* ---- sums of exponentials ------------------------------------------------------------------------------------------ */

/* Of the elements v (beyond the part: -inf), to every thread. What has no probability adds nothing to weighted. */
template <bool WEIGHTED>
__device__ static __forceinline__ part_sums exp_sums(const float (&v)[ROW_EACH], int count, void *space) {
  part_sums s = {0, 0, -INFINITY};
#pragma unroll
  for (int k = 0; k < ROW_EACH; k++) s.largest = fold_max()(s.largest, v[k]);
  s.largest = block_fold(s.largest, space, fold_max());
#pragma unroll
  for (int k = 0; k < ROW_EACH; k++) {
    if (k * (int)blockDim.x + (int)threadIdx.x >= count) continue;
    const float d = v[k] - s.largest, e = expf(d);
    s.sum += e;
    if (WEIGHTED && e > 0) s.weighted += (double)(e * d);
  }
  s.sum = block_fold(s.sum, space, fold_sum());
  if (WEIGHTED) s.weighted = block_fold(s.weighted, space, fold_sum());
  return s;
}

/* The same of a row, from its parts. A part of -inf only has NaN for a sum; it counts for nothing unless all are. */
template <bool WEIGHTED>
__device__ static __forceinline__ part_sums fold_parts(const part_sums *part, int parts, void *space) {
  part_sums s = {0, 0, -INFINITY};
  for (int i = (int)threadIdx.x; i < parts; i += (int)blockDim.x) s.largest = fold_max()(s.largest, part[i].largest);
  s.largest = block_fold(s.largest, space, fold_max());
  for (int i = (int)threadIdx.x; i < parts; i += (int)blockDim.x) {
    const double shift = (double)part[i].largest - (double)s.largest, scale = exp(shift);
    if (part[i].largest == -INFINITY && s.largest > -INFINITY) continue;
    s.sum += part[i].sum * scale;
    if (WEIGHTED && scale > 0) s.weighted += (part[i].weighted + part[i].sum * shift) * scale;
  }
  s.sum = block_fold(s.sum, space, fold_sum());
  if (WEIGHTED) s.weighted = block_fold(s.weighted, space, fold_sum());
  return s;
}

/* ln sum - weighted / sum, x less the largest. */
static __global__ void entropy_rows(const __grid_constant__ reduce_job j) {
  MAVK_SHARED(space);
  pdl_launch();
  pdl_wait();
  const row_part p = row_part_of(j.cut);
  float v[ROW_EACH];
  row_load(v, j.x + p.row * j.cut.n + p.first, p.count, -INFINITY);
  part_sums s = exp_sums<true>(v, p.count, space);
  if (j.cut.parts > 1) {
    part_sums *part = (part_sums *)j.part + p.row * j.cut.parts;
    if (threadIdx.x == 0) part[p.part] = s;
    if (!row_is_last(&j.tickets[p.row], j.cut.parts, space)) return;
    s = fold_parts<true>(part, j.cut.parts, space);
  }
  if (threadIdx.x == 0) ((float *)j.y)[p.row] = (float)(log(s.sum) - s.weighted / s.sum);
}

extern "C" int mavk_cuda_entropy(const mavk_args_entropy *a, mavk_cuda *c) {
  return by_groups(c, &a->x, a->y.p, sizeof(float), sizeof(part_sums), [c](const reduce_job &j) {
    return mavk_run(c, entropy_rows, grid_of(j.cut), dim3((unsigned)j.cut.threads), ROW_SPACE, j);
  });
}

/* Long rows: what every part sums up to. */
static __global__ void softmax_parts(const __grid_constant__ reduce_job j) {
  MAVK_SHARED(space);
  pdl_launch();
  pdl_wait();
  const row_part p = row_part_of(j.cut);
  float v[ROW_EACH];
  row_load(v, j.x + p.row * j.cut.n + p.first, p.count, -INFINITY);
  const part_sums s = exp_sums<false>(v, p.count, space);
  if (threadIdx.x == 0) ((part_sums *)j.part)[p.row * j.cut.parts + p.part] = s;
}

template <bool LOG>
static __global__ void softmax_rows(const __grid_constant__ reduce_job j) {
  MAVK_SHARED(space);
  pdl_launch();
  pdl_wait();
  const row_part p = row_part_of(j.cut);
  float v[ROW_EACH], *y = (float *)j.y + p.row * j.cut.n + p.first;
  row_load(v, j.x + p.row * j.cut.n + p.first, p.count, -INFINITY);
  const part_sums s = j.cut.parts == 1 ? exp_sums<false>(v, p.count, space)
                                       : fold_parts<false>((const part_sums *)j.part + p.row * j.cut.parts, j.cut.parts, space);
  const float log_sum = (float)log(s.sum);
#pragma unroll
  for (int k = 0; k < ROW_EACH; k++) {
    const int i = k * (int)blockDim.x + (int)threadIdx.x;
    if (i < p.count) y[i] = LOG ? v[k] - s.largest - log_sum : (float)(expf(v[k] - s.largest) / s.sum);
  }
}

template <bool LOG>
static int run_softmax(mavk_cuda *c, const mavk_array *x, const mavk_array *y) {
  const int64_t n = x->n[x->nd - 1];
  return by_groups(c, x, y->p, (size_t)n * sizeof(float), sizeof(part_sums), [c](const reduce_job &j) {
    const dim3 grid = grid_of(j.cut), block((unsigned)j.cut.threads);
    if (j.cut.parts > 1) MAVK_TRY_CUDA(mavk_run(c, softmax_parts, grid, block, ROW_SPACE, j));
    return mavk_run(c, softmax_rows<LOG>, grid, block, ROW_SPACE, j);
  });
}

extern "C" int mavk_cuda_softmax(const mavk_args_softmax *a, mavk_cuda *c) { return run_softmax<false>(c, &a->x, &a->y); }
extern "C" int mavk_cuda_log_softmax(const mavk_args_log_softmax *a, mavk_cuda *c) { return run_softmax<true>(c, &a->x, &a->y); }

/* ---- running sums -------------------------------------------------------------------------------------------------- */

/* Long rows: the sum of every part. */
static __global__ void cumsum_parts(const __grid_constant__ reduce_job j) {
  MAVK_SHARED(space);
  pdl_launch();
  pdl_wait();
  const row_part p = row_part_of(j.cut);
  float v[ROW_EACH];
  row_load(v, j.x + p.row * j.cut.n + p.first, p.count, 0);
  double sum = 0;
#pragma unroll
  for (int k = 0; k < ROW_EACH; k++) sum += v[k];
  sum = block_fold(sum, space, fold_sum());
  if (threadIdx.x == 0) ((double *)j.part)[p.row * j.cut.parts + p.part] = sum;
}

static __global__ void cumsum_rows(const __grid_constant__ reduce_job j) {
  MAVK_SHARED(space); /* ROW_SPACE, then the part's elements, one place free after every ROW_EACH */
  float *e = (float *)(space + ROW_SPACE);
  pdl_launch();
  pdl_wait();
  const row_part p = row_part_of(j.cut);
  const int64_t at = p.row * j.cut.n + p.first;
  double before = 0;
  if (p.part > 0) before = parts_fold((const double *)j.part + p.row * j.cut.parts, p.part, 0.0, space, fold_sum());
  for (int i = (int)threadIdx.x; i < ROW_EACH * (int)blockDim.x; i += (int)blockDim.x) e[i + i / ROW_EACH] = i < p.count ? j.x[at + i] : 0;
  __syncthreads();
  float *own = e + threadIdx.x * (ROW_EACH + 1); /* side by side */
  double sum = 0;
  for (int k = 0; k < ROW_EACH; k++) sum += own[k];
  sum = before + sum_before(sum, space);
  for (int k = 0; k < ROW_EACH; k++) own[k] = (float)(sum += own[k]);
  __syncthreads();
  for (int i = (int)threadIdx.x; i < p.count; i += (int)blockDim.x) ((float *)j.y)[at + i] = e[i + i / ROW_EACH];
}

extern "C" int mavk_cuda_cumsum(const mavk_args_cumsum *a, mavk_cuda *c) {
  const int64_t n = a->x.n[a->x.nd - 1];
  return by_groups(c, &a->x, a->y.p, (size_t)n * sizeof(float), sizeof(double), [c](const reduce_job &j) {
    const dim3 grid = grid_of(j.cut), block((unsigned)j.cut.threads);
    if (j.cut.parts > 1) MAVK_TRY_CUDA(mavk_run(c, cumsum_parts, grid, block, ROW_SPACE, j));
    return mavk_run(c, cumsum_rows, grid, block, ROW_SPACE + (size_t)j.cut.threads * (ROW_EACH + 1) * sizeof(float), j);
  });
}
