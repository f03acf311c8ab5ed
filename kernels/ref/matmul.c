/* kernels/ref/matmul.c - products with a weight: matmul, expert_matmul, proj_residual, lm_head. */
#include "ref.h"

void mavk_ref_matmul(const mavk_args_matmul *a) {
  const int64_t T = a->x.n[0], D = a->x.n[1], N = a->w.a.n[0];
  for (int64_t t = 0; t < T; t++) {
    const ref_row x = ref_row_for(&a->w, ref_in(&a->x, t * D), D, NULL, 0, 1);
    for (int64_t n = 0; n < N; n++) *ref_out(&a->y, t * N + n) = ref_dot(&x, &a->w, 0, n);
  }
}

void mavk_ref_expert_matmul(const mavk_args_expert_matmul *a) {
  const int64_t T = a->x.n[0], B = a->x.n[1], D = a->x.n[2], A = a->index.n[1], N = a->w.a.n[1];
  for (int64_t t = 0; t < T; t++) {
    for (int64_t i = 0; i < A; i++) {
      const int32_t expert = *ref_index(&a->index, t * A + i);
      const float score = a->score.p ? *ref_in(&a->score, t * A + i) : 1;
      const ref_row x = ref_row_for(&a->w, ref_in(&a->x, (t * B + (B == 1 ? 0 : i)) * D), D, NULL, 0, score);
      for (int64_t n = 0; n < N; n++) *ref_out(&a->y, (t * A + i) * N + n) = ref_dot(&x, &a->w, expert, n);
    }
  }
}

void mavk_ref_proj_residual(const mavk_args_proj_residual *a) {
  const int64_t T = a->a.n[0], N = a->a.n[1], D = a->w.a.n[0];
  for (int64_t t = 0; t < T; t++) {
    const ref_row x = ref_row_for(&a->w, ref_in(&a->a, t * N), N, NULL, 0, 1);
    for (int64_t d = 0; d < D; d++) *ref_out(&a->y, t * D + d) = *ref_in(&a->x, t * D + d) + ref_dot(&x, &a->w, 0, d);
  }
}

void mavk_ref_lm_head(const mavk_args_lm_head *a) {
  const int64_t T = a->x.n[0], D = a->x.n[1], V = a->w.a.n[0];
  for (int64_t t = 0; t < T; t++) {
    const ref_row x = ref_row_for(&a->w, ref_in(&a->x, t * D), D, &a->norm, a->eps, 1);
    for (int64_t v = 0; v < V; v++) *ref_out(&a->logits, t * V + v) = ref_dot(&x, &a->w, 0, v);
  }
}
