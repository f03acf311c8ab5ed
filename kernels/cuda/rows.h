/* kernels/cuda/rows.h - work on rows of a last dimension, where a row may be as long as a vocabulary: a row is cut in parts of
 * ROW_PART elements, one block each. What parts leave for each other (a maximum, a sum) is folded in their order, by the block that
 * ends last (row_is_last) or by every block of the next kernel. So a row's bits depend on its own length only.
 *
 * A thread holds up to ROW_EACH elements of its part in registers, `threads` apart: part of row r of block b is
 * b % parts, r = b / parts. */
#ifndef MAVK_CUDA_ROWS_H
#define MAVK_CUDA_ROWS_H

#include "cuda.h"

#define ROW_PART 4096 /* 16 KiB: 50 blocks for a row of 202,048 logits */
#define ROW_EACH 16
#define ROW_SPACE (WARP * 8) /* bytes of shared memory that the folds below take */

struct row_cut {
  int64_t rows, n;
  int32_t parts, threads; /* of a row; of a block */
};

static inline row_cut row_cut_of(const mavk_array *x) {
  row_cut w = {1, x->nd ? x->n[x->nd - 1] : 1, 1, 0};
  for (int i = 0; i + 1 < x->nd; i++) w.rows *= x->n[i];
  if (w.n > ROW_PART) w.parts = (int32_t)ceil_div(w.n, ROW_PART);
  const int64_t each = w.n < ROW_PART ? w.n : ROW_PART;
  w.threads = (int32_t)ceil_div(each > 0 ? each : 1, ROW_EACH * WARP) * WARP;
  return w;
}

/* Rows whose parts and tickets one launch can have, with bytes_each of scratch a row; 0: not even one. */
static inline int64_t row_group(const mavk_cuda *c, const row_cut *w, size_t bytes_each) {
  int64_t most = MAVK_CUDA_TICKETS;
  if (bytes_each > 0 && (int64_t)(c->scratch_bytes / bytes_each) < most) most = (int64_t)(c->scratch_bytes / bytes_each);
  return w->rows < most ? w->rows : most;
}

struct row_part {
  int64_t row, first; /* where the part begins in its row */
  int32_t part, count;
};

__device__ static __forceinline__ row_part row_part_of(const row_cut &w) {
  row_part p;
  p.row = blockIdx.x / (unsigned)w.parts;
  p.part = (int32_t)(blockIdx.x % (unsigned)w.parts);
  p.first = (int64_t)p.part * ROW_PART;
  p.count = (int32_t)(w.n - p.first < ROW_PART ? w.n - p.first : ROW_PART);
  return p;
}

/* A part's elements into registers; fill: what lies beyond it. */
__device__ static __forceinline__ void row_load(float (&v)[ROW_EACH], const float *x, int count, float fill) {
#pragma unroll
  for (int k = 0; k < ROW_EACH; k++) {
    const int i = k * (int)blockDim.x + (int)threadIdx.x;
    v[k] = i < count ? x[i] : fill;
  }
}

/* A row's key in ascending order of values: NaN comes first, -0 equals 0. */
__device__ static __forceinline__ uint32_t ordered_bits(float x) {
  const uint32_t b = mavk_bits_from_f32(x + 0.0f);
  if (x != x) return 0;
  return b >> 31 ? ~b : b | 0x80000000u;
}
__device__ static __forceinline__ float from_ordered_bits(uint32_t b) { return mavk_f32_from_bits(b >> 31 ? b & 0x7fffffffu : ~b); }

/* ---- folds over a block, to every thread; space: ROW_SPACE bytes, free again after the caller's next __syncthreads --------------- */

struct fold_sum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};
struct fold_max { /* NaN is passed over */
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const { return b > a ? b : a; }
};
struct fold_min {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const { return b < a ? b : a; }
};

template <typename T, typename F>
__device__ static __forceinline__ T block_fold(T x, void *space, F f) {
  T *each = (T *)space;
  const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, warps = (int)blockDim.x / WARP;
  for (int i = WARP / 2; i; i /= 2) x = f(x, __shfl_xor_sync(ALL_LANES, x, i));
  __syncthreads();
  if (lane == 0) each[warp] = x;
  __syncthreads();
  T all = each[0];
  for (int i = 1; i < warps; i++) all = f(all, each[i]);
  return all;
}

/* What the parts of a row left in memory, folded. */
template <typename T, typename F>
__device__ static __forceinline__ T parts_fold(const T *part, int parts, T none, void *space, F f) {
  T x = none;
  for (int i = (int)threadIdx.x; i < parts; i += (int)blockDim.x) x = f(x, part[i]);
  return block_fold(x, space, f);
}

/* The sum of what the threads before this one in the block hold. */
template <typename T>
__device__ static __forceinline__ T sum_before(T x, void *space) {
  T *each = (T *)space, before = 0, through = x;
  const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
  for (int i = 1; i < WARP; i *= 2) {
    const T other = __shfl_up_sync(ALL_LANES, through, (unsigned)i);
    if (lane >= i) through += other;
  }
  __syncthreads();
  if (lane == WARP - 1) each[warp] = through;
  __syncthreads();
  for (int i = 0; i < warp; i++) before += each[i];
  const T left = __shfl_up_sync(ALL_LANES, through, 1u);
  return lane ? before + left : before;
}

/* True in every thread of the block that ends last among a row's parts, which then sees what the others wrote before. The ticket is 0
 * before and after. space: as above. */
__device__ static __forceinline__ bool row_is_last(uint32_t *ticket, int parts, void *space) {
  if (parts == 1) {
    __syncthreads();
    return true;
  }
  uint32_t *last = (uint32_t *)space;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *last = atomicAdd(ticket, 1u) == (uint32_t)parts - 1;
    if (*last) *ticket = 0;
    __threadfence();
  }
  __syncthreads();
  return *last != 0;
}

#endif
