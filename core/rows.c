/* core/rows.c - the ragged batch: T token rows, each with id, sequence, position, slot and parent. A part (slice) shares the
 * table of its rows; parents count from the start of the table.
 * The table is mirrored on a device. A row's own fields are checked here; what depends on a cache is checked in kv.c. */
#include "rows.h"

#include <string.h>

mav_err mav_rows_new(mav_rows **out, mav_runtime *rt, int64_t count) {
  *out = NULL;
  if (count < 1 || count > 1 << 20) return MAV_RT_FAIL(rt, RANGE, "rows_new", "%lld rows; expected 1 to %d", (long long)count, 1 << 20);
  mav_rows *r = mav__alloc(sizeof *r);
  if (!r) return MAV_RT_NOMEM(rt, "rows_new");
  *r = (mav_rows){.refs = 1, .rt = mav_runtime_retain(rt), .count = count, .total = count};
  mav_err err;
  MAV_GOTO(mav_tensor_new(&r->table, rt, MAV_DTYPE_I32, 2, (int64_t[]){MAV__ROWS_FIELDS, count}));
  r->table->buffer->is_rows = true;
  MAV_GOTO(mav__mirror_add(r->table->buffer, "rows_new"));
  memset(mav__host_replace(r->table->buffer), 0, r->table->buffer->bytes);
  MAV_GOTO(mav_tensor_select(&r->ids, r->table, 0, MAV__ROWS_ID));
  for (int64_t i = 0; i < count; i++) MAV_GOTO(mav_rows_set(r, i, 0, -1, 0, -1, -1));
  *out = r;
  return MAV_OK;
done:
  mav_rows_release(r);
  return err;
}

mav_err mav_rows_slice(mav_rows **out, mav_rows *r, int64_t first, int64_t count) {
  *out = NULL;
  if (first < 0 || count < 1 || first > r->count - count)
    return MAV_RT_FAIL(r->rt, RANGE, "rows_slice", "%lld rows from row %lld on; there are %lld", (long long)count, (long long)first, (long long)r->count);
  mav_rows *part = mav__alloc(sizeof *part);
  if (!part) return MAV_RT_NOMEM(r->rt, "rows_slice");
  *part = (mav_rows){.refs = 1, .rt = mav_runtime_retain(r->rt), .base = mav_rows_retain(mav__rows_base(r)), .first = r->first + first,
                     .count = count, .total = r->total, .table = mav_tensor_retain(r->table)};
  mav_err err = mav_tensor_slice(&part->ids, r->ids, 0, first, count, 1);
  if (err) mav_rows_release(part);
  else *out = part;
  return err;
}

mav_rows *mav_rows_retain(mav_rows *r) {
  r->refs++;
  return r;
}

void mav_rows_release(mav_rows *r) {
  if (!r || --r->refs) return;
  mav_tensor_release(r->ids);
  mav_tensor_release(r->table);
  mav_rows_release(r->base);
  mav_runtime_release(r->rt);
  mav__free(r);
}

int64_t mav_rows_count(const mav_rows *r) { return r->count; }
mav_tensor *mav_rows_ids(mav_rows *r) { return r->ids; }

mav_err mav_rows_set(mav_rows *r, int64_t i, int32_t id, int32_t seq, int32_t pos, int32_t parent, int32_t slot) {
  if (r->base) return MAV_RT_FAIL(r->rt, STATE, "rows_set", "these are a part of a table; set its rows there");
  if (i < 0 || i >= r->count)
    return MAV_RT_FAIL(r->rt, RANGE, "rows_set", "row %lld of %lld", (long long)i, (long long)r->count);
  int32_t *ids = mav__rows_edit(r, MAV__ROWS_ID), *s = ids + r->total * MAV__ROWS_SEQ, *p = ids + r->total * MAV__ROWS_POS;
  if (seq >= 0) {
    if (id < 0) return MAV_RT_FAIL(r->rt, RANGE, "rows_set", "row %lld: token id %d", (long long)i, id);
    if (pos < 0 || pos > MAV__ROWS_POS_MAX || slot > MAV__ROWS_POS_MAX)
      return MAV_RT_FAIL(r->rt, RANGE, "rows_set", "row %lld: position %d, slot %d; expected 0 to %d", (long long)i, pos, slot, MAV__ROWS_POS_MAX);
    if (parent < -1 || parent >= i)
      return MAV_RT_FAIL(r->rt, RANGE, "rows_set", "row %lld: parent %d is not an earlier row", (long long)i, parent);
    if (parent >= 0 && (s[parent] != seq || p[parent] + 1 != pos))
      return MAV_RT_FAIL(r->rt, INVALID, "rows_set", "row %lld (sequence %d, position %d) cannot follow row %d (sequence %d, position %d)",
                         (long long)i, seq, pos, parent, s[parent], p[parent]);
  }
  ids[i] = id;
  s[i] = seq;
  p[i] = pos;
  ids[r->total * MAV__ROWS_SLOT + i] = slot < 0 ? pos : slot;
  ids[r->total * MAV__ROWS_PARENT + i] = parent;
  return MAV_OK;
}

static mavk_rows rows_in(const mav_rows *r, void *table) {
  int32_t *p = (int32_t *)table + r->first;
  return (mavk_rows){.n = r->count,
                     .first = r->first,
                     .id = p + r->total * MAV__ROWS_ID,
                     .seq = p + r->total * MAV__ROWS_SEQ,
                     .pos = p + r->total * MAV__ROWS_POS,
                     .slot = p + r->total * MAV__ROWS_SLOT,
                     .parent = p + r->total * MAV__ROWS_PARENT};
}

mavk_rows mav__rows_kernel(const mav_rows *r) { return rows_in(r, r->table->buffer->data); }
mavk_rows mav__rows_host(const mav_rows *r) { return rows_in(r, mav__host_read(r->table->buffer)); }

mav_err mav__rows_check_next(const mav_rows *rows, const mav_rows *next, const char *op) {
  const mavk_rows r = mav__rows_host(rows), n = mav__rows_host(next);
  for (int64_t i = 0, root = -1; i < n.n; i++) {
    if (n.seq[i] < 0) continue;
    if (n.parent[i] >= 0) {
      if (root < 0 || n.parent[i] < root || n.parent[i] >= i || n.seq[n.parent[i]] != n.seq[i])
        return MAV_RT_FAIL(rows->rt, INVALID, op, "next: row %lld does not belong to the tree before it", (long long)i);
      continue;
    }
    int64_t k = 0;
    while (k < r.n && r.seq[k] != n.seq[i]) k++;
    if (k == r.n) return MAV_RT_FAIL(rows->rt, STATE, op, "next: row %lld: sequence %d is not among the verified rows", (long long)i, n.seq[i]);
    root = i;
  }
  return MAV_OK;
}

mav_err mav__rows_check(const mav_rows *r, const char *op, int64_t id_limit, int64_t seq_limit) {
  mavk_rows k = mav__rows_host(r);
  for (int64_t i = 0; i < k.n; i++) {
    if (k.seq[i] < 0) continue;
    const int64_t p = mavk_parent(&k, i); /* set earlier; the parent may have been rewritten since */
    if (p != MAVK_NO_ROW && (p >= i || k.seq[p] != k.seq[i] || k.pos[p] + 1 != k.pos[i]))
      return MAV_RT_FAIL(r->rt, INVALID, op, "row %lld (sequence %d, position %d) no longer follows its parent, row %d", (long long)i, k.seq[i],
                         k.pos[i], k.parent[i]);
    if (id_limit > 0 && (k.id[i] < 0 || k.id[i] >= id_limit))
      return MAV_RT_FAIL(r->rt, RANGE, op, "row %lld: token id %d is outside the vocabulary of %lld", (long long)i, k.id[i],
                         (long long)id_limit);
    if (seq_limit > 0 && k.seq[i] >= seq_limit)
      return MAV_RT_FAIL(r->rt, RANGE, op, "row %lld: sequence %d, but there are only %lld", (long long)i, k.seq[i], (long long)seq_limit);
  }
  return MAV_OK;
}
