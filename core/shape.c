/* core/shape.c - the shape language of ops.def. Refuses: letters that disagree, ranks that do not fit, overflow. */
#include "shape.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

void mav__shapes_init(mav__shapes *s, const mav_op_desc *desc, mav_diag *diag) {
  *s = (mav__shapes){.desc = desc, .diag = diag, .star_dims = -1};
}

mav_err mav__shapes_bind(mav__shapes *s, char letter, int64_t value, const char *arg) {
  int i = letter - 'A';
  if (!s->from[i]) {
    s->letter[i] = value;
    s->from[i] = arg;
    return MAV_OK;
  }
  if (s->letter[i] == value) return MAV_OK;
  return MAV_FAIL(s->diag, SHAPE, s->desc->name, "%s has %c = %lld, but %s has %c = %lld", arg, letter, (long long)value, s->from[i], letter,
                  (long long)s->letter[i]);
}

static const mav_arg *named(const mav__shapes *s, const char *name, size_t n, const mav_arg *args) {
  for (int i = 0; i < s->desc->args; i++)
    if (strlen(s->desc->arg[i].name) == n && !memcmp(s->desc->arg[i].name, name, n)) return &args[i];
  return NULL;
}

static mav_err mismatch(mav__shapes *s, const mav_arg_desc *arg, const mav_tensor *t) {
  char text[96];
  return MAV_FAIL(s->diag, SHAPE, s->desc->name, "%s has shape %s; expected (%s)", arg->name,
                  mav__shape_text(text, sizeof text, t->dims, t->shape), arg->shape);
}

static bool same_shape(const mav_tensor *a, const mav_tensor *b) {
  return a->dims == b->dims && !memcmp(a->shape, b->shape, sizeof(int64_t) * (size_t)a->dims);
}

mav_err mav__shapes_match(mav__shapes *s, const mav_arg_desc *arg, const mav_tensor *t, const mav_arg *args) {
  const char *p = arg->shape;
  if (*p == '=') {
    const mav_arg *other = named(s, p + 1, strlen(p + 1), args);
    char a[96], b[96];
    if (same_shape(other->tensor, t)) return MAV_OK;
    return MAV_FAIL(s->diag, SHAPE, s->desc->name, "%s has shape %s, but %s has %s", arg->name,
                    mav__shape_text(a, sizeof a, t->dims, t->shape), p + 1,
                    mav__shape_text(b, sizeof b, other->tensor->dims, other->tensor->shape));
  }
  int tokens = 0;
  for (const char *c = p; *c; c++) tokens += *c != ' ' && *c != '*';
  int d = 0;
  if (*p == '*') {
    int lead = t->dims - tokens;
    if (lead < 0) return mismatch(s, arg, t);
    if (s->star_dims < 0) {
      s->star_dims = lead;
      memcpy(s->star, t->shape, sizeof s->star);
    }
    d = lead;
    p++;
  } else if (t->dims != tokens) {
    return mismatch(s, arg, t);
  }
  for (; *p; p++)
    if (*p != ' ') MAV_TRY(mav__shapes_bind(s, *p, t->shape[d++], arg->name));
  return MAV_OK;
}

/* One factor: a letter, a number or the name of an integer argument. */
static mav_err factor(mav__shapes *s, const char **p, const mav_arg *args, int64_t *out) {
  if (isdigit((unsigned char)**p)) {
    *out = strtoll(*p, (char **)(uintptr_t)p, 10);
    return MAV_OK;
  }
  const char *start = *p;
  while (isalnum((unsigned char)**p) || **p == '_') (*p)++;
  if (*p - start == 1 && isupper((unsigned char)*start)) {
    *out = mav__shapes_get(s, *start);
    return MAV_OK;
  }
  const mav_arg *a = named(s, start, (size_t)(*p - start), args);
  if (!a) return MAV_FAIL(s->diag, INVALID, s->desc->name, "ops.def: bad result shape near \"%s\"", start);
  *out = a->given ? (int64_t)a->number : (int64_t)s->desc->arg[a - args].value;
  return MAV_OK;
}

static mav_err sum(mav__shapes *s, const char **p, const mav_arg *args, int64_t *out) {
  *out = 0;
  for (;;) {
    int64_t term;
    MAV_TRY(factor(s, p, args, &term));
    while (**p == '*') {
      int64_t f;
      (*p)++;
      MAV_TRY(factor(s, p, args, &f));
      if (__builtin_mul_overflow(term, f, &term)) return MAV_FAIL(s->diag, SHAPE, s->desc->name, "the result would be too large");
    }
    if (__builtin_add_overflow(*out, term, out)) return MAV_FAIL(s->diag, SHAPE, s->desc->name, "the result would be too large");
    if (**p != '+') return MAV_OK;
    (*p)++;
  }
}

static mav_err broadcast(mav__shapes *s, const mav_tensor *a, const mav_tensor *b, int *dims, int64_t *shape) {
  char ta[96], tb[96];
  *dims = a->dims > b->dims ? a->dims : b->dims;
  for (int i = 1; i <= *dims; i++) {
    int64_t na = i <= a->dims ? a->shape[a->dims - i] : 1, nb = i <= b->dims ? b->shape[b->dims - i] : 1;
    if (na != nb && na != 1 && nb != 1)
      return MAV_FAIL(s->diag, SHAPE, s->desc->name, "shapes %s and %s do not broadcast", mav__shape_text(ta, sizeof ta, a->dims, a->shape),
                      mav__shape_text(tb, sizeof tb, b->dims, b->shape));
    shape[*dims - i] = na == 1 ? nb : na;
  }
  return MAV_OK;
}

mav_err mav__shapes_result(mav__shapes *s, const mav_arg_desc *arg, const mav_arg *args, int *dims, int64_t *shape) {
  const char *p = arg->shape, *bar = strchr(p, '|');
  if (bar) {
    const mav_arg *a = named(s, p, (size_t)(bar - p), args), *b = named(s, bar + 1, strlen(bar + 1), args);
    return broadcast(s, a->tensor, b->tensor, dims, shape);
  }
  if (*p == '=') {
    const mav_tensor *t = named(s, p + 1, strlen(p + 1), args)->tensor;
    *dims = t->dims;
    memcpy(shape, t->shape, sizeof t->shape);
    return MAV_OK;
  }
  *dims = 0;
  if (*p == '*') {
    *dims = s->star_dims;
    memcpy(shape, s->star, sizeof s->star);
    p++;
  }
  while (*p) {
    if (*p == ' ') {
      p++;
      continue;
    }
    if (*dims == MAV_DIMS_MAX) return MAV_FAIL(s->diag, SHAPE, s->desc->name, "the result would have too many dimensions");
    MAV_TRY(sum(s, &p, args, &shape[(*dims)++]));
  }
  return MAV_OK;
}
