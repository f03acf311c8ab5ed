/* core/bpe.h - byte-level BPE: the vocabulary, the merges, and one pre-token to ids. Immutable once built. */
#ifndef MAV_CORE_BPE_H
#define MAV_CORE_BPE_H

#include "table.h"

typedef struct mav__bpe {
  const mav__span *piece; /* (size) bytes of each id; borrowed */
  mav__table words;       /* bytes of a vocabulary entry -> id */
  struct mav__merge {
    uint64_t pair; /* left id << 32 | right id */
    int32_t rank;  /* one more than the rank; 0: empty slot */
    int32_t id;    /* of the result */
  } *merge;
  uint32_t merge_mask;
  int32_t byte_id[256]; /* -1: the vocabulary lacks this byte */
  size_t longest;       /* bytes of the longest entry */
  bool ignore_merges;   /* a pre-token that is an entry is that id, merges or not */
} mav__bpe;

typedef struct mav__ids {
  int32_t *data;
  size_t count, room;
} mav__ids;
mav_err mav__ids_push(mav__ids *ids, int32_t id); /* MAV_ERR_NOMEM only */

/* Scratch memory of one encode call; all zero at first. */
typedef struct mav__bpe_work {
  void *data;
  size_t bytes;
} mav__bpe_work;
void mav__bpe_work_deinit(mav__bpe_work *w);

void mav__bpe_deinit(mav__bpe *b);
/* Room for `count` merges. */
mav_err mav__bpe_reserve(mav__bpe *b, size_t count);
/* False: this pair has a rank already. */
bool mav__bpe_add(mav__bpe *b, int32_t left, int32_t right, int32_t rank, int32_t id);
/* Appends the ids of p[0, n), n in 1 .. 2^31 - 1. Errors: NOMEM; NOTFOUND: byte *missing has no entry. */
mav_err mav__bpe_encode(const mav__bpe *b, mav__bpe_work *w, const char *p, size_t n, mav__ids *out, unsigned char *missing);

/* The byte-level alphabet: a printable character stands for each byte. Both directions; -1: none. */
int mav__bytelevel_byte(uint32_t codepoint);
/* dst[0, *bytes) = the bytes that s[0, n) (valid UTF-8) stands for; false: a character is not of the alphabet. */
bool mav__bytelevel_decode(char *dst, size_t *bytes, const char *s, size_t n);

#endif
