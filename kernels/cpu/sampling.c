/* kernels/cpu/sampling.c - filters on rows of logits, and the draw.
 *
 * penalize, min_p_mask and sample work on blocks of a row (rows.h). top_k_mask and top_p_mask need an order, but of few
 * elements: top-k keeps a heap of k; top-p finds the bin of logits where the cumulative probability crosses 1 - p, and
 * sorts that bin only. A row of 200,000 logits takes well under a millisecond.
 *
 * sample makes the noise of kernels/noise.h on 16 lanes with the same operations, so the same bits, and only where it can
 * still win: no noise is larger than MAVK_GUMBEL_MAX.
 */
#include <math.h>

#include "rows.h"

#include "../noise.h"

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
    for (int64_t r = k.row; r >= 0; r = a->rows.parent[r]) {
      const int64_t id = a->rows.id[r] - k.first;
      if (id >= 0 && id < k.count) k.y[id] = penalized(k.x[id], a->penalty); /* from x: an id counts once */
    }
  }
}

void MAVK_CPU(mark_seen)(const mavk_args_mark_seen *a, mavk_thread *t) {
  const int64_t V = a->seen.n[1];
  if (mavk_claim(t) > 0) return;
  for (int64_t r = 0; r < a->rows.n; r++)
    if (a->rows.seq[r] >= 0) ((uint8_t *)a->seen.p)[a->rows.seq[r] * V + a->rows.id[r]] = 1;
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

/* mavk_philox of 16 counters that differ in their first word. */
static void philox16(v16i c[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < MAVK_PHILOX_ROUNDS; round++) {
    v16i low0, high0, low1, high1;
    v16i_mul_wide(c[0], MAVK_PHILOX_M0, &low0, &high0);
    v16i_mul_wide(c[2], MAVK_PHILOX_M1, &low1, &high1);
    c[0] = v16i_xor(v16i_xor(high1, c[1]), v16i_set1((int32_t)key0));
    c[2] = v16i_xor(v16i_xor(high0, c[3]), v16i_set1((int32_t)key1));
    c[1] = low1;
    c[3] = low0;
    key0 += MAVK_PHILOX_W0;
    key1 += MAVK_PHILOX_W1;
  }
}

/* mavk_gumbel of 16 words. */
static v16 gumbel16(v16i words) {
  const v16 one = v16_set1(1), most = v16_set1(0x1.fffffep-1f);
  v16 v = v16_mul(v16_from_i32(v16i_or(v16i_shr(words, 1), v16i_set1(1))), v16_set1(0x1p-31f));
  v = v16_select_lt(v, most, v, most);
  v16 u = v16_sub(one, v), lost = v16_sub(v16_sub(one, u), v);
  return v16_sub(v16_zero(), v16_log_normal(v16_sub(v16_zero(), v16_add(v16_log_normal(u), lost))));
}

/* The best of x + noise over ids [first, first + count), first a multiple of 64; the lowest id on ties. */
static float draw(const float *x, int64_t first, int64_t count, uint64_t seed, int64_t sequence_key, int32_t position, int32_t *id) {
  const v16 reach = v16_set1(MAVK_GUMBEL_MAX);
  const uint64_t key = (uint64_t)sequence_key;
  static const int32_t iota[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  v16 best[4], at[4]; /* by word of a counter: the best value of a lane, and the group of 64 ids it came from */
  float floor = -INFINITY; /* no id below it can win */
  for (int w = 0; w < 4; w++) best[w] = v16_set1(-INFINITY), at[w] = v16_zero();
  for (int64_t i = 0; i < count; i += 64) {
    v16 q[4];
    for (int w = 0; w < 4; w++) {
      float f[16];
      const int64_t left = count - i - 16 * w;
      if (left < 16) {
        for (int j = 0; j < 16; j++) f[j] = j < left ? x[i + 16 * w + j] : -INFINITY;
        q[w] = v16_load(f);
      } else {
        q[w] = v16_load(x + i + 16 * w);
      }
    }
    const v16 largest = v16_max(v16_max(q[0], q[1]), v16_max(q[2], q[3]));
    if (!v16_any_lt(v16_set1(floor), v16_add(largest, reach))) continue;
    const v16 e0 = v16_even(q[0], q[1]), o0 = v16_odd(q[0], q[1]), e1 = v16_even(q[2], q[3]), o1 = v16_odd(q[2], q[3]);
    const v16 logit[4] = {v16_even(e0, e1), v16_even(o0, o1), v16_odd(e0, e1), v16_odd(o0, o1)}; /* ids 4j, 4j+1, 4j+2, 4j+3 */
    v16i c[4] = {v16i_add(v16i_set1((int32_t)((first + i) / 4)), v16i_load(iota)), v16i_set1(position + 1),
                 v16i_set1((int32_t)(uint32_t)key), v16i_set1((int32_t)(uint32_t)(key >> 32))};
    philox16(c, (uint32_t)seed, (uint32_t)(seed >> 32));
    const v16 group = v16_set1((float)(i / 64));
    for (int w = 0; w < 4; w++) {
      const v16 y = v16_add(logit[w], gumbel16(c[w]));
      at[w] = v16_select_lt(best[w], y, group, at[w]);
      best[w] = v16_select_lt(best[w], y, y, best[w]);
    }
    const float now = v16_hmax(v16_max(v16_max(best[0], best[1]), v16_max(best[2], best[3])));
    floor = now > floor ? now : floor;
  }
  float winner = -INFINITY;
  *id = 0;
  for (int w = 0; w < 4; w++) {
    float value[16], group[16];
    v16_store(value, best[w]);
    v16_store(group, at[w]);
    for (int j = 0; j < 16; j++) {
      const int32_t candidate = (int32_t)(first + (int64_t)group[j] * 64 + 4 * j + w);
      if (value[j] > winner || (value[j] == winner && value[j] > -INFINITY && candidate < *id)) winner = value[j], *id = candidate;
    }
  }
  return winner;
}

void MAVK_CPU(sample)(const mavk_args_sample *a, mavk_thread *t) {
  const blocks b = blocks_of(&a->x);
  float *value = block_largest(t, &b);
  int32_t *id = (int32_t *)(value + b.rows * b.each), *ids = a->ids.p;
  for (block k; block_claim(&k, &b, &a->x, NULL, t);) {
    const int32_t seq = a->rows.seq[k.row];
    value[k.index] = -INFINITY;
    id[k.index] = 0;
    if (seq >= 0) value[k.index] = draw(k.x, k.first, k.count, (uint64_t)a->seed, a->kv.key[seq], a->rows.pos[k.row], &id[k.index]);
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
