/* core/graph.c - capture and replay.
 *
 *   begin --> CAPTURING --end--> READY --launch/wait--> READY
 *                 \--abort, or end fails--> DEAD (only release)
 *
 * While CAPTURING, ops on the runtime are recorded with their argument structures; results are planned buffers without an
 * address. end gives them places in the runtime's arena (plan.c), or memory of their own where kept, and patches every
 * pointer. A launch checks what the host may have changed since (rows), and runs the list; it allocates nothing.
 *
 * The graph holds one reference to every buffer its nodes use. Planned buffers name their graph only for identity.
 */
#include "graph.h"

#include <string.h>

typedef MAV__LIST(char) __attribute__((may_alias)) any_list; /* stands for a list of any type */

bool mav__list_grow(void *list, size_t element) {
  any_list *l = list;
  if (l->count < l->room) return true;
  int64_t room = l->room ? l->room * 2 : 16;
  void *p = mav__realloc(l->at, (size_t)room * element);
  if (!p) return false;
  l->at = p;
  l->room = room;
  return true;
}
#define PUSH(g, list, value) \
  (mav__list_grow(&(g)->list, sizeof *(g)->list.at) ? ((g)->list.at[(g)->list.count++] = (value), MAV_OK) : MAV_RT_NOMEM((g)->rt, "graph"))

mav_err mav_graph_begin(mav_graph **out, mav_runtime *rt, mav_rows *rows) {
  *out = NULL;
  if (rt->capture) return MAV_RT_FAIL(rt, STATE, "graph_begin", "another capture is open on this runtime");
  mav_graph *g = mav__alloc(sizeof *g);
  if (!g) return MAV_RT_NOMEM(rt, "graph_begin");
  *g = (mav_graph){.refs = 1, .rt = mav_runtime_retain(rt), .rows = mav_rows_retain(rows), .state = MAV__GRAPH_CAPTURING};
  rt->capture = g;
  rt->captures++;
  *out = g;
  return MAV_OK;
}

static mav_err hold(mav_graph *g, mav__buffer *b) {
  for (int64_t i = g->held.count - 1; i >= 0; i--)
    if (g->held.at[i] == b) return MAV_OK;
  MAV_TRY(PUSH(g, held, b));
  b->refs++;
  return MAV_OK;
}

mav_err mav__graph_plan(mav_graph *g, size_t bytes, mav__buffer **out) {
  MAV_TRY(mav__buffer_new(out, g->rt, MAV__BUFFER_PLANNED, bytes, false, "graph"));
  (*out)->graph = g;
  (*out)->plan = g->plans.count;
  mav_err err = hold(g, *out);
  if (!err) err = PUSH(g, plans, ((mav__plan){.buffer = *out, .bytes = bytes, .first = g->nodes.count, .last = g->nodes.count}));
  if (err) {
    mav__buffer_release(*out);
    *out = NULL;
  }
  return err;
}

mav_err mav__graph_record(mav_graph *g, int op, const void *args, const mav__use *uses, int count) {
  const size_t bytes = mav_op_get(op)->args_bytes;
  const int64_t fixups = g->fixups.count;
  void *copy = mav__alloc(bytes);
  if (!copy) return MAV_RT_NOMEM(g->rt, "graph");
  memcpy(copy, args, bytes);
  mav_err err;
  for (int i = 0; i < count; i++) {
    mav__buffer *b = uses[i].buffer;
    MAV_GOTO(hold(g, b));
    if (b->kind != MAV__BUFFER_PLANNED) continue;
    g->plans.at[b->plan].last = g->nodes.count;
    MAV_GOTO(PUSH(g, fixups, ((mav__fixup){.node = g->nodes.count, .at = uses[i].at, .buffer = b, .offset = uses[i].offset})));
  }
  MAV_GOTO(PUSH(g, nodes, ((mav__node){.op = op, .args = copy})));
  return MAV_OK;
done:
  g->fixups.count = fixups; /* the capture may go on: the next node is another one */
  mav__free(copy);
  return err;
}

mav_err mav__graph_hold_rows(mav_graph *g, mav_rows *rows) {
  for (int64_t i = 0; i < g->held_rows.count; i++)
    if (g->held_rows.at[i] == rows) return MAV_OK;
  MAV_TRY(PUSH(g, held_rows, rows));
  mav_rows_retain(rows);
  return MAV_OK;
}

mav_err mav__graph_hold_kv(mav_graph *g, mav_kv *kv) {
  for (int64_t i = 0; i < g->held_kvs.count; i++)
    if (g->held_kvs.at[i] == kv) return MAV_OK;
  MAV_TRY(PUSH(g, held_kvs, kv));
  mav_kv_retain(kv);
  return MAV_OK;
}

mav_err mav__graph_check_at_launch(mav_graph *g, mav__launch_check c) {
  for (int64_t i = 0; i < g->checks.count; i++) {
    const mav__launch_check *o = &g->checks.at[i];
    if (o->rows == c.rows && o->kv == c.kv && o->index == c.index && o->id_limit == c.id_limit && o->seq_limit == c.seq_limit &&
        o->moves == c.moves && o->derives == c.derives && o->ahead == c.ahead && o->next == c.next)
      return MAV_OK;
  }
  if (c.rows) MAV_TRY(mav__graph_hold_rows(g, c.rows));
  if (c.next) MAV_TRY(mav__graph_hold_rows(g, c.next));
  if (c.kv) MAV_TRY(mav__graph_hold_kv(g, c.kv));
  MAV_TRY(PUSH(g, checks, c));
  if (c.index) mav_tensor_retain(c.index);
  return MAV_OK;
}

mav_err mav__check_now(mav_runtime *rt, const mav__launch_check *c) {
  if (c->next) return mav__rows_check_next(c->rows, c->next, c->op);
  if (c->derives) return mav__kv_check_ahead(c->kv, c->rows, c->ahead, c->op);
  if (c->rows) MAV_TRY(mav__rows_check(c->rows, c->op, c->id_limit, c->seq_limit));
  if (c->kv) MAV_TRY(mav__kv_check_rows(c->kv, c->rows, c->moves, c->op));
  if (c->index) {
    const int32_t *p = mav__tensor_pointer(c->index);
    int64_t n = mav_tensor_count(c->index);
    for (int64_t i = 0; i < n; i++)
      if (p[i] < 0 || p[i] >= c->id_limit)
        return MAV_RT_FAIL(rt, RANGE, c->op, "index %d (element %lld) is outside 0 to %lld", p[i], (long long)i, (long long)c->id_limit - 1);
  }
  return MAV_OK;
}

mav_err mav_graph_keep(mav_graph *g, mav_tensor *t) {
  if (g->state != MAV__GRAPH_CAPTURING) return MAV_RT_FAIL(g->rt, STATE, "graph_keep", "the capture is over");
  if (t->buffer->kind != MAV__BUFFER_PLANNED) return MAV_OK; /* has memory of its own already */
  if (t->buffer->graph != g) return MAV_RT_FAIL(g->rt, INVALID, "graph_keep", "the tensor belongs to another graph");
  g->plans.at[t->buffer->plan].keep = true;
  return MAV_OK;
}

static void patch(mav_graph *g) {
  for (int64_t i = 0; i < g->fixups.count; i++) {
    const mav__fixup *f = &g->fixups.at[i];
    char *base = f->buffer->kind == MAV__BUFFER_PLANNED ? (char *)g->rt->arena + g->plans.at[f->buffer->plan].offset : f->buffer->data;
    void *p = base + f->offset;
    memcpy((char *)g->nodes.at[f->node].args + f->at, &p, sizeof p);
  }
  g->arena_version = g->rt->arena_version;
}

mav_err mav_graph_end(mav_graph *g) {
  mav_runtime *rt = g->rt;
  if (g->state != MAV__GRAPH_CAPTURING) return MAV_RT_FAIL(rt, STATE, "graph_end", "the capture is over");
  rt->capture = NULL;
  g->state = MAV__GRAPH_DEAD;
  size_t total;
  MAV_TRY(mav__plan_offsets(g, &total));
  MAV_TRY(mav__arena_reserve(rt, total));
  g->stats.planned_bytes = (int64_t)total;
  g->stats.ops = g->nodes.count;
  for (int64_t i = 0; i < g->plans.count; i++) {
    mav__plan *p = &g->plans.at[i];
    if (!p->keep) {
      g->stats.unplanned_bytes += (int64_t)p->bytes;
      continue;
    }
    MAV_TRY(mav__device_alloc(rt, p->bytes, true, "graph_end", &p->buffer->data));
    p->buffer->kind = MAV__BUFFER_OWNED;
  }
  patch(g);
  g->state = MAV__GRAPH_READY;
  return MAV_OK;
}

void mav_graph_abort(mav_graph *g) {
  if (g->state != MAV__GRAPH_CAPTURING) return;
  g->rt->capture = NULL;
  g->state = MAV__GRAPH_DEAD;
}

mav_graph *mav_graph_retain(mav_graph *g) {
  g->refs++;
  return g;
}

void mav_graph_release(mav_graph *g) {
  if (!g || --g->refs) return;
  mav_graph_abort(g);
  for (int64_t i = 0; i < g->plans.count; i++)
    if (g->plans.at[i].buffer->kind == MAV__BUFFER_PLANNED) g->plans.at[i].buffer->graph = NULL;
  for (int64_t i = 0; i < g->nodes.count; i++) mav__free(g->nodes.at[i].args);
  for (int64_t i = 0; i < g->held.count; i++) mav__buffer_release(g->held.at[i]);
  for (int64_t i = 0; i < g->checks.count; i++) mav_tensor_release(g->checks.at[i].index);
  for (int64_t i = 0; i < g->held_rows.count; i++) mav_rows_release(g->held_rows.at[i]);
  for (int64_t i = 0; i < g->held_kvs.count; i++) mav_kv_release(g->held_kvs.at[i]);
  mav__free(g->nodes.at);
  mav__free(g->fixups.at);
  mav__free(g->plans.at);
  mav__free(g->held.at);
  mav__free(g->checks.at);
  mav__free(g->held_rows.at);
  mav__free(g->held_kvs.at);
  mav_rows_release(g->rows);
  mav_runtime_release(g->rt);
  mav__free(g);
}

mav_rows *mav_graph_rows(mav_graph *g) { return g->rows; }

static mav_err ready(mav_graph *g, const char *op) {
  if (g->state != MAV__GRAPH_READY) return MAV_RT_FAIL(g->rt, STATE, op, "the graph was not captured to its end");
  if (g->rt->capture) return MAV_RT_FAIL(g->rt, STATE, op, "a capture is open on this runtime");
  for (int64_t i = 0; i < g->checks.count; i++) MAV_TRY(mav__check_now(g->rt, &g->checks.at[i]));
  if (g->arena_version != g->rt->arena_version) patch(g);
  return MAV_OK;
}

mav_err mav_graph_launch(mav_graph *g) {
  MAV_TRY(ready(g, "graph_launch"));
  int64_t start = mav_now_ns();
  MAV_TRY(g->rt->backend->run(g->rt, g->nodes.at, g->nodes.count));
  g->stats.last_ns = mav_now_ns() - start;
  g->stats.launches++;
  return MAV_OK;
}

mav_err mav_graph_wait(mav_graph *g) {
  if (g->state != MAV__GRAPH_READY) return MAV_RT_FAIL(g->rt, STATE, "graph_wait", "the graph was not captured to its end");
  return MAV_OK; /* the host backends run to completion in launch */
}

bool mav_graph_poll(mav_graph *g) { return g->state == MAV__GRAPH_READY; }

void mav_graph_get_stats(const mav_graph *g, mav_graph_stats *out) { *out = g->stats; }

mav_err mav_graph_profile(mav_graph *g, int *op, int64_t *ns) {
  MAV_TRY(ready(g, "graph_profile"));
  for (int64_t i = 0; i < g->nodes.count; i++) {
    int64_t start = mav_now_ns();
    MAV_TRY(g->rt->backend->run(g->rt, &g->nodes.at[i], 1));
    ns[i] = mav_now_ns() - start;
    op[i] = g->nodes.at[i].op;
  }
  return MAV_OK;
}
