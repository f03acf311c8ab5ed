/* core/tensor_copy.c - what moves values in and out of tensors: raw bytes, single elements, copies, quantization. */
#include <string.h>

#include "../kernels/numeric.h"
#include "tensor.h"

mav_err mav__tensor_readable(mav_tensor *t, const char *op) {
  if (t->buffer->kind == MAV__BUFFER_PLANNED)
    return MAV_RT_FAIL(t->buffer->rt, STATE, op, "the tensor belongs to a graph's plan and was not kept: return it from the capture, or mark it with keep");
  return mav__tensor_rows(t, op);
}

static mav_err writable(mav_tensor *t, const char *op) {
  MAV_TRY(mav__tensor_readable(t, op));
  if (t->buffer->read_only) return MAV_RT_FAIL(t->buffer->rt, INVALID, op, "the tensor is read only (mapped from a file)");
  return MAV_OK;
}

static mav_err raw(mav_tensor *t, const char *op, size_t bytes) {
  mav_runtime *rt = t->buffer->rt;
  size_t have = (size_t)mav_tensor_count(t) * mav_dtype_bytes(t->dtype);
  if (!mav_tensor_is_contiguous(t)) return MAV_RT_FAIL(rt, INVALID, op, "the tensor is a strided view; make it contiguous first");
  if (bytes != have) return MAV_RT_FAIL(rt, SHAPE, op, "%zu bytes for a tensor of %zu", bytes, have);
  return MAV_OK;
}

static size_t first_byte(const mav_tensor *t) { return (size_t)t->offset * mav_dtype_bytes(t->dtype); }

mav_err mav_tensor_read(mav_tensor *t, void *dst, size_t bytes) {
  MAV_TRY(mav__tensor_readable(t, "tensor_read"));
  MAV_TRY(raw(t, "tensor_read", bytes));
  return mav__buffer_get(t->buffer, first_byte(t), dst, bytes);
}

mav_err mav_tensor_write(mav_tensor *t, const void *src, size_t bytes) {
  MAV_TRY(writable(t, "tensor_write"));
  MAV_TRY(raw(t, "tensor_write", bytes));
  return mav__buffer_put(t->buffer, first_byte(t), src, bytes);
}

mav_err mav_tensor_data(mav_tensor *t, void **out) {
  MAV_TRY(mav__tensor_readable(t, "tensor_data"));
  if (!mav_tensor_is_contiguous(t)) return MAV_RT_FAIL(t->buffer->rt, INVALID, "tensor_data", "the tensor is a strided view");
  if (t->buffer->on_device)
    return MAV_RT_FAIL(t->buffer->rt, UNSUPPORTED, "tensor_data", "the tensor lies in the device's memory; read and write it by copies");
  *out = mav__tensor_pointer(t);
  return MAV_OK;
}

/* Where a flat, row-major element lies in the buffer. */
static mav_err element(mav_tensor *t, const char *op, int64_t index, size_t *out) {
  if (index < 0 || index >= mav_tensor_count(t))
    return MAV_RT_FAIL(t->buffer->rt, RANGE, op, "element %lld of %lld", (long long)index, (long long)mav_tensor_count(t));
  int64_t at = 0;
  for (int i = t->dims - 1; i >= 0; i--) {
    at += index % t->shape[i] * t->stride[i];
    index /= t->shape[i];
  }
  *out = (size_t)(t->offset + at) * mav_dtype_bytes(t->dtype);
  return MAV_OK;
}

double mav_dtype_value(mav_dtype t, const void *p, int64_t i) {
  switch (t) {
    case MAV_DTYPE_I32: return ((const int32_t *)p)[i];
    case MAV_DTYPE_I64: return (double)((const int64_t *)p)[i];
    case MAV_DTYPE_U8: return ((const uint8_t *)p)[i];
    default: return (double)mavk_f32_at(p, (int32_t)t, i);
  }
}

void mav_dtype_put(mav_dtype t, void *p, int64_t i, double value) {
  switch (t) {
    case MAV_DTYPE_I32: ((int32_t *)p)[i] = (int32_t)value; break;
    case MAV_DTYPE_I64: ((int64_t *)p)[i] = (int64_t)value; break;
    case MAV_DTYPE_U8: ((uint8_t *)p)[i] = (uint8_t)value; break;
    default: mavk_put_f32(p, (int32_t)t, i, (float)value);
  }
}

mav_err mav_tensor_get(mav_tensor *t, int64_t index, double *out) {
  size_t at;
  int64_t x;
  MAV_TRY(mav__tensor_readable(t, "tensor_get"));
  MAV_TRY(element(t, "tensor_get", index, &at));
  MAV_TRY(mav__buffer_get(t->buffer, at, &x, mav_dtype_bytes(t->dtype)));
  *out = mav_dtype_value(t->dtype, &x, 0);
  return MAV_OK;
}

mav_err mav_tensor_set(mav_tensor *t, int64_t index, double value) {
  static const double low[] = {[MAV_DTYPE_I32] = -0x1p31, [MAV_DTYPE_I64] = -0x1p63, [MAV_DTYPE_U8] = 0};
  static const double high[] = {[MAV_DTYPE_I32] = 0x1p31, [MAV_DTYPE_I64] = 0x1p63, [MAV_DTYPE_U8] = 256};
  size_t at;
  int64_t x;
  MAV_TRY(writable(t, "tensor_set"));
  MAV_TRY(element(t, "tensor_set", index, &at));
  if (t->dtype >= MAV_DTYPE_I32 && !(value >= low[t->dtype] && value < high[t->dtype]))
    return MAV_RT_FAIL(t->buffer->rt, RANGE, "tensor_set", "%g does not fit in %s", value, mav_dtype_name(t->dtype));
  mav_dtype_put(t->dtype, &x, 0, value);
  return mav__buffer_put(t->buffer, at, &x, mav_dtype_bytes(t->dtype));
}

/* Through the host: bytes, as the kernels of neither side reach the other's memory. */
static mav_err copy_across(mav_tensor *dst, mav_tensor *src) {
  mav_runtime *rt = dst->buffer->rt;
  if (dst->dtype != src->dtype || !mav_tensor_is_contiguous(dst) || !mav_tensor_is_contiguous(src))
    return MAV_RT_FAIL(rt, INVALID, "tensor_copy_into", "src belongs to another runtime: between two, contiguous tensors of one dtype are copied; "
                       "cast it there first");
  const size_t bytes = (size_t)mav_tensor_count(src) * mav_dtype_bytes(src->dtype);
  void *p = mav__alloc(bytes + 1);
  if (!p) return MAV_RT_NOMEM(rt, "tensor_copy_into");
  mav_err err = mav_tensor_read(src, p, bytes);
  if (err) rt->diag = src->buffer->rt->diag;
  else err = mav_tensor_write(dst, p, bytes);
  mav__free(p);
  return err;
}

mav_err mav_tensor_copy_into(mav_tensor *dst, mav_tensor *src) {
  mav_runtime *rt = dst->buffer->rt;
  char a[96], b[96];
  MAV_TRY(writable(dst, "tensor_copy_into"));
  const mav_err unreadable = mav__tensor_readable(src, "tensor_copy_into");
  if (unreadable) return rt->diag = src->buffer->rt->diag, unreadable;
  if (rt->capture) return MAV_RT_FAIL(rt, STATE, "tensor_copy_into", "not while a capture is open; use op cast");
  if (dst->dims != src->dims || memcmp(dst->shape, src->shape, sizeof(int64_t) * (size_t)dst->dims))
    return MAV_RT_FAIL(rt, SHAPE, "tensor_copy_into", "%s into %s", mav__shape_text(a, sizeof a, src->dims, src->shape),
                       mav__shape_text(b, sizeof b, dst->dims, dst->shape));
  MAV_RT_TRY_ALIVE(rt);
  if (src->buffer->rt != rt) return copy_across(dst, src);
  mavk_args_cast args = {.x = mav__tensor_array(src), .dtype = (int32_t)dst->dtype, .y = mav__tensor_array(dst)};
  MAV_TRY(mav__mirror_flush(rt));
  MAV_TRY(rt->backend->run(rt, &(mav__node){.op = MAVK_OP_cast, .args = &args}, 1));
  mav__device_wrote(dst->buffer, 0);
  return MAV_OK;
}

mav_err mav_tensor_quantize_into(mav_tensor *dst, mav_tensor *src) {
  mav_runtime *rt = dst->buffer->rt;
  if (src->dims < 2) return MAV_RT_FAIL(rt, SHAPE, "tensor_quantize_into", "a weight is (N, D) or (E, N, D)");
  mav_arg args[MAV_ARGS_MAX] = {{.given = true, .tensor = src}, {.given = true, .tensor = dst}};
  MAV_TRY(mav_op_call(rt, MAVK_OP_quantize, args));
  mav_err err = mav_tensor_set_scale(dst, args[2].tensor, MAV_ACT_NONE, 0);
  mav_tensor_release(args[2].tensor);
  return err;
}
