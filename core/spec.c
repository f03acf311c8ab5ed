/* core/spec.c - the speculative decode loop of one sequence, as a stepper: it calls nobody, it is driven.
 *
 *              .------------------- begin (from any state) ------------------.
 *              v                                                             |
 *            IDLE --draft, drafted--> DRAFTED --verify--> VERIFYING --commit--> COMMITTED    every level accepted
 *              |                         ^                 ^    |            \-> ROLLED_BACK  a draft was rejected
 *              |--verify (root alone)----|-----------------'    |                    |
 *              '                         '--draft, drafted------|--------------------'   (both go on like IDLE)
 *                                                               '--a failure in verify or commit--> ERROR
 *
 *   from                              function   to
 *   any                               begin      IDLE, or ERROR
 *   IDLE, COMMITTED, ROLLED_BACK      draft      DRAFTED (depth 0: the state stays)
 *   IDLE, COMMITTED, ROLLED_BACK      drafted    DRAFTED (depth 0: the state stays)
 *   IDLE, COMMITTED, ROLLED_BACK,
 *   DRAFTED                           verify     VERIFYING; ERROR: the launch failed
 *   VERIFYING                         commit     COMMITTED, ROLLED_BACK, or ERROR
 *   Any other call is an error and changes nothing. So is a verify before its launch: a graph for other rows, a sequence that
 *   changed, no room for the slots (it may be called again when there is).
 *
 * What may be trusted (mav_spec_check asserts it):
 *   1. but in ERROR: the sequence lives, row 0 is the root: its position is the sequence's length, parent -1, slot = position.
 *   2. but in ERROR and VERIFYING: every row of the table is of the sequence, has its parent's position + 1 and slot root + row number. (While
 *      VERIFYING a graph may have moved the table to the next step already.)
 *   3. DRAFTED: 1 <= drafted <= depth, and the ids of those levels are not negative. IDLE, COMMITTED, ROLLED_BACK: drafted = 0.
 *   4. VERIFYING: the slots of the verified rows are reserved.
 *   5. emitted = accepted + steps.
 *
 * Rollback costs nothing: what was not committed is overwritten by the next step. Threads: as the runtime.
 */
#include <string.h>

#include "graph.h"

struct mav_spec {
  int refs;
  mav_runtime *rt; /* of the cache */
  mav_kv *kv;
  mav_rows *tree;
  int depth;
  int64_t size[MAV_SPEC_ROWS_MAX + 1]; /* rows of levels 0..d */
  mav_spec_state state;
  int seq;
  int drafted;        /* levels */
  int64_t root;       /* position of the root */
  mav_spec_stats stats;
};

#define FAIL(s, code, op, ...) MAV_RT_FAIL((s)->rt, code, op, __VA_ARGS__)

static const int32_t *at(const mav_spec *s, mav__rows_field field) { return mav__rows_at(s->tree, field); }
static int32_t *edit(const mav_spec *s, mav__rows_field field) { return mav__rows_edit(s->tree, field); }

mav_err mav_spec_new(mav_spec **out, mav_kv *kv, int depth, const int32_t *widths) {
  mav_runtime *rt = kv->rt;
  *out = NULL;
  if (depth < 0 || depth >= MAV_SPEC_ROWS_MAX) return MAV_RT_FAIL(rt, RANGE, "spec_new", "depth %d; expected 0 to %d", depth, MAV_SPEC_ROWS_MAX - 1);
  mav_spec *s = mav__alloc(sizeof *s);
  if (!s) return MAV_RT_NOMEM(rt, "spec_new");
  *s = (mav_spec){.refs = 1, .rt = rt, .kv = mav_kv_retain(kv), .depth = depth, .state = MAV_SPEC_STATE_ERROR, .seq = -1};
  mav_err err = MAV_OK;
  int64_t level = 1;
  s->size[0] = 1;
  for (int d = 0; d < depth; d++) {
    level *= widths[d];
    s->size[d + 1] = s->size[d] + level;
    if (widths[d] < 1 || s->size[d + 1] > MAV_SPEC_ROWS_MAX) {
      err = MAV_RT_FAIL(rt, RANGE, "spec_new", "level %d of the draft tree: width %d; at least 1, and at most %d rows in all", d + 1, widths[d],
                        MAV_SPEC_ROWS_MAX);
      goto done;
    }
  }
  MAV_GOTO(mav_rows_new(&s->tree, rt, s->size[depth]));
  for (int d = 0; d < depth; d++) { /* the shape; begin sets the rest */
    const int64_t parents = d ? s->size[d - 1] : 0;
    for (int64_t i = s->size[d]; i < s->size[d + 1]; i++) edit(s, MAV__ROWS_PARENT)[i] = (int32_t)(parents + (i - s->size[d]) / widths[d]);
  }
  *out = s;
  return MAV_OK;
done:
  mav_spec_release(s);
  return err;
}

mav_spec *mav_spec_retain(mav_spec *s) {
  s->refs++;
  return s;
}

void mav_spec_release(mav_spec *s) {
  if (!s || --s->refs) return;
  mav_rows_release(s->tree);
  mav_kv_release(s->kv);
  mav__free(s);
}

mav_rows *mav_spec_tree(mav_spec *s) { return s->tree; }
int mav_spec_depth(const mav_spec *s) { return s->depth; }
mav_kv *mav_spec_kv(mav_spec *s) { return s->kv; }
int64_t mav_spec_size(const mav_spec *s, int depth) { return depth < 0 || depth > s->depth ? 0 : s->size[depth]; }
mav_spec_state mav_spec_get_state(const mav_spec *s) { return s->state; }
void mav_spec_get_stats(const mav_spec *s, mav_spec_stats *out) { *out = s->stats; }

const char *mav_spec_state_name(mav_spec_state state) {
  static const char *const names[] = {"idle", "drafted", "verifying", "committed", "rolled back", "error"};
  return (unsigned)state < sizeof names / sizeof *names ? names[state] : "unknown";
}

/* Everything but the drafts' ids, for a root at a position. */
static void place(mav_spec *s, int32_t id, int64_t pos) {
  int32_t *seq = edit(s, MAV__ROWS_SEQ), *p = edit(s, MAV__ROWS_POS), *slot = edit(s, MAV__ROWS_SLOT), *parent = edit(s, MAV__ROWS_PARENT);
  edit(s, MAV__ROWS_ID)[0] = id;
  parent[0] = -1;
  for (int64_t i = 0; i < s->tree->total; i++) {
    seq[i] = s->seq;
    p[i] = i ? p[parent[i]] + 1 : (int32_t)pos;
    slot[i] = (int32_t)(pos + i);
  }
  s->root = pos;
}

static bool is_ready(const mav_spec *s) {
  return s->state == MAV_SPEC_STATE_IDLE || s->state == MAV_SPEC_STATE_COMMITTED || s->state == MAV_SPEC_STATE_ROLLED_BACK;
}

mav_err mav_spec_begin(mav_spec *s, int seq, int32_t id) {
  const int64_t length = mav_kv_sequence_length(s->kv, seq);
  s->state = MAV_SPEC_STATE_ERROR;
  if (length < 0) return FAIL(s, INVALID, "spec_begin", "there is no sequence %d", seq);
  if (id < 0) return FAIL(s, RANGE, "spec_begin", "token id %d", id);
  s->seq = seq;
  s->drafted = 0;
  place(s, id, length);
  memset(edit(s, MAV__ROWS_ID) + 1, 0, (size_t)(s->tree->total - 1) * sizeof(int32_t));
  s->state = MAV_SPEC_STATE_IDLE;
  return MAV_OK;
}

static mav_err check_draft(const mav_spec *s, int depth, const char *op) {
  if (!is_ready(s)) return FAIL(s, STATE, op, "drafts are not expected in the state \"%s\"", mav_spec_state_name(s->state));
  if (depth < 0 || depth > s->depth) return FAIL(s, RANGE, op, "depth %d; this tree has %d levels", depth, s->depth);
  return MAV_OK;
}

mav_err mav_spec_drafted(mav_spec *s, int depth) {
  MAV_TRY(check_draft(s, depth, "spec_drafted"));
  if (depth) s->state = MAV_SPEC_STATE_DRAFTED;
  s->drafted = depth;
  return MAV_OK;
}

mav_err mav_spec_draft(mav_spec *s, int depth, const int32_t *ids) {
  MAV_TRY(check_draft(s, depth, "spec_draft"));
  for (int64_t i = 1; i < s->size[depth]; i++)
    if (ids[i - 1] < 0) return FAIL(s, RANGE, "spec_draft", "draft %lld has the token id %d", (long long)i, ids[i - 1]);
  if (depth) memcpy(edit(s, MAV__ROWS_ID) + 1, ids, (size_t)(s->size[depth] - 1) * sizeof *ids);
  return mav_spec_drafted(s, depth);
}

static mav_err fail(mav_spec *s, mav_err err) {
  if (err) s->state = MAV_SPEC_STATE_ERROR;
  return err;
}

mav_err mav_spec_verify(mav_spec *s, mav_graph *g) {
  if (!is_ready(s) && s->state != MAV_SPEC_STATE_DRAFTED)
    return FAIL(s, STATE, "spec_verify", "not possible in the state \"%s\"", mav_spec_state_name(s->state));
  const int64_t rows = s->size[s->drafted];
  if (mav__rows_base(g->rows) != s->tree || g->rows->first != 0 || g->rows->count != rows)
    return FAIL(s, INVALID, "spec_verify", "the graph was not captured for the first %lld rows of this tree", (long long)rows);
  if (mav_kv_sequence_length(s->kv, s->seq) != s->root)
    return FAIL(s, STATE, "spec_verify", "the sequence changed meanwhile: begin again");
  /* the deepest row may become the next root, and the next tree's slots follow it */
  MAV_TRY(mav_kv_sequence_reserve(s->kv, s->seq, s->drafted + 1 + s->tree->total));
  MAV_TRY(fail(s, mav_graph_launch(g)));
  s->state = MAV_SPEC_STATE_VERIFYING;
  return MAV_OK;
}

/* The accepted path from the rows' places on it: accepted[row] = place or -1. */
static mav_err read_path(const mav_spec *s, const int32_t *accepted, const int32_t *choice, int32_t *ids, int *count) {
  const int32_t *parent = at(s, MAV__ROWS_PARENT);
  int64_t row = 0, marked = 1;
  if (accepted && accepted[0] != 0) return FAIL(s, INVALID, "spec_commit", "accepted: the root's place is %d; it is always 0", accepted[0]);
  for (*count = 0; row >= 0;) {
    int64_t next = -1;
    if (choice[row] < 0) return FAIL(s, INVALID, "spec_commit", "row %lld: the choice is %d", (long long)row, choice[row]);
    ids[(*count)++] = choice[row];
    for (int64_t i = row + 1; accepted && i < s->size[s->drafted]; i++)
      if (accepted[i] == *count) {
        if (next >= 0 || parent[i] != row)
          return FAIL(s, INVALID, "spec_commit", "accepted: row %lld has place %d, but does not follow row %lld", (long long)i, accepted[i], (long long)row);
        next = i;
      }
    row = next;
  }
  for (int64_t i = 1; accepted && i < s->size[s->drafted]; i++) marked += accepted[i] != -1;
  if (marked != *count)
    return FAIL(s, INVALID, "spec_commit", "accepted: %lld rows have a place, but the path from the root has %d", (long long)marked, *count);
  return MAV_OK;
}

static mav_err check_rows_tensor(const mav_spec *s, const mav_tensor *t, const char *name) {
  if (t->dtype != MAV_DTYPE_I32 || mav_tensor_count(t) < s->size[s->drafted] || !mav_tensor_is_contiguous(t) || mav_tensor_is_planned(t))
    return FAIL(s, SHAPE, "spec_commit", "%s must be i32, readable, with %lld elements", name, (long long)s->size[s->drafted]);
  return MAV_OK;
}

static mav_err read_rows_tensor(const mav_spec *s, const mav_tensor *t, int32_t *out) {
  return mav__buffer_get(t->buffer, (size_t)t->offset * sizeof *out, out, (size_t)s->size[s->drafted] * sizeof *out);
}

mav_err mav_spec_commit(mav_spec *s, mav_tensor *accepted, mav_tensor *choice, bool advanced, int32_t *ids, int *count) {
  if (s->state != MAV_SPEC_STATE_VERIFYING)
    return FAIL(s, STATE, "spec_commit", "nothing was launched (state \"%s\")", mav_spec_state_name(s->state));
  MAV_TRY(fail(s, check_rows_tensor(s, choice, "choice")));
  if (accepted) MAV_TRY(fail(s, check_rows_tensor(s, accepted, "accepted")));
  if (!accepted && s->drafted) return fail(s, FAIL(s, INVALID, "spec_commit", "drafts were verified: accepted is needed"));
  int32_t places[MAV_SPEC_ROWS_MAX], choices[MAV_SPEC_ROWS_MAX];
  MAV_TRY(fail(s, read_rows_tensor(s, choice, choices)));
  if (accepted) MAV_TRY(fail(s, read_rows_tensor(s, accepted, places)));
  MAV_TRY(fail(s, read_path(s, accepted ? places : NULL, choices, ids, count)));
  if (mav_kv_sequence_length(s->kv, s->seq) != s->root)
    return fail(s, FAIL(s, STATE, "spec_commit", "the sequence changed meanwhile: begin again"));
  MAV_TRY(fail(s, mav_kv_sequence_commit(s->kv, s->seq, *count)));
  s->stats.steps++;
  s->stats.drafted += s->drafted;
  s->stats.accepted += *count - 1;
  s->stats.emitted += *count;
  s->state = *count - 1 < s->drafted ? MAV_SPEC_STATE_ROLLED_BACK : MAV_SPEC_STATE_COMMITTED;
  s->drafted = 0;
  if (advanced) s->root += *count;
  else place(s, ids[*count - 1], s->root + *count);
  return MAV_OK;
}

#define HOLDS(condition, text) \
  if (!(condition)) return FAIL(s, STATE, "spec_check", "in the state \"%s\": %s", mav_spec_state_name(s->state), text)

mav_err mav_spec_check(const mav_spec *s) {
  const int32_t *id = at(s, MAV__ROWS_ID), *seq = at(s, MAV__ROWS_SEQ), *pos = at(s, MAV__ROWS_POS), *slot = at(s, MAV__ROWS_SLOT), *parent = at(s, MAV__ROWS_PARENT);
  HOLDS(s->stats.emitted == s->stats.accepted + s->stats.steps, "emitted is not accepted + steps");
  if (s->state == MAV_SPEC_STATE_ERROR) return MAV_OK;
  const int64_t length = mav_kv_sequence_length(s->kv, s->seq);
  HOLDS(length >= 0, "the sequence is closed");
  HOLDS(s->root == length, "the root is not at the sequence's end");
  HOLDS(parent[0] == -1, "the root has a parent");
  if (s->state == MAV_SPEC_STATE_VERIFYING) {
    HOLDS(s->kv->seq[s->seq].reserved >= s->root + s->size[s->drafted], "slots of the verified rows are not reserved");
    return MAV_OK;
  }
  HOLDS(id[0] >= 0 && seq[0] == s->seq && pos[0] == s->root && slot[0] == pos[0], "the root is not the token at its position");
  for (int64_t i = 1; i < s->tree->total; i++) {
    HOLDS(parent[i] >= 0 && parent[i] < i && seq[i] == s->seq && pos[i] == pos[parent[i]] + 1, "a row does not follow its parent");
    HOLDS(slot[i] == s->root + i, "a row is not at its slot");
  }
  HOLDS(is_ready(s) ? s->drafted == 0 : s->drafted >= 1 && s->drafted <= s->depth, "the number of drafted levels is wrong");
  for (int64_t i = 1; i < s->size[s->drafted]; i++) HOLDS(id[i] >= 0, "a draft has no token");
  return MAV_OK;
}
