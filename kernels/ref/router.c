/* kernels/ref/router.c - which experts a token visits: top-k of the raw logits, lowest index first on ties; score = sigmoid. */
#include "ref.h"

void mavk_ref_router(const mavk_args_router *a) {
  const int64_t T = a->x.n[0], D = a->x.n[1], E = a->w.a.n[0], A = a->index.n[1];
  for (int64_t t = 0; t < T; t++) {
    const ref_row x = ref_row_for(&a->w, ref_in(&a->x, t * D), D, &a->norm, a->eps, 1);
    float above = INFINITY; /* logit and index of the expert chosen before */
    int64_t above_index = -1;
    for (int64_t i = 0; i < A; i++) {
      float best = -INFINITY;
      int64_t best_index = -1;
      for (int64_t e = 0; e < E; e++) {
        const float logit = ref_dot(&x, &a->w, 0, e);
        const bool is_left = logit < above || (logit == above && e > above_index);
        if (is_left && (best_index < 0 || logit > best)) best = logit, best_index = e;
      }
      if (best_index < 0) best_index = i, best = NAN; /* only NaN is left: any index that exists */
      ((int32_t *)a->index.p)[t * A + i] = (int32_t)best_index;
      *ref_out(&a->score, t * A + i) = 1 / (1 + expf(-best));
      above = best, above_index = best_index;
    }
  }
}
