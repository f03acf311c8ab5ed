/* kernels/cpu/norm_qkv.c - RMSNorm, the q, k, v projection, RoPE or temperature, and the append to the cache; and
 * rope_append, the same tail on a projection that is already there.
 *
 * Pieces are runs of weight rows, even in length, so that a rotated pair never straddles two. Cosines and sines of all rows
 * come first: by every thread for itself when rows are few, shared behind a barrier when they are many.
 */
#include "pack.h"
#include "rope.h"

typedef struct tail {
  const mavk_rows *rows;
  const mavk_kv *kv;
  const float *angles; /* (T, 2, C/2) cosines and sines, NULL: NoPE */
  float attn_scale, floor_scale;
  float *q; /* (T, H, C) */
  int64_t H, C, K;
} tail;

static void row_angles(const mavk_rows *rows, int64_t r, const float *rope, int64_t C, float *angles) {
  rope_cos_sin(rows->pos[r], rope, C / 2, angles + r * C, angles + r * C + C / 2);
}

static const float *all_angles(mavk_thread *t, scratch *s, const mavk_rows *rows, const float *rope, int64_t C) {
  if (!rope) return NULL;
  const bool own = rows->n <= PACK_PRIVATE_ROWS;
  float *angles = scratch_take(own ? &s->own : &s->shared, rows->n * C * 4);
  if (own) {
    for (int64_t r = 0; r < rows->n; r++) row_angles(rows, r, rope, C, angles);
  } else {
    for (int64_t r; (r = mavk_claim(t)) < rows->n;) row_angles(rows, r, rope, C, angles);
    mavk_phase(t);
  }
  return angles;
}

/* Channels [n, n + count) of the projection of row r, already within one head: rotate (pairs) and store. */
static void store_span(const tail *a, int64_t r, int64_t n, int64_t count, float *x) {
  const int64_t head = n / a->C, c = n % a->C;
  const int32_t pos = a->rows->pos[r], seq = a->rows->seq[r], slot = a->rows->slot[r];
  if (a->angles && head < a->H + a->K) {
    const float *cosine = a->angles + r * a->C + c / 2;
    rope_rotate(x, count, cosine, cosine + a->C / 2, false);
  }
  if (head < a->H) {
    const float temperature = a->angles ? 1 : rope_temperature(pos, a->attn_scale, a->floor_scale);
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
  scratch s = scratch_begin(t);
  const tail out = {.rows = &a->rows, .kv = &a->kv, .angles = all_angles(t, &s, &a->rows, a->rope.p, C), .attn_scale = a->attn_scale,
                    .floor_scale = a->floor_scale, .q = a->q.p, .H = a->q.n[1], .C = C, .K = a->kv.kv_heads};
  const packed x = MAVK_CPU(pack)(t, &s, &(pack_rows){.x = a->x.p, .ld = D, .rows = T, .K = D, .norm = &a->norm, .eps = a->eps}, &a->w);
  const int64_t step = dot_piece(&a->w, N, D, T, t->team->count);
  float *y = scratch_floats(&s, T * step);
  for (int64_t n = mavk_claim(t) * step, after; n < N; n = after) {
    const int64_t end = mavk_min(n + step, N);
    after = mavk_claim(t) * step;
    MAVK_CPU(dot)(&a->w, 0, n, end, &x, T, y, step, after < N ? dot_row(&a->w, 0, after) : NULL);
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

void MAVK_CPU(rope_append)(const mavk_args_rope_append *a, mavk_thread *t) {
  const int64_t T = a->qkv.n[0], N = a->qkv.n[1], C = a->kv.head_dim, K = a->kv.kv_heads, H = a->q.n[1];
  scratch s = scratch_begin(t);
  float *x = scratch_floats(&s, C), *angles = scratch_floats(&s, C);
  for (int64_t r; (r = mavk_claim(t)) < T;) {
    if (a->rows.seq[r] < 0) continue;
    const int32_t pos = a->rows.pos[r];
    const float temperature = a->rope.p ? 1 : rope_temperature(pos, a->attn_scale, a->floor_scale);
    if (a->rope.p) rope_cos_sin(pos, a->rope.p, C / 2, angles, angles + C / 2);
    for (int64_t head = 0; head < H + 2 * K; head++) {
      memcpy(x, (const float *)a->qkv.p + r * N + head * C, (size_t)C * sizeof *x);
      if (head < H + K) {
        if (a->rope.p) rope_rotate(x, C, angles, angles + C / 2, a->half != 0);
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
