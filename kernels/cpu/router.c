/* kernels/cpu/router.c - RMSNorm, router logits, top-k, sigmoid. Few rows (E of them): one piece per token, so every thread
 * reads the router's weights only for its own tokens. */
#include <math.h>

#include "pack.h"

/* The k largest of n, best first, the lowest index on ties. Never leaves [0, n), whatever the values. */
static void choose(const float *logits, int64_t n, int64_t k, int32_t *index, float *score) {
  for (int64_t i = 0; i < k; i++) {
    int64_t best = -1;
    for (int64_t e = 0; e < n; e++) {
      bool taken = false;
      for (int64_t j = 0; j < i; j++) taken |= index[j] == e;
      if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
    }
    index[i] = (int32_t)best;
    score[i] = 1 / (1 + expf(-logits[best]));
  }
}

void MAVK_CPU(router)(const mavk_args_router *a, mavk_thread *t) {
  const int64_t D = a->x.n[1], T = a->x.n[0], E = a->w.a.n[0], group = T > 64 ? 8 : 1;
  for (int64_t r; (r = mavk_claim(t) * group) < T;) {
    scratch s = scratch_begin(t);
    const int64_t rows = mavk_min(group, T - r);
    const packed x = MAVK_CPU(pack)(
        t, &s, &(pack_rows){.x = (const float *)a->x.p + r * D, .ld = D, .rows = rows, .K = D, .norm = &a->norm, .eps = a->eps}, &a->w);
    float *logits = scratch_floats(&s, rows * E);
    MAVK_CPU(dot)(&a->w, 0, 0, E, &x, rows, logits, E, NULL);
    for (int64_t i = 0; i < rows; i++)
      choose(logits + i * E, E, a->top_k, (int32_t *)a->index.p + (r + i) * a->top_k, (float *)a->score.p + (r + i) * a->top_k);
  }
}
