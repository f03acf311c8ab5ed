/* kernels/ref/ref.h - the reference backend: plain C, float32, one thread, written for reading. It defines every op. */
#ifndef MAVK_REF_H
#define MAVK_REF_H

#include "../mavk.h"

#define MAV_OP(name, doc) void mavk_ref_##name(const mavk_args_##name *a);
#include "../ops.def"

typedef void mavk_ref_fn(const void *args);
extern mavk_ref_fn *const mavk_ref_table[MAVK_OP_COUNT];

#endif
