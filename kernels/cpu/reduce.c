/* kernels/cpu/reduce.c - over the last dimension: sum, mean, max, min, softmax, log_softmax, entropy, cumsum, argmax, topk.
 * Bound by memory: softmax reads x twice and y once more; sums are taken in double on 16 lanes. */
#include <math.h>

#include "rows.h"

/* ---- sum, mean ---------------------------------------------------------------------------------------------------- */

static double sum_of(const float *x, int64_t n) {
  v16d s = v16d_zero();
  for (int64_t i = 0; i < n; i += 16) s = v16d_add(s, v16_load_n(x + i, mavk_min(16, n - i)));
  return v16d_sum(s);
}

static void sum_rows(const mavk_array *x, float *y, bool mean, mavk_thread *t) {
  const blocks b = blocks_of(x);
  double *sums = block_sums(t);
  for (block k; block_claim(&k, &b, x, NULL, t);) {
    const double s = sum_of(k.x, k.count);
    if (b.each == 1) y[k.row] = (float)(mean ? s / (double)b.n : s);
    else sums[k.index] = s;
  }
  if (b.each == 1) return;
  mavk_phase(t);
  for (int64_t r; (r = mavk_claim(t)) < b.rows;) y[r] = (float)(mean ? row_sum(sums, &b, r) / (double)b.n : row_sum(sums, &b, r));
}

void MAVK_CPU(sum)(const mavk_args_sum *a, mavk_thread *t) { sum_rows(&a->x, a->y.p, false, t); }
void MAVK_CPU(mean)(const mavk_args_mean *a, mavk_thread *t) { sum_rows(&a->x, a->y.p, true, t); }

/* ---- max, min ----------------------------------------------------------------------------------------------------- */

static float smallest_of(const float *x, int64_t n) {
  v16 m = v16_set1(INFINITY);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) m = v16_min(v16_load(x + i), m);
  float f[16], least;
  v16_store(f, m);
  least = f[0];
  for (int k = 1; k < 16; k++) least = f[k] < least ? f[k] : least;
  for (; i < n; i++) least = x[i] < least ? x[i] : least;
  return least;
}

void MAVK_CPU(max)(const mavk_args_max *a, mavk_thread *t) {
  const blocks b = blocks_of(&a->x);
  float *largest = block_largest(t, &b), *y = a->y.p;
  for (block k; block_claim(&k, &b, &a->x, NULL, t);) *(b.each == 1 ? &y[k.row] : &largest[k.index]) = largest_of(k.x, k.count);
  if (b.each == 1) return;
  mavk_phase(t);
  for (int64_t r; (r = mavk_claim(t)) < b.rows;) y[r] = row_largest(largest, &b, r);
}

void MAVK_CPU(min)(const mavk_args_min *a, mavk_thread *t) {
  const blocks b = blocks_of(&a->x);
  float *least = block_largest(t, &b), *y = a->y.p;
  for (block k; block_claim(&k, &b, &a->x, NULL, t);) *(b.each == 1 ? &y[k.row] : &least[k.index]) = smallest_of(k.x, k.count);
  if (b.each == 1) return;
  mavk_phase(t);
  for (int64_t r; (r = mavk_claim(t)) < b.rows;) y[r] = smallest_of(least + r * b.each, b.each);
}

/* ---- softmax ------------------------------------------------------------------------------------------------------ */

/* The sum of e^(x - m); writes the terms to y where it is not NULL. */
static double exp_sum(float *y, const float *x, int64_t n, float m) {
  const v16 largest = v16_set1(m);
  v16d s = v16d_zero();
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t w = mavk_min(16, n - i);
    v16 e = v16_exp(v16_sub(v16_load_n(x + i, w), largest));
    if (w < 16) { /* lanes beyond the row do not count */
      float f[16] = {0};
      v16_store_n(f, e, w);
      e = v16_load(f);
    }
    s = v16d_add(s, e);
    if (y) v16_store_n(y + i, e, w);
  }
  return v16d_sum(s);
}

/* Largest values of all blocks, then a barrier. */
static const float *find_largest(const blocks *b, const mavk_array *x, mavk_thread *t) {
  float *largest = block_largest(t, b);
  for (block k; block_claim(&k, b, x, NULL, t);) largest[k.index] = largest_of(k.x, k.count);
  mavk_phase(t);
  return largest;
}

static void divide(float *y, int64_t n, double sum) {
  const v16 s = v16_set1((float)sum);
  for (int64_t i = 0; i < n; i += 16) v16_store_n(y + i, v16_div(v16_load_n(y + i, mavk_min(16, n - i)), s), mavk_min(16, n - i));
}

void MAVK_CPU(softmax)(const mavk_args_softmax *a, mavk_thread *t) {
  const blocks b = blocks_of(&a->x);
  double *sums = block_sums(t);
  if (b.each == 1) {
    for (block k; block_claim(&k, &b, &a->x, &a->y, t);) divide(k.y, k.count, exp_sum(k.y, k.x, k.count, largest_of(k.x, k.count)));
    return;
  }
  const float *largest = find_largest(&b, &a->x, t);
  for (block k; block_claim(&k, &b, &a->x, &a->y, t);) sums[k.index] = exp_sum(k.y, k.x, k.count, row_largest(largest, &b, k.row));
  mavk_phase(t);
  for (block k; block_claim(&k, &b, &a->x, &a->y, t);) divide(k.y, k.count, row_sum(sums, &b, k.row));
}

static void shift(float *y, const float *x, int64_t n, float largest, float log_sum) {
  const v16 m = v16_set1(largest), s = v16_set1(log_sum);
  for (int64_t i = 0; i < n; i += 16)
    v16_store_n(y + i, v16_sub(v16_sub(v16_load_n(x + i, mavk_min(16, n - i)), m), s), mavk_min(16, n - i));
}

void MAVK_CPU(log_softmax)(const mavk_args_log_softmax *a, mavk_thread *t) {
  const blocks b = blocks_of(&a->x);
  double *sums = block_sums(t);
  if (b.each == 1) {
    for (block k; block_claim(&k, &b, &a->x, &a->y, t);) {
      const float m = largest_of(k.x, k.count);
      shift(k.y, k.x, k.count, m, (float)log(exp_sum(NULL, k.x, k.count, m)));
    }
    return;
  }
  const float *largest = find_largest(&b, &a->x, t);
  for (block k; block_claim(&k, &b, &a->x, NULL, t);) sums[k.index] = exp_sum(NULL, k.x, k.count, row_largest(largest, &b, k.row));
  mavk_phase(t);
  for (block k; block_claim(&k, &b, &a->x, &a->y, t);)
    shift(k.y, k.x, k.count, row_largest(largest, &b, k.row), (float)log(row_sum(sums, &b, k.row)));
}

/* The sums of e^(x - m) and of e^(x - m) (x - m). */
static void exp_sums(double sums[2], const float *x, int64_t n, float m) {
  const v16 largest = v16_set1(m), zero = v16_zero();
  v16d s = v16d_zero(), weighted = v16d_zero();
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t w = mavk_min(16, n - i);
    v16 d = v16_sub(v16_load_n(x + i, w), largest), e = v16_exp(d);
    if (w < 16) { /* lanes beyond the row do not count */
      float f[16] = {0};
      v16_store_n(f, e, w);
      e = v16_load(f);
    }
    s = v16d_add(s, e);
    weighted = v16d_add(weighted, v16_select_eq(e, zero, zero, v16_mul(e, d))); /* where d is -inf */
  }
  sums[0] = v16d_sum(s);
  sums[1] = v16d_sum(weighted);
}

static float entropy_of(double sum, double weighted) { return (float)(log(sum) - weighted / sum); }

void MAVK_CPU(entropy)(const mavk_args_entropy *a, mavk_thread *t) {
  const blocks b = blocks_of(&a->x);
  float *y = a->y.p;
  if (b.each == 1) {
    for (block k; block_claim(&k, &b, &a->x, NULL, t);) {
      double s[2];
      exp_sums(s, k.x, k.count, largest_of(k.x, k.count));
      y[k.row] = entropy_of(s[0], s[1]);
    }
    return;
  }
  const float *largest = find_largest(&b, &a->x, t);
  double *sums = block_sums(t) + 2 * b.rows * b.each; /* behind the largest */
  for (block k; block_claim(&k, &b, &a->x, NULL, t);) exp_sums(sums + 2 * k.index, k.x, k.count, row_largest(largest, &b, k.row));
  mavk_phase(t);
  for (int64_t r; (r = mavk_claim(t)) < b.rows;) {
    double sum = 0, weighted = 0;
    for (int64_t i = r * b.each; i < (r + 1) * b.each; i++) sum += sums[2 * i], weighted += sums[2 * i + 1];
    y[r] = entropy_of(sum, weighted);
  }
}

/* ---- in order ----------------------------------------------------------------------------------------------------- */

void MAVK_CPU(cumsum)(const mavk_args_cumsum *a, mavk_thread *t) {
  const int64_t N = mavk_row_size(&a->x), rows = mavk_row_count(&a->x);
  for (int64_t r; (r = mavk_claim(t)) < rows;) {
    const float *x = (const float *)a->x.p + r * N;
    float *y = (float *)a->y.p + r * N;
    double sum = 0;
    for (int64_t i = 0; i < N; i++) y[i] = (float)(sum += x[i]);
  }
}

void MAVK_CPU(argmax)(const mavk_args_argmax *a, mavk_thread *t) {
  const blocks b = blocks_of(&a->x);
  float *largest = block_largest(t, &b);
  int32_t *at = (int32_t *)(largest + b.rows * b.each), *index = a->index.p;
  for (block k; block_claim(&k, &b, &a->x, NULL, t);) {
    const float m = largest_of(k.x, k.count);
    int64_t i = 0;
    while (i + 16 <= k.count && !v16_any_eq(v16_load(k.x + i), v16_set1(m))) i += 16;
    while (i < k.count && k.x[i] != m) i++;
    largest[k.index] = m;
    at[k.index] = (int32_t)(i < k.count ? k.first + i : 0); /* only NaN: any index that exists */
    if (b.each == 1) index[k.row] = at[k.index];
  }
  if (b.each == 1) return;
  mavk_phase(t);
  for (int64_t r; (r = mavk_claim(t)) < b.rows;) {
    int64_t best = r * b.each;
    for (int64_t i = best + 1; i < (r + 1) * b.each; i++)
      if (largest[i] > largest[best]) best = i;
    index[r] = at[best];
  }
}

/* ---- topk: a heap in the results, whose root is the worst that is kept --------------------------------------------- */

static bool is_worse(const float *v, const int32_t *id, int64_t i, int64_t j) { return v[i] < v[j] || (v[i] == v[j] && id[i] > id[j]); }

static void sift(float *v, int32_t *id, int64_t i, int64_t n) {
  for (int64_t c; (c = 2 * i + 1) < n; i = c) {
    if (c + 1 < n && is_worse(v, id, c + 1, c)) c++;
    if (!is_worse(v, id, c, i)) break;
    const float x = v[i];
    const int32_t d = id[i];
    v[i] = v[c], id[i] = id[c];
    v[c] = x, id[c] = d;
  }
}

static float ordered(float x) { return x == x ? x : -INFINITY; } /* NaN comes last */

static void topk_row(float *v, int32_t *id, int64_t k, const float *x, int64_t n) {
  for (int64_t i = 0; i < k; i++) v[i] = ordered(x[i]), id[i] = (int32_t)i;
  for (int64_t i = k / 2; i-- > 0;) sift(v, id, i, k);
  for (int64_t i = k; i < n; i += 16) { /* later equals have higher indices: only larger ones enter */
    const int64_t w = mavk_min(16, n - i);
    if (w == 16 && !v16_any_lt(v16_set1(v[0]), v16_load(x + i))) continue;
    for (int64_t j = i; j < i + w; j++)
      if (x[j] > v[0]) {
        v[0] = x[j], id[0] = (int32_t)j;
        sift(v, id, 0, k);
      }
  }
  for (int64_t end = k; end-- > 1;) { /* the worst goes last */
    const float y = v[0];
    const int32_t d = id[0];
    v[0] = v[end], id[0] = id[end];
    v[end] = y, id[end] = d;
    sift(v, id, 0, end);
  }
}

void MAVK_CPU(topk)(const mavk_args_topk *a, mavk_thread *t) {
  const int64_t N = mavk_row_size(&a->x), rows = mavk_row_count(&a->x), k = a->k;
  for (int64_t r; (r = mavk_claim(t)) < rows;)
    topk_row((float *)a->values.p + r * k, (int32_t *)a->index.p + r * k, k, (const float *)a->x.p + r * N, N);
}
