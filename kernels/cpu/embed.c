/* kernels/cpu/embed.c - one table row per token, widened. Bound by latency: 2 D bytes a row. */
#include "cpu.h"
#include "simd.h"

#include "../numeric.h"

void MAVK_CPU(embed)(const mavk_args_embed *a, mavk_thread *t) {
  const int64_t D = a->table.n[1];
  const int32_t type = a->table.dtype;
  for (int64_t r; (r = mavk_claim(t)) < a->rows.n;) {
    float *y = (float *)a->y.p + r * D;
    if (a->rows.seq[r] < 0) { /* idle: any finite values do */
      memset(y, 0, (size_t)D * sizeof *y);
      continue;
    }
    const int64_t at = (int64_t)a->rows.id[r] * a->table.s[0];
    int64_t i = 0;
    if (type == MAVK_BF16)
      for (; i + 16 <= D; i += 16) v16_store(y + i, v16_load_bf16((const uint16_t *)a->table.p + at + i));
    for (; i < D; i++) y[i] = mavk_f32_at(a->table.p, type, at + i);
  }
}
