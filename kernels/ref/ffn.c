/* kernels/ref/ffn.c - ffn_up: RMSNorm, gate and up projections, SwiGLU, by slot; ffn_down: their sum, and the residual.
 * Slot 0 is the dense layer or the shared expert, slot 1 + i the token's i-th routed expert. The router's score
 * multiplies the expert's input, so it is rounded with it when the weight asks for that. */
#include "ref.h"

static void gate_up(float *h, int64_t F, const float *x, int64_t D, const mavk_array *norm, float eps, float score, int64_t expert,
                    const mavk_weight *gate, const mavk_weight *up) {
  const ref_row xg = ref_row_for(gate, x, D, norm, eps, score), xu = ref_row_for(up, x, D, norm, eps, score);
  for (int64_t f = 0; f < F; f++) h[f] = ref_silu(ref_dot(&xg, gate, expert, f)) * ref_dot(&xu, up, expert, f);
}

void mavk_ref_ffn_up(const mavk_args_ffn_up *a) {
  const int64_t T = a->x.n[0], D = a->x.n[1], S = a->h.n[1], F = a->h.n[2], A = S - 1;
  for (int64_t t = 0; t < T; t++) {
    const float *x = ref_in(&a->x, t * D);
    gate_up(ref_out(&a->h, t * S * F), F, x, D, &a->norm, a->eps, 1, 0, &a->gate, &a->up);
    for (int64_t i = 0; i < A; i++) {
      const int32_t expert = *ref_index(&a->index, t * A + i);
      const float score = a->score.p ? *ref_in(&a->score, t * A + i) : 1;
      gate_up(ref_out(&a->h, (t * S + 1 + i) * F), F, x, D, &a->norm, a->eps, score, expert, &a->expert_gate, &a->expert_up);
    }
  }
}

void mavk_ref_ffn_down(const mavk_args_ffn_down *a) {
  const int64_t T = a->h.n[0], S = a->h.n[1], F = a->h.n[2], D = a->x.n[1];
  for (int64_t t = 0; t < T; t++) {
    for (int64_t d = 0; d < D; d++) *ref_out(&a->y, t * D + d) = 0;
    for (int64_t slot = 0; slot < S; slot++) {
      const mavk_weight *down = slot == 0 ? &a->down : &a->expert_down;
      const int64_t expert = slot == 0 ? 0 : *ref_index(&a->index, t * (S - 1) + slot - 1);
      const ref_row h = ref_row_for(down, ref_in(&a->h, (t * S + slot) * F), F, NULL, 0, 1);
      for (int64_t d = 0; d < D; d++) *ref_out(&a->y, t * D + d) += ref_dot(&h, down, expert, d);
    }
    for (int64_t d = 0; d < D; d++) *ref_out(&a->y, t * D + d) += *ref_in(&a->x, t * D + d);
  }
}
