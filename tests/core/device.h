/* tests/core/device.h - tests that run on every device there is: ref, cpu, and cuda (or its emulation: MAV_CUDA_LIBRARY). Include it
 * after cmocka.h and graph.h. */
#ifndef TESTS_DEVICE_H
#define TESTS_DEVICE_H

/* A tensor's first element for the host, to read and to write until the next op or launch. */
static inline void *host_of(mav_tensor *t) {
  mav__buffer *b = t->buffer;
  assert_int_equal(mav__mirror_add(b, "test"), MAV_OK);
  mav__host_read(b);
  return (char *)mav__host_write(b, 0, b->bytes) + (size_t)t->offset * mav_dtype_bytes(t->dtype);
}

static inline void release_device(mav_runtime *rt) {
  mav_runtime_release(rt);
  assert_int_equal(mav__mem_live(), 0);
  assert_int_equal(mav__device_live(), 0);
}

/* Every test on every device; *state is the device's name. */
static inline int run_on_devices(const struct CMUnitTest *tests, size_t count, CMFixtureFunction setup_test, CMFixtureFunction teardown_test) {
  static const char *const devices[] = {"ref", "cpu", "cuda"};
  struct CMUnitTest with[64];
  int failed = 0;
  if (count > 64) return 1;
  for (int i = 0; i < 3; i++) {
    mav_runtime *probe;
    if (mav_runtime_new(&probe, &(mav_runtime_options){.device = devices[i]}, NULL)) continue; /* no AVX2, no GPU */
    mav_runtime_release(probe);
    for (size_t k = 0; k < count; k++) {
      with[k] = tests[k];
      with[k].setup_func = setup_test;
      with[k].teardown_func = teardown_test;
      with[k].initial_state = (void *)(uintptr_t)devices[i];
    }
    failed += _cmocka_run_group_tests(devices[i], with, count, NULL, NULL);
  }
  return failed;
}

#endif
