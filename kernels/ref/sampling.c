/* kernels/ref/sampling.c - filters on rows of logits (what is dropped becomes -inf, and stays so), and the draw. */
#include "../noise.h"
#include "ref.h"

void mavk_ref_penalize(const mavk_args_penalize *a) {
  const int64_t V = a->x.n[1];
  const uint8_t *seen = a->seen.p;
  for (int64_t t = 0; t < a->rows.n; t++) {
    const int32_t seq = a->rows.seq[t];
    for (int64_t v = 0; v < V; v++) {
      bool occurred = seq >= 0 && seen[seq * V + v];
      for (int64_t r = t; seq >= 0 && r != MAVK_NO_ROW; r = mavk_parent(&a->rows, r)) occurred = occurred || a->rows.id[r] == v;
      const float x = *ref_in(&a->x, t * V + v);
      *ref_out(&a->y, t * V + v) = !occurred ? x : x > 0 ? x / a->penalty : x * a->penalty;
    }
  }
}

void mavk_ref_mark_seen(const mavk_args_mark_seen *a) {
  const int64_t V = a->seen.n[1];
  for (int64_t t = 0; t < a->rows.n; t++)
    if (a->rows.seq[t] >= 0 && (!a->accepted.p || *ref_index(&a->accepted, t) >= 0))
      ((uint8_t *)a->seen.p)[a->rows.seq[t] * V + a->rows.id[t]] = 1;
}

/* y = x in ascending order: the masks sort in their own result. */
static void sort_into(float *y, const float *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = x[i];
  ref_sort(y, n);
}

void mavk_ref_top_k_mask(const mavk_args_top_k_mask *a) {
  const int64_t N = ref_last(&a->x), k = a->k < N ? a->k : N;
  for (int64_t t = 0; t < ref_leading(&a->x) && N > 0; t++) {
    const float *x = ref_in(&a->x, t * N);
    float *y = ref_out(&a->y, t * N);
    sort_into(y, x, N);
    const float kth = y[N - k];
    for (int64_t i = 0; i < N; i++) y[i] = x[i] >= kth ? x[i] : -INFINITY;
  }
}

/* In ascending order, the lower index first among equals, values are dropped while their cumulative probability is at most
 * 1 - p. That is: all values below `edge`, and the first `dropped` of those equal to it. */
void mavk_ref_top_p_mask(const mavk_args_top_p_mask *a) {
  const int64_t N = ref_last(&a->x);
  for (int64_t t = 0; t < ref_leading(&a->x) && N > 0; t++) {
    const float *x = ref_in(&a->x, t * N);
    float *y = ref_out(&a->y, t * N);
    sort_into(y, x, N);
    const float best = y[N - 1];
    double sum = 0, cumulative = 0;
    for (int64_t i = 0; i < N; i++) sum += expf(y[i] - best);
    int64_t kept = 0; /* place of the first that stays; the best always does */
    for (; kept < N - 1; kept++) {
      cumulative += expf(y[kept] - best);
      if (cumulative > (1 - (double)a->p) * sum) break;
    }
    const float edge = y[kept];
    int64_t dropped = 0;
    while (dropped < kept && y[kept - 1 - dropped] == edge) dropped++;
    for (int64_t i = 0; i < N; i++) {
      const bool is_dropped = x[i] < edge || (x[i] == edge && dropped-- > 0);
      y[i] = is_dropped ? -INFINITY : x[i];
    }
  }
}

void mavk_ref_min_p_mask(const mavk_args_min_p_mask *a) {
  const int64_t N = ref_last(&a->x);
  for (int64_t t = 0; t < ref_leading(&a->x); t++) {
    const float *x = ref_in(&a->x, t * N);
    float best = -INFINITY;
    for (int64_t i = 0; i < N; i++) best = x[i] > best ? x[i] : best;
    for (int64_t i = 0; i < N; i++) *ref_out(&a->y, t * N + i) = expf(x[i] - best) < a->p ? -INFINITY : x[i];
  }
}

/* argmax(x + noise) is a draw from softmax(x). -inf is never drawn; the lowest id wins a tie. */
void mavk_ref_sample(const mavk_args_sample *a) {
  const int64_t V = a->x.n[1];
  for (int64_t t = 0; t < a->rows.n; t++) {
    const int32_t seq = a->rows.seq[t];
    int32_t id = 0;
    float best = -INFINITY;
    for (int32_t v = 0; v < V && seq >= 0; v++) {
      const float x = *ref_in(&a->x, t * V + v);
      if (x == -INFINITY) continue;
      const float y = x + mavk_noise((uint64_t)a->seed, a->kv.key[seq], (int32_t)(a->rows.pos[t] + a->ahead), v);
      if (y > best) best = y, id = v;
    }
    ((int32_t *)a->ids.p)[t] = id;
  }
}

void mavk_ref_perturb(const mavk_args_perturb *a) {
  const int64_t V = a->x.n[1];
  const uint64_t seed = mavk_stream((uint64_t)a->seed, (uint32_t)a->stream);
  for (int64_t t = 0; t < a->rows.n; t++) {
    const int32_t seq = a->rows.seq[t], pos = (int32_t)(a->rows.pos[t] + a->ahead);
    for (int32_t v = 0; v < V; v++)
      *ref_out(&a->y, t * V + v) = seq < 0 ? 0 : *ref_in(&a->x, t * V + v) + mavk_noise(seed, a->kv.key[seq], pos, v);
  }
}
