/* kernels/cuda/matmul.cu - y = [residual +] norm(x) w^T: ops matmul, lm_head and proj_residual. The product itself is explained in
 * product.h.
 *
 *   x (T, K) f32, w (N, K), y (T, N) f32.
 *
 * Grid: a block a tile of 16 rows of w and 16 tokens, four to sixteen warps sharing K; few tiles: several blocks share K. Many tiles: as
 * many blocks as run at once, each with every so-manieth tile, so that activations are normalized and staged once (if they fit) and the
 * next tile's weights are on their way while the last one's sums are added. Bytes: w once (for 16 tokens), x once a block, y once. Bound by
 * memory up to 16 tokens. Tolerance 2e-5 (see product.h). More than GEMM_ROWS tokens: gemm.h.
 *
 * Versions, checked on the emulator and by ptxas only. What a GPU has to decide, all in product.h:
 *
 *   PRODUCT_WIDEN_CVT     codes widened by cvt.rn.f16x2.e4m3x2 (12 instructions a step of a lane) instead of by integer operations (28)
 *   product_depth         loads in flight a thread: ten took 128 registers; five take 80 or 96, so that two kernels share a multiprocessor
 *   PRODUCT_AHEAD_BYTES   the rest of a tile asked for ahead, into the second-level cache; 0: not
 *   BLOCK_WARPS_MAX       sixteen warps a block, or eight with twice the steps
 *   PRODUCT_TILES_MANY    from how many tiles on K is not split over blocks: qkv of 8 ranks has 56
 *
 * Tried and kept: one column of B instead of two where activations are codes anyway, half the mma.
 */
#include "gemm.h"
#include "product_plain.h"

template <int G>
__global__ void __launch_bounds__(PRODUCT_96_REGISTERS(G)) plain(const __grid_constant__ plain_job j) {
  MAVK_SHARED(shared);
  product_block<G, true>(j, shared);
}

int product_plain(mavk_cuda *c, const mavk_array *x, const mavk_array *norm, float eps, const mavk_weight *w, const float *residual,
                  float *y, int64_t T) {
  plain_job j;
  const int64_t most = product_job_init(&j, c, x, norm, eps, w, T);
  if (!most) return 1;
  j.N = w->a.n[0];
  j.residual = residual;
  j.y = y;
  if (gemm_takes(c, w, T)) return product_gemm(c, &j, &j.in, T, 1, &w, 1, 0);
  for (int64_t first = 0; first < T; first += most) {
    const int64_t n = T - first < most ? T - first : most, at_once = 2 * c->multiprocessors;
    j.tokens = n;
    j.in.x = (const float *)x->p + first * j.in.K;
    j.residual = residual ? residual + first * j.N : NULL;
    j.y = y + first * j.N;
    const dim3 grid((unsigned)(j.tiles < at_once ? j.tiles : at_once), (unsigned)ceil_div(n, TOKENS_MAX), (unsigned)j.plan.splits);
    const int groups = j.way == WAY_FMA ? 0 : product_groups(&j.plan, product_parts(w));
    void (*kernel)(plain_job) = groups == 0 ? plain<0> : groups == 1 ? plain<1> : plain<4>;
    MAVK_TRY_CUDA(mavk_run(c, kernel, grid, product_threads(&j.plan), j.plan.shared_bytes, j));
  }
  return 0;
}

extern "C" int mavk_cuda_matmul(const mavk_args_matmul *a, mavk_cuda *c) {
  return product_plain(c, &a->x, NULL, 0, &a->w, NULL, (float *)a->y.p, a->x.n[0]);
}
