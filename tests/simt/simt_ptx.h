/* tests/simt/simt_ptx.h - a twin in plain C++ of every wrapper of kernels/cuda/ptx.h. A new one: the same name and arguments; what lanes do
 * together is a structure that each brings and a function that sees all of them (simt_meet in simt.h, mma below). */
#ifndef MAV_SIMT_PTX_H
#define MAV_SIMT_PTX_H

#include <cuda_runtime.h>
#include <time.h>

#include "../../kernels/numeric.h"

#define PTX_FN static inline

PTX_FN void simt_aligned(const void *p, unsigned bytes) {
  if ((uintptr_t)p % bytes) simt_fault(cudaErrorMisalignedAddress, "%p is not aligned to %u bytes", p, bytes);
}

PTX_FN void pdl_wait(void) { simt_pdl_wait(); }
PTX_FN void pdl_launch(void) { simt_pdl_launch(); }

PTX_FN uint4 load_once(const void *p) {
  simt_aligned(p, 16);
  uint4 v;
  memcpy(&v, p, sizeof v);
  return v;
}
PTX_FN void prefetch_l2(const void *p) { (void)p; }
PTX_FN void prefetch_l2_range(const void *p, uint32_t bytes) {
  simt_aligned(p, 16);
  if (bytes % 16) simt_fault(cudaErrorMisalignedAddress, "%u bytes are not a multiple of 16", bytes);
}

/* The fragments of mma.m16n8k16 that a lane brings; 16 bits a number. */
struct simt_mma {
  float *d;
  const uint32_t *a, *b;
};
/* d += a b of the lanes of a warp, a and b widened by `widen`; products of halves are exact in f32, sums go up in k. */
template <float widen(uint16_t)> inline void simt_meet_mma(uint32_t, void *const *posts) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; lane++) {
    const simt_mma *m = (const simt_mma *)posts[lane];
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 2; j++) a[g + i % 2 * 8][2 * t + j + i / 2 * 8] = widen((uint16_t)(m->a[i] >> (16 * j)));
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < 2; j++) b[2 * t + j + i * 8][g] = widen((uint16_t)(m->b[i] >> (16 * j)));
    for (int i = 0; i < 4; i++) d[g + i / 2 * 8][2 * t + i % 2] = m->d[i];
  }
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < 16; k++)
      for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
  for (int lane = 0; lane < 32; lane++) {
    const simt_mma *m = (const simt_mma *)posts[lane];
    for (int i = 0; i < 4; i++) m->d[i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
  }
}
PTX_FN void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  simt_mma m = {d, a, b};
  simt_meet("mma_f16", simt_meet_mma<mavk_f32_from_f16>, 0xffffffffu, &m);
}
PTX_FN void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  simt_mma m = {d, a, b};
  simt_meet("mma_bf16", simt_meet_mma<mavk_f32_from_bf16>, 0xffffffffu, &m);
}

PTX_FN uint16_t f16_from_f32(float x) { return x != x ? 0x7fff : mavk_f16_from_f32(x); }
PTX_FN float f32_from_f16(uint16_t h) { return mavk_f32_from_f16(h); }
PTX_FN uint16_t f8x2_from_f32(float low, float high) {
  const unsigned l = low != low ? 0x7f : mavk_f8_from_f32(low), h = high != high ? 0x7f : mavk_f8_from_f32(high);
  return (uint16_t)(l | h << 8);
}

PTX_FN uint32_t f16x2_from_f8x2(uint16_t codes) {
  return mavk_f16_from_f32(mavk_f32_from_f8((uint8_t)(codes & 255))) |
         (uint32_t)mavk_f16_from_f32(mavk_f32_from_f8((uint8_t)(codes >> 8))) << 16;
}

PTX_FN int64_t device_clock_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

PTX_FN void publish(uint32_t *p, uint32_t value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }

#endif
