/* kernels/ref/table.c - the reference backend as a table in the order of ops.def. */
#include "ref.h"

mavk_ref_fn *const mavk_ref_table[MAVK_OP_COUNT] = {
#define MAV_OP(name, doc) [MAVK_OP_##name] = (mavk_ref_fn *)mavk_ref_##name,
#include "../ops.def"
};
