/* core/added.h - added tokens in text: leftmost, then longest. */
#ifndef MAV_CORE_ADDED_H
#define MAV_CORE_ADDED_H

#include <stdint.h>

#include "table.h"

typedef struct mav__added_token {
  mav__span content;
  int32_t id;
  bool special;
} mav__added_token;

/* A sorted array is its own trie: a prefix is a range of it. Immutable once sorted. */
typedef struct mav__added {
  mav__added_token *token; /* (count) owned; contents borrowed */
  int32_t count;
  int32_t first[257]; /* tokens that start with byte b are [first[b], first[b + 1]) */
} mav__added;

/* Sorts and indexes; contents are unique and not empty. */
void mav__added_sort(mav__added *a);
void mav__added_deinit(mav__added *a);
/* The first match in p[0, n): its offset, and the token in *token. n and NULL: none. */
size_t mav__added_search(const mav__added *a, const char *p, size_t n, const mav__added_token **token);

#endif
