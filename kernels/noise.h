/* kernels/noise.h - keyed Gumbel noise: the same bits from every implementation.
 *
 * Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), keyed by the seed, turns the
 * counter (id / 4, position + 1, sequence key low, sequence key high) into four words; id takes word id % 4. A word becomes
 * u in (0, 1), u becomes the noise -ln(-ln u). So noise depends on what is drawn, never on the batch it is drawn in.
 *
 * Only correctly rounded f32 operations in a fixed order (+ - * /, conversion from i32), without contraction to FMA: a
 * vectorized or CUDA version that performs the same operations gives the same bits.
 *
 * The word is read as v = 1 - u, so that the resolution of floats near 0 falls on the upper tail, which decides: noise
 * reaches from -2.82 to MAVK_GUMBEL_MAX. Accuracy (measured by tests/kernels/test_numeric.c): mavk_log within 2e-7 of
 * ln x relatively, mavk_gumbel within 3e-7 of the exact value for its v, relative to the larger of that and 1.
 */
#ifndef MAVK_NOISE_H
#define MAVK_NOISE_H

#include "numeric.h"

#define MAVK_PHILOX_M0 0xD2511F53u
#define MAVK_PHILOX_M1 0xCD9E8D57u
#define MAVK_PHILOX_W0 0x9E3779B9u /* golden ratio */
#define MAVK_PHILOX_W1 0xBB67AE85u /* sqrt(3) - 1 */
#define MAVK_PHILOX_ROUNDS 10

#define MAVK_LEAST 0x1p-126f /* what is not above it counts as 0 where probabilities decide: mavk_log is for normal numbers */
#define MAVK_GUMBEL_MAX 21.5f /* no noise is larger: -ln(-ln(1 - 2^-31)) = 21.4876 */

/* counter becomes the four random words. */
MAVK_FN void mavk_philox(uint32_t counter[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < MAVK_PHILOX_ROUNDS; round++) {
    uint64_t p0 = (uint64_t)MAVK_PHILOX_M0 * counter[0], p1 = (uint64_t)MAVK_PHILOX_M1 * counter[2];
    uint32_t c1 = counter[1], c3 = counter[3];
    counter[0] = (uint32_t)(p1 >> 32) ^ c1 ^ key0;
    counter[1] = (uint32_t)p1;
    counter[2] = (uint32_t)(p0 >> 32) ^ c3 ^ key1;
    counter[3] = (uint32_t)p0;
    key0 += MAVK_PHILOX_W0;
    key1 += MAVK_PHILOX_W1;
  }
}

/* ln x of a positive normal x = 2^e m, sqrt(1/2) <= m < sqrt(2):  e ln 2 + 2 atanh s,  s = (m - 1) / (m + 1).
 * The series of atanh ends after s^9 / 9 (|s| <= 0.1716: the rest is below 1e-9 of the whole). */
MAVK_FN float mavk_log(float x) {
  uint32_t b = mavk_bits_from_f32(x) - 0x3f3504f3u; /* the bits of sqrt(1/2): e = floor(log2(x / sqrt(1/2))) */
  float e = (float)((int32_t)b >> 23);
  float m = mavk_f32_from_bits((b & 0x7fffffu) + 0x3f3504f3u);
  float s = (m - 1.0f) / (m + 1.0f);
  float z = s * s;
  float r = z * (2.0f / 9.0f);
  r = z * (r + 2.0f / 7.0f);
  r = z * (r + 2.0f / 5.0f);
  r = z * (r + 2.0f / 3.0f);
  r = s * r + (s + s);
  return e * 0.693359375f + (r + e * -2.12194440e-4f); /* ln 2 = 355/512 - 2.12e-4: the first product is exact */
}

/* -ln(-ln u) for u = 1 - v, v = (word / 2 | 1) / 2^31. */
MAVK_FN float mavk_gumbel(uint32_t word) {
  float v = (float)(int32_t)(word >> 1 | 1u) * 0x1p-31f;
  v = v < 0x1.fffffep-1f ? v : 0x1.fffffep-1f; /* u > 0 */
  float u = 1.0f - v;
  float lost = (1.0f - u) - v; /* exactly: 1 - v = u + lost */
  return 0.0f - mavk_log(0.0f - (mavk_log(u) + lost));
}

/* ---- what is drawn ------------------------------------------------------------------------------------------------ */

/* The streams of one seed are independent of each other; stream 0 is the seed itself, which op sample uses. */
enum { MAVK_STREAMS_FREE = 16, MAVK_STREAM_TRY = 16, MAVK_STREAM_RESIDUAL = 17 }; /* the free ones are for op perturb */

MAVK_FN uint64_t mavk_stream(uint64_t seed, uint32_t n) {
  if (n == 0) return seed;
  uint64_t z = seed + n * UINT64_C(0x9E3779B97F4A7C15); /* SplitMix64: Steele, Lea, Flood, OOPSLA 2014 */
  z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
  z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
  return z ^ z >> 31;
}

/* The random word of one id, as the token after `position`. */
MAVK_FN uint32_t mavk_word(uint64_t seed, int64_t sequence_key, int32_t position, int32_t id) {
  uint64_t key = (uint64_t)sequence_key;
  uint32_t c[4] = {(uint32_t)id / 4, (uint32_t)position + 1u, (uint32_t)key, (uint32_t)(key >> 32)};
  mavk_philox(c, (uint32_t)seed, (uint32_t)(seed >> 32));
  return c[id % 4];
}

/* The noise of one id. */
MAVK_FN float mavk_noise(uint64_t seed, int64_t sequence_key, int32_t position, int32_t id) {
  return mavk_gumbel(mavk_word(seed, sequence_key, position, id));
}

/* Between 0 and 1, both excluded; exact in double. */
MAVK_FN double mavk_uniform(uint64_t seed, int64_t sequence_key, int32_t position, int32_t id) {
  return (double)(mavk_word(seed, sequence_key, position, id) >> 1 | 1u) * 0x1p-31;
}

#endif
