/* kernels/cuda/product.h - the frame of every product y = x w^T of this backend: tiles, steps, which warp takes what, shared memory.
 * activations.h prepares x, tile.h multiplies, product_block.h puts them together; an op's file has the grid and what becomes of a sum.
 *
 *   tile     16 rows of a weight, all columns. A block has one tile, or two side by side (gate and up; two slots of ffn_down), called
 *            items, and up to 16 rows of activations, called tokens.
 *   step     32 columns of a tile. Step s of a block's range belongs to warp s % warps of the item, so that warps read side by side, and
 *            every warp goes up through its steps. Sums of a warp are added in the order of warps. Neither depends on the tokens.
 *   piece    steps whose activations are in shared memory at once. Pieces only interrupt the order above, they do not change it; their
 *            size depends on the number of tokens.
 *   split    where a weight has few tiles, its steps go to several blocks; the last one to finish (a ticket) adds the sums in order.
 *
 * Three ways to multiply, chosen by the weight:
 *   WAY_F8    mma, codes in the layout m16n8k16
 *   WAY_BF16  mma, bf16 in rows
 *   WAY_FMA   multiply-adds in f32: every other dtype, size and alignment (and all of them with MAVK_CUDA_OFF_TENSOR)
 *
 * Precision of mma: columns of B are tokens; a token has two columns, its values rounded to 16 bits and what the rounding left, so 22 bits
 * (f16; the row scaled by a power of two so that its largest value lies below 2^15) or 16 (bf16, whose error is below 2^-18 of every
 * value). Activations that are e4m3 by themselves (W8A8) have one column, exact.
 */
#ifndef MAVK_CUDA_PRODUCT_H
#define MAVK_CUDA_PRODUCT_H

#include "../layout.h"
#include "cuda.h"

enum { WAY_F8, WAY_BF16, WAY_FMA };

#define TILE_ROWS MAVK_MMA_ROWS
#define STEP_COLUMNS MAVK_MMA_COLUMNS
#define TOKENS_MAX 16
#define BLOCK_WARPS_MAX 16
/* Codes of weights are widened to f16 by integer operations, which leave 2^-8 (28 instructions a step of a lane), or by cvt
 * (PRODUCT_WIDEN_CVT: 12). */
#ifdef PRODUCT_WIDEN_CVT
#define PRODUCT_WIDEN_SHIFT 0
#else
#define PRODUCT_WIDEN_SHIFT 8
#endif

#define SUM_STRIDE 20 /* floats from a token's sums to the next one's: without bank conflicts in fold */

/* Rows of a product's input. */
struct product_input {
  const float *x; /* rows of K */
  const void *norm;
  int32_t norm_dtype;
  float eps;
  int32_t K;
  double share;               /* 1 / K */
  bool aligned, norm_aligned; /* rows begin at multiples of 16 bytes; pairs of the norm's weight are whole words */
};

static inline product_input product_input_of(const mavk_array *x, int64_t K, const mavk_array *norm, float eps) {
  const product_input in = {(const float *)x->p,
                            norm ? norm->p : NULL,
                            norm ? norm->dtype : 0,
                            eps,
                            (int32_t)K,
                            1 / (double)K,
                            K % 4 == 0 && (uintptr_t)x->p % 16 == 0,
                            norm && K % 4 == 0 && (uintptr_t)norm->p % 4 == 0};
  return in;
}

/* What is fixed by the shapes (all but `piece` and the places in shared memory, which may depend on the tokens). */
struct product_plan {
  int32_t steps, warps, warps_log2, items, splits, split_steps; /* warps: of an item */
  int32_t tokens;                                               /* of a block at most */
  int32_t piece;                                                /* steps */
  uint32_t sums_at, cells_at, cells_bytes, shared_bytes;        /* cells_bytes: of one region of activations */
  bool prefetch;
};

/* ---- the host's part ------------------------------------------------------------------------------------------------------------ */

static inline int product_way(const mavk_weight *w, const mavk_cuda *c) {
  const bool rows = w->a.nd == 2 || w->a.s[0] % 8 == 0;
  if (c->off & MAVK_CUDA_OFF_TENSOR) return WAY_FMA;
  if (w->layout == MAVK_LAYOUT_M16N8K16) return WAY_F8;
  const int64_t K = w->a.n[w->a.nd - 1], stride = w->a.s[w->a.nd - 2];
  if (w->a.dtype == MAVK_BF16 && K % STEP_COLUMNS == 0 && stride % 8 == 0 && rows && (uintptr_t)w->a.p % 16 == 0) return WAY_BF16;
  return WAY_FMA;
}

/* Columns of B for so many tokens: groups of eight once there are more than one. */
MAVK_FN int product_columns(int tokens, int parts) {
  const int per = 8 / parts;
  return tokens <= per ? tokens * parts : (tokens + per - 1) / per * 8;
}

/* Loads of sixteen bytes that a thread keeps in flight, for G groups of columns (one: up to four tokens): 40 KB for sixteen warps and one
 * group. What comes after them is on its way to the second-level cache, so much of it: */
MAVK_FN constexpr int product_depth(int G) { return G == 1 ? 5 : 4; }
#define PRODUCT_AHEAD_BYTES (128 * 1024)

/* Kernels for few tokens are compiled as if for larger blocks, that is for 80 or 96 registers, so that blocks of the next kernel fit beside
 * those of this one; a multiprocessor has 65536. */
#define PRODUCT_80_REGISTERS(G) ((G) == 1 ? 768 : BLOCK_WARPS_MAX * WARP), 1
#define PRODUCT_96_REGISTERS(G) ((G) == 1 ? 640 : BLOCK_WARPS_MAX * WARP), 1

#define PRODUCT_REGION_BYTES (96 * 1024) /* of activations, if a piece can be that small */
#define PRODUCT_TILES_MANY 48            /* enough to keep the memory busy: no split */

/* regions: how many sets of activations a block holds. header: bytes before the sums. parts: 1 or 2, the larger. */
static inline product_plan product_plan_of(const mavk_cuda *c, int64_t K, int64_t tiles, int items, int regions, int64_t tokens, int parts,
                                           bool is_fma, bool has_norm, bool may_split, size_t header) {
  product_plan p = {};
  p.steps = (int32_t)ceil_div(K, STEP_COLUMNS);
  p.items = items;
  int64_t splits = !may_split || tiles >= PRODUCT_TILES_MANY ? 1 : 2 * PRODUCT_TILES_MANY / tiles;
  if (splits > p.steps / 16) splits = p.steps / 16;
  if (splits > 16) splits = 16;
  if (splits < 1) splits = 1;
  p.split_steps = (int32_t)ceil_div(p.steps, splits);
  p.splits = p.steps ? (int32_t)ceil_div(p.steps, p.split_steps) : 1;
  const int least = (has_norm ? 8 : 4) / items; /* warps, to normalize quickly */
  p.warps = BLOCK_WARPS_MAX / items;
  while (p.warps > least && p.warps * 5 > p.split_steps) p.warps /= 2;
  while (1 << p.warps_log2 < p.warps) p.warps_log2++;
  p.tokens = (int32_t)(tokens < TOKENS_MAX ? tokens : TOKENS_MAX);
  const int columns = product_columns(p.tokens, parts), groups = (columns + 7) / 8, depth = product_depth(groups > 1 ? 4 : 1);
  const int unit = is_fma ? p.warps : p.warps * depth; /* a multiple of what either mma takes at once */
  const size_t step_bytes = is_fma ? (size_t)p.tokens * STEP_COLUMNS * 4 : (size_t)columns * STEP_COLUMNS * 2;
  int64_t units = (int64_t)(PRODUCT_REGION_BYTES / ((size_t)regions * (size_t)unit * step_bytes));
  if (units < 1) units = 1;
  if (units > ceil_div(p.split_steps, unit)) units = ceil_div(p.split_steps, unit);
  p.piece = (int32_t)units * unit;
  p.sums_at = (uint32_t)(header + 15) / 16 * 16;
  p.cells_at = p.sums_at + (uint32_t)(items * p.warps * p.tokens * SUM_STRIDE * 4);
  /* what is staged is never more than the range, in full steps */
  p.cells_bytes = (uint32_t)((size_t)(p.piece < p.split_steps ? p.piece : p.split_steps) * step_bytes);
  p.shared_bytes = p.cells_at + (uint32_t)regions * p.cells_bytes;
  p.prefetch = !(c->off & MAVK_CUDA_OFF_PREFETCH);
  return p;
}

static inline int product_groups(const product_plan *p, int parts) { return (product_columns(p->tokens, parts) + 7) / 8; }
static inline dim3 product_threads(const product_plan *p) { return dim3((unsigned)(p->warps * p->items * WARP)); }

static inline int product_parts(const mavk_weight *w) { return w->act == MAVK_ACT_NONE ? 2 : 1; }

#endif
