/* What the acceptance rules promise: speculative sampling emits tokens with the target's distribution, whatever was drafted;
 * keyed acceptance emits the text of plain sampling; greedy and typical acceptance on small trees. The ref kernels are called;
 * checkops says that the others give the same bits. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "noise.h"
#include "ref/ref.h"

enum { V = 12, ROWS_MAX = 16, DRAWS = 200000, WIDTH_MAX = 3 };

/* ---- a small language: distributions of the first token, and of the second after every first ---------------------------- */

typedef struct language {
  float first[V], second[V][V];
} language;

static uint64_t random_state;
static double uniform(void) {
  random_state += UINT64_C(0x9e3779b97f4a7c15);
  return ((double)(mavk_stream(random_state, 1) >> 11) + 0.5) * 0x1p-53;
}

/* Probabilities with `zeros` zeros, not exactly normalized: what a float softmax leaves, exaggerated. */
static void make_distribution(float *p, int zeros) {
  double sum = 0;
  for (int i = 0; i < V; i++) sum += p[i] = (float)exp(2 * uniform());
  for (; zeros > 0; zeros--) {
    const int i = (int)(uniform() * V);
    sum -= p[i];
    p[i] = 0;
  }
  for (int i = 0; i < V; i++) p[i] = (float)(p[i] / sum * (0.97 + 0.06 * uniform()));
}

static void make_language(language *l, uint64_t seed) {
  random_state = seed;
  make_distribution(l->first, 3);
  for (int i = 0; i < V; i++) make_distribution(l->second[i], 3);
}

/* ---- trees ------------------------------------------------------------------------------------------------------- */

typedef struct tree {
  int64_t n;
  int32_t id[ROWS_MAX], seq[ROWS_MAX], pos[ROWS_MAX], slot[ROWS_MAX], parent[ROWS_MAX];
  float p[ROWS_MAX][V], q[ROWS_MAX][V];
  int32_t accepted[ROWS_MAX], choice[ROWS_MAX];
  int64_t key;
} tree;

static mavk_rows rows_of(tree *t) {
  return (mavk_rows){.n = t->n, .id = t->id, .seq = t->seq, .pos = t->pos, .slot = t->slot, .parent = t->parent};
}
static mavk_array floats(void *p, int64_t rows) {
  return (mavk_array){p, MAVK_F32, 2, {rows, V}, {V, 1}};
}
static mavk_array integers(void *p, int64_t rows) {
  return (mavk_array){p, MAVK_I32, 1, {rows}, {1}};
}

static int64_t add_row(tree *t, int32_t id, int64_t parent, int32_t pos) {
  const int64_t r = t->n++;
  t->id[r] = id, t->seq[r] = 0, t->pos[r] = pos, t->slot[r] = pos, t->parent[r] = (int32_t)parent;
  return r;
}

static void root_of(tree *t, int32_t pos, int64_t key) {
  t->n = 0;
  t->key = key;
  add_row(t, 0, -1, pos);
}

/* x + noise of a stream for one row of logits. */
static void perturbed(float *y, const float *p, int32_t pos, int64_t key, uint64_t seed, int64_t stream, int64_t ahead) {
  float x[V];
  int32_t seq = 0;
  for (int i = 0; i < V; i++) x[i] = logf(p[i]);
  mavk_args_perturb a = {.x = floats(x, 1), .y = floats(y, 1), .seed = (int64_t)seed, .stream = stream, .ahead = ahead};
  a.rows = (mavk_rows){.n = 1, .seq = &seq, .pos = &pos};
  a.kv.key = &key;
  mavk_ref_perturb(&a);
}

static int32_t largest(const float *y) {
  int32_t best = 0;
  for (int32_t i = 1; i < V; i++)
    if (y[i] > y[best]) best = i;
  return best;
}

static int32_t sampled(const float *p, int32_t pos, int64_t key, uint64_t seed, int64_t ahead) {
  float x[V];
  int32_t seq = 0, id;
  for (int i = 0; i < V; i++) x[i] = logf(p[i]);
  mavk_args_sample a = {.x = floats(x, 1), .ids = integers(&id, 1), .seed = (int64_t)seed, .ahead = ahead};
  a.rows = (mavk_rows){.n = 1, .seq = &seq, .pos = &pos};
  a.kv.key = &key;
  mavk_ref_sample(&a);
  return id;
}

enum { SEED = 20240607, DRAFT_STREAM = 1 };

typedef enum drafter { DRAWN, DRAWN_WITH_REPLACEMENT, CERTAIN } drafter;

/* `width` children of a row. Drawn: from q. Certain: the ids 1, 4, 7, .. after the parent's, whatever q may say. */
static void draft(tree *t, int64_t parent, const float *q, int width, drafter how) {
  float y[V];
  if (how == DRAWN) perturbed(y, q, t->pos[parent], t->key, SEED, DRAFT_STREAM, 0);
  for (int k = 0; k < width; k++) {
    int32_t id = (t->id[parent] + 1 + 3 * k) % V;
    if (how == DRAWN) {
      id = largest(y);
      y[id] = -INFINITY;
    } else if (how == DRAWN_WITH_REPLACEMENT) {
      perturbed(y, q, t->pos[parent], t->key, SEED, DRAFT_STREAM + k, 0);
      id = largest(y);
    }
    add_row(t, id, parent, t->pos[parent] + 1);
  }
}

/* Two levels of drafts, and the probabilities that every row of them needs. */
static void draft_tree(tree *t, const language *target, const language *drafts, const int width[2], drafter how, int32_t pos, int64_t key) {
  root_of(t, pos, key);
  draft(t, 0, drafts->first, width[0], how);
  for (int k = 1; k <= width[0]; k++) draft(t, k, drafts->second[t->id[k]], width[1], how);
  memcpy(t->p[0], target->first, sizeof t->p[0]);
  memcpy(t->q[0], drafts->first, sizeof t->q[0]);
  for (int64_t r = 1; r < t->n; r++) {
    memcpy(t->p[r], target->second[t->id[r]], sizeof t->p[r]); /* of the leaves: any */
    memcpy(t->q[r], drafts->second[t->id[r]], sizeof t->q[r]);
  }
}

static void accept_by_rejection(tree *t, bool with_q) {
  mavk_args_accept_rejection a = {.rows = rows_of(t), .p = floats(t->p, t->n), .seed = SEED};
  if (with_q) a.q = floats(t->q, t->n);
  a.accepted = integers(t->accepted, t->n);
  a.choice = integers(t->choice, t->n);
  a.kv.key = &t->key;
  mavk_ref_accept_rejection(&a);
}

/* ---- statistics --------------------------------------------------------------------------------------------------- */

typedef struct chi {
  double square;
  int freedom;
  bool impossible; /* something of probability 0 was seen */
} chi;

static void add_counts(chi *c, const int *count, const float *p) {
  double n = 0, sum = 0, few_expected = 0, few = 0;
  int cells = 0;
  for (int i = 0; i < V; i++) n += count[i], sum += p[i];
  for (int i = 0; i < V; i++) {
    const double expected = n * p[i] / sum;
    if (p[i] == 0) {
      c->impossible = c->impossible || count[i];
    } else if (expected < 10) {
      few_expected += expected, few += count[i];
    } else {
      c->square += (count[i] - expected) * (count[i] - expected) / expected;
      cells++;
    }
  }
  if (few_expected > 5) {
    c->square += (few - few_expected) * (few - few_expected) / few_expected;
    cells++;
  }
  c->freedom += cells > 1 ? cells - 1 : 0;
}

/* As standard deviations of a normal variable (Wilson and Hilferty, 1931). */
static double deviation(const chi *c) {
  const double k = c->freedom;
  assert_true(c->freedom > 0);
  if (c->impossible) return INFINITY;
  return (cbrt(c->square / k) - (1 - 2 / (9 * k))) / sqrt(2 / (9 * k));
}

#define LIMIT 4.5 /* chance: 3e-6 */

typedef struct tally {
  int first[V], second[V][V];
  int64_t steps, tokens;
} tally;

/* First and second tokens, in standard deviations from the target's. */
static void compare(const tally *t, const language *target, double out[2]) {
  chi first = {0}, second = {0};
  add_counts(&first, t->first, target->first);
  for (int i = 0; i < V; i++) add_counts(&second, t->second[i], target->second[i]);
  out[0] = deviation(&first);
  out[1] = deviation(&second);
}

typedef enum fault { NONE, WITHOUT_Q, NOT_SUBTRACTED, WITH_Q } fault; /* the last two are wrong */

static void draw_many(tally *out, const language *target, const language *drafts, const int width[2], drafter how, fault wrong) {
  tree t;
  *out = (tally){.tokens = 0};
  for (int n = 0; n < (wrong >= NOT_SUBTRACTED ? DRAWS / 4 : DRAWS); n++, out->steps++) {
    const int32_t pos = n % 5000 * 3;
    const int64_t key = 77 + n / 5000;
    draft_tree(&t, target, drafts, width, how, pos, key);
    accept_by_rejection(&t, wrong == WITH_Q || (how != CERTAIN && wrong != WITHOUT_Q));
    int32_t first = t.choice[0];
    int64_t row = -1; /* the accepted draft */
    for (int64_t r = 1; r <= width[0]; r++)
      if (t.accepted[r] == 1) row = r;
    assert_int_equal(t.accepted[0], 0);
    if (row >= 0) assert_int_equal(t.id[row], first);
    if (wrong == NOT_SUBTRACTED && row < 0) first = sampled(target->first, pos, key, SEED + 1, 0);
    out->first[first]++;
    out->tokens++;
    if (row < 0) continue;
    out->second[first][t.choice[row]]++;
    out->tokens++;
    for (int64_t r = 1; r < t.n; r++)
      if (t.accepted[r] == 2) out->tokens++, assert_int_equal(t.id[r], t.choice[row]);
  }
}

/* Like that, and says what came out. */
static void run(const char *name, const int width[2], drafter how, fault wrong, double out[2]) {
  language target, drafts;
  tally t;
  make_language(&target, 5);
  make_language(&drafts, 1234);
  draw_many(&t, &target, &drafts, width, how, wrong);
  compare(&t, &target, out);
  print_message("%-34s %.3f tokens a step; first %+.2f, second %+.2f standard deviations\n", name, (double)t.tokens / (double)t.steps,
                out[0], out[1]);
}

static void is_exact(const char *name, const int width[2], drafter how, fault wrong) {
  double z[2];
  run(name, width, how, wrong, z);
  assert_true(z[0] < LIMIT && z[1] < LIMIT);
}

static void a_chain_keeps_the_distribution(void **state) {
  (void)state;
  is_exact("chain", (const int[]){1, 1}, DRAWN, NONE);
}
static void a_tree_keeps_the_distribution(void **state) {
  (void)state;
  is_exact("tree", (const int[]){3, 2}, DRAWN, NONE);
}
static void siblings_may_be_drawn_with_replacement(void **state) {
  (void)state;
  is_exact("tree, with replacement", (const int[]){3, 2}, DRAWN_WITH_REPLACEMENT, NONE);
}
static void certain_drafts_keep_the_distribution(void **state) {
  (void)state;
  is_exact("chain, certain", (const int[]){1, 1}, CERTAIN, NONE);
  is_exact("tree, certain", (const int[]){3, 2}, CERTAIN, NONE);
  is_exact("tree, drawn, taken for certain", (const int[]){3, 2}, DRAWN, WITHOUT_Q); /* exact as well, but accepts less */
}

/* The same test finds rules that are nearly right. */
static void wrong_rules_are_found(void **state) {
  (void)state;
  double z[2];
  run("wrong: draws from p when rejected", (const int[]){1, 1}, DRAWN, NOT_SUBTRACTED, z);
  assert_true(z[0] > 2 * LIMIT);
  run("wrong: certain, taken for drawn", (const int[]){3, 2}, CERTAIN, WITH_Q, z);
  assert_true(z[0] > 2 * LIMIT && z[1] > 2 * LIMIT);
}

/* The drafter is the target: all is accepted. Disjoint: nothing, and the choice is a draw from p. */
static void extreme_drafters(void **state) {
  (void)state;
  language target;
  tree t;
  const int width[2] = {2, 2};
  make_language(&target, 9);
  for (int n = 0; n < 2000; n++) {
    draft_tree(&t, &target, &target, width, DRAWN, n, n);
    accept_by_rejection(&t, true);
    assert_int_equal(t.accepted[1], 1);
    assert_int_equal(t.accepted[3], 2);
    for (int64_t r = 0; r < t.n; r++)
      for (int i = 0; i < V; i++) t.p[r][i] = i < 6 ? 1.0f / 6 : 0, t.q[r][i] = i < 6 ? 0 : 1.0f / 6;
    t.id[1] = 6 + n % 3, t.id[2] = 9 + n % 3;
    accept_by_rejection(&t, true);
    assert_true(t.accepted[0] == 0 && t.accepted[1] < 0 && t.accepted[2] < 0 && t.choice[0] < 6);
    t.p[0][0] = 1; /* all mass on one id that is rejected nowhere else */
    for (int i = 1; i < V; i++) t.p[0][i] = 0;
    accept_by_rejection(&t, true);
    assert_int_equal(t.choice[0], 0);
  }
}

/* ---- keyed and greedy acceptance ---------------------------------------------------------------------------------- */

static void keyed_acceptance_emits_the_plain_text(void **state) {
  (void)state;
  language target, drafts;
  tree t;
  tally c = {.tokens = 0};
  const int width[2] = {3, 2};
  int64_t longest = 0;
  make_language(&target, 5);
  make_language(&drafts, 1234);
  for (int n = 0; n < DRAWS / 4; n++) {
    const int32_t pos = n % 5000 * 3;
    const int64_t key = 77 + n / 5000;
    draft_tree(&t, &target, &drafts, width, DRAWN, pos, key);
    int32_t choice[ROWS_MAX];
    for (int64_t r = 0; r < t.n; r++) choice[r] = sampled(t.p[r], t.pos[r], key, SEED, 0);
    mavk_args_accept a = {.rows = rows_of(&t), .choice = integers(choice, t.n), .accepted = integers(t.accepted, t.n)};
    mavk_ref_accept(&a);
    const int32_t first = sampled(target.first, pos, key, SEED, 0);
    int32_t plain[3] = {first, sampled(target.second[first], pos + 1, key, SEED, 0), -1};
    plain[2] = sampled(target.second[plain[1]], pos + 2, key, SEED, 0);
    int64_t emitted = 0, at = 0;
    for (int64_t r = 0; r < t.n; r++) {
      if (t.accepted[r] < 0) continue;
      assert_int_equal(t.accepted[r], emitted);
      if (r > 0) assert_int_equal(t.parent[r], at);
      assert_int_equal(choice[r], plain[emitted++]);
      at = r;
    }
    for (int64_t r = 0; r < t.n; r++) assert_false(t.parent[r] == at && t.id[r] == choice[at]); /* no further was possible */
    c.first[first]++;
    if (emitted > 1) c.second[first][plain[1]]++;
    longest = emitted > longest ? emitted : longest;
  }
  chi first = {0};
  add_counts(&first, c.first, target.first);
  assert_true(deviation(&first) < LIMIT);
  assert_int_equal(longest, 3);
}

static void perturb_is_the_noise_of_sample(void **state) {
  (void)state;
  language l;
  int same = 0;
  make_language(&l, 3);
  for (int n = 0; n < 20000; n++) {
    float y[V], z[V];
    const float *p = l.second[n % V];
    perturbed(y, p, n, n / 7, SEED, 0, n % 3);
    assert_int_equal(largest(y), sampled(p, n, n / 7, SEED, n % 3));
    assert_int_equal(sampled(p, n, n / 7, SEED, n % 3), sampled(p, n + n % 3, n / 7, SEED, 0)); /* ahead is a position */
    for (int i = 0; i < V; i++)
      if (p[i] > 0)
        assert_true(y[i] == logf(p[i]) + mavk_noise(SEED, n / 7, n + n % 3, i));
      else
        assert_true(y[i] == -INFINITY);
    perturbed(z, p, n, n / 7, SEED, 1 + n % 15, n % 3);
    same += largest(y) == largest(z);
  }
  double expected = 0; /* of independent draws */
  for (int k = 0; k < V; k++) {
    double sum = 0, squares = 0;
    for (int i = 0; i < V; i++) sum += l.second[k][i], squares += (double)l.second[k][i] * l.second[k][i];
    expected += squares / (sum * sum) * 20000 / V;
  }
  assert_true(fabs(same - expected) < 5 * sqrt(expected));
}

/* Numbers that every implementation must give: changing them changes every seeded text. */
static void streams_never_change(void **state) {
  (void)state;
  assert_true(mavk_stream(7, 0) == 7);
  assert_true(mavk_stream(0, 1) == UINT64_C(0xe220a8397b1dcdaf)); /* the first number of SplitMix64 from 0 */
  double low = 1, high = 0, sum = 0;
  for (int i = 0; i < 100000; i++) {
    const double u = mavk_uniform(mavk_stream(1, MAVK_STREAM_TRY), 3, i, i % 100);
    low = u < low ? u : low, high = u > high ? u : high, sum += u;
  }
  assert_true(low > 0 && low < 1e-3 && high < 1 && high > 0.999 && fabs(sum / 100000 - 0.5) < 5 * sqrt(1.0 / 12 / 100000));
}

static void accept_takes_the_first_child_of_equals(void **state) {
  (void)state;
  /* two trees and an idle row: 0 -> 1, 2, 3; 3 -> 4;  5 -> 7; 6 is idle */
  int32_t id[] = {9, 5, 4, 5, 8, 2, 3, 3}, seq[] = {0, 0, 0, 0, 0, 1, -1, 1}, pos[] = {6, 7, 7, 7, 8, 0, 0, 1},
          parent[] = {-1, 0, 0, 0, 3, -1, 5, 5};
  int32_t choice[] = {5, 1, 1, 8, 0, 3, 0, 7}, accepted[8];
  mavk_args_accept a = {.rows = {.n = 8, .id = id, .seq = seq, .pos = pos, .slot = pos, .parent = parent},
                        .choice = integers(choice, 8),
                        .accepted = integers(accepted, 8)};
  mavk_ref_accept(&a);
  assert_memory_equal(accepted, ((int32_t[]){0, 1, -1, -1, -1, 0, -1, 1}), sizeof accepted);
  choice[0] = 4;
  mavk_ref_accept(&a);
  assert_memory_equal(accepted, ((int32_t[]){0, -1, 1, -1, -1, 0, -1, 1}), sizeof accepted);
  a.rows = (mavk_rows){.n = 5, .first = 3, .id = id + 3, .seq = seq + 3, .pos = pos + 3, .slot = pos + 3, .parent = parent + 3};
  a.choice = integers(choice + 3, 5); /* a part of the table: row 3 is a root there */
  mavk_ref_accept(&a);
  assert_memory_equal(accepted, ((int32_t[]){0, 1, 0, -1, 1}), 5 * sizeof *accepted);
}

static void typical_acceptance_follows_its_formula(void **state) {
  (void)state;
  tree t;
  int32_t choice[ROWS_MAX] = {3, 3, 3, 3}, next_ids[ROWS_MAX];
  root_of(&t, 10, 1);
  add_row(&t, 0, 0, 11);
  add_row(&t, 1, 0, 11);
  add_row(&t, 2, 2, 12);
  memset(t.p, 0, sizeof t.p);
  t.p[0][0] = 0.2f, t.p[0][1] = 0.2f, t.p[0][2] = 0.6f;
  t.p[2][2] = 0.05f, t.p[2][3] = 0.95f;
  mavk_args_accept_typical a = {.rows = rows_of(&t),
                                .p = floats(t.p, t.n),
                                .choice = integers(choice, t.n),
                                .epsilon = 0.3f,
                                .delta = 0.5f,
                                .accepted = integers(t.accepted, t.n),
                                .next_ids = integers(next_ids, t.n)};
  const double limit = 0.5 * exp(0.4 * log(0.2) + 0.6 * log(0.6)); /* 0.193: below epsilon */
  assert_true(limit > 0.19 && limit < 0.2);
  mavk_ref_accept_typical(&a); /* both children are likely enough and equal: the first, which has no children */
  assert_memory_equal(t.accepted, ((int32_t[]){0, 1, -1, -1}), 4 * sizeof(int32_t));
  assert_memory_equal(next_ids, ((int32_t[]){0, 3, 0, 0}), 4 * sizeof(int32_t));
  t.p[0][1] = 0.21f; /* now the second; its child is below min(0.3, 0.5 e^-H) = 0.3 */
  mavk_ref_accept_typical(&a);
  assert_memory_equal(t.accepted, ((int32_t[]){0, -1, 1, -1}), 4 * sizeof(int32_t));
  assert_memory_equal(next_ids, ((int32_t[]){1, 0, 3, 0}), 4 * sizeof(int32_t));
  a.epsilon = 0.04f;
  mavk_ref_accept_typical(&a);
  assert_memory_equal(t.accepted, ((int32_t[]){0, -1, 1, 2}), 4 * sizeof(int32_t));
  assert_memory_equal(next_ids, ((int32_t[]){1, 0, 2, 3}), 4 * sizeof(int32_t));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_chain_keeps_the_distribution),
      cmocka_unit_test(a_tree_keeps_the_distribution),
      cmocka_unit_test(siblings_may_be_drawn_with_replacement),
      cmocka_unit_test(certain_drafts_keep_the_distribution),
      cmocka_unit_test(wrong_rules_are_found),
      cmocka_unit_test(extreme_drafters),
      cmocka_unit_test(keyed_acceptance_emits_the_plain_text),
      cmocka_unit_test(perturb_is_the_noise_of_sample),
      cmocka_unit_test(streams_never_change),
      cmocka_unit_test(accept_takes_the_first_child_of_equals),
      cmocka_unit_test(typical_acceptance_follows_its_formula),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
