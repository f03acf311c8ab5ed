/* core/rows.h - inside the ragged batch. */
#ifndef MAV_CORE_ROWS_H
#define MAV_CORE_ROWS_H

#include "tensor.h"

#define MAV__ROWS_POS_MAX (1 << 30) /* of positions and slots; sums of them and of rows stay far from overflow */

/* What the ops of a capture did to a table: only meaningful while `in` is the number of the open capture. */
typedef struct mav__rows_written {
  uint64_t ids_in;   /* ids were written: all are below id_bound */
  int64_t id_bound;
  uint64_t moved_in; /* positions were written: from those of `source`, and no slot lies further than `ahead` after its positions */
  mav_rows *from, *source; /* from: by way of these, when one op after the other moved rows. Borrowed from the graph that holds them */
  int64_t ahead;
  bool trees;        /* as the next trees of source's sequences; false: row by row like source */
} mav__rows_written;

struct mav_rows {
  int refs;
  mav_runtime *rt;
  mav_rows *base;       /* a part: the table it belongs to, retained; else NULL */
  int64_t first, count; /* rows [first, first + count) of the table */
  int64_t total;        /* rows of the table */
  mav_tensor *table;    /* i32 (5, total): id, seq, pos, slot, parent */
  mav_tensor *ids;      /* its first row */
  mav__rows_written written; /* of a table */
};

typedef enum mav__rows_field { MAV__ROWS_ID, MAV__ROWS_SEQ, MAV__ROWS_POS, MAV__ROWS_SLOT, MAV__ROWS_PARENT, MAV__ROWS_FIELDS } mav__rows_field;

/* A field of all rows, for the host: to read, and to write. */
static inline int32_t *mav__rows_at(const mav_rows *r, mav__rows_field field) {
  return (int32_t *)mav__host_read(r->table->buffer) + r->total * (int64_t)field + r->first;
}
static inline int32_t *mav__rows_edit(const mav_rows *r, mav__rows_field field) {
  mav__buffer *b = r->table->buffer;
  return (int32_t *)mav__host_write(b, 0, b->bytes) + r->total * (int64_t)field + r->first;
}
static inline mav_rows *mav__rows_base(mav_rows *r) { return r->base ? r->base : r; }
/* As kernels see them, and as the host does. */
mavk_rows mav__rows_kernel(const mav_rows *r);
mavk_rows mav__rows_host(const mav_rows *r);
/* What rows_advance made next of rows may be relied on: it found a row for every tree, and every tree's rows one after the other. */
mav_err mav__rows_check_next(const mav_rows *rows, const mav_rows *next, const char *op);
/* Every row follows its parent; every id is below id_limit (if > 0) and every sequence below seq_limit (if > 0). */
mav_err mav__rows_check(const mav_rows *r, const char *op, int64_t id_limit, int64_t seq_limit);

#endif
