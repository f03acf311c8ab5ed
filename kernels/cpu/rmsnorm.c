/* kernels/cpu/rmsnorm.c - rows in groups of 8 per piece. */
#include "pack.h"

void MAVK_CPU(rmsnorm)(const mavk_args_rmsnorm *a, mavk_thread *t) {
  const int64_t D = mavk_row_size(&a->x), rows = mavk_row_count(&a->x);
  for (int64_t r; (r = mavk_claim(t) * 8) < rows;)
    for (int64_t i = r; i < mavk_min(r + 8, rows); i++)
      MAVK_CPU(norm_row)((float *)a->y.p + i * D, (const float *)a->x.p + i * D, a->w.p ? &a->w : NULL, D, a->eps);
}
