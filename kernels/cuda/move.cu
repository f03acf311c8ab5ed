/* kernels/cuda/move.cu - elements in other places: gather, take, scatter, concat, stack.
 *
 * Grid: rows of the result x pieces of 1024 elements, 256 threads, four elements a thread. Each moves what it writes, once; gather and
 * stack bound by memory for many rows, the others by latency. scatter: a block owns 8192 elements of a row, copies base there, then
 * looks through all of index for those of its own: one launch, and index (at most V numbers) comes from the L2 cache. Exact. */
#include "strided.h"

#define THREADS 256
#define EACH 4

struct move_job {
  const float *a, *b;
  const int32_t *index;
  float *y; /* (rows, width) */
  int64_t rows, width, pieces;
  int64_t n, m; /* widths of a and b; of stack: rows of a */
};

struct move_at {
  int64_t row, first; /* this thread's first element; its next ones are THREADS apart */
};

__device__ static __forceinline__ move_at where_am_i(const move_job &j) {
  return move_at{(int64_t)(blockIdx.x / (uint64_t)j.pieces), (int64_t)(blockIdx.x % (uint64_t)j.pieces) * THREADS * EACH + threadIdx.x};
}

static int run_move(mavk_cuda *c, void (*kernel)(move_job), move_job j, int64_t piece) {
  if (j.rows == 0 || j.width == 0) return 0;
  j.pieces = ceil_div(j.width, piece);
  return mavk_run(c, kernel, dim3((unsigned)(j.rows * j.pieces)), dim3(THREADS), 0, j);
}

/* y[i] = a[index[i]] */
static __global__ void gather_rows(const __grid_constant__ move_job j) {
  pdl_launch();
  pdl_wait();
  const move_at at = where_am_i(j);
  const float *from = j.a + j.index[at.row] * j.width;
#pragma unroll
  for (int k = 0; k < EACH; k++) {
    const int64_t i = at.first + k * THREADS;
    if (i < j.width) j.y[at.row * j.width + i] = from[i];
  }
}

extern "C" int mavk_cuda_gather(const mavk_args_gather *a, mavk_cuda *c) {
  move_job j = {};
  j.a = (const float *)a->x.p, j.index = (const int32_t *)a->index.p, j.y = (float *)a->y.p;
  j.rows = a->index.n[0], j.width = a->x.n[1];
  return run_move(c, gather_rows, j, THREADS * EACH);
}

/* y[t,i] = a[t, index[t,i]] */
static __global__ void take_elements(const __grid_constant__ move_job j) {
  pdl_launch();
  pdl_wait();
  const move_at at = where_am_i(j);
#pragma unroll
  for (int k = 0; k < EACH; k++) {
    const int64_t i = at.first + k * THREADS, to = at.row * j.width + i;
    if (i < j.width) j.y[to] = j.a[at.row * j.n + j.index[to]];
  }
}

extern "C" int mavk_cuda_take(const mavk_args_take *a, mavk_cuda *c) {
  move_job j = {};
  j.a = (const float *)a->x.p, j.index = (const int32_t *)a->index.p, j.y = (float *)a->y.p;
  j.rows = a->x.n[0], j.width = a->index.n[1], j.n = a->x.n[1];
  return run_move(c, take_elements, j, THREADS * EACH);
}

#define SCATTER_PIECE 8192

/* y[t] = b with y[t, index[i]] = a[t, i] */
static __global__ void scatter_rows(const __grid_constant__ move_job j) {
  pdl_launch();
  pdl_wait();
  const int64_t row = blockIdx.x / (uint64_t)j.pieces, first = (int64_t)(blockIdx.x % (uint64_t)j.pieces) * SCATTER_PIECE;
  const int64_t end = first + SCATTER_PIECE < j.width ? first + SCATTER_PIECE : j.width;
  float *y = j.y + row * j.width;
  for (int64_t i = first + threadIdx.x; i < end; i += THREADS) y[i] = j.b[i];
  __syncthreads();
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < j.n; i += THREADS) {
    const int64_t to = j.index[i];
    if (to >= first && to < end) y[to] = j.a[row * j.n + i];
  }
}

extern "C" int mavk_cuda_scatter(const mavk_args_scatter *a, mavk_cuda *c) {
  move_job j = {};
  j.a = (const float *)a->x.p, j.b = (const float *)a->base.p, j.index = (const int32_t *)a->index.p, j.y = (float *)a->y.p;
  j.rows = a->x.n[0], j.width = a->base.n[0], j.n = a->x.n[1];
  return run_move(c, scatter_rows, j, SCATTER_PIECE);
}

/* Rows of a and b side by side. */
static __global__ void concat_rows(const __grid_constant__ move_job j) {
  pdl_launch();
  pdl_wait();
  const move_at at = where_am_i(j);
#pragma unroll
  for (int k = 0; k < EACH; k++) {
    const int64_t i = at.first + k * THREADS;
    if (i < j.width) j.y[at.row * j.width + i] = i < j.n ? j.a[at.row * j.n + i] : j.b[at.row * j.m + i - j.n];
  }
}

extern "C" int mavk_cuda_concat(const mavk_args_concat *a, mavk_cuda *c) {
  move_job j = {};
  j.a = (const float *)a->a.p, j.b = (const float *)a->b.p, j.y = (float *)a->y.p;
  j.rows = a->a.n[0], j.n = a->a.n[1], j.m = a->b.n[1], j.width = j.n + j.m;
  return run_move(c, concat_rows, j, THREADS * EACH);
}

/* Rows of a, then rows of b. */
static __global__ void stack_rows(const __grid_constant__ move_job j) {
  pdl_launch();
  pdl_wait();
  const move_at at = where_am_i(j);
  const float *from = at.row < j.n ? j.a + at.row * j.width : j.b + (at.row - j.n) * j.width;
#pragma unroll
  for (int k = 0; k < EACH; k++) {
    const int64_t i = at.first + k * THREADS;
    if (i < j.width) j.y[at.row * j.width + i] = from[i];
  }
}

extern "C" int mavk_cuda_stack(const mavk_args_stack *a, mavk_cuda *c) {
  move_job j = {};
  j.a = (const float *)a->a.p, j.b = (const float *)a->b.p, j.y = (float *)a->y.p;
  j.n = a->a.n[0], j.rows = j.n + a->b.n[0], j.width = a->a.n[1];
  return run_move(c, stack_rows, j, THREADS * EACH);
}
