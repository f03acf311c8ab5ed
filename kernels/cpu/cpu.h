/* kernels/cpu/cpu.h - the vectorized backend: one source, built once per instruction set (MAVK_ISA).
 *
 * Every thread of the team calls the kernel (kernels/team.h). Arithmetic is written on 16 virtual lanes (simd.h), so the
 * AVX2 and AVX-512 builds give the same bits, whatever the thread count.
 */
#ifndef MAVK_CPU_H
#define MAVK_CPU_H

#include "../mavk.h"
#include "../team.h"

#ifndef MAVK_ISA
#define MAVK_ISA avx2
#define MAVK_ISA_avx2 1
#endif
#define MAVK_PASTE_(a, b, c) a##b##_##c
#define MAVK_PASTE(a, b, c) MAVK_PASTE_(a, b, c)
/* mavk_cpu_<name>_<isa> */
#define MAVK_CPU(name) MAVK_PASTE(mavk_cpu_, name, MAVK_ISA)

#define MAV_OP(name, doc) void MAVK_CPU(name)(const mavk_args_##name *a, mavk_thread *t);
#include "../ops.def"

typedef void mavk_cpu_fn(const void *args, mavk_thread *t);
extern mavk_cpu_fn *const MAVK_CPU(table)[MAVK_OP_COUNT];

/* Sums n floats at p, for the bandwidth probe. */
float MAVK_CPU(probe)(const float *p, int64_t n);

static inline int64_t mavk_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t mavk_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t mavk_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t mavk_round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

/* Rows of a contiguous array seen as (rows, last dimension). */
static inline int64_t mavk_row_count(const mavk_array *x) {
  int64_t n = 1;
  for (int i = 0; i + 1 < x->nd; i++) n *= x->n[i];
  return n;
}
static inline int64_t mavk_row_size(const mavk_array *x) { return x->nd ? x->n[x->nd - 1] : 1; }

#endif
