/* core/detokenizer.c - text while ids arrive.
 *
 * Held back: the at most 3 bytes at the end that may still become a character. What was given out, joined, is at every
 * finish exactly what mav_tokenizer_decode gives for the same ids. One thread at a time; several may share a tokenizer. */
#include <string.h>

#include "err.h"
#include "mem.h"
#include "tokenizer.h"
#include "utf8.h"

struct mav_detokenizer {
  mav_tokenizer *t; /* retained */
  bool skip_special;
  char held[3];
  size_t held_count;
  char *text; /* what the last call gave */
  size_t room;
};

mav_err mav_detokenizer_new(mav_detokenizer **out, mav_tokenizer *t, bool skip_special, mav_diag *diag) {
  mav_detokenizer *d = *out = mav__alloc(sizeof *d);
  if (!d) return MAV_FAIL(diag, NOMEM, "detokenizer_new", "out of memory");
  d->t = mav_tokenizer_retain(t);
  d->skip_special = skip_special;
  return MAV_OK;
}

void mav_detokenizer_free(mav_detokenizer *d) {
  if (!d) return;
  mav_tokenizer_release(d->t);
  mav__free(d->text);
  mav__free(d);
}

/* Gives held + p[0, n) as text. The raw bytes lie at the end of the buffer, where the text cannot overtake them. On failure
 * nothing has changed. */
static mav_err give(mav_detokenizer *d, const char *p, size_t n, bool last, const char **text, size_t *bytes, mav_diag *diag) {
  size_t raw = d->held_count + n, room = 3 * raw + 1;
  if (d->room < room) {
    char *grown = mav__realloc(d->text, 2 * room);
    if (!grown) return MAV_FAIL(diag, NOMEM, "detokenizer_push", "out of memory");
    d->text = grown;
    d->room = 2 * room;
  }
  char *at = d->text + 2 * raw;
  memcpy(at, d->held, d->held_count);
  if (n) memcpy(at + d->held_count, p, n);
  size_t held = 0;
  *bytes = mav__utf8_lossy(d->text, at, raw, last ? NULL : &held);
  memcpy(d->held, at + raw - held, held);
  d->held_count = held;
  d->text[*bytes] = 0;
  *text = d->text;
  return MAV_OK;
}

mav_err mav_detokenizer_push(mav_detokenizer *d, int32_t id, const char **text, size_t *bytes, mav_diag *diag) {
  size_t n;
  bool special;
  const char *p = mav_tokenizer_piece(d->t, id, &n, &special);
  *text = "";
  *bytes = 0;
  if (!p) return MAV_FAIL(diag, RANGE, "detokenizer_push", "id %d is not a token", id);
  if (special && d->skip_special) return MAV_OK;
  return give(d, p, n, false, text, bytes, diag);
}

mav_err mav_detokenizer_finish(mav_detokenizer *d, const char **text, size_t *bytes, mav_diag *diag) {
  *text = "";
  *bytes = 0;
  return give(d, NULL, 0, true, text, bytes, diag);
}
