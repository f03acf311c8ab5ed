/* kernels/cuda/kv_move.cu - keys and values of accepted rows move from their slots to the slots of their positions.
 *
 * A row comes after its ancestors and its slot is not before its position: what a row's move overwrites has moved already. So a
 * thread may load a few rows ahead of its stores.
 *
 * Grid: a thread a channel of a head, of keys or of values; it takes all rows, in order, so that no two threads meet. Moves 4 K C
 * elements a row that moves; bound by latency. Exact. */
#include "kv.h"

#define THREADS 128
#define AHEAD 8 /* rows loaded before the first is stored */

struct kv_move_job {
  mavk_rows rows;
  const int32_t *accepted; /* (T) */
  mavk_kv kv;
  int64_t channels; /* K C */
};

template <typename T>
__device__ static void move_rows(const kv_move_job &j, T *data, bool is_v, int64_t head, int64_t c) {
  int64_t r = 0;
  while (r < j.rows.n) {
    T x[AHEAD];
    int64_t to[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      to[i] = -1;
      while (r < j.rows.n && (j.rows.seq[r] < 0 || j.accepted[r] < 0 || j.rows.slot[r] == j.rows.pos[r])) r++;
      if (r >= j.rows.n) continue;
      const int32_t seq = j.rows.seq[r], slot = j.rows.slot[r], pos = j.rows.pos[r];
      const int64_t from_page = kv_page(&j.kv, seq, slot), to_page = kv_page(&j.kv, seq, pos);
      const int64_t from_at = kv_in_page(&j.kv, slot), to_at = kv_in_page(&j.kv, pos);
      x[i] = data[is_v ? kv_v_at(&j.kv, from_page, from_at, head, c) : kv_k_at(&j.kv, from_page, from_at, head, c)];
      to[i] = is_v ? kv_v_at(&j.kv, to_page, to_at, head, c) : kv_k_at(&j.kv, to_page, to_at, head, c);
      r++;
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      if (to[i] >= 0) data[to[i]] = x[i];
  }
}

static __global__ void move_channels(const __grid_constant__ kv_move_job j) {
  pdl_launch();
  pdl_wait();
  const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  if (i >= 2 * j.channels) return;
  const bool is_v = i >= j.channels;
  const int64_t at = is_v ? i - j.channels : i, head = at / j.kv.head_dim, c = at % j.kv.head_dim;
  void *data = is_v ? j.kv.v : j.kv.k;
  if (j.kv.dtype == MAVK_F32)
    move_rows(j, (float *)data, is_v, head, c);
  else if (j.kv.dtype == MAVK_BF16)
    move_rows(j, (uint16_t *)data, is_v, head, c);
  else
    move_rows(j, (uint8_t *)data, is_v, head, c);
}

extern "C" int mavk_cuda_kv_move(const mavk_args_kv_move *a, mavk_cuda *c) {
  const kv_move_job j = {a->rows, (const int32_t *)a->accepted.p, a->kv, a->kv.kv_heads * a->kv.head_dim};
  return mavk_run(c, move_channels, dim3((unsigned)ceil_div(2 * j.channels, THREADS)), dim3(THREADS), 0, j);
}
