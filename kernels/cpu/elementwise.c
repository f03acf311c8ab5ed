/* kernels/cpu/elementwise.c - one result for one element: unary and binary functions, where, swiglu, all_reduce.
 * Bound by memory. Pieces of PIECE elements; an element's result does not depend on the piece it falls in. */
#include "cpu.h"
#include "lanes.h"

#define PIECE 8192 /* 32 KiB a tensor */

static int64_t count_of(const mavk_array *a) {
  int64_t n = 1;
  for (int i = 0; i < a->nd; i++) n *= a->n[i];
  return n;
}

/* ---- one operand -------------------------------------------------------------------------------------------------- */

#define UNARY(name, expression)                                                     \
  void MAVK_CPU(name)(const mavk_args_##name *a, mavk_thread *t) {                  \
    const int64_t n = count_of(&a->x);                                              \
    for (int64_t i; (i = mavk_claim(t) * PIECE) < n;) {                             \
      const float *px = (const float *)a->x.p;                                      \
      float *py = (float *)a->y.p;                                                  \
      const int64_t end = mavk_min(i + PIECE, n);                                   \
      for (; i < end; i += 16) {                                                    \
        const v16 x = v16_load_n(px + i, mavk_min(16, end - i));                    \
        v16_store_n(py + i, expression, mavk_min(16, end - i));                     \
      }                                                                             \
    }                                                                               \
  }

UNARY(neg, v16_from_bits(v16i_xor(v16_bits(x), v16i_set1(INT32_MIN))))
UNARY(abs, v16_abs(x))
UNARY(exp, v16_exp(x))
UNARY(log, v16_log(x))
UNARY(sqrt, v16_sqrt(x))
UNARY(rsqrt, v16_div(v16_set1(1), v16_sqrt(x)))
UNARY(sigmoid, v16_sigmoid(x))
UNARY(silu, v16_silu(x))
UNARY(tanh, v16_tanh(x))
UNARY(all_reduce, x) /* one rank: a copy */

/* ---- two or three operands of one shape --------------------------------------------------------------------------- */

void MAVK_CPU(swiglu)(const mavk_args_swiglu *a, mavk_thread *t) {
  const int64_t n = count_of(&a->gate);
  const float *gate = a->gate.p, *up = a->up.p;
  for (int64_t i; (i = mavk_claim(t) * PIECE) < n;)
    for (const int64_t end = mavk_min(i + PIECE, n); i < end; i += 16) {
      const int64_t k = mavk_min(16, end - i);
      v16_store_n((float *)a->y.p + i, v16_mul(v16_silu(v16_load_n(gate + i, k)), v16_load_n(up + i, k)), k);
    }
}

void MAVK_CPU(where)(const mavk_args_where *a, mavk_thread *t) {
  const int64_t n = count_of(&a->cond);
  const float *cond = a->cond.p, *yes = a->a.p, *no = a->b.p;
  for (int64_t i; (i = mavk_claim(t) * PIECE) < n;)
    for (const int64_t end = mavk_min(i + PIECE, n); i < end; i += 16) {
      const int64_t k = mavk_min(16, end - i);
      const v16 y = v16_select_eq(v16_load_n(cond + i, k), v16_zero(), v16_load_n(no + i, k), v16_load_n(yes + i, k));
      v16_store_n((float *)a->y.p + i, y, k);
    }
}

/* ---- two operands, broadcast -------------------------------------------------------------------------------------- */

/* An operand along one row of y: its start, and its step of 0 (one element for all), 1, or anything. */
typedef struct lane {
  const float *p;
  int64_t step;
} lane;

static lane lane_at(const mavk_array *a, const mavk_array *y, int64_t row) {
  int64_t at = 0;
  const int shift = y->nd - a->nd; /* dimensions agree from the last one backwards */
  for (int d = y->nd - 2; d >= 0; d--) {
    if (d >= shift && a->n[d - shift] > 1) at += row % y->n[d] * a->s[d - shift];
    row /= y->n[d];
  }
  const int last = a->nd - 1;
  return (lane){(const float *)a->p + at, last >= 0 && a->n[last] > 1 ? a->s[last] : 0};
}

static v16 lane_load(const lane *l, int64_t i, int64_t n) {
  if (l->step == 1) return v16_load_n(l->p + i, n);
  if (l->step == 0) return v16_set1(*l->p);
  float f[16] = {0};
  for (int64_t k = 0; k < n; k++) f[k] = l->p[(i + k) * l->step];
  return v16_load(f);
}

/* All of y's elements in order: a is dense with y's shape, or a single element. */
static bool is_flat(const mavk_array *a, const mavk_array *y) {
  int64_t stride = 1;
  if (count_of(a) == 1) return true;
  if (a->nd != y->nd) return false;
  for (int d = a->nd - 1; d >= 0; d--) {
    if (a->n[d] != y->n[d] || (a->n[d] > 1 && a->s[d] != stride)) return false;
    stride *= a->n[d];
  }
  return true;
}

typedef v16 binary(v16 a, v16 b);

V16_INLINE void run(const mavk_array *a, const mavk_array *b, const mavk_array *y, mavk_thread *t, binary *op) {
  const int64_t n = count_of(y);
  if (n == 0) return;
  const bool flat = is_flat(a, y) && is_flat(b, y);
  const int64_t N = flat || y->nd == 0 ? n : y->n[y->nd - 1]; /* rows of N */
  const int64_t per_row = mavk_ceil_div(N, PIECE), rows_each = mavk_max(1, PIECE / N), rows = n / N;
  for (int64_t i; (i = mavk_claim(t)) < mavk_ceil_div(rows, rows_each) * per_row;) {
    const int64_t start = i % per_row * PIECE, end = mavk_min(start + PIECE, N), first = i / per_row * rows_each;
    for (int64_t r = first; r < mavk_min(first + rows_each, rows); r++) {
      const lane la = flat ? (lane){a->p, count_of(a) > 1} : lane_at(a, y, r), lb = flat ? (lane){b->p, count_of(b) > 1} : lane_at(b, y, r);
      float *out = (float *)y->p + r * N;
      for (int64_t k = start; k < end; k += 16) {
        const int64_t w = mavk_min(16, end - k);
        v16_store_n(out + k, op(lane_load(&la, k, w), lane_load(&lb, k, w)), w);
      }
    }
  }
}

#define BINARY(name, expression)                                                                              \
  V16_INLINE v16 op_##name(v16 a, v16 b) { return expression; }                                               \
  void MAVK_CPU(name)(const mavk_args_##name *a, mavk_thread *t) { run(&a->a, &a->b, &a->y, t, op_##name); }

BINARY(add, v16_add(a, b))
BINARY(sub, v16_sub(a, b))
BINARY(mul, v16_mul(a, b))
BINARY(div, v16_div(a, b))
BINARY(maximum, v16_max(a, b))
BINARY(minimum, v16_min(a, b))
BINARY(less, v16_select_lt(a, b, v16_set1(1), v16_zero()))
BINARY(equal, v16_select_eq(a, b, v16_set1(1), v16_zero()))
