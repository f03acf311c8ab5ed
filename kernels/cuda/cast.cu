/* kernels/cuda/cast.cu - to another dtype (numeric.h), and from any strides to dense.
 *
 * Three kernels, by how x lies along y: dense: a block of 256 threads for 2048 elements, eight of them a thread, in and out as 4 to 32
 * bytes; transposed (the last dimension of y is not the one with stride 1 in x, but the one before it is, as when the experts of a
 * Hugging Face file are turned): squares of 32 x 32 by way of shared memory, so that both sides move whole lines; anything else:
 * element by element. Moves x and y once; bound by memory. Exact. */
#include "strided.h"

#define THREADS 256
#define EACH 8
#define SIDE 32 /* of a square */

struct cast_job {
  const void *x; /* strided */
  void *y;       /* (n), dense */
  int32_t from, to;
  int64_t n;
  strided<1> map; /* of a turned matrix: the dimensions before the last two */
  int64_t rows, columns, row_tiles, column_tiles, column_s;
};

/* Eight elements that lie side by side, aligned to their size. */
template <int BYTES>
struct alignas(BYTES < 16 ? BYTES : 16) piece {
  unsigned char byte[BYTES];
};

template <int SIZE>
__device__ static __forceinline__ void load_piece(void *to, const void *x, int64_t i) {
  *(piece<SIZE * EACH> *)to = *(const piece<SIZE * EACH> *)((const unsigned char *)x + i * SIZE);
}
template <int SIZE>
__device__ static __forceinline__ void store_piece(void *y, int64_t i, const void *from) {
  *(piece<SIZE * EACH> *)((unsigned char *)y + i * SIZE) = *(const piece<SIZE * EACH> *)from;
}

template <int FROM, int TO>
static __global__ void cast_dense(const __grid_constant__ cast_job j) {
  pdl_launch();
  pdl_wait();
  const int64_t first = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * EACH;
  if (first + EACH > j.n) {
    for (int64_t i = first; i < j.n; i++) mavk_convert(j.y, TO, i, j.x, FROM, i);
    return;
  }
  constexpr int from_bytes = FROM == MAVK_F32 ? 4 : FROM == MAVK_F8 ? 1 : 2, to_bytes = TO == MAVK_F32 ? 4 : TO == MAVK_F8 ? 1 : 2;
  alignas(16) unsigned char in[from_bytes * EACH], out[to_bytes * EACH];
  load_piece<from_bytes>(in, j.x, first);
#pragma unroll
  for (int k = 0; k < EACH; k++) mavk_convert(out, TO, k, in, FROM, k);
  store_piece<to_bytes>(j.y, first, out);
}

static __global__ void cast_any(const __grid_constant__ cast_job j) {
  pdl_launch();
  pdl_wait();
  const int64_t block = (int64_t)blockIdx.x * THREADS * EACH;
  for (int k = 0; k < EACH; k++) {
    const int64_t i = block + k * THREADS + threadIdx.x;
    int64_t at[1];
    if (i >= j.n) return;
    strided_at(j.map, i, at);
    mavk_convert(j.y, j.to, i, j.x, j.from, at[0]);
  }
}

/* One square: rows along x in, rows along y out. */
static __global__ void cast_turned(const __grid_constant__ cast_job j) {
  MAVK_SHARED(space); /* SIDE x (SIDE + 1) elements of y */
  pdl_launch();
  pdl_wait();
  const int tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;
  const int64_t column_tile = blockIdx.x % j.column_tiles, rest = blockIdx.x / j.column_tiles;
  const int64_t row0 = rest % j.row_tiles * SIDE, column0 = column_tile * SIDE, matrix = rest / j.row_tiles;
  int64_t at[1];
  strided_at(j.map, matrix, at);
  for (int k = ty; k < SIDE; k += THREADS / SIDE) {
    const int64_t row = row0 + tx, column = column0 + k;
    if (row < j.rows && column < j.columns) mavk_convert(space, j.to, tx * (SIDE + 1) + k, j.x, j.from, at[0] + row + column * j.column_s);
  }
  __syncthreads();
  for (int k = ty; k < SIDE; k += THREADS / SIDE) {
    const int64_t row = row0 + k, column = column0 + tx;
    if (row < j.rows && column < j.columns)
      mavk_convert(j.y, j.to, (matrix * j.rows + row) * j.columns + column, space, j.to, k * (SIDE + 1) + tx);
  }
}

typedef void cast_kernel(cast_job);
static cast_kernel *dense_kernel(int32_t from, int32_t to) {
  static cast_kernel *const kernel[4][4] = {
      {cast_dense<0, 0>, cast_dense<0, 1>, cast_dense<0, 2>, cast_dense<0, 3>},
      {cast_dense<1, 0>, cast_dense<1, 1>, cast_dense<1, 2>, cast_dense<1, 3>},
      {cast_dense<2, 0>, cast_dense<2, 1>, cast_dense<2, 2>, cast_dense<2, 3>},
      {cast_dense<3, 0>, cast_dense<3, 1>, cast_dense<3, 2>, cast_dense<3, 3>},
  };
  return kernel[from][to];
}

extern "C" int mavk_cuda_cast(const mavk_args_cast *a, mavk_cuda *c) {
  cast_job j = {};
  j.x = a->x.p, j.y = a->y.p, j.from = a->x.dtype, j.to = a->y.dtype;
  j.n = array_count(&a->y);
  if (j.n == 0) return 0;
  j.map = strided_of<1>(&a->y, {&a->x});
  const unsigned blocks = (unsigned)ceil_div(j.n, THREADS * EACH);
  const int last = j.map.nd - 1;
  if (last == 0 && j.map.s[0][0] == 1 && mavk_dtype_is_float(j.from) && mavk_dtype_is_float(j.to) && is_aligned(j.x) && is_aligned(j.y))
    return mavk_run(c, dense_kernel(j.from, j.to), dim3(blocks), dim3(THREADS), 0, j);
  if (last > 0 && j.map.s[0][last - 1] == 1 && j.map.n[last] >= SIDE / 2 && j.map.n[last - 1] >= SIDE / 2) {
    j.rows = j.map.n[last - 1], j.columns = j.map.n[last], j.column_s = j.map.s[0][last];
    j.row_tiles = ceil_div(j.rows, SIDE), j.column_tiles = ceil_div(j.columns, SIDE);
    j.map.nd -= 2;
    if (j.map.nd == 0) j.map.nd = 1, j.map.n[0] = 1, j.map.s[0][0] = 0;
    const int64_t matrices = j.n / (j.rows * j.columns);
    return mavk_run(c, cast_turned, dim3((unsigned)(matrices * j.row_tiles * j.column_tiles)), dim3(THREADS),
                    SIDE * (SIDE + 1) * mavk_dtype_bytes(j.to), j);
  }
  return mavk_run(c, cast_any, dim3(blocks), dim3(THREADS), 0, j);
}
