/* tests/fuzz/fuzz_tokenizer.c - any bytes as tokenizer.json: refused with one line, or it encodes and decodes some text.
 * Large inputs only cost time: the size is bounded, and the text is short because a Split pattern may be slow on purpose. */
#include "fuzz.h"
#include "mav.h"
#include "mem.h"

static const char text[] = "It's <|a|>  ab1\n\xc3\xa9\xf0\x9f\x98\x80 aaab";

static void use(mav_tokenizer *t, int flags) {
  int32_t *ids;
  size_t count, bytes, joined = 0;
  char *back;
  mav_diag diag = {0};
  mav_err err = mav_tokenizer_encode(t, text, sizeof text - 1, flags, &ids, &count, &diag);
  if (err) { /* a byte without a token, or a pattern that gave up */
    FUZZ_CHECK(!ids && err == diag.code && diag.text[0]);
    return;
  }
  FUZZ_CHECK(mav_tokenizer_decode(t, ids, count, flags & 1, &back, &bytes, &diag) == MAV_OK);
  mav_detokenizer *d;
  const char *piece;
  FUZZ_CHECK(mav_detokenizer_new(&d, t, flags & 1, &diag) == MAV_OK);
  for (size_t i = 0, n; i <= count; i++) {
    FUZZ_CHECK((i < count ? mav_detokenizer_push(d, ids[i], &piece, &n, &diag) : mav_detokenizer_finish(d, &piece, &n, &diag)) == MAV_OK);
    FUZZ_CHECK(joined + n <= bytes && !memcmp(back + joined, piece, n));
    joined += n;
  }
  FUZZ_CHECK(joined == bytes);
  mav_detokenizer_free(d);
  mav_free(back);
  mav_free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  if (bytes > 16384) return -1;
  int64_t live = mav__mem_live();
  mav_tokenizer *t;
  mav_diag diag = {0};
  mav_err err = mav_tokenizer_open(&t, fuzz_file(data, bytes), &diag);
  if (err) {
    FUZZ_CHECK(!t && err == diag.code && diag.text[0] && !strchr(diag.text, '\n'));
  } else {
    for (int flags = 0; flags < 4; flags++) use(t, flags);
    for (int32_t id = -1; id <= mav_tokenizer_size(t) && id < 1000; id++) {
      size_t n;
      const char *p = mav_tokenizer_piece(t, id, &n, NULL);
      FUZZ_CHECK(p ? n > 0 : n == 0);
    }
    mav_tokenizer_find(t, "ab");
    mav_tokenizer_release(t);
  }
  FUZZ_CHECK(mav__mem_live() == live);
  return 0;
}
