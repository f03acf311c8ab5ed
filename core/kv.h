/* core/kv.h - inside the paged cache. */
#ifndef MAV_CORE_KV_H
#define MAV_CORE_KV_H

#include "rows.h"

/* Layers with the same attention chunk share page numbers: one table, one free list. */
typedef struct mav__kv_group {
  int32_t chunk;      /* 0: full attention */
  int64_t pages, free;
  int32_t *refs;      /* (pages) sequences that map a page */
  int32_t *free_list; /* (free) page numbers */
  int64_t *floor;     /* (sequences) slots below are dropped */
  mav_tensor *table;  /* i32 (sequences, stride): page of a slot's block, -1: none. Read by the device */
} mav__kv_group;

typedef struct mav__kv_layer {
  int group;
  int64_t kv_heads, head_dim;
  float k_scale, v_scale; /* of F8; else 1 */
  mav__buffer *k, *v;
} mav__kv_layer;

typedef struct mav__kv_sequence {
  bool live;
  int64_t length;   /* committed tokens */
  int64_t reserved; /* slots [0, reserved) are writable or readable */
  int64_t floor;    /* the highest of its groups' */
} mav__kv_sequence;

struct mav_kv {
  int refs;
  mav_runtime *rt;
  int layers, groups, sequences;
  int64_t page, stride, context_max;
  mav_dtype dtype;
  mav__kv_layer *layer;
  mav__kv_group *group;
  mav__kv_sequence *seq;
  mav_tensor *keys; /* i64 (sequences): the number that keys a sequence's noise. Read by the device */
};

mavk_kv mav__kv_kernel(const mav_kv *kv, int layer);
/* Every row names a live sequence, a reserved slot that is not committed yet, and a position the cache can serve. moves: keys will
 * also go to the slots of the rows' positions. */
mav_err mav__kv_check_rows(const mav_kv *kv, const mav_rows *rows, bool moves, const char *op);
/* Rows that a graph will derive from these find their slots reserved, and not committed yet: up to `ahead` after their positions. */
mav_err mav__kv_check_ahead(const mav_kv *kv, const mav_rows *rows, int64_t ahead, const char *op);

#endif
