/* tests/kernels/checkops_pick.c - which arguments of a plan go by row, a plan of some of its rows, and a plan in words. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkops.h"

bool plan_is_by_row(const plan *p, int i) {
  const mav_arg_desc *d = &p->desc->arg[i];
  if (!d->shape || d->kind == MAV_ARG_WEIGHT || d->kind == MAV_ARG_MUT) return false;
  if (plan_is(p, "gather")) return *d->shape == 'I';
  return *d->shape == 'T' || *d->shape == '*' || *d->shape == '=' || strchr(d->shape, '|');
}

int64_t plan_row_count(const plan *p) {
  if (plan_is(p, "stack mark_seen count_distinct") || plan_is(p, PLAN_TREES)) return 0;
  if (p->rows) return p->rows;
  const operand *a = &p->v[0];
  for (int i = 0; i < p->desc->args; i++)
    if (p->v[i].data && plan_is_by_row(p, i)) {
      a = &p->v[i];
      break;
    }
  if (plan_broadcasts(p)) { /* broadcasting mixes rows: only where it does not happen */
    const operand *b = &p->v[1];
    if (a->dims != b->dims || memcmp(a->shape, b->shape, sizeof *a->shape * (size_t)a->dims)) return 0;
  }
  return a->dims > (p->desc->arg[0].shape[0] == '*' && p->desc->arg[0].shape[1] ? 1 : 0) ? a->shape[0] : 0;
}

void plan_pick(plan *to, const plan *from, const int64_t *rows, int64_t count) {
  *to = *from;
  for (int i = 0; i < from->desc->args; i++) {
    const operand *a = &from->v[i];
    operand *b = &to->v[i];
    if (a->scale) { /* both own theirs */
      int64_t n = (a->scale_dims > 0 ? a->scale_shape[0] : 1) * (a->scale_dims > 1 ? a->scale_shape[1] : 1);
      b->scale = malloc((size_t)n * sizeof *b->scale);
      if (!b->scale) abort();
      memcpy(b->scale, a->scale, (size_t)n * sizeof *b->scale);
    }
    if (!a->data) continue;
    const bool pick = plan_is_by_row(from, i);
    const int64_t total = operand_count(a), each = pick ? total / a->shape[0] : total;
    const size_t size = mav_dtype_bytes(a->dtype) * (size_t)each;
    if (pick) b->shape[0] = count;
    b->data = malloc(size * (size_t)(pick ? count : 1) + 1);
    if (!b->data) abort();
    for (int64_t k = 0; k < (pick ? count : 1); k++)
      memcpy((char *)b->data + size * (size_t)k, (char *)a->data + size * (size_t)(pick ? rows[k] : 0), size);
  }
  if (!from->rows) return;
  to->rows = count;
  for (int64_t k = 0; k < count; k++) { /* what lies before the batch stays */
    token *w = &to->row[from->first + k];
    *w = from->row[from->first + rows[k]];
    for (int64_t u = 0; u < k; u++)
      if (from->first + rows[u] == from->row[from->first + rows[k]].parent) w->parent = (int32_t)(from->first + u);
  }
}

const char *plan_text(const plan *p, char *out, size_t bytes) {
  static const char *const acts[] = {"", " static", " dynamic"};
  size_t n = 0;
  out[0] = 0;
#define ADD(...) n += n < bytes ? (size_t)snprintf(out + n, bytes - n, __VA_ARGS__) : 0
  for (int i = 0; i < p->desc->args; i++) {
    const operand *v = &p->v[i];
    if (v->data) {
      ADD("%s %s(", p->desc->arg[i].name, mav_dtype_name(v->dtype));
      for (int d = 0; d < v->dims; d++) ADD(d ? ",%lld" : "%lld", (long long)v->shape[d]);
      ADD(")%s%s", v->transposed ? "^T" : "", v->pad[0] || v->pad[1] ? "+" : "");
      if (v->scale) ADD("/scale%dd%s", v->scale_dims, acts[v->act]);
      ADD(" ");
    } else if (v->given && p->desc->arg[i].kind >= MAV_ARG_NUM && p->desc->arg[i].kind <= MAV_ARG_DTYPE) {
      ADD("%s=%g ", p->desc->arg[i].name, v->number);
    }
  }
  if (p->rows) ADD(p->first ? "rows=%lld from %lld " : "rows=%lld ", (long long)p->rows, (long long)p->first);
  if (p->next_rows) ADD("next=%lld%s ", (long long)p->next_rows, p->next_is_rows ? ", the same" : "");
  if (p->kv.given) {
    ADD("kv %s H=%lld K=%d C=%d page=%d chunk=%d contexts", mav_dtype_name(p->kv.dtype), (long long)p->letter['H' - 'A'], p->kv.kv_heads,
        p->kv.head_dim, p->kv.page, p->kv.chunk);
    for (int s = 0; s < p->kv.sequences; s++) ADD(" %lld", (long long)p->kv.length[s]);
  }
#undef ADD
  return out;
}
