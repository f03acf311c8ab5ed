/* The rows between two speculative steps on small hand-made tables, and keys and values that move. The ref kernels are
 * called; checkops says that the others give the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "ref/ref.h"

enum { ROWS = 8, VOCABULARY = 100 };

typedef struct table {
  int32_t id[ROWS], seq[ROWS], pos[ROWS], slot[ROWS], parent[ROWS];
} table;

static mavk_rows part(table *t, int64_t first, int64_t n) {
  return (mavk_rows){n, first, t->id + first, t->seq + first, t->pos + first, t->slot + first, t->parent + first};
}
static mavk_array integers(int32_t *p, int64_t n) {
  return (mavk_array){p, MAVK_I32, 1, {n}, {1}};
}

/* Sequence 3: a tree of 5 rows whose root is at 10 (0 -> 1, 2; 2 -> 3; 3 -> 4). Sequence 1: a chain of 2 at 20. An idle row. */
static const table verified = {.id = {50, 51, 52, 53, 54, 60, 61, 0},
                               .seq = {3, 3, 3, 3, 3, 1, 1, -1},
                               .pos = {10, 11, 11, 12, 13, 20, 21, 0},
                               .slot = {10, 11, 12, 13, 14, 20, 21, 0},
                               .parent = {-1, 0, 0, 2, 3, -1, 5, -1}};
static int32_t accepted[ROWS] = {0, -1, 1, 2, -1, 0, -1, -1}, choice[ROWS] = {52, 1, 53, 70, 4, 80, 5, 6};

static void advance(table *rows, table *next, int64_t n, int64_t shift) {
  mavk_args_rows_advance a = {part(rows, 0, ROWS), integers(accepted, ROWS), integers(choice, ROWS), part(next, 0, n), VOCABULARY, shift};
  mavk_ref_rows_advance(&a);
}

static void roots_go_on_after_what_was_accepted(void **state) {
  (void)state;
  table t = verified;
  advance(&t, &t, ROWS, 0); /* in place */
  assert_memory_equal(t.id, ((int32_t[]){70, 51, 52, 53, 54, 80, 61, 0}), sizeof t.id);
  assert_memory_equal(t.pos, ((int32_t[]){13, 14, 14, 15, 16, 21, 22, 0}), sizeof t.pos);
  assert_memory_equal(t.slot, ((int32_t[]){13, 14, 15, 16, 17, 21, 22, 0}), sizeof t.slot);
  assert_memory_equal(t.seq, verified.seq, sizeof t.seq);
  assert_memory_equal(t.parent, verified.parent, sizeof t.parent);
}

static void next_may_be_another_table(void **state) {
  (void)state;
  table t = verified; /* sequence 7 is not among the verified rows: its tree stays; so does the idle row */
  table next = {.id = {1, 2, 3, 4, 5, 6},
                .seq = {1, 1, 7, 7, 3, -1},
                .pos = {0, 1, 5, 6, 0, 9},
                .slot = {0, 1, 5, 6, 0, 9},
                .parent = {-1, 0, -1, 2, -1, 4}};
  advance(&t, &next, 6, -1);
  assert_memory_equal(next.id, ((int32_t[]){80, 2, 3, 4, 70, 6}), 6 * sizeof(int32_t));
  assert_memory_equal(next.pos, ((int32_t[]){20, 21, 5, 6, 12, 9}), 6 * sizeof(int32_t));
  assert_memory_equal(next.slot, ((int32_t[]){20, 21, 5, 6, 12, 9}), 6 * sizeof(int32_t));
  assert_memory_equal(&t, &verified, sizeof t);
}

static void without_acceptance_the_first_row_counts(void **state) {
  (void)state;
  table t = verified, next = {.id = {1}, .seq = {1}, .parent = {-1}};
  int32_t none[ROWS] = {-1, -1, -1, -1, -1, -1, -1, -1};
  mavk_args_rows_advance a = {part(&t, 0, ROWS), integers(none, ROWS), integers(choice, ROWS), part(&next, 0, 1), VOCABULARY, 0};
  mavk_ref_rows_advance(&a);
  assert_true(next.id[0] == 80 && next.pos[0] == 21 && next.slot[0] == 21);
}

static void a_drafter_follows_the_accepted_rows(void **state) {
  (void)state;
  table t = verified, next = verified;
  mavk_args_rows_follow a = {part(&t, 0, ROWS), integers(accepted, ROWS), integers(choice, ROWS), part(&next, 0, ROWS), VOCABULARY};
  mavk_ref_rows_follow(&a);
  assert_memory_equal(next.id, ((int32_t[]){52, 0, 53, 70, 0, 80, 0, 0}), sizeof next.id);
  assert_memory_equal(next.seq, ((int32_t[]){3, -1, 3, 3, -1, 1, -1, -1}), sizeof next.seq);
  assert_memory_equal(next.pos, ((int32_t[]){10, 0, 11, 12, 0, 20, 0, 0}), sizeof next.pos);
  assert_memory_equal(next.slot, next.pos, sizeof next.slot);
  for (int i = 0; i < ROWS; i++) assert_int_equal(next.parent[i], -1);
}

static void the_last_accepted_row_of_every_tree(void **state) {
  (void)state;
  table t = verified;
  int32_t index[4];
  mavk_args_last_accepted a = {part(&t, 0, ROWS), integers(accepted, ROWS), 4, integers(index, 4)};
  mavk_ref_last_accepted(&a);
  assert_memory_equal(index, ((int32_t[]){3, 5, 5, 5}), sizeof index);
  a.rows = part(&t, 2, 5); /* there rows 2 and 5 of the table are roots */
  a.accepted = integers(accepted + 2, 5);
  a.trees = 2;
  mavk_ref_last_accepted(&a);
  assert_memory_equal(index, ((int32_t[]){1, 3}), 2 * sizeof *index);
}

/* One page of 16 slots, 2 heads of 2 channels, as f8 codes: what a slot holds is its number. */
static void keys_and_values_move_to_their_positions(void **state) {
  (void)state;
  uint8_t k[2 * 2 * 2 * 16], v[2 * 2 * 2 * 16];
  int32_t entry[4][2] = {{0, 0}, {0, 0}, {0, 0}, {1, 0}}; /* sequence 3: slots 0..15 in page 1, from 16 on in page 0 */
  table t = verified;
  mavk_args_kv_move a = {part(&t, 0, 5),
                         integers(accepted, 5),
                         {.k = k,
                          .v = v,
                          .dtype = MAVK_F8,
                          .k_scale = 1,
                          .v_scale = 1,
                          .page = 16,
                          .kv_heads = 2,
                          .head_dim = 2,
                          .table = entry[0],
                          .table_stride = 2}};
  for (int shift = 0; shift < 5; shift += 4) { /* the second time rows 2 .. 4 lie in the other page */
    for (int slot = 0; slot < 32; slot++)
      for (int head = 0; head < 2; head++)
        for (int c = 0; c < 2; c++) {
          k[ref_k_at(&a.kv, 3, slot, head, c)] = (uint8_t)(4 * slot + 2 * head + c);
          v[ref_v_at(&a.kv, 3, slot, head, c)] = (uint8_t)(4 * slot + 2 * head + c);
        }
    for (int r = 0; r < 5; r++) t.pos[r] = verified.pos[r], t.slot[r] = verified.slot[r] + (r >= 2 ? shift : 0);
    mavk_ref_kv_move(&a);
    for (int slot = 0; slot < 32; slot++) {
      const int from = slot == 11 ? t.slot[2] : slot == 12 ? t.slot[3] : slot;
      for (int head = 0; head < 2; head++)
        for (int c = 0; c < 2; c++) {
          assert_int_equal(k[ref_k_at(&a.kv, 3, slot, head, c)], 4 * from + 2 * head + c);
          assert_int_equal(v[ref_v_at(&a.kv, 3, slot, head, c)], 4 * from + 2 * head + c);
        }
    }
  }
}

static void different_values_are_counted(void **state) {
  (void)state;
  int32_t index[6] = {5, 5, 2000, -1, 2000, 0}, total[3] = {7, 7, 7};
  mavk_args_count_distinct a = {{index, MAVK_I32, 2, {3, 2}, {2, 1}}, integers(total, 3), 1};
  mavk_ref_count_distinct(&a);
  assert_memory_equal(total, ((int32_t[]){7, 4, 7}), sizeof total);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(roots_go_on_after_what_was_accepted),
      cmocka_unit_test(next_may_be_another_table),
      cmocka_unit_test(without_acceptance_the_first_row_counts),
      cmocka_unit_test(a_drafter_follows_the_accepted_rows),
      cmocka_unit_test(the_last_accepted_row_of_every_tree),
      cmocka_unit_test(keys_and_values_move_to_their_positions),
      cmocka_unit_test(different_values_are_counted),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
