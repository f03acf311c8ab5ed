/* kernels/cpu/transpose.h - small squares of 1, 2 or 4 byte elements, transposed in registers of 128 bits. Lines and columns are
 * given by their first element and a pitch in bytes. Only moves, so both builds are alike.
 */
#ifndef MAVK_TRANSPOSE_H
#define MAVK_TRANSPOSE_H

#include <immintrin.h>
#include <stdint.h>

#define TRANSPOSE_INLINE static inline __attribute__((always_inline))

/* One step: registers i and i + n / 2 are zipped. log2(n) such steps transpose. */
#define TRANSPOSE_STEP(n, bits)                                          \
  for (int i = 0; i < (n) / 2; i++) {                                    \
    to[2 * i] = _mm_unpacklo_epi##bits(from[i], from[i + (n) / 2]);      \
    to[2 * i + 1] = _mm_unpackhi_epi##bits(from[i], from[i + (n) / 2]);  \
  }

/* y[j][i] = x[i][j] of a square whose side fills a register: 16, 8 or 4 elements. */
#define TRANSPOSE_SQUARE(name, n, steps, bits)                                                              \
  TRANSPOSE_INLINE void name(char *y, int64_t y_pitch, const char *x, int64_t x_pitch) {                    \
    __m128i a[n], b[n], *from = a, *to = b;                                                                 \
    for (int i = 0; i < (n); i++) a[i] = _mm_loadu_si128((const __m128i *)(const void *)(x + i * x_pitch)); \
    for (int s = 0; s < (steps); s++) {                                                                     \
      TRANSPOSE_STEP(n, bits)                                                                               \
      __m128i *swap = from;                                                                                 \
      from = to, to = swap;                                                                                 \
    }                                                                                                       \
    for (int i = 0; i < (n); i++) _mm_storeu_si128((__m128i *)(void *)(y + i * y_pitch), from[i]);          \
  }
TRANSPOSE_SQUARE(transpose_8, 16, 4, 8)
TRANSPOSE_SQUARE(transpose_16, 8, 3, 16)
TRANSPOSE_SQUARE(transpose_32, 4, 2, 32)

#endif
