/* core/backend.h - the seam every backend fills: memory, and running a list of ops. */
#ifndef MAV_CORE_BACKEND_H
#define MAV_CORE_BACKEND_H

#include "mav.h"

/* One op with its argument structure, ready to run. */
typedef struct mav__node {
  int op;
  void *args;
} mav__node;

typedef struct mav__backend {
  const char *name;
  mav_err (*open)(mav_runtime *rt, const mav_runtime_options *options); /* fills rt->impl, isa, threads */
  void (*close)(mav_runtime *rt);
  /* 64-byte aligned; zeroed on request. Large blocks are aligned for huge pages. */
  mav_err (*alloc)(mav_runtime *rt, size_t bytes, bool zero, void **out);
  void (*free)(mav_runtime *rt, void *p, size_t bytes);
  /* Runs the nodes in order; returns when they are done. */
  mav_err (*run)(mav_runtime *rt, const mav__node *nodes, int64_t count);
  mav_err (*bandwidth)(mav_runtime *rt, size_t bytes, int repeats, double *gb_per_s);
} mav__backend;

extern const mav__backend mav__backend_ref, mav__backend_cpu;

/* Host memory for large blocks, shared by the host backends: huge pages where they fit, a cache of freed blocks. */
typedef struct mav__pages mav__pages;
mav__pages *mav__pages_new(void);
void mav__pages_free_all(mav__pages *p);
void *mav__pages_alloc(mav__pages *p, size_t bytes, bool zero);
void mav__pages_free(mav__pages *p, void *block, size_t bytes);

#endif
