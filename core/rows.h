/* core/rows.h - inside the ragged batch. */
#ifndef MAV_CORE_ROWS_H
#define MAV_CORE_ROWS_H

#include "tensor.h"

struct mav_rows {
  int refs;
  mav_runtime *rt;
  int64_t count;
  mav_tensor *table; /* i32 (5, T): id, seq, pos, slot, parent */
  mav_tensor *ids;   /* its first row */
};

typedef enum mav__rows_field { MAV__ROWS_ID, MAV__ROWS_SEQ, MAV__ROWS_POS, MAV__ROWS_SLOT, MAV__ROWS_PARENT, MAV__ROWS_FIELDS } mav__rows_field;

static inline int32_t *mav__rows_at(const mav_rows *r, mav__rows_field field) {
  return (int32_t *)mav__tensor_pointer(r->table) + r->count * (int64_t)field;
}
mavk_rows mav__rows_kernel(const mav_rows *r);
/* Every row follows its parent; every id is below id_limit (if > 0) and every sequence below seq_limit (if > 0). */
mav_err mav__rows_check(const mav_rows *r, const char *op, int64_t id_limit, int64_t seq_limit);

#endif
