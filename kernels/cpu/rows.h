/* kernels/cpu/rows.h - work on rows of a last dimension, where a row may be as long as a vocabulary: rows are cut in blocks
 * of fixed size, each thread claims blocks, and what blocks leave (a maximum, a sum) is folded in block order. So a row's
 * bits depend neither on the threads nor on the other rows.
 */
#ifndef MAVK_ROWS_H
#define MAVK_ROWS_H

#include "cpu.h"
#include "lanes.h"

#define ROW_BLOCK 16384 /* 64 KiB */

typedef struct blocks {
  int64_t rows, n, each; /* blocks in a row */
} blocks;

static inline blocks blocks_of(const mavk_array *x) {
  const int64_t n = mavk_row_size(x);
  return (blocks){mavk_row_count(x), n, mavk_max(1, mavk_ceil_div(n, ROW_BLOCK))};
}

typedef struct block {
  int64_t index, row, first, count; /* elements [first, first + count) of the row */
  const float *x;
  float *y;
} block;

/* The next unclaimed block; false: none is left. */
static inline bool block_claim(block *out, const blocks *b, const mavk_array *x, const mavk_array *y, mavk_thread *t) {
  const int64_t i = mavk_claim(t);
  if (i >= b->rows * b->each) return false;
  const int64_t row = i / b->each, first = i % b->each * ROW_BLOCK;
  *out = (block){i, row, first, mavk_min(ROW_BLOCK, b->n - first), (const float *)x->p + row * b->n + first,
                 y ? (float *)y->p + row * b->n + first : NULL};
  return true;
}

/* What the blocks of all rows leave for each other: per block, in the team's scratch. */
static inline double *block_sums(const mavk_thread *t) { return t->team->shared; }
static inline float *block_largest(const mavk_thread *t, const blocks *b) { return (float *)(block_sums(t) + b->rows * b->each); }

static inline double row_sum(const double *sums, const blocks *b, int64_t row) {
  double s = 0;
  for (int64_t i = 0; i < b->each; i++) s += sums[row * b->each + i];
  return s;
}

/* NaN is passed over, here and in row_largest. */
static inline float row_largest(const float *largest, const blocks *b, int64_t row) {
  float m = -__builtin_inff();
  for (int64_t i = 0; i < b->each; i++) m = largest[row * b->each + i] > m ? largest[row * b->each + i] : m;
  return m;
}

V16_INLINE float largest_of(const float *x, int64_t n) {
  v16 m0 = v16_set1(-__builtin_inff()), m1 = m0;
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    m0 = v16_max(v16_load(x + i), m0);
    m1 = v16_max(v16_load(x + i + 16), m1);
  }
  for (; i + 16 <= n; i += 16) m0 = v16_max(v16_load(x + i), m0);
  float m = v16_hmax(v16_max(m0, m1));
  for (; i < n; i++) m = x[i] > m ? x[i] : m;
  return m;
}

#endif
