/* kernels/cpu/ffn.c - the feed-forward halves: ffn_up (RMSNorm, gate, up, SwiGLU), ffn_down (down, sum over slots, residual)
 * and expert_matmul.
 *
 * Tokens are grouped by expert, so every chosen expert's weights are read once. The shared (or dense) half and the routed
 * experts are disjoint pieces of one phase. Bytes: gate + up of the shared half and of each distinct expert.
 */
#include "experts.h"

typedef struct half {
  const mavk_weight *gate, *up;
  int64_t expert;      /* 0 for the dense or shared half */
  packed x;
  int64_t rows;
  const int32_t *pair; /* NULL: row r is token r in slot 0; else t * A + a, in slot 1 + a */
} half;

/* h[.., f] = silu(gate) up for weight rows [f, end). */
static void up_piece(const mavk_args_ffn_up *a, const half *p, int64_t f, int64_t end, float *g, float *u, int64_t step, const void *next) {
  const int64_t S = a->h.n[1], F = a->h.n[2], A = S - 1;
  MAVK_CPU(dot)(p->gate, p->expert, f, end, &p->x, p->rows, g, step, dot_row(p->up, p->expert, f));
  MAVK_CPU(dot)(p->up, p->expert, f, end, &p->x, p->rows, u, step, next);
  for (int64_t r = 0; r < p->rows; r++) {
    const int64_t slot = p->pair ? p->pair[r] / A * S + 1 + p->pair[r] % A : r * S;
    float *h = (float *)a->h.p + slot * F + f;
    for (int64_t i = 0; i < end - f; i += 16) {
      const int64_t n = mavk_min(16, end - f - i);
      const v16 x = v16_mul(v16_silu(v16_load_n(g + r * step + i, n)), v16_load_n(u + r * step + i, n));
      if (n == 16) v16_store(h + i, x); /* masked stores are slow on some processors */
      else v16_store_n(h + i, x, n);
    }
  }
}

void MAVK_CPU(ffn_up)(const mavk_args_ffn_up *a, mavk_thread *t) {
  const int64_t T = a->x.n[0], D = a->x.n[1], F = a->gate.a.n[0], A = a->h.n[1] - 1;
  const bool routed = a->expert_gate.a.p != NULL;
  scratch s = scratch_begin(t);
  experts g = {0};
  packed xs = {0};
  pack_rows in = {.x = a->x.p, .ld = D, .rows = T, .K = D, .norm = &a->norm, .eps = a->eps};
  const half shared = {.gate = &a->gate, .up = &a->up, .x = MAVK_CPU(pack)(t, &s, &in, &a->gate), .rows = T};
  if (routed) {
    g = experts_group(&s, a->index.p, T, A, a->expert_gate.a.n[0]);
    float *score = scratch_floats(&s, T * A);
    for (int64_t i = 0; i < T * A; i++) score[i] = ((const float *)a->score.p)[g.pair[i]];
    in.rows = T * A;
    in.source = g.token;
    in.score = score;
    xs = MAVK_CPU(pack)(t, &s, &in, &a->expert_gate);
  }
  const int64_t step = dot_piece(&a->gate, F, D, T, t->team->count), pieces = mavk_ceil_div(F, step);
  float *tmp = scratch_floats(&s, 2 * mavk_max(T, T * A) * step), *tmp2 = tmp + mavk_max(T, T * A) * step;
  const int64_t total = pieces * (1 + g.groups);
  for (int64_t i = mavk_claim(t), after; i < total; i = after) {
    const int64_t group = i / pieces - 1, f = i % pieces * step, end = mavk_min(f + step, F);
    after = mavk_claim(t);
    const int64_t then = after / pieces - 1, row = after % pieces * step;
    const void *next = after >= total ? NULL : then < 0 ? dot_row(&a->gate, 0, row) : dot_row(&a->expert_gate, g.expert[then], row);
    if (group < 0) {
      up_piece(a, &shared, f, end, tmp, tmp2, step, next);
      continue;
    }
    const half expert = {.gate = &a->expert_gate, .up = &a->expert_up, .expert = g.expert[group], .x = experts_rows(&g, group, &xs),
                         .rows = g.first[group + 1] - g.first[group], .pair = g.pair + g.first[group]};
    up_piece(a, &expert, f, end, tmp, tmp2, step, next);
  }
}

void MAVK_CPU(ffn_down)(const mavk_args_ffn_down *a, mavk_thread *t) {
  const int64_t T = a->h.n[0], S = a->h.n[1], F = a->h.n[2], D = a->down.a.n[0], A = S - 1;
  const bool routed = a->expert_down.a.p != NULL;
  scratch s = scratch_begin(t);
  experts g = {0};
  packed xs = {0};
  const packed x0 = MAVK_CPU(pack)(t, &s, &(pack_rows){.x = a->h.p, .ld = S * F, .rows = T, .K = F}, &a->down);
  if (routed) {
    g = experts_group(&s, a->index.p, T, A, a->expert_down.a.n[0]);
    int32_t *slot = scratch_take(&s.own, T * A * 4);
    for (int64_t i = 0; i < T * A; i++) slot[i] = (int32_t)(g.pair[i] / A * S + 1 + g.pair[i] % A);
    xs = MAVK_CPU(pack)(t, &s, &(pack_rows){.x = a->h.p, .ld = F, .rows = T * A, .K = F, .source = slot}, &a->expert_down);
  }
  const int64_t step = dot_piece(&a->down, D, F, T, t->team->count);
  float *sum = scratch_floats(&s, T * step), *part = scratch_floats(&s, T * A * step), *mine = scratch_floats(&s, T * A * step);
  for (int64_t d = mavk_claim(t) * step, after; d < D; d = after) {
    const int64_t end = mavk_min(d + step, D), n = end - d;
    after = mavk_claim(t) * step;
    const void *next = after < D ? dot_row(&a->down, 0, after) : NULL;
    MAVK_CPU(dot)(&a->down, 0, d, end, &x0, T, sum, step, g.groups ? dot_row(&a->expert_down, g.expert[0], d) : next);
    for (int64_t i = 0; i < g.groups; i++) {
      const packed xi = experts_rows(&g, i, &xs);
      const int64_t rows = g.first[i + 1] - g.first[i];
      MAVK_CPU(dot)(&a->expert_down, g.expert[i], d, end, &xi, rows, mine, step,
                    i + 1 < g.groups ? dot_row(&a->expert_down, g.expert[i + 1], d) : next);
      for (int64_t r = 0; r < rows; r++) memcpy(part + g.pair[g.first[i] + r] * step, mine + r * step, (size_t)n * sizeof *part);
    }
    for (int64_t r = 0; r < T; r++) {
      const float *x = (const float *)a->x.p + r * D + d;
      float *y = (float *)a->y.p + r * D + d, *total = sum + r * step;
      for (int64_t k = 0; k < A; k++) /* in slot order, whatever the order of experts */
        for (int64_t i = 0; i < n; i++) total[i] += part[(r * A + k) * step + i];
      for (int64_t i = 0; i < n; i++) y[i] = x[i] + total[i];
    }
  }
}

void MAVK_CPU(expert_matmul)(const mavk_args_expert_matmul *a, mavk_thread *t) {
  const int64_t T = a->index.n[0], A = a->index.n[1], B = a->x.n[1], D = a->x.n[2], N = a->w.a.n[1];
  scratch s = scratch_begin(t);
  const experts g = experts_group(&s, a->index.p, T, A, a->w.a.n[0]);
  int32_t *source = scratch_take(&s.own, T * A * 4);
  float *score = a->score.p ? scratch_floats(&s, T * A) : NULL;
  for (int64_t i = 0; i < T * A; i++) {
    source[i] = B == 1 ? g.token[i] : g.pair[i];
    if (score) score[i] = ((const float *)a->score.p)[g.pair[i]];
  }
  const packed xs = MAVK_CPU(pack)(t, &s, &(pack_rows){.x = a->x.p, .ld = D, .rows = T * A, .K = D, .source = source, .score = score}, &a->w);
  const int64_t step = dot_piece(&a->w, N, D, T, t->team->count), pieces = mavk_ceil_div(N, step);
  float *y = scratch_floats(&s, T * A * step);
  for (int64_t i; (i = mavk_claim(t)) < pieces * g.groups;) {
    const int64_t group = i / pieces, n = i % pieces * step, end = mavk_min(n + step, N);
    const packed x = experts_rows(&g, group, &xs);
    const int64_t rows = g.first[group + 1] - g.first[group];
    MAVK_CPU(dot)(&a->w, g.expert[group], n, end, &x, rows, y, step, NULL);
    for (int64_t r = 0; r < rows; r++)
      memcpy((float *)a->y.p + g.pair[g.first[group] + r] * N + n, y + r * step, (size_t)(end - n) * sizeof *y);
  }
}
