/* core/shape.h - the shape language of ops.def: binds dimension letters from arguments, computes the shapes of results. */
#ifndef MAV_CORE_SHAPE_H
#define MAV_CORE_SHAPE_H

#include "tensor.h"

typedef struct mav__shapes {
  const mav_op_desc *desc;
  mav_diag *diag;
  int64_t letter[26];
  const char *from[26]; /* the argument that bound it, NULL: unbound */
  int star_dims;        /* leading dimensions matched by "*"; -1: unbound */
  int64_t star[MAV_DIMS_MAX];
} mav__shapes;

void mav__shapes_init(mav__shapes *s, const mav_op_desc *desc, mav_diag *diag);
static inline int64_t mav__shapes_get(const mav__shapes *s, char letter) {
  return s->from[letter - 'A'] ? s->letter[letter - 'A'] : 0;
}
mav_err mav__shapes_bind(mav__shapes *s, char letter, int64_t value, const char *arg);
/* Checks one given tensor argument against its description. */
mav_err mav__shapes_match(mav__shapes *s, const mav_arg_desc *arg, const mav_tensor *t, const mav_arg *args);
/* The shape of a result. */
mav_err mav__shapes_result(mav__shapes *s, const mav_arg_desc *arg, const mav_arg *args, int *dims, int64_t *shape);

#endif
