/* tests/simt/runtime.cc - the runtime API: memory, streams, events, launches. Graphs are in graph.cc, properties in device.cc. */
#include <ctime>
#include <set>

#include "stream.h"

/* ---- errors ------------------------------------------------------------------------------------------------------------- */

static cudaError_t last_error, planted_error;
static int64_t planted_in;

std::recursive_mutex &simt_lock() {
  static std::recursive_mutex lock;
  return lock;
}

cudaError_t call_fails(cudaError_t e) { return last_error = e; }

cudaError_t call_begin() {
  if (simt_fault_now.error) return call_fails(simt_fault_now.error);
  if (planted_in && !--planted_in) return call_fails(planted_error);
  return cudaSuccess;
}

void simt_fail_call(int64_t n, cudaError_t e) {
  std::lock_guard<std::recursive_mutex> guard(simt_lock());
  planted_in = n, planted_error = e;
}

/* What a call returns that may have run something. */
static cudaError_t ran() { return simt_fault_now.error ? call_fails(simt_fault_now.error) : cudaSuccess; }

const char *cudaGetErrorName(cudaError_t e) {
  switch (e) {
#define X(name, value, text) \
  case name: return #name;
    SIMT_ERRORS(X)
#undef X
  }
  return "unrecognized error code";
}
const char *cudaGetErrorString(cudaError_t e) {
  switch (e) {
#define X(name, value, text) \
  case name: return text;
    SIMT_ERRORS(X)
#undef X
  }
  return "unrecognized error code";
}
cudaError_t cudaPeekAtLastError() { return simt_fault_now.error ? simt_fault_now.error : last_error; }
cudaError_t cudaGetLastError() {
  const cudaError_t e = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return e;
}

/* ---- streams: work that waits --------------------------------------------------------------------------------------------- */

static std::set<CUstream_st *> &streams() {
  static std::set<CUstream_st *> all;
  return all;
}

CUstream_st *stream_of(cudaStream_t s) {
  static CUstream_st *const legacy = [] {
    CUstream_st *p = new CUstream_st{};
    p->blocking = true;
    streams().insert(p);
    return p;
  }();
  if (s == nullptr || s == cudaStreamLegacy || s == cudaStreamPerThread) return legacy;
  return streams().count(s) ? s : nullptr;
}

static int64_t now_ns() {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static bool overlaps(const queued &q) { return q.node->what == PIECE_KERNEL && q.node->l.pdl && !q.early; }

/* A block of a kernel that overlaps the one before runs up to its wait now; at times of the next one too, which may start as soon as the
 * blocks of that one have. */
static void run_ahead(CUstream_st *s) {
  if (s->queue[0].node->what != PIECE_KERNEL) return;
  const size_t deep = 1 + (simt_random() & 1);
  for (size_t i = 1; i <= deep && i < s->queue.size() && s->queue[i].node->what == PIECE_KERNEL && s->queue[i].node->l.pdl; i++) {
    if (!overlaps(s->queue[i])) continue;
    s->queue[i].early = run_new(&s->queue[i].node->l);
    run_early(s->queue[i].early);
  }
}

static void drain(CUstream_st *s);

static void run_first(CUstream_st *s) {
  run_ahead(s);
  if (simt_fault_now.error) return;
  const queued q = s->queue.front();
  s->queue.pop_front();
  const CUgraphNode_st *n = q.node.get();
  switch (n->what) {
    case PIECE_KERNEL: run_finish(q.early ? q.early : run_new(&n->l)); break;
    case PIECE_COPY:
      memory_open();
      memmove(n->to, n->from, n->bytes);
      memory_close();
      break;
    case PIECE_FILL:
      memory_open();
      memset(n->to, n->value, n->bytes);
      memory_close();
      break;
    case PIECE_HOST: n->host(n->data); break;
    case PIECE_FREE:
      if (!memory_free(n->to)) fault_report(cudaErrorIllegalAddress, "freed twice: %p", n->to);
      break;
    case PIECE_RECORD: n->event->done = n->count, n->event->done_ns = now_ns(); break;
    case PIECE_WAIT:
      while (n->event->done < n->count && n->event->stream && !n->event->stream->queue.empty() && !simt_fault_now.error)
        run_first(n->event->stream);
      break;
  }
}

static void drop(CUstream_st *s) {
  for (queued &q : s->queue)
    if (q.early) run_abandon(q.early);
  s->queue.clear();
}

static void drain(CUstream_st *s) {
  if (s->queue.empty()) return;
  memory_open(); /* once for all of it */
  while (!s->queue.empty() && !simt_fault_now.error) run_first(s);
  memory_close();
  if (simt_fault_now.error) drop(s);
}

static void drain_all() {
  for (CUstream_st *s : streams()) drain(s);
}

void stream_push(CUstream_st *s, const node_ref &n) {
  enum { QUEUE_MAX = 4096 };
  if (s->queue.size() >= QUEUE_MAX) drain(s);
  s->queue.push_back({n, nullptr});
}

cudaError_t stream_add(CUstream_st *s, node_ref n) {
  if (!s->capture) {
    stream_push(s, n);
    return cudaSuccess;
  }
  if (s->capture_broken) return call_fails(cudaErrorStreamCaptureInvalidated);
  if (n->what >= PIECE_FREE) {
    s->capture_broken = true;
    return call_fails(cudaErrorStreamCaptureUnsupported);
  }
  s->capture->nodes.push_back(n);
  return cudaSuccess;
}

bool any_capture_forbids() {
  bool forbidden = false;
  for (CUstream_st *s : streams())
    if (s->capture && s->capture_mode != cudaStreamCaptureModeRelaxed) forbidden = s->capture_broken = true;
  return forbidden;
}

/* A wait for a stream that captures breaks the capture. */
static bool captures(CUstream_st *s) {
  if (s->capture) s->capture_broken = true;
  return s->capture;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) {
  SIMT_CALL();
  CUstream_st *s = new CUstream_st{};
  s->blocking = !(flags & cudaStreamNonBlocking);
  streams().insert(s);
  *out = s;
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *out) { return cudaStreamCreateWithFlags(out, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int) { return cudaStreamCreateWithFlags(out, flags); }

cudaError_t cudaStreamDestroy(cudaStream_t h) {
  std::lock_guard<std::recursive_mutex> guard(simt_lock());
  CUstream_st *s = h ? stream_of(h) : nullptr;
  if (!s) return call_fails(cudaErrorInvalidResourceHandle);
  drain(s);
  streams().erase(s);
  delete s->capture;
  delete s;
  return ran();
}

cudaError_t cudaStreamSynchronize(cudaStream_t h) {
  SIMT_CALL();
  CUstream_st *s = stream_of(h);
  if (!s) return call_fails(cudaErrorInvalidResourceHandle);
  if (captures(s)) return call_fails(cudaErrorStreamCaptureUnsupported);
  drain(s);
  return ran();
}

cudaError_t cudaStreamQuery(cudaStream_t h) {
  SIMT_CALL();
  CUstream_st *s = stream_of(h);
  if (!s) return call_fails(cudaErrorInvalidResourceHandle);
  if (captures(s)) return call_fails(cudaErrorStreamCaptureUnsupported);
  if (s->queue.empty()) return cudaSuccess;
  if (simt_random() & 3)
    drain(s);
  else
    run_first(s);
  if (simt_fault_now.error) drop(s);
  return simt_fault_now.error ? ran() : cudaErrorNotReady;
}

cudaError_t cudaDeviceSynchronize() {
  SIMT_CALL();
  if (any_capture_forbids()) return call_fails(cudaErrorStreamCaptureUnsupported);
  drain_all();
  return ran();
}

cudaError_t cudaLaunchHostFunc(cudaStream_t h, cudaHostFn_t f, void *data) {
  SIMT_CALL();
  CUstream_st *s = stream_of(h);
  if (!s || !f) return call_fails(cudaErrorInvalidValue);
  auto n = std::make_shared<CUgraphNode_st>();
  n->what = PIECE_HOST;
  n->host = f;
  n->data = data;
  return stream_add(s, n);
}

/* ---- events ------------------------------------------------------------------------------------------------------------------ */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) {
  SIMT_CALL();
  *e = new CUevent_st{std::make_shared<event_state>()};
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) {
  if (!e) return call_fails(cudaErrorInvalidResourceHandle);
  delete e;
  return cudaSuccess;
}

static cudaError_t add_event(cudaEvent_t e, cudaStream_t h, piece what) {
  CUstream_st *s = stream_of(h);
  if (!s || !e) return call_fails(cudaErrorInvalidResourceHandle);
  auto n = std::make_shared<CUgraphNode_st>();
  n->what = what;
  n->event = e->state;
  if (what == PIECE_RECORD && !s->capture) e->state->recorded++, e->state->stream = s;
  n->count = e->state->recorded;
  return stream_add(s, n);
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  SIMT_CALL();
  return add_event(e, s, PIECE_RECORD);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  SIMT_CALL();
  return add_event(e, s, PIECE_WAIT);
}

static bool event_pending(cudaEvent_t e) {
  const event_state *s = e->state.get();
  return s->done < s->recorded && streams().count(s->stream) && !s->stream->queue.empty();
}

cudaError_t cudaEventQuery(cudaEvent_t e) {
  SIMT_CALL();
  if (!event_pending(e)) return cudaSuccess;
  run_first(e->state->stream);
  return simt_fault_now.error ? ran() : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  SIMT_CALL();
  memory_open();
  while (event_pending(e) && !simt_fault_now.error) run_first(e->state->stream);
  memory_close();
  return ran();
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
  SIMT_CALL();
  if (!a->state->recorded || !b->state->recorded) return call_fails(cudaErrorInvalidResourceHandle);
  if (event_pending(a) || event_pending(b)) return call_fails(cudaErrorNotReady);
  *ms = (float)(b->state->done_ns - a->state->done_ns) * 1e-6f;
  return cudaSuccess;
}

/* ---- kernels --------------------------------------------------------------------------------------------------------------------- */

/* A kernel with its argument, copied. */
node_ref kernel_node(const void *kernel, const kernel_info *k, const void *argument, dim3 grid, dim3 block, size_t shared_bytes, bool pdl) {
  auto n = std::make_shared<CUgraphNode_st>();
  n->what = PIECE_KERNEL;
  n->argument.resize((k->argument_bytes + 7) / 8 + 2);
  unsigned char *copy = (unsigned char *)n->argument.data();
  copy += (uintptr_t)copy % 16; /* as a kernel's parameters are: 16 is the most that a vector asks for */
  memcpy(copy, argument, k->argument_bytes);
  n->l = {kernel, copy, k->call, k->type, grid, block, shared_bytes, pdl};
  return n;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *kernel, void **args) {
  SIMT_CALL();
  const kernel_info *k = kernel_find(kernel);
  CUstream_st *s = stream_of(c->stream);
  if (!k || !args || !args[0]) return call_fails(cudaErrorInvalidDeviceFunction);
  if (!s) return call_fails(cudaErrorInvalidResourceHandle);
  const dim3 g = c->gridDim, b = c->blockDim;
  if (!g.x || !g.y || !g.z || !b.x || !b.y || !b.z || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535 || b.x > 1024 || b.y > 1024 ||
      b.z > 64 || (uint64_t)b.x * b.y * b.z > THREADS_MAX)
    return call_fails(cudaErrorInvalidConfiguration);
  if (c->dynamicSmemBytes > k->shared_bytes_max) return call_fails(cudaErrorInvalidValue);
  bool pdl = false;
  for (unsigned i = 0; i < c->numAttrs; i++)
    if (c->attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization) pdl = c->attrs[i].val.programmaticStreamSerializationAllowed;
  return stream_add(s, kernel_node(kernel, k, args[0], g, b, c->dynamicSmemBytes, pdl));
}

cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **args, size_t shared_bytes, cudaStream_t s) {
  const cudaLaunchConfig_t c = {grid, block, shared_bytes, s, nullptr, 0};
  return cudaLaunchKernelExC(&c, kernel, args);
}

/* Only of a kernel that mavk_run has seen. */
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
  SIMT_CALL();
  kernel_info *k = kernel_find(kernel);
  if (!k) return call_fails(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > SHARED_BYTES_MAX) return call_fails(cudaErrorInvalidValue);
  k->shared_bytes_max = (size_t)value;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *kernel) {
  SIMT_CALL();
  if (!kernel) return call_fails(cudaErrorInvalidDeviceFunction);
  const kernel_info *k = kernel_find(kernel); /* NULL: never launched yet */
  *a = {};
  a->maxThreadsPerBlock = THREADS_MAX;
  a->numRegs = 32;
  a->ptxVersion = a->binaryVersion = 90;
  a->maxDynamicSharedSizeBytes = k ? (int)k->shared_bytes_max : (int)SHARED_BYTES_PLAIN;
  return cudaSuccess;
}

/* ---- memory ------------------------------------------------------------------------------------------------------------------------- */

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
  SIMT_CALL();
  *total = memory_limit();
  *available = *total - memory_live();
  return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes) {
  SIMT_CALL();
  if (any_capture_forbids()) return call_fails(cudaErrorStreamCaptureUnsupported);
  *p = nullptr;
  if (!bytes) return cudaSuccess;
  if (!(*p = memory_alloc(bytes))) { /* what is to be freed may make room */
    drain_all();
    if (!(*p = memory_alloc(bytes))) return call_fails(cudaErrorMemoryAllocation);
  }
  return cudaSuccess;
}
cudaError_t cudaFree(void *p) {
  std::lock_guard<std::recursive_mutex> guard(simt_lock());
  if (any_capture_forbids()) return call_fails(cudaErrorStreamCaptureUnsupported);
  drain_all();
  if (p && !memory_free(p)) return call_fails(cudaErrorInvalidValue);
  return ran();
}
cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t h) {
  {
    SIMT_CALL();
    CUstream_st *s = stream_of(h);
    if (!s) return call_fails(cudaErrorInvalidResourceHandle);
    if (captures(s)) return call_fails(cudaErrorStreamCaptureUnsupported);
    if (!bytes) return call_fails(cudaErrorInvalidValue);
    if ((*p = memory_alloc(bytes))) return cudaSuccess;
    drain(s);
    if ((*p = memory_alloc(bytes))) return cudaSuccess;
  }
  return call_fails(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeAsync(void *p, cudaStream_t h) {
  std::lock_guard<std::recursive_mutex> guard(simt_lock());
  CUstream_st *s = stream_of(h);
  if (!s || !memory_holds(p, 1)) return call_fails(cudaErrorInvalidValue);
  if (simt_fault_now.error) return memory_free(p), simt_fault_now.error;
  auto n = std::make_shared<CUgraphNode_st>();
  n->what = PIECE_FREE;
  n->to = p;
  return stream_add(s, n);
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) {
  SIMT_CALL();
  return (*p = pinned_alloc(bytes)) ? cudaSuccess : call_fails(cudaErrorMemoryAllocation);
}
cudaError_t cudaMallocHost(void **p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }
cudaError_t cudaFreeHost(void *p) {
  std::lock_guard<std::recursive_mutex> guard(simt_lock());
  drain_all();
  return !p || pinned_free(p) ? ran() : call_fails(cudaErrorInvalidValue);
}
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned) {
  SIMT_CALL();
  if (!pinned_holds(host)) return call_fails(cudaErrorInvalidValue);
  *device = host;
  return cudaSuccess;
}

/* One side of a copy: device memory where the kind says so, and all of it allocated. */
static bool side_fits(const void *p, size_t bytes, bool device, bool unknown, const char *what) {
  if (memory_is_device(p)) {
    if (!unknown && !device) {
      fprintf(stderr, "simt: a copy %s %p, which is device memory, not the host's\n", what, p);
      return false;
    }
    if (memory_holds(p, bytes)) return true;
    char text[256];
    memory_describe(p, text, sizeof text);
    fprintf(stderr, "simt: %zu bytes are copied or set %s %p, and not all are allocated (%s)\n", bytes, what, p, text);
    return false;
  }
  if (!unknown && device && !pinned_holds(p)) {
    fprintf(stderr, "simt: a copy %s %p, which is not device memory\n", what, p);
    return false;
  }
  return true;
}

static cudaError_t add_copy(CUstream_st *s, void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
  if (!s) return call_fails(cudaErrorInvalidResourceHandle);
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return call_fails(cudaErrorInvalidMemcpyDirection);
  if (!bytes) return cudaSuccess;
  const bool unknown = kind == cudaMemcpyDefault;
  if (!side_fits(to, bytes, kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice, unknown, "to") ||
      !side_fits(from, bytes, kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice, unknown, "from"))
    return call_fails(cudaErrorInvalidValue);
  auto n = std::make_shared<CUgraphNode_st>();
  n->what = PIECE_COPY;
  n->to = to;
  n->from = from;
  n->bytes = bytes;
  return stream_add(s, n);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t h) {
  SIMT_CALL();
  CUstream_st *s = stream_of(h);
  if (cudaError_t e = add_copy(s, to, from, bytes, kind)) return e;
  /* memory of the host that is not pinned: done, or read, when the call returns */
  const bool pageable = (!memory_is_device(to) && !pinned_holds(to)) || (!memory_is_device(from) && !pinned_holds(from));
  if (pageable && !s->capture) drain(s);
  return ran();
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
  SIMT_CALL();
  if (any_capture_forbids()) return call_fails(cudaErrorStreamCaptureUnsupported);
  for (CUstream_st *s : streams())
    if (s->blocking) drain(s);
  if (cudaError_t e = add_copy(stream_of(nullptr), to, from, bytes, kind)) return e;
  drain(stream_of(nullptr));
  return ran();
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t h) {
  SIMT_CALL();
  CUstream_st *s = stream_of(h);
  if (!s) return call_fails(cudaErrorInvalidResourceHandle);
  if (!bytes) return cudaSuccess;
  if (!side_fits(to, bytes, true, false, "to")) return call_fails(cudaErrorInvalidValue);
  auto n = std::make_shared<CUgraphNode_st>();
  n->what = PIECE_FILL;
  n->to = to;
  n->value = value;
  n->bytes = bytes;
  return stream_add(s, n);
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) {
  SIMT_CALL();
  if (device) return call_fails(cudaErrorInvalidDevice);
  *pool = (cudaMemPool_t)(uintptr_t)16;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) {
  SIMT_CALL();
  return cudaSuccess;
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void *value) {
  SIMT_CALL();
  if (attribute < cudaMemPoolAttrReleaseThreshold)
    *(int *)value = 1;
  else
    *(uint64_t *)value = attribute == cudaMemPoolAttrReleaseThreshold ? 0 : memory_live();
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) {
  SIMT_CALL();
  return cudaSuccess;
}

cudaError_t cudaDeviceReset() {
  std::lock_guard<std::recursive_mutex> guard(simt_lock());
  for (CUstream_st *s : streams()) drop(s);
  memory_free_all();
  simt_fault_now = {};
  last_error = cudaSuccess;
  planted_in = 0;
  return cudaSuccess;
}
