/* kernels/cpu/matmul.c - the projections that are nothing but a product and its tail: matmul, lm_head, proj_residual,
 * expert_matmul. Pieces are runs of weight rows; weights are read once.
 */
#include "pack.h"

/* y[t, n] = x w^T (+ residual) over all weight rows. */
static void project(const pack_rows *in, const mavk_weight *w, const float *residual, float *y, int64_t ldy, mavk_thread *t) {
  scratch s = scratch_begin(t);
  const packed x = MAVK_CPU(pack)(t, &s, in, w);
  const int64_t N = w->a.n[0], step = dot_piece(w, N, in->K, in->rows, t->team->count);
  for (int64_t n = mavk_claim(t) * step, after; n < N; n = after) {
    const int64_t end = mavk_min(n + step, N);
    after = mavk_claim(t) * step; /* claimed early, so that its first rows can be prefetched */
    MAVK_CPU(dot)(w, 0, n, end, &x, in->rows, y + n, ldy, after < N ? dot_row(w, 0, after) : NULL);
    if (!residual) continue;
    for (int64_t r = 0; r < in->rows; r++)
      for (int64_t i = n; i < end; i++) y[r * ldy + i] = residual[r * ldy + i] + y[r * ldy + i];
  }
}

void MAVK_CPU(matmul)(const mavk_args_matmul *a, mavk_thread *t) {
  const int64_t K = a->x.n[1];
  project(&(pack_rows){.x = a->x.p, .ld = K, .rows = a->x.n[0], .K = K}, &a->w, NULL, a->y.p, a->y.n[1], t);
}

void MAVK_CPU(lm_head)(const mavk_args_lm_head *a, mavk_thread *t) {
  const int64_t D = a->x.n[1];
  project(&(pack_rows){.x = a->x.p, .ld = D, .rows = a->x.n[0], .K = D, .norm = &a->norm, .eps = a->eps}, &a->w, NULL, a->logits.p,
          a->logits.n[1], t);
}

void MAVK_CPU(proj_residual)(const mavk_args_proj_residual *a, mavk_thread *t) {
  const int64_t N = a->a.n[1];
  project(&(pack_rows){.x = a->a.p, .ld = N, .rows = a->a.n[0], .K = N}, &a->w, a->x.p, a->y.p, a->y.n[1], t);
}
