/* tests/core/test_spec.c - the stepper of the speculative loop: every transition of the table in core/spec.c, every forbidden one, trees,
 * what commit refuses, and what happens to the sequence meanwhile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "graph.h"

#include "device.h"

#define V 64 /* vocabulary of the graphs */

static mav_runtime *rt;

static int setup(void **state) { return mav_runtime_new(&rt, &(mav_runtime_options){.device = *state}, NULL); }

static int teardown(void **state) {
  (void)state;
  release_device(rt);
  return 0;
}

/* ---- a loop with one graph for every depth -------------------------------------------------------------------------------- */

typedef struct loop {
  mav_kv *kv;
  mav_spec *spec;
  mav_tensor *table, *accepted, *choice;
  mav_graph *graph[MAV_SPEC_ROWS_MAX];
  int depth, seq;
} loop;

static mav_tensor *ints(int64_t count) {
  mav_tensor *t;
  assert_int_equal(mav_tensor_new(&t, rt, MAV_DTYPE_I32, 1, &count), MAV_OK);
  return t;
}

static int32_t *values(mav_tensor *t) { return host_of(t); }
static int32_t *field(mav_spec *s, mav__rows_field f) { return mav__rows_edit(mav_spec_tree(s), f); }

static mav_graph *capture(mav_rows *rows, mav_tensor *table) {
  mav_graph *g;
  assert_int_equal(mav_graph_begin(&g, rt, rows), MAV_OK);
  mav_arg args[MAV_ARGS_MAX] = {{.given = true, .rows = rows}, {.given = true, .tensor = table}};
  assert_int_equal(mav_op_call(rt, mav_op_find("embed"), args), MAV_OK);
  mav_tensor_release(args[2].tensor);
  assert_int_equal(mav_graph_end(g), MAV_OK);
  return g;
}

static mav_graph *capture_depth(loop *l, int depth) {
  mav_rows *part;
  assert_int_equal(mav_rows_slice(&part, mav_spec_tree(l->spec), 0, mav_spec_size(l->spec, depth)), MAV_OK);
  mav_graph *g = capture(part, l->table);
  mav_rows_release(part);
  return g;
}

static loop make_on(mav_kv *kv, int depth, const int32_t *widths) {
  loop l = {.kv = mav_kv_retain(kv), .depth = depth};
  assert_int_equal(mav_spec_new(&l.spec, kv, depth, widths), MAV_OK);
  assert_int_equal(mav_tensor_new(&l.table, rt, MAV_DTYPE_F32, 2, (int64_t[]){V, 2}), MAV_OK);
  l.accepted = ints(MAV_SPEC_ROWS_MAX), l.choice = ints(MAV_SPEC_ROWS_MAX);
  for (int d = 0; d <= depth; d++) l.graph[d] = capture_depth(&l, d);
  assert_int_equal(mav_kv_sequence_new(kv, 0, &l.seq), MAV_OK);
  return l;
}

static mav_kv *make_kv(int64_t tokens, int64_t context) {
  mav_kv *kv;
  mav_kv_options o = {.layers = 1, .kv_heads = 1, .head_dim = 2, .dtype = MAV_DTYPE_F32, .tokens = tokens, .sequences = 4, .page = 16, .context_max = context};
  assert_int_equal(mav_kv_new(&kv, rt, &o), MAV_OK);
  return kv;
}

static loop make(int depth, const int32_t *widths) {
  mav_kv *kv = make_kv(512, 256);
  loop l = make_on(kv, depth, widths);
  mav_kv_release(kv);
  return l;
}

static void drop(loop *l) {
  if (mav_kv_sequence_length(l->kv, l->seq) >= 0) mav_kv_sequence_free(l->kv, l->seq);
  assert_int_equal(mav_kv_pages_live(l->kv), 0);
  for (int d = 0; d <= l->depth; d++) mav_graph_release(l->graph[d]);
  mav_tensor_release(l->table), mav_tensor_release(l->accepted), mav_tensor_release(l->choice);
  mav_spec_release(l->spec), mav_kv_release(l->kv);
}

static void append(loop *l, int64_t count) {
  assert_int_equal(mav_kv_sequence_reserve(l->kv, l->seq, count), MAV_OK);
  assert_int_equal(mav_kv_sequence_commit(l->kv, l->seq, count), MAV_OK);
}

#define assert_state(l, expected)                                       \
  do {                                                                  \
    assert_int_equal(mav_spec_get_state((l)->spec), expected);          \
    assert_int_equal(mav_spec_check((l)->spec), MAV_OK);                \
  } while (0)

static const int32_t drafts[] = {11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22};

/* Place 0 for the root, the given rows one after the other, -1 for the rest; row r is followed by 30 + r. */
static void accept(loop *l, int count, const int *rows) {
  for (int i = 0; i < MAV_SPEC_ROWS_MAX; i++) values(l->accepted)[i] = i ? -1 : 0, values(l->choice)[i] = 30 + i;
  for (int i = 0; i < count; i++) values(l->accepted)[rows[i]] = i + 1;
}

static void begin(loop *l) {
  assert_int_equal(mav_spec_begin(l->spec, l->seq, 5), MAV_OK);
  assert_state(l, MAV_SPEC_STATE_IDLE);
}

static void draft(loop *l, int depth) {
  assert_int_equal(mav_spec_draft(l->spec, depth, drafts), MAV_OK);
  if (depth) assert_state(l, MAV_SPEC_STATE_DRAFTED);
}

static void verify(loop *l, int depth) {
  assert_int_equal(mav_spec_verify(l->spec, l->graph[depth]), MAV_OK);
  assert_state(l, MAV_SPEC_STATE_VERIFYING);
}

static mav_err commit(loop *l, bool advanced) {
  int32_t ids[MAV_SPEC_ROWS_MAX];
  int count;
  return mav_spec_commit(l->spec, l->accepted, l->choice, advanced, ids, &count);
}

/* ---- trees ---------------------------------------------------------------------------------------------------------------- */

static void test_sizes(void **state) {
  (void)state;
  loop l = make(3, (int32_t[]){3, 2, 1});
  static const int64_t sizes[] = {1, 4, 10, 16};
  static const int32_t parents[] = {-1, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9};
  assert_int_equal(mav_spec_depth(l.spec), 3);
  for (int d = 0; d <= 3; d++) assert_int_equal(mav_spec_size(l.spec, d), sizes[d]);
  assert_int_equal(mav_spec_size(l.spec, -1), 0);
  assert_int_equal(mav_spec_size(l.spec, 4), 0);
  assert_int_equal(mav_rows_count(mav_spec_tree(l.spec)), 16);
  assert_ptr_equal(mav_spec_kv(l.spec), l.kv);
  assert_state(&l, MAV_SPEC_STATE_ERROR); /* until it begins */
  append(&l, 7);
  begin(&l);
  assert_memory_equal(field(l.spec, MAV__ROWS_PARENT), parents, sizeof parents);
  for (int i = 0, depth = 0; i < 16; i++) {
    depth += i == sizes[depth];
    assert_int_equal(field(l.spec, MAV__ROWS_POS)[i], 7 + depth);
    assert_int_equal(field(l.spec, MAV__ROWS_SLOT)[i], 7 + i);
    assert_int_equal(field(l.spec, MAV__ROWS_SEQ)[i], l.seq);
    assert_int_equal(field(l.spec, MAV__ROWS_ID)[i], i ? 0 : 5);
  }
  drop(&l);
}

static void test_trees_that_cannot_be(void **state) {
  (void)state;
  mav_kv *kv = make_kv(64, 64);
  int32_t ones[MAV_SPEC_ROWS_MAX];
  for (int i = 0; i < MAV_SPEC_ROWS_MAX; i++) ones[i] = 1;
  const struct {
    int depth;
    const int32_t *widths;
    const char *text;
  } bad[] = {
      {-1, ones, "depth -1"},          {MAV_SPEC_ROWS_MAX, ones, "depth 64"},
      {1, (int32_t[]){0}, "level 1"},  {2, (int32_t[]){2, -1}, "level 2 of the draft tree: width -1"},
      {1, (int32_t[]){64}, "level 1"}, {2, (int32_t[]){8, 7}, "level 2"},
      {3, (int32_t[]){INT32_MAX, INT32_MAX, INT32_MAX}, "level 1"},
  };
  mav_spec *s;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    assert_int_equal(mav_spec_new(&s, kv, bad[i].depth, bad[i].widths), MAV_ERR_RANGE);
    assert_null(s);
    assert_non_null(strstr(mav_runtime_diag(rt)->text, bad[i].text));
  }
  const struct {
    int depth;
    const int32_t *widths;
    int64_t rows;
  } good[] = {{0, NULL, 1}, {63, ones, 64}, {1, (int32_t[]){63}, 64}, {5, (int32_t[]){2, 2, 2, 2, 2}, 63}};
  for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
    assert_int_equal(mav_spec_new(&s, kv, good[i].depth, good[i].widths), MAV_OK);
    assert_int_equal(mav_rows_count(mav_spec_tree(s)), good[i].rows);
    mav_spec_release(s);
  }
  mav_kv_release(kv);
}

static void test_names(void **state) {
  (void)state;
  static const char *const names[] = {"idle", "drafted", "verifying", "committed", "rolled back", "error", "unknown"};
  for (int i = 0; i < 7; i++) assert_string_equal(mav_spec_state_name((mav_spec_state)i), names[i]);
  assert_string_equal(mav_spec_state_name((mav_spec_state)-1), "unknown");
}

/* ---- transitions ---------------------------------------------------------------------------------------------------------- */

static void reach(loop *l, mav_spec_state state) {
  if (state == MAV_SPEC_STATE_ERROR) {
    begin(l), draft(l, 1), verify(l, 1), accept(l, 0, NULL);
    values(l->accepted)[0] = 3;
    assert_int_equal(commit(l, false), MAV_ERR_INVALID);
  } else {
    begin(l);
    if (state != MAV_SPEC_STATE_IDLE) draft(l, 1);
    if (state > MAV_SPEC_STATE_DRAFTED) verify(l, 1);
    accept(l, state == MAV_SPEC_STATE_COMMITTED, (int[]){2});
    if (state > MAV_SPEC_STATE_VERIFYING) assert_int_equal(commit(l, false), MAV_OK);
  }
  assert_state(l, state);
}

typedef enum action { BEGIN, BEGIN_NOWHERE, BEGIN_NOTHING, DRAFT, DRAFT_NONE, DRAFT_DEEP, DRAFT_UP, DRAFT_BAD, DRAFTED, DRAFTED_NONE, DRAFTED_DEEP, DRAFTED_UP, VERIFY,
                      VERIFY_OTHER, COMMIT, ACTIONS } action;

static mav_err act(loop *l, action a, mav_graph *other) {
  const bool waits = mav_spec_get_state(l->spec) == MAV_SPEC_STATE_DRAFTED;
  switch (a) {
    case BEGIN: return mav_spec_begin(l->spec, l->seq, 9);
    case BEGIN_NOWHERE: return mav_spec_begin(l->spec, 3, 9);
    case BEGIN_NOTHING: return mav_spec_begin(l->spec, l->seq, -1);
    case DRAFT: return mav_spec_draft(l->spec, 2, drafts);
    case DRAFT_NONE: return mav_spec_draft(l->spec, 0, NULL);
    case DRAFT_DEEP: return mav_spec_draft(l->spec, 3, drafts);
    case DRAFT_UP: return mav_spec_draft(l->spec, -1, drafts);
    case DRAFT_BAD: return mav_spec_draft(l->spec, 1, (int32_t[]){4, -4});
    case DRAFTED: return mav_spec_drafted(l->spec, 1);
    case DRAFTED_NONE: return mav_spec_drafted(l->spec, 0);
    case DRAFTED_DEEP: return mav_spec_drafted(l->spec, 3);
    case DRAFTED_UP: return mav_spec_drafted(l->spec, INT32_MIN);
    case VERIFY: return mav_spec_verify(l->spec, l->graph[waits ? 1 : 0]);
    case VERIFY_OTHER: return mav_spec_verify(l->spec, other);
    case COMMIT: return commit(l, false);
    case ACTIONS: break;
  }
  return MAV_OK;
}

typedef struct outcome {
  mav_err err;
  mav_spec_state state;
} outcome;

static outcome expected(mav_spec_state from, action a) {
  const bool ready = from == MAV_SPEC_STATE_IDLE || from == MAV_SPEC_STATE_COMMITTED || from == MAV_SPEC_STATE_ROLLED_BACK;
  const bool starts = ready || from == MAV_SPEC_STATE_DRAFTED;
  switch (a) {
    case BEGIN: return (outcome){MAV_OK, MAV_SPEC_STATE_IDLE};
    case BEGIN_NOWHERE: return (outcome){MAV_ERR_INVALID, MAV_SPEC_STATE_ERROR};
    case BEGIN_NOTHING: return (outcome){MAV_ERR_RANGE, MAV_SPEC_STATE_ERROR};
    case DRAFT:
    case DRAFTED: return ready ? (outcome){MAV_OK, MAV_SPEC_STATE_DRAFTED} : (outcome){MAV_ERR_STATE, from};
    case DRAFT_NONE:
    case DRAFTED_NONE: return (outcome){ready ? MAV_OK : MAV_ERR_STATE, from};
    case DRAFT_DEEP:
    case DRAFT_UP:
    case DRAFT_BAD:
    case DRAFTED_DEEP:
    case DRAFTED_UP: return (outcome){ready ? MAV_ERR_RANGE : MAV_ERR_STATE, from};
    case VERIFY: return starts ? (outcome){MAV_OK, MAV_SPEC_STATE_VERIFYING} : (outcome){MAV_ERR_STATE, from};
    case VERIFY_OTHER: return (outcome){starts ? MAV_ERR_INVALID : MAV_ERR_STATE, from};
    case COMMIT: return from == MAV_SPEC_STATE_VERIFYING ? (outcome){MAV_OK, MAV_SPEC_STATE_ROLLED_BACK} : (outcome){MAV_ERR_STATE, from};
    case ACTIONS: break;
  }
  return (outcome){MAV_OK, from};
}

/* Every function in every state: what is allowed leads where the table says, what is not changes neither state, table, numbers nor
 * sequence. */
static void test_every_function_in_every_state(void **state) {
  (void)state;
  for (int from = MAV_SPEC_STATE_IDLE; from <= MAV_SPEC_STATE_ERROR; from++)
    for (int a = 0; a < ACTIONS; a++) {
      loop l = make(2, (int32_t[]){2, 2});
      append(&l, 3);
      reach(&l, (mav_spec_state)from);
      int32_t rows[MAV__ROWS_FIELDS * 7];
      const size_t bytes = sizeof rows;
      memcpy(rows, field(l.spec, MAV__ROWS_ID), bytes);
      mav_spec_stats before, after;
      mav_spec_get_stats(l.spec, &before);
      const int64_t length = mav_kv_sequence_length(l.kv, l.seq);
      const outcome want = expected((mav_spec_state)from, (action)a);
      assert_int_equal(act(&l, (action)a, l.graph[2]), want.err);
      assert_state(&l, want.state);
      if (want.err) {
        if (want.err == MAV_ERR_STATE) assert_non_null(strstr(mav_runtime_diag(rt)->text, mav_spec_state_name((mav_spec_state)from)));
        assert_memory_equal(rows, field(l.spec, MAV__ROWS_ID), bytes);
        mav_spec_get_stats(l.spec, &after);
        assert_memory_equal(&before, &after, sizeof before);
        assert_int_equal(mav_kv_sequence_length(l.kv, l.seq), length);
      }
      begin(&l); /* always helps */
      drop(&l);
    }
}

static void test_drafting_nothing_keeps_the_state(void **state) {
  (void)state;
  loop l = make(1, (int32_t[]){2});
  begin(&l), draft(&l, 0);
  assert_state(&l, MAV_SPEC_STATE_IDLE);
  verify(&l, 0), accept(&l, 0, NULL);
  int32_t ids[2];
  int count;
  assert_int_equal(mav_spec_commit(l.spec, NULL, l.choice, false, ids, &count), MAV_OK); /* nobody needs to accept the root */
  assert_state(&l, MAV_SPEC_STATE_COMMITTED);
  assert_true(count == 1 && ids[0] == 30);
  assert_int_equal(mav_spec_drafted(l.spec, 0), MAV_OK);
  assert_state(&l, MAV_SPEC_STATE_COMMITTED);
  drop(&l);
}

static void test_graphs_for_other_rows(void **state) {
  (void)state;
  loop l = make(2, (int32_t[]){2, 1}), other = make(2, (int32_t[]){2, 1});
  mav_rows *part;
  assert_int_equal(mav_rows_slice(&part, mav_spec_tree(l.spec), 1, 3), MAV_OK); /* as many, but not from the first */
  mav_graph *shifted = capture(part, l.table), *whole = capture(mav_spec_tree(l.spec), l.table);
  begin(&l), draft(&l, 1);
  mav_graph *bad[] = {l.graph[0], l.graph[2], other.graph[1], shifted, whole};
  for (int i = 0; i < 5; i++) {
    assert_int_equal(mav_spec_verify(l.spec, bad[i]), MAV_ERR_INVALID);
    assert_non_null(strstr(mav_runtime_diag(rt)->text, "first 3 rows"));
    assert_state(&l, MAV_SPEC_STATE_DRAFTED);
  }
  verify(&l, 1);
  begin(&l), draft(&l, 2);
  assert_int_equal(mav_spec_verify(l.spec, whole), MAV_OK); /* the table itself is its longest prefix */
  mav_graph_release(shifted), mav_graph_release(whole), mav_rows_release(part);
  drop(&l), drop(&other);
}

static void test_a_launch_that_fails(void **state) {
  (void)state;
  loop l = make(1, (int32_t[]){1});
  begin(&l);
  assert_int_equal(mav_spec_draft(l.spec, 1, (int32_t[]){V}), MAV_OK);
  assert_int_equal(mav_spec_verify(l.spec, l.graph[1]), MAV_ERR_RANGE);
  assert_state(&l, MAV_SPEC_STATE_ERROR);
  assert_int_equal(mav_spec_verify(l.spec, l.graph[1]), MAV_ERR_STATE);
  begin(&l), draft(&l, 1), verify(&l, 1);
  drop(&l);
}

/* ---- commit ---------------------------------------------------------------------------------------------------------------- */

/* Rows of {2, 2}: 0; 1 2; 3 4 (of 1), 5 6 (of 2). */
static void test_accepted_paths(void **state) {
  (void)state;
  static const struct {
    int count, rows[2];
  } paths[] = {{0, {0, 0}}, {1, {1, 0}}, {1, {2, 0}}, {2, {1, 3}}, {2, {1, 4}}, {2, {2, 5}}, {2, {2, 6}}};
  for (int depth = 1; depth <= 2; depth++)
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
      const int n = paths[i].count;
      if (n > depth) continue;
      loop l = make(2, (int32_t[]){2, 2});
      append(&l, 14); /* over the border of a page */
      begin(&l), draft(&l, depth), verify(&l, depth);
      accept(&l, n, paths[i].rows);
      int32_t ids[3] = {-1, -1, -1};
      int count;
      assert_int_equal(mav_spec_commit(l.spec, l.accepted, l.choice, false, ids, &count), MAV_OK);
      assert_state(&l, n < depth ? MAV_SPEC_STATE_ROLLED_BACK : MAV_SPEC_STATE_COMMITTED);
      assert_int_equal(count, n + 1);
      for (int k = 0; k <= n; k++) assert_int_equal(ids[k], 30 + (k ? paths[i].rows[k - 1] : 0));
      assert_int_equal(mav_kv_sequence_length(l.kv, l.seq), 14 + n + 1);
      assert_int_equal(field(l.spec, MAV__ROWS_ID)[0], ids[n]);
      assert_int_equal(field(l.spec, MAV__ROWS_POS)[0], 14 + n + 1);
      mav_spec_stats stats;
      mav_spec_get_stats(l.spec, &stats);
      assert_true(stats.steps == 1 && stats.drafted == depth && stats.accepted == n && stats.emitted == n + 1);
      draft(&l, 1), verify(&l, 1); /* and on */
      drop(&l);
    }
}

static void test_commit_refuses(void **state) {
  (void)state;
  const int32_t good[] = {0, -1, 1, -1, -1, -1, 2};
  static const struct {
    const char *what;
    int row[2], place[2]; /* written over the good ones */
  } bad[] = {
      {"the root is not the first", {0, 0}, {1, 1}},
      {"the root is not accepted", {0, 0}, {-1, -1}},
      {"two children of the root", {1, 1}, {1, 1}},
      {"two grandchildren", {5, 5}, {2, 2}},
      {"a gap", {2, 2}, {-1, -1}},
      {"a gap at the end", {6, 6}, {3, 3}},
      {"a grandchild of another child", {3, 6}, {2, -1}},
      {"a child after its own child", {2, 6}, {2, 1}},
      {"a second root", {4, 4}, {0, 0}},
      {"a place beyond the path", {3, 3}, {7, 7}},
      {"no place at all", {3, 3}, {-2, -2}},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    loop l = make(2, (int32_t[]){2, 2});
    begin(&l), draft(&l, 2), verify(&l, 2), accept(&l, 0, NULL);
    memcpy(values(l.accepted), good, sizeof good);
    for (int k = 0; k < 2; k++) values(l.accepted)[bad[i].row[k]] = bad[i].place[k];
    if (commit(&l, false) != MAV_ERR_INVALID) fail_msg("accepted with %s was not refused", bad[i].what);
    assert_state(&l, MAV_SPEC_STATE_ERROR);
    assert_int_equal(mav_kv_sequence_length(l.kv, l.seq), 0);
    mav_spec_stats stats;
    mav_spec_get_stats(l.spec, &stats);
    assert_int_equal(stats.steps, 0);
    assert_int_equal(commit(&l, false), MAV_ERR_STATE);
    begin(&l), draft(&l, 2), verify(&l, 2);
    memcpy(values(l.accepted), good, sizeof good);
    values(l.choice)[1] = -7; /* nobody reads it: the row is not on the path */
    assert_int_equal(commit(&l, false), MAV_OK);
    assert_state(&l, MAV_SPEC_STATE_COMMITTED);
    drop(&l);
  }
  for (int row = 0; row < 7; row += 2) { /* 0, 2, 6 are on the path */
    if (row == 4) continue;
    loop l = make(2, (int32_t[]){2, 2});
    begin(&l), draft(&l, 2), verify(&l, 2), accept(&l, 2, (int[]){2, 6});
    values(l.choice)[row] = -1;
    assert_int_equal(commit(&l, false), MAV_ERR_INVALID);
    assert_state(&l, MAV_SPEC_STATE_ERROR);
    drop(&l);
  }
}

static void test_commit_checks_its_tensors(void **state) {
  (void)state;
  mav_tensor *few = ints(2), *floats, *wide = ints(12), *strided, *grid, *planned;
  assert_int_equal(mav_tensor_new(&floats, rt, MAV_DTYPE_F32, 1, (int64_t[]){8}), MAV_OK);
  assert_int_equal(mav_tensor_slice(&strided, wide, 0, 0, 6, 2), MAV_OK);
  assert_int_equal(mav_tensor_reshape(&grid, wide, 2, (int64_t[]){3, 4}), MAV_OK);
  for (int i = 0; i < 12; i++) values(wide)[i] = i ? -1 : 0;
  loop l = make(1, (int32_t[]){2});
  mav_graph *g;
  assert_int_equal(mav_graph_begin(&g, rt, mav_spec_tree(l.spec)), MAV_OK);
  mav_arg args[MAV_ARGS_MAX] = {{.given = true, .tensor = floats}, {.given = true, .number = MAV_DTYPE_I32}};
  assert_int_equal(mav_op_call(rt, mav_op_find("cast"), args), MAV_OK);
  planned = args[2].tensor; /* not kept */
  assert_int_equal(mav_graph_end(g), MAV_OK);
  accept(&l, 0, NULL);
  const struct {
    mav_tensor *accepted, *choice;
    mav_err err;
  } pairs[] = {{few, l.choice, MAV_ERR_SHAPE},      {l.accepted, few, MAV_ERR_SHAPE},     {floats, l.choice, MAV_ERR_SHAPE}, {l.accepted, floats, MAV_ERR_SHAPE},
               {strided, l.choice, MAV_ERR_SHAPE},  {l.accepted, strided, MAV_ERR_SHAPE}, {planned, l.choice, MAV_ERR_SHAPE}, {l.accepted, planned, MAV_ERR_SHAPE},
               {NULL, l.choice, MAV_ERR_INVALID},   {grid, l.choice, MAV_OK},             {l.accepted, l.choice, MAV_OK}};
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
    int32_t ids[2];
    int count;
    begin(&l), draft(&l, 1), verify(&l, 1);
    assert_int_equal(mav_spec_commit(l.spec, pairs[i].accepted, pairs[i].choice, false, ids, &count), pairs[i].err);
    assert_state(&l, pairs[i].err ? MAV_SPEC_STATE_ERROR : MAV_SPEC_STATE_ROLLED_BACK);
  }
  mav_tensor *all[] = {few, floats, wide, strided, grid, planned};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) mav_tensor_release(all[i]);
  mav_graph_release(g), drop(&l);
}

/* ---- the sequence meanwhile -------------------------------------------------------------------------------------------------- */

static void close_sequence(loop *l) { assert_int_equal(mav_kv_sequence_free(l->kv, l->seq), MAV_OK); }
static void cut_sequence(loop *l) { assert_int_equal(mav_kv_sequence_truncate(l->kv, l->seq, 2), MAV_OK); }
static void grow_sequence(loop *l) { append(l, 1); }

static void test_the_sequence_changes(void **state) {
  (void)state;
  static void (*const changes[])(loop *) = {close_sequence, cut_sequence, grow_sequence};
  for (int i = 0; i < 3; i++)
    for (int drafted = 0; drafted < 2; drafted++) {
      loop l = make(1, (int32_t[]){1});
      append(&l, 5), begin(&l), draft(&l, drafted);
      changes[i](&l);
      const mav_spec_state before = mav_spec_get_state(l.spec);
      assert_int_equal(mav_spec_check(l.spec), MAV_ERR_STATE);
      assert_int_equal(mav_spec_verify(l.spec, l.graph[drafted]), MAV_ERR_STATE);
      assert_non_null(strstr(mav_runtime_diag(rt)->text, "begin again"));
      assert_int_equal(mav_spec_get_state(l.spec), before);
      if (i) begin(&l), draft(&l, drafted), verify(&l, drafted);
      else assert_int_equal(mav_spec_begin(l.spec, l.seq, 5), MAV_ERR_INVALID);
      drop(&l);

      l = make(1, (int32_t[]){1});
      append(&l, 5), begin(&l), draft(&l, drafted), verify(&l, drafted), accept(&l, 0, NULL);
      changes[i](&l);
      const int64_t length = mav_kv_sequence_length(l.kv, l.seq);
      assert_int_equal(commit(&l, false), MAV_ERR_STATE);
      assert_state(&l, MAV_SPEC_STATE_ERROR);
      assert_int_equal(mav_kv_sequence_length(l.kv, l.seq), length);
      if (i) begin(&l), draft(&l, drafted), verify(&l, drafted);
      drop(&l);
    }
}

/* Cut off after the launch, to the same length: the slots are gone. */
static void test_the_slots_are_dropped(void **state) {
  (void)state;
  loop l = make(1, (int32_t[]){1});
  append(&l, 5), begin(&l), draft(&l, 1), verify(&l, 1), accept(&l, 1, (int[]){1});
  assert_int_equal(mav_kv_sequence_truncate(l.kv, l.seq, 5), MAV_OK);
  assert_int_equal(mav_spec_check(l.spec), MAV_ERR_STATE);
  assert_int_equal(commit(&l, false), MAV_ERR_STATE);
  assert_state(&l, MAV_SPEC_STATE_ERROR);
  drop(&l);
}

static void test_no_room(void **state) {
  (void)state;
  mav_kv *kv = make_kv(16, 256); /* 1 page and one more for each of 4 sequences */
  loop l = make_on(kv, 2, (int32_t[]){3, 2}), other = make_on(kv, 0, NULL);
  append(&other, 64);
  append(&l, 12);
  begin(&l), draft(&l, 2);
  const int64_t live = mav_kv_pages_live(kv);
  assert_int_equal(mav_spec_verify(l.spec, l.graph[2]), MAV_ERR_FULL);
  assert_int_equal(mav_kv_pages_live(kv), live);
  assert_state(&l, MAV_SPEC_STATE_DRAFTED); /* nothing was launched; it may be tried again */
  close_sequence(&other);
  verify(&l, 2);
  drop(&l);
  drop(&other);
  mav_kv_release(kv);
}

/* The next tree needs room after this one's deepest row: depth + 1 + all rows. */
static void test_the_end_of_the_context(void **state) {
  (void)state;
  for (int64_t length = 256 - 8; length <= 256; length++) {
    loop l = make(2, (int32_t[]){1, 1});
    append(&l, length), begin(&l), draft(&l, 1);
    const bool fits = length + 1 + 1 + 3 <= 256;
    assert_int_equal(mav_spec_verify(l.spec, l.graph[1]), fits ? MAV_OK : MAV_ERR_FULL);
    assert_state(&l, fits ? MAV_SPEC_STATE_VERIFYING : MAV_SPEC_STATE_DRAFTED);
    begin(&l);
    drop(&l);
  }
}

static void test_two_sequences_in_turn(void **state) {
  (void)state;
  loop l = make(1, (int32_t[]){2});
  int other;
  append(&l, 20), begin(&l), draft(&l, 1), verify(&l, 1), accept(&l, 1, (int[]){2});
  assert_int_equal(mav_kv_sequence_fork(l.kv, l.seq, 1, &other), MAV_OK); /* in the middle of a step */
  assert_int_equal(commit(&l, false), MAV_OK);
  assert_state(&l, MAV_SPEC_STATE_COMMITTED);
  assert_int_equal(mav_spec_begin(l.spec, other, 3), MAV_OK);
  assert_state(&l, MAV_SPEC_STATE_IDLE);
  assert_int_equal(field(l.spec, MAV__ROWS_SEQ)[2], other);
  assert_int_equal(field(l.spec, MAV__ROWS_POS)[0], 20);
  draft(&l, 1), verify(&l, 1);
  assert_int_equal(commit(&l, false), MAV_OK);
  assert_int_equal(mav_kv_sequence_length(l.kv, other), 22);
  assert_int_equal(mav_kv_sequence_length(l.kv, l.seq), 22);
  mav_kv_sequence_free(l.kv, other);
  drop(&l);
}

/* ---- with ops ---------------------------------------------------------------------------------------------------------------- */

static mav_arg tensor_arg(mav_tensor *t) { return (mav_arg){.given = true, .tensor = t}; }
static mav_arg rows_arg(mav_rows *r) { return (mav_arg){.given = true, .rows = r}; }

/* A graph may move the tree itself: then the table is the same as when the host does it. */
static void test_advanced(void **state) {
  (void)state;
  loop host = make(2, (int32_t[]){2, 2}), device = make(2, (int32_t[]){2, 2});
  mav_rows *part;
  mav_graph *g;
  assert_int_equal(mav_rows_slice(&part, mav_spec_tree(device.spec), 0, 7), MAV_OK);
  mav_tensor *accepted, *choice;
  assert_int_equal(mav_tensor_slice(&accepted, device.accepted, 0, 0, 7, 1), MAV_OK);
  assert_int_equal(mav_tensor_slice(&choice, device.choice, 0, 0, 7, 1), MAV_OK);
  assert_int_equal(mav_graph_begin(&g, rt, part), MAV_OK);
  mav_arg args[MAV_ARGS_MAX] = {rows_arg(part), tensor_arg(accepted), tensor_arg(choice), rows_arg(mav_spec_tree(device.spec)), {.given = true, .number = V}};
  assert_int_equal(mav_op_call(rt, mav_op_find("rows_advance"), args), MAV_OK);
  assert_int_equal(mav_graph_end(g), MAV_OK);
  begin(&host), begin(&device);
  static const struct {
    int count, rows[2];
  } paths[] = {{0, {0, 0}}, {2, {2, 6}}, {1, {1, 0}}, {2, {1, 3}}, {0, {0, 0}}};
  for (int i = 0; i < 5; i++) {
    draft(&host, 2), verify(&host, 2), accept(&host, paths[i].count, paths[i].rows);
    assert_int_equal(commit(&host, false), MAV_OK);
    draft(&device, 2);
    accept(&device, paths[i].count, paths[i].rows);
    assert_int_equal(mav_spec_verify(device.spec, g), MAV_OK);
    assert_state(&device, MAV_SPEC_STATE_VERIFYING);
    assert_int_equal(commit(&device, true), MAV_OK);
    assert_state(&device, mav_spec_get_state(host.spec));
    assert_memory_equal(field(host.spec, MAV__ROWS_ID), field(device.spec, MAV__ROWS_ID), MAV__ROWS_FIELDS * 7 * sizeof(int32_t));
  }
  draft(&device, 2);
  verify(&device, 2); /* this graph does not advance */
  assert_int_equal(commit(&device, true), MAV_OK);
  assert_int_equal(mav_spec_check(device.spec), MAV_ERR_STATE);
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "the root is not the token at its position"));
  begin(&device);
  mav_graph_release(g), mav_tensor_release(accepted), mav_tensor_release(choice), mav_rows_release(part);
  drop(&host), drop(&device);
}

static void test_drafts_written_by_a_graph(void **state) {
  (void)state;
  loop l = make(1, (int32_t[]){3});
  mav_rows *level;
  mav_graph *g;
  mav_tensor *ids = ints(3);
  for (int i = 0; i < 3; i++) values(ids)[i] = 40 + i;
  assert_int_equal(mav_rows_slice(&level, mav_spec_tree(l.spec), 1, 3), MAV_OK);
  assert_int_equal(mav_graph_begin(&g, rt, level), MAV_OK);
  mav_arg args[MAV_ARGS_MAX] = {tensor_arg(ids), rows_arg(level), {.given = true, .number = V}};
  assert_int_equal(mav_op_call(rt, mav_op_find("rows_put"), args), MAV_OK);
  assert_int_equal(mav_graph_end(g), MAV_OK);
  begin(&l);
  assert_int_equal(mav_graph_launch(g), MAV_OK);
  assert_int_equal(mav_spec_drafted(l.spec, 1), MAV_OK);
  assert_state(&l, MAV_SPEC_STATE_DRAFTED);
  for (int i = 0; i < 3; i++) assert_int_equal(field(l.spec, MAV__ROWS_ID)[i + 1], 40 + i);
  verify(&l, 1);
  mav_graph_release(g), mav_tensor_release(ids), mav_rows_release(level);
  drop(&l);
}

/* The table is open to everyone: check says who was there. */
static void test_check(void **state) {
  (void)state;
  static const struct {
    mav__rows_field field;
    int row;
    int32_t value;
    const char *text;
  } wrong[] = {
      {MAV__ROWS_ID, 0, -1, "the root is not the token"},     {MAV__ROWS_POS, 0, 8, "the root is not the token"},
      {MAV__ROWS_SLOT, 0, 8, "the root is not the token"},    {MAV__ROWS_SEQ, 0, 2, "the root is not the token"},
      {MAV__ROWS_PARENT, 0, 0, "the root has a parent"},      {MAV__ROWS_POS, 2, 3, "a row does not follow its parent"},
      {MAV__ROWS_PARENT, 2, -1, "a row does not follow"},     {MAV__ROWS_PARENT, 2, 5, "a row does not follow"},
      {MAV__ROWS_SEQ, 3, -1, "a row does not follow"},        {MAV__ROWS_SLOT, 3, 4, "a row is not at its slot"},
      {MAV__ROWS_ID, 2, -5, "a draft has no token"},
  };
  loop l = make(2, (int32_t[]){2, 2});
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    begin(&l), draft(&l, 1);
    int32_t *cell = field(l.spec, wrong[i].field) + wrong[i].row, before = *cell;
    *cell = wrong[i].value;
    assert_int_equal(mav_spec_check(l.spec), MAV_ERR_STATE);
    assert_non_null(strstr(mav_runtime_diag(rt)->text, wrong[i].text));
    *cell = before;
    assert_state(&l, MAV_SPEC_STATE_DRAFTED);
  }
  drop(&l);
}

static void test_allocation_failures(void **state) {
  (void)state;
  mav_kv *kv = make_kv(64, 64);
  const int64_t live = mav__mem_live();
  mav_spec *s = NULL;
  for (int n = 1; !s; n++) {
    mav__mem_fail_at(n);
    const mav_err err = mav_spec_new(&s, kv, 2, (int32_t[]){2, 2});
    mav__mem_fail_at(0);
    assert_int_equal(err, s ? MAV_OK : MAV_ERR_NOMEM);
    assert_true(n < 100 && (s || mav__mem_live() == live));
  }
  mav_spec_release(s);
  assert_int_equal(mav__mem_live(), live);
  mav_kv_release(kv);
}

static void test_references(void **state) {
  (void)state;
  loop l = make(1, (int32_t[]){1});
  mav_spec *s = mav_spec_retain(l.spec);
  mav_rows *tree = mav_rows_retain(mav_spec_tree(s));
  begin(&l);
  drop(&l);
  assert_int_equal(mav_spec_get_state(s), MAV_SPEC_STATE_IDLE);
  assert_int_equal(mav_spec_check(s), MAV_ERR_STATE); /* the sequence is closed; the cache lives */
  mav_spec_release(s);
  assert_int_equal(mav_rows_count(tree), 2);
  mav_rows_release(tree);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sizes),
      cmocka_unit_test(test_trees_that_cannot_be),
      cmocka_unit_test(test_names),
      cmocka_unit_test(test_every_function_in_every_state),
      cmocka_unit_test(test_drafting_nothing_keeps_the_state),
      cmocka_unit_test(test_graphs_for_other_rows),
      cmocka_unit_test(test_a_launch_that_fails),
      cmocka_unit_test(test_accepted_paths),
      cmocka_unit_test(test_commit_refuses),
      cmocka_unit_test(test_commit_checks_its_tensors),
      cmocka_unit_test(test_the_sequence_changes),
      cmocka_unit_test(test_the_slots_are_dropped),
      cmocka_unit_test(test_no_room),
      cmocka_unit_test(test_the_end_of_the_context),
      cmocka_unit_test(test_two_sequences_in_turn),
      cmocka_unit_test(test_advanced),
      cmocka_unit_test(test_drafts_written_by_a_graph),
      cmocka_unit_test(test_check),
      cmocka_unit_test(test_allocation_failures),
      cmocka_unit_test(test_references),
  };
  return run_on_devices(tests, sizeof tests / sizeof *tests, setup, teardown);
}
