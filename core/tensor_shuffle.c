/* core/tensor_shuffle.c - weights in the order in which a device's products read them fastest: kernels/layout.h.
 *
 * A tensor that is shuffled is good for weights of ops alone (check_tensor in call.c, readable in tensor_copy.c), and for what stays
 * in whole blocks of 16 rows. On a device f8 matrices and stacks of them are shuffled, where their sizes fit; elsewhere nothing is. */
#include "../kernels/layout.h"
#include "tensor.h"

#define OP "tensor_shuffle"

static bool gains(const mav_tensor *t) {
  if (!t->buffer->on_device || t->layout != MAVK_LAYOUT_ROWS || t->dtype != MAV_DTYPE_F8 || (t->dims != 2 && t->dims != 3)) return false;
  const int64_t n = t->shape[t->dims - 2], d = t->shape[t->dims - 1];
  return mav_tensor_count(t) > 0 && mavk_mma_fits(n, d) && mav_tensor_is_contiguous(t) && t->offset % 16 == 0;
}

mav_err mav_tensor_shuffle(mav_tensor **out, mav_tensor *t) {
  mav_runtime *rt = t->buffer->rt;
  mav_tensor *y;
  mav__buffer *b;
  *out = NULL;
  if (t->layout == MAVK_LAYOUT_ROWS) MAV_TRY(mav__tensor_readable(t, OP));
  if (rt->capture) return MAV_RT_FAIL(rt, STATE, OP, "not while a capture is open");
  if (!gains(t)) {
    *out = mav_tensor_retain(t);
    return MAV_OK;
  }
  const size_t bytes = (size_t)mav_tensor_count(t);
  const int64_t d = t->shape[t->dims - 1];
  MAV_TRY(mav__buffer_new(&b, rt, MAV__BUFFER_OWNED, bytes, false, OP));
  mav_err err = mav__mirror_flush(rt);
  if (!err) err = rt->backend->shuffle(rt, b->data, mav__tensor_pointer(t), (int64_t)bytes / d, d, false);
  mav__device_wrote(b, 0);
  if (!err) err = mav__tensor_on(&y, b, t->dtype, t->dims, t->shape);
  b->read_only = true;
  mav__buffer_release(b);
  if (err) return err;
  y->layout = MAVK_LAYOUT_M16N8K16;
  y->scale = t->scale ? mav_tensor_retain(t->scale) : NULL;
  y->scale_s[0] = t->scale_s[0];
  y->scale_s[1] = t->scale_s[1];
  y->act = t->act;
  y->in_scale = t->in_scale;
  *out = y;
  return MAV_OK;
}

bool mav_tensor_is_shuffled(const mav_tensor *t) { return t->layout != MAVK_LAYOUT_ROWS; }

mav_err mav__tensor_rows(const mav_tensor *t, const char *op) {
  if (t->layout == MAVK_LAYOUT_ROWS) return MAV_OK;
  return MAV_RT_FAIL(t->buffer->rt, INVALID, op, "the tensor is shuffled: it can only be a weight of ops; use the one it was made from");
}
