/* core/runtime.h - inside a runtime. Reference counts are plain integers: a runtime belongs to one thread at a time. */
#ifndef MAV_CORE_RUNTIME_H
#define MAV_CORE_RUNTIME_H

#include "backend.h"
#include "err.h"
#include "mem.h"

struct mav_runtime {
  int refs;
  mav_diag diag;
  const mav__backend *backend;
  void *impl;    /* the backend's own state */
  void *library; /* it comes from, or NULL; core/library.c */
  const mav__host *host; /* of such a backend */
  bool failed;   /* the device is lost: every later call returns `failure` */
  mav_diag failure;
  mav_diag fallback; /* why "auto" came to the processor; no text: it did not */
  const char *isa;
  int threads;
  mav_graph *capture; /* open capture, or NULL; borrowed */
  uint64_t captures;  /* begun so far: the open one's number */
  int64_t device_live, device_max;
  void *arena; /* planned memory of all graphs; its contents are dead between launches */
  size_t arena_bytes;
  struct mav__buffer *dirty; /* of a device: buffers that the host wrote; mirror.c */
  uint64_t writes, ordered;  /* of a device: writes of buffers so far; those that are done before any work to come begins: call.c */
  uint32_t arena_version; /* changes when the arena moves: graphs then patch their pointers */
};

/* Device memory through the backend, counted. */
mav_err mav__device_alloc(mav_runtime *rt, size_t bytes, bool zero, const char *op, void **out);
void mav__device_free(mav_runtime *rt, void *p, size_t bytes);
/* Makes the arena at least this large. */
mav_err mav__arena_reserve(mav_runtime *rt, size_t bytes);

/* The diagnostic of a device that was lost, again. */
mav_err mav__runtime_failed(mav_runtime *rt);
#define MAV_RT_TRY_ALIVE(rt) \
  do {                       \
    if ((rt)->failed) return mav__runtime_failed(rt); \
  } while (0)

#define MAV_RT_FAIL(rt, code, op, ...) MAV_FAIL(&(rt)->diag, code, op, __VA_ARGS__)
#define MAV_RT_NOMEM(rt, op) MAV_FAIL(&(rt)->diag, NOMEM, op, "out of host memory")

#endif
