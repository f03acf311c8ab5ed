/* core/call.c - calling an op: check the arguments against ops.def, compute and allocate the results, then run or record.
 *
 * Whatever a kernel assumes is checked here: kernels check nothing. Rules that the shape language cannot say are in
 * check_op. Values that live in device memory (row tables, indices) are checked right before they are used: now when
 * running eagerly, at every launch when recorded.
 */
#include <math.h>
#include <string.h>

#include "comm.h"
#include "graph.h"
#include "shape.h"

#define ARGS_BYTES_MAX 2048
#define USES_MAX (2 * MAV_ARGS_MAX)

typedef struct call {
  mav_runtime *rt;
  int op;
  const mav_op_desc *desc;
  mav_arg *args;
  mav__shapes shapes;
  mav_rows *rows, *next; /* read; written */
  mav_kv *kv;
  mav__use uses[USES_MAX];
  int use_count;
  bool apart; /* mav__node */
  _Alignas(16) char blob[ARGS_BYTES_MAX];
} call;

#define FAIL(c, code, ...) MAV_RT_FAIL((c)->rt, code, (c)->desc->name, __VA_ARGS__)

static void use(call *c, const mav_tensor *t, size_t at, bool written) {
  c->uses[c->use_count++] = (mav__use){t->buffer, at, t->offset * (int64_t)mav_dtype_bytes(t->dtype), written};
}

/* Kernels of a device overlap at their ends, and read weights before those before them are done: not if that work may still write
 * them. Work of a graph begins after all that was given before. */
static void note_fresh(call *c, const mav__buffer *b) {
  if (!b->on_device) return;
  if (c->rt->capture) c->apart = c->apart || b->kind == MAV__BUFFER_PLANNED || b->written_in == c->rt->captures;
  else c->apart = c->apart || b->written_at > c->rt->ordered;
}

static mav_err check_tensor(call *c, const mav_arg_desc *d, const mav_tensor *t) {
  if (!t) return FAIL(c, INVALID, "%s is missing", d->name);
  if (t->buffer->rt != c->rt) return FAIL(c, INVALID, "%s belongs to another runtime", d->name);
  if (!(d->types >> t->dtype & 1)) {
    char allowed[64] = "";
    for (int i = 0; i < MAV_DTYPE_COUNT; i++)
      if (d->types >> i & 1) {
        if (*allowed) strcat(allowed, ", ");
        strcat(allowed, mav_dtype_name((mav_dtype)i));
      }
    return FAIL(c, DTYPE, "%s is %s; expected %s", d->name, mav_dtype_name(t->dtype), allowed);
  }
  const mav__buffer *b = t->buffer;
  if (d->kind != MAV_ARG_WEIGHT && t->layout != MAVK_LAYOUT_ROWS) return FAIL(c, INVALID, "%s is shuffled, which only weights may be", d->name);
  if (b->kind == MAV__BUFFER_PLANNED && b->graph != c->rt->capture)
    return FAIL(c, STATE, "%s was planned by a capture that is over; mark it with keep there", d->name);
  const bool is_written = d->kind == MAV_ARG_OUT || d->kind == MAV_ARG_MUT;
  if (b->read_only && is_written) return FAIL(c, INVALID, "%s is read only", d->name);
  if (b->is_rows && is_written && c->rt->capture) return FAIL(c, INVALID, "%s is the memory of the rows, which a capture cannot write", d->name);
  return MAV_OK;
}

/* Broadcasting operands and what cast reads may have any strides. */
static bool may_be_strided(const call *c, const mav_arg_desc *d) {
  const mav_op_desc *o = c->desc;
  const char *result = o->arg[o->args - 1].shape; /* of the last argument; NULL: not a tensor */
  return d->kind == MAV_ARG_IN && (c->op == MAVK_OP_cast || (result && strchr(result, '|')));
}

static mav_err fill_tensor(call *c, const mav_arg_desc *d, mav_arg *a) {
  mav_tensor *t = a->tensor;
  MAV_TRY(check_tensor(c, d, t));
  if (d->kind != MAV_ARG_OUT) MAV_TRY(mav__shapes_match(&c->shapes, d, t, c->args));
  if (!may_be_strided(c, d) && !mav_tensor_is_contiguous(t))
    return FAIL(c, INVALID, "%s is a strided view; make it contiguous first (op cast)", d->name);
  mavk_array array = mav__tensor_array(t);
  memcpy(c->blob + d->offset, &array, sizeof array);
  use(c, t, d->offset + offsetof(mavk_array, p), d->kind == MAV_ARG_OUT || d->kind == MAV_ARG_MUT);
  return MAV_OK;
}

static mav_err fill_weight(call *c, const mav_arg_desc *d, mav_arg *a) {
  mav_tensor *t = a->tensor;
  MAV_TRY(check_tensor(c, d, t));
  MAV_TRY(mav__shapes_match(&c->shapes, d, t, c->args));
  int last = t->dims - 1;
  if (t->stride[last] != 1 && t->shape[last] > 1) return FAIL(c, INVALID, "%s: the last dimension of a weight must be contiguous", d->name);
  mavk_weight w = {.a = mav__tensor_array(t), .act = (int32_t)t->act, .in_scale = t->in_scale, .layout = (int32_t)t->layout};
  use(c, t, d->offset + offsetof(mavk_weight, a) + offsetof(mavk_array, p), false);
  note_fresh(c, t->buffer);
  if (t->scale) {
    note_fresh(c, t->scale->buffer);
    w.scale = mav__tensor_pointer(t->scale);
    memcpy(w.scale_s, t->scale_s, sizeof w.scale_s);
    use(c, t->scale, d->offset + offsetof(mavk_weight, scale), false);
  }
  memcpy(c->blob + d->offset, &w, sizeof w);
  return MAV_OK;
}

static mav_err fill_number(call *c, const mav_arg_desc *d, const mav_arg *a) {
  double x = a->given ? a->number : d->value;
  if (!a->given && !d->optional) return FAIL(c, INVALID, "%s is missing", d->name);
  if (d->kind == MAV_ARG_NUM) {
    if (!isfinite(x)) return FAIL(c, RANGE, "%s = %g; expected a finite number", d->name, x);
    float f = (float)x;
    memcpy(c->blob + d->offset, &f, sizeof f);
  } else {
    if (x != floor(x) || fabs(x) > 9007199254740992.0) return FAIL(c, RANGE, "%s = %g; expected an integer", d->name, x);
    int64_t i = (int64_t)x;
    if (d->kind == MAV_ARG_DTYPE) {
      int32_t t = (int32_t)i;
      if (i < 0 || i >= MAV_DTYPE_COUNT) return FAIL(c, DTYPE, "no dtype has the number %lld", (long long)i);
      memcpy(c->blob + d->offset, &t, sizeof t);
    } else {
      memcpy(c->blob + d->offset, &i, sizeof i);
      if (!strcmp(d->name, "vocab")) return mav__shapes_bind(&c->shapes, 'V', i, d->name);
    }
  }
  return MAV_OK;
}

static mav_err fill_kv(call *c, const mav_arg_desc *d, mav_arg *a) {
  mav_kv *kv = a->given ? a->kv.cache : NULL;
  if (!kv) return FAIL(c, INVALID, "%s is missing", d->name);
  if (kv->rt != c->rt) return FAIL(c, INVALID, "%s belongs to another runtime", d->name);
  if (a->kv.layer < 0 || a->kv.layer >= kv->layers)
    return FAIL(c, RANGE, "%s: layer %d of a cache with %d", d->name, a->kv.layer, kv->layers);
  c->kv = kv;
  MAV_TRY(mav__shapes_bind(&c->shapes, 'K', kv->layer[a->kv.layer].kv_heads, d->name));
  MAV_TRY(mav__shapes_bind(&c->shapes, 'C', kv->layer[a->kv.layer].head_dim, d->name));
  mavk_kv k = mav__kv_kernel(kv, a->kv.layer);
  memcpy(c->blob + d->offset, &k, sizeof k);
  return MAV_OK;
}

static mav_err fill(call *c, const mav_arg_desc *d, mav_arg *a) {
  switch (d->kind) {
    case MAV_ARG_IN:
    case MAV_ARG_INDEX:
    case MAV_ARG_MUT:
    case MAV_ARG_WEIGHT:
      if (!a->given && d->optional) return MAV_OK;
      if (!a->given) return FAIL(c, INVALID, "%s is missing", d->name);
      return d->kind == MAV_ARG_WEIGHT ? fill_weight(c, d, a) : fill_tensor(c, d, a);
    case MAV_ARG_ROWS:
    case MAV_ARG_ROWS_OUT: {
      if (!a->given || !a->rows) return FAIL(c, INVALID, "%s is missing", d->name);
      if (a->rows->rt != c->rt) return FAIL(c, INVALID, "%s belongs to another runtime", d->name);
      *(d->kind == MAV_ARG_ROWS ? &c->rows : &c->next) = a->rows;
      MAV_TRY(mav__shapes_bind(&c->shapes, d->kind == MAV_ARG_ROWS ? 'T' : *d->shape, a->rows->count, d->name));
      mavk_rows r = mav__rows_kernel(a->rows);
      memcpy(c->blob + d->offset, &r, sizeof r);
      return MAV_OK;
    }
    case MAV_ARG_KV: return fill_kv(c, d, a);
    case MAV_ARG_COMM: {
      if (a->given && !a->comm) return FAIL(c, INVALID, "%s is NULL", d->name);
      if (a->given && a->comm->rt != c->rt) return FAIL(c, INVALID, "%s belongs to another runtime", d->name);
      mavk_comm k = {a->given ? a->comm->rank : 0, a->given ? a->comm->ranks : 1};
      memcpy(c->blob + d->offset, &k, sizeof k);
      return MAV_OK;
    }
    case MAV_ARG_NUM:
    case MAV_ARG_INT:
    case MAV_ARG_DTYPE: return fill_number(c, d, a);
    case MAV_ARG_OUT: return MAV_OK; /* after the inputs are known */
  }
  return MAV_OK;
}

static int64_t dim(const call *c, char letter) { return mav__shapes_get(&c->shapes, letter); }
static bool bound(const call *c, char letter) { return c->shapes.from[letter - 'A'] != NULL; }

static double number(const call *c, const char *name) {
  for (int i = 0; i < c->desc->args; i++)
    if (!strcmp(c->desc->arg[i].name, name)) return c->args[i].given ? c->args[i].number : c->desc->arg[i].value;
  return 0;
}

static bool given(const call *c, const char *name) {
  for (int i = 0; i < c->desc->args; i++)
    if (!strcmp(c->desc->arg[i].name, name)) return c->args[i].given;
  return false;
}

static const mav_tensor *tensor(const call *c, const char *name) {
  for (int i = 0; i < c->desc->args; i++)
    if (!strcmp(c->desc->arg[i].name, name)) return c->args[i].tensor;
  return NULL;
}

/* Two weights that meet the same packed activations. */
static mav_err check_alike(call *c, const char *a, const char *b) {
  const mav_tensor *x = tensor(c, a), *y = tensor(c, b);
  if (x->dtype == y->dtype && x->act == y->act && x->in_scale == y->in_scale) return MAV_OK;
  return FAIL(c, DTYPE, "%s and %s must have the same dtype and activation rounding", a, b);
}

/* What the shape language cannot say. */
static mav_err check_op(call *c) {
  switch (c->op) {
    case MAVK_OP_norm_qkv:
    case MAVK_OP_rope_append: {
      int64_t h = dim(c, 'N') / dim(c, 'C') - 2 * dim(c, 'K');
      if (dim(c, 'N') % dim(c, 'C') || h < 1)
        return FAIL(c, SHAPE, "N = %lld is not (H + 2K) C with K = %lld, C = %lld", (long long)dim(c, 'N'), (long long)dim(c, 'K'),
                    (long long)dim(c, 'C'));
      if (h % dim(c, 'K'))
        return FAIL(c, SHAPE, "%lld query heads do not share %lld kv heads evenly", (long long)h, (long long)dim(c, 'K'));
      if (bound(c, 'R') && 2 * dim(c, 'R') != dim(c, 'C'))
        return FAIL(c, SHAPE, "rope has %lld frequencies; expected C/2 = %lld", (long long)dim(c, 'R'), (long long)dim(c, 'C') / 2);
      if (!(number(c, "floor_scale") > 0)) return FAIL(c, RANGE, "floor_scale must be above 0");
      return mav__shapes_bind(&c->shapes, 'H', h, "N");
    }
    case MAVK_OP_attention:
      if (dim(c, 'H') < 1 || dim(c, 'H') % dim(c, 'K'))
        return FAIL(c, SHAPE, "%lld query heads do not share %lld kv heads evenly", (long long)dim(c, 'H'), (long long)dim(c, 'K'));
      if (number(c, "chunk") < 0 || number(c, "chunk") > INT32_MAX) return FAIL(c, RANGE, "chunk = %g", number(c, "chunk"));
      return MAV_OK;
    case MAVK_OP_router:
    case MAVK_OP_topk: {
      const char *name = c->op == MAVK_OP_topk ? "k" : "top_k";
      double k = number(c, name), n = (double)dim(c, c->op == MAVK_OP_topk ? 'N' : 'E');
      if (k < 1 || k > n) return FAIL(c, RANGE, "%s = %g; expected 1 to %g", name, k, n);
      return MAV_OK;
    }
    case MAVK_OP_ffn_up:
      if (given(c, "expert_gate") != given(c, "expert_up") || given(c, "expert_gate") != given(c, "index") ||
          given(c, "expert_gate") != given(c, "score"))
        return FAIL(c, INVALID, "expert_gate, expert_up, index and score come together");
      MAV_TRY(check_alike(c, "gate", "up"));
      return given(c, "expert_gate") ? check_alike(c, "expert_gate", "expert_up") : MAV_OK;
    case MAVK_OP_ffn_down:
      if (given(c, "expert_down") != given(c, "index")) return FAIL(c, INVALID, "expert_down and index come together");
      if (dim(c, 'S') != dim(c, 'A') + 1)
        return FAIL(c, SHAPE, "h has %lld slots; expected 1 + %lld experts per token", (long long)dim(c, 'S'), (long long)dim(c, 'A'));
      return MAV_OK;
    case MAVK_OP_expert_matmul:
      if (dim(c, 'B') != 1 && dim(c, 'B') != dim(c, 'A'))
        return FAIL(c, SHAPE, "x has %lld inputs a token; expected 1 or %lld", (long long)dim(c, 'B'), (long long)dim(c, 'A'));
      return MAV_OK;
    case MAVK_OP_top_k_mask:
      if (number(c, "k") < 1) return FAIL(c, RANGE, "k = %g; expected at least 1", number(c, "k"));
      return MAV_OK;
    case MAVK_OP_top_p_mask:
      if (!(number(c, "p") > 0 && number(c, "p") <= 1)) return FAIL(c, RANGE, "p = %g; expected 0 < p <= 1", number(c, "p"));
      return MAV_OK;
    case MAVK_OP_min_p_mask:
      if (!(number(c, "p") >= 0 && number(c, "p") <= 1)) return FAIL(c, RANGE, "p = %g; expected 0 <= p <= 1", number(c, "p"));
      return MAV_OK;
    case MAVK_OP_penalize:
      if (!(number(c, "penalty") > 0)) return FAIL(c, RANGE, "penalty = %g; expected more than 0", number(c, "penalty"));
      return MAV_OK;
    case MAVK_OP_sample:
    case MAVK_OP_perturb: {
      const double stream = c->op == MAVK_OP_perturb ? number(c, "stream") : 0;
      if (!(number(c, "ahead") >= 0 && number(c, "ahead") <= 1 << 20)) return FAIL(c, RANGE, "ahead = %g; expected 0 to 2^20", number(c, "ahead"));
      if (!(stream >= 0 && stream <= 15)) return FAIL(c, RANGE, "stream = %g; expected 0 to 15", stream);
      return MAV_OK;
    }
    case MAVK_OP_accept_typical:
      if (!(number(c, "epsilon") > 0) || !(number(c, "delta") > 0)) return FAIL(c, RANGE, "epsilon and delta must be above 0");
      return MAV_OK;
    case MAVK_OP_rows_advance:
      if (number(c, "shift") != 0 && number(c, "shift") != -1) return FAIL(c, RANGE, "shift = %g; expected 0 or -1", number(c, "shift"));
      /* fall through */
    case MAVK_OP_rows_follow:
      if (c->next->base) return FAIL(c, INVALID, "next must be a whole table, not a part of one");
      /* fall through */
    case MAVK_OP_rows_put:
      if (number(c, "vocab") < 1 || number(c, "vocab") > INT32_MAX) return FAIL(c, RANGE, "vocab = %g", number(c, "vocab"));
      return MAV_OK;
    case MAVK_OP_last_accepted:
      if (number(c, "trees") < 1 || number(c, "trees") > (double)dim(c, 'T'))
        return FAIL(c, RANGE, "trees = %g; expected 1 to %lld", number(c, "trees"), (long long)dim(c, 'T'));
      return MAV_OK;
    case MAVK_OP_count_distinct:
    case MAVK_OP_stamp:
      if (!(number(c, "at") >= 0 && number(c, "at") < (double)dim(c, 'N')))
        return FAIL(c, RANGE, "at = %g; expected 0 to %lld", number(c, "at"), (long long)dim(c, 'N') - 1);
      return MAV_OK;
    case MAVK_OP_argmax:
    case MAVK_OP_max:
    case MAVK_OP_min:
    case MAVK_OP_softmax:
    case MAVK_OP_log_softmax:
    case MAVK_OP_entropy:
      if (dim(c, 'N') < 1) return FAIL(c, SHAPE, "the last dimension is empty");
      return MAV_OK;
    default: return MAV_OK;
  }
}

/* An op whose results may be written over an operand: element i depends on element i alone. */
static bool is_elementwise(const call *c) {
  for (int i = 0; i < c->desc->args; i++) {
    const char *s = c->desc->arg[i].shape;
    if (!s) continue;
    const bool any = !strcmp(s, "*") || *s == '=' || strchr(s, '|');
    if (!any || c->desc->arg[i].kind == MAV_ARG_WEIGHT) return false;
  }
  return true;
}

static mav_err check_overlap(call *c, const mav_arg_desc *d, const mav_tensor *out) {
  for (int i = 0; i < c->desc->args; i++) {
    const mav_arg_desc *o = &c->desc->arg[i];
    if (o->kind > MAV_ARG_WEIGHT || !c->args[i].given || o == d) continue;
    const mav_tensor *t = c->args[i].tensor;
    if (t->buffer != out->buffer) continue;
    if (is_elementwise(c) && t->dtype == out->dtype && t->offset == out->offset && mav_tensor_count(t) == mav_tensor_count(out) &&
        mav_tensor_is_contiguous(t))
      continue;
    int64_t a = t->offset, b = out->offset, na = 1, nb = mav_tensor_count(out); /* extents in elements */
    for (int k = 0; k < t->dims; k++) na += (t->shape[k] - 1) * t->stride[k];
    size_t et = mav_dtype_bytes(t->dtype), eo = mav_dtype_bytes(out->dtype);
    if ((size_t)a * et < (size_t)(b + nb) * eo && (size_t)b * eo < (size_t)(a + na) * et)
      return FAIL(c, INVALID, "%s overlaps %s", d->name, o->name);
  }
  return MAV_OK;
}

/* Indices that an op computes are below this; 0: no promise. */
static int64_t index_bound(const call *c) {
  switch (c->op) {
    case MAVK_OP_argmax:
    case MAVK_OP_topk: return dim(c, 'N');
    case MAVK_OP_router: return dim(c, 'E');
    case MAVK_OP_sample:
    case MAVK_OP_accept_rejection:
    case MAVK_OP_accept_typical: return dim(c, 'V');
    case MAVK_OP_last_accepted: return dim(c, 'T');
    default: return 0;
  }
}

/* A capture writes into memory of the caller's: what a later op of it reads there is not what the host sees now. */
static void note_write(call *c, const mav_tensor *t) {
  mav__buffer *b = t->buffer;
  const int64_t bound = index_bound(c);
  const bool whole = (size_t)mav_tensor_count(t) * mav_dtype_bytes(t->dtype) == b->bytes;
  if (whole || b->written_in != c->rt->captures) b->index_bound = whole ? bound : 0;
  else b->index_bound = bound && b->index_bound ? (bound > b->index_bound ? bound : b->index_bound) : 0;
  b->written_in = c->rt->captures;
}

static mav_err make_result(call *c, const mav_arg_desc *d, mav_arg *a) {
  int dims;
  int64_t shape[MAV_DIMS_MAX] = {0};
  MAV_TRY(mav__shapes_result(&c->shapes, d, c->args, &dims, shape));
  if (a->given) {
    char have[96], want[96];
    mav_tensor *t = a->tensor;
    MAV_TRY(check_tensor(c, d, t));
    if (t->dims != dims || memcmp(t->shape, shape, sizeof(int64_t) * (size_t)dims))
      return FAIL(c, SHAPE, "%s has shape %s; the result has %s", d->name, mav__shape_text(have, sizeof have, t->dims, t->shape),
                  mav__shape_text(want, sizeof want, dims, shape));
    if (c->op == MAVK_OP_cast && t->dtype != (mav_dtype)number(c, "dtype"))
      return FAIL(c, DTYPE, "%s does not have the dtype asked for", d->name);
    return check_overlap(c, d, t);
  }
  int type = c->op == MAVK_OP_cast ? (int)number(c, "dtype") : __builtin_ctz(d->types);
  size_t bytes;
  mav__buffer *b;
  MAV_TRY(mav__shape_bytes(c->rt, c->desc->name, (mav_dtype)type, dims, shape, &bytes));
  if (c->rt->capture) MAV_TRY(mav__graph_plan(c->rt->capture, bytes, &b));
  else MAV_TRY(mav__buffer_new(&b, c->rt, MAV__BUFFER_OWNED, bytes, false, c->desc->name));
  b->index_bound = index_bound(c);
  b->written_in = c->rt->capture ? c->rt->captures : 0;
  mav_err err = mav__tensor_on(&a->tensor, b, (mav_dtype)type, dims, shape);
  mav__buffer_release(b);
  return err;
}

/* rows_advance relies on the sequences of both sides, which the host sees at the launch unless rows_follow writes them before. */
static mav_err check_next(call *c) {
  const mav__rows_written *written[] = {&mav__rows_base(c->rows)->written, &c->next->written};
  for (int i = 0; i < 2; i++)
    if (written[i]->moved_in == c->rt->captures && !written[i]->trees)
      return FAIL(c, INVALID, "rows_follow writes %s in this capture: which of them are idle is not known before", i ? "next" : "rows");
  return MAV_OK;
}

/* What this op will find in its rows. Those that an earlier op of the capture wrote are not there yet: then what they are made
 * from is checked, and their ids by the promise of their maker. */
static mav_err check_rows(call *c) {
  mav_graph *g = c->rt->capture;
  mav__launch_check check = {.op = c->desc->name, .rows = c->rows};
  const mav__rows_written *w = &mav__rows_base(c->rows)->written;
  const bool keys_only = c->op == MAVK_OP_sample || c->op == MAVK_OP_perturb || c->op == MAVK_OP_accept_rejection;
  const bool accepts = c->op == MAVK_OP_accept_rejection || c->op == MAVK_OP_accept_typical; /* ids are looked up in probabilities */
  mav_kv *slots = c->kv && !keys_only ? c->kv : NULL;
  if (keys_only) check.seq_limit = c->kv->sequences;
  if (c->op == MAVK_OP_embed || c->op == MAVK_OP_penalize || c->op == MAVK_OP_mark_seen || accepts) check.id_limit = dim(c, 'V');
  if (c->op == MAVK_OP_penalize || c->op == MAVK_OP_mark_seen) check.seq_limit = dim(c, 'Q');
  check.moves = c->op == MAVK_OP_kv_move;
  if (!g) {
    check.kv = slots;
    return mav__check_now(c->rt, &check);
  }
  if (c->op == MAVK_OP_rows_advance) MAV_TRY(check_next(c));
  const bool moved = w->moved_in == c->rt->captures, moves_on = c->op == MAVK_OP_rows_advance || c->op == MAVK_OP_rows_follow;
  if (check.id_limit && w->ids_in == c->rt->captures && w->id_bound > check.id_limit)
    return FAIL(c, RANGE, "the capture writes ids below %lld into the rows; they must be below %lld", (long long)w->id_bound,
                (long long)check.id_limit);
  if (!moved) check.kv = slots;
  MAV_TRY(mav__graph_check_at_launch(g, check));
  if (!moved) return MAV_OK;
  if (w->trees && (slots || moves_on))
    MAV_TRY(mav__graph_check_at_launch(g, (mav__launch_check){.op = check.op, .rows = w->from, .next = mav__rows_base(c->rows)}));
  if (check.seq_limit) MAV_TRY(mav__graph_check_at_launch(g, (mav__launch_check){.op = check.op, .rows = w->source, .seq_limit = check.seq_limit}));
  if (!slots) return MAV_OK;
  return mav__graph_check_at_launch(g, (mav__launch_check){.op = check.op, .rows = w->source, .kv = slots, .derives = true, .ahead = w->ahead});
}

/* A capture writes rows: later ops of it may rely on what the writer promises. */
static void note_rows(call *c) {
  mav__rows_written *w = &mav__rows_base(c->next)->written;
  const int64_t bound = dim(c, 'V');
  w->id_bound = w->ids_in == c->rt->captures && w->id_bound > bound ? w->id_bound : bound;
  w->ids_in = c->rt->captures;
  if (c->op == MAVK_OP_rows_put) return;
  const mav__rows_written from = mav__rows_base(c->rows)->written;
  const bool again = from.moved_in == c->rt->captures;
  w->moved_in = c->rt->captures;
  w->from = c->rows;
  w->source = again ? from.source : c->rows;
  w->trees = c->op == MAVK_OP_rows_advance;
  w->ahead = (again ? from.ahead : 0) + (w->trees ? c->next->count + (int64_t)number(c, "shift") : 0);
}

/* Device values the kernel trusts. */
static mav_err check_values(call *c) {
  mav_graph *g = c->rt->capture;
  if (c->rows) MAV_TRY(check_rows(c));
  for (int i = 0; i < c->desc->args; i++) {
    const mav_arg_desc *d = &c->desc->arg[i];
    if (d->kind != MAV_ARG_INDEX || !c->args[i].given) continue;
    const mav__buffer *b = c->args[i].tensor->buffer;
    if (g && (b->kind == MAV__BUFFER_PLANNED || b->written_in == c->rt->captures)) {
      const int64_t bound = b->index_bound; /* the values are known only later: their maker must promise it */
      if (bound > 0 && bound <= dim(c, *d->limit)) continue;
      return FAIL(c, RANGE, "%s is computed in the capture by an op that does not keep it below %lld; use argmax, topk, router, sample", d->name,
                  (long long)dim(c, *d->limit));
    }
    mav__launch_check index = {.op = c->desc->name, .index = c->args[i].tensor, .id_limit = dim(c, *d->limit)};
    MAV_TRY(g ? mav__graph_check_at_launch(g, index) : mav__check_now(c->rt, &index));
  }
  return MAV_OK;
}

/* A tensor's values are all indices below bound now; 0: nobody knows. */
static void note_known(const mav_tensor *t, int64_t bound) {
  mav__buffer *b = t->buffer;
  const bool whole = (size_t)mav_tensor_count(t) * mav_dtype_bytes(t->dtype) == b->bytes;
  b->known_bound = whole ? bound : 0;
  b->known_at = b->written_at;
}

/* At once, on a device: what the host wrote goes there before, what the op writes is not on the host's side. */
static mav_err run_on_device(call *c) {
  MAV_RT_TRY_ALIVE(c->rt);
  MAV_TRY(mav__mirror_flush(c->rt));
  const uint64_t writes = c->rt->writes;
  MAV_TRY(c->rt->backend->run(c->rt, &(mav__node){c->op, c->blob, c->apart}, 1));
  if (c->apart) c->rt->ordered = writes;
  for (int i = 0; i < c->use_count; i++)
    if (c->uses[i].written) mav__device_wrote(c->uses[i].buffer, 0);
  if (c->next) mav__device_wrote(c->next->table->buffer, 0);
  const int64_t bound = index_bound(c);
  for (int i = 0; bound && i < c->desc->args; i++)
    if (c->desc->arg[i].kind == MAV_ARG_OUT && c->args[i].tensor->dtype == MAV_DTYPE_I32) note_known(c->args[i].tensor, bound);
  return MAV_OK;
}

static mav_err run_or_record(call *c) {
  mav_graph *g = c->rt->capture;
  if (!g && c->rt->backend->is_device) return run_on_device(c);
  if (!g) {
    mav__node node = {c->op, c->blob, false};
    return c->rt->backend->run(c->rt, &node, 1);
  }
  if (c->rows) MAV_TRY(mav__graph_hold_rows(g, c->rows));
  if (c->next) MAV_TRY(mav__graph_hold_rows(g, c->next));
  if (c->kv) MAV_TRY(mav__graph_hold_kv(g, c->kv));
  if (c->next) MAV_TRY(mav__graph_note_written(g, c->next->table->buffer));
  MAV_TRY(mav__graph_record(g, c->op, c->blob, c->apart, c->uses, c->use_count));
  if (c->next) note_rows(c);
  for (int i = 0; i < c->desc->args; i++)
    if (c->args[i].given && (c->desc->arg[i].kind == MAV_ARG_OUT || c->desc->arg[i].kind == MAV_ARG_MUT)) note_write(c, c->args[i].tensor);
  return MAV_OK;
}

#define ROWS_BYTES_MAX ((double)(512 << 20)) /* activations of one op, as a backend packs them into its scratch memory */

/* Rows times columns that fit a backend's scratch memory. */
static mav_err check_scratch(call *c) {
  for (int i = 0; i < c->desc->args; i++) {
    if (c->desc->arg[i].kind != MAV_ARG_WEIGHT || !c->args[i].given) continue;
    const mav_tensor *w = c->args[i].tensor;
    const double rows = (double)dim(c, 'T') * (double)(dim(c, 'A') > 1 ? dim(c, 'A') : 1), K = (double)w->shape[w->dims - 1] + 128;
    if (rows * K * 4 > ROWS_BYTES_MAX)
      return FAIL(c, RANGE, "%.0f rows of %.0f columns are too many for one call; feed at most %.0f", rows, K - 128,
                  ROWS_BYTES_MAX / K / 4);
  }
  const bool one_row = c->op == MAVK_OP_quantize || (c->op >= MAVK_OP_penalize && c->op <= MAVK_OP_accept_typical) || c->op == MAVK_OP_topk;
  const int64_t columns = dim(c, 'N') + dim(c, 'D') + dim(c, 'V');
  if (one_row && columns > 1 << 26) return FAIL(c, RANGE, "rows of %lld elements; at most 2^26", (long long)columns);
  return MAV_OK;
}

static mav_err prepare(call *c) {
  for (int i = 0; i < c->desc->args; i++) MAV_TRY(fill(c, &c->desc->arg[i], &c->args[i]));
  MAV_TRY(check_op(c));
  return check_scratch(c);
}

mav_err mav_op_call(mav_runtime *rt, int op, mav_arg *args) {
  const mav_op_desc *desc = mav_op_get(op);
  if (!desc) return MAV_RT_FAIL(rt, NOTFOUND, "op_call", "no op has the number %d", op);
  call c = {.rt = rt, .op = op, .desc = desc, .args = args};
  bool made[MAV_ARGS_MAX] = {false};
  mav_err err;
  mav__shapes_init(&c.shapes, desc, &rt->diag);
  MAV_TRY(prepare(&c));
  for (int i = 0; i < desc->args; i++) {
    if (desc->arg[i].kind != MAV_ARG_OUT) continue;
    if (!args[i].given) args[i].tensor = NULL;
    MAV_GOTO(make_result(&c, &desc->arg[i], &args[i]));
    made[i] = !args[i].given;
    MAV_GOTO(fill_tensor(&c, &desc->arg[i], &args[i]));
  }
  MAV_GOTO(check_values(&c));
  MAV_GOTO(run_or_record(&c));
  return MAV_OK;
done:
  for (int i = 0; i < desc->args; i++)
    if (made[i]) {
      mav_tensor_release(args[i].tensor);
      args[i].tensor = NULL;
    }
  return err;
}

/* How many different experts an index tensor names; all of them when it cannot be read. */
static int64_t distinct_experts(mav_tensor *index, int64_t experts) {
  const int64_t n = mav_tensor_count(index), most = experts < n ? experts : n;
  int64_t distinct = 0;
  int32_t *p = mav__alloc((size_t)n * sizeof *p + 1);
  if (!p || mav_tensor_is_planned(index) || mav_tensor_read(index, p, (size_t)n * sizeof *p)) distinct = most;
  else
    for (int64_t i = 0; i < n; i++) {
      int64_t j = 0;
      while (j < i && p[j] != p[i]) j++;
      distinct += j == i;
    }
  mav__free(p);
  return distinct;
}

double mav_op_bytes(mav_runtime *rt, int op, const mav_arg *args) {
  const mav_op_desc *desc = mav_op_get(op);
  mav_tensor *index = NULL;
  double bytes = 0;
  (void)rt;
  for (int i = 0; i < desc->args; i++)
    if (desc->arg[i].kind == MAV_ARG_INDEX && args[i].given) index = args[i].tensor;
  for (int i = 0; i < desc->args; i++) {
    const mav_arg_desc *d = &desc->arg[i];
    if (d->kind > MAV_ARG_WEIGHT && d->kind != MAV_ARG_OUT) continue;
    const mav_tensor *t = args[i].tensor;
    if (!t || (d->kind != MAV_ARG_OUT && !args[i].given)) continue;
    double n = (double)mav_tensor_count(t) * (double)mav_dtype_bytes(t->dtype);
    if (d->kind == MAV_ARG_WEIGHT && t->dims == 3 && index && t->shape[0])
      n *= (double)distinct_experts(index, t->shape[0]) / (double)t->shape[0];
    bytes += n;
  }
  return bytes;
}
