/* tests/simt/test_simt.cu - the emulator does what CUDA does: indices, barriers, collectives, mma, atomics, conversions, streams, graphs. */
#include "test_simt.h"

static int reset(void **) {
  OK(cudaDeviceReset());
  test_stream = nullptr;
  return 0;
}

struct job {
  const void *x;
  void *y;
  int n, what;
};

/* ---- indices ------------------------------------------------------------------------------------------------------------------ */

__global__ void places(job j) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  atomicAdd((int *)j.y + block * (blockDim.x * blockDim.y * blockDim.z) + thread, 1 + (int)thread);
}
static void indices(void **) {
  const struct { dim3 grid, block; } shapes[] = {{1, 1}, {7, 33}, {dim3(3, 4, 5), dim3(5, 6, 7)}, {dim3(1, 9, 2), dim3(32, 2, 16)}, {1000, 1024}};
  for (auto s : shapes) {
    const size_t threads = s.block.x * s.block.y * s.block.z, n = s.grid.x * s.grid.y * s.grid.z * threads;
    const job j = {nullptr, device<int>(n), 0, 0};
    OK(cudaMemset(j.y, 0, n * sizeof(int)));
    OK(run_kernel(places, s.grid, s.block, 0, j));
    int *y = host((int *)j.y, n);
    for (size_t i = 0; i < n; i++) assert_int_equal(y[i], 1 + i % threads);
    free(y);
  }
}

/* ---- barriers ------------------------------------------------------------------------------------------------------------------ */

__global__ void scan(job j) { /* inclusive sums of 1024 numbers, in shared memory */
  MAVK_SHARED(shared);
  int *s = (int *)shared;
  const int i = (int)threadIdx.x;
  s[i] = ((const int *)j.x)[i];
  for (int step = 1; step < (int)blockDim.x; step *= 2) {
    __syncthreads();
    const int add = i >= step ? s[i - step] : 0;
    __syncthreads();
    s[i] += add;
  }
  int *y = (int *)j.y;
  y[i] = s[i];
  y[1024 + i] = __syncthreads_count(i % 3 == 0);
  y[2048 + i] = __syncthreads_and(i < 1024) * 2 + __syncthreads_and(i < 1023);
  y[3072 + i] = __syncthreads_or(i == 77) * 2 + __syncthreads_or(i == 1024);
  if (i < 64) simt_barrier(1, 64, 0, SIMT_COUNT);
  else if (i < 128) simt_barrier(2, 64, 0, SIMT_COUNT);
  simt_barrier(3, 1024, 0, SIMT_COUNT);
}
static void barriers(void **) {
  int x[1024];
  for (int i = 0; i < 1024; i++) x[i] = i * 7 % 31;
  const job j = {device(x, 1024), device<int>(4096), 0, 0};
  for (int k = 0; k < 10; k++) {
    OK(run_kernel(scan, 1, 1024, sizeof x, j));
    int *y = host((int *)j.y, 4096), sum = 0;
    for (int i = 0; i < 1024; i++) {
      assert_int_equal(y[i], sum += x[i]);
      assert_int_equal(y[1024 + i], 342);
      assert_int_equal(y[2048 + i], 2);
      assert_int_equal(y[3072 + i], 2);
    }
    free(y);
  }
}

/* ---- collectives: lane i brings x[i]; what lane i gets is written beside what it should get -------------------------------------- */

struct pair {
  uint64_t got, want;
};
__global__ void shuffles(job j) {
  const uint64_t *x = (const uint64_t *)j.x + threadIdx.x / 32 * 32;
  pair *y = (pair *)j.y + threadIdx.x * 256;
  const unsigned lane = threadIdx.x % 32;
  for (int width = 2; width <= 32; width *= 2) {
    const unsigned first = lane & ~(unsigned)(width - 1), in = lane - first;
    for (unsigned by = 0; by < 5; by++) {
      *y++ = {__shfl_sync(ALL_LANES, x[lane], (int)by, width), x[first + by % (unsigned)width]};
      *y++ = {__shfl_up_sync(ALL_LANES, x[lane], by, width), x[in >= by ? lane - by : lane]};
      *y++ = {__shfl_down_sync(ALL_LANES, x[lane], by, width), x[in + by < (unsigned)width ? lane + by : lane]};
      *y++ = {__shfl_xor_sync(ALL_LANES, x[lane], (int)by, width), x[(lane ^ by) < first + (unsigned)width ? lane ^ by : lane]};
      if (!j.n) __syncwarp();
    }
  }
  const float f = (float)lane;
  *y++ = {__float_as_uint(__shfl_xor_sync(ALL_LANES, f, 16)), __float_as_uint((float)(lane ^ 16))};
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u; /* halves that part and meet again */
  *y++ = {__shfl_xor_sync(half, (unsigned)x[lane], 3), (unsigned)x[lane ^ 3]};
  if (lane < 16) *y++ = {(unsigned)__shfl_sync(0xffffu, (int)lane, 9), 9};
  else *y++ = {__ballot_sync(0xffff0000u, lane % 2), 0xaaaa0000u};
  *y++ = {__ballot_sync(ALL_LANES, lane % 3 == 0), 0x49249249u};
  *y++ = {(uint64_t)__any_sync(ALL_LANES, lane == 5) * 2 + (uint64_t)__any_sync(ALL_LANES, lane == 32), 2};
  *y++ = {(uint64_t)__all_sync(ALL_LANES, lane < 32) * 2 + (uint64_t)__all_sync(ALL_LANES, lane < 31), 2};
  *y++ = {__match_any_sync(ALL_LANES, lane / 4), 0xfu << lane / 4 * 4};
  *y++ = {__reduce_add_sync(ALL_LANES, lane), 496};
  *y++ = {(uint64_t)__reduce_max_sync(ALL_LANES, (int)lane - 40), (uint64_t)-9};
  *y++ = {__reduce_min_sync(0xffffffffu, lane + 3), 3};
  *y++ = {__reduce_or_sync(ALL_LANES, 1u << lane), 0xffffffffu};
  *y++ = {__reduce_xor_sync(ALL_LANES, lane), 0};
  *y++ = {__float_as_uint(warp_sum((float)lane)), __float_as_uint(496.0f)};
  *y++ = {__float_as_uint(warp_max((float)lane)), __float_as_uint(31.0f)};
  for (pair *end = (pair *)j.y + (threadIdx.x + 1) * 256; y < end; y++) *y = {0, 0};
}
static void collectives(void **) {
  uint64_t x[128];
  for (int i = 0; i < 128; i++) x[i] = simt_bits(i * 0.37) ^ (uint64_t)i << 33;
  const size_t n = 128 * 256;
  const job j = {device(x, 128), device<pair>(n), 0, 0};
  for (int k = 0; k < 5; k++) {
    OK(run_kernel(shuffles, 3, 128, 0, j));
    pair *y = host((pair *)j.y, n);
    for (size_t i = 0; i < n; i++) assert_int_equal(y[i].got, y[i].want);
    free(y);
  }
}

/* ---- mma --------------------------------------------------------------------------------------------------------------------------- */

__global__ void multiply(job j) { /* y (16, 8) += a (16, 16) b (16, 8), a and b of 16 bits a number, one after the other in x */
  const uint16_t *a = (const uint16_t *)j.x, *b = a + 256;
  float *y = (float *)j.y;
  const int lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4;
  auto two = [](uint16_t low, uint16_t high) { return (uint32_t)low | (uint32_t)high << 16; };
  uint32_t fa[4], fb[2];
  for (int i = 0; i < 4; i++) {
    const uint16_t *p = a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
    fa[i] = two(p[0], p[1]);
  }
  for (int i = 0; i < 2; i++) {
    const uint16_t *p = b + (2 * t + i * 8) * 8 + g;
    fb[i] = two(p[0], p[8]);
  }
  float d[4];
  for (int i = 0; i < 4; i++) d[i] = y[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  if (j.what) mma_bf16(d, fa, fb);
  else mma_f16(d, fa, fb);
  for (int i = 0; i < 4; i++) y[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}
static void products(void **) {
  for (int what = 0; what < 2; what++) {
    uint16_t x[256 + 128];
    float y[128], wide[256 + 128];
    for (int i = 0; i < 384; i++) {
      wide[i] = (float)(i * 37 % 101 - 50) / 16;
      x[i] = what ? mavk_bf16_from_f32(wide[i]) : mavk_f16_from_f32(wide[i]);
    }
    for (int i = 0; i < 128; i++) y[i] = (float)(i % 9);
    const job j = {device(x, 384), device(y, 128), 0, what};
    OK(run_kernel(multiply, 1, 32, 0, j));
    float *got = host((float *)j.y, 128);
    for (int r = 0; r < 16; r++)
      for (int c = 0; c < 8; c++) {
        float want = y[r * 8 + c];
        for (int k = 0; k < 16; k++) want += wide[r * 16 + k] * wide[256 + k * 8 + c];
        assert_true(got[r * 8 + c] == want); /* exact: small multiples of 1/256 */
      }
    free(got);
  }
}

/* ---- atomics, bits, conversions -------------------------------------------------------------------------------------------------------- */

__global__ void counts(job j) {
  unsigned *y = (unsigned *)j.y;
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&y[0], 1u);
  atomicMax(&y[1], i);
  atomicMin(&y[2], i);
  atomicAdd((float *)&y[3], 0.5f);
  atomicOr(&y[4], 1u << i % 32);
  const unsigned ticket = atomicInc(&y[5], gridDim.x * blockDim.x - 1); /* back to 0 after the last */
  if (ticket == gridDim.x * blockDim.x - 1) atomicExch(&y[6], y[0]);
  for (unsigned old = y[7], seen; (seen = atomicCAS(&y[7], old, old + 2)) != old; old = seen) {}
  atomicAdd((unsigned long long *)&y[8], 1ull << 32);
}
static void atomics(void **) {
  unsigned x[10] = {0, 0, ~0u, 0, 0, 0, 0, 0, 0, 0};
  const job j = {nullptr, device(x, 10), 0, 0};
  OK(run_kernel(counts, 40, 96, 0, j));
  unsigned *y = host((unsigned *)j.y, 10);
  const unsigned want[10] = {3840, 3839, 0, __float_as_uint(1920.0f), ~0u, 0, 3840, 7680, 0, 3840};
  for (int i = 0; i < 10; i++) assert_int_equal(y[i], want[i]);
  free(y);
}

static void bits(void **) {
  assert_int_equal(__byte_perm(0x33221100u, 0x77665544u, 0x7520), 0x77552200u);
  assert_int_equal(__byte_perm(0x00008000u, 0, 0x9999), 0xffffffffu);
  assert_int_equal(__brev(1), 0x80000000u);
  assert_int_equal(__funnelshift_l(0x80000000u, 1, 1), 3);
  assert_int_equal(__funnelshift_r(0, 1, 1), 0x80000000u);
  assert_int_equal(__clz(0) + __clz(1) + __ffs(8) + __popc(255), 32 + 31 + 4 + 8);
  assert_int_equal(__float2int_rz(NAN), 0);
  assert_int_equal(__float2int_rn(2.5f), 2);
  assert_int_equal(__float2int_rz(3e9f), INT32_MAX);
  assert_int_equal(f16_from_f32(70000.0f), 0x7c00);
  assert_int_equal(f16_from_f32(NAN), 0x7fff);
  assert_int_equal(f8x2_from_f32(1000.0f, -0.5f), 0xb07e);
  assert_int_equal(f8x2_from_f32(NAN, -NAN), 0x7f7f);
  assert_true(f32_from_f16(0x3c01) == 1.0f + 0x1p-10f);
  assert_true(max(3, 5) == 5 && min(2.0f, NAN) == 2.0f);
}

/* ---- streams, events, graphs --------------------------------------------------------------------------------------------------------------- */

__global__ void twice_plus(job j) { /* y = 2 y + n: shows the order */
  pdl_launch();
  pdl_wait();
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  ((float *)j.y)[i] = 2 * ((float *)j.y)[i] + (float)j.n;
}
static void host_adds(void *p) { (*(int *)p)++; }

static void graphs(void **) {
  cudaGraph_t g;
  cudaGraphExec_t e;
  OK(cudaStreamCreateWithFlags(&test_stream, cudaStreamNonBlocking));
  float *pinned;
  OK(cudaHostAlloc((void **)&pinned, 64 * sizeof(float), cudaHostAllocMapped));
  job j = {nullptr, device<float>(64), 0, 0};
  int called = 0;
  OK(cudaStreamBeginCapture(test_stream, cudaStreamCaptureModeThreadLocal));
  OK(cudaMemsetAsync(j.y, 0, 64 * sizeof(float), test_stream));
  for (j.n = 1; j.n <= 10; j.n++) OK(enqueue(twice_plus, 4, 16, 0, j, true));
  OK(cudaMemcpyAsync(pinned, j.y, 64 * sizeof(float), cudaMemcpyDeviceToHost, test_stream));
  OK(cudaLaunchHostFunc(test_stream, host_adds, &called));
  cudaStreamCaptureStatus status;
  OK(cudaStreamIsCapturing(test_stream, &status));
  assert_int_equal(status, cudaStreamCaptureStatusActive);
  OK(cudaStreamEndCapture(test_stream, &g));
  size_t count = 0;
  OK(cudaGraphGetNodes(g, nullptr, &count));
  assert_int_equal(count, 13);
  OK(cudaGraphInstantiate(&e, g, 0));
  pinned[5] = -1;
  assert_int_equal(cudaStreamQuery(test_stream), cudaSuccess); /* nothing ran, nothing waits */
  assert_true(pinned[5] == -1 && !called);
  float want = 0;
  for (int i = 1; i <= 10; i++) want = 2 * want + (float)i;
  for (int k = 1; k <= 20; k++) {
    memset(pinned, 0, 64 * sizeof(float));
    OK(cudaGraphLaunch(e, test_stream));
    OK(cudaGraphLaunch(e, test_stream));
    assert_true(pinned[0] == 0);
    OK(cudaStreamSynchronize(test_stream));
    for (int i = 0; i < 64; i++) assert_true(pinned[i] == want);
    assert_int_equal(called, 2 * k);
  }
  /* another argument for the last kernel; the graph itself may go before */
  cudaGraphNode_t nodes[13];
  OK(cudaGraphGetNodes(g, nodes, &count));
  j.n = 100;
  void *args[] = {&j};
  const cudaKernelNodeParams p = {(void *)twice_plus, 4, 16, 0, args, nullptr};
  OK(cudaGraphExecKernelNodeSetParams(e, nodes[10], &p));
  assert_int_equal(cudaGraphExecKernelNodeSetParams(e, nodes[0], &p), cudaErrorInvalidValue);
  OK(cudaGraphDestroy(g));
  OK(cudaGraphLaunch(e, test_stream));
  OK(cudaGraphExecDestroy(e)); /* what is under way goes on */
  while (cudaStreamQuery(test_stream) == cudaErrorNotReady) {}
  assert_true(pinned[63] == want + 90);
  OK(cudaFreeHost(pinned));
  OK(cudaStreamDestroy(test_stream));
}

static void streams(void **) {
  cudaStream_t other;
  cudaEvent_t a, b;
  OK(cudaStreamCreateWithFlags(&test_stream, cudaStreamNonBlocking));
  OK(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
  OK(cudaEventCreate(&a));
  OK(cudaEventCreateWithFlags(&b, cudaEventDisableTiming));
  job j = {nullptr, device<float>(32), 1, 0};
  OK(cudaMemset(j.y, 0, 128));
  OK(cudaDeviceSynchronize());
  OK(cudaEventRecord(a, test_stream));
  OK(enqueue(twice_plus, 1, 32, 0, j, true));
  OK(cudaEventRecord(b, test_stream));
  assert_int_equal(cudaEventQuery(b), cudaErrorNotReady);
  OK(cudaStreamWaitEvent(other, b, 0));
  std::swap(test_stream, other);
  j.n = 5;
  OK(enqueue(twice_plus, 1, 32, 0, j, true));
  OK(cudaStreamSynchronize(test_stream));
  assert_int_equal(cudaEventQuery(b), cudaSuccess);
  float ms = -1, *y = host((float *)j.y, 32);
  OK(cudaEventElapsedTime(&ms, a, b));
  assert_true(y[31] == 7 && ms >= 0);
  free(y);
  void *p;
  size_t before, after, total;
  OK(cudaMemGetInfo(&before, &total));
  OK(cudaMallocAsync(&p, 1000, other));
  OK(cudaMemsetAsync(p, 1, 1000, other));
  OK(cudaFreeAsync(p, other));
  OK(cudaMemGetInfo(&after, &total));
  assert_int_equal(after, before - 1000);
  OK(cudaDeviceSynchronize());
  OK(cudaMemGetInfo(&after, &total));
  assert_int_equal(after, before);
  OK(cudaEventDestroy(a));
  OK(cudaEventDestroy(b));
  OK(cudaStreamDestroy(test_stream));
  OK(cudaStreamDestroy(other));
}

int main() {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(indices, reset),     cmocka_unit_test_setup(barriers, reset), cmocka_unit_test_setup(collectives, reset),
      cmocka_unit_test_setup(products, reset),    cmocka_unit_test_setup(atomics, reset),  cmocka_unit_test_setup(bits, reset),
      cmocka_unit_test_setup(graphs, reset),      cmocka_unit_test_setup(streams, reset),
  };
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}
