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

V16_INLINE v16 load16(const void *p, const int32_t dtype, int64_t i) {
  if (dtype == MAVK_F32) return v16_load((const float *)p + i);
  if (dtype == MAVK_BF16) return v16_load_bf16((const uint16_t *)p + i);
  float f[16];
  for (int k = 0; k < 16; k++) f[k] = mavk_f32_at(p, dtype, i + k);
  return v16_load(f);
}

/* One row's view of its past: slot of a position. Ancestors in the rows' table may lie anywhere; everything before them is in place. */
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

/* Score tiles: B blocks of 16 neighbouring positions by H query heads, every chain over channels in order. */
V16_INLINE void score_tile(const int32_t dtype, const int H, const int B, const void *k, int64_t stride, const float *q, int64_t C, float *s) {
  v16 acc[4][2];
#pragma GCC unroll 4
  for (int h = 0; h < H; h++)
#pragma GCC unroll 2
    for (int b = 0; b < B; b++) acc[h][b] = v16_zero();
  for (int64_t c = 0; c < C; c++) {
    v16 key[2];
#pragma GCC unroll 2
    for (int b = 0; b < B; b++) key[b] = load16(k, dtype, c * stride + 16 * b);
#pragma GCC unroll 4
    for (int h = 0; h < H; h++) {
      const v16 x = v16_set1(q[h * C + c]);
#pragma GCC unroll 2
      for (int b = 0; b < B; b++) acc[h][b] = v16_fma(x, key[b], acc[h][b]);
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < H; h++)
#pragma GCC unroll 2
    for (int b = 0; b < B; b++) v16_store(s + h * SPLIT + 16 * b, acc[h][b]);
}

/* Value tiles: y[h, c] += weight[h, i] v[i, c] for B blocks of 16 channels, H query heads and n positions that lie one after the
 * other, in order. */
V16_INLINE void value_tile(const int32_t dtype, const int H, const int B, const void *v, int64_t at, int64_t C, int64_t n, const float *weight,
                           float *y) {
  v16 acc[4][4];
#pragma GCC unroll 4
  for (int h = 0; h < H; h++)
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) acc[h][b] = v16_load(y + h * C + 16 * b);
  for (int64_t i = 0; i < n; i++) {
    v16 x[4];
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) x[b] = load16(v, dtype, at + i * C + 16 * b);
#pragma GCC unroll 4
    for (int h = 0; h < H; h++) {
      const v16 w = v16_set1(weight[h * SPLIT + i]);
#pragma GCC unroll 4
      for (int b = 0; b < B; b++) acc[h][b] = v16_fma(w, x[b], acc[h][b]);
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < H; h++)
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) v16_store(y + h * C + 16 * b, acc[h][b]);
}

#define BY_TYPE(tile, H, B, p, ...)                                          \
  do {                                                                       \
    if (dtype == MAVK_F32) tile(MAVK_F32, H, B, p, __VA_ARGS__);             \
    else if (dtype == MAVK_BF16) tile(MAVK_BF16, H, B, p, __VA_ARGS__);      \
    else tile(MAVK_F8, H, B, p, __VA_ARGS__);                                \
  } while (0)

/* The largest of 4, 2, 1 that is at most n: query heads side by side. */
static int64_t side_by_side(int64_t n) { return n >= 4 ? 4 : n >= 2 ? 2 : 1; }

static void scores(const void *k, int32_t dtype, int64_t stride, const float *q, int64_t C, int64_t heads, int64_t blocks, float *s) {
  for (int64_t h = 0, step; h < heads; h += step, q += step * C, s += step * SPLIT) {
    step = side_by_side(heads - h);
    if (blocks == 2) {
      if (step == 4) BY_TYPE(score_tile, 4, 2, k, stride, q, C, s);
      else if (step == 2) BY_TYPE(score_tile, 2, 2, k, stride, q, C, s);
      else BY_TYPE(score_tile, 1, 2, k, stride, q, C, s);
    } else {
      if (step == 4) BY_TYPE(score_tile, 4, 1, k, stride, q, C, s);
      else if (step == 2) BY_TYPE(score_tile, 2, 1, k, stride, q, C, s);
      else BY_TYPE(score_tile, 1, 1, k, stride, q, C, s);
    }
  }
}

/* The last C % 16 channels, one by one. */
static void value_rest(const void *v, int32_t dtype, int64_t at, int64_t C, int64_t first, int64_t n, const float *weight, int64_t heads, float *y) {
  for (int64_t h = 0; h < heads; h++)
    for (int64_t c = first; c < C; c++)
      for (int64_t i = 0; i < n; i++) y[h * C + c] = fmaf(weight[h * SPLIT + i], mavk_f32_at(v, dtype, at + i * C + c), y[h * C + c]);
}

/* n positions whose values lie one after the other from element `at` on. */
static void values(const void *v, int32_t dtype, int64_t at, int64_t C, int64_t n, const float *weight, int64_t heads, float *y) {
  int64_t c = 0;
  for (; c + 16 <= C;) {
    const int64_t wide = c + 64 <= C ? 4 : 1;
    for (int64_t h = 0, step; h < heads; h += step) {
      step = heads - h >= 2 ? 2 : 1;
      const float *w = weight + h * SPLIT;
      float *out = y + h * C + c;
      if (wide == 4 && step == 2) BY_TYPE(value_tile, 2, 4, v, at + c, C, n, w, out);
      else if (wide == 4) BY_TYPE(value_tile, 1, 4, v, at + c, C, n, w, out);
      else if (step == 2) BY_TYPE(value_tile, 2, 1, v, at + c, C, n, w, out);
      else BY_TYPE(value_tile, 1, 1, v, at + c, C, n, w, out);
    }
    c += 16 * wide;
  }
  if (c < C) value_rest(v, dtype, at, C, c, n, weight, heads, y);
}

/* y[h, c] = sum of weight[h, i % SPLIT] v[i, c], i from .. to in order: run by run of positions that lie together. */
static void add_values(const past *p, int64_t head, int64_t from, int64_t to, const float *weight, int64_t heads, float *y) {
  const mavk_kv *kv = p->kv;
  const int64_t C = kv->head_dim;
  memset(y, 0, (size_t)(heads * C) * sizeof *y);
  for (int64_t i = from; i <= to;) {
    const int64_t slot = slot_of(p, i), page = p->table[slot / kv->page], in_page = slot % kv->page;
    int64_t n = mavk_min(kv->page - in_page, to - i + 1);
    if (p->ancestor) n = i >= p->base ? 1 : mavk_min(n, p->base - i);
    values(kv->v, kv->dtype, ((page * kv->kv_heads + head) * kv->page + in_page) * C, C, n, weight + i % SPLIT, heads, y);
    i += n;
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
  for (int64_t at = b0; at <= b1;) {
    int64_t stride;
    const void *k = keys16(p, head, at, copy, &stride);
    /* two blocks at once where the page holds both */
    const int64_t blocks = k != copy && at + 16 <= b1 && at % kv->page + 32 <= kv->page && (!p->ancestor || at + 32 <= p->base) ? 2 : 1;
    scores(k, kv->dtype, stride, q, C, heads, blocks, s + at % SPLIT);
    at += 16 * blocks;
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
  add_values(p, head, from, to, s, heads, y);
}

/* The slots of row r's ancestors in the rows' table, oldest first; NULL when all sit at their positions. */
static const int32_t *ancestors(const mavk_rows *rows, int64_t r, int32_t *out, int64_t *base) {
  *base = 0;
  if (rows->slot[r] == rows->pos[r]) return NULL;
  int64_t n = 0, i;
  for (i = r; i != MAVK_NO_ROW; i = mavk_parent(rows, i)) n++;
  *base = rows->pos[r] - n + 1;
  for (i = r; i != MAVK_NO_ROW; i = mavk_parent(rows, i)) out[--n] = rows->slot[i];
  return out;
}

void MAVK_CPU(attention)(const mavk_args_attention *a, mavk_thread *t) {
  const int64_t T = a->rows.n, H = a->q.n[1], C = a->kv.head_dim, K = a->kv.kv_heads, heads = H / K;
  const float scale = a->scale > 0 ? a->scale : 1 / sqrtf((float)C);
  scratch s = scratch_begin(t);
  float *score = scratch_floats(&s, heads * SPLIT), *part = scratch_floats(&s, heads * C);
  float *largest = scratch_floats(&s, heads), *sum = scratch_floats(&s, heads), *top = scratch_floats(&s, heads), *total = scratch_floats(&s, heads);
  char *copy = scratch_take(&s.own, C * 16 * 4);
  int32_t *slots = scratch_take(&s.own, (a->rows.first + T) * 4);
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
