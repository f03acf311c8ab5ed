/* core/backend_cuda.h - inside the cuda backend: four files on the CUDA runtime API, which with kernels/cuda make libmav_cuda.so (or,
 * on a stand-in for that API, its emulation in tests/simt). None of it is linked into the program: what the library needs of it comes
 * through rt->host. */
#ifndef MAV_CORE_BACKEND_CUDA_H
#define MAV_CORE_BACKEND_CUDA_H

#include <cuda_runtime.h>

#include "../kernels/cuda/service.h"
#include "runtime.h"

#define STAGES 4
#define STAGE_BYTES ((size_t)1 << 20)
#define PINNED_CLASSES 12 /* 256 bytes, 512, ... 512 KiB */
#define KERNELS_MAX 256   /* that need more shared memory than a block gets unasked */

/* A part of the ring of pinned memory through which the host's bytes go to the device. */
typedef struct stage {
  char *data;
  cudaEvent_t used; /* recorded behind the last copy from it */
  bool recorded;
} stage;

typedef struct slab { /* of pinned memory */
  struct slab *next;
  void *data;
} slab;

typedef struct cuda {
  mavk_cuda k; /* first: what the host halves of kernels see */
  mav_runtime *rt;
  cudaStream_t stream;
  cudaMemPool_t pool;
  char isa[16];
  const char *op; /* that runs, for messages */
  mav_err noted;  /* what launch and fail of k left in the diagnostic */
  int64_t kernels; /* launched or captured so far */
  bool apart;      /* the next kernel begins when all work before it is done */
  bool is_dry;     /* kernels are not launched: only what must be done before a capture is */
  struct cuda_blas *blas; /* NULL: not asked for yet */

  stage stage[STAGES];
  int at;        /* the stage in use */
  size_t filled; /* bytes of it */

  slab *slabs;
  void *blocks[PINNED_CLASSES]; /* free pinned blocks, chained by their first word */

  uint32_t *arrived;       /* pinned: the number of the last launch that is done, as the mailbox publishes it */
  uint32_t *counter;       /* its twin on the device */
  uint64_t launched, seen; /* launches; of them known to be done */

  struct {
    const void *kernel;
    size_t bytes;
  } shared[KERNELS_MAX];
  int shared_count;
} cuda;

static inline cuda *mav__cuda(const mav_runtime *rt) { return rt->impl; }

#define CUDA_FAIL(rt, code, op, ...) \
  ((rt)->host->diag_set(&(rt)->diag, MAV_ERR_##code, (op), __FILE__, __LINE__, 0, __VA_ARGS__), MAV_ERR_##code)

/* The diagnostic of a device that was lost, again. */
static inline mav_err mav__cuda_failed(mav_runtime *rt) {
  rt->diag = rt->failure;
  return rt->failure.code;
}

/* An error of the API as one of ours, noted. One that takes the device with it is kept in the runtime. */
mav_err mav__cuda_error(mav_runtime *rt, cudaError_t e, const char *op, const char *call, const char *file, int line);
/* What fault injection wants of the next call. */
cudaError_t mav__cuda_injected(mav_runtime *rt);

/* A call of the API; MAV_OK or an error. Not made when the device is lost, or when a test wants it to fail. */
#define CUDA(rt, op, call)                                                                      \
  __extension__({                                                                               \
    cudaError_t cuda_error_ = (rt)->failed ? cudaSuccess : mav__cuda_injected(rt);              \
    if (!cuda_error_ && !(rt)->failed) cuda_error_ = (call);                                    \
    (rt)->failed  ? mav__cuda_failed(rt)                                                        \
    : cuda_error_ ? mav__cuda_error((rt), cuda_error_, (op), #call, __FILE__, __LINE__) : MAV_OK; \
  })
#define CUDA_TRY(rt, op, call) MAV_TRY(CUDA(rt, op, call))

/* ---- backend_cuda.c ---- */
mav_err mav__cuda_run(mav_runtime *rt, const mav__node *nodes, int64_t count);
/* Only checks and prepares: after it the same nodes can be captured. */
mav_err mav__cuda_run_dry(mav_runtime *rt, const mav__node *nodes, int64_t count);

/* ---- backend_cuda_blas.c ---- */
int mav__cuda_gemm(mavk_cuda *k, const mavk_cuda_gemm *g);
void mav__cuda_blas_close(cuda *c);

/* ---- backend_cuda_memory.c ---- */
mav_err mav__cuda_memory_open(cuda *c);
void mav__cuda_memory_close(cuda *c);
mav_err mav__cuda_alloc(mav_runtime *rt, size_t bytes, bool zero, void **out);
void mav__cuda_free(mav_runtime *rt, void *p, size_t bytes);
mav_err mav__cuda_pinned_alloc(mav_runtime *rt, size_t bytes, void **out);
void mav__cuda_pinned_free(mav_runtime *rt, void *p, size_t bytes);
mav_err mav__cuda_copy_in(mav_runtime *rt, void *device, const void *host, size_t bytes);
mav_err mav__cuda_copy_out(mav_runtime *rt, void *host, const void *device, size_t bytes);
mav_err mav__cuda_copy(mav_runtime *rt, void *to, const void *from, size_t bytes);
mav_err mav__cuda_fill(mav_runtime *rt, void *device, int byte, size_t bytes);
void mav__cuda_memory(mav_runtime *rt, size_t *available, size_t *total);
mav_err mav__cuda_settle(mav_runtime *rt);

/* ---- backend_cuda_graph.c ---- */
mav_err mav__cuda_graph_new(mav_runtime *rt, const mav__node *nodes, int64_t count, const mav__mail *mail, int64_t mails, void **out);
int64_t mav__cuda_graph_kernels(void *graph);
void mav__cuda_graph_free(mav_runtime *rt, void *graph);
mav_err mav__cuda_graph_launch(mav_runtime *rt, void *graph, uint64_t *ticket);
mav_err mav__cuda_wait(mav_runtime *rt, uint64_t ticket);
bool mav__cuda_poll(mav_runtime *rt, uint64_t ticket);
mav_err mav__cuda_profile(mav_runtime *rt, const mav__node *nodes, int64_t count, int64_t *ns);

#endif
