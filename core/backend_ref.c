/* core/backend_ref.c - the reference backend: one thread, plain C kernels, host memory. */
#include "../kernels/ref/ref.h"
#include "runtime.h"

static mav_err ref_open(mav_runtime *rt, const mav_runtime_options *options) {
  (void)options;
  rt->isa = "c";
  rt->threads = 1;
  rt->impl = mav__pages_new();
  return rt->impl ? MAV_OK : MAV_RT_NOMEM(rt, "runtime_new");
}

static void ref_close(mav_runtime *rt) { mav__pages_free_all(rt->impl); }

static mav_err ref_alloc(mav_runtime *rt, size_t bytes, bool zero, void **out) {
  *out = mav__pages_alloc(rt->impl, bytes, zero);
  return *out ? MAV_OK : MAV_ERR_NOMEM;
}

static void ref_free(mav_runtime *rt, void *p, size_t bytes) { mav__pages_free(rt->impl, p, bytes); }

static mav_err ref_run(mav_runtime *rt, const mav__node *nodes, int64_t count) {
  (void)rt;
  for (int64_t i = 0; i < count; i++) mavk_ref_table[nodes[i].op](nodes[i].args);
  return MAV_OK;
}

static mav_err ref_bandwidth(mav_runtime *rt, size_t bytes, int repeats, double *gb_per_s) {
  float *p;
  MAV_TRY(mav__device_alloc(rt, bytes, true, "runtime_bandwidth", (void **)&p));
  *gb_per_s = 0;
  for (int i = 0; i < repeats + 1; i++) { /* the first pass touches the pages */
    int64_t start = mav_now_ns();
    volatile float sum = 0;
    float s = 0;
    for (size_t k = 0; k < bytes / sizeof *p; k++) s += p[k];
    sum = s;
    (void)sum;
    double rate = (double)bytes / (double)(mav_now_ns() - start);
    if (i && rate > *gb_per_s) *gb_per_s = rate;
  }
  mav__device_free(rt, p, bytes);
  return MAV_OK;
}

const mav__backend mav__backend_ref = {
    .name = "ref",
    .open = ref_open,
    .close = ref_close,
    .alloc = ref_alloc,
    .free = ref_free,
    .run = ref_run,
    .bandwidth = ref_bandwidth,
};
