/* core/graph.c - capture and replay.
 *
 *   begin --> CAPTURING --end--> READY --launch/wait--> READY
 *                 \--abort, or end fails--> DEAD (only release)
 *
 * While CAPTURING, ops on the runtime are recorded with their argument structures; results are planned buffers without an
 * address. end gives them places in the runtime's arena (plan.c), or memory of their own where kept, and patches every
 * pointer. A launch checks what the host may have changed since (rows), and runs the list; it allocates nothing.
 *
 * On a device end also makes the backend's executable, with mail for the small results (mirror.c), and a launch uploads what the host
 * wrote, and returns when the executable is on its way. It is made again when the arena has moved.
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

mav_err mav__graph_record(mav_graph *g, int op, const void *args, bool apart, const mav__use *uses, int count) {
  const size_t bytes = mav_op_get(op)->args_bytes;
  const int64_t fixups = g->fixups.count;
  void *copy = mav__alloc(bytes);
  if (!copy) return MAV_RT_NOMEM(g->rt, "graph");
  memcpy(copy, args, bytes);
  mav_err err;
  for (int i = 0; i < count; i++) {
    mav__buffer *b = uses[i].buffer;
    MAV_GOTO(hold(g, b));
    if (uses[i].written) MAV_GOTO(mav__graph_note_written(g, b));
    if (b->kind != MAV__BUFFER_PLANNED) continue;
    g->plans.at[b->plan].last = g->nodes.count;
    MAV_GOTO(PUSH(g, fixups, ((mav__fixup){.node = g->nodes.count, .at = uses[i].at, .buffer = b, .offset = uses[i].offset})));
  }
  MAV_GOTO(PUSH(g, nodes, ((mav__node){.op = op, .args = copy, .apart = apart})));
  return MAV_OK;
done:
  g->fixups.count = fixups; /* the capture may go on: the next node is another one */
  mav__free(copy);
  return err;
}

mav_err mav__graph_note_written(mav_graph *g, mav__buffer *b) {
  if (!b->on_device) return MAV_OK;
  for (int64_t i = 0; i < g->written.count; i++)
    if (g->written.at[i] == b) return MAV_OK;
  return PUSH(g, written, b);
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

/* Every element is in [0, limit). *bound: one more than the largest. */
static mav_err check_indices(mav_runtime *rt, const mav__launch_check *c, const int32_t *p, int64_t n, int64_t *bound) {
  *bound = 1;
  for (int64_t i = 0; i < n; i++) {
    if (p[i] < 0 || p[i] >= c->id_limit)
      return MAV_RT_FAIL(rt, RANGE, c->op, "index %d (element %lld) is outside 0 to %lld", p[i], (long long)i, (long long)c->id_limit - 1);
    if (p[i] >= *bound) *bound = p[i] + 1;
  }
  return MAV_OK;
}

/* On a device the values are fetched, unless they are known since they were last written. */
static mav_err check_index(mav_runtime *rt, const mav__launch_check *c) {
  mav__buffer *b = c->index->buffer;
  const int64_t n = mav_tensor_count(c->index);
  int64_t bound;
  if (!b->on_device) return check_indices(rt, c, mav__tensor_pointer(c->index), n, &bound);
  if (b->known_bound && b->known_bound <= c->id_limit && b->known_at == b->written_at) return MAV_OK;
  const size_t bytes = (size_t)n * sizeof(int32_t);
  int32_t *p = mav__alloc(bytes + 1);
  if (!p) return MAV_RT_NOMEM(rt, c->op);
  mav_err err = mav_tensor_read(c->index, p, bytes);
  if (!err) err = check_indices(rt, c, p, n, &bound);
  if (!err && bytes == b->bytes) {
    b->known_bound = bound;
    b->known_at = b->written_at;
  }
  mav__free(p);
  return err;
}

mav_err mav__check_now(mav_runtime *rt, const mav__launch_check *c) {
  if (c->next) return mav__rows_check_next(c->rows, c->next, c->op);
  if (c->derives) return mav__kv_check_ahead(c->kv, c->rows, c->ahead, c->op);
  if (c->rows) MAV_TRY(mav__rows_check(c->rows, c->op, c->id_limit, c->seq_limit));
  if (c->kv) MAV_TRY(mav__kv_check_rows(c->kv, c->rows, c->moves, c->op));
  return c->index ? check_index(rt, c) : MAV_OK;
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

#define MAIL_BYTES_MAX ((size_t)16 << 10) /* a result up to here comes with the mail; the host asks for larger ones */

/* Results that the host may read after a launch get memory on its side. */
static mav_err mirror(mav_graph *g) {
  int64_t n = 0;
  for (int64_t i = 0; i < g->written.count; i++) {
    mav__buffer *b = g->written.at[i];
    if (b->kind == MAV__BUFFER_PLANNED) continue; /* nobody reads it */
    g->written.at[n++] = b;
    if (b->bytes <= MAIL_BYTES_MAX) MAV_TRY(mav__mirror_add(b, "graph_end"));
  }
  g->written.count = n;
  return MAV_OK;
}

static bool is_mailed(const mav__buffer *b) { return b->host && b->bytes <= MAIL_BYTES_MAX; }

/* The executable, for the pointers as they are now. */
static mav_err make(mav_graph *g) {
  mav_runtime *rt = g->rt;
  mav__mail *mail = mav__alloc((size_t)(g->written.count + 1) * sizeof *mail);
  int64_t n = 0;
  if (!mail) return MAV_RT_NOMEM(rt, "graph");
  for (int64_t i = 0; i < g->written.count; i++) {
    const mav__buffer *b = g->written.at[i];
    if (is_mailed(b)) mail[n++] = (mav__mail){b->host, b->data, b->bytes};
  }
  rt->backend->graph_free(rt, g->exec);
  g->exec = NULL;
  mav_err err = rt->backend->graph_new(rt, g->nodes.at, g->nodes.count, mail, n, &g->exec);
  mav__free(mail);
  return err;
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
  g->stats.ops = g->stats.kernels = g->nodes.count;
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
  if (rt->backend->is_device) {
    MAV_TRY(mirror(g));
    MAV_TRY(make(g));
  }
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
  if (g->exec) g->rt->backend->graph_free(g->rt, g->exec);
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
  mav__free(g->written.at);
  mav_rows_release(g->rows);
  mav_runtime_release(g->rt);
  mav__free(g);
}

mav_rows *mav_graph_rows(mav_graph *g) { return g->rows; }

static mav_err ready(mav_graph *g, const char *op) {
  if (g->state != MAV__GRAPH_READY) return MAV_RT_FAIL(g->rt, STATE, op, "the graph was not captured to its end");
  if (g->rt->capture) return MAV_RT_FAIL(g->rt, STATE, op, "a capture is open on this runtime");
  for (int64_t i = 0; i < g->checks.count; i++) MAV_TRY(mav__check_now(g->rt, &g->checks.at[i]));
  const bool moved = g->arena_version != g->rt->arena_version;
  if (moved) patch(g);
  if (!g->rt->backend->is_device) return MAV_OK;
  MAV_RT_TRY_ALIVE(g->rt);
  if (moved || !g->exec) MAV_TRY(make(g));
  return mav__mirror_flush(g->rt);
}

/* The nodes' results are new; ticket: of the launch that mails them, or 0. */
static void note_results(mav_graph *g, uint64_t ticket) {
  for (int64_t i = 0; i < g->written.count; i++) mav__device_wrote(g->written.at[i], is_mailed(g->written.at[i]) ? ticket : 0);
}

static mav_err launch(mav_graph *g) {
  MAV_TRY(g->rt->backend->graph_launch(g->rt, g->exec, &g->ticket));
  note_results(g, g->ticket);
  return MAV_OK;
}

mav_err mav_graph_launch(mav_graph *g) {
  mav_runtime *rt = g->rt;
  MAV_TRY(ready(g, "graph_launch"));
  const int64_t start = mav_now_ns();
  if (rt->backend->is_device) {
    MAV_TRY(launch(g));
    g->launched_ns = start;
  } else {
    MAV_TRY(rt->backend->run(rt, g->nodes.at, g->nodes.count));
    g->stats.last_ns = mav_now_ns() - start;
  }
  g->stats.launches++;
  return MAV_OK;
}

/* The end of the last launch was seen. */
static void note_end(mav_graph *g) {
  if (!g->launched_ns) return;
  g->stats.last_ns = mav_now_ns() - g->launched_ns;
  g->launched_ns = 0;
}

mav_err mav_graph_wait(mav_graph *g) {
  if (g->state != MAV__GRAPH_READY) return MAV_RT_FAIL(g->rt, STATE, "graph_wait", "the graph was not captured to its end");
  if (!g->ticket) return MAV_OK; /* nothing was launched; or the backend is a host, which runs to completion in launch */
  MAV_TRY(g->rt->backend->wait(g->rt, g->ticket));
  note_end(g);
  return MAV_OK;
}

bool mav_graph_poll(mav_graph *g) {
  if (g->state != MAV__GRAPH_READY) return false;
  if (!g->ticket) return true;
  if (!g->rt->backend->poll(g->rt, g->ticket)) return false;
  note_end(g);
  return true;
}

void mav_graph_get_stats(const mav_graph *g, mav_graph_stats *out) {
  *out = g->stats;
  if (g->exec) out->kernels = g->rt->backend->graph_kernels(g->exec);
}

mav_err mav_graph_profile(mav_graph *g, int *op, int64_t *ns) {
  mav_runtime *rt = g->rt;
  MAV_TRY(ready(g, "graph_profile"));
  for (int64_t i = 0; i < g->nodes.count; i++) op[i] = g->nodes.at[i].op;
  if (rt->backend->is_device) {
    MAV_TRY(rt->backend->profile(rt, g->nodes.at, g->nodes.count, ns));
    note_results(g, 0);
    return MAV_OK;
  }
  for (int64_t i = 0; i < g->nodes.count; i++) {
    int64_t start = mav_now_ns();
    MAV_TRY(rt->backend->run(rt, &g->nodes.at[i], 1));
    ns[i] = mav_now_ns() - start;
  }
  return MAV_OK;
}
