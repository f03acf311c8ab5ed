/* kernels/cpu/attention.c - softmax(scale q k^T) v over the paged cache, by row and kv head.
 *
 * The past is cut at fixed positions (multiples of SPLIT). Within a split: scores of 16 neighbouring positions side by side
 * (keys are transposed in their page), one maximum, exponentials and their sum in 16 lanes by position, then values in
 * position order. Splits are merged in order with the usual rescaling. So a row's result depends on its own past alone, not on
 * where a split's keys lie, on T, or on threads; the query heads of a group share what is read.
 *
 * Grid: T x K pieces. Bytes: 2 C keys and values a position and kv head, read once per row; bound by memory for long
 * contexts, by latency of the score chain for short ones.
 */
#include <math.h>

#include "../numeric.h"
#include "pack.h"

#define SPLIT 256

static v16 load16(const void *p, int32_t dtype, int64_t i) {
  if (dtype == MAVK_F32) return v16_load((const float *)p + i);
  if (dtype == MAVK_BF16) return v16_load_bf16((const uint16_t *)p + i);
  float f[16];
  for (int k = 0; k < 16; k++) f[k] = mavk_f32_at(p, dtype, i + k);
  return v16_load(f);
}

/* One row's view of its past: slot of a position. Ancestors in the batch may lie anywhere; everything before them is in place. */
typedef struct past {
  const mavk_kv *kv;
  const int32_t *table;    /* of the sequence */
  int64_t first, last;     /* visible positions */
  int64_t base;            /* positions from here on: ancestor[p - base] */
  const int32_t *ancestor; /* slots, NULL: all in place */
} past;

static int64_t slot_of(const past *p, int64_t position) {
  return p->ancestor && position >= p->base ? p->ancestor[position - p->base] : position;
}

/* Keys of positions [at, at + 16) as (C, 16) with the given stride; copies them together when they do not lie so. */
static const void *keys16(const past *p, int64_t head, int64_t at, char *copy, int64_t *stride) {
  const mavk_kv *kv = p->kv;
  const int64_t C = kv->head_dim, size = kv->dtype == MAVK_F32 ? 4 : kv->dtype == MAVK_BF16 ? 2 : 1;
  if (!p->ancestor || at + 16 <= p->base) {
    const int64_t page = p->table[at / kv->page];
    *stride = kv->page;
    return (const char *)kv->k + (((page * kv->kv_heads + head) * C) * kv->page + at % kv->page) * size;
  }
  *stride = 16;
  for (int64_t i = 0; i < 16; i++) {
    if (at + i < p->first || at + i > p->last) continue;
    const int64_t slot = slot_of(p, at + i), page = p->table[slot / kv->page];
    const char *from = (const char *)kv->k + ((page * kv->kv_heads + head) * C * kv->page + slot % kv->page) * size;
    for (int64_t c = 0; c < C; c++) memcpy(copy + (c * 16 + i) * size, from + c * kv->page * size, (size_t)size);
  }
  return copy;
}

/* Scores of positions [at, at + 16) for `heads` query heads: (heads, SPLIT) at s. Chains run over channels in order. */
V16_INLINE void scores16(const void *k, int32_t dtype, int64_t stride, const float *q, int64_t C, const int heads, float *s) {
  v16 acc[4];
  for (int h = 0; h < heads; h++) acc[h] = v16_zero();
  for (int64_t c = 0; c < C; c++) {
    const v16 key = load16(k, dtype, c * stride);
    for (int h = 0; h < heads; h++) acc[h] = v16_fma(v16_set1(q[h * C + c]), key, acc[h]);
  }
  for (int h = 0; h < heads; h++) v16_store(s + h * SPLIT, acc[h]);
}

static void scores_f32(const void *k, int64_t stride, const float *q, int64_t C, int64_t heads, float *s) {
  if (heads == 4) scores16(k, MAVK_F32, stride, q, C, 4, s);
  else if (heads == 2) scores16(k, MAVK_F32, stride, q, C, 2, s);
  else
    for (int64_t h = 0; h < heads; h++) scores16(k, MAVK_F32, stride, q + h * C, C, 1, s + h * SPLIT);
}

static void scores_any(const void *k, int32_t dtype, int64_t stride, const float *q, int64_t C, int64_t heads, float *s) {
  if (dtype == MAVK_F32) scores_f32(k, stride, q, C, heads, s);
  else
    for (int64_t h = 0; h < heads; h++) scores16(k, dtype, stride, q + h * C, C, 1, s + h * SPLIT);
}

/* y[h, c] += p[h, i] v[i, c] for the values of one split, positions in order. */
static void add_values(const past *p, int64_t head, int64_t from, int64_t to, const float *weight, int64_t heads, float *y, const float *zero) {
  const mavk_kv *kv = p->kv;
  const int64_t C = kv->head_dim;
  (void)zero;
  for (int64_t c = 0; c < C; c += 16) {
    const int64_t n = mavk_min(16, C - c);
    for (int64_t h = 0; h < heads; h++) {
      v16 acc = v16_zero();
      for (int64_t i = from; i <= to; i++) {
        const int64_t slot = slot_of(p, i), page = p->table[slot / kv->page];
        const int64_t at = ((page * kv->kv_heads + head) * kv->page + slot % kv->page) * C + c;
        v16 v;
        if (n == 16) {
          v = load16(kv->v, kv->dtype, at);
        } else {
          float f[16] = {0};
          for (int64_t k = 0; k < n; k++) f[k] = mavk_f32_at(kv->v, kv->dtype, at + k);
          v = v16_load(f);
        }
        acc = v16_fma(v16_set1(weight[h * SPLIT + i % SPLIT]), v, acc);
      }
      v16_store_n(y + h * C + c, acc, n);
    }
  }
}

/* One split for the query heads of one kv head: largest score, sum of exponentials, weighted values. */
static void split(const past *p, int64_t head, int64_t start, const float *q, int64_t heads, float scale, float *s, char *copy,
                  float *largest, float *sum, float *y) {
  const mavk_kv *kv = p->kv;
  const int64_t C = kv->head_dim, from = mavk_max(p->first, start), to = mavk_min(p->last, start + SPLIT - 1);
  const v16 lane = v16_load((const float[16]){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15});
  const v16 ninf = v16_set1(-INFINITY);
  const int64_t b0 = from / 16 * 16, b1 = to / 16 * 16;
  for (int64_t at = b0; at <= b1; at += 16) {
    int64_t stride;
    const void *k = keys16(p, head, at, copy, &stride);
    scores_any(k, kv->dtype, stride, q, C, heads, s + at % SPLIT);
  }
  for (int64_t h = 0; h < heads; h++) {
    float *sh = s + h * SPLIT;
    v16 top = ninf, total = v16_zero();
    for (int64_t at = b0; at <= b1; at += 16) { /* mask what is not visible, scale the rest */
      v16 x = v16_mul(v16_load(sh + at % SPLIT), v16_set1(scale));
      if (at < from) x = v16_select_lt(lane, v16_set1((float)(from - at)), ninf, x);
      if (at + 15 > to) x = v16_select_lt(v16_set1((float)(to - at)), lane, ninf, x);
      v16_store(sh + at % SPLIT, x);
      top = v16_max(top, x);
    }
    largest[h] = v16_hmax(top);
    for (int64_t at = b0; at <= b1; at += 16) {
      v16 e = v16_exp(v16_sub(v16_load(sh + at % SPLIT), v16_set1(largest[h])));
      v16_store(sh + at % SPLIT, e);
      total = v16_add(total, e);
    }
    sum[h] = v16_sum(total);
  }
  add_values(p, head, from, to, s, heads, y, NULL);
}

/* The slots of row r's ancestors in the batch, oldest first; NULL when all sit at their positions. */
static const int32_t *ancestors(const mavk_rows *rows, int64_t r, int32_t *out, int64_t *base) {
  *base = 0;
  if (rows->slot[r] == rows->pos[r]) return NULL;
  int64_t n = 0, i;
  for (i = r; i >= 0; i = rows->parent[i]) n++;
  *base = rows->pos[r] - n + 1;
  for (i = r; i >= 0; i = rows->parent[i]) out[--n] = rows->slot[i];
  return out;
}

void MAVK_CPU(attention)(const mavk_args_attention *a, mavk_thread *t) {
  const int64_t T = a->rows.n, H = a->q.n[1], C = a->kv.head_dim, K = a->kv.kv_heads, heads = H / K;
  const float scale = a->scale > 0 ? a->scale : 1 / sqrtf((float)C);
  scratch s = scratch_begin(t);
  float *score = scratch_floats(&s, heads * SPLIT), *part = scratch_floats(&s, heads * C);
  float *largest = scratch_floats(&s, heads), *sum = scratch_floats(&s, heads), *top = scratch_floats(&s, heads), *total = scratch_floats(&s, heads);
  char *copy = scratch_take(&s.own, C * 16 * 4);
  int32_t *slots = scratch_take(&s.own, T * 4);
  memset(copy, 0, (size_t)C * 16 * 4);
  for (int64_t i; (i = mavk_claim(t)) < T * K;) {
    const int64_t r = T - 1 - i / K, head = i % K; /* the longest pasts first */
    const int32_t seq = a->rows.seq[r];
    float *y = (float *)a->y.p + (r * H + head * heads) * C;
    const float *q = (const float *)a->q.p + (r * H + head * heads) * C;
    memset(y, 0, (size_t)(heads * C) * sizeof *y);
    if (seq < 0) continue;
    past p = {.kv = &a->kv, .table = a->kv.table + seq * a->kv.table_stride, .last = a->rows.pos[r]};
    p.first = a->chunk > 0 ? p.last / a->chunk * a->chunk : 0;
    p.ancestor = ancestors(&a->rows, r, slots, &p.base);
    for (int64_t h = 0; h < heads; h++) top[h] = -INFINITY, total[h] = 0;
    for (int64_t start = p.first / SPLIT * SPLIT; start <= p.last; start += SPLIT) {
      split(&p, head, start, q, heads, scale * a->kv.k_scale, score, copy, largest, sum, part);
      for (int64_t h = 0; h < heads; h++) {
        const float m = fmaxf(top[h], largest[h]);
        const float old = top[h] == m ? 1 : expf(top[h] - m), fresh = largest[h] == m ? 1 : expf(largest[h] - m);
        total[h] = total[h] * old + sum[h] * fresh;
        for (int64_t c = 0; c < C; c++) y[h * C + c] = y[h * C + c] * old + part[h * C + c] * fresh;
        top[h] = m;
      }
    }
    for (int64_t h = 0; h < heads; h++) {
      const float back = a->kv.v_scale / total[h];
      for (int64_t c = 0; c < C; c++) y[h * C + c] *= back;
    }
  }
}
