/* tests/core/test_tokenizer.c - ids, text and streams against Hugging Face's own results; broken files; failing memory. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

#include "file.h"
#include "json.h"
#include "mem.h"
#include "scratch.h"
#include "tokenizer.h"
#include "utf8.h"

#define ORACLE MAV_SOURCE_DIR "/tests/oracle/tokenizer/"

static mav_tokenizer *open_oracle(const char *name) {
  char path[512];
  mav_tokenizer *t;
  mav_diag diag = {0};
  snprintf(path, sizeof path, ORACLE "%s", name);
  if (mav_tokenizer_open(&t, path, &diag)) fail_msg("%s", diag.text);
  return t;
}

/* ---- against the reference ---- */

/* \u0000 does not survive cJSON, so it travels as U+FDD1, which the cases do not use. */
static cJSON *read_cases(const char *name) {
  char path[512], *text;
  size_t bytes;
  cJSON *json;
  snprintf(path, sizeof path, ORACLE "%s/cases.json", name);
  assert_int_equal(mav__file_read(&text, &bytes, path, 1 << 24, "test", NULL), MAV_OK);
  for (char *p = text; (p = strstr(p, "\\u0000")); p += 6) memcpy(p, "\\ufdd1", 6);
  assert_int_equal(mav__json_parse(&json, text, bytes, 16, "test", path, NULL), MAV_OK);
  mav__free(text);
  return json;
}

static size_t restore(char *s) {
  char *to = s;
  for (const char *p = s; *p; to++) {
    bool nul = !strncmp(p, "\xEF\xB7\x91", 3);
    *to = nul ? 0 : *p;
    p += nul ? 3 : 1;
  }
  return (size_t)(to - s);
}

static int32_t *read_ids(const cJSON *list, size_t *count) {
  *count = (size_t)cJSON_GetArraySize(list);
  int32_t *ids = malloc((*count + 1) * sizeof *ids), *to = ids;
  for (const cJSON *item = list->child; item; item = item->next) *to++ = (int32_t)item->valuedouble;
  return ids;
}

static void check_decode(mav_tokenizer *t, const int32_t *ids, size_t count, bool skip_special, const char *want, size_t want_bytes) {
  char *text;
  size_t bytes;
  assert_int_equal(mav_tokenizer_decode(t, ids, count, skip_special, &text, &bytes, NULL), MAV_OK);
  assert_int_equal(bytes, want_bytes);
  assert_memory_equal(text, want, bytes);
  assert_int_equal(text[bytes], 0);

  mav_detokenizer *d;
  const char *piece;
  size_t n, at = 0;
  assert_int_equal(mav_detokenizer_new(&d, t, skip_special, NULL), MAV_OK);
  for (size_t i = 0; i <= count; i++) {
    if (i < count)
      assert_int_equal(mav_detokenizer_push(d, ids[i], &piece, &n, NULL), MAV_OK);
    else
      assert_int_equal(mav_detokenizer_finish(d, &piece, &n, NULL), MAV_OK);
    assert_int_equal(mav__utf8_check(piece, n), n); /* whole characters only */
    assert_true(at + n <= bytes);
    assert_memory_equal(piece, text + at, n);
    at += n;
  }
  assert_int_equal(at, bytes);
  mav_detokenizer_free(d);
  mav_free(text);
}

static void check_oracle(const char *name) {
  mav_tokenizer *t = open_oracle(name);
  cJSON *json = read_cases(name);
  int32_t bos = (int32_t)mav__json_get(json, "bos_id")->valuedouble;
  int cases = 0;
  assert_int_equal(mav_tokenizer_size(t), (int)mav__json_get(json, "vocab_size")->valuedouble);
  for (const cJSON *c = mav__json_get(json, "cases")->child; c; c = c->next, cases++) {
    char *text = mav__json_get(c, "text")->valuestring, *decoded = mav__json_get(c, "decoded")->valuestring,
         *skipped = mav__json_get(c, "decoded_skip_special")->valuestring;
    size_t n = restore(text), decoded_n = restore(decoded), skipped_n = restore(skipped), want_count, count;
    int32_t *want = read_ids(mav__json_get(c, "ids"), &want_count), *ids;
    assert_int_equal(mav_tokenizer_encode(t, text, n, MAV_ENCODE_SPECIAL, &ids, &count, NULL), MAV_OK);
    if (count != want_count || memcmp(ids, want, count * sizeof *ids) != 0)
      fail_msg("%s: ids of case %d, \"%s\", differ: %zu and %zu, first %d", name, cases, text, count, want_count, count ? ids[0] : -1);
    mav_free(ids);
    assert_int_equal(mav_tokenizer_encode(t, text, n, MAV_ENCODE_SPECIAL | MAV_ENCODE_BOS, &ids, &count, NULL), MAV_OK);
    assert_int_equal(count, want_count + 1);
    assert_int_equal(ids[0], bos);
    assert_memory_equal(ids + 1, want, want_count * sizeof *ids);
    mav_free(ids);
    check_decode(t, want, want_count, false, decoded, decoded_n);
    check_decode(t, want, want_count, true, skipped, skipped_n);
    /* Without the flag special tokens are text; decoding gives the same text back. */
    assert_int_equal(mav_tokenizer_encode(t, text, n, 0, &ids, &count, NULL), MAV_OK);
    for (size_t i = 0; i < count; i++) {
      bool special;
      assert_non_null(mav_tokenizer_piece(t, ids[i], NULL, &special));
      assert_false(special);
    }
    check_decode(t, ids, count, true, text, n);
    mav_free(ids);
    free(want);
  }
  assert_true(cases > 200);
  for (const cJSON *c = mav__json_get(json, "decode_cases")->child; c; c = c->next, cases++) {
    size_t count;
    int32_t *ids = read_ids(mav__json_get(c, "ids"), &count);
    const char *decoded = mav__json_get(c, "decoded")->valuestring;
    check_decode(t, ids, count, false, decoded, strlen(decoded));
    free(ids);
  }
  print_message("%s: %d cases\n", name, cases);
  cJSON_Delete(json);
  mav_tokenizer_release(t);
}

static void test_oracle(void **state) {
  (void)state;
  check_oracle("maverick");
  check_oracle("mini");
}

/* ---- files that are refused ---- */

#define BYTELEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define PRE "\"pre_tokenizer\":" BYTELEVEL
#define VOCAB "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}"
#define MODEL "\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[\"a b\"]}"
#define SPLIT(regex)                                                                                                \
  "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex \
  "\"},\"behavior\":\"Isolated\",\"invert\":false}," BYTELEVEL "]}"
#define ADDED(x) "{" PRE "," MODEL ",\"added_tokens\":[" x "]}"
#define POST(x) "{" PRE "," MODEL ",\"post_processor\":" x "}"

static const struct bad_file {
  const char *text;
  mav_err code;
  const char *reason;
} bad_files[] = {
    {"", MAV_ERR_FORMAT, "empty"},
    {"{", MAV_ERR_FORMAT, "malformed JSON"},
    {"{} x", MAV_ERR_FORMAT, "after the end"},
    {"{\"model\":\"\xff\"}", MAV_ERR_FORMAT, "invalid UTF-8 at byte 10"},
    {"{\"model\":\"\\u0000\"}", MAV_ERR_FORMAT, "\\u0000"},
    {"{\"model\":\"a\nb\"}", MAV_ERR_FORMAT, "control character"},
    {"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]", MAV_ERR_FORMAT, "nested"},
    {"[]", MAV_ERR_FORMAT, "object is needed"},
    {"{}", MAV_ERR_FORMAT, "\"model\" is nothing"},
    {"{\"model\":3}", MAV_ERR_FORMAT, "\"model\" is a number"},
    {"{\"model\":{\"type\":\"Unigram\"}}", MAV_ERR_UNSUPPORTED, "Unigram"},
    {"{\"model\":{\"type\":\"BPE\"}}", MAV_ERR_FORMAT, "model.vocab is nothing"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{}}}", MAV_ERR_FORMAT, "model.merges"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}", MAV_ERR_FORMAT, "vocab is empty"},
    {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", MAV_ERR_FORMAT, "\"a\""},
    {"{\"model\":{\"vocab\":{\"a\":1.5},\"merges\":[]}}", MAV_ERR_FORMAT, "no id"},
    {"{\"model\":{\"vocab\":{\"a\":\"1\"},\"merges\":[]}}", MAV_ERR_FORMAT, "no id"},
    {"{\"model\":{\"vocab\":{\"a\":4000000000},\"merges\":[]}}", MAV_ERR_FORMAT, "no id in"},
    {"{\"model\":{\"vocab\":{\"a\":1e300},\"merges\":[]}}", MAV_ERR_FORMAT, "no id in"},
    {"{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", MAV_ERR_FORMAT, "id 0 is given twice"},
    {"{\"model\":{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", MAV_ERR_FORMAT, "twice, as 0 and 1"},
    {"{\"model\":{\"vocab\":{\"\":0},\"merges\":[]}}", MAV_ERR_FORMAT, "token 0 is empty"},
    {"{\"model\":{" VOCAB ",\"merges\":[\"a c\"]}}", MAV_ERR_FORMAT, "merges[0] names \"c\""},
    {"{\"model\":{" VOCAB ",\"merges\":[\"a b\",\"b a\"]}}", MAV_ERR_FORMAT, "merges[1]: the merged token \"ba\""},
    {"{\"model\":{" VOCAB ",\"merges\":[\"a b\",[\"a\",\"b\"]]}}", MAV_ERR_FORMAT, "merges[1] repeats"},
    {"{\"model\":{" VOCAB ",\"merges\":[\"ab\"]}}", MAV_ERR_FORMAT, "merges[0] is not a pair"},
    {"{\"model\":{" VOCAB ",\"merges\":[\"a b c\"]}}", MAV_ERR_FORMAT, "not a pair"},
    {"{\"model\":{" VOCAB ",\"merges\":[[\"a\"]]}}", MAV_ERR_FORMAT, "not a pair"},
    {"{\"model\":{" VOCAB ",\"merges\":[[\"a\",\"b\",\"a\"]]}}", MAV_ERR_FORMAT, "not a pair"},
    {"{\"model\":{" VOCAB ",\"merges\":[[1,2]]}}", MAV_ERR_FORMAT, "not a pair"},
    {"{\"model\":{" VOCAB ",\"merges\":{}}}", MAV_ERR_FORMAT, "merges is an object"},
    {"{\"model\":{" VOCAB ",\"merges\":[],\"dropout\":0.1}}", MAV_ERR_UNSUPPORTED, "dropout"},
    {"{\"model\":{" VOCAB ",\"merges\":[],\"byte_fallback\":true}}", MAV_ERR_UNSUPPORTED, "byte_fallback"},
    {"{\"model\":{" VOCAB ",\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}", MAV_ERR_UNSUPPORTED, "end_of_word_suffix"},
    {"{" MODEL "}", MAV_ERR_UNSUPPORTED, "no pre_tokenizer"},
    {"{" MODEL ",\"normalizer\":{\"type\":\"NFC\"}," PRE "}", MAV_ERR_UNSUPPORTED, "NFC"},
    {"{" MODEL ",\"decoder\":{\"type\":\"WordPiece\"}," PRE "}", MAV_ERR_UNSUPPORTED, "WordPiece"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Metaspace\"}}", MAV_ERR_UNSUPPORTED, "Metaspace"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Sequence\"}}", MAV_ERR_FORMAT, "pretokenizers"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[]}}", MAV_ERR_UNSUPPORTED, "no ByteLevel"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"ByteLevel\"}}", MAV_ERR_UNSUPPORTED, "add_prefix_space"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"String\":\"a\"}}}", MAV_ERR_UNSUPPORTED,
     "Regex"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Removed\",\"pattern\":{\"Regex\":\"a\"}}}", MAV_ERR_UNSUPPORTED,
     "Removed"},
    {"{" MODEL "," SPLIT("(a") "}", MAV_ERR_FORMAT, "does not compile"},
    {"{" MODEL "," SPLIT("\\\\p{Nonsense}") "}", MAV_ERR_FORMAT, "does not compile"},
    {"{" MODEL "," SPLIT("a\\\\w") "}", MAV_ERR_UNSUPPORTED, "\"\\w\" at character 1"},
    {"{" MODEL "," SPLIT("(*UTF)") "}", MAV_ERR_UNSUPPORTED, "(*UTF)"},
    {"{" MODEL "," SPLIT("(?m)a") "}", MAV_ERR_UNSUPPORTED, "(?m)"},
    {"{" MODEL "," SPLIT("[a[b]]") "}", MAV_ERR_UNSUPPORTED, "not supported"},
    {ADDED("1"), MAV_ERR_FORMAT, "added_tokens[0]"},
    {ADDED("{\"id\":3}"), MAV_ERR_FORMAT, "added_tokens[0] has no content"},
    {ADDED("{\"id\":3,\"content\":\"\"}"), MAV_ERR_FORMAT, "added_tokens[0] has no content"},
    {ADDED("{\"content\":\"x\"}"), MAV_ERR_FORMAT, "\"x\" has no id"},
    {ADDED("{\"id\":99999999,\"content\":\"x\"}"), MAV_ERR_FORMAT, "\"x\" has no id in"},
    {ADDED("{\"id\":1,\"content\":\"x\"}"), MAV_ERR_FORMAT, "id 1 of added token \"x\" is taken"},
    {ADDED("{\"id\":3,\"content\":\"x\"},{\"id\":3,\"content\":\"y\"}"), MAV_ERR_FORMAT, "taken"},
    {ADDED("{\"id\":3,\"content\":\"x\"},{\"id\":4,\"content\":\"x\"}"), MAV_ERR_FORMAT, "\"x\" is given twice"},
    {ADDED("{\"id\":3,\"content\":\"x\"},{\"id\":4,\"content\":\"x\",\"special\":true}"), MAV_ERR_FORMAT, "\"x\" is given twice"},
    {ADDED("{\"id\":3,\"content\":\"ab\"}"), MAV_ERR_FORMAT, "has id 3, but 2"},
    {ADDED("{\"id\":3,\"content\":\"x\",\"lstrip\":true}"), MAV_ERR_UNSUPPORTED, "lstrip"},
    {"{" PRE "," MODEL ",\"added_tokens\":{}}", MAV_ERR_FORMAT, "added_tokens is an object"},
    {POST("{\"type\":\"BertProcessing\"}"), MAV_ERR_UNSUPPORTED, "BertProcessing"},
    {POST("{\"type\":\"TemplateProcessing\"}"), MAV_ERR_FORMAT, "single"},
    {POST("{\"type\":\"TemplateProcessing\",\"single\":[]}"), MAV_ERR_FORMAT, "no Sequence"},
    {POST("{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"q\"}}]}"), MAV_ERR_FORMAT, "\"q\""},
    {POST("{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"q\"}}],\"special_tokens\":{\"q\":{\"ids\":[7]}}}"),
     MAV_ERR_FORMAT, "no token"},
    {POST("{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{}},{\"SpecialToken\":{}}]}"), MAV_ERR_UNSUPPORTED, "appends"},
};

static void test_bad_files(void **state) {
  (void)state;
  int64_t live = mav__mem_live();
  for (size_t i = 0; i < sizeof bad_files / sizeof *bad_files; i++) {
    const struct bad_file *b = &bad_files[i];
    mav_tokenizer *t = (mav_tokenizer *)1;
    mav_diag diag = {0};
    const char *path = scratch_write("bad.json", b->text, strlen(b->text));
    mav_err err = mav_tokenizer_open(&t, path, &diag);
    if (err != b->code || diag.code != err || !strstr(diag.text, "bad.json") || !strstr(diag.text, b->reason))
      fail_msg("%s\n  gave %s: %s\n  wanted %s ... %s", b->text, mav_err_name(err), diag.text, mav_err_name(b->code), b->reason);
    assert_null(t);
    assert_null(strchr(diag.text, '\n'));
    assert_string_equal(diag.op, "tokenizer_open");
    assert_int_equal(mav_tokenizer_open(&t, path, NULL), b->code);
  }
  assert_int_equal(mav__mem_live(), live);
}

static void test_missing_file(void **state) {
  (void)state;
  mav_tokenizer *t;
  mav_diag diag;
  assert_int_equal(mav_tokenizer_open(&t, scratch_path("absent.json"), &diag), MAV_ERR_NOTFOUND);
  assert_non_null(strstr(diag.text, "absent.json"));
  assert_int_equal(diag.native, 2);
  scratch_clear();
  assert_int_equal(mav_tokenizer_open(&t, scratch_dir, &diag), MAV_ERR_NOTFOUND);
  assert_non_null(strstr(diag.text, "tokenizer.json"));
}

/* Every prefix of a good file is refused, and nothing else happens. */
static void test_truncated(void **state) {
  (void)state;
  char *text;
  size_t bytes;
  mav_tokenizer *t;
  assert_int_equal(mav__file_read(&text, &bytes, ORACLE "mini/tokenizer.json", 1 << 20, "test", NULL), MAV_OK);
  while (bytes && text[bytes - 1] != '}') bytes--;
  for (size_t n = 1; n < bytes; n += 61) {
    mav_diag diag;
    assert_int_equal(mav_tokenizer_open(&t, scratch_write("cut.json", text, n), &diag), MAV_ERR_FORMAT);
    assert_non_null(strstr(diag.text, "cut.json"));
  }
  mav__free(text);
}

/* ---- small vocabularies ---- */

static mav_tokenizer *open_text(const char *text) {
  mav_tokenizer *t;
  mav_diag diag = {0};
  if (mav_tokenizer_open(&t, scratch_write("tokenizer.json", text, strlen(text)), &diag)) fail_msg("%s", diag.text);
  return t;
}

static void check_ids(mav_tokenizer *t, const char *text, int flags, size_t want_count, const int32_t *want) {
  int32_t *ids;
  size_t count;
  mav_diag diag = {0};
  if (mav_tokenizer_encode(t, text, strlen(text), flags, &ids, &count, &diag)) fail_msg("%s", diag.text);
  if (count != want_count || memcmp(ids, want, count * sizeof *ids) != 0) {
    for (size_t i = 0; i < count; i++) print_message("%d ", ids[i]);
    fail_msg("ids of \"%s\" with flags %d", text, flags);
  }
  mav_free(ids);
}
#define CHECK_IDS(t, text, flags, ...) \
  check_ids(t, text, flags, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t), (int32_t[]){__VA_ARGS__})

static void test_added_tokens(void **state) {
  (void)state;
  mav_tokenizer *t =
      open_text("{" PRE
                ",\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"<\":3,\">\":4},\"merges\":[[\"a\",\"b\"]]},"
                "\"added_tokens\":[{\"id\":5,\"content\":\"<a>\",\"special\":true},{\"id\":6,\"content\":\"<a><a>\",\"special\":true},"
                "{\"id\":7,\"content\":\"bb\",\"normalized\":false},{\"id\":8,\"content\":\"a>\",\"normalized\":false},"
                "{\"id\":20,\"content\":\"aa\",\"normalized\":true}]}");
  assert_int_equal(mav_tokenizer_size(t), 21);
  CHECK_IDS(t, "<a>", MAV_ENCODE_SPECIAL, 5);
  CHECK_IDS(t, "<a", MAV_ENCODE_SPECIAL, 3, 0);
  CHECK_IDS(t, "b<a><a>a", MAV_ENCODE_SPECIAL, 1, 6, 0);
  CHECK_IDS(t, "<a><a><a>", MAV_ENCODE_SPECIAL, 6, 5);
  CHECK_IDS(t, "<a><ab", MAV_ENCODE_SPECIAL, 5, 3, 2);
  CHECK_IDS(t, "abb", 0, 0, 7);    /* leftmost match, no merge across it */
  CHECK_IDS(t, "<a>", 0, 3, 0, 4); /* passed over as a whole: "a>" does not match in it */
  CHECK_IDS(t, "<<a>a>", 0, 3, 3, 0, 4, 8);
  CHECK_IDS(t, "aaa>", 0, 20, 8); /* normalized tokens see what the others left */
  CHECK_IDS(t, "aabb", 0, 20, 7);
  assert_int_equal(mav_tokenizer_find(t, "<a>"), 5);
  assert_int_equal(mav_tokenizer_find(t, "ab"), 2);
  assert_int_equal(mav_tokenizer_find(t, "ba"), -1);
  assert_int_equal(mav_tokenizer_find(t, ""), -1);
  size_t n = 9;
  bool special = true;
  assert_null(mav_tokenizer_piece(t, 12, &n, &special)); /* a hole */
  assert_int_equal(n, 0);
  assert_null(mav_tokenizer_piece(t, -1, NULL, NULL));
  assert_null(mav_tokenizer_piece(t, 21, NULL, NULL));
  assert_memory_equal(mav_tokenizer_piece(t, 6, &n, &special), "<a><a>", 6);
  assert_true(special && n == 6);
  char *text;
  mav_diag diag;
  assert_int_equal(mav_tokenizer_decode(t, (int32_t[]){0, 12}, 2, false, &text, &n, &diag), MAV_ERR_RANGE);
  assert_non_null(strstr(diag.text, "ids[1] = 12"));
  assert_null(text);
  /* A byte without a token is an error, not silence. */
  int32_t *ids;
  assert_int_equal(mav_tokenizer_encode(t, "abc", 3, 0, &ids, &n, &diag), MAV_ERR_NOTFOUND);
  assert_non_null(strstr(diag.text, "0x63"));
  assert_null(ids);
  mav_tokenizer_release(t);
}

static void test_merges(void **state) {
  (void)state;
#define LETTERS "\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4,\"abc\":5,\"cab\":6"
  mav_tokenizer *t = open_text("{" PRE ",\"model\":{\"vocab\":{" LETTERS "},\"merges\":[\"b c\",\"a b\",\"a bc\"]}}");
  CHECK_IDS(t, "abc", 0, 5);
  CHECK_IDS(t, "abab", 0, 3, 3);
  CHECK_IDS(t, "cab", 0, 2, 3); /* an entry without merges is not reached */
  mav_tokenizer_release(t);
  t = open_text("{" PRE ",\"model\":{\"ignore_merges\":true,\"vocab\":{" LETTERS "},\"merges\":[\"a b\"]}}");
  CHECK_IDS(t, "cab", 0, 6); /* but here it is */
  CHECK_IDS(t, "caba", 0, 2, 3, 0);
  mav_tokenizer_release(t);
}

static void test_template(void **state) {
  (void)state;
  mav_tokenizer *t =
      open_text("{" PRE "," MODEL
                ",\"added_tokens\":[{\"id\":3,\"content\":\"<s>\",\"special\":true}],\"post_processor\":{\"type\":\"TemplateProcessing\","
                "\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<s>\":{\"id\":\"<s>"
                "\",\"ids\":[3,1]}}}}");
  CHECK_IDS(t, "ab", MAV_ENCODE_BOS, 3, 1, 2);
  CHECK_IDS(t, "", MAV_ENCODE_BOS, 3, 1);
  mav_tokenizer_release(t);
}

/* Split patterns: gaps and empty matches are borders; several patterns apply in turn; \s is White_Space and no more. */
static void test_split(void **state) {
  (void)state;
#define SPLIT_MODEL                                                                                                                     \
  "\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"ba\":3,\"\xc4\xa0\":4,\"\xc3\xa1\":5,\"\xc5\x82\":6,\"\xc4\xb0\":7,\"\xc3\x82\":8," \
  "\"\xc4\xa7\":9},"                                                                                                                    \
  "\"merges\":[\"a b\",\"b a\"]}"
  mav_tokenizer *t = open_text("{" SPLIT_MODEL "," SPLIT("ba") "}");
  CHECK_IDS(t, "aba", 0, 0, 3);
  CHECK_IDS(t, "abab", 0, 0, 3, 1);
  mav_tokenizer_release(t);
  t = open_text("{" SPLIT_MODEL "," SPLIT("(?=b)") "}");
  CHECK_IDS(t, "abab", 0, 0, 3, 1);
  mav_tokenizer_release(t);
  t = open_text("{" SPLIT_MODEL "," SPLIT("x*") "}");
  CHECK_IDS(t, "ab", 0, 0, 1);
  mav_tokenizer_release(t);
  t = open_text("{" SPLIT_MODEL
                ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
                "{\"type\":\"Split\",\"pattern\":{\"Regex\":\" \"},\"behavior\":\"Isolated\"},"
                "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"^b\"},\"behavior\":\"Isolated\"}," BYTELEVEL "]}}");
  CHECK_IDS(t, "ab bab", 0, 2, 4, 1, 2);
  mav_tokenizer_release(t);
  t = open_text("{" SPLIT_MODEL "," SPLIT("a\\\\s*b") "}");
  CHECK_IDS(t, "a bab", 0, 0, 4, 1, 2);
  /* U+180E (bytes e1 a0 8e) is no white space in Unicode since 6.3; U+0085 (c2 85) is. */
  assert_int_equal(mav_tokenizer_find(t, "\xe1"), 5);
  mav__pretokenizer *p = &t->pretokenizer;
  pcre2_match_data *m = pcre2_match_data_create(1, NULL);
  assert_int_equal(pcre2_match(p->split[0],
                               (PCRE2_SPTR) "a\xe1\xa0\x8e"
                                            "b",
                               5, 0, 0, m, NULL),
                   PCRE2_ERROR_NOMATCH);
  assert_int_equal(pcre2_match(p->split[0],
                               (PCRE2_SPTR) "a\xc2\x85"
                                            "b",
                               4, 0, 0, m, NULL),
                   1);
  pcre2_match_data_free(m);
  mav_tokenizer_release(t);
}

static void test_match_limit(void **state) {
  (void)state;
  mav_tokenizer *t = open_text("{" MODEL "," SPLIT("(?:a|aa|a+)+[bc]") "}");
  int32_t *ids;
  size_t count;
  mav_diag diag;
  char text[200];
  memset(text, 'a', sizeof text);
  assert_int_equal(mav_tokenizer_encode(t, text, sizeof text, 0, &ids, &count, &diag), MAV_ERR_RANGE);
  assert_non_null(strstr(diag.text, "limit"));
  mav_tokenizer_release(t);
}

/* ---- text that is refused ---- */

static void test_invalid_utf8(void **state) {
  (void)state;
  static const struct {
    const char *text;
    size_t bytes, offset;
  } cases[] = {{"\x80", 1, 0},
               {"ab\xff", 3, 2},
               {"abcdefgh\xe2\x82", 10, 8},
               {"\xc0\x80", 2, 0},
               {"a\xed\xa0\x80", 4, 1},
               {"\xf4\x90\x80\x80", 4, 0},
               {"\xf5\x80\x80\x80", 4, 0},
               {"\xc3\xa9\xc3", 3, 2},
               {"\xe0\x9f\x80", 3, 0},
               {"\xf0\x8f\x80\x80", 4, 0},
               {"\0\xe2(", 3, 1}};
  mav_tokenizer *t = open_oracle("mini");
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int32_t *ids;
    size_t count;
    char want[40];
    mav_diag diag;
    assert_int_equal(mav_tokenizer_encode(t, cases[i].text, cases[i].bytes, 0, &ids, &count, &diag), MAV_ERR_INVALID);
    snprintf(want, sizeof want, "at byte %zu ", cases[i].offset);
    if (!strstr(diag.text, want)) fail_msg("case %zu: %s", i, diag.text);
    assert_null(ids);
  }
  mav_tokenizer_release(t);
}

/* As Python's bytes.decode(errors="replace"). */
static void test_lossy(void **state) {
  (void)state;
#define R "\xEF\xBF\xBD"
  static const struct {
    const char *raw, *text;
    size_t held;
  } cases[] = {{"", "", 0},
               {"abc\xc3\xa9", "abc\xc3\xa9", 0},
               {"\xe2\x82", R, 2},
               {"\xe2\x82"
                "A",
                R "A", 0},
               {"\xff\xfe", R R, 0},
               {"\xc3(", R "(", 0},
               {"\xf0\x9f\x98", R, 3},
               {"\xed\xa0\x80", R R R, 0},
               {"\xc0\x80", R R, 0},
               {"\xf4\x90\x80\x80", R R R R, 0},
               {"\xf0\x80\x80\x41", R R R "A", 0},
               {"\xf1\x80\x80\xe1\x80\xc2\x62\x80", R R R "b" R, 0},
               {"\xe1", R, 1}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char out[64];
    size_t raw = strlen(cases[i].raw), held, n = mav__utf8_lossy(out, cases[i].raw, raw, NULL);
    assert_int_equal(n, strlen(cases[i].text));
    assert_memory_equal(out, cases[i].text, n);
    n = mav__utf8_lossy(out, cases[i].raw, raw, &held);
    assert_int_equal(held, cases[i].held);
    assert_int_equal(n, strlen(cases[i].text) - (held ? 3 : 0));
  }
}

/* ---- long pre-tokens ---- */

/* The definition, written down: merge the leftmost pair of lowest rank until none is left. */
static size_t naive(const mav__bpe *b, const char *p, size_t n, int32_t *ids) {
  for (size_t i = 0; i < n; i++) ids[i] = b->byte_id[(unsigned char)p[i]];
  for (;;) {
    const struct mav__merge *best = NULL;
    size_t at = 0;
    for (size_t i = 0; i + 1 < n; i++)
      for (uint32_t k = 0; k <= b->merge_mask; k++) {
        const struct mav__merge *m = &b->merge[k];
        if (m->rank && m->pair == ((uint64_t)ids[i] << 32 | (uint32_t)ids[i + 1]) && (!best || m->rank < best->rank)) best = m, at = i;
      }
    if (!best) return n;
    ids[at] = best->id;
    memmove(ids + at + 1, ids + at + 2, (--n - at - 1) * sizeof *ids);
  }
}

static void test_heap_equals_scan(void **state) {
  (void)state;
  mav_tokenizer *t = open_oracle("mini");
  mav__bpe_work work = {0};
  uint32_t seed = 1;
  for (int round = 0; round < 60; round++) {
    char text[160];
    int32_t want[160];
    size_t n = 1 + (size_t)round * 159 / 60;
    for (size_t i = 0; i < n; i++) text[i] = " etaonih"[(seed = seed * 1664525 + 1013904223) >> 29];
    mav__ids ids = {0};
    unsigned char missing;
    assert_int_equal(mav__bpe_encode(&t->bpe, &work, text, n, &ids, &missing), MAV_OK);
    size_t count = naive(&t->bpe, text, n, want);
    assert_int_equal(ids.count, count);
    assert_memory_equal(ids.data, want, count * sizeof *want);
    mav__free(ids.data);
  }
  mav__bpe_work_deinit(&work);
  mav_tokenizer_release(t);
}

/* A long run without a border must not be quadratic. */
static void test_long_runs(void **state) {
  (void)state;
  static const char *const units[] = {"a", " ", "A", "!", "ab", "\n", " \n", "\xc3\xa9", "7", "\xe6\xbc\xa2", "'s", "<|"};
  mav_tokenizer *t = open_oracle("maverick");
  size_t room = 1 << 18;
  char *text = malloc(room);
  clock_t start = clock(); /* processor time: the machine may be busy */
  for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
    size_t n = 0, step = strlen(units[i]), count, bytes;
    for (; n + step <= room; n += step) memcpy(text + n, units[i], step);
    int32_t *ids;
    char *back;
    assert_int_equal(mav_tokenizer_encode(t, text, n, MAV_ENCODE_SPECIAL, &ids, &count, NULL), MAV_OK);
    assert_int_equal(mav_tokenizer_decode(t, ids, count, false, &back, &bytes, NULL), MAV_OK);
    assert_int_equal(bytes, n);
    assert_memory_equal(back, text, n);
    mav_free(back);
    mav_free(ids);
  }
  double s = (double)(clock() - start) / CLOCKS_PER_SEC;
  print_message("12 runs of 256 KiB: %.2f s\n", s);
  assert_true(s < 60);
  free(text);
  mav_tokenizer_release(t);
}

/* ---- streams ---- */

static void test_detokenizer(void **state) {
  (void)state;
  mav_tokenizer *t = open_oracle("mini");
  int32_t id[4];
  for (int i = 0; i < 4; i++) id[i] = t->bpe.byte_id[(unsigned char)"\xf0\x9f\x98\x80"[i]];
  mav_detokenizer *d;
  const char *text;
  size_t n;
  assert_int_equal(mav_detokenizer_new(&d, t, true, NULL), MAV_OK);
  for (int i = 0; i < 4; i++) {
    assert_int_equal(mav_detokenizer_push(d, id[i], &text, &n, NULL), MAV_OK);
    assert_int_equal(n, i == 3 ? 4 : 0);
    /* A skipped special token does not disturb what is held. */
    assert_int_equal(mav_detokenizer_push(d, t->bos[0], &text, &n, NULL), MAV_OK);
    assert_int_equal(n, 0);
  }
  assert_int_equal(mav_detokenizer_push(d, id[0], &text, &n, NULL), MAV_OK);
  mav_diag diag;
  assert_int_equal(mav_detokenizer_push(d, 100000, &text, &n, &diag), MAV_ERR_RANGE);
  assert_non_null(strstr(diag.text, "100000"));
  assert_int_equal(mav_detokenizer_finish(d, &text, &n, NULL), MAV_OK);
  assert_int_equal(n, 3);
  assert_memory_equal(text, R, 3);
  assert_int_equal(mav_detokenizer_finish(d, &text, &n, NULL), MAV_OK);
  assert_int_equal(n, 0);
  mav_tokenizer_release(t); /* the detokenizer holds its own reference */
  mav_detokenizer_free(d);
  mav_detokenizer_free(NULL);
}

/* ---- threads ---- */

static void *encode_often(void *ctx) {
  static const char text[] = "Several threads' text: <|eot|> \xe6\xbc\xa2\xe5\xad\x97, 12345 ...\n\n";
  mav_tokenizer *t = mav_tokenizer_retain(ctx);
  for (int i = 0; i < 200; i++) {
    int32_t *ids;
    size_t count, bytes;
    char *back;
    if (mav_tokenizer_encode(t, text, sizeof text - 1, MAV_ENCODE_SPECIAL, &ids, &count, NULL)) return NULL;
    mav_err err = mav_tokenizer_decode(t, ids, count, false, &back, &bytes, NULL);
    bool equal = !err && bytes == sizeof text - 1 && !memcmp(back, text, bytes);
    mav_free(back);
    mav_free(ids);
    if (!equal) return NULL;
  }
  mav_tokenizer_release(t);
  return ctx;
}

static void test_threads(void **state) {
  (void)state;
  mav_tokenizer *t = open_oracle("maverick");
  pthread_t thread[4];
  void *result;
  for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&thread[i], NULL, encode_often, t), 0);
  for (int i = 0; i < 4; i++) {
    assert_int_equal(pthread_join(thread[i], &result), 0);
    assert_ptr_equal(result, t);
  }
  mav_tokenizer_release(t);
}

/* ---- failing memory ---- */

static mav_err whole_life(const char *path) {
  static const char text[] = "It's a <|eot|> test: \xf0\x9f\x98\x80 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
  mav_tokenizer *t = NULL;
  mav_detokenizer *d = NULL;
  int32_t *ids = NULL;
  char *back = NULL;
  const char *piece;
  size_t count, bytes;
  mav_diag diag = {0};
  mav_err err = mav_tokenizer_open(&t, path, &diag);
  if (!err) err = mav_tokenizer_encode(t, text, sizeof text - 1, MAV_ENCODE_SPECIAL | MAV_ENCODE_BOS, &ids, &count, &diag);
  if (!err) err = mav_tokenizer_decode(t, ids, count, false, &back, &bytes, &diag);
  if (!err) err = mav_detokenizer_new(&d, t, false, &diag);
  for (size_t i = 0; !err && i < count; i++) err = mav_detokenizer_push(d, ids[i], &piece, &bytes, &diag);
  if (!err) err = mav_detokenizer_finish(d, &piece, &bytes, &diag);
  assert_int_equal(diag.code, err);
  mav_detokenizer_free(d);
  mav_free(back);
  mav_free(ids);
  mav_tokenizer_release(t);
  return err;
}

static void test_failing_memory(void **state) {
  (void)state;
  int64_t live = mav__mem_live();
  int failures = 0;
  for (;; failures++) {
    mav__mem_fail_at(failures + 1);
    mav_err err = whole_life(ORACLE "mini");
    mav__mem_fail_at(0);
    assert_int_equal(mav__mem_live(), live);
    if (!err) break;
    if (err != MAV_ERR_NOMEM) fail_msg("allocation %d failing gave %s", failures + 1, mav_err_name(err));
  }
  print_message("%d allocations\n", failures);
  assert_true(failures >= 15);
}

/* ---- size ---- */

/* The shape of a 200,000 entry vocabulary: 256 bytes, then every entry is a pair of earlier ones. */
static char *large_vocabulary(size_t entries, size_t *bytes) {
  char *text = malloc(entries * 200 + 4096), *p = text, **name = malloc(entries * sizeof *name);
  size_t *left = malloc(entries * sizeof *left), *right = malloc(entries * sizeof *right);
  for (size_t i = 0; i < 256; i++) {
    char one[4] = {0};
    for (uint32_t c = 0; c < 324; c++)
      if (mav__bytelevel_byte(c) == (int)i) {
        if (c < 128)
          one[0] = (char)c;
        else
          one[0] = (char)(0xC0 | c >> 6), one[1] = (char)(0x80 | (c & 63));
      }
    name[i] = strdup(one);
  }
  /* Entry i is entry (i - 256) / 64 followed by a letter of its own: all different. */
  for (size_t i = 256; i < entries; i++) {
    left[i] = i - 256 < 64 ? 97 : 256 + (i - 256 - 64) / 64;
    right[i] = 33 + (i - 256) % 64 + ((i - 256) % 64 >= 1) + ((i - 256) % 64 >= 58); /* neither " nor \ */
    name[i] = malloc(strlen(name[left[i]]) + 4);
    sprintf(name[i], "%s%s", name[left[i]], name[right[i]]);
  }
  p += sprintf(p, "{\"normalizer\":null," SPLIT(
                      "\\\\p{L}+|\\\\s+|[^\\\\s\\\\p{L}]+") ",\"model\":{\"type\":\"BPE\",\"ignore_merges\":true,\"vocab\":{");
  for (size_t i = 0; i < entries; i++) {
    const char *quote = name[i][0] == '"' || name[i][0] == '\\' ? "\\" : "";
    p += sprintf(p, "%s\"%s%s\":%zu", i ? "," : "", quote, name[i], i);
  }
  p += sprintf(p, "},\"merges\":[");
  for (size_t i = 256; i < entries; i++) p += sprintf(p, "%s[\"%s\",\"%s\"]", i > 256 ? "," : "", name[left[i]], name[right[i]]);
  p += sprintf(p, "]}}");
  for (size_t i = 0; i < entries; i++) free(name[i]);
  free(name);
  free(left);
  free(right);
  *bytes = (size_t)(p - text);
  return text;
}

static void test_large_vocabulary(void **state) {
  (void)state;
  size_t bytes;
  char *text = large_vocabulary(200000, &bytes);
  const char *path = scratch_write("large.json", text, bytes);
  free(text);
  mav_tokenizer *t;
  mav_diag diag = {0};
  clock_t start = clock(); /* processor time: the machine may be busy */
  if (mav_tokenizer_open(&t, path, &diag)) fail_msg("%s", diag.text);
  double s = (double)(clock() - start) / CLOCKS_PER_SEC;
  print_message("200000 entries, %.1f MB: %.3f s\n", (double)bytes / 1e6, s);
  assert_int_equal(mav_tokenizer_size(t), 200000);
  assert_true(s < 30); /* sanitizers included */
  mav_tokenizer_release(t);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_oracle),
      cmocka_unit_test(test_bad_files),
      cmocka_unit_test(test_missing_file),
      cmocka_unit_test(test_truncated),
      cmocka_unit_test(test_added_tokens),
      cmocka_unit_test(test_merges),
      cmocka_unit_test(test_template),
      cmocka_unit_test(test_split),
      cmocka_unit_test(test_match_limit),
      cmocka_unit_test(test_invalid_utf8),
      cmocka_unit_test(test_lossy),
      cmocka_unit_test(test_heap_equals_scan),
      cmocka_unit_test(test_long_runs),
      cmocka_unit_test(test_detokenizer),
      cmocka_unit_test(test_failing_memory),
      cmocka_unit_test(test_threads),
      cmocka_unit_test(test_large_vocabulary),
  };
  return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
