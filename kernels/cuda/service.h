/* kernels/cuda/service.h - kernels that are no ops: the backend itself launches them. Plain C. */
#ifndef MAVK_CUDA_SERVICE_H
#define MAVK_CUDA_SERVICE_H

#include "launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A kernel of this library, to see whether it has code for the device. */
const void *mavk_cuda_probe(void);

/* ---- the mailbox: mailbox.cu ---- */

typedef struct mavk_letter {
  void *to;         /* pinned host memory */
  const void *from; /* device memory; both 4-byte aligned */
  int64_t bytes;
} mavk_letter;

#define MAVK_LETTERS 128 /* of one launch */

/* Copies the letters; then, if counter is not NULL, counts it up by one and publishes it at arrived (pinned). */
int mavk_cuda_mailbox(mavk_cuda *c, const mavk_letter *letters, int count, uint32_t *counter, uint32_t *arrived);

/* ---- weights: shuffle.cu ---- */

/* (n, d) codes row by row -> MAVK_LAYOUT_M16N8K16, or back. n % 16 == 0, d % 32 == 0; 16-byte aligned, no overlap. */
int mavk_cuda_shuffle(mavk_cuda *c, void *to, const void *from, int64_t n, int64_t d, int back);

/* ---- bandwidth: sweep.cu ---- */

/* Reads bytes (a multiple of 16) at p, once. sink: 4 bytes of its own. */
int mavk_cuda_sweep(mavk_cuda *c, const void *p, int64_t bytes, uint32_t *sink);

#ifdef __cplusplus
}
#endif
#endif
