/* kernels/cuda/rope_append.cu - the tail of norm_qkv on its own: RoPE in either pairing, qk norm, temperature, KV append.
 *
 * q, k, v of a row lie side by side in qkv (T, (H + 2K) C). Every head of q and k is rotated, divided by its root mean square where
 * qk_norm asks (a rotation keeps the norm, so it is taken before), q of NoPE layers multiplied by the temperature; k and v go to the
 * row's slot of the cache.
 *
 * Grid: a warp a head of a row, eight to a block; lanes own pairs of channels. Moves 4 N bytes in, 4 H C + 2 K C elements out; bound
 * by latency. Keys are transposed in their pages, so each of their channels is a store of its own. Tolerance 2e-5. */
#include "kv.h"

#define HEADS 8 /* a block */

struct rope_job {
  const float *qkv; /* (T, N) */
  mavk_rows rows;
  mavk_kv kv;
  const float *rope; /* (C / 2), or NULL */
  float *q;          /* (T, H, C) */
  int64_t H, heads, blocks; /* heads = H + 2 K; blocks of a row */
  float eps, attn_scale, floor_scale;
  bool qk_norm, half;
};

static __global__ void rope_heads(const __grid_constant__ rope_job j) {
  pdl_launch();
  pdl_wait();
  const int lane = (int)threadIdx.x % WARP;
  const int64_t r = blockIdx.x / j.blocks, head = blockIdx.x % j.blocks * HEADS + threadIdx.x / WARP, C = j.kv.head_dim;
  if (head >= j.heads) return;
  if (j.rows.seq[r] < 0) {
    for (int64_t c = lane; c < C && head < j.H; c += WARP) j.q[(r * j.H + head) * C + c] = 0;
    return;
  }
  const bool is_q = head < j.H, is_v = head >= j.H + j.kv.kv_heads;
  const kv_target to = kv_target_of(j.q, j.H, &j.kv, &j.rows, r);
  const float *x = j.qkv + (r * j.heads + head) * C;
  const int32_t pos = j.rows.pos[r];
  float factor = 1;
  if (j.qk_norm && !is_v) {
    float sum = 0;
    for (int64_t c = lane; c < C; c += WARP) sum = fmaf(x[c], x[c], sum);
    factor = 1 / sqrtf(warp_sum(sum) / (float)C + j.eps);
  }
  if (!j.rope && is_q) factor *= rope_temperature(pos, j.attn_scale, j.floor_scale);
  for (int64_t i = lane; i < C / 2; i += WARP) {
    const bool half = j.rope && j.half;
    const int64_t c0 = rope_first(i, half), c1 = rope_second(i, C, half);
    float x0 = x[c0], x1 = x[c1];
    if (j.rope && !is_v) {
      float cosine, sine;
      rope_cos_sin(pos, j.rope[i], &cosine, &sine);
      rope_rotate(&x0, &x1, cosine, sine);
    }
    kv_place(&to, &j.kv, head, c0, x0 * factor);
    kv_place(&to, &j.kv, head, c1, x1 * factor);
  }
}

extern "C" int mavk_cuda_rope_append(const mavk_args_rope_append *a, mavk_cuda *c) {
  rope_job j = {};
  j.qkv = (const float *)a->qkv.p;
  j.rows = a->rows;
  j.kv = a->kv;
  j.rope = (const float *)a->rope.p;
  j.q = (float *)a->q.p;
  j.H = a->q.n[1];
  j.heads = j.H + 2 * a->kv.kv_heads;
  j.blocks = ceil_div(j.heads, HEADS);
  j.eps = a->eps, j.attn_scale = a->attn_scale, j.floor_scale = a->floor_scale;
  j.qk_norm = a->qk_norm != 0, j.half = a->half != 0;
  return mavk_run(c, rope_heads, dim3((unsigned)(a->rows.n * j.blocks)), dim3(HEADS * WARP), 0, j);
}
