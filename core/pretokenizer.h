/* core/pretokenizer.h - cutting text into pre-tokens with the regular expressions of tokenizer.json. */
#ifndef MAV_CORE_PRETOKENIZER_H
#define MAV_CORE_PRETOKENIZER_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "mav.h"

#define MAV__SPLITS_MAX 8

/* Patterns applied one after the other, each to every piece the one before it left. Immutable once built. */
typedef struct mav__pretokenizer {
  pcre2_general_context *general; /* the library's allocator */
  pcre2_code *split[MAV__SPLITS_MAX];
  int splits;
} mav__pretokenizer;

mav_err mav__pretokenizer_init(mav__pretokenizer *p);
void mav__pretokenizer_deinit(mav__pretokenizer *p);
/* `name` starts the messages. */
mav_err mav__pretokenizer_add(mav__pretokenizer *p, const char *pattern, const char *op, const char *name, mav_diag *diag);

/* What one encode call needs; all zero at first. */
typedef struct mav__pretokenizer_work {
  pcre2_match_context *context;
  pcre2_match_data *match[MAV__SPLITS_MAX];
} mav__pretokenizer_work;
mav_err mav__pretokenizer_work_init(mav__pretokenizer_work *w, const mav__pretokenizer *p);
void mav__pretokenizer_work_deinit(mav__pretokenizer_work *w);

/* Calls each(ctx, p, n), n >= 1, for the pieces of text[0, n) (valid UTF-8) in order; their concatenation is the text. */
typedef mav_err (*mav__piece_fn)(void *ctx, const char *p, size_t n);
mav_err mav__pretokenizer_run(const mav__pretokenizer *p, mav__pretokenizer_work *w, const char *text, size_t n, mav__piece_fn each,
                              void *ctx, const char *op, mav_diag *diag);

#endif
