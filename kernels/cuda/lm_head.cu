/* kernels/cuda/lm_head.cu - logits = norm(x) w^T: the product of matmul.cu behind an RMSNorm.
 *
 *   x (T, D) f32, norm (D), w (V, D), usually bf16 in rows; logits (T, V) f32.
 *
 * Grid: two blocks a multiprocessor, each with every so-manieth tile of 16 rows; x is normalized once a block. Bytes: V D of the weight,
 * once for 16 tokens; bound by memory. Tolerance 2e-5. */
#include "product_plain.h"

extern "C" int mavk_cuda_lm_head(const mavk_args_lm_head *a, mavk_cuda *c) {
  return product_plain(c, &a->x, &a->norm, a->eps, &a->w, NULL, (float *)a->logits.p, a->x.n[0]);
}
