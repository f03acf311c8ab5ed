/* core/pack_tensor.c - tensors from a pack: on the mapped file where all chunks are raw, else unpacked into the runtime's memory by as many
 * threads as it has; on a device always there. The scale comes with them. A mapped tensor holds a reference to the pack. */
#include <string.h>

#include "../kernels/layout.h"
#include "pack.h"
#include "tensor.h"

#define OP "pack_tensor"

static void release_owner(void *owner) { mav_pack_release(owner); }

#define PIECE_BYTES ((size_t)64 << 20)

/* To a device, by way of the host. */
static mav_err unpack_staged(mav_pack *p, int i, mav__buffer *b) {
  mav_runtime *rt = b->rt;
  const size_t most = b->bytes < PIECE_BYTES ? b->bytes : PIECE_BYTES;
  void *piece = mav__alloc(most + 1);
  mav_err err = piece ? MAV_OK : MAV_RT_NOMEM(rt, OP);
  for (size_t at = 0, n; at < b->bytes && !err; at += n) {
    n = b->bytes - at < most ? b->bytes - at : most;
    err = mav_pack_read(p, i, at, n, piece, rt->threads, &rt->diag);
    if (!err) err = mav__buffer_put(b, at, piece, n);
  }
  mav__free(piece);
  return err;
}

static mav_err unpack(mav_pack *p, int i, mav_runtime *rt, mav_tensor **out) {
  const mav_pack_entry *e = &p->entry[i];
  mav__buffer *b;
  MAV_TRY(mav__buffer_new(&b, rt, MAV__BUFFER_OWNED, e->bytes, false, OP));
  mav_err err = b->on_device ? unpack_staged(p, i, b) : mav_pack_read(p, i, 0, e->bytes, b->data, rt->threads, &rt->diag);
  if (!err) err = mav__tensor_on(out, b, e->dtype, e->dims, e->shape);
  b->read_only = true;
  mav__buffer_release(b);
  return err;
}

/* Codes in the order of a device's products: there as they are, elsewhere row by row again. */
static mav_err shuffled(mav_pack *p, int i, mav_runtime *rt, mav_tensor **out) {
  const mav_pack_entry *e = &p->entry[i];
  const int64_t d = e->dims ? e->shape[e->dims - 1] : 0;
  if (e->dtype != MAV_DTYPE_F8 || e->dims < 2 || e->dims > 3 || !e->bytes || !mavk_mma_fits(e->shape[e->dims - 2], d))
    return MAV_RT_FAIL(rt, FORMAT, OP, "%s: tensor \"%.100s\" cannot have the layout m16n8k16", mav__path_short(p->path), e->name);
  if (rt->backend->is_device) {
    MAV_TRY(unpack(p, i, rt, out));
    (*out)->layout = MAVK_LAYOUT_M16N8K16;
    return MAV_OK;
  }
  uint8_t *codes = mav__alloc(e->bytes);
  mav_tensor *t = NULL;
  mav_err err = codes ? mav_pack_read(p, i, 0, e->bytes, codes, rt->threads, &rt->diag) : MAV_RT_NOMEM(rt, OP);
  if (!err) err = mav_tensor_new(&t, rt, e->dtype, e->dims, e->shape);
  if (!err) {
    mavk_mma_unpack(t->buffer->data, codes, (int64_t)e->bytes / d, d);
    t->buffer->read_only = true;
    *out = t;
  }
  mav__free(codes);
  return err;
}

static mav_err bare(mav_pack *p, int i, mav_runtime *rt, mav_tensor **out) {
  const mav_pack_entry *e = &p->entry[i];
  if (!strcmp(e->layout, "m16n8k16")) return shuffled(p, i, rt, out);
  if (strcmp(e->layout, "row") != 0)
    return MAV_RT_FAIL(rt, UNSUPPORTED, OP, "%s: tensor \"%.100s\": its layout is \"%.60s\"; tensors are made of \"row\" and \"m16n8k16\"",
                       mav__path_short(p->path), e->name, e->layout);
  if (!e->data || rt->backend->is_device) return unpack(p, i, rt, out);
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
