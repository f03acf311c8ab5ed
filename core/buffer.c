/* core/buffer.c - reference-counted storage behind tensors. */
#include "tensor.h"

mav_err mav__buffer_new(mav__buffer **out, mav_runtime *rt, mav__buffer_kind kind, size_t bytes, bool zero, const char *op) {
  *out = NULL;
  mav__buffer *b = mav__alloc(sizeof *b);
  if (!b) return MAV_RT_NOMEM(rt, op);
  *b = (mav__buffer){.refs = 1, .kind = kind, .rt = rt, .bytes = bytes, .on_device = rt->backend->is_device};
  if (kind == MAV__BUFFER_OWNED) {
    mav_err err = mav__device_alloc(rt, bytes, zero, op, &b->data);
    mav__buffer_note_write(b);
    if (err) {
      mav__free(b);
      return err;
    }
  }
  mav_runtime_retain(rt);
  *out = b;
  return MAV_OK;
}

void mav__buffer_release(mav__buffer *b) {
  if (!b || --b->refs) return;
  mav__mirror_remove(b);
  if (b->kind == MAV__BUFFER_OWNED) mav__device_free(b->rt, b->data, b->bytes);
  if (b->release) b->release(b->owner);
  mav_runtime_release(b->rt);
  mav__free(b);
}
