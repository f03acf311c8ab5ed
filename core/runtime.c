/* core/runtime.c - creation and release of a runtime, its device memory and the arena of planned memory.
 * Owns the backend's state. Freed when the last object made from it is released. */
#include "runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const mav__backend *const backends[] = {&mav__backend_cpu, &mav__backend_ref};

static void close_device(mav_runtime *rt) {
  if (rt->backend) rt->backend->close(rt);
  mav__library_close(rt);
}

/* A new runtime of one device. */
static mav_err open_device(mav_runtime **out, const char *device, const mav_runtime_options *options, mav_diag *diag) {
  mav_runtime *rt = mav__alloc(sizeof *rt);
  if (!rt) return MAV_FAIL(diag, NOMEM, "runtime_new", "out of host memory");
  rt->refs = 1;
  mav_err err = MAV_OK;
  for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
    if (!strcmp(backends[i]->name, device)) rt->backend = backends[i];
  if (!strcmp(device, "cuda")) err = mav__library_open(rt, options);
  else if (!rt->backend) err = MAV_RT_FAIL(rt, UNSUPPORTED, "runtime_new", "unknown device \"%s\"; there are auto, cuda, cpu and ref", device);
  if (!err) err = rt->backend->open(rt, options);
  if (err) {
    if (diag) *diag = rt->diag;
    close_device(rt);
    mav__free(rt);
    return err;
  }
  *out = rt;
  return MAV_OK;
}

mav_err mav_runtime_new(mav_runtime **out, const mav_runtime_options *options, mav_diag *diag) {
  static const mav_runtime_options defaults;
  *out = NULL;
  if (!options) options = &defaults;
  if (options->threads < 0 || options->threads > 256)
    return MAV_FAIL(diag, RANGE, "runtime_new", "threads = %d; expected 0 (all processors) to 256", options->threads);
  if (options->device && strcmp(options->device, "auto")) return open_device(out, options->device, options, diag);
  mav_diag why = {0};
  if (!options->isa) { /* isa: somebody means the cpu */
    const mav_err err = open_device(out, "cuda", options, &why);
    if (err && err != MAV_ERR_UNSUPPORTED && diag) *diag = why;
    if (err != MAV_ERR_UNSUPPORTED) return err; /* there is a device, and something is wrong with it, or with what was said of it */
  }
  MAV_TRY(open_device(out, "cpu", options, diag));
  (*out)->fallback = why;
  return MAV_OK;
}

mav_runtime *mav_runtime_retain(mav_runtime *rt) {
  rt->refs++;
  return rt;
}

void mav_runtime_release(mav_runtime *rt) {
  if (!rt || --rt->refs) return;
  mav__device_free(rt, rt->arena, rt->arena_bytes);
  close_device(rt);
  mav__free(rt);
}

mav_err mav__runtime_failed(mav_runtime *rt) {
  rt->diag = rt->failure;
  return rt->failure.code;
}

const mav_diag *mav_runtime_diag(const mav_runtime *rt) { return &rt->diag; }
const char *mav_runtime_device(const mav_runtime *rt) { return rt->backend->name; }
const char *mav_runtime_isa(const mav_runtime *rt) { return rt->isa; }
int mav_runtime_threads(const mav_runtime *rt) { return rt->threads; }
const char *mav_runtime_fallback(const mav_runtime *rt) { return rt->fallback.text[0] ? rt->fallback.text : NULL; }

mav_err mav_runtime_wait(mav_runtime *rt) {
  if (!rt->backend->is_device) return MAV_OK;
  if (rt->capture) return MAV_RT_FAIL(rt, STATE, "runtime_wait", "a capture is open on this runtime");
  MAV_RT_TRY_ALIVE(rt);
  return rt->backend->settle(rt);
}

void mav_runtime_memory(const mav_runtime *rt, mav_memory_stats *out) {
  *out = (mav_memory_stats){.host_bytes_live = mav__mem_live(),
                            .host_allocs = mav__mem_allocs(),
                            .device_bytes_live = rt->device_live,
                            .device_bytes_max = rt->device_max,
                            .arena_bytes = (int64_t)rt->arena_bytes};
}

int64_t mav_now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

mav_err mav_runtime_bandwidth(mav_runtime *rt, size_t bytes, int repeats, double *gb_per_s) {
  if (bytes < (1 << 20) || repeats < 1)
    return MAV_RT_FAIL(rt, RANGE, "runtime_bandwidth", "bytes = %zu, repeats = %d; expected at least 1 MiB and 1", bytes, repeats);
  return rt->backend->bandwidth(rt, bytes, repeats, gb_per_s);
}

mav_err mav__device_alloc(mav_runtime *rt, size_t bytes, bool zero, const char *op, void **out) {
  *out = NULL;
  MAV_RT_TRY_ALIVE(rt);
  if (bytes == 0) return MAV_OK;
  const mav_err err = rt->backend->alloc(rt, bytes, zero, out);
  if (err == MAV_ERR_NOMEM) {
    char device[96] = "";
    size_t available = 0, total = 0;
    if (rt->backend->memory) rt->backend->memory(rt, &available, &total);
    if (total) snprintf(device, sizeof device, "; of the device's %.1f MiB %.1f are free", (double)total / 1048576, (double)available / 1048576);
    return MAV_RT_FAIL(rt, NOMEM, op, "out of memory on %s: %.1f MiB asked for, %.1f MiB in use here%s", rt->backend->name,
                       (double)bytes / 1048576, (double)rt->device_live / 1048576, device);
  }
  MAV_TRY(err);
  rt->device_live += (int64_t)bytes;
  if (rt->device_live > rt->device_max) rt->device_max = rt->device_live;
  return MAV_OK;
}

void mav__device_free(mav_runtime *rt, void *p, size_t bytes) {
  if (!p) return;
  rt->backend->free(rt, p, bytes);
  rt->device_live -= (int64_t)bytes;
}

mav_err mav__arena_reserve(mav_runtime *rt, size_t bytes) {
  if (bytes <= rt->arena_bytes) return MAV_OK;
  void *p;
  MAV_TRY(mav__device_alloc(rt, bytes, true, "graph_end", &p));
  mav__device_free(rt, rt->arena, rt->arena_bytes);
  rt->arena = p;
  rt->arena_bytes = bytes;
  rt->arena_version++;
  return MAV_OK;
}
