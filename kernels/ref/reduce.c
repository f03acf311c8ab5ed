/* kernels/ref/reduce.c - over the last dimension: sum, mean, max, min, softmax, log_softmax, entropy, cumsum, argmax, topk. */
#include "ref.h"

void mavk_ref_sum(const mavk_args_sum *a) {
  const int64_t N = ref_last(&a->x);
  for (int64_t t = 0; t < ref_leading(&a->x); t++) {
    double sum = 0;
    for (int64_t i = 0; i < N; i++) sum += *ref_in(&a->x, t * N + i);
    *ref_out(&a->y, t) = (float)sum;
  }
}

void mavk_ref_mean(const mavk_args_mean *a) {
  const int64_t N = ref_last(&a->x);
  for (int64_t t = 0; t < ref_leading(&a->x); t++) {
    double sum = 0;
    for (int64_t i = 0; i < N; i++) sum += *ref_in(&a->x, t * N + i);
    *ref_out(&a->y, t) = (float)(sum / (double)N);
  }
}

static float largest(const float *x, int64_t n) {
  float m = -INFINITY;
  for (int64_t i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
  return m;
}

void mavk_ref_max(const mavk_args_max *a) {
  const int64_t N = ref_last(&a->x);
  for (int64_t t = 0; t < ref_leading(&a->x); t++) *ref_out(&a->y, t) = largest(ref_in(&a->x, t * N), N);
}

void mavk_ref_min(const mavk_args_min *a) {
  const int64_t N = ref_last(&a->x);
  for (int64_t t = 0; t < ref_leading(&a->x); t++) {
    float m = INFINITY;
    for (int64_t i = 0; i < N; i++) m = *ref_in(&a->x, t * N + i) < m ? *ref_in(&a->x, t * N + i) : m;
    *ref_out(&a->y, t) = m;
  }
}

void mavk_ref_softmax(const mavk_args_softmax *a) {
  const int64_t N = ref_last(&a->x);
  for (int64_t t = 0; t < ref_leading(&a->x); t++) {
    const float *x = ref_in(&a->x, t * N), m = largest(x, N);
    double sum = 0;
    for (int64_t i = 0; i < N; i++) sum += expf(x[i] - m);
    for (int64_t i = 0; i < N; i++) *ref_out(&a->y, t * N + i) = (float)(expf(x[i] - m) / sum);
  }
}

void mavk_ref_log_softmax(const mavk_args_log_softmax *a) {
  const int64_t N = ref_last(&a->x);
  for (int64_t t = 0; t < ref_leading(&a->x); t++) {
    const float *x = ref_in(&a->x, t * N), m = largest(x, N);
    double sum = 0;
    for (int64_t i = 0; i < N; i++) sum += expf(x[i] - m);
    for (int64_t i = 0; i < N; i++) *ref_out(&a->y, t * N + i) = x[i] - m - (float)log(sum);
  }
}

/* ln sum - (sum of e^x x) / sum, x less the largest. What has no probability adds nothing. */
void mavk_ref_entropy(const mavk_args_entropy *a) {
  const int64_t N = ref_last(&a->x);
  for (int64_t t = 0; t < ref_leading(&a->x); t++) {
    const float *x = ref_in(&a->x, t * N), m = largest(x, N);
    double sum = 0, weighted = 0;
    for (int64_t i = 0; i < N; i++) {
      const float e = expf(x[i] - m);
      sum += e;
      if (e > 0) weighted += e * (x[i] - m);
    }
    *ref_out(&a->y, t) = (float)(log(sum) - weighted / sum);
  }
}

void mavk_ref_cumsum(const mavk_args_cumsum *a) {
  const int64_t N = ref_last(&a->x);
  for (int64_t t = 0; t < ref_leading(&a->x); t++) {
    double sum = 0;
    for (int64_t i = 0; i < N; i++) *ref_out(&a->y, t * N + i) = (float)(sum += *ref_in(&a->x, t * N + i));
  }
}

/* The element that follows (above, above_index) in descending order, the lower index first among equals; NaN comes last. */
static int64_t next_largest(const float *x, int64_t n, float above, int64_t above_index) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; i++)
    if ((x[i] < above || (x[i] == above && i > above_index)) && (best < 0 || x[i] > x[best])) best = i;
  return best < 0 ? 0 : best;
}

void mavk_ref_argmax(const mavk_args_argmax *a) {
  const int64_t N = ref_last(&a->x);
  for (int64_t t = 0; t < ref_leading(&a->x); t++)
    ((int32_t *)a->index.p)[t] = (int32_t)next_largest(ref_in(&a->x, t * N), N, INFINITY, -1);
}

void mavk_ref_topk(const mavk_args_topk *a) {
  const int64_t N = ref_last(&a->x), k = ref_last(&a->index);
  for (int64_t t = 0; t < ref_leading(&a->x); t++) {
    const float *x = ref_in(&a->x, t * N);
    float above = INFINITY;
    int64_t index = -1;
    for (int64_t i = 0; i < k; i++) {
      index = next_largest(x, N, above, index);
      above = x[index];
      *ref_out(&a->values, t * k + i) = above;
      ((int32_t *)a->index.p)[t * k + i] = (int32_t)index;
    }
  }
}
