/* kernels/cpu/gumbel.h - the noise of kernels/noise.h on sixteen lanes: the same operations, so the same bits. A counter
 * makes the words of four ids, so sixteen counters make those of 64; word w of counter j belongs to id 4 j + w.
 *
 * Noise is made only where it matters: not where all is -inf, and in a draw only where an id can still win (no noise is
 * larger than MAVK_GUMBEL_MAX).
 */
#ifndef MAVK_GUMBEL_H
#define MAVK_GUMBEL_H

#include <math.h>

#include "../noise.h"
#include "rows.h"

typedef struct noise {
  uint64_t seed;
  int64_t sequence_key;
  int32_t position;
} noise;

/* mavk_philox of 16 counters that differ in their first word. */
V16_INLINE void philox16(v16i c[4], uint32_t key0, uint32_t key1) {
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
V16_INLINE v16 gumbel16(v16i words) {
  const v16 one = v16_set1(1), most = v16_set1(0x1.fffffep-1f);
  v16 v = v16_mul(v16_from_i32(v16i_or(v16i_shr(words, 1), v16i_set1(1))), v16_set1(0x1p-31f));
  v = v16_select_lt(v, most, v, most);
  v16 u = v16_sub(one, v), lost = v16_sub(v16_sub(one, u), v);
  return v16_sub(v16_zero(), v16_log_normal(v16_sub(v16_zero(), v16_add(v16_log_normal(u), lost))));
}

/* The words of ids [first, first + 64), first a multiple of 4. */
V16_INLINE void noise_words(const noise *g, int64_t first, v16i c[4]) {
  static const int32_t iota[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const uint64_t key = (uint64_t)g->sequence_key;
  c[0] = v16i_add(v16i_set1((int32_t)(first / 4)), v16i_load(iota));
  c[1] = v16i_set1(g->position + 1);
  c[2] = v16i_set1((int32_t)(uint32_t)key);
  c[3] = v16i_set1((int32_t)(uint32_t)(key >> 32));
  philox16(c, (uint32_t)g->seed, (uint32_t)(g->seed >> 32));
}

/* y = x + noise over ids [first, first + count), first a multiple of 4. */
static inline void add_noise(const noise *g, float *y, const float *x, int64_t first, int64_t count) {
  for (int64_t i = 0; i < count; i += 64) {
    if (largest_of(x + i, mavk_min(64, count - i)) == -INFINITY) {
      memcpy(y + i, x + i, (size_t)mavk_min(64, count - i) * sizeof *y);
      continue;
    }
    v16i c[4];
    noise_words(g, first + i, c);
    const v16 g0 = gumbel16(c[0]), g1 = gumbel16(c[1]), g2 = gumbel16(c[2]), g3 = gumbel16(c[3]);
    const v16 e0 = v16_zip_low(g0, g2), e1 = v16_zip_high(g0, g2), o0 = v16_zip_low(g1, g3), o1 = v16_zip_high(g1, g3);
    const v16 in_order[4] = {v16_zip_low(e0, o0), v16_zip_high(e0, o0), v16_zip_low(e1, o1), v16_zip_high(e1, o1)};
    for (int64_t w = 0; w < 4 && i + 16 * w < count; w++) {
      const int64_t at = i + 16 * w, n = mavk_min(16, count - at);
      v16_store_n(y + at, v16_add(v16_load_n(x + at, n), in_order[w]), n);
    }
  }
}

/* The best of x + noise over ids [first, first + count), first a multiple of 64; the lowest id on ties. */
static inline float draw(const noise *g, const float *x, int64_t first, int64_t count, int32_t *id) {
  const v16 reach = v16_set1(MAVK_GUMBEL_MAX);
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
    v16i c[4];
    noise_words(g, first + i, c);
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

#endif
