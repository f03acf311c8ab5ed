/* kernels/cuda/shuffle.cu - codes of a weight from rows to the order of m16n8k16 (kernels/layout.h), and back.
 *
 * Grid: one warp a tile of 16 x 32 codes, eight warps a block. In the layout a lane's 16 bytes lie together, as they do for the
 * products; in rows it takes them as eight pairs. Moves every byte in and out once; bound by memory, and run once per weight. */
#include "../layout.h"
#include "cuda.h"
#include "service.h"

struct shuffle_job {
  uint8_t *to;
  const uint8_t *from;
  int64_t tiles, across, d; /* tiles in all, in a row of tiles; columns */
  int back;
};

#define SHUFFLE_WARPS 8

__global__ void __launch_bounds__(SHUFFLE_WARPS *WARP) shuffle_tiles(const __grid_constant__ shuffle_job j) {
  pdl_launch();
  pdl_wait();
  const int64_t tile = (int64_t)blockIdx.x * SHUFFLE_WARPS + threadIdx.x / WARP;
  if (tile >= j.tiles) return;
  const int lane = (int)threadIdx.x % WARP;
  const int64_t rows = tile / j.across * MAVK_MMA_ROWS * j.d + tile % j.across * MAVK_MMA_COLUMNS; /* the tile's first code */
  const int64_t packed = tile * MAVK_MMA_TILE + lane * MAVK_MMA_LANE_BYTES;
  for (int i = 0; i < MAVK_MMA_LANE_BYTES; i++) {
    int r, k;
    mavk_mma_tile_of(lane * MAVK_MMA_LANE_BYTES + i, &r, &k);
    if (j.back)
      j.to[rows + r * j.d + k] = j.from[packed + i];
    else
      j.to[packed + i] = j.from[rows + r * j.d + k];
  }
}

extern "C" int mavk_cuda_shuffle(mavk_cuda *c, void *to, const void *from, int64_t n, int64_t d, int back) {
  const int64_t across = d / MAVK_MMA_COLUMNS, tiles = n / MAVK_MMA_ROWS * across;
  const shuffle_job j = {(uint8_t *)to, (const uint8_t *)from, tiles, across, d, back};
  return mavk_run(c, shuffle_tiles, dim3((unsigned)ceil_div(tiles, SHUFFLE_WARPS)), dim3(SHUFFLE_WARPS * WARP), 0, j);
}
