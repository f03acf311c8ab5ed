/* tests/kernels/checkops_bind.c - a plan on a runtime: tensors, rows, a filled cache; the call; reading results. */
#include <stdlib.h>
#include <string.h>

#include "checkops.h"
#include "kv.h"
#include "numeric.h"
#include "rows.h"

enum { LAYERS = 2, LAYER = 1 }; /* the op works on the second of two layers */

/* The plan's data as a tensor, perhaps as a view inside a larger one. */
static mav_err make_tensor(mav_tensor **out, mav_runtime *rt, const operand *v) {
  int64_t outer[MAV_DIMS_MAX], order[MAV_DIMS_MAX];
  const int last = v->dims - 1;
  bool plain = !v->transposed;
  for (int d = 0; d < v->dims; d++) {
    order[d] = v->transposed && (d == 0 || d == last) ? last - d : d;
    plain = plain && v->pad[d] == 0;
  }
  for (int d = 0; d < v->dims; d++) outer[d] = v->shape[order[d]] + v->pad[order[d]];
  mav_tensor *base, *t, *w;
  mav_err err = mav_tensor_new(&base, rt, v->dtype, v->dims, outer);
  if (err) return err;
  t = mav_tensor_retain(base);
  if (v->transposed) {
    err = mav_tensor_transpose(&w, t, 0, last);
    mav_tensor_release(t);
    if (err) goto done;
    t = w;
  }
  for (int d = 0; d < v->dims; d++) {
    if (!v->pad[d]) continue;
    err = mav_tensor_slice(&w, t, d, (v->pad[d] + 1) / 2, v->shape[d], 1);
    mav_tensor_release(t);
    if (err) goto done;
    t = w;
  }
  *out = t;
  const size_t size = mav_dtype_bytes(v->dtype), bytes = (size_t)mav_tensor_count(base) * size;
  if (plain) {
    err = mav_tensor_write(t, v->data, bytes);
    goto done;
  }
  char *whole = calloc(1, bytes + 1);
  if (!whole) abort();
  const int64_t n = mav_tensor_count(t);
  for (int64_t i = 0; i < n; i++) {
    int64_t at = t->offset, rest = i;
    for (int d = last; d >= 0; d--) {
      at += rest % v->shape[d] * mav_tensor_stride(t, d);
      rest /= v->shape[d];
    }
    memcpy(whole + (size_t)at * size, (const char *)v->data + (size_t)i * size, size);
  }
  err = mav_tensor_write(base, whole, bytes);
  free(whole);
done:
  mav_tensor_release(base);
  return err;
}

static mav_err attach_scale(mav_tensor *t, mav_runtime *rt, const operand *v) {
  mav_tensor *scale;
  mav_err err = mav_tensor_new(&scale, rt, MAV_DTYPE_F32, v->scale_dims, v->scale_shape);
  if (err) return err;
  err = mav_tensor_write(scale, v->scale, (size_t)mav_tensor_count(scale) * sizeof(float));
  if (!err) err = mav_tensor_set_scale(t, scale, v->act, v->in_scale);
  mav_tensor_release(scale);
  return err;
}

/* ---- the cache ---------------------------------------------------------------------------------------------------- */

/* The layer's keys and values, on the host: fetched when first asked for, stored when the op is called. Sides that share a cache share
 * them. */
static void kv_fetch(side *s) {
  const mav__kv_layer *l = &s->kv->layer[LAYER];
  if (s->kv_host[0]) return;
  for (int i = 0; i < 2; i++) {
    mav__buffer *b = i ? l->v : l->k;
    s->kv_host[i] = calloc(1, b->bytes + 1);
    if (!s->kv_host[i]) abort();
    if (mav__buffer_get(b, 0, s->kv_host[i], b->bytes)) memset(s->kv_host[i], 0xff, b->bytes);
  }
}

static mav_err kv_store(side *s) {
  const mav__kv_layer *l = s->kv ? &s->kv->layer[LAYER] : NULL;
  mav_err err = MAV_OK;
  for (int i = 0; i < 2; i++) {
    mav__buffer *b = l ? (i ? l->v : l->k) : NULL;
    if (!err && s->kv_dirty) err = mav__buffer_put(b, 0, s->kv_host[i], b->bytes);
    free(s->kv_host[i]);
    s->kv_host[i] = NULL;
  }
  s->kv_dirty = false;
  return err;
}

/* An element of the cache, and its scale. */
static void *kv_element(const side *constant, int seq, int64_t slot, int which, int64_t head, int64_t c, float *scale) {
  side *s = constant->cache ? constant->cache : (side *)constant;
  const mav__kv_layer *l = &s->kv->layer[LAYER];
  const int64_t size = s->kv->page, C = l->head_dim;
  const int32_t *table = mav__host_read(s->kv->group[l->group].table->buffer);
  const int64_t page = table[s->seq[seq] * s->kv->stride + slot / size];
  int64_t at;
  if (page < 0) return NULL;
  if (which == 0)
    at = ((page * l->kv_heads + head) * C + c) * size + slot % size; /* keys are transposed in a page */
  else
    at = ((page * l->kv_heads + head) * size + slot % size) * C + c;
  *scale = which ? l->v_scale : l->k_scale;
  kv_fetch(s);
  return s->kv_host[which] + (size_t)at * mav_dtype_bytes(s->kv->dtype);
}

float side_kv_get(const side *s, int seq, int64_t slot, int which, int64_t head, int64_t c) {
  float scale;
  void *e = kv_element(s, seq, slot, which, head, c, &scale);
  return e ? mavk_f32_at(e, (int32_t)s->p->kv.dtype, 0) * scale : 0;
}

void side_kv_set(side *s, int seq, int64_t slot, int which, int64_t head, int64_t c, float x) {
  float scale;
  void *e = kv_element(s, seq, slot, which, head, c, &scale);
  if (e) mavk_put_f32(e, (int32_t)s->p->kv.dtype, 0, x / scale);
  (s->cache ? s->cache : s)->kv_dirty = true;
}

static mav_err make_cache(side *s) {
  const cache *c = &s->p->kv;
  mav_err err;
  int64_t tokens = 0, longest = 0;
  for (int i = 0; i < c->sequences; i++) {
    int64_t n = c->length[i] + c->appended[i];
    tokens += n + c->page;
    longest = n > longest ? n : longest;
  }
  int32_t chunk[LAYERS] = {0, c->chunk};
  float k_scale[LAYERS] = {1, c->k_scale}, v_scale[LAYERS] = {1, c->v_scale};
  mav_kv_options o = {.layers = LAYERS,
                      .chunk = chunk,
                      .kv_heads = c->kv_heads,
                      .head_dim = c->head_dim,
                      .dtype = c->dtype,
                      .k_scale = k_scale,
                      .v_scale = v_scale,
                      .tokens = tokens + 4 * c->page,
                      .sequences = SEQUENCES_MAX + 1,
                      .page = c->page,
                      .context_max = longest + 1};
  if ((err = mav_kv_new(&s->kv, s->rt, &o))) return err;
  int shift; /* sequences do not start at page 0 or at number 0 */
  if ((err = mav_kv_sequence_new(s->kv, 0, &shift)) || (err = mav_kv_sequence_reserve(s->kv, shift, 1))) return err;
  int64_t done[SEQUENCES_MAX] = {0};
  for (int i = 0; i < c->sequences; i++)
    if ((err = mav_kv_sequence_new(s->kv, c->key[i], &s->seq[i]))) return err;
  for (bool more = true; more;) { /* by turns, so that their pages mix */
    more = false;
    for (int i = 0; i < c->sequences; i++) {
      int64_t n = c->length[i] - done[i] < c->page ? c->length[i] - done[i] : c->page;
      if (n <= 0) continue;
      if ((err = mav_kv_sequence_reserve(s->kv, s->seq[i], n)) || (err = mav_kv_sequence_commit(s->kv, s->seq[i], n))) return err;
      done[i] += n;
      more = true;
    }
  }
  for (int i = 0; i < c->sequences; i++) {
    if ((err = mav_kv_sequence_reserve(s->kv, s->seq[i], c->appended[i]))) return err;
    rng r = {c->seed + (uint64_t)i};
    for (int64_t slot = 0; slot < c->length[i] + c->appended[i]; slot++)
      for (int64_t h = 0; h < c->kv_heads; h++)
        for (int64_t k = 0; k < c->head_dim; k++)
          for (int which = 0; which < 2; which++)
            side_kv_set(s, i, slot, which, h, k, (float)((rng_uniform(&r) + rng_uniform(&r) - 1) * 2.5));
  }
  return MAV_OK;
}

/* ---- the side ----------------------------------------------------------------------------------------------------- */

static mav_err make_table(mav_rows **out, side *s, const token *row, int64_t count) {
  mav_err err = mav_rows_new(out, s->rt, count);
  for (int64_t i = 0; i < count && !err; i++) {
    const token *w = &row[i];
    if (w->seq >= 0) err = mav_rows_set(*out, i, w->id, s->kv ? s->seq[w->seq] : w->seq, w->pos, w->parent, w->slot);
  }
  return err;
}

static mav_err make_rows(side *s) {
  const plan *p = s->p;
  mav_rows *table = NULL;
  mav_err err = p->rows ? make_table(&table, s, p->row, p->first + p->rows) : MAV_OK;
  if (!err && p->rows && p->first > 0)
    err = mav_rows_slice(&s->rows, table, p->first, p->rows);
  else if (table)
    s->rows = mav_rows_retain(table);
  if (!err && p->next_is_rows)
    s->next = mav_rows_retain(table);
  else if (!err && p->next_rows)
    err = make_table(&s->next, s, p->next, p->next_rows);
  if (table) mav_rows_release(table);
  return err;
}

token side_next(const side *s, int64_t i) {
  const mavk_rows k = mav__rows_host(s->next);
  return (token){k.id[i], k.seq[i], k.pos[i], k.slot[i], k.parent[i]};
}

mav_err side_bind(side *s, mav_runtime *rt, const plan *p, side *kv) {
  mav_err err = MAV_OK;
  *s = (side){.rt = rt, .p = p};
  if (p->kv.given && kv) {
    s->kv = mav_kv_retain(kv->kv);
    s->cache = kv->cache ? kv->cache : kv;
    memcpy(s->seq, kv->seq, sizeof s->seq);
  } else if (p->kv.given && (err = make_cache(s))) {
    return err;
  }
  if ((err = make_rows(s))) return err;
  if (p->comm && (err = mav_comm_self(&s->comm, rt))) return err;
  for (int i = 0; i < p->desc->args && !err; i++) {
    const operand *v = &p->v[i];
    mav_arg *a = &s->args[i];
    switch (p->desc->arg[i].kind) {
      case MAV_ARG_ROWS:
        *a = (mav_arg){.given = true, .rows = s->rows};
        break;
      case MAV_ARG_ROWS_OUT:
        *a = (mav_arg){.given = true, .rows = s->next};
        break;
      case MAV_ARG_KV:
        *a = (mav_arg){.given = true, .kv = {s->kv, LAYER}};
        break;
      case MAV_ARG_COMM:
        *a = (mav_arg){.given = s->comm != NULL, .comm = s->comm};
        break;
      case MAV_ARG_NUM:
      case MAV_ARG_INT:
      case MAV_ARG_DTYPE:
        *a = (mav_arg){.given = v->given, .number = v->number};
        break;
      case MAV_ARG_OUT:
        break;
      default:
        if (!v->given) break;
        err = make_tensor(&a->tensor, rt, v);
        a->given = !err;
        if (!err && v->scale) err = attach_scale(a->tensor, rt, v);
        if (!err && v->shuffled) {
          mav_tensor *rows = a->tensor;
          err = mav_tensor_shuffle(&a->tensor, rows);
          mav_tensor_release(rows);
        }
    }
  }
  return err;
}

mav_err side_call(side *s) {
  mav_err err = kv_store(s->cache ? s->cache : s);
  s->began = mav_now_ns();
  if (!err) err = mav_op_call(s->rt, s->p->op, s->args);
  s->ended = mav_now_ns();
  return err;
}

void side_free(side *s) {
  for (int i = 0; s->p && i < s->p->desc->args; i++) {
    mav_arg_kind k = s->p->desc->arg[i].kind;
    if (k == MAV_ARG_IN || k == MAV_ARG_INDEX || k == MAV_ARG_MUT || k == MAV_ARG_WEIGHT || k == MAV_ARG_OUT)
      mav_tensor_release(s->args[i].tensor);
    free(s->host[i]);
  }
  for (int i = 0; i < 2; i++) free(s->kv_host[i]);
  if (s->comm) mav_comm_release(s->comm);
  if (s->rows) mav_rows_release(s->rows);
  if (s->next) mav_rows_release(s->next);
  if (s->kv) mav_kv_release(s->kv);
  *s = (side){0};
}

const void *side_data(side *s, int i) {
  mav_tensor *t = s->args[i].tensor;
  void *data = NULL;
  if (mav_tensor_data(t, &data) == MAV_OK) return data;
  const size_t bytes = (size_t)mav_tensor_count(t) * mav_dtype_bytes(mav_tensor_dtype(t));
  if (!s->host[i] && !(s->host[i] = malloc(bytes + 1))) abort();
  if (mav_tensor_read(t, s->host[i], bytes)) memset(s->host[i], 0xff, bytes);
  return s->host[i];
}
