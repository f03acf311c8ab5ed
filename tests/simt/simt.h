/* tests/simt/simt.h - what kernels use of CUDA C++, on the CPU: a thread is a fiber, a warp's collectives are meetings of its lanes.
 *
 * Left out on purpose: __shared__ (shared memory is dynamic: MAVK_SHARED), __activemask (it has no meaning that two runs share). */
#ifndef MAV_SIMT_SIMT_H
#define MAV_SIMT_SIMT_H

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>

#define __global__ __attribute__((noinline)) /* and not hidden: it has a name in messages */
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __attribute__((aligned(n)))
#ifndef __restrict__
#define __restrict__ __restrict
#endif

/* ---- the engine ----------------------------------------------------------------------------------------------------- */

#pragma GCC visibility push(hidden)

/* They change only between threads, so a thread may keep them. */
extern const uint3 threadIdx asm("simt_thread_index");
extern const uint3 blockIdx asm("simt_block_index");
extern const dim3 blockDim asm("simt_block_size");
extern const dim3 gridDim asm("simt_grid_size");
constexpr int warpSize = 32;

extern "C" {
extern unsigned char *simt_shared;
extern unsigned simt_lane;

/* The fault of the thread that calls it: its launch fails with the error, and the reason is printed. */
[[noreturn]] void simt_fault(cudaError_t error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* All lanes of `mask` come together, each with a pointer to what it brings; then `meeting` is called once, and they go on. Name and meeting
 * must be the same for all. How every collective is made: a wrapper in simt_ptx.h needs a structure, a function and this call. */
typedef void simt_meeting(uint32_t mask, void *const posts[32]);
void simt_meet(const char *name, simt_meeting *meeting, uint32_t mask, void *post);

enum { SIMT_COUNT, SIMT_AND, SIMT_OR };
/* Barrier `id` of the block: 0 for all its threads (threads == 0), others for a number of threads. Returns of `predicate` over the threads
 * that met: how many are not 0, whether all are, whether one is. */
int simt_barrier(int id, int threads, int predicate, int what);

void simt_pdl_wait(void);
void simt_pdl_launch(void);
/* Another thread of the block may run: where the order of threads could matter. */
void simt_yield(void);

typedef void simt_call(const void *kernel, const void *argument);
/* type: names the argument in messages. */
void simt_register(const void *kernel, simt_call *call, size_t argument_bytes, const char *type);
}

template <typename P> void simt_call_kernel(const void *kernel, const void *argument) {
  ((void (*)(P))kernel)(*(const P *)argument);
}
template <typename P> inline const char *simt_type_name() { return __PRETTY_FUNCTION__; }
/* Remembers how to call a kernel. */
template <typename P> inline void simt_kernel(void (*kernel)(P)) {
  static_assert(sizeof(P) <= 4096, "the argument of a kernel is at most 4 KB");
  static_assert(std::is_trivially_copyable<P>::value, "the argument of a kernel is copied as bytes");
  simt_register((const void *)kernel, simt_call_kernel<P>, sizeof(P), simt_type_name<P>());
}

#pragma GCC visibility pop

/* Inside functions. A block's shared memory is 0xff bytes at first; it ends at a page that cannot be touched. */
#define MAVK_SHARED(name) unsigned char *const name = simt_shared

/* ---- vectors -------------------------------------------------------------------------------------------------------- */

#define SIMT_VECTORS(T, name, align2, align4)                                      \
  struct alignas(align2) name##2 { T x, y; };                                      \
  struct name##3 { T x, y, z; };                                                   \
  struct alignas(align4) name##4 { T x, y, z, w; };                                \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                \
  static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }        \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define uint3 simt_uint3 /* is there already */
SIMT_VECTORS(unsigned, uint, 8, 16)
#undef uint3
SIMT_VECTORS(int, int, 8, 16)
SIMT_VECTORS(float, float, 8, 16)
SIMT_VECTORS(unsigned short, ushort, 4, 8)
SIMT_VECTORS(short, short, 4, 8)
SIMT_VECTORS(unsigned char, uchar, 2, 4)
SIMT_VECTORS(long long, longlong, 16, 16)
SIMT_VECTORS(unsigned long long, ulonglong, 16, 16)
SIMT_VECTORS(double, double, 16, 16)
#undef SIMT_VECTORS

/* ---- barriers and fences -------------------------------------------------------------------------------------------- */

static inline void __syncthreads() { simt_barrier(0, 0, 0, SIMT_COUNT); }
static inline int __syncthreads_count(int p) { return simt_barrier(0, 0, p, SIMT_COUNT); }
static inline int __syncthreads_and(int p) { return simt_barrier(0, 0, p, SIMT_AND); }
static inline int __syncthreads_or(int p) { return simt_barrier(0, 0, p, SIMT_OR); }
static inline void __threadfence() { simt_yield(); }
static inline void __threadfence_block() { simt_yield(); }
static inline void __threadfence_system() { simt_yield(); }
static inline void __nanosleep(unsigned) { simt_yield(); }
[[noreturn]] static inline void __trap() { simt_fault(cudaErrorLaunchFailure, "__trap"); }

/* ---- collectives of a warp ------------------------------------------------------------------------------------------ */

static inline void simt_meet_only(uint32_t, void *const *) {}
static inline void __syncwarp(unsigned mask = 0xffffffffu) { simt_meet("__syncwarp", simt_meet_only, mask, nullptr); }

/* A value of at most eight bytes as bits, and back. */
template <typename T> inline uint64_t simt_bits(T v) {
  static_assert(sizeof(T) <= 8, "at most eight bytes");
  uint64_t b = 0;
  memcpy(&b, &v, sizeof v);
  return b;
}
template <typename T> inline T simt_value(uint64_t b) {
  T v;
  memcpy(&v, &b, sizeof v);
  return v;
}

/* The bits that each lane brings, from the lane it names. */
extern "C" __attribute__((visibility("hidden"))) uint64_t simt_shuffle(const char *name, uint32_t mask, uint64_t bits, unsigned from);

template <typename T> inline T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
  const unsigned lane = simt_lane, group = lane & ~(unsigned)(width - 1);
  return simt_value<T>(simt_shuffle("__shfl_sync", mask, simt_bits(v), group | ((unsigned)from & (unsigned)(width - 1))));
}
template <typename T> inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const unsigned lane = simt_lane, in_group = lane & (unsigned)(width - 1);
  return simt_value<T>(simt_shuffle("__shfl_up_sync", mask, simt_bits(v), in_group >= by ? lane - by : lane));
}
template <typename T> inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const unsigned lane = simt_lane, in_group = lane & (unsigned)(width - 1);
  return simt_value<T>(simt_shuffle("__shfl_down_sync", mask, simt_bits(v), in_group + by < (unsigned)width ? lane + by : lane));
}
template <typename T> inline T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32) {
  const unsigned lane = simt_lane, from = lane ^ (unsigned)with, next_group = (lane & ~(unsigned)(width - 1)) + (unsigned)width;
  return simt_value<T>(simt_shuffle("__shfl_xor_sync", mask, simt_bits(v), from < next_group ? from : lane));
}

struct simt_vote {
  uint64_t in, out;
};
static inline void simt_meet_ballot(uint32_t mask, void *const *posts) {
  uint64_t set = 0;
  for (int i = 0; i < 32; i++)
    if (mask >> i & 1 && ((simt_vote *)posts[i])->in) set |= 1u << i;
  for (int i = 0; i < 32; i++)
    if (mask >> i & 1) ((simt_vote *)posts[i])->out = set;
}
static inline unsigned simt_ballot(const char *name, unsigned mask, bool p) {
  simt_vote v = {p, 0};
  simt_meet(name, simt_meet_ballot, mask, &v);
  return (unsigned)v.out;
}
static inline unsigned __ballot_sync(unsigned mask, int p) { return simt_ballot("__ballot_sync", mask, p != 0); }
static inline int __any_sync(unsigned mask, int p) { return simt_ballot("__any_sync", mask, p != 0) != 0; }
static inline int __all_sync(unsigned mask, int p) { return simt_ballot("__all_sync", mask, p != 0) == mask; }

static inline void simt_meet_match(uint32_t mask, void *const *posts) {
  for (int i = 0; i < 32; i++) {
    if (!(mask >> i & 1)) continue;
    simt_vote *v = (simt_vote *)posts[i];
    v->out = 0;
    for (int j = 0; j < 32; j++)
      if (mask >> j & 1 && ((simt_vote *)posts[j])->in == v->in) v->out |= 1u << j;
  }
}
template <typename T> inline unsigned __match_any_sync(unsigned mask, T value) {
  simt_vote v = {simt_bits(value), 0};
  simt_meet("__match_any_sync", simt_meet_match, mask, &v);
  return (unsigned)v.out;
}

/* T: what is reduced; F: how two become one. */
template <typename T, typename F> inline void simt_meet_reduce(uint32_t mask, void *const *posts) {
  T sum = T();
  bool first = true;
  for (int i = 0; i < 32; i++) {
    if (!(mask >> i & 1)) continue;
    const T v = simt_value<T>(((simt_vote *)posts[i])->in);
    sum = first ? v : F::of(sum, v);
    first = false;
  }
  for (int i = 0; i < 32; i++)
    if (mask >> i & 1) ((simt_vote *)posts[i])->out = simt_bits(sum);
}
#define SIMT_REDUCE(T, name, expression)                                 \
  struct simt_reduce_##name##_##T {                                      \
    static T of(T a, T b) { return expression; }                         \
  };                                                                     \
  static inline T __reduce_##name##_sync(unsigned mask, T value) {       \
    simt_vote v = {simt_bits(value), 0};                                 \
    simt_meet("__reduce_" #name "_sync", simt_meet_reduce<T, simt_reduce_##name##_##T>, mask, &v); \
    return simt_value<T>(v.out);                                         \
  }
SIMT_REDUCE(unsigned, add, a + b)
SIMT_REDUCE(unsigned, min, a < b ? a : b)
SIMT_REDUCE(unsigned, max, a > b ? a : b)
SIMT_REDUCE(unsigned, and, a & b)
SIMT_REDUCE(unsigned, or, a | b)
SIMT_REDUCE(unsigned, xor, a ^ b)
SIMT_REDUCE(int, add, (int)((unsigned)a + (unsigned)b))
SIMT_REDUCE(int, min, a < b ? a : b)
SIMT_REDUCE(int, max, a > b ? a : b)
#undef SIMT_REDUCE

/* ---- atomics: fibers change only in calls of the engine, so plain operations are atomic ------------------------------- */

template <typename T> struct simt_same { typedef T type; };
#define SIMT_ATOMIC(name, expression)                                                          \
  template <typename T> inline T name(T *p, typename simt_same<T>::type v) {                   \
    simt_yield();                                                                              \
    const T old = *p;                                                                          \
    *p = (T)(expression);                                                                      \
    return old;                                                                                \
  }                                                                                            \
  template <typename T> inline T name##_block(T *p, typename simt_same<T>::type v) { return name(p, v); } \
  template <typename T> inline T name##_system(T *p, typename simt_same<T>::type v) { return name(p, v); }
SIMT_ATOMIC(atomicAdd, old + v)
SIMT_ATOMIC(atomicSub, old - v)
SIMT_ATOMIC(atomicExch, v)
SIMT_ATOMIC(atomicMin, v < old ? v : old)
SIMT_ATOMIC(atomicMax, v > old ? v : old)
SIMT_ATOMIC(atomicAnd, old & v)
SIMT_ATOMIC(atomicOr, old | v)
SIMT_ATOMIC(atomicXor, old ^ v)
SIMT_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
SIMT_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef SIMT_ATOMIC
template <typename T> inline T atomicCAS(T *p, typename simt_same<T>::type compare, typename simt_same<T>::type v) {
  simt_yield();
  const T old = *p;
  if (old == compare) *p = v;
  return old;
}

/* ---- loads and stores with hints --------------------------------------------------------------------------------------- */

template <typename T> inline T __ldg(const T *p) { return *p; }
template <typename T> inline T __ldcg(const T *p) { return *p; }
template <typename T> inline T __ldca(const T *p) { return *p; }
template <typename T> inline T __ldcs(const T *p) { return *p; }
template <typename T> inline T __ldlu(const T *p) { return *p; }
template <typename T> inline T __ldcv(const T *p) { return *(const volatile T *)p; }
template <typename T> inline void __stcg(T *p, T v) { *p = v; }
template <typename T> inline void __stcs(T *p, T v) { *p = v; }
template <typename T> inline void __stwt(T *p, T v) { *p = v; }
template <typename T> inline void __stwb(T *p, T v) { *p = v; }

/* ---- bits and numbers ---------------------------------------------------------------------------------------------------- */

static inline float __uint_as_float(unsigned b) { return simt_value<float>(b); }
static inline float __int_as_float(int b) { return simt_value<float>((unsigned)b); }
static inline unsigned __float_as_uint(float x) { return (unsigned)simt_bits(x); }
static inline int __float_as_int(float x) { return (int)(unsigned)simt_bits(x); }
static inline long long __double_as_longlong(double x) { return (long long)simt_bits(x); }
static inline double __longlong_as_double(long long b) { return simt_value<double>((uint64_t)b); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; i++) r = r << 1 | (x >> i & 1);
  return r;
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = (uint64_t)y << 32 | x;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned s = selector >> (4 * i) & 15, byte = (unsigned)(bytes >> (8 * (s & 7))) & 255;
    r |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
  }
  return r;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
  return (unsigned)((((uint64_t)high << 32 | low) << (n & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
  return (unsigned)(((uint64_t)high << 32 | low) >> (n & 31));
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}

static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
/* macros: the C library declares these names */
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __sincosf(x, s, c) sincosf(x, s, c)
#define __powf(x, y) powf(x, y)
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline float __ll2float_rn(long long x) { return (float)x; }

/* To an integer toward zero, saturating, NaN as 0, as the device does. */
template <typename I> inline I simt_integer(double x) {
  const double low = (double)std::numeric_limits<I>::min(), high = (double)std::numeric_limits<I>::max();
  return x != x ? 0 : x <= low ? std::numeric_limits<I>::min() : x >= high ? std::numeric_limits<I>::max() : (I)x;
}
static inline int __float2int_rz(float x) { return simt_integer<int>((double)x); }
static inline int __float2int_rn(float x) { return simt_integer<int>((double)rintf(x)); }
static inline int __float2int_rd(float x) { return simt_integer<int>((double)floorf(x)); }
static inline int __float2int_ru(float x) { return simt_integer<int>((double)ceilf(x)); }
static inline unsigned __float2uint_rz(float x) { return simt_integer<unsigned>((double)x); }
static inline unsigned __float2uint_rn(float x) { return simt_integer<unsigned>((double)rintf(x)); }
static inline long long __float2ll_rz(float x) { return simt_integer<long long>((double)x); }
static inline long long __float2ll_rn(float x) { return simt_integer<long long>((double)rintf(x)); }

#define SIMT_MIN_MAX(T)                                              \
  static inline T min(T a, T b) { return b < a ? b : a; }            \
  static inline T max(T a, T b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

#endif
