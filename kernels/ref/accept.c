/* kernels/ref/accept.c - which drafts are accepted: a walk from every root to one of its children, and on from there.
 *
 * A root is a live row whose parent is not in the batch. Children come after their parents.
 */
#include "../noise.h"
#include "ref.h"

/* The first live child of row r after row `after`; rows->n: none. */
static int64_t next_child(const mavk_rows *rows, int64_t r, int64_t after) {
  int64_t c = after + 1;
  while (c < rows->n && (rows->seq[c] < 0 || mavk_parent(rows, c) != r)) c++;
  return c;
}

static bool is_root(const mavk_rows *rows, int64_t r) { return rows->seq[r] >= 0 && mavk_parent(rows, r) < 0; }

void mavk_ref_accept(const mavk_args_accept *a) {
  const int64_t T = a->rows.n;
  int32_t *accepted = a->accepted.p;
  for (int64_t t = 0; t < T; t++) accepted[t] = -1;
  for (int64_t root = 0; root < T; root++) {
    int32_t place = 0;
    for (int64_t r = is_root(&a->rows, root) ? root : T, c; r < T; r = c) {
      accepted[r] = place++;
      c = next_child(&a->rows, r, r);
      while (c < T && a->rows.id[c] != *ref_index(&a->choice, r)) c = next_child(&a->rows, r, c);
    }
  }
}

/* ---- speculative sampling ----------------------------------------------------------------------------------------- */

/* What p has become at row r after the children before row `end` were rejected: max(p - taken q, 0) without their ids.
 * Normalizing is left to those who use it: p' = norm(max(p / P - q / Q, 0)) is norm(max(p - (P / Q) q, 0)), and as taking
 * away q twice is taking away more of it, one number says how much. */
typedef struct rest {
  const mavk_rows *rows;
  int64_t row, end;
  const float *p, *q; /* q: NULL where drafts were certain */
  float taken;
} rest;

static bool is_rejected(const rest *s, int32_t id) {
  for (int64_t c = next_child(s->rows, s->row, s->row); c < s->end; c = next_child(s->rows, s->row, c))
    if (s->rows->id[c] == id) return true;
  return false;
}

static float rest_p(const rest *s, int32_t id) {
  const float p = s->q ? s->p[id] - s->taken * s->q[id] : s->p[id];
  return p > MAVK_LEAST && !is_rejected(s, id) ? p : 0;
}

static float rest_q(const rest *s, int32_t id) { return s->q && s->q[id] > MAVK_LEAST && !is_rejected(s, id) ? s->q[id] : 0; }

static double rest_sum(const rest *s, int64_t V, float of(const rest *s, int32_t id)) {
  ref_sum sum = {0};
  for (int32_t v = 0; v < V; v++) ref_sum_add(&sum, of(s, v));
  return ref_sum_fold(&sum);
}

/* The child of row r that is accepted, or T; then *choice is a draw from what p has become. A child that q does not hold
 * counts as certain: q is 1 there. */
static int64_t try_children(const mavk_args_accept_rejection *a, int64_t r, int32_t *choice) {
  const int64_t T = a->rows.n, V = a->p.n[1], key = a->kv.key[a->rows.seq[r]];
  const uint64_t seed = (uint64_t)a->seed;
  const int32_t pos = a->rows.pos[r];
  int64_t c = next_child(&a->rows, r, r);
  rest s = {&a->rows, r, c, ref_in(&a->p, r * V), a->q.p ? ref_in(&a->q, r * V) : NULL, 0};
  for (double P = rest_sum(&s, V, rest_p), Q = rest_sum(&s, V, rest_q); c < T;) {
    const int32_t id = a->rows.id[c];
    const double u = mavk_uniform(mavk_stream(seed, MAVK_STREAM_TRY), key, pos, id), p = rest_p(&s, id), q = rest_q(&s, id);
    if (q > 0 ? u * q * P < p * Q : u * P < p) { /* u < (p / P) / (q / Q) */
      *choice = id;
      return c;
    }
    rest next = s;
    next.end = c + 1;
    if (q > 0) next.taken = (float)(s.taken + P / Q);
    P = rest_sum(&next, V, rest_p);
    Q = rest_sum(&next, V, rest_q);
    if (!(P > 0)) break; /* nothing is left, by rounding: the draw is from p as it was */
    s = next;
    c = next_child(&a->rows, r, c);
  }
  float best = -INFINITY;
  *choice = 0;
  for (int32_t v = 0; v < V; v++) {
    const float p = rest_p(&s, v);
    if (!(p > 0)) continue;
    const float y = mavk_log(p) + mavk_noise(mavk_stream(seed, MAVK_STREAM_RESIDUAL), key, pos, v);
    if (y > best) best = y, *choice = v;
  }
  return T;
}

void mavk_ref_accept_rejection(const mavk_args_accept_rejection *a) {
  const int64_t T = a->rows.n;
  int32_t *accepted = a->accepted.p, *choice = a->choice.p;
  for (int64_t t = 0; t < T; t++) accepted[t] = -1, choice[t] = 0;
  for (int64_t root = 0; root < T; root++) {
    int32_t place = 0;
    for (int64_t r = is_root(&a->rows, root) ? root : T, c; r < T; r = c) {
      accepted[r] = place++;
      c = try_children(a, r, &choice[r]);
    }
  }
}

/* ---- typical acceptance ------------------------------------------------------------------------------------------- */

void mavk_ref_accept_typical(const mavk_args_accept_typical *a) {
  const int64_t T = a->rows.n, V = a->p.n[1];
  int32_t *accepted = a->accepted.p, *next_ids = a->next_ids.p;
  for (int64_t t = 0; t < T; t++) accepted[t] = -1, next_ids[t] = 0;
  for (int64_t root = 0; root < T; root++) {
    int32_t place = 0;
    for (int64_t r = is_root(&a->rows, root) ? root : T, child; r < T; r = child) {
      const float *p = ref_in(&a->p, r * V);
      ref_sum sum = {0};
      for (int64_t v = 0; v < V; v++) ref_sum_add(&sum, p[v] > MAVK_LEAST ? p[v] * mavk_log(p[v]) : 0);
      const double limit = fmin(a->epsilon, a->delta * exp(ref_sum_fold(&sum))); /* the sum is -H */
      accepted[r] = place++;
      child = T;
      for (int64_t c = next_child(&a->rows, r, r); c < T; c = next_child(&a->rows, r, c))
        if (p[a->rows.id[c]] > limit && (child == T || p[a->rows.id[c]] > p[a->rows.id[child]])) child = c;
      next_ids[r] = child < T ? a->rows.id[child] : *ref_index(&a->choice, r);
    }
  }
}
