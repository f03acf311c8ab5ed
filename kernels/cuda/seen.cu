/* kernels/cuda/seen.cu - the repetition penalty, and the ids it counts. penalize: y = x > 0 ? x / penalty : x * penalty for ids that
 * occurred (seen by the sequence, or the token of the row or of one of its ancestors), else x.
 *
 * Grid: penalize: rows x parts of 4096 ids (rows.h), 256 threads; a set of bits in shared memory holds the ancestors' ids of the
 * part. Moves 9 V bytes a row; bound by memory for many rows, by the walk to the ancestors (a load after a load) for few.
 * mark_seen: a thread a row. Tolerance 1e-6 and exact. */
#include "rows.h"

#define THREADS 256

struct penalize_job {
  const float *x;      /* (T, V) */
  const uint8_t *seen; /* (sequences, V) */
  mavk_rows rows;
  float penalty;
  row_cut cut;
  float *y; /* (T, V) */
};

static __global__ void penalize_part(const __grid_constant__ penalize_job j) {
  MAVK_SHARED(space);
  uint32_t *set = (uint32_t *)space; /* (ROW_PART / 32): ids of the row and its ancestors */
  pdl_launch();
  for (int i = (int)threadIdx.x; i < ROW_PART / 32; i += THREADS) set[i] = 0;
  pdl_wait();
  __syncthreads();
  const row_part p = row_part_of(j.cut);
  const int32_t seq = j.rows.seq[p.row];
  if (threadIdx.x == 0 && seq >= 0)
    for (int64_t r = p.row; r != MAVK_NO_ROW; r = mavk_parent(&j.rows, r)) {
      const int64_t id = j.rows.id[r] - p.first;
      if (id >= 0 && id < p.count) set[id / 32] |= 1u << id % 32;
    }
  __syncthreads();
  const float *x = j.x + p.row * j.cut.n + p.first;
  const uint8_t *seen = j.seen + (seq >= 0 ? seq : 0) * j.cut.n + p.first;
  float *y = j.y + p.row * j.cut.n + p.first;
  for (int i = (int)threadIdx.x; i < p.count; i += THREADS) {
    const bool occurred = seq >= 0 && (seen[i] != 0 || (set[i / 32] >> i % 32 & 1u));
    const float v = x[i];
    y[i] = !occurred ? v : v > 0 ? v / j.penalty : v * j.penalty;
  }
}

extern "C" int mavk_cuda_penalize(const mavk_args_penalize *a, mavk_cuda *c) {
  const penalize_job j = {(const float *)a->x.p, (const uint8_t *)a->seen.p, a->rows, a->penalty, row_cut_of(&a->x), (float *)a->y.p};
  return mavk_run(c, penalize_part, dim3((unsigned)(j.cut.rows * j.cut.parts)), dim3(THREADS), ROW_PART / 8, j);
}

struct mark_job {
  uint8_t *seen; /* (sequences, V) */
  int64_t V;
  mavk_rows rows;
  const int32_t *accepted; /* (T), or NULL */
};

static __global__ void mark_rows(const __grid_constant__ mark_job j) {
  pdl_launch();
  pdl_wait();
  const int64_t r = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  if (r < j.rows.n && j.rows.seq[r] >= 0 && (!j.accepted || j.accepted[r] >= 0)) j.seen[j.rows.seq[r] * j.V + j.rows.id[r]] = 1;
}

extern "C" int mavk_cuda_mark_seen(const mavk_args_mark_seen *a, mavk_cuda *c) {
  const mark_job j = {(uint8_t *)a->seen.p, a->seen.n[1], a->rows, (const int32_t *)a->accepted.p};
  return mavk_run(c, mark_rows, dim3((unsigned)ceil_div(a->rows.n, THREADS)), dim3(THREADS), 0, j);
}
