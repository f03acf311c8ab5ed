/* kernels/cpu/pack.h - what stands before a matrix product: scratch memory, RMSNorm of rows, rounding and packing of
 * activations in the order dot.h wants them.
 */
#ifndef MAVK_PACK_H
#define MAVK_PACK_H

#include "dot.h"

#define PACK_PRIVATE_ROWS 16 /* up to here every thread packs all rows for itself: cheaper than a barrier */
#define PACK_GAP 16 /* floats between rows, so that a power-of-two K does not put all rows into the same cache sets */

/* Bump allocation in the thread's and the team's scratch. All threads take the same sizes in the same order. */
typedef struct scratch {
  char *own, *shared;
} scratch;

static inline scratch scratch_begin(const mavk_thread *t) { return (scratch){t->scratch, t->team->shared}; }
static inline void *scratch_take(char **p, int64_t bytes) {
  void *r = *p;
  *p += mavk_round_up(bytes, 64);
  return r;
}
static inline float *scratch_floats(scratch *s, int64_t n) { return scratch_take(&s->own, n * 4); }

/* Rows to be packed. Row r is x + (source ? source[r] : r) * ld, normalized when norm is given, then times score[r]. */
typedef struct pack_rows {
  const float *x;
  int64_t ld, rows, K;
  const mavk_array *norm; /* RMSNorm weight (K) */
  float eps;
  const int32_t *source;
  const float *score;
} pack_rows;

/* Packs for the dtype and activation rounding of w. Contains a barrier when rows > PACK_PRIVATE_ROWS. */
packed MAVK_CPU(pack)(mavk_thread *t, scratch *s, const pack_rows *in, const mavk_weight *w);

/* dst = x / sqrt(mean(x^2) + eps) * w; w may be NULL (plain) and any float dtype. */
void MAVK_CPU(norm_row)(float *dst, const float *x, const mavk_array *w, int64_t D, float eps);

#endif
