/* core/mirror.c - what the host reads and writes of device memory.
 *
 * On a host backend a buffer is host memory, and there is nothing here to do. On a device most buffers are the device's alone: the host
 * copies in and out (mav__buffer_get, mav__buffer_put). Those that both sides use in every step are mirrored: they also have
 * pinned host memory. Rows, page tables and keys are mirrored from the start, small results of a graph when its capture ends.
 *
 * Invariants of a mirrored buffer: (1) where the host wrote since the last upload (dirty) its side is right, elsewhere the device's is.
 * (2) Before the host reads or writes, its side is brought up to date: by waiting for the launch whose mail brings it (ticket), or, where
 * no mail does (stale), by a copy. (3) Before the device gets work, what is dirty is uploaded, in order with that work;
 * so both sides may go on at once. A device that fails leaves the host's side as it is: the runtime remembers, and the next call that
 * needs the device says so. */
#include <string.h>

#include "tensor.h"

mav_err mav__mirror_add(mav__buffer *b, const char *op) {
  mav_runtime *rt = b->rt;
  if (!b->on_device || b->host || b->bytes == 0) return MAV_OK;
  if (rt->backend->pinned_alloc(rt, b->bytes, &b->host))
    return rt->failed ? mav__runtime_failed(rt) : MAV_RT_FAIL(rt, NOMEM, op, "out of pinned memory: %.1f KiB asked for", (double)b->bytes / 1024);
  b->stale = true;
  return MAV_OK;
}

void mav__mirror_remove(mav__buffer *b) {
  if (!b->host) return;
  for (mav__buffer **at = &b->rt->dirty; b->is_listed && *at; at = &(*at)->next_dirty)
    if (*at == b) {
      *at = b->next_dirty;
      break;
    }
  if (b->ticket && !b->rt->failed) b->rt->backend->wait(b->rt, b->ticket);
  b->rt->backend->pinned_free(b->rt, b->host, b->bytes);
  b->host = NULL;
}

static mav_err upload(mav__buffer *b) {
  const size_t at = b->dirty_from, bytes = b->dirty_to - at;
  if (!bytes) return MAV_OK;
  MAV_TRY(b->rt->backend->copy_in(b->rt, (char *)b->data + at, (char *)b->host + at, bytes));
  b->dirty_from = b->dirty_to = 0;
  return MAV_OK;
}

mav_err mav__mirror_flush(mav_runtime *rt) {
  for (mav__buffer *b; (b = rt->dirty); rt->dirty = b->next_dirty) {
    MAV_TRY(upload(b));
    b->is_listed = false;
  }
  return MAV_OK;
}

void *mav__mirror_read(mav__buffer *b) {
  mav_runtime *rt = b->rt;
  if (b->stale) {
    if (upload(b) || rt->backend->copy_out(rt, b->host, b->data, b->bytes)) return b->host;
    b->stale = false;
    b->ticket = 0;
  } else if (b->ticket) {
    if (rt->backend->wait(rt, b->ticket)) return b->host;
    b->ticket = 0;
  }
  return b->host;
}

void *mav__mirror_write(mav__buffer *b, size_t at, size_t bytes) {
  char *p = mav__mirror_read(b);
  if (b->dirty_from == b->dirty_to) {
    b->dirty_from = at;
    b->dirty_to = at + bytes;
  } else {
    if (at < b->dirty_from) b->dirty_from = at;
    if (at + bytes > b->dirty_to) b->dirty_to = at + bytes;
  }
  if (!b->is_listed) {
    b->is_listed = true;
    b->next_dirty = b->rt->dirty;
    b->rt->dirty = b;
  }
  mav__buffer_note_write(b);
  return p;
}

void *mav__host_replace(mav__buffer *b) {
  if (b->on_device && !b->ticket) b->stale = false; /* what the device has does not matter */
  return mav__host_write(b, 0, b->bytes);
}

void mav__device_wrote(mav__buffer *b, uint64_t ticket) {
  mav__buffer_note_write(b);
  if (!b->host) return;
  if (ticket) b->ticket = ticket;
  b->stale = !ticket;
}

mav_err mav__buffer_get(mav__buffer *b, size_t at, void *dst, size_t bytes) {
  mav_runtime *rt = b->rt;
  MAV_RT_TRY_ALIVE(rt);
  if (!bytes) return MAV_OK;
  if (b->on_device && !b->host) return rt->backend->copy_out(rt, dst, (char *)b->data + at, bytes);
  memcpy(dst, (char *)mav__host_read(b) + at, bytes);
  return rt->failed ? mav__runtime_failed(rt) : MAV_OK;
}

mav_err mav__buffer_put(mav__buffer *b, size_t at, const void *src, size_t bytes) {
  mav_runtime *rt = b->rt;
  MAV_RT_TRY_ALIVE(rt);
  if (!bytes) return MAV_OK;
  if (b->on_device && !b->host) {
    mav__buffer_note_write(b);
    return rt->backend->copy_in(rt, (char *)b->data + at, src, bytes);
  }
  memcpy((char *)(bytes == b->bytes ? mav__host_replace(b) : mav__host_write(b, at, bytes)) + at, src, bytes);
  return rt->failed ? mav__runtime_failed(rt) : MAV_OK;
}
