/* tests/simt/engine.h - what the parts of the emulator know of each other. All of it under one lock (runtime.cc). */
#ifndef MAV_SIMT_ENGINE_H
#define MAV_SIMT_ENGINE_H

#include "cuda_runtime.h"
#include "fiber.h"

enum { THREADS_MAX = 1024, SHARED_BYTES_MAX = 227 << 10, SHARED_BYTES_PLAIN = 48 << 10 };

/* A kernel as it was registered: engine.cc. */
struct kernel_info {
  simt_call *call;
  size_t argument_bytes;
  const char *type;
  size_t shared_bytes_max;
};
kernel_info *kernel_find(const void *kernel); /* NULL: never registered */

struct launch {
  const void *kernel, *argument;
  simt_call *call;
  const char *type;
  dim3 grid, block;
  size_t shared_bytes;
  bool pdl;
};

/* A launch that has begun. */
struct run;
run *run_new(const launch *l);
/* One block, any, until all its threads wait for the kernel before (or until a fault). */
void run_early(run *r);
/* To the end, and frees it. After a fault anywhere the launch is over. */
void run_finish(run *r);
void run_abandon(run *r);

uint64_t simt_random();
uint64_t simt_seed();

/* ---- faults: fault.cc ------------------------------------------------------------------------------------------------ */

struct fault_state {
  cudaError_t error; /* sticks */
  char text[1024];
};
extern fault_state simt_fault_now;
void fault_set(cudaError_t error, const char *where, const char *format, va_list args);
/* Of the host side: no kernel is running. */
void fault_report(cudaError_t error, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Signals of kernels become faults from now on, on this thread; somebody may have taken the handler away. */
void fault_watch();
/* The signal that ended a thread, explained; false when there was none. */
bool fault_take_signal(char *text, size_t size, cudaError_t *error);
/* What the signal handler asks and does: engine.cc. */
bool engine_is_inside();
void engine_leave();
bool engine_describe(const void *p, char *text, size_t size);

/* ---- memory: memory.cc ------------------------------------------------------------------------------------------------ */

void *memory_alloc(size_t bytes); /* NULL: no more */
bool memory_free(void *p);        /* false: never allocated */
void memory_free_all();
size_t memory_live(), memory_limit();
/* Device memory is open to what runs between the two; they nest. */
void memory_open();
void memory_close();
/* Whether p points into the device's address space, and whether all its bytes are allocated. */
bool memory_is_device(const void *p);
bool memory_holds(const void *p, size_t bytes);
bool memory_describe(const void *p, char *text, size_t size);
void *pinned_alloc(size_t bytes);
bool pinned_free(void *p);
bool pinned_holds(const void *p);

#endif
