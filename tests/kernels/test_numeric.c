/* Dtype conversions against golden bit patterns and exhaustively; Philox against its published vectors; the noise. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "noise.h"
#include "numeric.h"

/* A whole golden file; `size` bytes an element. */
static void *golden(const char *name, size_t size, size_t *count) {
  char path[512];
  snprintf(path, sizeof path, "%s/tests/oracle/numerics/%s", MAV_SOURCE_DIR, name);
  FILE *f = fopen(path, "rb");
  if (!f) fail_msg("cannot open %s", path);
  enum { ROOM = 1 << 16 };
  void *data = calloc(1, ROOM);
  assert_non_null(data);
  size_t bytes = fread(data, 1, ROOM, f);
  fclose(f);
  assert_true(bytes > 0 && bytes < ROOM && bytes % size == 0);
  *count = bytes / size;
  return data;
}

static void f8_codes_have_their_values(void **state) {
  (void)state;
  size_t n;
  uint32_t *value = golden("e4m3_code_value.f32", 4, &n);
  assert_int_equal(n, 256);
  for (uint32_t c = 0; c < 256; c++) assert_int_equal(mavk_bits_from_f32(mavk_f32_from_f8((uint8_t)c)), value[c]);
  free(value);
}

static void floats_become_f8(void **state) {
  (void)state;
  size_t n, m;
  float *in = golden("e4m3_in.f32", 4, &n);
  uint8_t *out = golden("e4m3_out.u8", 1, &m);
  assert_int_equal(n, 1221);
  assert_int_equal(n, m);
  for (size_t i = 0; i < n; i++) assert_int_equal(mavk_f8_from_f32(in[i]), out[i]);
  assert_int_equal(mavk_f8_from_f32(INFINITY), 0x7e);
  assert_int_equal(mavk_f8_from_f32(-INFINITY), 0xfe);
  assert_int_equal(mavk_f8_from_f32(NAN) & 0x7f, 0x7f);
  free(in);
  free(out);
}

static void floats_become_bf16(void **state) {
  (void)state;
  size_t n, m;
  float *in = golden("bf16_in.f32", 4, &n);
  uint16_t *out = golden("bf16_out.u16", 2, &m);
  assert_int_equal(n, 1225);
  assert_int_equal(n, m);
  for (size_t i = 0; i < n; i++) assert_int_equal(mavk_bf16_from_f32(in[i]), out[i]);
  assert_int_equal(mavk_bf16_from_f32(INFINITY), 0x7f80);
  assert_int_equal(mavk_bf16_from_f32(-3.4e38f), 0xff80); /* rounds to infinity */
  float nan = mavk_f32_from_bf16(mavk_bf16_from_f32(mavk_f32_from_bits(0x7f800001)));
  assert_true(nan != nan);
  free(in);
  free(out);
}

/* Every code of a narrow type survives the way to f32 and back; NaN stays NaN. */
static void narrow_types_survive_the_round_trip(void **state) {
  (void)state;
  for (uint32_t c = 0; c < 65536; c++) {
    float b = mavk_f32_from_bf16((uint16_t)c), h = mavk_f32_from_f16((uint16_t)c);
    if (b == b) assert_int_equal(mavk_bf16_from_f32(b), c);
    if (h == h) assert_int_equal(mavk_f16_from_f32(h), c);
    assert_int_equal(b != b, (c & 0x7fff) > 0x7f80);
    assert_int_equal(h != h, (c & 0x7fff) > 0x7c00);
  }
  for (uint32_t c = 0; c < 256; c++) {
    float x = mavk_f32_from_f8((uint8_t)c);
    if (x == x) assert_int_equal(mavk_f8_from_f32(x), c);
    assert_int_equal(x != x, (c & 0x7f) == 0x7f);
  }
}

/* Half way between neighbours goes to the even one, anything beyond to the nearer one. */
static void f16_rounds_to_nearest_even(void **state) {
  (void)state;
  for (uint32_t c = 0; c < 0x7bff; c++) {
    float low = mavk_f32_from_f16((uint16_t)c), high = mavk_f32_from_f16((uint16_t)(c + 1)), middle = (low + high) / 2; /* exact */
    assert_int_equal(mavk_f16_from_f32(middle), c + (c & 1));
    assert_int_equal(mavk_f16_from_f32(nextafterf(middle, 0)), c);
    assert_int_equal(mavk_f16_from_f32(-nextafterf(middle, INFINITY)), (c + 1) | 0x8000);
  }
  assert_int_equal(mavk_f16_from_f32(65519.996f), 0x7bff);
  assert_int_equal(mavk_f16_from_f32(65520.0f), 0x7c00);
  assert_int_equal(mavk_f16_from_f32(-1e30f), 0xfc00);
}

static void integers_saturate(void **state) {
  (void)state;
  const float x[] = {-1e30f, -3.9f, -0.5f, 0.9f, 255.9f, 3e9f, 1e30f, NAN};
  const int32_t as_i32[] = {INT32_MIN, -3, 0, 0, 255, INT32_MAX, INT32_MAX, 0};
  const int64_t as_i64[] = {INT64_MIN, -3, 0, 0, 255, 3000000000, INT64_MAX, 0};
  const uint8_t as_u8[] = {0, 0, 0, 0, 255, 255, 255, 0};
  for (int i = 0; i < 8; i++) {
    int32_t a;
    int64_t b;
    uint8_t c;
    mavk_convert(&a, MAVK_I32, 0, x, MAVK_F32, i);
    mavk_convert(&b, MAVK_I64, 0, x, MAVK_F32, i);
    mavk_convert(&c, MAVK_U8, 0, x, MAVK_F32, i);
    assert_true(a == as_i32[i] && b == as_i64[i] && c == as_u8[i]);
  }
  const int64_t big = INT64_C(9007199254740993); /* 2^53 + 1 is kept between integers */
  int64_t same;
  mavk_convert(&same, MAVK_I64, 0, &big, MAVK_I64, 0);
  assert_true(same == big);
}

/* The known answers of Random123's tests (file kat_vectors, philox4x32 with 10 rounds). */
static void philox_gives_the_published_words(void **state) {
  (void)state;
  static const uint32_t kat[3][10] = {
      {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
      {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
      {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
  for (int i = 0; i < 3; i++) {
    uint32_t c[4] = {kat[i][0], kat[i][1], kat[i][2], kat[i][3]};
    mavk_philox(c, kat[i][4], kat[i][5]);
    for (int w = 0; w < 4; w++) assert_int_equal(c[w], kat[i][6 + w]);
  }
}

static void logarithm_is_accurate(void **state) {
  (void)state;
  double worst = 0;
  for (uint32_t b = 0x00800000; b < 0x7f800000; b += 997) { /* positive normal numbers */
    float x = mavk_f32_from_bits(b);
    double exact = log((double)x), error = fabs(mavk_log(x) - exact) / fmax(fabs(exact), 1e-30);
    if (error > worst) worst = error;
  }
  print_message("mavk_log: largest relative error %.2e\n", worst);
  assert_true(worst < 2e-7);
  assert_true(mavk_log(1.0f) == 0);
}

static void gumbel_is_accurate_and_bounded(void **state) {
  (void)state;
  double worst = 0;
  float low = INFINITY, high = -INFINITY;
  for (uint64_t word = 0; word < UINT64_C(1) << 32; word = word < 4096 || word > 0xffffefff ? word + 1 : word + 1009) {
    float v = (float)(int32_t)((uint32_t)word >> 1 | 1u) * 0x1p-31f;
    if (v > 0x1.fffffep-1f) v = 0x1.fffffep-1f;
    float g = mavk_gumbel((uint32_t)word);
    double exact = -log(-log1p(-(double)v)), error = fabs(g - exact) / fmax(fabs(exact), 1);
    if (error > worst) worst = error;
    if (g < low) low = g;
    if (g > high) high = g;
  }
  print_message("mavk_gumbel: largest error %.2e, range %.4f .. %.4f\n", worst, (double)low, (double)high);
  assert_true(worst < 3e-7);
  assert_true(high <= MAVK_GUMBEL_MAX && low > -2.83f);
}

/* Mean, variance and lower tail of a million draws; mean = Euler's gamma, variance = pi^2 / 6, P(g <= 0) = 1/e. */
static void noise_is_gumbel_distributed(void **state) {
  (void)state;
  enum { N = 1 << 20 };
  double sum = 0, squares = 0;
  int below = 0;
  for (int32_t i = 0; i < N; i++) {
    double g = mavk_noise(7, 42, i / 1024, i % 1024);
    sum += g, squares += g * g, below += g <= 0;
  }
  double mean = sum / N, variance = squares / N - mean * mean;
  assert_true(fabs(mean - 0.5772156649) < 5 * 1.2825 / sqrt(N));
  assert_true(fabs(variance - 1.6449340668) < 5 * 3.0 / sqrt(N)); /* sd of the square of a centred Gumbel: 3.45 */
  assert_true(fabs((double)below / N - exp(-1)) < 5 * 0.4823 / sqrt(N));
}

/* Bits that every implementation, on every machine, must give. Changing them changes every seeded text. */
static void noise_never_changes(void **state) {
  (void)state;
  static const struct {
    uint64_t seed;
    int64_t key;
    int32_t position, id;
    uint32_t bits;
  } known[] = {
      {0, 0, 0, 0, 0x3f1dbf22},
      {1, 2, 3, 4, 0xbf6adfcc},
      {1, 2, 3, 5, 0xbf08e9fb},
      {UINT64_C(0xdeadbeefcafef00d), -1, 1048575, 202047, 0xbdbc3d31},
      {UINT64_MAX, INT64_MIN, 0, 131071, 0xbe69dcd7},
  };
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    uint32_t bits = mavk_bits_from_f32(mavk_noise(known[i].seed, known[i].key, known[i].position, known[i].id));
    if (bits != known[i].bits) fail_msg("noise %zu is 0x%08x", i, bits);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(f8_codes_have_their_values),
      cmocka_unit_test(floats_become_f8),
      cmocka_unit_test(floats_become_bf16),
      cmocka_unit_test(narrow_types_survive_the_round_trip),
      cmocka_unit_test(f16_rounds_to_nearest_even),
      cmocka_unit_test(integers_saturate),
      cmocka_unit_test(philox_gives_the_published_words),
      cmocka_unit_test(logarithm_is_accurate),
      cmocka_unit_test(gumbel_is_accurate_and_bounded),
      cmocka_unit_test(noise_is_gumbel_distributed),
      cmocka_unit_test(noise_never_changes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
