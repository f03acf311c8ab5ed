/* kernels/cpu/move.c - elements in other places: gather, take, scatter, concat, stack. Rows are the pieces. */
#include <string.h>

#include "rows.h"

static void copy(void *y, const float *x, int64_t at, int64_t n) { memcpy((float *)y + at, x, (size_t)n * sizeof *x); }

void MAVK_CPU(gather)(const mavk_args_gather *a, mavk_thread *t) {
  const int64_t D = a->x.n[1];
  const int32_t *index = a->index.p;
  for (int64_t i; (i = mavk_claim(t)) < a->index.n[0];) copy(a->y.p, (const float *)a->x.p + index[i] * D, i * D, D);
}

void MAVK_CPU(take)(const mavk_args_take *a, mavk_thread *t) {
  const int64_t N = a->x.n[1], I = a->index.n[1];
  const float *x = a->x.p;
  const int32_t *index = a->index.p;
  float *y = a->y.p;
  for (int64_t r; (r = mavk_claim(t)) < a->x.n[0];)
    for (int64_t i = 0; i < I; i++) y[r * I + i] = x[r * N + index[r * I + i]];
}

/* Pieces are blocks (rows.h) of y, which is first base everywhere, then of index. */
void MAVK_CPU(scatter)(const mavk_args_scatter *a, mavk_thread *t) {
  const blocks b = blocks_of(&a->y), in = blocks_of(&a->x);
  const int32_t *index = a->index.p;
  const bool together = b.each > 1; /* else a row is one piece */
  for (block k; block_claim(&k, &b, &a->y, &a->y, t);) {
    memcpy(k.y, (const float *)a->base.p + k.first, (size_t)k.count * sizeof *k.y);
    const float *x = (const float *)a->x.p + k.row * in.n;
    for (int64_t i = 0; i < in.n && !together; i++) k.y[index[i]] = x[i];
  }
  if (!together) return;
  mavk_phase(t);
  for (block k; block_claim(&k, &in, &a->x, NULL, t);)
    for (int64_t i = 0; i < k.count; i++) ((float *)a->y.p)[k.row * b.n + index[k.first + i]] = k.x[i];
}

void MAVK_CPU(concat)(const mavk_args_concat *a, mavk_thread *t) {
  const int64_t N = a->a.n[1], M = a->b.n[1];
  for (int64_t r; (r = mavk_claim(t)) < a->a.n[0];) {
    copy(a->y.p, (const float *)a->a.p + r * N, r * (N + M), N);
    copy(a->y.p, (const float *)a->b.p + r * M, r * (N + M) + N, M);
  }
}

void MAVK_CPU(stack)(const mavk_args_stack *a, mavk_thread *t) {
  const int64_t D = a->a.n[1], N = a->a.n[0];
  for (int64_t r; (r = mavk_claim(t)) < N + a->b.n[0];)
    copy(a->y.p, r < N ? (const float *)a->a.p + r * D : (const float *)a->b.p + (r - N) * D, r * D, D);
}
