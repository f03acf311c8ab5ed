/* kernels/cuda/ptx.h - the PTX that kernels use, by name. tests/simt/simt_ptx.h has a twin of each, in plain C++. */
#ifndef MAVK_CUDA_PTX_H
#define MAVK_CUDA_PTX_H

#include <stdint.h>

#ifdef MAVK_SIMT
#include "simt_ptx.h"
#else

#define PTX_FN __device__ static __forceinline__

/* Programmatic dependent launch (PTX ISA, griddepcontrol): waits until the kernels before are done and what they wrote is visible. */
PTX_FN void pdl_wait(void) { asm volatile("griddepcontrol.wait;" ::: "memory"); }
/* The next kernel may start when every block has called this or ended; it sees what this one wrote only after its own pdl_wait. */
PTX_FN void pdl_launch(void) { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

/* Sixteen bytes that are read once (weights): not kept in the first-level cache. p: aligned to 16. */
PTX_FN uint4 load_once(const void *p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(p)));
  return v;
}
/* The line at p into the second-level cache. */
PTX_FN void prefetch_l2(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p))); }

/* Bytes from p on into the second-level cache, by the copy engine; both multiples of 16. */
PTX_FN void prefetch_l2_range(const void *p, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(bytes) : "memory");
}

/* d += a b: a (16, 16) row by row, b (16, 8) column by column, d (16, 8). PTX ISA, "Matrix Fragments for mma.m16n8k16"; with lane =
 * 4 g + t: a[0] row g, columns 2t 2t+1; a[1] row g + 8; a[2], a[3] the same rows, columns + 8; b[0] rows 2t 2t+1, column g; b[1]
 * rows + 8; d[0] d[1] row g, columns 2t 2t+1; d[2] d[3] row g + 8. */
PTX_FN void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
PTX_FN void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* To f16, nearest even; saturating at +-65504 is the caller's business. */
PTX_FN uint16_t f16_from_f32(float x) {
  uint16_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
  return h;
}
PTX_FN float f32_from_f16(uint16_t h) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
  return x;
}
/* Two floats to e4m3, nearest even, saturating at +-448, NaN as 0x7f: low in the lower byte. */
PTX_FN uint16_t f8x2_from_f32(float low, float high) {
  uint16_t c;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(c) : "f"(high), "f"(low));
  return c;
}

/* Two e4m3 codes to f16, exact: from the low byte to the low half. */
PTX_FN uint32_t f16x2_from_f8x2(uint16_t codes) {
  uint32_t h;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(h) : "h"(codes));
  return h;
}

/* Nanoseconds of a clock that all multiprocessors share. */
PTX_FN int64_t device_clock_ns(void) {
  uint64_t t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return (int64_t)t;
}

/* What this thread wrote is visible, to the host too, before the number at p is. */
PTX_FN void publish(uint32_t *p, uint32_t value) {
  asm volatile("fence.acq_rel.sys; st.release.sys.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(value) : "memory");
}

#endif
#endif
