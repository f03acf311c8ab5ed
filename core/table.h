/* core/table.h - byte strings to small integers: open addressing, no removal. The keys stay with the caller, in an array
 * indexed by the value, so that a slot takes 8 bytes. */
#ifndef MAV_CORE_TABLE_H
#define MAV_CORE_TABLE_H

#include <stdint.h>

#include "mav.h"

typedef struct mav__span {
  const char *p; /* not terminated */
  size_t n;
} mav__span;

typedef struct mav__table {
  struct mav__slot {
    uint32_t hash;
    int32_t value; /* one more than the value; 0: empty */
  } *slot;
  uint32_t mask;
} mav__table;

/* Room for `entries` keys, at most half full. MAV_ERR_NOMEM only. */
mav_err mav__table_init(mav__table *t, size_t entries);
void mav__table_deinit(mav__table *t);
/* Value whose key is p[0, n); -1: none. */
int32_t mav__table_find(const mav__table *t, const mav__span *keys, const char *p, size_t n);
/* Adds keys[value] and returns -1, or the value that already has this key. */
int32_t mav__table_add(mav__table *t, const mav__span *keys, int32_t value);

uint64_t mav__hash(const char *p, size_t n);

#endif
