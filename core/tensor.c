/* core/tensor.c - tensors: views (dtype, shape, stride, offset) on buffers. Copies and conversions are in tensor_copy.c.
 * Invariant: every element a view can name lies inside its buffer (checked where views are made). */
#include "tensor.h"

#include <stdio.h>
#include <string.h>

static const struct {
  const char *name, *alias[4];
  size_t bytes;
} dtypes[MAV_DTYPE_COUNT] = {
    [MAV_DTYPE_F32] = {"f32", {"float32", "F32"}, 4},   [MAV_DTYPE_BF16] = {"bf16", {"bfloat16", "BF16"}, 2},
    [MAV_DTYPE_F16] = {"f16", {"float16", "F16"}, 2},   [MAV_DTYPE_F8] = {"f8", {"fp8", "e4m3", "F8_E4M3", "float8_e4m3fn"}, 1},
    [MAV_DTYPE_I32] = {"i32", {"int32", "I32"}, 4},     [MAV_DTYPE_I64] = {"i64", {"int64", "I64"}, 8},
    [MAV_DTYPE_U8] = {"u8", {"uint8", "U8"}, 1},
};

const char *mav_dtype_name(mav_dtype t) { return (unsigned)t < MAV_DTYPE_COUNT ? dtypes[t].name : "?"; }
size_t mav_dtype_bytes(mav_dtype t) { return (unsigned)t < MAV_DTYPE_COUNT ? dtypes[t].bytes : 0; }

bool mav_dtype_parse(const char *name, mav_dtype *out) {
  for (int t = 0; t < MAV_DTYPE_COUNT; t++) {
    bool hit = !strcmp(name, dtypes[t].name);
    for (int i = 0; i < 4 && dtypes[t].alias[i]; i++) hit |= !strcmp(name, dtypes[t].alias[i]);
    if (hit) {
      *out = (mav_dtype)t;
      return true;
    }
  }
  return false;
}

const char *mav__shape_text(char *out, size_t bytes, int dims, const int64_t *shape) {
  size_t n = (size_t)snprintf(out, bytes, "(");
  for (int i = 0; i < dims && n < bytes; i++) n += (size_t)snprintf(out + n, bytes - n, i ? ", %lld" : "%lld", (long long)shape[i]);
  if (n < bytes) snprintf(out + n, bytes - n, ")");
  return out;
}

mav_err mav__shape_bytes(mav_runtime *rt, const char *op, mav_dtype dtype, int dims, const int64_t *shape, size_t *out) {
  if ((unsigned)dtype >= MAV_DTYPE_COUNT) return MAV_RT_FAIL(rt, DTYPE, op, "no dtype has the number %d", (int)dtype);
  if (dims < 0 || dims > MAV_DIMS_MAX)
    return MAV_RT_FAIL(rt, SHAPE, op, "%d dimensions; a tensor has 0 to %d", dims, MAV_DIMS_MAX);
  int64_t bytes = (int64_t)mav_dtype_bytes(dtype);
  char text[96];
  for (int i = 0; i < dims; i++)
    if (shape[i] < 0 || __builtin_mul_overflow(bytes, shape[i] ? shape[i] : 1, &bytes))
      return MAV_RT_FAIL(rt, SHAPE, op, "shape %s is %s", mav__shape_text(text, sizeof text, dims, shape),
                         shape[i] < 0 ? "negative" : "too large");
  for (int i = 0; i < dims; i++)
    if (!shape[i]) bytes = 0;
  *out = (size_t)bytes;
  return MAV_OK;
}

mav_err mav__tensor_on(mav_tensor **out, mav__buffer *buffer, mav_dtype dtype, int dims, const int64_t *shape) {
  mav_tensor *t = mav__alloc(sizeof *t);
  if (!t) return MAV_RT_NOMEM(buffer->rt, "tensor");
  *t = (mav_tensor){.refs = 1, .buffer = buffer, .dtype = dtype, .dims = dims};
  int64_t stride = 1;
  for (int i = dims - 1; i >= 0; i--) {
    t->shape[i] = shape[i];
    t->stride[i] = stride;
    stride *= shape[i];
  }
  buffer->refs++;
  *out = t;
  return MAV_OK;
}

mav_err mav_tensor_new(mav_tensor **out, mav_runtime *rt, mav_dtype dtype, int dims, const int64_t *shape) {
  size_t bytes;
  mav__buffer *b;
  *out = NULL;
  MAV_TRY(mav__shape_bytes(rt, "tensor_new", dtype, dims, shape, &bytes));
  MAV_TRY(mav__buffer_new(&b, rt, MAV__BUFFER_OWNED, bytes, true, "tensor_new"));
  mav_err err = mav__tensor_on(out, b, dtype, dims, shape);
  mav__buffer_release(b);
  return err;
}

/* A copy of somebody else's memory on the device. */
static mav_err upload(mav__buffer **out, mav_runtime *rt, const void *data, size_t bytes) {
  MAV_TRY(mav__buffer_new(out, rt, MAV__BUFFER_OWNED, bytes, false, "tensor"));
  mav_err err = mav__buffer_put(*out, 0, data, bytes);
  if (err) {
    mav__buffer_release(*out);
    *out = NULL;
  }
  return err;
}

mav_err mav__tensor_foreign(mav_tensor **out, mav_runtime *rt, mav_dtype dtype, int dims, const int64_t *shape, const void *data,
                            void (*release)(void *), void *owner) {
  size_t bytes;
  mav__buffer *b = NULL;
  const bool copied = rt->backend->is_device;
  *out = NULL;
  mav_err err = mav__shape_bytes(rt, "tensor", dtype, dims, shape, &bytes);
  if (!err && copied) err = upload(&b, rt, data, bytes);
  if (!err && !copied) err = mav__buffer_new(&b, rt, MAV__BUFFER_FOREIGN, bytes, false, "tensor");
  if ((err || copied) && release) release(owner);
  if (err) return err;
  b->read_only = true;
  if (!copied) {
    b->data = (void *)(uintptr_t)data;
    b->release = release;
    b->owner = owner;
  }
  err = mav__tensor_on(out, b, dtype, dims, shape);
  mav__buffer_release(b);
  return err;
}

mav_err mav_tensor_wrap(mav_tensor **out, mav_runtime *rt, mav_dtype dtype, int dims, const int64_t *shape, void *data) {
  *out = NULL;
  if (rt->backend->is_device)
    return MAV_RT_FAIL(rt, UNSUPPORTED, "tensor_wrap", "%s does not reach the host's memory; write to a tensor instead", rt->backend->name);
  MAV_TRY(mav__tensor_foreign(out, rt, dtype, dims, shape, data, NULL, NULL));
  (*out)->buffer->read_only = false;
  return MAV_OK;
}

mav_tensor *mav_tensor_retain(mav_tensor *t) {
  t->refs++;
  return t;
}

void mav_tensor_release(mav_tensor *t) {
  if (!t || --t->refs) return;
  mav__buffer_release(t->buffer);
  mav_tensor_release(t->scale);
  mav__free(t);
}

mav_runtime *mav_tensor_runtime(const mav_tensor *t) { return t->buffer->rt; }
mav_dtype mav_tensor_dtype(const mav_tensor *t) { return t->dtype; }
int mav_tensor_dims(const mav_tensor *t) { return t->dims; }
int64_t mav_tensor_size(const mav_tensor *t, int dim) { return dim >= 0 && dim < t->dims ? t->shape[dim] : 0; }
int64_t mav_tensor_stride(const mav_tensor *t, int dim) { return dim >= 0 && dim < t->dims ? t->stride[dim] : 0; }
bool mav_tensor_is_planned(const mav_tensor *t) { return t->buffer->kind == MAV__BUFFER_PLANNED; }
mav_tensor *mav_tensor_scale(const mav_tensor *t) { return t->scale; }

int64_t mav_tensor_count(const mav_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i < t->dims; i++) n *= t->shape[i];
  return n;
}

bool mav_tensor_is_contiguous(const mav_tensor *t) {
  int64_t stride = 1;
  for (int i = t->dims - 1; i >= 0; i--) {
    if (t->shape[i] != 1 && t->stride[i] != stride) return false;
    stride *= t->shape[i];
  }
  return true;
}

void *mav__tensor_pointer(const mav_tensor *t) {
  char *p = t->buffer->data;
  return p ? p + t->offset * (int64_t)mav_dtype_bytes(t->dtype) : NULL;
}

mavk_array mav__tensor_array(const mav_tensor *t) {
  mavk_array a = {.p = mav__tensor_pointer(t), .dtype = (int32_t)t->dtype, .nd = t->dims};
  memcpy(a.n, t->shape, sizeof a.n);
  memcpy(a.s, t->stride, sizeof a.s);
  return a;
}

/* A copy of the view t on the same buffer, to be narrowed by the caller. */
static mav_err view(mav_tensor **out, mav_tensor *t) {
  mav_tensor *v = mav__alloc(sizeof *v);
  if (!v) return MAV_RT_NOMEM(t->buffer->rt, "tensor");
  *v = *t;
  v->refs = 1;
  v->buffer->refs++;
  if (v->scale) v->scale->refs++;
  *out = v;
  return MAV_OK;
}

static void drop_scale(mav_tensor *v) {
  mav_tensor_release(v->scale);
  v->scale = NULL;
}

/* Narrows the scale of a weight view whose output rows or experts were sliced; other views lose it. */
static mav_err slice_scale(mav_tensor *v, int dim, int64_t first, int64_t step) {
  if (!v->scale) return MAV_OK;
  int64_t which = dim == v->dims - 2 ? 1 : dim == v->dims - 3 ? 0 : -1;
  if (which < 0) return MAV_OK; /* columns share their row's scale */
  mav_tensor *s;
  MAV_TRY(view(&s, v->scale));
  s->offset += first * v->scale_s[which];
  v->scale_s[which] *= step;
  drop_scale(v);
  v->scale = s;
  return MAV_OK;
}

mav_err mav_tensor_slice(mav_tensor **out, mav_tensor *t, int dim, int64_t first, int64_t count, int64_t step) {
  mav_runtime *rt = t->buffer->rt;
  *out = NULL;
  if (dim < 0 || dim >= t->dims) return MAV_RT_FAIL(rt, RANGE, "tensor_slice", "dimension %d of a tensor with %d", dim, t->dims);
  int64_t n = t->shape[dim];
  if (step < 1 || count < 0 || first < 0 || first > n || (count > 0 && (count - 1 > (n - 1 - first) / step)))
    return MAV_RT_FAIL(rt, RANGE, "tensor_slice", "%lld elements from %lld by %lld do not fit in a dimension of %lld", (long long)count,
                       (long long)first, (long long)step, (long long)n);
  if (t->layout != MAVK_LAYOUT_ROWS && dim != t->dims - 3 && (dim != 0 || first % 16 || count % 16 || step != 1))
    return MAV_RT_FAIL(rt, INVALID, "tensor_slice", "a shuffled weight can be cut by experts, and a matrix by blocks of 16 rows");
  mav_tensor *v;
  MAV_TRY(view(&v, t));
  mav_err err = slice_scale(v, dim, first, step);
  if (err) {
    mav_tensor_release(v);
    return err;
  }
  v->shape[dim] = count;
  v->offset += first * v->stride[dim];
  v->stride[dim] *= step;
  *out = v;
  return MAV_OK;
}

mav_err mav_tensor_select(mav_tensor **out, mav_tensor *t, int dim, int64_t index) {
  mav_tensor *v;
  *out = NULL;
  if (dim != t->dims - 3) MAV_TRY(mav__tensor_rows(t, "tensor_select"));
  MAV_TRY(mav_tensor_slice(&v, t, dim, index, 1, 1));
  if (v->scale && dim != v->dims - 3) drop_scale(v); /* only selecting an expert leaves a weight */
  for (int i = dim; i + 1 < v->dims; i++) {
    v->shape[i] = v->shape[i + 1];
    v->stride[i] = v->stride[i + 1];
  }
  v->dims--;
  *out = v;
  return MAV_OK;
}

mav_err mav_tensor_transpose(mav_tensor **out, mav_tensor *t, int a, int b) {
  *out = NULL;
  MAV_TRY(mav__tensor_rows(t, "tensor_transpose"));
  if (a < 0 || b < 0 || a >= t->dims || b >= t->dims)
    return MAV_RT_FAIL(t->buffer->rt, RANGE, "tensor_transpose", "dimensions %d and %d of a tensor with %d", a, b, t->dims);
  mav_tensor *v;
  MAV_TRY(view(&v, t));
  drop_scale(v);
  v->shape[a] = t->shape[b];
  v->stride[a] = t->stride[b];
  v->shape[b] = t->shape[a];
  v->stride[b] = t->stride[a];
  *out = v;
  return MAV_OK;
}

mav_err mav_tensor_reshape(mav_tensor **out, mav_tensor *t, int dims, const int64_t *shape) {
  mav_runtime *rt = t->buffer->rt;
  size_t bytes;
  char from[96], to[96];
  *out = NULL;
  MAV_TRY(mav__tensor_rows(t, "tensor_reshape"));
  MAV_TRY(mav__shape_bytes(rt, "tensor_reshape", t->dtype, dims, shape, &bytes));
  if (!mav_tensor_is_contiguous(t))
    return MAV_RT_FAIL(rt, INVALID, "tensor_reshape", "the tensor is not contiguous; copy it first (op cast)");
  if (bytes != (size_t)mav_tensor_count(t) * mav_dtype_bytes(t->dtype))
    return MAV_RT_FAIL(rt, SHAPE, "tensor_reshape", "%s has not as many elements as %s", mav__shape_text(to, sizeof to, dims, shape),
                       mav__shape_text(from, sizeof from, t->dims, t->shape));
  mav_err err = mav__tensor_on(out, t->buffer, t->dtype, dims, shape);
  if (!err) (*out)->offset = t->offset;
  return err;
}

mav_err mav_tensor_set_scale(mav_tensor *t, mav_tensor *scale, mav_act act, float in_scale) {
  mav_runtime *rt = t->buffer->rt;
  char text[96];
  if (t->dims < 2) return MAV_RT_FAIL(rt, SHAPE, "tensor_set_scale", "only weights (N, D) and (E, N, D) have a scale");
  if (scale->buffer->rt != rt) return MAV_RT_FAIL(rt, INVALID, "tensor_set_scale", "the scale belongs to another runtime");
  if (scale->dtype != MAV_DTYPE_F32 || scale->dims > 2)
    return MAV_RT_FAIL(rt, DTYPE, "tensor_set_scale", "a scale is f32 with at most 2 dimensions");
  int64_t n = t->shape[t->dims - 2], e = t->dims == 3 ? t->shape[0] : 1;
  int64_t count = mav_tensor_count(scale), s0, s1;
  int64_t last = scale->dims ? scale->stride[scale->dims - 1] : 0;
  if (count == 1) s0 = s1 = 0;
  else if (scale->dims == 1 && count == n) s0 = 0, s1 = last;
  else if (scale->dims == 1 && count == e) s0 = last, s1 = 0;
  else if (scale->dims == 2 && scale->shape[0] == e && scale->shape[1] == n) s0 = scale->stride[0], s1 = scale->stride[1];
  else
    return MAV_RT_FAIL(rt, SHAPE, "tensor_set_scale", "scale %s does not fit a weight with E = %lld, N = %lld",
                       mav__shape_text(text, sizeof text, scale->dims, scale->shape), (long long)e, (long long)n);
  if (act == MAV_ACT_STATIC && !(in_scale > 0)) return MAV_RT_FAIL(rt, RANGE, "tensor_set_scale", "in_scale must be above 0");
  mav_tensor_release(t->scale);
  t->scale = mav_tensor_retain(scale);
  t->scale_s[0] = s0;
  t->scale_s[1] = s1;
  t->act = act;
  t->in_scale = in_scale;
  return MAV_OK;
}
