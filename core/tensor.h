/* core/tensor.h - inside tensors and buffers. */
#ifndef MAV_CORE_TENSOR_H
#define MAV_CORE_TENSOR_H

#include "mavk.h"
#include "runtime.h"

typedef enum mav__buffer_kind {
  MAV__BUFFER_OWNED,   /* device memory, freed with the buffer */
  MAV__BUFFER_FOREIGN, /* somebody else's memory; release(owner) is called with the buffer */
  MAV__BUFFER_PLANNED, /* a place in the arena, chosen when its capture ends; data is NULL */
} mav__buffer_kind;

typedef struct mav__buffer {
  int refs;
  mav__buffer_kind kind;
  mav_runtime *rt; /* retained */
  void *data;
  size_t bytes;
  void (*release)(void *owner);
  void *owner;
  bool read_only;
  mav_graph *graph; /* PLANNED: the capture it belongs to (borrowed, for identity only) */
  int64_t plan;     /* PLANNED: its index there */
  bool is_rows;          /* the memory of a mav_rows */
  uint64_t written_in;   /* the capture (its number) that last wrote it; 0: none */
  int64_t index_bound;   /* written in a capture: its i32 values are indices below this; 0: unknown */

  /* ---- of a device: mirror.c ---- */
  bool on_device;        /* data is the device's memory */
  bool stale;            /* the host's side is behind, and no mail will bring it */
  void *host;            /* pinned memory with the same contents; NULL: not mirrored */
  uint64_t ticket;       /* the launch whose mail brings the host's side; 0: none */
  size_t dirty_from, dirty_to; /* bytes that the host wrote since the last upload; equal: none */
  bool is_listed;              /* in the runtime's list of buffers that may be dirty */
  struct mav__buffer *next_dirty;
  uint64_t written_at;   /* when it was written last: the runtime's count of writes */
  uint64_t known_at;
  int64_t known_bound;   /* as written at known_at, all its i32 values were indices below this; 0: unknown */
} mav__buffer;

/* Gives a device's buffer pinned memory on the host's side. */
mav_err mav__mirror_add(mav__buffer *b, const char *op);
void mav__mirror_remove(mav__buffer *b);
void *mav__mirror_read(mav__buffer *b);
void *mav__mirror_write(mav__buffer *b, size_t at, size_t bytes);
/* Uploads what the host wrote into any buffer: before work is given to the device. */
mav_err mav__mirror_flush(mav_runtime *rt);
/* Notes that the buffer is written: from the host's side, or by work given to the device. */
static inline void mav__buffer_note_write(mav__buffer *b) { b->written_at = ++b->rt->writes; }
/* Work that writes the buffer was given to the device; ticket: the launch that mails it, or 0. */
void mav__device_wrote(mav__buffer *b, uint64_t ticket);

/* A host backend's buffer, or a mirrored one, for the host: its first byte. For reading; and for writing these bytes of it. They do not
 * fail: a device that does is found by the next call that needs it. */
static inline void *mav__host_read(mav__buffer *b) { return b->on_device ? mav__mirror_read(b) : b->data; }
static inline void *mav__host_write(mav__buffer *b, size_t at, size_t bytes) {
  return b->on_device ? mav__mirror_write(b, at, bytes) : b->data;
}
/* For writing all of it. */
void *mav__host_replace(mav__buffer *b);
/* Bytes of any buffer, by copies where the host does not reach it. */
mav_err mav__buffer_get(mav__buffer *b, size_t at, void *dst, size_t bytes);
mav_err mav__buffer_put(mav__buffer *b, size_t at, const void *src, size_t bytes);

mav_err mav__buffer_new(mav__buffer **out, mav_runtime *rt, mav__buffer_kind kind, size_t bytes, bool zero, const char *op);
void mav__buffer_release(mav__buffer *b);

struct mav_tensor {
  int refs;
  mav__buffer *buffer; /* retained */
  mav_dtype dtype;
  int dims;
  int64_t shape[MAV_DIMS_MAX], stride[MAV_DIMS_MAX], offset; /* elements */
  mav_tensor *scale;     /* retained; f32 */
  int64_t scale_s[2];    /* its strides by expert and by output row */
  mav_act act;
  float in_scale;
  mavk_layout layout;    /* not ROWS: shuffled */
};

/* A contiguous tensor on a new reference to buffer. */
mav_err mav__tensor_on(mav_tensor **out, mav__buffer *buffer, mav_dtype dtype, int dims, const int64_t *shape);
/* A read-only tensor on somebody else's memory: release(owner) is called when the last view is gone, or on failure. */
mav_err mav__tensor_foreign(mav_tensor **out, mav_runtime *rt, mav_dtype dtype, int dims, const int64_t *shape, const void *data,
                            void (*release)(void *), void *owner);
/* Bytes of a shape; fails on negative sizes, too many dimensions and overflow. */
mav_err mav__shape_bytes(mav_runtime *rt, const char *op, mav_dtype dtype, int dims, const int64_t *shape, size_t *out);
/* Address of the first element, for kernels: on a device the host must not follow it. NULL while planned. */
void *mav__tensor_pointer(const mav_tensor *t);
/* The view as a kernel sees it. */
mavk_array mav__tensor_array(const mav_tensor *t);
/* "(4, 256)" */
const char *mav__shape_text(char *out, size_t bytes, int dims, const int64_t *shape);
/* Fails when the tensor is shuffled. */
mav_err mav__tensor_rows(const mav_tensor *t, const char *op);
/* Fails when the tensor cannot be read by the host now. */
mav_err mav__tensor_readable(mav_tensor *t, const char *op);

#endif
