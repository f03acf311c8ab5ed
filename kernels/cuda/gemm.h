/* kernels/cuda/gemm.h - products of many rows: the sums come from cuBLASLt (mavk_cuda.gemm) and not from this folder's warps. A prompt's
 * chunk is such a product; beyond GEMM_ROWS rows arithmetic counts, and no longer the bytes of weights alone.
 *
 *   stage    rows of x, normalized and rounded as in activations.h, go to scratch memory: as bf16, what rounding left of every row in a
 *            second matrix behind the first, so that one product has both; or, for W8A8, as codes, with a step for every row
 *   widen    a slice of the weight, in rows as the library reads them, goes there too: codes as bf16, which is exact, or as they are for
 *            W8A8. bf16 weights, and codes in rows for W8A8, are read where they lie
 *   gemm     the sums of the slice with all rows that are staged, f32
 *   end      the op's put(), over the sums
 *
 * At most GEMM_CHUNK_ROWS rows at once; slices are as large as scratch memory allows for so many. Bytes of a weight of codes, a chunk: 1
 * read, 2 written and 2 read again; 1 and 1 again for W8A8. Tolerance 2e-5 for bf16 (product.h); products of codes on Hopper's tensor
 * cores keep about 14 bits of a sum between promotions to f32 (DeepSeek-V3 Technical Report, arXiv 2412.19437, 3.3.2): 1e-3.
 *
 * Bits: slices do not depend on the number of rows, and the library is asked for one algorithm for every slice, that does not split K; so a
 * row's bits do not depend on how many rows there are, as far as the library can keep to its algorithm. They differ from those of few rows.
 */
#ifndef MAVK_CUDA_GEMM_H
#define MAVK_CUDA_GEMM_H

#include "product_block.h"

#define GEMM_ROWS 64        /* more than these go to the library; what is best, a GPU has to decide */
#define GEMM_CHUNK_ROWS 512 /* staged at once, at most */
#define GEMM_END_THREADS 128

/* Products of the same rows with one weight, or with two of one shape. */
struct gemm_plan {
  int32_t dtype, parts;  /* of what the library multiplies; 2: rounded and left */
  int64_t K, N, rows;    /* rows: of a chunk, at most */
  int64_t slice;         /* rows of a weight at once */
  void *x, *weight;      /* (parts, pitch, K); (slice, K) */
  float *step, *sums[2]; /* (rows), W8A8 only; (parts, pitch, slice) */
};

/* Rows from a part to the next one: the library wants products of codes in multiples of sixteen. */
MAVK_FN int64_t gemm_pitch(int64_t rows) {
  return (rows + 15) / 16 * 16;
}

/* Whether a product of so many rows goes to the library. */
static inline bool gemm_takes(const mavk_cuda *c, const mavk_weight *w, int64_t rows) {
  if (rows <= GEMM_ROWS || c->off & (MAVK_CUDA_OFF_BLAS | MAVK_CUDA_OFF_TENSOR) || w->a.nd != 2) return false;
  if (w->a.n[0] % 16 || w->a.n[1] % 16 || !w->a.n[0] || !w->a.n[1]) return false;
  if (w->a.dtype == MAVK_F8) return true;
  return w->a.dtype == MAVK_BF16 && w->a.s[0] % 8 == 0 && (uintptr_t)w->a.p % 16 == 0;
}

/* ---- gemm.cu ---- */

/* reserved: bytes at the end of scratch memory that are the caller's; the same for any number of rows, as the slices follow from it. */
int gemm_plan_make(gemm_plan *g, mavk_cuda *c, const mavk_weight *const *w, int items, size_t reserved);
/* Rows first .. first + n of x; row r of them is row r * stride of in.x. */
int gemm_stage(const gemm_plan *g, mavk_cuda *c, const product_input *in, const mavk_weight *w, int64_t first, int64_t n, int64_t stride);
/* Sums of the n staged rows with rows column .. column + m of w, to g->sums[item]: (parts, pitch, m). */
int gemm_sums(const gemm_plan *g, mavk_cuda *c, const mavk_weight *w, int64_t column, int64_t m, int64_t n, int item);

/* ---- the end: J::put ---- */

template <typename J>
struct gemm_end_job {
  J j;
  const float *sums[2], *step;
  int64_t first, rows, columns, first_tile; /* rows of this chunk, counted from `first`; columns of this slice */
  int32_t items, parts;
};

/* Grid: tiles of 16 columns, groups of 16 rows. */
template <typename J>
__global__ void __launch_bounds__(GEMM_END_THREADS) gemm_end(const __grid_constant__ gemm_end_job<J> e) {
  MAVK_SHARED(shared);
  product_tokens *t = ((product_header *)shared)->tokens;
  float *sums = (float *)(shared + sizeof(product_header));
  pdl_launch();
  pdl_wait();
  const int64_t row = (int64_t)blockIdx.y * TOKENS_MAX;
  const int n = (int)(e.rows - row < TOKENS_MAX ? e.rows - row : TOKENS_MAX), thread = (int)threadIdx.x;
  if (thread < n) {
    t->from[thread] = t->to[thread] = (int32_t)(e.first + row + thread);
    t->back[thread] = 1;
    t->step[thread] = e.step ? e.step[row + thread] : 0;
  }
  if (thread == 0) t->n = n;
  for (int o = thread; o < e.items * n * TILE_ROWS; o += (int)blockDim.x) {
    const int item = o / (n * TILE_ROWS), i = o / TILE_ROWS % n, column = o % TILE_ROWS;
    const int64_t at = (row + i) * e.columns + (int64_t)blockIdx.x * TILE_ROWS + column;
    float v = e.sums[item][at];
    if (e.parts == 2) v += e.sums[item][gemm_pitch(e.rows) * e.columns + at];
    sums[(item * TOKENS_MAX + i) * SUM_STRIDE + column] = v;
  }
  __syncthreads();
  e.j.put(sums, 1, t, e.first_tile + blockIdx.x);
}

/* All of it: J::put gets the sums of every row with w, item by item. in: of x, whose row r is row r * stride. */
template <typename J>
static inline int product_gemm(mavk_cuda *c, const J *job, const product_input *in, int64_t rows, int64_t stride,
                               const mavk_weight *const *w, int items, size_t reserved) {
  gemm_plan g;
  MAVK_TRY_CUDA(gemm_plan_make(&g, c, w, items, reserved));
  gemm_end_job<J> e;
  e.j = *job;
  e.j.plan.warps = 1, e.j.plan.tokens = TOKENS_MAX; /* how product_sum finds what the kernel brings */
  e.items = items, e.parts = g.parts, e.step = g.parts == 1 ? g.step : NULL;
  const size_t shared = sizeof(product_header) + (size_t)(items * TOKENS_MAX * SUM_STRIDE) * sizeof(float);
  for (e.first = 0; e.first < rows; e.first += g.rows) {
    e.rows = rows - e.first < g.rows ? rows - e.first : g.rows;
    MAVK_TRY_CUDA(gemm_stage(&g, c, in, w[0], e.first, e.rows, stride));
    for (int64_t column = 0; column < g.N; column += g.slice) {
      e.columns = g.N - column < g.slice ? g.N - column : g.slice;
      e.first_tile = column / TILE_ROWS;
      for (int i = 0; i < items; i++) {
        MAVK_TRY_CUDA(gemm_sums(&g, c, w[i], column, e.columns, e.rows, i));
        e.sums[i] = g.sums[i];
      }
      const dim3 grid((unsigned)(e.columns / TILE_ROWS), (unsigned)ceil_div(e.rows, TOKENS_MAX));
      MAVK_TRY_CUDA(mavk_run(c, gemm_end<J>, grid, dim3(GEMM_END_THREADS), shared, e));
    }
  }
  return 0;
}

#endif
