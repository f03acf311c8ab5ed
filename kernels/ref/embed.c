/* kernels/ref/embed.c - y[t] = table[id[t]]. */
#include "ref.h"

void mavk_ref_embed(const mavk_args_embed *a) {
  const int64_t D = a->table.n[1];
  for (int64_t t = 0; t < a->rows.n; t++)
    for (int64_t d = 0; d < D; d++)
      *ref_out(&a->y, t * D + d) = a->rows.seq[t] < 0 ? 0 : mavk_f32_at(a->table.p, a->table.dtype, a->rows.id[t] * D + d);
}
