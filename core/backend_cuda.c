/* core/backend_cuda.c - the cuda backend: opens a device, launches the ops' kernels on one stream, turns errors of the CUDA runtime API
 * into ours. Memory is in backend_cuda_memory.c, graphs and waiting in backend_cuda_graph.c, cuBLASLt in backend_cuda_blas.c.
 *
 * Everything is given to one stream, so it is done in the order of the calls; nothing here waits but copy_out, settle and wait.
 * Kernels overlap at their ends (programmatic dependent launch, launch.h). An error that takes the device with it (an illegal
 * address, a failed launch) is kept: every later call returns it, and only closing works. The process and other runtimes go on. */
#define _GNU_SOURCE
#include "backend_cuda.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OPEN "runtime_new"
#define SHARED_UNASKED ((size_t)48 << 10)
#define SCRATCH_BYTES ((size_t)1 << 20) /* by multiprocessor */

/* Runtimes of this process that are open. When the last one closes and the device was lost, it is taken up anew. */
static _Atomic int runtimes;
static _Atomic bool lost;

/* ---- errors ----------------------------------------------------------------------------------------------------------- */

/* After these the device can still be used. Numbers: some names are newer than the oldest header this is built with. */
static bool passes(cudaError_t e) {
  switch ((int)e) {
    case 1:   /* InvalidValue */
    case 2:   /* MemoryAllocation */
    case 9:   /* InvalidConfiguration */
    case 98:  /* InvalidDeviceFunction */
    case 209: /* NoKernelImageForDevice */
    case 222: /* UnsupportedPtxVersion */
    case 400: /* InvalidResourceHandle */
    case 401: /* IllegalState */
    case 600: /* NotReady */
    case 701: /* LaunchOutOfResources */
    case 800: /* NotPermitted */
    case 801: /* NotSupported */ return true;
    default: return (int)e >= 900 && (int)e <= 910; /* of captures */
  }
}

mav_err mav__cuda_error(mav_runtime *rt, cudaError_t e, const char *op, const char *call, const char *file, int line) {
  cuda *c = mav__cuda(rt);
  const mav_err code = e == cudaErrorMemoryAllocation ? MAV_ERR_NOMEM : MAV_ERR_DEVICE;
  const int name = (int)strcspn(call, "(");
  cudaGetLastError(); /* so that it is not found again */
  rt->host->diag_set(&rt->diag, code, op, file, line, 0, "%.*s: %s (%d): %s", name, call, cudaGetErrorName(e), (int)e, cudaGetErrorString(e));
  rt->diag.native = (long)e;
  if (!passes(e) && !rt->failed) {
    rt->failed = true;
    rt->failure = rt->diag;
    lost = true;
  }
  if (c) c->noted = code;
  return code;
}

cudaError_t mav__cuda_injected(mav_runtime *rt) {
  switch (rt->host->device_fails()) {
    case MAV__FAULT_CALL: return cudaErrorMemoryAllocation;
    case MAV__FAULT_DEVICE: return cudaErrorLaunchFailure;
    default: return cudaSuccess;
  }
}

/* ---- launching -------------------------------------------------------------------------------------------------------- */

/* A block of this kernel may use this much shared memory. */
static mav_err allow_shared(cuda *c, const void *kernel, size_t bytes) {
  int i = 0;
  while (i < c->shared_count && c->shared[i].kernel != kernel) i++;
  if (i < c->shared_count && c->shared[i].bytes >= bytes) return MAV_OK;
  CUDA_TRY(c->rt, c->op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
  if (i == KERNELS_MAX) return MAV_OK; /* asked again every time */
  c->shared[i].kernel = kernel;
  c->shared[i].bytes = bytes;
  if (i == c->shared_count) c->shared_count++;
  return MAV_OK;
}

static int launch(mavk_cuda *k, const mavk_cuda_launch *l) {
  cuda *c = (cuda *)k;
  if (!l->grid[0] || !l->grid[1] || !l->grid[2]) return 0; /* nothing to do */
  if (l->shared_bytes > SHARED_UNASKED && (c->noted = allow_shared(c, l->kernel, l->shared_bytes))) return -1;
  if (c->is_dry) return 0;
  cudaLaunchAttribute overlap = {.id = cudaLaunchAttributeProgrammaticStreamSerialization};
  overlap.val.programmaticStreamSerializationAllowed = 1;
  const cudaLaunchConfig_t config = {.gridDim = {l->grid[0], l->grid[1], l->grid[2]},
                                     .blockDim = {l->block[0], l->block[1], l->block[2]},
                                     .dynamicSmemBytes = l->shared_bytes,
                                     .stream = c->stream,
                                     .attrs = &overlap,
                                     .numAttrs = c->apart || k->off & MAVK_CUDA_OFF_PDL ? 0 : 1};
  void *arguments[] = {(void *)(uintptr_t)l->argument};
  c->noted = CUDA(c->rt, c->op, cudaLaunchKernelExC(&config, l->kernel, arguments));
  c->apart = false;
  c->kernels++;
  return c->noted ? -1 : 0;
}

static int fail(mavk_cuda *k, const char *format, ...) {
  cuda *c = (cuda *)k;
  char text[256];
  va_list ap;
  va_start(ap, format);
  vsnprintf(text, sizeof text, format, ap);
  va_end(ap);
  c->noted = CUDA_FAIL(c->rt, UNSUPPORTED, c->op, "%s", text);
  return -1;
}

mav_err mav__cuda_run(mav_runtime *rt, const mav__node *nodes, int64_t count) {
  cuda *c = mav__cuda(rt);
  if (rt->failed) return mav__cuda_failed(rt);
  for (int64_t i = 0; i < count; i++) {
    c->op = rt->host->op_name(nodes[i].op);
    c->noted = MAV_OK;
    c->apart = c->apart || nodes[i].apart;
    if (!mavk_cuda_table[nodes[i].op](nodes[i].args, &c->k)) continue;
    return c->noted ? c->noted : CUDA_FAIL(rt, DEVICE, c->op, "its kernel could not be launched");
  }
  return MAV_OK;
}

mav_err mav__cuda_run_dry(mav_runtime *rt, const mav__node *nodes, int64_t count) {
  cuda *c = mav__cuda(rt);
  c->is_dry = true;
  const mav_err err = mav__cuda_run(rt, nodes, count);
  c->is_dry = c->apart = false;
  return err;
}

/* ---- a device --------------------------------------------------------------------------------------------------------- */

static int processors(void) {
  cpu_set_t set;
  int n = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
  return n < 1 ? 1 : n > 256 ? 256 : n;
}

/* "pdl,graphs": bits of what is switched off. */
static mav_err read_off(mav_runtime *rt, const char *option, unsigned *off) {
  static const struct {
    const char *name;
    unsigned bit;
  } names[] = {{"pdl", MAVK_CUDA_OFF_PDL}, {"graphs", MAVK_CUDA_OFF_GRAPHS}, {"prefetch", MAVK_CUDA_OFF_PREFETCH},
               {"spatial", MAVK_CUDA_OFF_SPATIAL}, {"tensor", MAVK_CUDA_OFF_TENSOR}, {"blas", MAVK_CUDA_OFF_BLAS}};
  const char *text = option ? option : getenv("MAV_CUDA_OFF");
  *off = 0;
  for (size_t n; text && *text; text += n + (text[n] != 0)) {
    n = strcspn(text, ", ");
    if (!n) continue;
    size_t i = 0;
    while (i < sizeof names / sizeof *names && (strlen(names[i].name) != n || strncmp(names[i].name, text, n))) i++;
    if (i == sizeof names / sizeof *names)
      return CUDA_FAIL(rt, INVALID, OPEN, "%s: \"%.*s\" cannot be switched off; pdl, graphs, prefetch, spatial, tensor and blas can",
                       option ? "off" : "MAV_CUDA_OFF", (int)n, text);
    *off |= names[i].bit;
  }
  return MAV_OK;
}

static mav_err find_device(mav_runtime *rt) {
  int count = 0, driver = 0, runtime = 0;
  cudaError_t e = mav__cuda_injected(rt);
  if (!e) e = cudaGetDeviceCount(&count);
  if (e == cudaErrorInsufficientDriver) {
    cudaGetLastError();
    if (cudaDriverGetVersion(&driver) || driver == 0)
      return CUDA_FAIL(rt, UNSUPPORTED, OPEN, "no NVIDIA driver is installed (libcuda.so.1 is missing)");
    cudaRuntimeGetVersion(&runtime);
    return CUDA_FAIL(rt, UNSUPPORTED, OPEN, "the NVIDIA driver is too old: it knows CUDA %d.%d, and this library needs %d.%d; update the driver",
                     driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
  }
  if (e == cudaErrorNoDevice || (!e && count == 0)) {
    cudaGetLastError();
    return CUDA_FAIL(rt, UNSUPPORTED, OPEN, "there is no CUDA device (or CUDA_VISIBLE_DEVICES hides it)");
  }
  return e ? mav__cuda_error(rt, e, OPEN, "cudaGetDeviceCount()", __FILE__, __LINE__) : MAV_OK;
}

static mav_err check_device(cuda *c) {
  mav_runtime *rt = c->rt;
  int major, minor, multiprocessors, shared;
  struct cudaFuncAttributes attributes;
  CUDA_TRY(rt, OPEN, cudaSetDevice(0));
  CUDA_TRY(rt, OPEN, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  CUDA_TRY(rt, OPEN, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  CUDA_TRY(rt, OPEN, cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  CUDA_TRY(rt, OPEN, cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  if (major < 9)
    return CUDA_FAIL(rt, UNSUPPORTED, OPEN, "the device has compute capability %d.%d; 9.0 (H100) or later is needed", major, minor);
  const cudaError_t e = cudaFuncGetAttributes(&attributes, mavk_cuda_probe());
  if (e == cudaErrorInvalidDeviceFunction || (int)e == 209 /* NoKernelImageForDevice */ || (int)e == 222 /* UnsupportedPtxVersion */) {
    cudaGetLastError();
    return CUDA_FAIL(rt, UNSUPPORTED, OPEN, "this library has no code for compute capability %d.%d; build it for sm_%d%d", major, minor,
                     major, minor);
  }
  if (e) return mav__cuda_error(rt, e, OPEN, "cudaFuncGetAttributes()", __FILE__, __LINE__);
  snprintf(c->isa, sizeof c->isa, "sm_%d%d", major, minor);
  c->k.multiprocessors = multiprocessors;
  c->k.shared_bytes_max = (size_t)shared;
  return MAV_OK;
}

static mav_err cuda_open(mav_runtime *rt, const mav_runtime_options *options) {
  MAV_TRY(find_device(rt));
  cuda *c = rt->host->alloc(sizeof *c);
  if (!c) return CUDA_FAIL(rt, NOMEM, OPEN, "out of host memory");
  rt->impl = c;
  runtimes++;
  c->rt = rt;
  c->op = OPEN;
  c->k.launch = launch;
  c->k.fail = fail;
  c->k.gemm = mav__cuda_gemm;
  MAV_TRY(read_off(rt, options->off, &c->k.off));
  MAV_TRY(check_device(c));
  rt->isa = c->isa;
  rt->threads = options->threads ? options->threads : processors(); /* that unpack weights */
  CUDA_TRY(rt, OPEN, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking));
  MAV_TRY(mav__cuda_memory_open(c));
  c->k.scratch_bytes = SCRATCH_BYTES * (size_t)c->k.multiprocessors;
  MAV_TRY(mav__cuda_alloc(rt, c->k.scratch_bytes, false, &c->k.scratch));
  MAV_TRY(mav__cuda_alloc(rt, MAVK_CUDA_TICKETS * sizeof(uint32_t), true, (void **)&c->k.tickets));
  MAV_TRY(mav__cuda_alloc(rt, sizeof(uint32_t), true, (void **)&c->counter));
  MAV_TRY(mav__cuda_pinned_alloc(rt, sizeof(uint32_t), (void **)&c->arrived));
  *c->arrived = 0;
  return MAV_OK;
}

static void cuda_close(mav_runtime *rt) {
  cuda *c = mav__cuda(rt);
  if (!c) return;
  if (c->stream) cudaStreamSynchronize(c->stream);
  mav__cuda_blas_close(c);
  mav__cuda_free(rt, c->k.scratch, c->k.scratch_bytes);
  mav__cuda_free(rt, c->k.tickets, MAVK_CUDA_TICKETS * sizeof(uint32_t));
  mav__cuda_free(rt, c->counter, sizeof(uint32_t));
  mav__cuda_memory_close(c);
  if (c->stream) cudaStreamDestroy(c->stream);
  if (--runtimes == 0 && lost) {
    cudaDeviceReset();
    lost = false;
  }
  cudaGetLastError();
  rt->host->free(c);
}

static mav_err cuda_bandwidth(mav_runtime *rt, size_t bytes, int repeats, double *gb_per_s) {
  static const char op[] = "runtime_bandwidth";
  cuda *c = mav__cuda(rt);
  cudaEvent_t begin = NULL, end = NULL;
  void *p = NULL;
  float ms;
  mav_err err;
  *gb_per_s = 0;
  c->op = op;
  bytes -= bytes % 16;
  MAV_TRY(mav__cuda_alloc(rt, bytes + 16, true, &p));
  MAV_GOTO(CUDA(rt, op, cudaEventCreate(&begin)));
  MAV_GOTO(CUDA(rt, op, cudaEventCreate(&end)));
  for (int i = 0; i < repeats + 1; i++) { /* the first pass brings the kernel in */
    MAV_GOTO(CUDA(rt, op, cudaEventRecord(begin, c->stream)));
    if (mavk_cuda_sweep(&c->k, p, (int64_t)bytes, (uint32_t *)((char *)p + bytes))) MAV_GOTO(c->noted);
    MAV_GOTO(CUDA(rt, op, cudaEventRecord(end, c->stream)));
    MAV_GOTO(CUDA(rt, op, cudaEventSynchronize(end)));
    MAV_GOTO(CUDA(rt, op, cudaEventElapsedTime(&ms, begin, end)));
    const double rate = (double)bytes / ((double)ms * 1e6);
    if (i && rate > *gb_per_s) *gb_per_s = rate;
  }
done:
  if (begin) cudaEventDestroy(begin);
  if (end) cudaEventDestroy(end);
  mav__cuda_free(rt, p, bytes + 16);
  return err;
}

static mav_err cuda_shuffle(mav_runtime *rt, void *to, const void *from, int64_t n, int64_t d, bool back) {
  cuda *c = mav__cuda(rt);
  c->op = "tensor_shuffle";
  c->noted = MAV_OK;
  return mavk_cuda_shuffle(&c->k, to, from, n, d, back) ? c->noted : MAV_OK;
}

static const mav__backend backend = {
    .name = "cuda",
    .is_device = true,
    .open = cuda_open,
    .close = cuda_close,
    .alloc = mav__cuda_alloc,
    .free = mav__cuda_free,
    .run = mav__cuda_run,
    .bandwidth = cuda_bandwidth,
    .pinned_alloc = mav__cuda_pinned_alloc,
    .pinned_free = mav__cuda_pinned_free,
    .copy_in = mav__cuda_copy_in,
    .copy_out = mav__cuda_copy_out,
    .copy = mav__cuda_copy,
    .fill = mav__cuda_fill,
    .memory = mav__cuda_memory,
    .settle = mav__cuda_settle,
    .graph_new = mav__cuda_graph_new,
    .graph_kernels = mav__cuda_graph_kernels,
    .graph_free = mav__cuda_graph_free,
    .graph_launch = mav__cuda_graph_launch,
    .wait = mav__cuda_wait,
    .poll = mav__cuda_poll,
    .profile = mav__cuda_profile,
    .shuffle = cuda_shuffle,
};

MAV_API const mav__backend *mav_backend_library(const mav__host *host);
const mav__backend *mav_backend_library(const mav__host *host) {
  return host->runtime_bytes == sizeof(mav_runtime) && !strcmp(host->version, MAV_VERSION) ? &backend : NULL;
}
