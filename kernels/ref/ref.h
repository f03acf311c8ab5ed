/* kernels/ref/ref.h - the reference backend: plain C, float32, one thread, written for reading. It defines every op.
 *
 * No scratch memory: what would need a row of it (a normalized row, the scores of attention) is computed again instead.
 * Sums of a norm or a softmax are taken in double; dot products in f32, in index order. Results of idle rows are zero
 * where a fused op makes them (mavk.h leaves them unspecified).
 */
#ifndef MAVK_REF_H
#define MAVK_REF_H

#include <math.h>

#include "../mavk.h"
#include "../numeric.h"

#define MAV_OP(name, doc) void mavk_ref_##name(const mavk_args_##name *a);
#include "../ops.def"

typedef void mavk_ref_fn(const void *args);
extern mavk_ref_fn *const mavk_ref_table[MAVK_OP_COUNT];

/* ---- arrays ------------------------------------------------------------------------------------------------------- */

static inline int64_t ref_count(const mavk_array *a) {
  int64_t count = 1;
  for (int i = 0; i < a->nd; i++) count *= a->n[i];
  return count;
}

/* The last dimension, and how many rows of it there are: "* N". */
static inline int64_t ref_last(const mavk_array *a) { return a->nd ? a->n[a->nd - 1] : 1; }
static inline int64_t ref_leading(const mavk_array *a) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < a->nd; i++) rows *= a->n[i];
  return rows;
}

static inline const float *ref_in(const mavk_array *a, int64_t i) { return (const float *)a->p + i; }
static inline const int32_t *ref_index(const mavk_array *a, int64_t i) { return (const int32_t *)a->p + i; }
static inline float *ref_out(const mavk_array *a, int64_t i) { return (float *)a->p + i; }

/* Where element i of y lies in an operand that is broadcast to y's shape, or that has y's shape and strides of its own. */
static inline int64_t ref_at(const mavk_array *a, const mavk_array *y, int64_t i) {
  int64_t at = 0;
  for (int d = y->nd - 1; d >= 0; d--) {
    const int own = d - (y->nd - a->nd); /* dimensions agree from the last one backwards */
    if (own >= 0 && a->n[own] > 1) at += i % y->n[d] * a->s[own];
    i /= y->n[d];
  }
  return at;
}

static inline float ref_silu(float x) { return x / (1 + expf(-x)); }

/* ---- weights ------------------------------------------------------------------------------------------------------ */

/* 1 / sqrt(mean(x^2) + eps) */
static inline float ref_rms(const float *x, int64_t n, float eps) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
  return (float)(1 / sqrt(sum / (double)n + eps));
}

/* A row of activations as a weight meets it:  e4m3(x * rms * norm * score / step) * step,  without the rounding when
 * step is 0. */
typedef struct ref_row {
  const float *x;
  int64_t n;
  const mavk_array *norm; /* NULL: no RMSNorm before the weight */
  float rms, score, step;
} ref_row;

/* Before rounding. */
static inline float ref_row_value(const ref_row *r, int64_t i) {
  float v = r->x[i];
  if (r->norm) v = v * r->rms * mavk_f32_at(r->norm->p, r->norm->dtype, i);
  return v * r->score;
}

static inline ref_row ref_row_for(const mavk_weight *w, const float *x, int64_t n, const mavk_array *norm, float eps, float score) {
  ref_row r = {x, n, norm, norm ? ref_rms(x, n, eps) : 1, score, 0};
  if (w->act == MAVK_ACT_STATIC) r.step = w->in_scale;
  if (w->act == MAVK_ACT_DYNAMIC) {
    float largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(ref_row_value(&r, i)));
    r.step = largest / MAVK_F8_MAX;
    if (!(r.step > 0)) r.step = 1; /* a row of zeros */
  }
  return r;
}

/* Element n of row w^T, for weight (N, D) or expert e of (E, N, D). Scales are applied to the finished sum. */
static inline float ref_dot(const ref_row *r, const mavk_weight *w, int64_t e, int64_t n) {
  enum { BLOCK = 64 };
  const int stack = w->a.nd == 3;
  const int64_t first = (stack ? e * w->a.s[0] : 0) + n * w->a.s[stack];
  float sum = 0;
  for (int64_t d = 0; d < r->n; d += BLOCK) {
    float x[BLOCK], v[BLOCK];
    int count = (int)(r->n - d < BLOCK ? r->n - d : BLOCK);
    for (int i = 0; i < count; i++) x[i] = ref_row_value(r, d + i);
    if (r->step > 0)
      for (int i = 0; i < count; i++) x[i] = mavk_f32_from_f8(mavk_f8_from_f32(x[i] / r->step));
    for (int i = 0; i < count; i++) v[i] = mavk_f32_at(w->a.p, w->a.dtype, first + d + i);
    for (int i = 0; i < count; i++) sum += x[i] * v[i];
  }
  if (r->step > 0) sum *= r->step;
  if (w->scale) sum *= w->scale[(stack ? e * w->scale_s[0] : 0) + n * w->scale_s[1]];
  return sum;
}

/* ---- the KV cache ------------------------------------------------------------------------------------------------- */

/* Where channel c of a slot's key is; keys are transposed within a page. */
static inline int64_t ref_k_at(const mavk_kv *kv, int32_t seq, int64_t slot, int64_t head, int64_t c) {
  int64_t page = kv->table[seq * kv->table_stride + slot / kv->page];
  return ((page * kv->kv_heads + head) * kv->head_dim + c) * kv->page + slot % kv->page;
}

/* Where channel c of a slot's value is. */
static inline int64_t ref_v_at(const mavk_kv *kv, int32_t seq, int64_t slot, int64_t head, int64_t c) {
  int64_t page = kv->table[seq * kv->table_stride + slot / kv->page];
  return ((page * kv->kv_heads + head) * kv->page + slot % kv->page) * kv->head_dim + c;
}

static inline float ref_kv_load(const mavk_kv *kv, const void *p, float scale, int64_t at) {
  float x = mavk_f32_at(p, kv->dtype, at);
  return kv->dtype == MAVK_F8 ? x * scale : x;
}

static inline void ref_kv_store(const mavk_kv *kv, void *p, float scale, int64_t at, float x) {
  mavk_put_f32(p, kv->dtype, at, kv->dtype == MAVK_F8 ? x / scale : x);
}

/* Puts element c of projected head `head` of row r where it belongs: the first H heads are queries, then K of keys, K of values. */
static inline void ref_place(const mavk_array *q, const mavk_kv *kv, const mavk_rows *rows, int64_t r, int64_t head, int64_t c, float x) {
  const int64_t H = q->n[1], C = kv->head_dim, K = kv->kv_heads;
  if (head < H)
    *ref_out(q, (r * H + head) * C + c) = x;
  else if (head < H + K)
    ref_kv_store(kv, kv->k, kv->k_scale, ref_k_at(kv, rows->seq[r], rows->slot[r], head - H, c), x);
  else
    ref_kv_store(kv, kv->v, kv->v_scale, ref_v_at(kv, rows->seq[r], rows->slot[r], head - H - K, c), x);
}

/* Rotates the pair (x0, x1) by the position times the pair's frequency. The angle is rounded to f32, as in the model. */
static inline void ref_rotate(float *x0, float *x1, int32_t pos, float frequency) {
  float angle = (float)pos * frequency, c = (float)cos((double)angle), s = (float)sin((double)angle);
  float y0 = *x0 * c - *x1 * s, y1 = *x0 * s + *x1 * c;
  *x0 = y0;
  *x1 = y1;
}

/* What the queries of a NoPE layer are multiplied by. */
static inline float ref_temperature(int32_t pos, float attn_scale, float floor_scale) {
  return 1 + attn_scale * log1pf(floorf(((float)pos + 1) / floor_scale));
}

/* ---- sums that decide between tokens ------------------------------------------------------------------------------- */

/* In double on sixteen lanes, which are folded by halves after every block. The order is part of the definition: then every
 * backend decides alike. */
typedef struct ref_sum {
  double lane[16], total;
  int64_t count;
} ref_sum;

static inline double ref_sum_fold(ref_sum *s) {
  for (int w = 8; w; w /= 2)
    for (int i = 0; i < w; i++) s->lane[i] += s->lane[i + w];
  s->total += s->lane[0];
  memset(s->lane, 0, sizeof s->lane);
  return s->total;
}

static inline void ref_sum_add(ref_sum *s, float x) {
  if (s->count > 0 && s->count % 16384 == 0) ref_sum_fold(s);
  s->lane[s->count++ % 16] += x;
}

/* ---- order -------------------------------------------------------------------------------------------------------- */

/* Heapsort, ascending. */
static inline void ref_sort(float *v, int64_t n) {
  for (int64_t start = n / 2, end = n; end > 1;) {
    if (start > 0) {
      start--; /* still building the heap */
    } else {
      float top = v[0];
      v[0] = v[--end];
      v[end] = top;
    }
    for (int64_t i = start, child; (child = 2 * i + 1) < end; i = child) {
      if (child + 1 < end && v[child + 1] > v[child]) child++;
      if (!(v[child] > v[i])) break;
      float x = v[i];
      v[i] = v[child];
      v[child] = x;
    }
  }
}

#endif
