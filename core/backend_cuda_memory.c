/* core/backend_cuda_memory.c - memory of the cuda backend: the device's, from its stream-ordered pool; pinned host memory in small blocks; and
 * copies between them.
 *
 * What the host gives goes through a ring of pinned stages: the bytes are copied there at once, so the caller may change them, and the
 * device fetches them in its own time. A stage is filled again when the event behind its last copy has passed. */
#include <string.h>

#include "backend_cuda.h"

#define SLAB_BYTES ((size_t)1 << 20)
#define BLOCK_BYTES ((size_t)256) /* the smallest pinned block */

mav_err mav__cuda_memory_open(cuda *c) {
  mav_runtime *rt = c->rt;
  uint64_t keep = UINT64_MAX; /* freed memory stays with the process: eager ops ask for the same sizes again and again */
  CUDA_TRY(rt, c->op, cudaDeviceGetDefaultMemPool(&c->pool, 0));
  CUDA_TRY(rt, c->op, cudaMemPoolSetAttribute(c->pool, cudaMemPoolAttrReleaseThreshold, &keep));
  for (int i = 0; i < STAGES; i++) {
    CUDA_TRY(rt, c->op, cudaMallocHost((void **)&c->stage[i].data, STAGE_BYTES));
    CUDA_TRY(rt, c->op, cudaEventCreateWithFlags(&c->stage[i].used, cudaEventDisableTiming));
  }
  return MAV_OK;
}

/* After settle: nothing is under way. */
void mav__cuda_memory_close(cuda *c) {
  for (int i = 0; i < STAGES; i++) {
    if (c->stage[i].used) cudaEventDestroy(c->stage[i].used);
    if (c->stage[i].data) cudaFreeHost(c->stage[i].data);
  }
  for (slab *s = c->slabs, *next; s; s = next) {
    next = s->next;
    cudaFreeHost(s->data);
    c->rt->host->free(s);
  }
  if (c->stream) cudaStreamSynchronize(c->stream); /* frees are ordered too */
  if (c->pool) cudaMemPoolTrimTo(c->pool, 0);
}

mav_err mav__cuda_alloc(mav_runtime *rt, size_t bytes, bool zero, void **out) {
  static const char op[] = "alloc";
  cuda *c = mav__cuda(rt);
  *out = NULL;
  CUDA_TRY(rt, op, cudaMallocAsync(out, bytes, c->stream));
  rt->host->device_count((int64_t)bytes);
  if (!zero) return MAV_OK;
  mav_err err = CUDA(rt, op, cudaMemsetAsync(*out, 0, bytes, c->stream));
  if (!err) return MAV_OK;
  mav__cuda_free(rt, *out, bytes);
  *out = NULL;
  return err;
}

void mav__cuda_free(mav_runtime *rt, void *p, size_t bytes) {
  if (!p) return;
  if (cudaFreeAsync(p, mav__cuda(rt)->stream)) cudaGetLastError(); /* a lost device has nothing to give back */
  rt->host->device_count(-(int64_t)bytes);
}

/* ---- pinned memory ---------------------------------------------------------------------------------------------------- */

static int class_of(size_t bytes) {
  int i = 0;
  while (i < PINNED_CLASSES && BLOCK_BYTES << i < bytes) i++;
  return i;
}

/* A new slab, cut into blocks of a class; or one block, larger than all classes. */
static mav_err slab_new(cuda *c, int class, size_t bytes, void **out) {
  slab *s = c->rt->host->alloc(sizeof *s);
  if (!s) return CUDA_FAIL(c->rt, NOMEM, "pinned_alloc", "out of host memory");
  mav_err err = CUDA(c->rt, "pinned_alloc", cudaMallocHost(&s->data, bytes));
  if (err) {
    c->rt->host->free(s);
    return err;
  }
  s->next = c->slabs;
  c->slabs = s;
  *out = s->data;
  if (class == PINNED_CLASSES) return MAV_OK;
  for (size_t at = 0; at + (BLOCK_BYTES << class) <= bytes; at += BLOCK_BYTES << class) {
    void *block = (char *)s->data + at;
    *(void **)block = c->blocks[class];
    c->blocks[class] = block;
  }
  return MAV_OK;
}

mav_err mav__cuda_pinned_alloc(mav_runtime *rt, size_t bytes, void **out) {
  cuda *c = mav__cuda(rt);
  const int class = class_of(bytes);
  *out = NULL;
  if (class == PINNED_CLASSES) return slab_new(c, class, bytes, out);
  void *p;
  if (!c->blocks[class]) MAV_TRY(slab_new(c, class, SLAB_BYTES, &p));
  *out = c->blocks[class];
  memcpy(&c->blocks[class], *out, sizeof(void *));
  return MAV_OK;
}

/* The caller has seen to it that no launch under way writes there. */
void mav__cuda_pinned_free(mav_runtime *rt, void *p, size_t bytes) {
  cuda *c = mav__cuda(rt);
  const int class = class_of(bytes);
  if (!p) return;
  if (class < PINNED_CLASSES) {
    memcpy(p, &c->blocks[class], sizeof(void *));
    c->blocks[class] = p;
    return;
  }
  slab **s = &c->slabs;
  while ((*s)->data != p) s = &(*s)->next;
  slab *gone = *s;
  *s = gone->next;
  cudaFreeHost(p);
  rt->host->free(gone);
}

/* ---- copies ----------------------------------------------------------------------------------------------------------- */

/* The next stage, when the device has fetched what was in it. */
static mav_err turn(cuda *c) {
  mav_runtime *rt = c->rt;
  stage *s = &c->stage[c->at];
  CUDA_TRY(rt, "copy_in", cudaEventRecord(s->used, c->stream));
  s->recorded = true;
  c->at = (c->at + 1) % STAGES;
  c->filled = 0;
  s = &c->stage[c->at];
  if (s->recorded) CUDA_TRY(rt, "copy_in", cudaEventSynchronize(s->used));
  s->recorded = false;
  return MAV_OK;
}

mav_err mav__cuda_copy_in(mav_runtime *rt, void *device, const void *host, size_t bytes) {
  cuda *c = mav__cuda(rt);
  for (size_t done = 0, n; done < bytes; done += n) {
    if (c->filled == STAGE_BYTES || (bytes < STAGE_BYTES / 16 && STAGE_BYTES - c->filled < bytes)) MAV_TRY(turn(c));
    n = bytes - done < STAGE_BYTES - c->filled ? bytes - done : STAGE_BYTES - c->filled;
    char *staged = c->stage[c->at].data + c->filled;
    memcpy(staged, (const char *)host + done, n);
    CUDA_TRY(rt, "copy_in", cudaMemcpyAsync((char *)device + done, staged, n, cudaMemcpyHostToDevice, c->stream));
    c->filled += (n + 63) / 64 * 64;
    if (c->filled > STAGE_BYTES) c->filled = STAGE_BYTES;
  }
  return MAV_OK;
}

mav_err mav__cuda_copy_out(mav_runtime *rt, void *host, const void *device, size_t bytes) {
  if (bytes) CUDA_TRY(rt, "copy_out", cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, mav__cuda(rt)->stream));
  return mav__cuda_settle(rt);
}

mav_err mav__cuda_copy(mav_runtime *rt, void *to, const void *from, size_t bytes) {
  return CUDA(rt, "copy", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, mav__cuda(rt)->stream));
}

mav_err mav__cuda_fill(mav_runtime *rt, void *device, int byte, size_t bytes) {
  return CUDA(rt, "fill", cudaMemsetAsync(device, byte, bytes, mav__cuda(rt)->stream));
}

void mav__cuda_memory(mav_runtime *rt, size_t *available, size_t *total) {
  if (!rt->failed && cudaMemGetInfo(available, total)) *available = *total = 0, cudaGetLastError();
}

mav_err mav__cuda_settle(mav_runtime *rt) {
  cuda *c = mav__cuda(rt);
  CUDA_TRY(rt, "wait", cudaStreamSynchronize(c->stream));
  c->seen = c->launched;
  return MAV_OK;
}
