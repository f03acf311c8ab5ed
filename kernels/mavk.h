/* kernels/mavk.h - what a kernel sees: raw pointers, sizes and strides. Kernels know no tensor, graph or runtime.
 *
 * Every op of ops.def has one argument structure, `mavk_args_<op>`, generated at the end of this file; every backend
 * implements `mavk_<backend>_<op>`. Outputs are allocated by the caller; a kernel allocates nothing except through
 * the scratch its backend hands it.
 *
 * Dimension letters: T token rows, D hidden, H query heads, K kv heads, C head dim, E experts, A experts per token,
 * F intermediate, V vocabulary, S slots (shared + routed experts), N output columns.
 */
#ifndef MAVK_H
#define MAVK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A small function that kernels of every backend may call: on a GPU too. */
#ifdef __CUDACC__
#define MAVK_FN static __host__ __device__ __forceinline__
#else
#define MAVK_FN static inline
#endif

typedef enum mavk_dtype {
  MAVK_F32,  /* IEEE binary32 */
  MAVK_BF16, /* upper half of binary32 */
  MAVK_F16,  /* IEEE binary16 */
  MAVK_F8,   /* e4m3fn: max 448, no infinity, NaN = 0x7f and 0xff */
  MAVK_I32,
  MAVK_I64,
  MAVK_U8,
  MAVK_DTYPE_COUNT
} mavk_dtype;

#define MAVK_DIMS_MAX 4

/* A strided array. Strides are in elements. nd == 0 with p == NULL: an optional argument that was not given. */
typedef struct mavk_array {
  void *p;
  int32_t dtype;
  int32_t nd;
  int64_t n[MAVK_DIMS_MAX];
  int64_t s[MAVK_DIMS_MAX];
} mavk_array;

/* How the activations that meet a weight are rounded: a property of the weight, the same on every backend. */
typedef enum mavk_act {
  MAVK_ACT_NONE,    /* w8 and wider: not at all */
  MAVK_ACT_STATIC,  /* w8a8: e4m3(clamp(x / in_scale)), one calibrated scale */
  MAVK_ACT_DYNAMIC, /* w8a8: e4m3(x / s), s = max|row| / 448 for every row */
} mavk_act;

/* Where the elements of a matrix of weights lie: kernels/layout.h. */
typedef enum mavk_layout {
  MAVK_LAYOUT_ROWS,     /* row after row, by the strides of the array */
  MAVK_LAYOUT_M16N8K16, /* f8 only; N a multiple of 16, D of 32; contiguous: what the cuda backend's products read fastest */
} mavk_layout;

/* A matrix (N, D) or a stack of them (E, N, D), output-major: y = x w^T. The last dimension has stride 1.
 * value = code * scale[e * scale_s[0] + n * scale_s[1]]; scale == NULL means 1. */
typedef struct mavk_weight {
  mavk_array a;
  const float *scale;
  int64_t scale_s[2];
  int32_t act; /* mavk_act */
  float in_scale;
  int32_t layout; /* mavk_layout; host backends read rows only */
} mavk_weight;

/* A ragged batch of token rows. Row r is token id[r] of sequence seq[r] at position pos[r]; its keys and values go to
 * cache slot slot[r]. parent[r] is the row of this batch that comes before it, or -1 when the cache does. seq[r] < 0:
 * an idle row; nothing is read or stored for it and its results are unspecified.
 * A batch may be a part of a longer table: rows [first, first + n) of it. parent counts from the start of the table, so an
 * ancestor may lie before the batch (its keys are in the cache already).
 * Contract: parent[r] < first + r, pos[r] == pos[parent[r]] + 1; slot[r] == pos[r] holds only where every ancestor in the
 * batch also sits at its own position (so a chain needs no walk; only the side branches of a draft tree do). */
typedef struct mavk_rows {
  int64_t n, first;                        /* rows; where they begin in their table */
  int32_t *id, *seq, *pos, *slot, *parent; /* (n) each; only what ops.def calls ROWS_OUT is written */
} mavk_rows;

#define MAVK_NO_ROW INT64_MIN
/* The row before row r, counted like r from the first row of the batch (so negative for an earlier row of the table), or
 * MAVK_NO_ROW. */
MAVK_FN int64_t mavk_parent(const mavk_rows *rows, int64_t r) {
  return rows->parent[r] < 0 ? MAVK_NO_ROW : rows->parent[r] - rows->first;
}

/* One layer of the paged KV cache. A page holds `page` consecutive slots (a multiple of 16) of one sequence, all K heads.
 * Page index g, head h, slot s of the page, channel c:
 *   k: ((g * K + h) * C + c) * page + s     keys are transposed, so that scores of neighbouring slots are computed side by side
 *   v: ((g * K + h) * page + s) * C + c
 * table[seq * table_stride + slot / page] is the page index of a slot, or -1. */
typedef struct mavk_kv {
  void *k, *v;
  int32_t dtype; /* F32, BF16, or F8 */
  float k_scale, v_scale;
  int64_t page, kv_heads, head_dim; /* slots, K, C */
  const int32_t *table;
  int64_t table_stride;
  const int64_t *key; /* (sequences) the number that keys a sequence's noise */
} mavk_kv;

/* Ranks that share the work. Only the single rank exists so far; the ops that will end in an all-reduce take it. */
typedef struct mavk_comm {
  int32_t rank, ranks;
} mavk_comm;

/* The ops, in the order of ops.def. */
typedef enum mavk_op {
#define MAV_OP(name, doc) MAVK_OP_##name,
#include "ops.def"
  MAVK_OP_COUNT
} mavk_op;

/* One argument structure per op, fields in the order of ops.def. */
#define MAV_OP(name, doc) typedef struct mavk_args_##name {
#define MAV_IN(name, shape, types, doc) mavk_array name;
#define MAV_OPT(name, shape, types, doc) mavk_array name;
#define MAV_IDX(name, shape, limit, doc) mavk_array name;
#define MAV_OPT_IDX(name, shape, limit, doc) mavk_array name;
#define MAV_MUT(name, shape, types, doc) mavk_array name;
#define MAV_W(name, shape, doc) mavk_weight name;
#define MAV_OPT_W(name, shape, doc) mavk_weight name;
#define MAV_ROWS(name, doc) mavk_rows name;
#define MAV_ROWS_OUT(name, letter, doc) mavk_rows name;
#define MAV_KV(name, doc) mavk_kv name;
#define MAV_COMM(name, doc) mavk_comm name;
#define MAV_NUM(name, value, doc) float name;
#define MAV_INT(name, value, doc) int64_t name;
#define MAV_DTYPE(name, value, doc) int32_t name;
#define MAV_OUT(name, shape, types, doc) mavk_array name;
#define MAV_END(name, tolerance, source) } mavk_args_##name;
#include "ops.def"

#endif
