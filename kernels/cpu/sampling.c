/* kernels/cpu/sampling.c - filters on rows of logits, and the draw.
 *
 * penalize, min_p_mask and sample work on blocks of a row (rows.h). top_k_mask and top_p_mask need an order, but of few
 * elements: top-k keeps a heap of k; top-p finds the bin of logits where the cumulative probability crosses 1 - p, and
 * sorts that bin only. A row of 200,000 logits takes well under a millisecond. sample and perturb: see gumbel.h.
 */
#include <math.h>

#include "gumbel.h"

/* ---- repetition --------------------------------------------------------------------------------------------------- */

static float penalized(float x, float penalty) { return x > 0 ? x / penalty : x * penalty; }

void MAVK_CPU(penalize)(const mavk_args_penalize *a, mavk_thread *t) {
  const blocks b = blocks_of(&a->x);
  const v16 penalty = v16_set1(a->penalty);
  for (block k; block_claim(&k, &b, &a->x, &a->y, t);) {
    const int32_t seq = a->rows.seq[k.row];
    if (seq < 0) { /* idle */
      memcpy(k.y, k.x, (size_t)k.count * sizeof *k.y);
      continue;
    }
    const uint8_t *seen = (const uint8_t *)a->seen.p + (int64_t)seq * b.n + k.first;
    int64_t i = 0;
    for (; i + 16 <= k.count; i += 16) {
      const v16 x = v16_load(k.x + i), y = v16_select_lt(v16_zero(), x, v16_div(x, penalty), v16_mul(x, penalty));
      v16_store(k.y + i, v16_select_eq(v16_from_i32(v16i_load_u8(seen + i)), v16_zero(), x, y));
    }
    for (; i < k.count; i++) k.y[i] = seen[i] ? penalized(k.x[i], a->penalty) : k.x[i];
    for (int64_t r = k.row; r != MAVK_NO_ROW; r = mavk_parent(&a->rows, r)) {
      const int64_t id = a->rows.id[r] - k.first;
      if (id >= 0 && id < k.count) k.y[id] = penalized(k.x[id], a->penalty); /* from x: an id counts once */
    }
  }
}

void MAVK_CPU(mark_seen)(const mavk_args_mark_seen *a, mavk_thread *t) {
  const int64_t V = a->seen.n[1];
  const int32_t *accepted = a->accepted.p;
  if (mavk_claim(t) > 0) return;
  for (int64_t r = 0; r < a->rows.n; r++)
    if (a->rows.seq[r] >= 0 && (!accepted || accepted[r] >= 0)) ((uint8_t *)a->seen.p)[a->rows.seq[r] * V + a->rows.id[r]] = 1;
}

/* ---- filters ------------------------------------------------------------------------------------------------------ */

/* v[0] is the smallest of the heap v. */
static void sift(float *v, int64_t i, int64_t n) {
  for (int64_t c; (c = 2 * i + 1) < n; i = c) {
    if (c + 1 < n && v[c + 1] < v[c]) c++;
    if (!(v[c] < v[i])) break;
    const float x = v[i];
    v[i] = v[c];
    v[c] = x;
  }
}

/* Keeps x >= edge, except the first `dropped` equal to it. */
static void mask(float *y, const float *x, int64_t n, float edge, int64_t dropped) {
  const v16 limit = v16_set1(edge), none = v16_set1(-INFINITY);
  if (dropped == 0) {
    for (int64_t i = 0; i < n; i += 16) {
      const v16 v = v16_load_n(x + i, mavk_min(16, n - i));
      v16_store_n(y + i, v16_select_lt(v, limit, none, v), mavk_min(16, n - i));
    }
    return;
  }
  for (int64_t i = 0; i < n; i++) y[i] = x[i] < edge || (x[i] == edge && dropped-- > 0) ? -INFINITY : x[i];
}

void MAVK_CPU(top_k_mask)(const mavk_args_top_k_mask *a, mavk_thread *t) {
  const int64_t N = mavk_row_size(&a->x), rows = mavk_row_count(&a->x), k = mavk_min(a->k, N);
  float *heap = t->scratch; /* the k largest so far */
  for (int64_t r; N > 0 && (r = mavk_claim(t)) < rows;) {
    const float *x = (const float *)a->x.p + r * N;
    for (int64_t i = 0; i < k; i++) heap[i] = x[i] == x[i] ? x[i] : -INFINITY;
    for (int64_t i = k / 2; i-- > 0;) sift(heap, i, k);
    for (int64_t i = k; i < N; i += 16) {
      const int64_t w = mavk_min(16, N - i);
      if (w == 16 && !v16_any_lt(v16_set1(heap[0]), v16_load(x + i))) continue;
      for (int64_t j = i; j < i + w; j++)
        if (x[j] > heap[0]) {
          heap[0] = x[j];
          sift(heap, 0, k);
        }
    }
    mask((float *)a->y.p + r * N, x, N, heap[0], 0);
  }
}

#define BINS 2048
#define BINS_PER_NAT 64 /* the last bin takes what is 32 nats below the best, or more */

static int64_t bin_of(float x, float best) {
  const float below = (best - x) * BINS_PER_NAT;
  return below < BINS - 1 ? (int64_t)below : BINS - 1; /* also for -inf and NaN */
}

/* The smallest value that stays, and how many equal to it go nevertheless. e[i] = e^(x[i] - best); tmp: n floats. */
static float nucleus_edge(const float *x, const float *e, int64_t n, float best, float p, float *tmp, int64_t *dropped) {
  double mass[BINS] = {0}, sum = 0, below = 0;
  for (int64_t i = 0; i < n; i++) mass[bin_of(x[i], best)] += e[i];
  for (int i = BINS - 1; i >= 0; i--) sum += mass[i];
  const double limit = (1 - (double)p) * sum;
  int64_t edge_bin = BINS - 1, count = 0;
  while (edge_bin > 0 && below + mass[edge_bin] <= limit) below += mass[edge_bin--];
  for (int64_t i = 0; i < n; i++)
    if (bin_of(x[i], best) == edge_bin) tmp[count++] = x[i];
  *dropped = 0;
  if (count == 0) return best;
  for (int64_t i = count / 2; i-- > 0;) sift(tmp, i, count);
  float edge = tmp[0]; /* takes them in ascending order */
  while (count > 0) {
    *dropped = tmp[0] == edge ? *dropped : 0;
    edge = tmp[0];
    below += v16_hmax(v16_exp(v16_set1(edge - best)));
    if (below > limit || count == 1) break;
    tmp[0] = tmp[--count];
    sift(tmp, 0, count);
    ++*dropped;
  }
  return edge;
}

void MAVK_CPU(top_p_mask)(const mavk_args_top_p_mask *a, mavk_thread *t) {
  const int64_t N = mavk_row_size(&a->x), rows = mavk_row_count(&a->x);
  for (int64_t r; N > 0 && (r = mavk_claim(t)) < rows;) {
    const float *x = (const float *)a->x.p + r * N;
    float *y = (float *)a->y.p + r * N; /* holds the exponentials until the edge is known */
    const float best = largest_of(x, N);
    for (int64_t i = 0; i < N; i += 16)
      v16_store_n(y + i, v16_exp(v16_sub(v16_load_n(x + i, mavk_min(16, N - i)), v16_set1(best))), mavk_min(16, N - i));
    int64_t dropped = 0;
    const float edge = best > -INFINITY ? nucleus_edge(x, y, N, best, a->p, t->scratch, &dropped) : best;
    mask(y, x, N, edge, dropped);
  }
}

void MAVK_CPU(min_p_mask)(const mavk_args_min_p_mask *a, mavk_thread *t) {
  const blocks b = blocks_of(&a->x);
  float *largest = block_largest(t, &b);
  const v16 limit = v16_set1(a->p), none = v16_set1(-INFINITY);
  for (block k; block_claim(&k, &b, &a->x, NULL, t);) largest[k.index] = largest_of(k.x, k.count);
  mavk_phase(t);
  for (block k; block_claim(&k, &b, &a->x, &a->y, t);) {
    const v16 best = v16_set1(row_largest(largest, &b, k.row));
    for (int64_t i = 0; i < k.count; i += 16) {
      const int64_t w = mavk_min(16, k.count - i);
      const v16 x = v16_load_n(k.x + i, w);
      v16_store_n(k.y + i, v16_select_lt(v16_exp(v16_sub(x, best)), limit, none, x), w);
    }
  }
}

/* ---- the draw ----------------------------------------------------------------------------------------------------- */

void MAVK_CPU(sample)(const mavk_args_sample *a, mavk_thread *t) {
  const blocks b = blocks_of(&a->x);
  float *value = block_largest(t, &b);
  int32_t *id = (int32_t *)(value + b.rows * b.each), *ids = a->ids.p;
  for (block k; block_claim(&k, &b, &a->x, NULL, t);) {
    const int32_t seq = a->rows.seq[k.row];
    value[k.index] = -INFINITY;
    id[k.index] = 0;
    if (seq >= 0) {
      const noise g = {(uint64_t)a->seed, a->kv.key[seq], (int32_t)(a->rows.pos[k.row] + a->ahead)};
      value[k.index] = draw(&g, k.x, k.first, k.count, &id[k.index]);
    }
    if (b.each == 1) ids[k.row] = id[k.index];
  }
  if (b.each == 1) return;
  mavk_phase(t);
  for (int64_t r; (r = mavk_claim(t)) < b.rows;) {
    int64_t best = r * b.each;
    for (int64_t i = best + 1; i < (r + 1) * b.each; i++)
      if (value[i] > value[best]) best = i;
    ids[r] = id[best];
  }
}

void MAVK_CPU(perturb)(const mavk_args_perturb *a, mavk_thread *t) {
  const blocks b = blocks_of(&a->x);
  const uint64_t seed = mavk_stream((uint64_t)a->seed, (uint32_t)a->stream);
  for (block k; block_claim(&k, &b, &a->x, &a->y, t);) {
    const int32_t seq = a->rows.seq[k.row];
    if (seq < 0) { /* idle */
      memset(k.y, 0, (size_t)k.count * sizeof *k.y);
      continue;
    }
    const noise g = {seed, a->kv.key[seq], (int32_t)(a->rows.pos[k.row] + a->ahead)};
    add_noise(&g, k.y, k.x, k.first, k.count);
  }
}
