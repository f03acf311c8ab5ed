/* tests/fuzz/fuzz_encode.c - any bytes as text for fixed tokenizers: decode(encode(x)) == x, or x is not UTF-8 and the error
 * says where. The same bytes then serve as ids: the stream must say what decoding says. First byte: tokenizer and flags. */
#include "fuzz.h"
#include "mav.h"
#include "mem.h"

static mav_tokenizer *tokenizer(int which) {
  static mav_tokenizer *kept[2];
  static const char *const paths[2] = {MAV_SOURCE_DIR "/tests/oracle/tokenizer/mini", MAV_SOURCE_DIR "/tests/oracle/tokenizer/maverick"};
  if (!kept[which]) FUZZ_CHECK(mav_tokenizer_open(&kept[which], paths[which], NULL) == MAV_OK);
  return kept[which];
}

/* Written apart from the library's: by code points. */
static size_t first_invalid(const uint8_t *p, size_t n) {
  for (size_t i = 0; i < n;) {
    size_t length = p[i] < 0x80 ? 1 : p[i] >> 5 == 6 ? 2 : p[i] >> 4 == 14 ? 3 : p[i] >> 3 == 30 ? 4 : 0;
    if (!length || length > n - i) return i;
    uint32_t c = length == 1 ? p[i] : p[i] & (0x7Fu >> length);
    for (size_t k = 1; k < length; k++) {
      if (p[i + k] >> 6 != 2) return i;
      c = c << 6 | (p[i + k] & 63);
    }
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (c < least[length] || c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF)) return i;
    i += length;
  }
  return n;
}

static void check_stream(mav_tokenizer *t, const int32_t *ids, size_t count, bool skip, const char *text, size_t bytes) {
  mav_detokenizer *d;
  const char *piece;
  size_t joined = 0;
  FUZZ_CHECK(mav_detokenizer_new(&d, t, skip, NULL) == MAV_OK);
  for (size_t i = 0, n; i <= count; i++) {
    FUZZ_CHECK((i < count ? mav_detokenizer_push(d, ids[i], &piece, &n, NULL) : mav_detokenizer_finish(d, &piece, &n, NULL)) == MAV_OK);
    FUZZ_CHECK(first_invalid((const uint8_t *)piece, n) == n);
    FUZZ_CHECK(joined + n <= bytes && !memcmp(text + joined, piece, n));
    joined += n;
  }
  FUZZ_CHECK(joined == bytes);
  mav_detokenizer_free(d);
}

static void as_text(mav_tokenizer *t, int flags, const uint8_t *p, size_t n) {
  int32_t *ids;
  size_t count, bytes, bad = first_invalid(p, n);
  char *text, want[48];
  mav_diag diag = {0};
  mav_err err = mav_tokenizer_encode(t, (const char *)p, n, flags & MAV_ENCODE_SPECIAL, &ids, &count, &diag);
  if (bad < n) {
    snprintf(want, sizeof want, "at byte %zu ", bad);
    FUZZ_CHECK(err == MAV_ERR_INVALID && strstr(diag.text, want));
    return;
  }
  FUZZ_CHECK(err == MAV_OK && count <= n);
  FUZZ_CHECK(mav_tokenizer_decode(t, ids, count, false, &text, &bytes, NULL) == MAV_OK);
  FUZZ_CHECK(bytes == n && (n == 0 || !memcmp(text, p, n)));
  check_stream(t, ids, count, false, text, bytes);
  mav_free(text);
  mav_free(ids);
}

static void as_ids(mav_tokenizer *t, bool skip, const uint8_t *p, size_t n) {
  int32_t ids[256];
  size_t count = n < 256 ? n : 256, bytes;
  char *text;
  /* Mostly single bytes (the first 256 entries), so that broken UTF-8 is common. */
  for (size_t i = 0; i < count; i++) ids[i] = p[i] < 250 ? p[i] : mav_tokenizer_size(t) - (p[i] - 249);
  FUZZ_CHECK(mav_tokenizer_decode(t, ids, count, skip, &text, &bytes, NULL) == MAV_OK);
  FUZZ_CHECK(first_invalid((const uint8_t *)text, bytes) == bytes);
  check_stream(t, ids, count, skip, text, bytes);
  mav_free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  if (bytes < 1) return -1;
  mav_tokenizer *t = tokenizer(data[0] & 1);
  int64_t live = mav__mem_live();
  as_text(t, data[0] & 2, data + 1, bytes - 1);
  as_ids(t, data[0] & 4, data + 1, bytes - 1);
  FUZZ_CHECK(mav__mem_live() == live);
  return 0;
}
