/* kernels/cpu/norm_qkv.c - RMSNorm, the q, k, v projection, RoPE or temperature, and the append to the cache; and
 * rope_append, the same tail on a projection that is already there.
 *
 * Pieces are runs of weight rows, even in length, so that a rotated pair never straddles two. The cosines of a row are
 * computed by every piece for its own pairs: about 10 ns each, against kilobytes of weights.
 */
#include "pack.h"
#include "rope.h"

typedef struct tail {
  const mavk_rows *rows;
  const mavk_kv *kv;
  const float *rope; /* (C/2), NULL: NoPE */
  float attn_scale, floor_scale;
  float *q; /* (T, H, C) */
  int64_t H, C, K;
} tail;

/* Channels [n, n + count) of the projection of row r, already within one head: rotate (pairs) and store. */
static void store_span(const tail *a, int64_t r, int64_t n, int64_t count, float *x) {
  const int64_t head = n / a->C, c = n % a->C;
  const int32_t pos = a->rows->pos[r], seq = a->rows->seq[r], slot = a->rows->slot[r];
  if (a->rope && head < a->H + a->K)
    for (int64_t i = 0; i < count; i += 2) {
      float cosine, sine;
      rope_cos_sin((float)pos * a->rope[(c + i) / 2], &cosine, &sine);
      const float x0 = x[i], x1 = x[i + 1];
      x[i] = x0 * cosine - x1 * sine;
      x[i + 1] = x0 * sine + x1 * cosine;
    }
  if (head < a->H) {
    const float temperature = a->rope ? 1 : rope_temperature(pos, a->attn_scale, a->floor_scale);
    float *q = a->q + (r * a->H + head) * a->C + c;
    for (int64_t i = 0; i < count; i++) q[i] = x[i] * temperature;
  } else if (head < a->H + a->K) {
    rope_append_key(a->kv, seq, slot, head - a->H, c, count, x);
  } else {
    rope_append_value(a->kv, seq, slot, head - a->H - a->K, c, count, x);
  }
}

void MAVK_CPU(norm_qkv)(const mavk_args_norm_qkv *a, mavk_thread *t) {
  const int64_t D = a->x.n[1], T = a->x.n[0], N = a->w.a.n[0], C = a->kv.head_dim;
  const tail out = {.rows = &a->rows, .kv = &a->kv, .rope = a->rope.p, .attn_scale = a->attn_scale, .floor_scale = a->floor_scale,
                    .q = a->q.p, .H = a->q.n[1], .C = C, .K = a->kv.kv_heads};
  scratch s = scratch_begin(t);
  const packed x = MAVK_CPU(pack)(t, &s, &(pack_rows){.x = a->x.p, .ld = D, .rows = T, .K = D, .norm = &a->norm, .eps = a->eps}, &a->w);
  const int64_t step = dot_piece(&a->w, N, D, T, t->team->count);
  float *y = scratch_floats(&s, T * step);
  for (int64_t n; (n = mavk_claim(t) * step) < N;) {
    const int64_t end = mavk_min(n + step, N);
    MAVK_CPU(dot)(&a->w, 0, n, end, &x, T, y, step);
    for (int64_t r = 0; r < T; r++) {
      if (a->rows.seq[r] < 0) continue;
      for (int64_t i = n; i < end;) { /* split at head borders */
        const int64_t span = mavk_min(end - i, C - i % C);
        store_span(&out, r, i, span, y + r * step + i - n);
        i += span;
      }
    }
  }
}

/* Rotates one head in place: interleaved pairs, or first half against second. */
static void rotate_head(float *x, const float *rope, int32_t pos, int64_t C, bool half) {
  for (int64_t i = 0; i < C / 2; i++) {
    float cosine, sine;
    float *x0 = half ? x + i : x + 2 * i, *x1 = half ? x + i + C / 2 : x + 2 * i + 1;
    rope_cos_sin((float)pos * rope[i], &cosine, &sine);
    const float y0 = *x0 * cosine - *x1 * sine, y1 = *x0 * sine + *x1 * cosine;
    *x0 = y0;
    *x1 = y1;
  }
}

void MAVK_CPU(rope_append)(const mavk_args_rope_append *a, mavk_thread *t) {
  const int64_t T = a->qkv.n[0], N = a->qkv.n[1], C = a->kv.head_dim, K = a->kv.kv_heads, H = a->q.n[1];
  scratch s = scratch_begin(t);
  float *x = scratch_floats(&s, C);
  for (int64_t r; (r = mavk_claim(t)) < T;) {
    if (a->rows.seq[r] < 0) continue;
    const int32_t pos = a->rows.pos[r];
    const float temperature = a->rope.p ? 1 : rope_temperature(pos, a->attn_scale, a->floor_scale);
    for (int64_t head = 0; head < H + 2 * K; head++) {
      memcpy(x, (const float *)a->qkv.p + r * N + head * C, (size_t)C * sizeof *x);
      if (head < H + K) {
        if (a->rope.p) rotate_head(x, a->rope.p, pos, C, a->half != 0);
        if (a->qk_norm) MAVK_CPU(norm_row)(x, x, NULL, C, a->eps);
      }
      if (head < H)
        for (int64_t c = 0; c < C; c++) ((float *)a->q.p)[(r * H + head) * C + c] = x[c] * temperature;
      else if (head < H + K)
        rope_append_key(&a->kv, a->rows.seq[r], a->rows.slot[r], head - H, 0, C, x);
      else
        rope_append_value(&a->kv, a->rows.seq[r], a->rows.slot[r], head - H - K, 0, C, x);
    }
  }
}
