/* tests/core/test_spec_soak.c - a long random life of the speculative loop: several sequences with trees of several shapes, random depths
 * and accepted paths, forks (also in the middle of a step), truncation, sequences that end, a cache that is often full. Keys and values are
 * a function of their token, so after every step the cache must hold those of the text, in a layer with full attention and in one with
 * a chunk. Nothing is allocated once the graphs are captured.
 *
 *   test_spec_soak [steps] [seed]      3000 steps are the default; the long run of the tests takes 100,000 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "graph.h"

#define SEQUENCES 6
#define CONTEXT 200
#define V 40
#define D 4
#define CHUNK 16
#define LAYERS 2
#define DEPTH_MAX 5

static const struct {
  int depth;
  int32_t widths[DEPTH_MAX];
} shapes[SEQUENCES] = {{5, {1, 1, 1, 1, 1}}, {0, {0}}, {2, {3, 2}}, {3, {4, 2, 1}}, {1, {7}}, {4, {2, 1, 2, 1}}};

/* One stepper with its graphs; it works on the sequence of the same place. */
typedef struct track {
  mav_spec *spec;
  int seq; /* -1: none */
  bool begun;
  int64_t length;            /* of the text in the cache */
  int32_t text[CONTEXT + 1]; /* and the root after it */
  mav_graph *verify[DEPTH_MAX + 1], *settle[DEPTH_MAX + 1], *advance[DEPTH_MAX + 1];
  mav_tensor *accepted[DEPTH_MAX + 1], *choice[DEPTH_MAX + 1];
} track;

static mav_runtime *rt;
static mav_kv *kv;
static mav_tensor *embeddings, *norm, *w[LAYERS];
static float known[LAYERS][2][V][D]; /* key and value of a token */
static track tracks[SEQUENCES];
static uint64_t state = 1;
static int64_t steps = 3000, emitted, forks, refusals;

static int64_t below(int64_t n) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (int64_t)((state >> 33) % (uint64_t)n);
}

static mav_arg tensor_arg(mav_tensor *t) { return (mav_arg){.given = true, .tensor = t}; }
static mav_arg rows_arg(mav_rows *r) { return (mav_arg){.given = true, .rows = r}; }
static mav_arg kv_arg(int layer) { return (mav_arg){.given = true, .kv = {kv, layer}}; }

static mav_tensor *result(const char *name, mav_arg *args) {
  const int op = mav_op_find(name);
  const mav_op_desc *d = mav_op_get(op);
  if (mav_op_call(rt, op, args)) fail_msg("%s", mav_runtime_diag(rt)->text);
  return d->arg[d->args - 1].kind == MAV_ARG_OUT ? args[d->args - 1].tensor : NULL;
}

/* Layers that only write keys and read them: what they compute is thrown away. */
static void forward(mav_rows *rows) {
  mav_tensor *x = result("embed", (mav_arg[MAV_ARGS_MAX]){rows_arg(rows), tensor_arg(embeddings)});
  for (int i = 0; i < LAYERS; i++) {
    mav_tensor *q = result("norm_qkv", (mav_arg[MAV_ARGS_MAX]){tensor_arg(x), tensor_arg(norm), tensor_arg(w[i]), rows_arg(rows), kv_arg(i)});
    mav_tensor *y = result("attention", (mav_arg[MAV_ARGS_MAX]){tensor_arg(q), rows_arg(rows), kv_arg(i), {.given = true, .number = i ? CHUNK : 0}});
    mav_tensor_release(q), mav_tensor_release(y);
  }
  mav_tensor_release(x);
}

static float cell(int layer, bool value, int seq, int64_t slot, int channel) {
  const mavk_kv k = mav__kv_kernel(kv, layer);
  const int64_t page = k.table[seq * k.table_stride + slot / k.page];
  if (page < 0) fail_msg("layer %d: slot %lld of sequence %d is not mapped", layer, (long long)slot, seq);
  return value ? ((const float *)k.v)[(page * k.page + slot % k.page) * D + channel] : ((const float *)k.k)[(page * D + channel) * k.page + slot % k.page];
}

static void learn(void) {
  mav_rows *rows;
  int seq;
  assert_int_equal(mav_rows_new(&rows, rt, V), MAV_OK);
  assert_int_equal(mav_kv_sequence_new(kv, 0, &seq), MAV_OK);
  assert_int_equal(mav_kv_sequence_reserve(kv, seq, V), MAV_OK);
  for (int id = 0; id < V; id++) assert_int_equal(mav_rows_set(rows, id, id, seq, id, id - 1, -1), MAV_OK);
  forward(rows);
  for (int i = 0; i < LAYERS; i++)
    for (int v = 0; v < 2; v++)
      for (int id = 0; id < V; id++)
        for (int c = 0; c < D; c++) known[i][v][id][c] = cell(i, v, seq, id, c);
  assert_int_equal(mav_kv_sequence_free(kv, seq), MAV_OK);
  mav_rows_release(rows);
}

static mav_graph *capture(mav_rows *rows, const track *t, int depth, int what) {
  mav_graph *g;
  mav_tensor *accepted = t->accepted[depth], *choice = t->choice[depth];
  assert_int_equal(mav_graph_begin(&g, rt, rows), MAV_OK);
  if (what == 0) forward(rows);
  for (int i = 0; i < LAYERS && what > 0; i++) result("kv_move", (mav_arg[MAV_ARGS_MAX]){rows_arg(rows), tensor_arg(accepted), kv_arg(i)});
  if (what == 2)
    result("rows_advance", (mav_arg[MAV_ARGS_MAX]){rows_arg(rows), tensor_arg(accepted), tensor_arg(choice), rows_arg(mav_spec_tree(t->spec)), {.given = true, .number = V}});
  assert_int_equal(mav_graph_end(g), MAV_OK);
  return g;
}

static void track_new(track *t, int shape) {
  *t = (track){.seq = -1};
  assert_int_equal(mav_spec_new(&t->spec, kv, shapes[shape].depth, shapes[shape].widths), MAV_OK);
  for (int d = 0; d <= shapes[shape].depth; d++) {
    mav_rows *part;
    const int64_t n = mav_spec_size(t->spec, d);
    assert_int_equal(mav_rows_slice(&part, mav_spec_tree(t->spec), 0, n), MAV_OK);
    assert_int_equal(mav_tensor_new(&t->accepted[d], rt, MAV_DTYPE_I32, 1, &n), MAV_OK);
    assert_int_equal(mav_tensor_new(&t->choice[d], rt, MAV_DTYPE_I32, 1, &n), MAV_OK);
    t->verify[d] = capture(part, t, d, 0), t->settle[d] = capture(part, t, d, 1), t->advance[d] = capture(part, t, d, 2);
    mav_rows_release(part);
  }
}

static void track_free(track *t) {
  for (int d = 0; d <= mav_spec_depth(t->spec); d++) {
    mav_graph_release(t->verify[d]), mav_graph_release(t->settle[d]), mav_graph_release(t->advance[d]);
    mav_tensor_release(t->accepted[d]), mav_tensor_release(t->choice[d]);
  }
  mav_spec_release(t->spec);
}

static void holds(const track *t) {
  if (mav_spec_check(t->spec)) fail_msg("%s", mav_runtime_diag(rt)->text);
}

/* The cache holds the text: the newest tokens and some others. */
static void check_text(const track *t) {
  const int64_t floor = mav_kv_sequence_floor(kv, t->seq);
  assert_int_equal(mav_kv_sequence_length(kv, t->seq), t->length);
  for (int n = 0; n < 12 && n < t->length; n++) {
    const int64_t j = n < 8 ? t->length - 1 - n : below(t->length);
    for (int i = 0; i < LAYERS; i++) {
      if (i && j < floor) continue;
      for (int v = 0; v < 2; v++)
        for (int c = 0; c < D; c++)
          if (cell(i, v, t->seq, j, c) != known[i][v][t->text[j]][c])
            fail_msg("layer %d: position %lld of %lld does not hold token %d", i, (long long)j, (long long)t->length, t->text[j]);
    }
  }
}

static void end_sequence(track *t) {
  assert_int_equal(mav_kv_sequence_free(kv, t->seq), MAV_OK);
  t->seq = -1;
  t->begun = false;
}

static void begin(track *t) {
  assert_int_equal(mav_spec_begin(t->spec, t->seq, t->text[t->length]), MAV_OK);
  t->begun = true;
  holds(t);
}

/* In the place of another. */
static void fork_from(const track *t) {
  track *to = &tracks[below(SEQUENCES)];
  if (to == t) return;
  if (to->seq >= 0) end_sequence(to);
  assert_int_equal(mav_kv_sequence_fork(kv, t->seq, below(1000), &to->seq), MAV_OK);
  to->length = t->length;
  memcpy(to->text, t->text, sizeof to->text);
  to->begun = false;
  forks++;
}

/* A random path from the root, its tokens as choices; sometimes one that no rule would make. */
static bool accept(track *t, int depth) {
  int32_t *accepted = mav__tensor_pointer(t->accepted[depth]), *choice = mav__tensor_pointer(t->choice[depth]);
  const int32_t *ids = mav__rows_at(mav_spec_tree(t->spec), MAV__ROWS_ID), *parent = mav__rows_at(mav_spec_tree(t->spec), MAV__ROWS_PARENT);
  const int64_t n = mav_spec_size(t->spec, depth);
  for (int64_t i = 0; i < n; i++) accepted[i] = -1, choice[i] = (int32_t)below(V);
  accepted[0] = 0;
  int64_t row = 0, place = 0;
  while (below(4)) {
    int64_t children[8], count = 0;
    for (int64_t i = row + 1; i < n; i++)
      if (parent[i] == row) children[count++] = i;
    if (!count) break;
    const int64_t child = children[below(count)];
    choice[row] = ids[child];
    accepted[child] = (int32_t)++place;
    row = child;
  }
  if (n == 1 || below(50)) return true;
  accepted[1 + below(n - 1)] = (int32_t)(place + 2); /* a gap */
  return false;
}

static void step(track *t) {
  const int depth = (int)below(mav_spec_depth(t->spec) + 1);
  int32_t drafts[MAV_SPEC_ROWS_MAX], ids[MAV_SPEC_ROWS_MAX + 1];
  if (!t->begun) begin(t);
  for (int i = 0; i < MAV_SPEC_ROWS_MAX; i++) drafts[i] = (int32_t)below(V);
  if (below(3)) {
    assert_int_equal(mav_spec_draft(t->spec, depth, drafts), MAV_OK);
  } else { /* as if a graph had written them */
    memcpy(mav__rows_at(mav_spec_tree(t->spec), MAV__ROWS_ID) + 1, drafts, (size_t)(mav_spec_size(t->spec, depth) - 1) * sizeof *drafts);
    assert_int_equal(mav_spec_drafted(t->spec, depth), MAV_OK);
  }
  holds(t);
  mav_err err = mav_spec_verify(t->spec, t->verify[depth]);
  if (err) { /* no room: somebody goes */
    assert_int_equal(err, MAV_ERR_FULL);
    holds(t);
    refusals++;
    t->begun = false;
    track *other = &tracks[below(SEQUENCES)];
    end_sequence(other->seq >= 0 ? other : t);
    return;
  }
  holds(t);
  if (!below(20)) fork_from(t);
  const bool good = accept(t, depth), advanced = below(2) && good;
  if (below(40) == 0) { /* left in the middle */
    t->begun = false;
    return;
  }
  assert_int_equal(mav_graph_launch(advanced ? t->advance[depth] : t->settle[depth]), MAV_OK);
  int count;
  err = mav_spec_commit(t->spec, t->accepted[depth], t->choice[depth], advanced, ids, &count);
  assert_int_equal(err, good ? MAV_OK : MAV_ERR_INVALID);
  holds(t);
  if (err) {
    t->begun = false;
    return;
  }
  for (int i = 0; i < count; i++) t->text[++t->length] = ids[i];
  emitted += count;
  check_text(t);
}

static void life(void) {
  track *t = &tracks[below(SEQUENCES)];
  const int64_t what = below(100);
  if (t->seq < 0) {
    assert_int_equal(mav_kv_sequence_new(kv, below(1000), &t->seq), MAV_OK);
    t->length = 0;
    t->text[0] = (int32_t)below(V);
    t->begun = false;
  }
  if (what < 3) {
    fork_from(t);
  } else if (what < 6) { /* the token at the new end is the root again */
    const int64_t floor = mav_kv_sequence_floor(kv, t->seq);
    t->length = floor + below(t->length - floor + 1);
    assert_int_equal(mav_kv_sequence_truncate(kv, t->seq, t->length), MAV_OK);
    if (t->begun && below(2)) {
      assert_true(mav_spec_check(t->spec) == MAV_OK || mav_spec_verify(t->spec, t->verify[0]) == MAV_ERR_STATE);
    }
    t->begun = false;
  } else if (what < 7) {
    end_sequence(t);
  } else if (what < 8) {
    begin(t); /* at any time */
  } else {
    step(t);
  }
  const track *any = &tracks[below(SEQUENCES)];
  if (any->seq >= 0) check_text(any);
}

static void test_soak(void **unused) {
  (void)unused;
  assert_int_equal(mav_runtime_new(&rt, &(mav_runtime_options){.device = "ref"}, NULL), MAV_OK);
  /* room for about two thirds of what all sequences together could want */
  mav_kv_options o = {.layers = LAYERS, .chunk = (int32_t[]){0, CHUNK}, .kv_heads = 1, .head_dim = D, .dtype = MAV_DTYPE_F32, .tokens = CONTEXT * 3,
                      .sequences = SEQUENCES, .page = 16, .context_max = CONTEXT};
  assert_int_equal(mav_kv_new(&kv, rt, &o), MAV_OK);
  assert_int_equal(mav_tensor_new(&embeddings, rt, MAV_DTYPE_F32, 2, (int64_t[]){V, D}), MAV_OK);
  assert_int_equal(mav_tensor_new(&norm, rt, MAV_DTYPE_F32, 1, (int64_t[]){D}), MAV_OK);
  for (int i = 0; i < LAYERS; i++) assert_int_equal(mav_tensor_new(&w[i], rt, MAV_DTYPE_F32, 2, (int64_t[]){3 * D, D}), MAV_OK);
  mav_tensor *fill[] = {embeddings, norm, w[0], w[1]};
  for (int k = 0; k < 4; k++)
    for (int64_t i = 0; i < mav_tensor_count(fill[k]); i++) ((float *)mav__tensor_pointer(fill[k]))[i] = (float)below(2001) / 1000 - 1;
  learn();
  for (int i = 0; i < SEQUENCES; i++) track_new(&tracks[i], i);

  const int64_t allocs = mav__mem_allocs(), start = mav_now_ns();
  for (int64_t i = 0; i < steps; i++) life();
  assert_int_equal(mav__mem_allocs(), allocs);
  print_message("%lld steps: %lld tokens, %lld forks, %lld times no room, %.1f s\n", (long long)steps, (long long)emitted, (long long)forks,
                (long long)refusals, (double)(mav_now_ns() - start) * 1e-9);
  assert_true(emitted > steps / 2 && forks > steps / 100 && refusals > steps / 1000);

  for (int i = 0; i < SEQUENCES; i++)
    if (tracks[i].seq >= 0) end_sequence(&tracks[i]);
  assert_int_equal(mav_kv_pages_live(kv), 0);
  for (int i = 0; i < SEQUENCES; i++) track_free(&tracks[i]);
  for (int k = 0; k < 4; k++) mav_tensor_release(fill[k]);
  mav_kv_release(kv), mav_runtime_release(rt);
  assert_int_equal(mav__mem_live(), 0);
}

int main(int argc, char **argv) {
  if (argc > 1) steps = atoll(argv[1]);
  if (argc > 2) state = (uint64_t)atoll(argv[2]);
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_soak)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
