/* core/tokenizer.c - the tokenizer's public side: sharing, encoding, looking up, decoding.
 *
 * Encoding: the text is checked to be UTF-8, cut at added tokens, the rest into pre-tokens, each merged by BPE.
 * A tokenizer never changes after it is opened, so any number of threads may use one; its count of references is atomic. */
#include "tokenizer.h"

#include <string.h>

#include "err.h"
#include "file.h"
#include "mem.h"
#include "utf8.h"

void mav__tokenizer_deinit(mav_tokenizer *t) {
  for (int i = 0; i < 2; i++) mav__added_deinit(&t->added[i]);
  mav__pretokenizer_deinit(&t->pretokenizer);
  mav__bpe_deinit(&t->bpe);
  mav__free(t->special);
  mav__free(t->piece);
  mav__free(t->arena);
  mav__free(t->path);
}

mav_err mav_tokenizer_open(mav_tokenizer **out, const char *path, mav_diag *diag) {
  *out = NULL;
  char *joined = mav__file_is_directory(path) ? mav__path_join(path, "tokenizer.json") : mav__strdup(path);
  mav_tokenizer *t = mav__alloc(sizeof *t);
  mav_err err = MAV_OK;
  if (!joined || !t) MAV_GOTO(MAV_FAIL(diag, NOMEM, "tokenizer_open", "%s: out of memory", mav__path_short(path)));
  t->refs = 1;
  MAV_GOTO(mav__tokenizer_load(t, joined, diag));
  *out = t;
  t = NULL;
done:
  mav_tokenizer_release(t);
  mav__free(joined);
  return err;
}

mav_tokenizer *mav_tokenizer_retain(mav_tokenizer *t) {
  t->refs++;
  return t;
}

void mav_tokenizer_release(mav_tokenizer *t) {
  if (!t || --t->refs > 0) return;
  mav__tokenizer_deinit(t);
  mav__free(t);
}

int mav_tokenizer_size(const mav_tokenizer *t) { return t->size; }

const char *mav_tokenizer_piece(const mav_tokenizer *t, int32_t id, size_t *bytes, bool *special) {
  bool known = id >= 0 && id < t->size && t->piece[id].p;
  if (bytes) *bytes = known ? t->piece[id].n : 0;
  if (special) *special = known && t->special[id];
  return known ? t->piece[id].p : NULL;
}

/* Content is text: " the", not its byte-level spelling. Added tokens come first. */
int32_t mav_tokenizer_find(const mav_tokenizer *t, const char *token) {
  size_t n = strlen(token);
  if (!n) return -1;
  for (int i = 0; i < 2; i++) {
    const mav__added_token *found;
    if (mav__added_search(&t->added[i], token, n, &found) == 0 && found && found->content.n == n) return found->id;
  }
  return mav__table_find(&t->bpe.words, t->piece, token, n);
}

/* ---- encoding ---- */

typedef struct encoder {
  const mav_tokenizer *t;
  int flags;
  mav__ids ids;
  mav__bpe_work bpe;
  mav__pretokenizer_work pretokenizer;
  mav_diag *diag;
} encoder;

#define OP "tokenizer_encode"

static mav_err encode_piece(void *ctx, const char *p, size_t n) {
  encoder *e = ctx;
  unsigned char missing = 0;
  mav_err err = mav__bpe_encode(&e->t->bpe, &e->bpe, p, n, &e->ids, &missing);
  if (err == MAV_ERR_NOMEM) return MAV_FAIL(e->diag, NOMEM, OP, "out of memory");
  if (err)
    return MAV_FAIL(e->diag, NOTFOUND, OP, "the vocabulary of %s has no token for byte 0x%02x", mav__path_short(e->t->path), missing);
  return MAV_OK;
}

/* Added tokens of one pass, then the next; pass 2 is plain text. */
static mav_err encode_text(encoder *e, int pass, const char *p, size_t n) {
  if (pass == 2) return mav__pretokenizer_run(&e->t->pretokenizer, &e->pretokenizer, p, n, encode_piece, e, OP, e->diag);
  size_t from = 0; /* start of the plain text before the match */
  for (size_t at = 0; at < n;) {
    const mav__added_token *token;
    at += mav__added_search(&e->t->added[pass], p + at, n - at, &token);
    if (!token) break;
    if (!token->special || (e->flags & MAV_ENCODE_SPECIAL)) {
      if (at > from) MAV_TRY(encode_text(e, pass + 1, p + from, at - from));
      if (mav__ids_push(&e->ids, token->id)) return MAV_FAIL(e->diag, NOMEM, OP, "out of memory");
      from = at + token->content.n;
    }
    at += token->content.n; /* a special token that is plain text is passed over as a whole */
  }
  return from < n ? encode_text(e, pass + 1, p + from, n - from) : MAV_OK;
}

mav_err mav_tokenizer_encode(mav_tokenizer *t, const char *text, size_t bytes, int flags, int32_t **ids, size_t *count, mav_diag *diag) {
  encoder e = {.t = t, .flags = flags, .diag = diag};
  mav_err err = MAV_OK;
  *ids = NULL;
  *count = 0;
  if (bytes > INT32_MAX) return MAV_FAIL(diag, RANGE, OP, "a text of %zu bytes; at most %d at a time", bytes, INT32_MAX);
  size_t bad = mav__utf8_check(text, bytes);
  if (bad < bytes) return MAV_FAIL(diag, INVALID, OP, "the text is not valid UTF-8 at byte %zu (0x%02x)", bad, (unsigned char)text[bad]);
  e.ids.room = bytes / 3 + MAV__BOS_MAX;
  e.ids.data = mav__alloc(e.ids.room * sizeof *e.ids.data);
  if (!e.ids.data || mav__pretokenizer_work_init(&e.pretokenizer, &t->pretokenizer)) MAV_GOTO(MAV_FAIL(diag, NOMEM, OP, "out of memory"));
  if (flags & MAV_ENCODE_BOS)
    for (int i = 0; i < t->bos_count; i++) e.ids.data[e.ids.count++] = t->bos[i];
  MAV_GOTO(encode_text(&e, 0, text, bytes));
  *ids = e.ids.data;
  *count = e.ids.count;
  e.ids.data = NULL;
done:
  mav__pretokenizer_work_deinit(&e.pretokenizer);
  mav__bpe_work_deinit(&e.bpe);
  mav__free(e.ids.data);
  return err;
}

/* ---- decoding ---- */

mav_err mav_tokenizer_decode(mav_tokenizer *t, const int32_t *ids, size_t count, bool skip_special, char **text, size_t *bytes,
                             mav_diag *diag) {
  size_t total = 0, used = 0;
  *text = NULL;
  *bytes = 0;
  for (size_t i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= t->size || !t->piece[ids[i]].p)
      return MAV_FAIL(diag, RANGE, "tokenizer_decode", "ids[%zu] = %d is not a token of %s", i, ids[i], mav__path_short(t->path));
    if (!skip_special || !t->special[ids[i]]) total += t->piece[ids[i]].n;
  }
  /* The raw bytes go last, where the text cannot overtake them: it is at most three times as long. */
  char *buffer = total < SIZE_MAX / 4 ? mav__alloc(3 * total + 1) : NULL;
  if (!buffer) return MAV_FAIL(diag, NOMEM, "tokenizer_decode", "out of memory");
  char *raw = buffer + 2 * total;
  for (size_t i = 0; i < count; i++) {
    const mav__span *piece = &t->piece[ids[i]];
    if (skip_special && t->special[ids[i]]) continue;
    memcpy(raw + used, piece->p, piece->n);
    used += piece->n;
  }
  *bytes = mav__utf8_lossy(buffer, raw, used, NULL);
  buffer[*bytes] = 0;
  *text = buffer;
  return MAV_OK;
}
