/* kernels/cuda/elementwise.cu - one result for one element: unary and binary functions (broadcast), where, swiglu.
 *
 * Grid: a block of 256 threads for 1024 elements, four of them a thread: as 16 bytes where operands are dense, else 256 apart, so that
 * warps still write whole lines. Moves every operand once; bound by memory, and by the launch for a row of activations. Results may
 * be written over an operand. Exact but for e^x, ln x and tanh x (within 2 ulp). */
#include "strided.h"

#define THREADS 256
#define EACH 4

static dim3 grid_of(int64_t n) { return dim3((unsigned)ceil_div(n, THREADS * EACH)); }

/* ---- operands of the result's own shape ---------------------------------------------------------------------------- */

struct dense_job {
  const float *a, *b, *c; /* (n) each; what f does not take is not read */
  float *y;               /* (n) */
  int64_t n;
  bool vector;
};

template <typename F>
static __global__ void dense(const __grid_constant__ dense_job j) {
  pdl_launch();
  pdl_wait();
  const F f;
  const int64_t first = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * EACH;
  if (j.vector && first + EACH <= j.n) {
    quad a = *(const quad *)(j.a + first), b = a, c = a, y;
    if (F::operands > 1) b = *(const quad *)(j.b + first);
    if (F::operands > 2) c = *(const quad *)(j.c + first);
    for (int k = 0; k < EACH; k++) y.v[k] = f(a.v[k], b.v[k], c.v[k]);
    *(quad *)(j.y + first) = y;
  } else {
    for (int64_t i = first; i < first + EACH && i < j.n; i++)
      j.y[i] = f(j.a[i], F::operands > 1 ? j.b[i] : 0, F::operands > 2 ? j.c[i] : 0);
  }
}

template <typename F>
static int run_dense(mavk_cuda *c, const mavk_array *y, const void *p0, const void *p1, const void *p2) {
  const int64_t n = array_count(y);
  if (n == 0) return 0;
  const bool vector = is_aligned(y->p) && is_aligned(p0) && is_aligned(p1) && is_aligned(p2);
  const dense_job j = {(const float *)p0, (const float *)p1, (const float *)p2, (float *)y->p, n, vector};
  return mavk_run(c, dense<F>, grid_of(n), dim3(THREADS), 0, j);
}

__device__ static __forceinline__ float silu(float x) { return x / (1 + expf(-x)); }

#define FUNCTION(name, count, expression)                                                         \
  struct f_##name {                                                                               \
    static constexpr int operands = count;                                                        \
    __device__ __forceinline__ float operator()(float a, float b, float c) const {                \
      (void)b, (void)c;                                                                           \
      return expression;                                                                          \
    }                                                                                             \
  };
#define UNARY(name, expression)                                                                   \
  FUNCTION(name, 1, expression)                                                                   \
  extern "C" int mavk_cuda_##name(const mavk_args_##name *a, mavk_cuda *c) {                      \
    return run_dense<f_##name>(c, &a->y, a->x.p, NULL, NULL);                                     \
  }

UNARY(neg, -a)
UNARY(abs, fabsf(a))
UNARY(exp, expf(a))
UNARY(log, logf(a))
UNARY(sqrt, sqrtf(a))
UNARY(rsqrt, 1 / sqrtf(a))
UNARY(sigmoid, 1 / (1 + expf(-a)))
UNARY(silu, silu(a))
UNARY(tanh, tanhf(a))

FUNCTION(swiglu, 2, silu(a) * b)
extern "C" int mavk_cuda_swiglu(const mavk_args_swiglu *a, mavk_cuda *c) { return run_dense<f_swiglu>(c, &a->y, a->gate.p, a->up.p, NULL); }

FUNCTION(where, 3, a != 0 ? b : c)
extern "C" int mavk_cuda_where(const mavk_args_where *a, mavk_cuda *c) { return run_dense<f_where>(c, &a->y, a->cond.p, a->a.p, a->b.p); }

/* ---- two operands, broadcast --------------------------------------------------------------------------------------- */

struct pair_job {
  const float *a, *b; /* strided */
  float *y;           /* (n), dense */
  int64_t n;
  bool vector; /* each of a and b is dense or one element */
  strided<2> map;
};

__device__ static __forceinline__ quad load_quad(const float *p, int64_t i, bool one) {
  if (!one) return *(const quad *)(p + i);
  return quad{{*p, *p, *p, *p}};
}

template <typename F>
static __global__ void pairs(const __grid_constant__ pair_job j) {
  pdl_launch();
  pdl_wait();
  const F f;
  const int64_t block = (int64_t)blockIdx.x * THREADS * EACH, first = block + (int64_t)threadIdx.x * EACH;
  if (j.vector && first + EACH <= j.n) {
    const quad a = load_quad(j.a, first, j.map.s[0][0] == 0), b = load_quad(j.b, first, j.map.s[1][0] == 0);
    quad y;
    for (int k = 0; k < EACH; k++) y.v[k] = f(a.v[k], b.v[k], 0);
    *(quad *)(j.y + first) = y;
    return;
  }
  for (int k = 0; k < EACH; k++) {
    const int64_t i = j.vector ? first + k : block + k * THREADS + threadIdx.x;
    int64_t at[2];
    if (i >= j.n) continue;
    strided_at(j.map, i, at);
    j.y[i] = f(j.a[at[0]], j.b[at[1]], 0);
  }
}

template <typename F>
static int run_pairs(mavk_cuda *c, const mavk_array *a, const mavk_array *b, const mavk_array *y) {
  const int64_t n = array_count(y);
  if (n == 0) return 0;
  pair_job j = {(const float *)a->p, (const float *)b->p, (float *)y->p, n, is_aligned(y->p), strided_of<2>(y, {a, b})};
  for (int k = 0; k < 2; k++) {
    const void *p = k ? b->p : a->p;
    j.vector = j.vector && strided_is_flat(j.map, k) && (j.map.s[k][0] == 0 || is_aligned(p));
  }
  return mavk_run(c, pairs<F>, grid_of(n), dim3(THREADS), 0, j);
}

#define BINARY(name, expression)                                                                                             \
  FUNCTION(name, 2, expression)                                                                                              \
  extern "C" int mavk_cuda_##name(const mavk_args_##name *a, mavk_cuda *c) { return run_pairs<f_##name>(c, &a->a, &a->b, &a->y); }

BINARY(add, a + b)
BINARY(sub, a - b)
BINARY(mul, a * b)
BINARY(div, a / b)
BINARY(maximum, a > b ? a : b)
BINARY(minimum, a < b ? a : b)
BINARY(less, a < b ? 1.0f : 0.0f)
BINARY(equal, a == b ? 1.0f : 0.0f)
