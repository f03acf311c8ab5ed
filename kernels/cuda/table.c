/* kernels/cuda/table.c - the ops of this backend by number. */
#include "launch.h"

mavk_cuda_fn *const mavk_cuda_table[MAVK_OP_COUNT] = {
#define MAV_OP(name, doc) [MAVK_OP_##name] = (mavk_cuda_fn *)mavk_cuda_##name,
#include "../ops.def"
};
