/* core/backend_cpu.c - the cpu backend: picks the instruction set, runs a list of ops on the thread team with a barrier
 * after each. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/mavk.h"
#include "runtime.h"
#include "threads.h"

typedef void kernel(const void *args, mavk_thread *t);
extern kernel *const mavk_cpu_table_avx2[MAVK_OP_COUNT], *const mavk_cpu_table_avx512[MAVK_OP_COUNT];
float mavk_cpu_probe_avx2(const float *p, int64_t n);
float mavk_cpu_probe_avx512(const float *p, int64_t n);

typedef struct isa {
  const char *name;
  kernel *const *table;
  float (*probe)(const float *p, int64_t n);
} isa;

typedef struct cpu {
  mav__pages *pages;
  mav__threads *threads;
  const isa *isa;
} cpu;

static const isa isas[] = {{"avx512", mavk_cpu_table_avx512, mavk_cpu_probe_avx512}, {"avx2", mavk_cpu_table_avx2, mavk_cpu_probe_avx2}};

static bool has(const char *name) {
  /* every processor with AVX2 has F16C, which clang 14 cannot ask for */
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (!strcmp(name, "avx2")) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

static mav_err choose_isa(mav_runtime *rt, const char *wanted, const isa **out) {
  if (!wanted) wanted = getenv("MAV_CPU_ISA");
  if (wanted && !*wanted) wanted = NULL;
  for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
    if (wanted ? strcmp(wanted, isas[i].name) : !has(isas[i].name)) continue;
    if (!has(isas[i].name)) return MAV_RT_FAIL(rt, UNSUPPORTED, "runtime_new", "this processor does not have %s", wanted);
    *out = &isas[i];
    return MAV_OK;
  }
  if (wanted) return MAV_RT_FAIL(rt, UNSUPPORTED, "runtime_new", "unknown instruction set \"%s\"; there are avx2 and avx512", wanted);
  return MAV_RT_FAIL(rt, UNSUPPORTED, "runtime_new", "the cpu device needs AVX2, FMA and F16C; use the device \"ref\" on this processor");
}

static int processors(void) {
  cpu_set_t set;
  int n = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
  return n < 1 ? 1 : n > 256 ? 256 : n;
}

static mav_err cpu_open(mav_runtime *rt, const mav_runtime_options *options) {
  cpu *c = mav__alloc(sizeof *c);
  if (!c) return MAV_RT_NOMEM(rt, "runtime_new");
  rt->impl = c;
  MAV_TRY(choose_isa(rt, options->isa, &c->isa));
  rt->isa = c->isa->name;
  rt->threads = options->threads ? options->threads : processors();
  if (!(c->pages = mav__pages_new())) return MAV_RT_NOMEM(rt, "runtime_new");
  return mav__threads_new(&c->threads, rt, rt->threads);
}

static void cpu_close(mav_runtime *rt) {
  cpu *c = rt->impl;
  if (!c) return;
  mav__threads_free(c->threads);
  mav__pages_free_all(c->pages);
  mav__free(c);
}

static mav_err cpu_alloc(mav_runtime *rt, size_t bytes, bool zero, void **out) {
  *out = mav__pages_alloc(((cpu *)rt->impl)->pages, bytes, zero);
  return *out ? MAV_OK : MAV_ERR_NOMEM;
}

static void cpu_free(mav_runtime *rt, void *p, size_t bytes) { mav__pages_free(((cpu *)rt->impl)->pages, p, bytes); }

typedef struct job {
  kernel *const *table;
  const mav__node *nodes;
  int64_t count;
} job;

static void run_nodes(void *arg, mavk_thread *t) {
  const job *j = arg;
  for (int64_t i = 0; i < j->count; i++) {
    j->table[j->nodes[i].op](j->nodes[i].args, t);
    if (i + 1 < j->count) mavk_phase(t); /* the last barrier is the team's */
  }
}

static mav_err cpu_run(mav_runtime *rt, const mav__node *nodes, int64_t count) {
  cpu *c = rt->impl;
  job j = {c->isa->table, nodes, count};
  if (count) mav__threads_run(c->threads, run_nodes, &j);
  return MAV_OK;
}

typedef struct sweep {
  float (*probe)(const float *p, int64_t n);
  float *data;
  int64_t count; /* floats */
  bool touch;    /* write instead of read */
} sweep;

static void run_sweep(void *arg, mavk_thread *t) {
  const sweep *s = arg;
  const int64_t part = s->count / t->team->count / 64 * 64;
  float *p = s->data + part * t->index;
  if (s->touch) {
    memset(p, 0, (size_t)part * sizeof *p);
  } else {
    volatile float sink = s->probe(p, part);
    (void)sink;
  }
}

static mav_err cpu_bandwidth(mav_runtime *rt, size_t bytes, int repeats, double *gb_per_s) {
  cpu *c = rt->impl;
  sweep s = {.probe = c->isa->probe, .count = (int64_t)(bytes / sizeof(float)), .touch = true};
  MAV_TRY(mav__device_alloc(rt, bytes, true, "runtime_bandwidth", (void **)&s.data));
  mav__threads_run(c->threads, run_sweep, &s);
  s.touch = false;
  *gb_per_s = 0;
  for (int i = 0; i < repeats; i++) {
    int64_t start = mav_now_ns();
    mav__threads_run(c->threads, run_sweep, &s);
    double rate = (double)bytes / (double)(mav_now_ns() - start);
    if (rate > *gb_per_s) *gb_per_s = rate;
  }
  mav__device_free(rt, s.data, bytes);
  return MAV_OK;
}

const mav__backend mav__backend_cpu = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .run = cpu_run,
    .bandwidth = cpu_bandwidth,
};
