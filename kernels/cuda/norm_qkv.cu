/* kernels/cuda/norm_qkv.cu - RMSNorm, the fused projection of queries, keys and values, RoPE on interleaved pairs or the temperature of
 * NoPE layers, and the append of keys and values, in one launch. The product itself is explained in product.h, that of more than GEMM_ROWS
 * rows, in several launches, in gemm.h.
 *
 *   x (T, D) f32, norm (D), w ((H + 2K) C, D), q (T, H, C) f32; keys and values go to the cache in its dtype (kv.h).
 *
 * Grid: a block a tile of 16 rows of w and 16 tokens, each with sixteen warps that share D. For Maverick on 8 ranks (896 x 5120) 56 blocks,
 * each with its whole 80 KB asked for before the wait, half of it into registers: a split of D over two blocks would use more
 * multiprocessors, but costs a round trip of partial sums. Tiles end at even rows, so both rows of a pair are in one block; a thread takes
 * two rows of a tile. Bytes: w once; bound by memory, and by latency at this size: x is read and normalized while w arrives. Tolerance
 * 2e-5.
 */
#include "gemm.h"
#include "kv.h"

struct qkv_job : product_job {
  mavk_rows rows;
  mavk_kv kv;
  float *q; /* (T, H, C) */
  int64_t H, N;
  const float *rope; /* NULL: NoPE */
  float attn_scale, floor_scale;

  __device__ __forceinline__ void put(const float *sums, int parts, const product_tokens *t, int64_t tile) const {
    const int pairs = TILE_ROWS / 2;
    for (int o = (int)threadIdx.x; o < t->n * pairs; o += (int)blockDim.x) {
      const int i = o / pairs, row = o % pairs * 2;
      const int64_t n = tile * TILE_ROWS + row, r = t->to[i];
      if (n >= N) continue;
      const uint32_t C = (uint32_t)kv.head_dim;
      const int64_t head = (uint32_t)n / C, c = (uint32_t)n % C, head1 = (uint32_t)(n + 1) / C, c1 = (uint32_t)(n + 1) % C;
      const bool two = n + 1 < N;
      if (rows.seq[r] < 0) {
        if (head < H) q[r * H * C + n] = 0;
        if (two && head1 < H) q[r * H * C + n + 1] = 0;
        continue;
      }
      float x0 = product_scaled(product_sum(plan, sums, parts, 0, i, row), t, i, weight_scale(w, 0, n));
      float x1 = two ? product_scaled(product_sum(plan, sums, parts, 0, i, row + 1), t, i, weight_scale(w, 0, n + 1)) : 0;
      const int32_t pos = rows.pos[r];
      if (rope && head < H + kv.kv_heads) { /* C is even: the pair is of one head */
        float cosine, sine;
        rope_cos_sin(pos, rope[c / 2], &cosine, &sine);
        rope_rotate(&x0, &x1, cosine, sine);
      } else if (!rope) {
        const float f = rope_temperature(pos, attn_scale, floor_scale);
        if (head < H) x0 *= f;
        if (head1 < H) x1 *= f;
      }
      const kv_target to = kv_target_of(q, H, &kv, &rows, r);
      kv_place(&to, &kv, head, c, x0);
      if (two) kv_place(&to, &kv, head1, c1, x1);
    }
  }
};

template <int G>
__global__ void __launch_bounds__(PRODUCT_80_REGISTERS(G)) norm_qkv(const __grid_constant__ qkv_job j) {
  MAVK_SHARED(shared);
  product_block<G, false>(j, shared);
}

extern "C" int mavk_cuda_norm_qkv(const mavk_args_norm_qkv *a, mavk_cuda *c) {
  const int64_t T = a->rows.n;
  qkv_job j;
  const int64_t most = product_job_init(&j, c, &a->x, &a->norm, a->eps, &a->w, T);
  if (!most) return 1;
  j.kv = a->kv;
  j.H = a->q.n[1];
  j.N = a->w.a.n[0];
  j.rope = (const float *)a->rope.p;
  j.attn_scale = a->attn_scale, j.floor_scale = a->floor_scale;
  j.rows = a->rows;
  j.q = (float *)a->q.p;
  const mavk_weight *w = &a->w;
  if (gemm_takes(c, w, T)) return product_gemm(c, &j, &j.in, T, 1, &w, 1, 0);
  for (int64_t first = 0; first < T; first += most) {
    const int64_t n = T - first < most ? T - first : most;
    j.tokens = n;
    j.in.x = (const float *)a->x.p + first * j.in.K;
    j.q = (float *)a->q.p + first * j.H * a->kv.head_dim;
    j.rows = a->rows;
    j.rows.n = n;
    j.rows.seq += first, j.rows.pos += first, j.rows.slot += first;
    const dim3 grid((unsigned)j.tiles, (unsigned)ceil_div(n, TOKENS_MAX), (unsigned)j.plan.splits);
    const int groups = j.way == WAY_FMA ? 0 : product_groups(&j.plan, product_parts(&a->w));
    void (*kernel)(qkv_job) = groups == 0 ? norm_qkv<0> : groups == 1 ? norm_qkv<1> : norm_qkv<4>;
    MAVK_TRY_CUDA(mavk_run(c, kernel, grid, product_threads(&j.plan), j.plan.shared_bytes, j));
  }
  return 0;
}
