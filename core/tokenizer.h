/* core/tokenizer.h - inside a tokenizer. */
#ifndef MAV_CORE_TOKENIZER_H
#define MAV_CORE_TOKENIZER_H

#include "added.h"
#include "bpe.h"
#include "pretokenizer.h"

#define MAV__TOKENS_MAX (1 << 22) /* a larger id is absurd */
#define MAV__BOS_MAX 8

struct mav_tokenizer {
  _Atomic int refs;
  char *path;
  char *arena; /* all the bytes that spans point to */
  size_t arena_used;
  int32_t size;
  mav__span *piece; /* (size) p NULL: no such id */
  bool *special;    /* (size) */
  mav__bpe bpe;
  mav__pretokenizer pretokenizer;
  /* [0] is matched against the text, [1] against what is left. They are not merged: the order is visible in results. */
  mav__added added[2];
  int32_t bos[MAV__BOS_MAX];
  int bos_count;
};

/* Fills a zeroed tokenizer from its file; on failure mav__tokenizer_deinit still applies. */
mav_err mav__tokenizer_load(mav_tokenizer *t, const char *path, mav_diag *diag);
void mav__tokenizer_deinit(mav_tokenizer *t);

#endif
