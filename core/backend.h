/* core/backend.h - the seam every backend fills: memory, and running a list of ops.
 *
 * Host backends work in host memory and run a list before they return. A device backend has memory that only it can reach
 * (is_device): what the host needs of it goes through the functions below the line. Those are ordered with the work that was given
 * to the device before, and wait for it only where that is said. */
#ifndef MAV_CORE_BACKEND_H
#define MAV_CORE_BACKEND_H

#include "mav.h"
#include "mem.h"

/* One op with its argument structure, ready to run. */
typedef struct mav__node {
  int op;
  void *args;
  bool apart; /* begins when all work before it is done: it reads a weight that some of it writes, and weights are read early */
} mav__node;

/* Device memory that the host wants to see when a graph is done, and the pinned memory it goes to. */
typedef struct mav__mail {
  void *host;
  const void *device;
  size_t bytes;
} mav__mail;

typedef struct mav__backend {
  const char *name;
  bool is_device;
  mav_err (*open)(mav_runtime *rt, const mav_runtime_options *options); /* fills rt->impl, isa, threads */
  void (*close)(mav_runtime *rt);
  /* 64-byte aligned; zeroed on request. Large blocks are aligned for huge pages. */
  mav_err (*alloc)(mav_runtime *rt, size_t bytes, bool zero, void **out);
  void (*free)(mav_runtime *rt, void *p, size_t bytes);
  /* Runs the nodes in order; returns when they are done, on a device when they are on their way. */
  mav_err (*run)(mav_runtime *rt, const mav__node *nodes, int64_t count);
  mav_err (*bandwidth)(mav_runtime *rt, size_t bytes, int repeats, double *gb_per_s);

  /* ---- devices only ---- */

  /* Host memory that the device reaches. */
  mav_err (*pinned_alloc)(mav_runtime *rt, size_t bytes, void **out);
  void (*pinned_free)(mav_runtime *rt, void *p, size_t bytes);
  mav_err (*copy_in)(mav_runtime *rt, void *device, const void *host, size_t bytes);  /* host may change afterwards */
  mav_err (*copy_out)(mav_runtime *rt, void *host, const void *device, size_t bytes); /* waits */
  mav_err (*copy)(mav_runtime *rt, void *to, const void *from, size_t bytes);
  mav_err (*fill)(mav_runtime *rt, void *device, int byte, size_t bytes);
  /* Of the whole device, whoever uses it; 0 where it does not say. */
  void (*memory)(mav_runtime *rt, size_t *available, size_t *total);
  /* Waits until all that was given to the device is done. */
  mav_err (*settle)(mav_runtime *rt);

  /* An executable graph: the nodes, then the mail. launch returns at once with a number above 0 that wait and poll take; they
   * answer for every launch up to it. free waits for the device. kernels: how many of them the nodes are. */
  mav_err (*graph_new)(mav_runtime *rt, const mav__node *nodes, int64_t count, const mav__mail *mail, int64_t mails, void **out);
  int64_t (*graph_kernels)(void *graph);
  void (*graph_free)(mav_runtime *rt, void *graph);
  mav_err (*graph_launch)(mav_runtime *rt, void *graph, uint64_t *ticket);
  mav_err (*wait)(mav_runtime *rt, uint64_t ticket);
  bool (*poll)(mav_runtime *rt, uint64_t ticket); /* a device that failed is done too */
  /* Runs the nodes one after the other, each timed. Waits. */
  mav_err (*profile)(mav_runtime *rt, const mav__node *nodes, int64_t count, int64_t *ns);

  /* Rows (n, d) of 8-bit codes into the order of MAVK_LAYOUT_M16N8K16, or back. */
  mav_err (*shuffle)(mav_runtime *rt, void *to, const void *from, int64_t n, int64_t d, bool back);
} mav__backend;

extern const mav__backend mav__backend_ref, mav__backend_cpu;

/* What a backend in a library of its own (libmav_cuda.so) needs of the program that opens it. */
typedef struct mav__host {
  const char *version;  /* MAV_VERSION, and */
  size_t runtime_bytes; /* sizeof(mav_runtime): both sides must come from one source */
  mav_err (*diag_set)(mav_diag *d, mav_err code, const char *op, const char *file, int line, long native, const char *format, ...);
  void *(*alloc)(size_t bytes);
  void (*free)(void *p);
  void (*device_count)(int64_t bytes); /* notes bytes taken from the device, or given back (negative) */
  mav__fault (*device_fails)(void);    /* fault injection: must this call to the device fail? */
  const char *(*op_name)(int op);
} mav__host;

/* What such a library exports, and its type. NULL: it does not fit the host. */
#define MAV__LIBRARY_SYMBOL "mav_backend_library"
typedef const mav__backend *mav__library(const mav__host *host);

/* core/library.c: finds, opens and checks the library of the backend "cuda". rt gets it; close gives it back. UNSUPPORTED: there is none;
 * INVALID: it is there, or was named, and is of no use. */
mav_err mav__library_open(mav_runtime *rt, const mav_runtime_options *options);
void mav__library_close(mav_runtime *rt);

/* Host memory for large blocks, shared by the host backends: huge pages where they fit, a cache of freed blocks. */
typedef struct mav__pages mav__pages;
mav__pages *mav__pages_new(void);
void mav__pages_free_all(mav__pages *p);
void *mav__pages_alloc(mav__pages *p, size_t bytes, bool zero);
void mav__pages_free(mav__pages *p, void *block, size_t bytes);

#endif
