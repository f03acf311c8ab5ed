/* kernels/cuda/strided.h - operands of any strides, seen along the dense elements of the result: dimensions of size 1 are dropped and
 * neighbours that lie one behind the other become one, so that most calls have one or two dimensions left. */
#ifndef MAVK_STRIDED_H
#define MAVK_STRIDED_H

#include "cuda.h"

static inline int64_t array_count(const mavk_array *a) {
  int64_t count = 1;
  for (int i = 0; i < a->nd; i++) count *= a->n[i];
  return count;
}

template <int OPERANDS>
struct strided {
  int32_t nd;
  bool narrow; /* element numbers fit 31 bits */
  int64_t n[MAVK_DIMS_MAX], s[OPERANDS][MAVK_DIMS_MAX];
};

/* y: dense; operand: of y's shape or broadcast to it. */
template <int OPERANDS>
static inline strided<OPERANDS> strided_of(const mavk_array *y, const mavk_array *const (&operand)[OPERANDS]) {
  strided<OPERANDS> m = {};
  m.narrow = array_count(y) < INT32_MAX;
  for (int d = 0; d < y->nd; d++) {
    int64_t s[OPERANDS];
    bool follows = m.nd > 0;
    if (y->n[d] == 1) continue;
    for (int k = 0; k < OPERANDS; k++) {
      const int own = d - (y->nd - operand[k]->nd); /* dimensions agree from the last one backwards */
      s[k] = own >= 0 && operand[k]->n[own] > 1 ? operand[k]->s[own] : 0;
      follows = follows && m.s[k][m.nd - 1] == s[k] * y->n[d];
    }
    const int at = follows ? m.nd - 1 : m.nd++;
    m.n[at] = follows ? m.n[at] * y->n[d] : y->n[d];
    for (int k = 0; k < OPERANDS; k++) m.s[k][at] = s[k];
  }
  if (m.nd == 0) m.nd = 1, m.n[0] = 1;
  return m;
}

/* All elements in order, or the same one for all. */
template <int OPERANDS>
static inline bool strided_is_flat(const strided<OPERANDS> &m, int k) {
  return m.nd == 1 && (m.s[k][0] == 0 || m.s[k][0] == 1);
}

template <typename I, int OPERANDS>
__device__ static __forceinline__ void strided_split(const strided<OPERANDS> &m, I i, int64_t (&at)[OPERANDS]) {
  for (int k = 0; k < OPERANDS; k++) at[k] = 0;
  for (int d = m.nd - 1; d > 0; d--) {
    const I q = i / (I)m.n[d], r = i - q * (I)m.n[d];
    for (int k = 0; k < OPERANDS; k++) at[k] += (int64_t)r * m.s[k][d];
    i = q;
  }
  for (int k = 0; k < OPERANDS; k++) at[k] += (int64_t)i * m.s[k][0];
}

/* Where element i of the result lies in every operand. */
template <int OPERANDS>
__device__ static __forceinline__ void strided_at(const strided<OPERANDS> &m, int64_t i, int64_t (&at)[OPERANDS]) {
  if (m.narrow) strided_split<uint32_t>(m, (uint32_t)i, at);
  else strided_split<uint64_t>(m, (uint64_t)i, at);
}

/* Four floats that move as one. */
struct alignas(16) quad {
  float v[4];
};
static inline bool is_aligned(const void *p) { return (uintptr_t)p % 16 == 0; }

#endif
