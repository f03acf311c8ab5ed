/* tests/fuzz/fuzz.h - what the fuzz targets share. A broken promise aborts; that is what the fuzzer looks for. */
#ifndef MAV_TESTS_FUZZ_H
#define MAV_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

#define FUZZ_CHECK(x)                                                   \
  do {                                                                  \
    if (!(x)) {                                                         \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #x);   \
      abort();                                                          \
    }                                                                   \
  } while (0)

/* The path of a file in memory with this content; the same path every time. */
const char *fuzz_file(const uint8_t *data, size_t bytes);

#endif
