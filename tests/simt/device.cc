/* tests/simt/device.cc - what the runtime API says of the device: a small sm_90. */
#include <cstdlib>

#include "stream.h"

static int multiprocessors() {
  const char *s = getenv("MAV_SIMT_MULTIPROCESSORS");
  const int n = s && *s ? atoi(s) : 5;
  return n > 0 ? n : 1;
}

/* Of CUDA: 13000; 0: none is installed. */
static int driver() {
  const char *s = getenv("MAV_SIMT_DRIVER");
  return s && *s ? atoi(s) : CUDART_VERSION;
}

cudaError_t cudaGetDeviceCount(int *count) {
  SIMT_CALL();
  const char *devices = getenv("CUDA_VISIBLE_DEVICES");
  *count = devices && !*devices ? 0 : 1;
  if (driver() < CUDART_VERSION) return call_fails(cudaErrorInsufficientDriver);
  return *count ? cudaSuccess : call_fails(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
  SIMT_CALL();
  return device ? call_fails(cudaErrorInvalidDevice) : cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
  SIMT_CALL();
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) { return *version = driver(), cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
  SIMT_CALL();
  if (device) return call_fails(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = THREADS_MAX; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = SHARED_BYTES_PLAIN; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
    case cudaDevAttrClockRate: *value = 1000000; break;
    case cudaDevAttrMultiProcessorCount: *value = multiprocessors(); break;
    case cudaDevAttrIntegrated: *value = 0; break;
    case cudaDevAttrCanMapHostMemory: *value = 1; break;
    case cudaDevAttrPciBusId: *value = 0; break;
    case cudaDevAttrMemoryClockRate: *value = 1000000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = 64; break;
    case cudaDevAttrL2CacheSize: *value = 1 << 20; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrUnifiedAddressing: *value = 1; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = SHARED_BYTES_MAX + 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = SHARED_BYTES_MAX; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = 32; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = 1024; break;
    case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
    default: return call_fails(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
  SIMT_CALL();
  if (device) return call_fails(cudaErrorInvalidDevice);
  *p = {};
  snprintf(p->name, sizeof p->name, "CUDA kernels on the CPU");
  p->totalGlobalMem = memory_limit();
  p->sharedMemPerBlock = SHARED_BYTES_PLAIN;
  p->sharedMemPerBlockOptin = SHARED_BYTES_MAX;
  p->sharedMemPerMultiprocessor = SHARED_BYTES_MAX + 1024;
  p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = THREADS_MAX;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = 9;
  p->multiProcessorCount = multiprocessors();
  p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->memoryPoolsSupported = 1;
  p->memoryBusWidth = 64;
  p->l2CacheSize = 1 << 20;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
  SIMT_CALL();
  if (device) return call_fails(cudaErrorInvalidDevice);
  snprintf(text, (size_t)size, "0000:00:00.0");
  return cudaSuccess;
}
