/* kernels/ref/table.c - the reference backend as a table in the order of ops.def. */
#include "ref.h"

#define MAV_OP(name, doc) \
  static void call_##name(const void *args) { mavk_ref_##name(args); }
#include "../ops.def"

mavk_ref_fn *const mavk_ref_table[MAVK_OP_COUNT] = {
#define MAV_OP(name, doc) [MAVK_OP_##name] = call_##name,
#include "../ops.def"
};
