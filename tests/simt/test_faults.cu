/* tests/simt/test_faults.cu - plants what the emulator is there to find, and sees it found. */
#include <sys/wait.h>
#include <unistd.h>

#include "fiber.h"
#include "test_simt.h"

static int reset(void **) {
  OK(cudaDeviceReset());
  test_stream = nullptr;
  return 0;
}

/* The launch faulted: with this error, and this in its text; every call says so, until a reset. */
static void expect(cudaError_t got, cudaError_t wanted, const char *text) {
  assert_string_equal(cudaGetErrorName(got), cudaGetErrorName(wanted));
  if (!strstr(simt_fault_text(), text)) fail_msg("\"%s\" is not in \"%s\"", text, simt_fault_text());
  void *p;
  assert_int_equal(cudaMalloc(&p, 16), wanted);
  assert_int_equal(cudaGetLastError(), wanted);
  OK(cudaDeviceReset());
  OK(cudaMalloc(&p, 16));
}

struct job {
  float *x, *y;
  int n, what;
};

/* What AddressSanitizer ends the process for, where it is there. */
static bool sanitizer_ends(void what()) {
#ifdef SIMT_ASAN
  const pid_t child = fork();
  if (!child) what(), _exit(0);
  int status;
  assert_true(waitpid(child, &status, 0) == child);
  assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return true;
#else
  (void)what;
  return false;
#endif
}

/* ---- memory ----------------------------------------------------------------------------------------------------------------- */

__global__ void shared_at(job j) { /* writes byte n of the shared memory */
  MAVK_SHARED(shared);
  shared[j.n + (int)threadIdx.x] = 1;
}
static void after_shared() {
  expect(run_kernel(shared_at, 3, 1, 100, {nullptr, nullptr, 100, 0}), cudaErrorIllegalAddress, "wrote shared memory after its end");
}
static void before_shared() {
  expect(run_kernel(shared_at, 3, 1, 128, {nullptr, nullptr, -1, 0}), cudaErrorIllegalAddress, "wrote shared memory before its start");
}
static void shared_memory(void **) {
  const job inside = {nullptr, nullptr, 0, 0}, after = {nullptr, nullptr, 128, 0};
  OK(run_kernel(shared_at, 3, 1, 128, inside));
  expect(run_kernel(shared_at, dim3(2, 3), 1, 128, after), cudaErrorIllegalAddress, "shared memory: 128 bytes after the start of 128");
  expect(run_kernel(shared_at, 3, 1, 0, inside), cudaErrorIllegalAddress, "shared memory");
  if (!sanitizer_ends(after_shared)) after_shared();
  if (!sanitizer_ends(before_shared)) before_shared();
}

__global__ void copy_to(job j) {
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  j.y[i] = j.x[i];
}
static void a_little_too_far() { /* less than the alignment of allocations */
  job j = {device<float>(6), device<float>(5), 6, 0};
  OK(cudaMemset(j.x, 0, 24));
  OK(run_kernel(copy_to, 1, 6, 0, j));
  expect(cudaFree(j.y), cudaErrorIllegalAddress, "wrote after the end of an allocation of 20 bytes");
}
static void device_memory(void **) {
  const int n = 1024; /* a multiple of the allocations' alignment */
  job j = {device<float>(n), device<float>(n), n, 0};
  OK(run_kernel(copy_to, 8, 128, 0, j));
  expect(run_kernel(copy_to, 9, 128, 0, j), cudaErrorIllegalAddress, "device memory: ");
  j = {nullptr, device<float>(n), n, 0};
  expect(run_kernel(copy_to, 8, 128, 0, j), cudaErrorIllegalAddress, "copy_to(job): block (");
  j = {device<float>(n), device<float>(n), n, 0};
  OK(cudaFree(j.x));
  expect(run_kernel(copy_to, 8, 128, 0, j), cudaErrorIllegalAddress, "not allocated, or freed");
  if (!sanitizer_ends(a_little_too_far)) a_little_too_far();
}

static void copies(void **) {
  float h[8] = {};
  float *d = device<float>(8);
  FAILS(cudaMemcpy(d + 1, h, sizeof h, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  FAILS(cudaMemcpy(h, d - 1, 4, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  FAILS(cudaMemcpy(h, d, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  FAILS(cudaMemset(d, 0, 33), cudaErrorInvalidValue);
  FAILS(cudaFree(d + 1), cudaErrorInvalidValue);
  OK(cudaFree(d));
  FAILS(cudaFree(d), cudaErrorInvalidValue);
}

__global__ void local_memory(job j) {
  volatile char big[64 << 10];
  for (int i = 0; i < (int)sizeof big; i += 512) big[i] = 0;
  if (j.n) ((void (*)(job))j.x)({j.x, j.y, j.n - 1, 0});
  big[j.n] = 1;
}
__global__ void divide(job j) { j.y[0] = (float)(7 / j.n); }
struct alignas(16) wide {
  float x[4];
};
__global__ void misaligned(job j) { *(wide *)j.y = *(const wide *)(j.x + j.n); }
__global__ void once(job j) { j.y[0] = (float)load_once(j.x + j.n).x; }
__global__ void trap(job) { __trap(); }
static void instructions(void **) {
  job j = {(float *)(void *)local_memory, nullptr, 3, 0};
  expect(run_kernel(local_memory, 1, 1, 0, j), cudaErrorHardwareStackError, "local memory");
  j = {nullptr, device<float>(4), 0, 0};
#ifdef SIMT_ASAN /* its companion looks before it divides */
  expect(run_kernel(divide, 1, 1, 0, j), cudaErrorMisalignedAddress, "undefined behaviour");
#else
  expect(run_kernel(divide, 1, 1, 0, j), cudaErrorLaunchFailure, "division by 0");
#endif
  j = {device<float>(8), device<float>(4), 0, 0};
  OK(run_kernel(misaligned, 1, 1, 0, j));
  j.n = 1;
  expect(run_kernel(misaligned, 1, 1, 0, j), cudaErrorMisalignedAddress, "misaligned");
  j = {device<float>(8), device<float>(4), 3, 0};
  expect(run_kernel(once, 1, 1, 0, j), cudaErrorMisalignedAddress, "not aligned to 16 bytes");
  expect(run_kernel(trap, 1, 1, 0, j), cudaErrorLaunchFailure, "__trap");
}

__global__ void sum_shared(job j) { /* of shared memory that nobody wrote */
  MAVK_SHARED(shared);
  j.y[threadIdx.x] = ((const float *)shared)[threadIdx.x] + (j.n ? j.x[threadIdx.x] : 0);
}
static void not_initialized(void **) {
  job j = {device<float>(32), device<float>(32), 0, 0};
  for (; j.n < 2; j.n++) {
    OK(run_kernel(sum_shared, 1, 32, 128, j));
    float *y = host(j.y, 32);
    for (int i = 0; i < 32; i++) assert_true(y[i] != y[i]);
    free(y);
  }
}

/* ---- order ---------------------------------------------------------------------------------------------------------------------- */

__global__ void reverse(job j) { /* what: 0 without a barrier, 1 with */
  MAVK_SHARED(shared);
  float *s = (float *)shared;
  const int n = (int)blockDim.x, i = (int)threadIdx.x;
  s[i] = (float)i;
  if (j.what == 1) __syncthreads();
  if (j.what == 2) __syncwarp();
  j.y[i] = s[n - 1 - i];
}
__global__ void rounds(job j) { /* the second barrier of a round is missing: what is read may be of the next round. 1: it is there */
  MAVK_SHARED(shared);
  float *s = (float *)shared;
  const int n = (int)blockDim.x, i = (int)threadIdx.x;
  float sum = 0;
  for (int round = 0; round < 8; round++) {
    s[i] = (float)(i + round);
    __syncthreads();
    sum += s[n - 1 - i];
    if (j.what) __syncthreads();
  }
  j.y[i] = sum;
}
/* How often of 20 the kernel gave something else than `want`. */
static int differs(void (*kernel)(job), unsigned threads, int what, float want(int i, int n)) {
  const job j = {nullptr, device<float>(threads), 0, what};
  int wrong = 0;
  for (int k = 0; k < 20; k++) {
    OK(run_kernel(kernel, 1, threads, threads * sizeof(float), j));
    float *y = host(j.y, threads);
    bool same = true;
    for (unsigned i = 0; i < threads; i++) same = same && y[i] == want((int)i, (int)threads);
    wrong += !same;
    free(y);
  }
  return wrong;
}
static void barriers_that_are_missing(void **) {
  auto reversed = [](int i, int n) { return (float)(n - 1 - i); };
  auto summed = [](int i, int n) { return (float)(8 * (n - 1 - i) + 28); };
  assert_int_equal(differs(reverse, 256, 1, reversed), 0);
  assert_int_equal(differs(reverse, 32, 2, reversed), 0);
  assert_true(differs(reverse, 256, 0, reversed) > 10);
  assert_true(differs(reverse, 256, 2, reversed) > 10);
  assert_true(differs(reverse, 32, 0, reversed) > 10);
  assert_int_equal(differs(rounds, 256, 1, summed), 0);
  assert_true(differs(rounds, 256, 0, summed) > 10);
}

/* ---- collectives -------------------------------------------------------------------------------------------------------------------- */

enum { FOREIGN_MASK, TWO_COLLECTIVES, TWO_MASKS, LANE_ENDED, ALONE_AT_BARRIER, BARRIER_AND_WARP, NAMED_BARRIER, NAMED_TWICE };
__global__ void meet(job j) {
  const int i = (int)threadIdx.x;
  int got = 0;
  switch (j.what) {
    case FOREIGN_MASK: got = __shfl_sync(0xffff0000u, i, 20); break;
    case TWO_COLLECTIVES: got = i < 16 ? __shfl_xor_sync(ALL_LANES, i, 1) : __any_sync(ALL_LANES, i); break;
    case TWO_MASKS: got = i % 32 < 16 ? __shfl_xor_sync(ALL_LANES, i, 1) : __shfl_xor_sync(0xffff0000u, i, 1); break;
    case LANE_ENDED:
      if (i % 32 == 7) return;
      got = __shfl_xor_sync(ALL_LANES, i, 1);
      break;
    case ALONE_AT_BARRIER:
      if (i == 5) return;
      __syncthreads();
      break;
    case BARRIER_AND_WARP:
      if (i < 32) __syncwarp();
      if (i == 40) __syncwarp();
      else __syncthreads();
      break;
    case NAMED_BARRIER:
      if (i >= 32) simt_barrier(1, 64, 0, SIMT_COUNT);
      break;
    default:
      if (i < 64) simt_barrier(1, i < 32 ? 64 : 96, 0, SIMT_COUNT);
  }
  if (j.y) j.y[i] = (float)got;
}
static void collectives(void **) {
  job j = {};
  auto faults = [&j](int what, unsigned threads, const char *text) {
    j.what = what;
    expect(run_kernel(meet, 4, threads, 0, j), cudaErrorLaunchFailure, text);
  };
  faults(FOREIGN_MASK, 64, "__shfl_sync: the mask ffff0000 does not hold the calling lane");
  faults(TWO_COLLECTIVES, 32, "waits at __");
  faults(TWO_MASKS, 64, "(mask ffffffff) waits for lane");
  faults(LANE_ENDED, 64, "__shfl_xor_sync (mask ffffffff) waits for lane 7, which has ended");
  faults(LANE_ENDED, 4, "waits for lane 4, which does not exist");
  faults(ALONE_AT_BARRIER, 96, "95 of 96 threads; thread (5, 0, 0) has ended");
  faults(BARRIER_AND_WARP, 64, "thread (40, 0, 0)");
  faults(NAMED_BARRIER, 64, "waits at barrier 1");
  faults(NAMED_TWICE, 64, "others wait at it for");
}

/* ---- overlapping launches ---------------------------------------------------------------------------------------------------------------- */

enum { GOOD, READS_EARLY, WRITES_EARLY, NEVER_WAITS, ONE_NEVER_WAITS, NEVER_LAUNCHES };
__global__ void add_one(job j) { /* y = x + 1 */
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (j.what != NEVER_LAUNCHES) pdl_launch();
  float x = 0;
  if (j.what == READS_EARLY) x = j.x[i];
  if (j.what == WRITES_EARLY) j.y[i] = 0;
  if (j.what != NEVER_WAITS && (j.what != ONE_NEVER_WAITS || threadIdx.x != 9)) pdl_wait();
  if (j.what != READS_EARLY) x = j.x[i];
  j.y[i] = x + 1;
}
/* Four kernels, each reading what the one before wrote; the last two of them as `what` says. The sum of the results. */
static cudaError_t chain(int what, float *sum) {
  const int n = 256;
  float h[n] = {};
  float *x[5];
  for (float *&p : x) p = device(h, n);
  for (int i = 0; i < 4; i++) {
    const job j = {i == 3 && what == WRITES_EARLY ? x[1] : x[i], i == 3 && what == WRITES_EARLY ? x[2] : x[i + 1], n, i < 2 ? GOOD : what};
    OK(enqueue(add_one, 8, 32, 0, j, true));
  }
  cudaError_t e = cudaStreamSynchronize(test_stream);
  if (e) return e;
  float *y = host(what == WRITES_EARLY ? x[3] : x[4], n);
  *sum = 0;
  for (int i = 0; i < n; i++) *sum += y[i];
  free(y);
  for (float *p : x) cudaFree(p);
  return cudaSuccess;
}
static void overlap(void **) {
  int early = 0, written = 0;
  for (int k = 0; k < 20; k++) {
    float sum;
    OK(chain(GOOD, &sum));
    assert_true(sum == 4 * 256);
    OK(chain(READS_EARLY, &sum));
    early += sum != 4 * 256;
    OK(chain(WRITES_EARLY, &sum));
    written += sum != 3 * 256;
  }
  assert_true(early > 10);
  assert_true(written > 3); /* the block that began so early that another kernel wrote after it does no harm */
  float sum;
  expect(chain(NEVER_WAITS, &sum), cudaErrorLaunchFailure, "ended without pdl_wait");
  expect(chain(ONE_NEVER_WAITS, &sum), cudaErrorLaunchFailure, "thread (9, 0, 0)");
  expect(chain(NEVER_LAUNCHES, &sum), cudaErrorLaunchFailure, "no thread called pdl_launch");
}

/* ---- the host ---------------------------------------------------------------------------------------------------------------------------- */

static void launches(void **) {
  const job j = {device<float>(1), device<float>(1), 0, 0};
  FAILS(run_kernel(copy_to, 1, 1025, 0, j), cudaErrorInvalidConfiguration);
  FAILS(run_kernel(copy_to, 0, 1, 0, j), cudaErrorInvalidConfiguration);
  FAILS(run_kernel(copy_to, 1, 1, 48 * 1024 + 16, j), cudaErrorInvalidValue);
  OK(cudaFuncSetAttribute((const void *)copy_to, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 * 1024));
  OK(run_kernel(copy_to, 1, 1, 100 * 1024, j));
  FAILS(cudaFuncSetAttribute((const void *)copy_to, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 * 1024), cudaErrorInvalidValue);
  FAILS(launch_with((const void *)chain, 1, 1, 0, &j, false), cudaErrorInvalidDeviceFunction);
  simt_fail_call(2, cudaErrorMemoryAllocation);
  void *p;
  OK(cudaMalloc(&p, 8));
  FAILS(cudaMalloc(&p, 8), cudaErrorMemoryAllocation);
  OK(cudaMalloc(&p, 8));
  FAILS(cudaMalloc(&p, (size_t)1 << 40), cudaErrorMemoryAllocation);
  assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
  assert_int_equal(cudaGetLastError(), cudaSuccess);
}

static void a_wait_that_is_missing(void **) {
  float *pinned;
  OK(cudaHostAlloc((void **)&pinned, 4, cudaHostAllocMapped));
  *pinned = 1;
  const float two = 2;
  const job j = {device(&two, 1), device<float>(1), 0, 0};
  OK(enqueue(copy_to, 1, 1, 0, j));
  OK(cudaMemcpyAsync(pinned, j.y, 4, cudaMemcpyDeviceToHost, test_stream));
  assert_true(*pinned == 1);
  OK(cudaStreamSynchronize(test_stream));
  assert_true(*pinned == 2);
  OK(cudaFreeHost(pinned));
}

static void captures(void **) {
  cudaStream_t s;
  cudaGraph_t g;
  OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
  FAILS(cudaStreamSynchronize(s), cudaErrorStreamCaptureUnsupported);
  FAILS(cudaStreamEndCapture(s, &g), cudaErrorStreamCaptureInvalidated);
  OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
  void *p;
  FAILS(cudaMalloc(&p, 8), cudaErrorStreamCaptureUnsupported);
  FAILS(cudaStreamEndCapture(s, &g), cudaErrorStreamCaptureInvalidated);
  FAILS(cudaStreamEndCapture(s, &g), cudaErrorIllegalState);
  OK(cudaStreamDestroy(s));
}

/* A child that does what is not allowed outside of kernels. */
static void touch() {
  float *x = device<float>(4);
  OK(cudaMemset(x, 0, 16));
  float *y = host(x, 4);
  const job j = {x, x, 4, 0};
  OK(run_kernel(copy_to, 1, 4, 0, j));
  free(y);
  *(volatile float *)x = 1;
}
static void the_host_touches_device_memory(void **) {
  const pid_t child = fork();
  if (!child) {
    setenv("MAV_SIMT_PROTECT", "1", 1);
    execl("/proc/self/exe", "test_faults", "touch", (char *)nullptr);
    _exit(0);
  }
  int status;
  assert_true(waitpid(child, &status, 0) == child);
  assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int count, char **) {
  if (count > 1) return touch(), 0;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(shared_memory, reset),
      cmocka_unit_test_setup(device_memory, reset),
      cmocka_unit_test_setup(copies, reset),
      cmocka_unit_test_setup(instructions, reset),
      cmocka_unit_test_setup(not_initialized, reset),
      cmocka_unit_test_setup(barriers_that_are_missing, reset),
      cmocka_unit_test_setup(collectives, reset),
      cmocka_unit_test_setup(overlap, reset),
      cmocka_unit_test_setup(launches, reset),
      cmocka_unit_test_setup(a_wait_that_is_missing, reset),
      cmocka_unit_test_setup(captures, reset),
      cmocka_unit_test_setup(the_host_touches_device_memory, reset),
  };
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}
