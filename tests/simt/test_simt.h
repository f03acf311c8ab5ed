/* tests/simt/test_simt.h - what the emulator's tests share: launches and values that come back. */
#ifndef MAV_SIMT_TEST_H
#define MAV_SIMT_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <utility>

extern "C" {
#include <cmocka.h>
}

#include "../../kernels/cuda/cuda.h"

#define OK(x) assert_string_equal(cudaGetErrorName(x), "cudaSuccess")
#define FAILS(x, name) assert_string_equal(cudaGetErrorName(x), #name)

static cudaStream_t test_stream; /* NULL: the default one */

static inline cudaError_t launch_with(const void *kernel, dim3 grid, dim3 block, size_t shared, const void *argument, bool pdl) {
  cudaLaunchAttribute a = {};
  a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  a.val.programmaticStreamSerializationAllowed = pdl;
  const cudaLaunchConfig_t c = {grid, block, shared, test_stream, &a, 1};
  void *args[] = {(void *)argument};
  return cudaLaunchKernelExC(&c, kernel, args);
}
/* Enqueues; with or without an overlap with the launch before. */
template <typename P> cudaError_t enqueue(void (*kernel)(P), dim3 grid, dim3 block, size_t shared, const P &p, bool pdl = false) {
  simt_kernel(kernel);
  return launch_with((const void *)kernel, grid, block, shared, &p, pdl);
}
/* And waits. */
template <typename P>
cudaError_t run_kernel(void (*kernel)(P), dim3 grid, dim3 block, size_t shared, const typename simt_same<P>::type &p, bool pdl = false) {
  if (cudaError_t e = enqueue(kernel, grid, block, shared, p, pdl)) return e;
  return cudaStreamSynchronize(test_stream);
}

template <typename T> T *device(size_t n) {
  void *p;
  OK(cudaMalloc(&p, n * sizeof(T)));
  return (T *)p;
}
template <typename T> T *device(const T *from, size_t n) {
  T *p = device<T>(n);
  OK(cudaMemcpy(p, from, n * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}
/* The first n values, on the host; free() them. */
template <typename T> T *host(const T *p, size_t n) {
  T *h = (T *)malloc(n * sizeof(T));
  OK(cudaMemcpy(h, p, n * sizeof(T), cudaMemcpyDeviceToHost));
  return h;
}

#endif
