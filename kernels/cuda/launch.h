/* kernels/cuda/launch.h - the seam between an op's host half (in its .cu file) and the backend that drives it (core/backend_cuda.c).
 * Plain C.
 *
 * An op is a host function that launches one or a few kernels, in order, on the backend's stream; it never waits. It is called once
 * when it runs eagerly, and twice when a graph is captured: first only for what has to be done before, then in earnest. So whatever it
 * computes on the host from sizes, dtypes and numbers is fixed in the graph; what changes from step to step (rows, indices, page tables)
 * only kernels may read.
 *
 * Rules for kernels, which the emulator (tests/simt) checks:
 *   1. One argument: a structure, by value, at most 4 KB.
 *   2. Every thread calls pdl_wait() (ptx.h) before it touches anything but weights, and nothing is written before it; weights may
 *      be loaded or prefetched earlier, as the backend does not let a kernel overlap work that writes one (mav__node.apart). Every block
 *      calls pdl_launch() as early as its resources allow.
 *   3. Shared memory is dynamic only, declared by MAVK_SHARED.
 *   4. A row's result does not depend, bit for bit, on the number of rows, on its neighbours or on where its keys lie; but for products,
 *      whose sums beyond GEMM_ROWS rows are a library's (gemm.h).
 *   5. Idle rows (seq < 0) are never read as indices; their results are any finite values.
 */
#ifndef MAVK_CUDA_LAUNCH_H
#define MAVK_CUDA_LAUNCH_H

#include "../mavk.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mavk_cuda_launch {
  const void *kernel; /* a __global__ function */
  const void *argument;
  unsigned grid[3], block[3];
  size_t shared_bytes;
} mavk_cuda_launch;

/* Optimizations that can be switched off, to see what each is worth (mav bench --ablate). */
enum {
  MAVK_CUDA_OFF_PDL = 1,      /* kernels overlap: programmatic dependent launch */
  MAVK_CUDA_OFF_GRAPHS = 2,   /* a replay is one graph launch */
  MAVK_CUDA_OFF_PREFETCH = 4, /* weights are loaded before the wait for the kernel before */
  MAVK_CUDA_OFF_SPATIAL = 8,  /* shared and routed experts side by side in one launch */
  MAVK_CUDA_OFF_TENSOR = 16,  /* mma.sync products of shuffled weights */
  MAVK_CUDA_OFF_BLAS = 32,    /* products of many rows by cuBLASLt */
};

/* y (rows, N) = x (rows, K) w (N, K)^T with sums in f32, by a library: gemm.h. x and y: rows one after the other. 16-byte aligned, w's
 * rows too; N and K multiples of 16. */
typedef struct mavk_cuda_gemm {
  int32_t dtype; /* of x and w: MAVK_BF16 or MAVK_F8 */
  const void *x, *w;
  float *y;
  int64_t rows, N, K, w_stride;
} mavk_cuda_gemm;

#define MAVK_CUDA_TICKETS 8192

typedef struct mavk_cuda {
  /* Enqueues a kernel; 0, or a cudaError_t that the backend has noted already. */
  int (*launch)(struct mavk_cuda *c, const mavk_cuda_launch *l);
  /* Notes why an op cannot run; returns a value other than 0. */
  int (*fail)(struct mavk_cuda *c, const char *format, ...);
  /* Enqueues a product; 0, or another value once the backend has noted why not. */
  int (*gemm)(struct mavk_cuda *c, const mavk_cuda_gemm *g);
  int multiprocessors;
  size_t shared_bytes_max; /* of one block */
  /* Device memory for what passes between the blocks and the kernels of one op. Dead when the op ends. */
  void *scratch;
  size_t scratch_bytes;
  /* (MAVK_CUDA_TICKETS) device counters, zero before every kernel: one that uses them leaves them zero. */
  uint32_t *tickets;
  unsigned off; /* MAVK_CUDA_OFF_ bits */
} mavk_cuda;

typedef int mavk_cuda_fn(const void *args, mavk_cuda *c);
extern mavk_cuda_fn *const mavk_cuda_table[MAVK_OP_COUNT];

/* int mavk_cuda_<op>(args, c) of every op. */
#define MAV_OP(name, doc) int mavk_cuda_##name(const mavk_args_##name *a, mavk_cuda *c);
#include "../ops.def"

#ifdef __cplusplus
}
#endif
#endif
