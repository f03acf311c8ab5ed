/* kernels/ref/norm_qkv.c - RMSNorm, fused projection, RoPE on interleaved pairs (or the temperature of NoPE layers), KV append. */
#include "ref.h"

void mavk_ref_norm_qkv(const mavk_args_norm_qkv *a) {
  const int64_t D = a->x.n[1], H = a->q.n[1], K = a->kv.kv_heads, C = a->kv.head_dim;
  for (int64_t t = 0; t < a->rows.n; t++) {
    if (a->rows.seq[t] < 0) {
      for (int64_t i = 0; i < H * C; i++) *ref_out(&a->q, t * H * C + i) = 0;
      continue;
    }
    const int32_t pos = a->rows.pos[t];
    const ref_row x = ref_row_for(&a->w, ref_in(&a->x, t * D), D, &a->norm, a->eps, 1);
    for (int64_t head = 0; head < H + 2 * K; head++) {
      const bool is_q = head < H, is_v = head >= H + K;
      for (int64_t c = 0; c < C; c += 2) { /* a pair at a time; the last of an odd C stands alone */
        float x0 = ref_dot(&x, &a->w, 0, head * C + c), x1 = c + 1 < C ? ref_dot(&x, &a->w, 0, head * C + c + 1) : 0;
        if (a->rope.p && !is_v) ref_rotate(&x0, &x1, pos, *ref_in(&a->rope, c / 2));
        if (!a->rope.p && is_q) {
          x0 *= ref_temperature(pos, a->attn_scale, a->floor_scale);
          x1 *= ref_temperature(pos, a->attn_scale, a->floor_scale);
        }
        ref_place(&a->q, &a->kv, &a->rows, t, head, c, x0);
        if (c + 1 < C) ref_place(&a->q, &a->kv, &a->rows, t, head, c + 1, x1);
      }
    }
  }
}
