/* kernels/cpu/accept.c - which drafts are accepted: a walk from every root to one of its children, and on from there.
 *
 * accept looks at nothing but the rows. The two others pass over rows of probabilities: where such a row is one block
 * (rows.h) one thread walks; where it is longer all threads walk together, deciding alike, and share the blocks of every
 * pass. Sums that decide are taken in the order that ref.h defines, block after block, so nothing depends on the threads.
 */
#include <math.h>

#include "gumbel.h"

/* The first live child of row r after row `after`; rows->n: none. */
static int64_t next_child(const mavk_rows *rows, int64_t r, int64_t after) {
  int64_t c = after + 1;
  while (c < rows->n && (rows->seq[c] < 0 || mavk_parent(rows, c) != r)) c++;
  return c;
}

static bool is_root(const mavk_rows *rows, int64_t r) { return rows->seq[r] >= 0 && mavk_parent(rows, r) < 0; }

void MAVK_CPU(accept)(const mavk_args_accept *a, mavk_thread *t) {
  const int64_t T = a->rows.n;
  const int32_t *choice = a->choice.p;
  int32_t *accepted = a->accepted.p;
  if (mavk_claim(t) > 0) return;
  for (int64_t r = 0; r < T; r++) accepted[r] = -1;
  for (int64_t root = 0; root < T; root++) {
    int32_t place = 0;
    for (int64_t r = is_root(&a->rows, root) ? root : T, c; r < T; r = c) {
      accepted[r] = place++;
      c = next_child(&a->rows, r, r);
      while (c < T && a->rows.id[c] != choice[r]) c = next_child(&a->rows, r, c);
    }
  }
}

/* ---- passes over a row of probabilities --------------------------------------------------------------------------- */

/* What a block leaves. */
typedef struct partial {
  double p, q; /* sums */
  float value; /* the best of a draw, and its id */
  int32_t id;
} partial;

/* Row r's p after the children before row `end` were rejected: max(p - taken q, 0) without their ids, and q without their
 * ids (kernels/ref/accept.c says why). */
typedef struct rest {
  const mavk_rows *rows;
  int64_t row, end;
  const float *p, *q;
  float taken;
} rest;

/* The lowest rejected id from `id` on; INT64_MAX: none. */
static int64_t next_rejected(const rest *s, int64_t id) {
  int64_t least = INT64_MAX;
  for (int64_t c = next_child(s->rows, s->row, s->row); c < s->end; c = next_child(s->rows, s->row, c))
    if (s->rows->id[c] >= id && s->rows->id[c] < least) least = s->rows->id[c];
  return least;
}

V16_INLINE v16 above_least(v16 x) { return v16_select_lt(v16_set1(MAVK_LEAST), x, x, v16_zero()); }

/* The rest of ids [id, id + n), n <= 16. `rejected`: the lowest rejected id that is not before id. */
V16_INLINE v16 rest16(const rest *s, int64_t id, int64_t n, int64_t *rejected, v16 *q) {
  v16 p = v16_load_n(s->p + id, n);
  *q = v16_zero();
  if (s->q) {
    *q = v16_load_n(s->q + id, n);
    p = v16_sub(p, v16_mul(v16_set1(s->taken), *q));
    *q = above_least(*q);
  }
  p = above_least(p);
  if (*rejected < id + n) {
    float fp[16], fq[16];
    v16_store(fp, p);
    v16_store(fq, *q);
    for (; *rejected < id + n; *rejected = next_rejected(s, *rejected + 1)) fp[*rejected - id] = fq[*rejected - id] = 0;
    p = v16_load(fp);
    *q = v16_load(fq);
  }
  return p;
}

static float rest_at(const rest *s, int64_t id, float *q) {
  float p[16], f[16];
  int64_t rejected = next_rejected(s, id);
  v16 all;
  v16_store(p, rest16(s, id, 1, &rejected, &all));
  v16_store(f, all);
  *q = f[0];
  return p[0];
}

static void sum_rest(const void *what, int64_t first, int64_t count, float *tmp, partial *out) {
  const rest *s = what;
  int64_t rejected = next_rejected(s, first);
  v16d p = v16d_zero(), q = v16d_zero();
  (void)tmp;
  for (int64_t i = 0; i < count; i += 16) {
    v16 x, y;
    x = rest16(s, first + i, mavk_min(16, count - i), &rejected, &y);
    p = v16d_add(p, x);
    if (s->q) q = v16d_add(q, y);
  }
  out->p = v16d_sum(p);
  out->q = v16d_sum(q);
}

typedef struct lot {
  rest from;
  noise g;
} lot;

static void draw_rest(const void *what, int64_t first, int64_t count, float *tmp, partial *out) {
  const lot *l = what;
  const v16 none = v16_set1(-INFINITY);
  int64_t rejected = next_rejected(&l->from, first);
  for (int64_t i = 0; i < count; i += 16) {
    v16 q, p = rest16(&l->from, first + i, mavk_min(16, count - i), &rejected, &q);
    v16_store(tmp + i, v16_select_lt(v16_zero(), p, v16_log_normal(p), none)); /* tmp: a whole block */
  }
  out->value = draw(&l->g, tmp, first, count, &out->id);
}

/* Sum of p ln p. */
static void sum_entropy(const void *what, int64_t first, int64_t count, float *tmp, partial *out) {
  const float *p = (const float *)what + first;
  const v16 least = v16_set1(MAVK_LEAST);
  v16d s = v16d_zero();
  (void)tmp;
  for (int64_t i = 0; i < count; i += 16) {
    const v16 x = v16_load_n(p + i, mavk_min(16, count - i));
    s = v16d_add(s, v16_select_lt(least, x, v16_mul(x, v16_log_normal(x)), v16_zero()));
  }
  out->p = v16d_sum(s);
}

typedef struct walk {
  mavk_thread *t;
  int64_t V, each; /* blocks in a row */
  int64_t passes;
  bool writes;     /* this thread's results are kept */
  partial alone;
} walk;

/* False: this thread has nothing to do. */
static bool walk_begin(walk *w, const mavk_array *p, mavk_thread *t) {
  const blocks b = blocks_of(p);
  *w = (walk){.t = t, .V = b.n, .each = b.each, .writes = b.each == 1 || t->index == 0};
  return b.each > 1 || mavk_claim(t) == 0;
}

/* Every block of a row, in order; valid until the pass after the next. */
static const partial *over_row(walk *w, void block_pass(const void *what, int64_t first, int64_t count, float *tmp, partial *out),
                               const void *what) {
  if (w->each == 1) {
    block_pass(what, 0, w->V, w->t->scratch, &w->alone);
    return &w->alone;
  }
  partial *out = (partial *)w->t->team->shared + w->passes++ % 2 * w->each; /* slow threads still read those of the last pass */
  for (int64_t i; (i = mavk_claim(w->t)) < w->each;)
    block_pass(what, i * ROW_BLOCK, mavk_min(ROW_BLOCK, w->V - i * ROW_BLOCK), w->t->scratch, &out[i]);
  mavk_phase(w->t);
  return out;
}

static partial sum_of(walk *w, const rest *s) {
  const partial *b = over_row(w, sum_rest, s);
  partial sum = {0};
  for (int64_t i = 0; i < w->each; i++) sum.p += b[i].p, sum.q += b[i].q;
  return sum;
}

/* ---- speculative sampling ----------------------------------------------------------------------------------------- */

/* The child of row r that is accepted, or T; then *choice is a draw from what p has become. */
static int64_t try_children(walk *w, const mavk_args_accept_rejection *a, int64_t r, int32_t *choice) {
  const int64_t T = a->rows.n, key = a->kv.key[a->rows.seq[r]];
  const int32_t pos = a->rows.pos[r];
  int64_t c = next_child(&a->rows, r, r);
  rest s = {&a->rows, r, c, (const float *)a->p.p + r * w->V, a->q.p ? (const float *)a->q.p + r * w->V : NULL, 0};
  partial sum = {0};
  if (c < T) sum = sum_of(w, &s);
  while (c < T) {
    const int32_t id = a->rows.id[c];
    float q;
    const double u = mavk_uniform(mavk_stream((uint64_t)a->seed, MAVK_STREAM_TRY), key, pos, id), p = rest_at(&s, id, &q);
    if (q > 0 ? u * q * sum.p < p * sum.q : u * sum.p < p) { /* u < (p / P) / (q / Q); certain drafts: q / Q = 1 */
      *choice = id;
      return c;
    }
    rest next = s;
    next.end = c + 1;
    if (q > 0) next.taken = (float)(s.taken + sum.p / sum.q);
    sum = sum_of(w, &next);
    if (!(sum.p > 0)) break; /* nothing is left, by rounding: the draw is from p as it was */
    s = next;
    c = next_child(&a->rows, r, c);
  }
  const lot l = {s, {mavk_stream((uint64_t)a->seed, MAVK_STREAM_RESIDUAL), key, pos}};
  const partial *b = over_row(w, draw_rest, &l);
  int64_t best = 0;
  for (int64_t i = 1; i < w->each; i++)
    if (b[i].value > b[best].value) best = i;
  *choice = b[best].id;
  return T;
}

void MAVK_CPU(accept_rejection)(const mavk_args_accept_rejection *a, mavk_thread *t) {
  const int64_t T = a->rows.n;
  int32_t *accepted = a->accepted.p, *choice = a->choice.p, chosen;
  walk w;
  if (!walk_begin(&w, &a->p, t)) return;
  for (int64_t r = 0; r < T && w.writes; r++) accepted[r] = -1, choice[r] = 0;
  for (int64_t root = 0; root < T; root++) {
    int32_t place = 0;
    for (int64_t r = is_root(&a->rows, root) ? root : T, c; r < T; r = c, place++) {
      c = try_children(&w, a, r, &chosen);
      if (w.writes) accepted[r] = place, choice[r] = chosen;
    }
  }
}

/* ---- typical acceptance ------------------------------------------------------------------------------------------- */

void MAVK_CPU(accept_typical)(const mavk_args_accept_typical *a, mavk_thread *t) {
  const int64_t T = a->rows.n;
  const int32_t *choice = a->choice.p;
  int32_t *accepted = a->accepted.p, *next_ids = a->next_ids.p;
  walk w;
  if (!walk_begin(&w, &a->p, t)) return;
  for (int64_t r = 0; r < T && w.writes; r++) accepted[r] = -1, next_ids[r] = 0;
  for (int64_t root = 0; root < T; root++) {
    int32_t place = 0;
    for (int64_t r = is_root(&a->rows, root) ? root : T, child; r < T; r = child, place++) {
      const float *p = (const float *)a->p.p + r * w.V;
      child = T;
      int64_t c = next_child(&a->rows, r, r);
      if (c < T) {
        const partial *b = over_row(&w, sum_entropy, p);
        double sum = 0; /* -H */
        for (int64_t i = 0; i < w.each; i++) sum += b[i].p;
        const double limit = fmin(a->epsilon, a->delta * exp(sum));
        for (; c < T; c = next_child(&a->rows, r, c))
          if (p[a->rows.id[c]] > limit && (child == T || p[a->rows.id[c]] > p[a->rows.id[child]])) child = c;
      }
      if (w.writes) accepted[r] = place, next_ids[r] = child < T ? a->rows.id[child] : choice[r];
    }
  }
}
