/* kernels/ref/rope_append.c - the tail of norm_qkv on its own: RoPE in either pairing, qk norm, temperature, KV append. */
#include "ref.h"

void mavk_ref_rope_append(const mavk_args_rope_append *a) {
  const int64_t N = a->qkv.n[1], H = a->q.n[1], K = a->kv.kv_heads, C = a->kv.head_dim;
  for (int64_t t = 0; t < a->rows.n; t++) {
    if (a->rows.seq[t] < 0) {
      for (int64_t i = 0; i < H * C; i++) *ref_out(&a->q, t * H * C + i) = 0;
      continue;
    }
    const int32_t pos = a->rows.pos[t];
    for (int64_t head = 0; head < H + 2 * K; head++) {
      const bool is_q = head < H, is_v = head >= H + K;
      const float *x = ref_in(&a->qkv, t * N + head * C);
      float factor = 1;
      if (a->qk_norm && !is_v) factor = ref_rms(x, C, a->eps); /* after RoPE; but a rotation keeps the norm */
      if (!a->rope.p && is_q) factor *= ref_temperature(pos, a->attn_scale, a->floor_scale);
      if (a->rope.p && !is_v) {
        for (int64_t i = 0; i < C / 2; i++) {
          const int64_t c0 = a->half ? i : 2 * i, c1 = a->half ? i + C / 2 : 2 * i + 1;
          float x0 = x[c0], x1 = x[c1];
          ref_rotate(&x0, &x1, pos, *ref_in(&a->rope, i));
          ref_place(&a->q, &a->kv, &a->rows, t, head, c0, x0 * factor);
          ref_place(&a->q, &a->kv, &a->rows, t, head, c1, x1 * factor);
        }
      } else {
        for (int64_t c = 0; c < C; c++) ref_place(&a->q, &a->kv, &a->rows, t, head, c, x[c] * factor);
      }
    }
  }
}
