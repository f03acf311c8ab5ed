/* kernels/cuda/mailbox.cu - the end of a graph: what the host reads of a step goes to pinned memory, then the step's number.
 *
 * The host polls that number, and finds the step's tokens, rows and acceptance beside it: no device call, no interrupt, no copy that
 * it must ask for.
 *
 * Grid: one block, so that one barrier and one release make everything visible before the number. Moves some hundred bytes to a few KB
 * over the bus; bound by its latency. The number is counted on the device, because a replayed graph has fixed arguments. */
#include "cuda.h"
#include "service.h"

struct mailbox_job {
  mavk_letter letter[MAVK_LETTERS];
  int count;
  uint32_t *counter, *arrived;
};

__global__ void __launch_bounds__(512) mailbox(const __grid_constant__ mailbox_job j) {
  pdl_launch();
  pdl_wait();
  for (int i = 0; i < j.count; i++) {
    const mavk_letter l = j.letter[i];
    const int64_t words = l.bytes / 4;
    for (int64_t k = threadIdx.x; k < words; k += blockDim.x) ((uint32_t *)l.to)[k] = ((const uint32_t *)l.from)[k];
    for (int64_t k = 4 * words + threadIdx.x; k < l.bytes; k += blockDim.x) ((uint8_t *)l.to)[k] = ((const uint8_t *)l.from)[k];
  }
  if (!j.counter) return;
  __syncthreads(); /* the release below is cumulative: what the other threads wrote before the barrier goes with it */
  if (threadIdx.x == 0) {
    const uint32_t number = *j.counter + 1;
    *j.counter = number;
    publish(j.arrived, number);
  }
}

extern "C" int mavk_cuda_mailbox(mavk_cuda *c, const mavk_letter *letters, int count, uint32_t *counter, uint32_t *arrived) {
  mailbox_job j = {{}, count, counter, arrived};
  for (int i = 0; i < count; i++) j.letter[i] = letters[i];
  return mavk_run(c, mailbox, dim3(1), dim3(512), 0, j);
}

extern "C" const void *mavk_cuda_probe(void) { return (const void *)mailbox; }
