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
} mav__buffer;

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
};

/* A contiguous tensor on a new reference to buffer. */
mav_err mav__tensor_on(mav_tensor **out, mav__buffer *buffer, mav_dtype dtype, int dims, const int64_t *shape);
/* A read-only tensor on somebody else's memory: release(owner) is called when the last view is gone, or on failure. */
mav_err mav__tensor_foreign(mav_tensor **out, mav_runtime *rt, mav_dtype dtype, int dims, const int64_t *shape, const void *data,
                            void (*release)(void *), void *owner);
/* Bytes of a shape; fails on negative sizes, too many dimensions and overflow. */
mav_err mav__shape_bytes(mav_runtime *rt, const char *op, mav_dtype dtype, int dims, const int64_t *shape, size_t *out);
/* Address of the first element; NULL while planned. */
void *mav__tensor_pointer(const mav_tensor *t);
/* The view as a kernel sees it. */
mavk_array mav__tensor_array(const mav_tensor *t);
/* "(4, 256)" */
const char *mav__shape_text(char *out, size_t bytes, int dims, const int64_t *shape);
/* Fails when the tensor cannot be read by the host now. */
mav_err mav__tensor_readable(mav_tensor *t, const char *op);

#endif
