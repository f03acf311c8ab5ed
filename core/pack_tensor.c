/* core/pack_tensor.c - tensors from a pack: on the mapped file where all chunks are raw, else unpacked into device memory by
 * as many threads as the runtime has. The scale comes with them. A mapped tensor holds a reference to the pack. */
#include <string.h>

#include "pack.h"
#include "tensor.h"

#define OP "pack_tensor"

static void release_owner(void *owner) { mav_pack_release(owner); }

static mav_err unpack(mav_pack *p, int i, mav_runtime *rt, mav_tensor **out) {
  const mav_pack_entry *e = &p->entry[i];
  mav__buffer *b;
  MAV_TRY(mav__buffer_new(&b, rt, MAV__BUFFER_OWNED, e->bytes, false, OP));
  mav_err err = mav_pack_read(p, i, 0, e->bytes, b->data, rt->threads, &rt->diag);
  if (!err) err = mav__tensor_on(out, b, e->dtype, e->dims, e->shape);
  b->read_only = true;
  mav__buffer_release(b);
  return err;
}

static mav_err bare(mav_pack *p, int i, mav_runtime *rt, mav_tensor **out) {
  const mav_pack_entry *e = &p->entry[i];
  if (strcmp(e->layout, "row") != 0)
    return MAV_RT_FAIL(rt, UNSUPPORTED, OP, "%s: tensor \"%.100s\": its layout is \"%.60s\"; tensors are made of \"row\" only",
                       mav__path_short(p->path), e->name, e->layout);
  if (!e->data) return unpack(p, i, rt, out);
  return mav__tensor_foreign(out, rt, e->dtype, e->dims, e->shape, e->data, release_owner, mav_pack_retain(p));
}

mav_err mav_pack_tensor(mav_pack *p, int i, mav_runtime *rt, mav_tensor **out) {
  mav_tensor *t = NULL, *scale = NULL;
  mav_err err = MAV_OK;
  *out = NULL;
  if (i < 0 || i >= p->count) return MAV_RT_FAIL(rt, RANGE, OP, "%s: tensor %d of %d", mav__path_short(p->path), i, p->count);
  const mav_pack_entry *e = &p->entry[i];
  MAV_GOTO(bare(p, i, rt, &t));
  if (e->scale) {
    MAV_GOTO(bare(p, mav_pack_find(p, e->scale), rt, &scale));
    MAV_GOTO(mav_tensor_set_scale(t, scale, e->act, e->in_scale));
  }
  *out = t;
  t = NULL;
done:
  mav_tensor_release(scale);
  mav_tensor_release(t);
  return err;
}
