/* kernels/ref/elementwise.c - one result for one element: the unary and binary functions, where, swiglu, cast, all_reduce. */
#include "ref.h"

#define UNARY(name, expression)                          \
  void mavk_ref_##name(const mavk_args_##name *a) {      \
    for (int64_t i = 0; i < ref_count(&a->x); i++) {     \
      const float x = *ref_in(&a->x, i);                 \
      *ref_out(&a->y, i) = expression;                   \
    }                                                    \
  }

UNARY(neg, -x)
UNARY(abs, fabsf(x))
UNARY(exp, expf(x))
UNARY(log, logf(x))
UNARY(sqrt, sqrtf(x))
UNARY(rsqrt, 1 / sqrtf(x))
UNARY(sigmoid, 1 / (1 + expf(-x)))
UNARY(silu, ref_silu(x))
UNARY(tanh, tanhf(x))

#define BINARY(name, expression)                                                                  \
  void mavk_ref_##name(const mavk_args_##name *args) {                                            \
    for (int64_t i = 0; i < ref_count(&args->y); i++) {                                           \
      const float a = *ref_in(&args->a, ref_at(&args->a, &args->y, i));                     \
      const float b = *ref_in(&args->b, ref_at(&args->b, &args->y, i));                     \
      *ref_out(&args->y, i) = expression;                                                         \
    }                                                                                             \
  }

BINARY(add, a + b)
BINARY(sub, a - b)
BINARY(mul, a * b)
BINARY(div, a / b)
BINARY(maximum, a > b ? a : b)
BINARY(minimum, a < b ? a : b)
BINARY(less, a < b ? 1 : 0)
BINARY(equal, a == b ? 1 : 0)

void mavk_ref_where(const mavk_args_where *a) {
  for (int64_t i = 0; i < ref_count(&a->y); i++) *ref_out(&a->y, i) = *ref_in(&a->cond, i) != 0 ? *ref_in(&a->a, i) : *ref_in(&a->b, i);
}

void mavk_ref_swiglu(const mavk_args_swiglu *a) {
  for (int64_t i = 0; i < ref_count(&a->y); i++) *ref_out(&a->y, i) = ref_silu(*ref_in(&a->gate, i)) * *ref_in(&a->up, i);
}

void mavk_ref_cast(const mavk_args_cast *a) {
  for (int64_t i = 0; i < ref_count(&a->y); i++) 
    mavk_convert(a->y.p, a->y.dtype, ref_at(&a->y, &a->y, i), a->x.p, a->x.dtype, ref_at(&a->x, &a->y, i));
}

/* One rank: a copy. */
void mavk_ref_all_reduce(const mavk_args_all_reduce *a) {
  for (int64_t i = 0; i < ref_count(&a->y); i++) *ref_out(&a->y, i) = *ref_in(&a->x, i);
}
