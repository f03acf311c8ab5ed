/* Weight layouts: bijections, and the fragments that the instruction asks for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "layout.h"

static void every_byte_of_a_tile_is_one_element(void **state) {
  (void)state;
  bool seen[MAVK_MMA_TILE] = {false};
  for (int r = 0; r < MAVK_MMA_ROWS; r++)
    for (int k = 0; k < MAVK_MMA_COLUMNS; k++) {
      int at = mavk_mma_tile_at(r, k), row, column;
      assert_in_range(at, 0, MAVK_MMA_TILE - 1);
      assert_false(seen[at]);
      seen[at] = true;
      mavk_mma_tile_of(at, &row, &column);
      assert_int_equal(row, r);
      assert_int_equal(column, k);
    }
}

static void every_byte_of_a_matrix_is_one_element(void **state) {
  (void)state;
  enum { N = 48, K = 96 };
  bool seen[N * K] = {false};
  for (int64_t r = 0; r < N; r++)
    for (int64_t k = 0; k < K; k++) {
      int64_t at = mavk_mma_at(r, k, K), row, column;
      assert_in_range(at, 0, N * K - 1);
      assert_false(seen[at]);
      seen[at] = true;
      assert_int_equal(at / (16 * K), r / 16); /* sixteen rows stay together */
      mavk_mma_of(at, K, &row, &column);
      assert_int_equal(row, r);
      assert_int_equal(column, k);
    }
}

/* The A fragment by the tables of the PTX ISA: a0 a1 | a2 a3 | a4 a5 | a6 a7 are four registers of two f16. */
static void lanes_hold_the_fragments_of_the_instruction(void **state) {
  (void)state;
  enum { K = 64 };
  uint8_t x[16 * K], y[16 * K];
  for (int i = 0; i < 16 * K; i++) x[i] = (uint8_t)(i * 7 + i / 256);
  mavk_mma_pack(y, x, 16, K);
  for (int step = 0; step < K / 16; step++)
    for (int lane = 0; lane < 32; lane++) {
      const uint8_t *bytes = y + step / 2 * MAVK_MMA_TILE + lane * MAVK_MMA_LANE_BYTES + step % 2 * 8;
      for (int pair = 0; pair < 2; pair++) { /* columns 0 to 7, then 8 to 15 */
        uint32_t low, high, word;
        memcpy(&word, bytes + 4 * pair, 4);
        mavk_mma_pairs(word, &low, &high);
        for (int i = 0; i < 2; i++) { /* a0 a1 of the row, a2 a3 of the row 8 below */
          const int group = lane / 4, column = 16 * step + 8 * pair + lane % 4 * 2 + i;
          assert_int_equal(low >> (16 * i) & 0xffff, x[group * K + column]);
          assert_int_equal(high >> (16 * i) & 0xffff, x[(group + 8) * K + column]);
        }
      }
    }
}

static void packing_is_undone(void **state) {
  (void)state;
  enum { N = 80, K = 160 };
  static uint8_t x[N * K], y[N * K], z[N * K];
  uint32_t seed = 1;
  for (int i = 0; i < N * K; i++) x[i] = (uint8_t)((seed = seed * 1664525 + 1013904223) >> 24);
  mavk_mma_pack(y, x, N, K);
  assert_memory_not_equal(x, y, sizeof x);
  mavk_mma_unpack(z, y, N, K);
  assert_memory_equal(x, z, sizeof x);
  mavk_mma_pack(z, x + 16 * K, 16, K); /* a block of rows alone is the same bytes */
  assert_memory_equal(z, y + 16 * K, 16 * K);
  assert_true(mavk_mma_fits(N, K));
  assert_false(mavk_mma_fits(N + 8, K));
  assert_false(mavk_mma_fits(N, K + 16));
}

static void gate_and_up_share_tiles(void **state) {
  (void)state;
  enum { F = 40 };
  bool seen[2 * F] = {false};
  for (int64_t i = 0; i < F; i++)
    for (int up = 0; up < 2; up++) {
      const int64_t at = mavk_gate_up_at(i, up);
      bool is_up;
      assert_in_range(at, 0, 2 * F - 1);
      assert_false(seen[at]);
      seen[at] = true;
      assert_int_equal(mavk_gate_up_of(at, &is_up), i);
      assert_int_equal(is_up, up);
    }
  for (int64_t i = 0; i < F; i++) { /* the accumulator's c0 c1 and c2 c3: rows 8 apart in one tile */
    assert_int_equal(mavk_gate_up_at(i, true), mavk_gate_up_at(i, false) + 8);
    assert_int_equal(mavk_gate_up_at(i, true) / 16, mavk_gate_up_at(i, false) / 16);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_byte_of_a_tile_is_one_element), cmocka_unit_test(every_byte_of_a_matrix_is_one_element),
      cmocka_unit_test(lanes_hold_the_fragments_of_the_instruction), cmocka_unit_test(packing_is_undone),
      cmocka_unit_test(gate_and_up_share_tiles)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
