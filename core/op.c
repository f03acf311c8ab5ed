/* core/op.c - the descriptions of all ops, made from kernels/ops.def. Constant data. */
#include <string.h>

#include "mav.h"
#include "mavk.h"

_Static_assert((int)MAV_DTYPE_COUNT == (int)MAVK_DTYPE_COUNT, "mav_dtype and mavk_dtype are one list");
_Static_assert(MAV_DIMS_MAX == MAVK_DIMS_MAX, "tensors and kernel arrays have the same rank");

/* How many arguments each op has: ARGS_<op> = 0 + 1 + 1 ... */
#define MAV_OP(name, doc) enum { ARGS_##name = 0
#define MAV_IN(name, shape, types, doc) + 1
#define MAV_OPT(name, shape, types, doc) + 1
#define MAV_IDX(name, shape, limit, doc) + 1
#define MAV_OPT_IDX(name, shape, limit, doc) + 1
#define MAV_MUT(name, shape, types, doc) + 1
#define MAV_W(name, shape, doc) + 1
#define MAV_OPT_W(name, shape, doc) + 1
#define MAV_ROWS(name, doc) + 1
#define MAV_ROWS_OUT(name, letter, doc) + 1
#define MAV_KV(name, doc) + 1
#define MAV_COMM(name, doc) + 1
#define MAV_NUM(name, value, doc) + 1
#define MAV_INT(name, value, doc) + 1
#define MAV_DTYPE(name, value, doc) + 1
#define MAV_OUT(name, shape, types, doc) + 1
#define MAV_END(name, tolerance, source) };
#include "ops.def"

/* One function per op, so that its arguments can name its structure. */
#define WEIGHT_TYPES (1u << MAVK_F32 | 1u << MAVK_BF16 | 1u << MAVK_F16 | 1u << MAVK_F8)
#define ARG(n, k, opt, sh, ty, lim, val, text)                                                                                \
  {.name = #n, .kind = MAV_ARG_##k, .optional = opt, .shape = sh, .types = ty, .limit = lim, .value = val, .offset = offsetof(args, n), \
   .doc = text},
#define MAV_OP(op, text)                                                                                             \
  static const mav_op_desc *get_##op(void) {                                                                         \
    typedef mavk_args_##op args;                                                                                     \
    static const mav_op_desc d = {.name = #op, .doc = text, .args = ARGS_##op, .args_bytes = sizeof(args), .arg = {
#define MAV_IN(name, shape, types, doc) ARG(name, IN, false, shape, types, NULL, 0, doc)
#define MAV_OPT(name, shape, types, doc) ARG(name, IN, true, shape, types, NULL, 0, doc)
#define MAV_IDX(name, shape, limit, doc) ARG(name, INDEX, false, shape, 1u << MAVK_I32, #limit, 0, doc)
#define MAV_OPT_IDX(name, shape, limit, doc) ARG(name, INDEX, true, shape, 1u << MAVK_I32, #limit, 0, doc)
#define MAV_MUT(name, shape, types, doc) ARG(name, MUT, false, shape, types, NULL, 0, doc)
#define MAV_W(name, shape, doc) ARG(name, WEIGHT, false, shape, WEIGHT_TYPES, NULL, 0, doc)
#define MAV_OPT_W(name, shape, doc) ARG(name, WEIGHT, true, shape, WEIGHT_TYPES, NULL, 0, doc)
#define MAV_ROWS(name, doc) ARG(name, ROWS, false, NULL, 0, NULL, 0, doc)
#define MAV_ROWS_OUT(name, letter, doc) ARG(name, ROWS_OUT, false, #letter, 0, NULL, 0, doc)
#define MAV_KV(name, doc) ARG(name, KV, false, NULL, 0, NULL, 0, doc)
#define MAV_COMM(name, doc) ARG(name, COMM, true, NULL, 0, NULL, 0, doc)
#define MAV_NUM(name, value, doc) ARG(name, NUM, (double)(value) > MAV_REQUIRED, NULL, 0, NULL, value, doc)
#define MAV_INT(name, value, doc) ARG(name, INT, (double)(value) > MAV_REQUIRED, NULL, 0, NULL, value, doc)
#define MAV_DTYPE(name, value, doc) ARG(name, DTYPE, true, NULL, 0, NULL, value, doc)
#define MAV_OUT(name, shape, types, doc) ARG(name, OUT, true, shape, types, NULL, 0, doc)
#define MAV_END(op, tol, src)                  \
  }, .tolerance = tol, .source = src };        \
  return &d;                                   \
  }
#include "ops.def"

static const mav_op_desc *(*const get[MAVK_OP_COUNT])(void) = {
#define MAV_OP(name, doc) [MAVK_OP_##name] = get_##name,
#include "ops.def"
};

int mav_op_count(void) { return MAVK_OP_COUNT; }

const mav_op_desc *mav_op_get(int op) { return op >= 0 && op < MAVK_OP_COUNT ? get[op]() : NULL; }

int mav_op_find(const char *name) {
  for (int i = 0; i < MAVK_OP_COUNT; i++)
    if (!strcmp(get[i]()->name, name)) return i;
  return -1;
}
