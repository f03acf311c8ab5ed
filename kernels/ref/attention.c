/* kernels/ref/attention.c - softmax(scale q k^T) v over the row's own past.
 *
 * Row r at position p sees positions first <= j <= p of its sequence; first is 0, or the start of p's chunk. Positions
 * before the row's first ancestor in the rows' table lie at slot j; ancestors there lie at their own slots.
 */
#include "ref.h"

/* The slot of position j as row r sees it. */
static int64_t slot_of(const mavk_rows *rows, int64_t r, int64_t j) {
  while (r != MAVK_NO_ROW && rows->pos[r] > j) r = mavk_parent(rows, r);
  return r != MAVK_NO_ROW ? rows->slot[r] : j;
}

static float dot(const mavk_kv *kv, const float *q, int64_t at) {
  float sum = 0;
  for (int64_t c = 0; c < kv->head_dim; c++) sum += q[c] * ref_kv_load(kv, kv->k, kv->k_scale, at + c * kv->page);
  return sum;
}

void mavk_ref_attention(const mavk_args_attention *a) {
  const mavk_kv *kv = &a->kv;
  const int64_t H = a->q.n[1], C = kv->head_dim, per_kv_head = H / kv->kv_heads;
  const float scale = a->scale > 0 ? a->scale : 1 / sqrtf((float)C);
  for (int64_t t = 0; t < a->rows.n; t++) {
    for (int64_t h = 0; h < H; h++) {
      const float *q = ref_in(&a->q, (t * H + h) * C);
      float *y = ref_out(&a->y, (t * H + h) * C);
      for (int64_t c = 0; c < C; c++) y[c] = 0;
      const int32_t seq = a->rows.seq[t];
      if (seq < 0) continue;

      const int64_t last = a->rows.pos[t], first = a->chunk > 0 ? last / a->chunk * a->chunk : 0;
      float largest = -INFINITY;
      for (int64_t j = first; j <= last; j++)
        largest = fmaxf(largest, scale * dot(kv, q, ref_k_at(kv, seq, slot_of(&a->rows, t, j), h / per_kv_head, 0)));
      double sum = 0;
      for (int64_t j = first; j <= last; j++) { /* the scores again, instead of keeping them */
        const int64_t slot = slot_of(&a->rows, t, j), v = ref_v_at(kv, seq, slot, h / per_kv_head, 0);
        const float p = expf(scale * dot(kv, q, ref_k_at(kv, seq, slot, h / per_kv_head, 0)) - largest);
        sum += p;
        for (int64_t c = 0; c < C; c++) y[c] += p * ref_kv_load(kv, kv->v, kv->v_scale, v + c);
      }
      for (int64_t c = 0; c < C; c++) y[c] /= (float)sum;
    }
  }
}
