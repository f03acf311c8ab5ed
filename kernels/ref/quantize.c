/* kernels/ref/quantize.c - rows to e4m3 with a scale each: scale = max|row| / 448 (1 for a zero row), y = e4m3(x / scale). */
#include "ref.h"

void mavk_ref_quantize(const mavk_args_quantize *a) {
  const int64_t D = ref_last(&a->x);
  for (int64_t t = 0; t < ref_leading(&a->x); t++) {
    float largest = 0;
    for (int64_t d = 0; d < D; d++) largest = fmaxf(largest, fabsf(mavk_f32_at(a->x.p, a->x.dtype, ref_at(&a->x, &a->y, t * D + d))));
    const float scale = largest > 0 ? largest / MAVK_F8_MAX : 1;
    *ref_out(&a->scale, t) = scale;
    for (int64_t d = 0; d < D; d++)
      mavk_put_f32(a->y.p, MAVK_F8, t * D + d, mavk_f32_at(a->x.p, a->x.dtype, ref_at(&a->x, &a->y, t * D + d)) / scale);
  }
}
