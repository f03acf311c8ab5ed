/* kernels/cpu/table.c - this instruction set's kernels as a table in the order of ops.def. */
#include "cpu.h"

#define MAV_OP(name, doc) \
  static void call_##name(const void *args, mavk_thread *t) { MAVK_CPU(name)(args, t); }
#include "../ops.def"

mavk_cpu_fn *const MAVK_CPU(table)[MAVK_OP_COUNT] = {
#define MAV_OP(name, doc) [MAVK_OP_##name] = call_##name,
#include "../ops.def"
};
