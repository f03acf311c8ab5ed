/* kernels/ref/move.c - elements in other places: gather, take, scatter, concat, stack. */
#include "ref.h"

void mavk_ref_gather(const mavk_args_gather *a) {
  const int64_t D = a->x.n[1];
  for (int64_t i = 0; i < a->index.n[0]; i++)
    for (int64_t d = 0; d < D; d++) *ref_out(&a->y, i * D + d) = *ref_in(&a->x, *ref_index(&a->index, i) * D + d);
}

void mavk_ref_take(const mavk_args_take *a) {
  const int64_t T = a->x.n[0], N = a->x.n[1], I = a->index.n[1];
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < I; i++) *ref_out(&a->y, t * I + i) = *ref_in(&a->x, t * N + *ref_index(&a->index, t * I + i));
}

void mavk_ref_scatter(const mavk_args_scatter *a) {
  const int64_t T = a->x.n[0], N = a->x.n[1], V = a->base.n[0];
  for (int64_t t = 0; t < T; t++) {
    for (int64_t v = 0; v < V; v++) *ref_out(&a->y, t * V + v) = *ref_in(&a->base, v);
    for (int64_t i = 0; i < N; i++) *ref_out(&a->y, t * V + *ref_index(&a->index, i)) = *ref_in(&a->x, t * N + i);
  }
}

void mavk_ref_concat(const mavk_args_concat *a) {
  const int64_t T = a->a.n[0], N = a->a.n[1], M = a->b.n[1];
  for (int64_t t = 0; t < T; t++) {
    for (int64_t i = 0; i < N; i++) *ref_out(&a->y, t * (N + M) + i) = *ref_in(&a->a, t * N + i);
    for (int64_t i = 0; i < M; i++) *ref_out(&a->y, t * (N + M) + N + i) = *ref_in(&a->b, t * M + i);
  }
}

void mavk_ref_stack(const mavk_args_stack *a) {
  const int64_t D = a->a.n[1], N = a->a.n[0] * D, M = a->b.n[0] * D;
  for (int64_t i = 0; i < N; i++) *ref_out(&a->y, i) = *ref_in(&a->a, i);
  for (int64_t i = 0; i < M; i++) *ref_out(&a->y, N + i) = *ref_in(&a->b, i);
}
