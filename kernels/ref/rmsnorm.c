/* kernels/ref/rmsnorm.c - y = x / sqrt(mean(x^2) + eps) * w over the last dimension. */
#include "ref.h"

void mavk_ref_rmsnorm(const mavk_args_rmsnorm *a) {
  const int64_t D = ref_last(&a->x);
  for (int64_t t = 0; t < ref_leading(&a->x); t++) {
    const float *x = ref_in(&a->x, t * D);
    const float rms = ref_rms(x, D, a->eps);
    for (int64_t d = 0; d < D; d++) *ref_out(&a->y, t * D + d) = x[d] * rms * (a->w.p ? mavk_f32_at(a->w.p, a->w.dtype, d) : 1);
  }
}
