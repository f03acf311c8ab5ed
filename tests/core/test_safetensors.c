/* tests/core/test_safetensors.c - good files, every way to lie, writing and reading back, failing memory. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>

#include <cmocka.h>

#include "mav.h"
#include "mem.h"
#include "safetensors.h"
#include "scratch.h"

/* A file with this header and `data` bytes of data; header_bytes < 0: the true length. */
static const char *write_file(const char *name, const char *header, long long header_bytes, size_t data) {
  size_t n = strlen(header), total = 8 + n + data;
  unsigned char *p = malloc(total);
  uint64_t stated = header_bytes < 0 ? n : (uint64_t)header_bytes;
  for (int i = 0; i < 8; i++) p[i] = (unsigned char)(stated >> 8 * i & 255);
  memcpy(p + 8, header, n);
  for (size_t i = 0; i < data; i++) p[8 + n + i] = (unsigned char)i;
  const char *path = scratch_write(name, p, total);
  free(p);
  return path;
}

#define T(name, dtype, shape, from, to) "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"

static const struct bad_file {
  const char *header;
  long long header_bytes; /* -1: true */
  size_t data;
  const char *tensor, *reason; /* tensor: NULL: not about one */
} bad_files[] = {
    {"", 0, 0, NULL, "does not start with {"},
    {"{", -1, 0, NULL, "malformed JSON"},
    {" {}", -1, 0, NULL, "does not start with {"},
    {"[]", -1, 0, NULL, "does not start with {"},
    {"{}", 3, 0, NULL, "ends past the file"},
    {"{}", 1, 1, NULL, "malformed JSON"},
    {"{}", 0x7fffffffffffffff, 0, NULL, "at most 100000000"},
    {"{}", 100000000, 0, NULL, "ends past the file"},
    {"{} x", -1, 0, NULL, "after the end"},
    {"{\"a\":{{{}}}}", -1, 0, NULL, "malformed JSON"},
    {"{\"a\":[[[[[[[[[[[[]]]]]]]]]]]]}", -1, 0, NULL, "nested"},
    {"{\"a\xff\":1}", -1, 0, NULL, "invalid UTF-8"},
    {"{\"a\\u0000\":1}", -1, 0, NULL, "\\u0000"},
    {"{}", -1, 1, NULL, "1 bytes at the end"},
    {"{\"w\":1}", -1, 0, "w", "is a number"},
    {"{\"w\":{}}", -1, 0, "w", "needs dtype"},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[]}}", -1, 1, "w", "needs dtype"},
    {"{\"w\":{\"dtype\":8,\"shape\":[],\"data_offsets\":[0,1]}}", -1, 1, "w", "needs dtype"},
    {"{\"w\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", -1, 1, "w", "each once"},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1],\"x\":1}}", -1, 1, "w", "nothing else"},
    {"{" T("w", "U8", "3", 0, 3) "}", -1, 3, "w", "shape is a number"},
    {"{" T("w", "U8", "[-1]", 0, 3) "}", -1, 3, "w", "shape[0]"},
    {"{" T("w", "U8", "[1,2.5]", 0, 3) "}", -1, 3, "w", "shape[1]"},
    {"{" T("w", "U8", "[\"3\"]", 0, 3) "}", -1, 3, "w", "shape[0]"},
    {"{" T("w", "U8", "[1e300]", 0, 3) "}", -1, 3, "w", "shape[0]"},
    {"{" T("w", "U8", "[9007199254740992,9007199254740992]", 0, 3) "}", -1, 3, "w", "overflows"},
    {"{" T("w", "I64", "[4611686018427387904]", 0, 0) "}", -1, 0, "w", "shape[0]"},
    {"{" T("w", "I64", "[4503599627370496,2048]", 0, 0) "}", -1, 0, "w", "0 bytes of data"}, /* 2^63 elements: 2^69 bits */
    {"{" T("w", "U8", "[3]", 0, 4) "}", -1, 4, "w", "4 bytes of data, but its shape has 3 elements of U8"},
    {"{" T("w", "BF16", "[3]", 0, 3) "}", -1, 3, "w", "3 bytes of data, but its shape has 3 elements of BF16"},
    {"{" T("w", "F64", "[3]", 0, 3) "}", -1, 3, "w", "elements of F64"},
    {"{" T("w", "F4", "[3]", 0, 1) "}", -1, 1, "w", "elements of F4"},
    {"{" T("w", "F32", "[1,1,1,1,1]", 0, 8) "}", -1, 8, "w", "elements of F32"},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0]}}", -1, 3, "w", "data_offsets is not a pair"},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":3}}", -1, 3, "w", "data_offsets is not a pair"},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":{\"a\":0,\"b\":3}}}", -1, 3, "w", "data_offsets is not a pair"},
    {"{" T("w", "U8", "[3]", -1, 2) "}", -1, 3, "w", "data_offsets is not a pair"},
    {"{" T("w", "U8", "[3]", 3, 0) "}", -1, 3, "w", "outside"},
    {"{" T("w", "U8", "[3]", 0, 3) "}", -1, 2, "w", "outside the 2 bytes"},
    {"{" T("w", "U8", "[3]", 9007199254740989, 9007199254740992) "}", -1, 3, "w", "outside"},
    {"{" T("w", "U8", "[3]", 1, 4) "}", -1, 4, "w", "1 bytes before its data belong to no tensor"},
    {"{" T("v", "U8", "[3]", 0, 3) "," T("w", "U8", "[2]", 2, 4) "}", -1, 4, "w", "overlaps tensor \"v\""},
    {"{" T("v", "U8", "[3]", 0, 3) "," T("w", "U8", "[3]", 0, 3) "}", -1, 3, "w", "overlaps tensor \"v\""},
    {"{" T("v", "U8", "[1]", 0, 1) "," T("w", "U8", "[1]", 2, 3) "}", -1, 3, "w", "1 bytes before"},
    {"{" T("w", "U8", "[1]", 0, 1) "," T("w", "U8", "[1]", 1, 2) "}", -1, 2, "w", "twice"},
    {"{" T("w", "U8", "[1]", 0, 1) "}", -1, 5, NULL, "4 bytes at the end"},
    {"{" T("", "U8", "[1]", 0, 1) "}", -1, 1, NULL, "without a name"},
    {"{\"__metadata__\":[]}", -1, 0, NULL, "__metadata__ is an array"},
    {"{\"__metadata__\":{\"a\":1}}", -1, 0, NULL, "__metadata__.a is a number"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", -1, 0, NULL, "twice"},
};

static void test_bad_files(void **state) {
  (void)state;
  int64_t live = mav__mem_live();
  for (size_t i = 0; i < sizeof bad_files / sizeof *bad_files; i++) {
    const struct bad_file *b = &bad_files[i];
    mav_safetensors *s = (mav_safetensors *)1;
    mav_diag diag = {0};
    char quoted[32] = "";
    if (b->tensor) snprintf(quoted, sizeof quoted, "tensor \"%s\"", b->tensor);
    const char *path = write_file("bad.safetensors", b->header, b->header_bytes, b->data);
    mav_err err = mav_safetensors_open(&s, path, &diag);
    if (err != MAV_ERR_FORMAT || !strstr(diag.text, "bad.safetensors") || !strstr(diag.text, b->reason) || !strstr(diag.text, quoted))
      fail_msg("%s\n  gave %s: %s\n  wanted %s", b->header, mav_err_name(err), diag.text, b->reason);
    assert_null(s);
    assert_string_equal(diag.op, "safetensors_open");
    assert_int_equal(mav_safetensors_open(&s, path, NULL), MAV_ERR_FORMAT);
  }
  assert_int_equal(mav__mem_live(), live);
}

static void test_not_files(void **state) {
  (void)state;
  mav_safetensors *s;
  mav_diag diag;
  assert_int_equal(mav_safetensors_open(&s, scratch_path("absent"), &diag), MAV_ERR_NOTFOUND);
  assert_int_equal(diag.native, 2);
  assert_non_null(strstr(diag.text, "absent"));
  assert_int_equal(mav_safetensors_open(&s, scratch_dir, &diag), MAV_ERR_IO);
  assert_non_null(strstr(diag.text, "directory"));
  assert_int_equal(mav_safetensors_open(&s, scratch_write("empty", "", 0), &diag), MAV_ERR_FORMAT);
  assert_non_null(strstr(diag.text, "is empty"));
  assert_int_equal(mav_safetensors_open(&s, scratch_write("short", "\2\0\0", 3), &diag), MAV_ERR_FORMAT);
  assert_non_null(strstr(diag.text, "3 bytes"));
  assert_int_equal(mkfifo(scratch_path("fifo"), 0600), 0);
  assert_int_equal(mav_safetensors_open(&s, scratch_path("fifo"), &diag), MAV_ERR_IO); /* and does not block */
  assert_non_null(strstr(diag.text, "not a regular file"));
  scratch_clear();
}

static void test_good_file(void **state) {
  (void)state;
  const char *header = "{\"__metadata__\":{\"format\":\"pt\"}," T("e", "F32", "[0,7]", 24, 24) "," T("b", "BF16", "[2,3]", 8, 20) "," T(
      "a", "I64", "[]", 0, 8) "," T("c", "BOOL", "[4]", 20, 24) "}   ";
  mav_safetensors *s;
  mav_diag diag = {0};
  if (mav_safetensors_open(&s, write_file("good", header, -1, 24), &diag)) fail_msg("%s", diag.text);
  assert_int_equal(mav_safetensors_count(s), 4);
  static const char names[] = "abce"; /* by offset */
  for (int i = 0; i < 4; i++) assert_int_equal(mav_safetensors_get(s, i)->name[0], names[i]);
  assert_null(mav_safetensors_get(s, 4));
  assert_null(mav_safetensors_get(s, -1));
  const mav_safetensors_entry *b = mav__safetensors_find(s, "b");
  assert_true(b->dtype == MAV_DTYPE_BF16 && b->dims == 2 && b->shape[0] == 2 && b->shape[1] == 3 && b->bytes == 12 && !b->unreadable);
  assert_int_equal(*(const unsigned char *)b->data, 8);
  assert_int_equal(mav_safetensors_get(s, 0)->dims, 0);
  assert_int_equal(mav__safetensors_find(s, "c")->dtype, MAV_DTYPE_U8);
  assert_int_equal(mav__safetensors_find(s, "e")->bytes, 0);
  assert_null(mav__safetensors_find(s, "d"));
  mav_safetensors_close(s);
  mav_safetensors_close(NULL);
  assert_int_equal(mav_safetensors_open(&s, write_file("none", "{}", -1, 0), &diag), MAV_OK);
  assert_int_equal(mav_safetensors_count(s), 0);
  mav_safetensors_close(s);
}

/* What a vision tower brings does not spoil the file. */
static void test_unreadable_entries(void **state) {
  (void)state;
  const char *header = "{" T("five", "BF16", "[1,2,1,3,2]", 0, 24) "," T("f64", "F64", "[1]", 24, 32) "," T(
      "odd", "Q7_X", "[2]", 32, 35) "," T("w", "U8", "[1]", 35, 36) "," T("f4", "F4", "[2,2]", 36, 38) "}";
  mav_safetensors *s;
  mav_diag diag = {0};
  if (mav_safetensors_open(&s, write_file("vision", header, -1, 38), &diag)) fail_msg("%s", diag.text);
  assert_int_equal(mav_safetensors_count(s), 5);
  const mav_safetensors_entry *e = mav__safetensors_find(s, "five");
  assert_non_null(strstr(e->unreadable, "5 dimensions"));
  assert_int_equal(e->dims, 0); /* nobody walks past the four sizes */
  assert_string_equal(mav__safetensors_find(s, "f64")->unreadable, "dtype F64 is not supported");
  assert_string_equal(mav__safetensors_find(s, "odd")->unreadable, "dtype Q7_X is not supported");
  assert_int_equal(mav__safetensors_find(s, "odd")->bytes, 3);
  assert_int_equal(mav__safetensors_find(s, "f4")->dtype, MAV_DTYPE_COUNT);
  assert_null(mav__safetensors_find(s, "w")->unreadable);
  mav_safetensors_close(s);
}

/* ---- writing ---- */

static mav_runtime *open_runtime(void) {
  mav_runtime *rt;
  mav_diag diag = {0};
  mav_runtime_options options = {.device = "ref", .threads = 1};
  if (mav_runtime_new(&rt, &options, &diag)) fail_msg("%s", diag.text);
  return rt;
}

static mav_tensor *make(mav_runtime *rt, mav_dtype dtype, int dims, const int64_t *shape) {
  mav_tensor *t;
  unsigned char bytes[64];
  for (int i = 0; i < 64; i++) bytes[i] = (unsigned char)(i * 3 + (int)dtype);
  assert_int_equal(mav_tensor_new(&t, rt, dtype, dims, shape), MAV_OK);
  assert_int_equal(mav_tensor_write(t, bytes, (size_t)mav_tensor_count(t) * mav_dtype_bytes(dtype)), MAV_OK);
  return t;
}

static size_t read_all(const char *path, unsigned char *out, size_t room) {
  FILE *f = fopen(path, "rb");
  size_t n = f ? fread(out, 1, room, f) : 0;
  if (f) fclose(f);
  return n;
}

static void test_write(void **state) {
  (void)state;
  mav_runtime *rt = open_runtime();
  static const char *const names[] = {"z", "a\"\\\n", "model.h\xc3\xa9", "i", "u8", "f8", "scalar"};
  mav_tensor *t[7] = {make(rt, MAV_DTYPE_BF16, 2, (int64_t[]){3, 2}),
                      make(rt, MAV_DTYPE_F32, 1, (int64_t[]){3}),
                      make(rt, MAV_DTYPE_F16, 1, (int64_t[]){1}),
                      make(rt, MAV_DTYPE_I64, 1, (int64_t[]){2}),
                      make(rt, MAV_DTYPE_U8, 1, (int64_t[]){3}),
                      make(rt, MAV_DTYPE_F8, 3, (int64_t[]){1, 2, 2}),
                      make(rt, MAV_DTYPE_I32, 0, NULL)};
  mav_diag diag = {0};
  mav_safetensors *s;
  scratch_clear();
  if (mav_safetensors_write(scratch_path("one"), 7, names, t, &diag)) fail_msg("%s", diag.text);
  if (mav_safetensors_open(&s, scratch_path("one"), &diag)) fail_msg("%s", diag.text);
  assert_int_equal(mav_safetensors_count(s), 7);
  assert_int_equal((uintptr_t)mav_safetensors_get(s, 0)->data % 64, 0);
  for (int i = 0; i < 7; i++) {
    const mav_safetensors_entry *e = mav__safetensors_find(s, names[i]);
    void *data;
    assert_non_null(e);
    assert_int_equal(e->dtype, mav_tensor_dtype(t[i]));
    assert_int_equal(e->dims, mav_tensor_dims(t[i]));
    for (int d = 0; d < e->dims; d++) assert_int_equal(e->shape[d], mav_tensor_size(t[i], d));
    assert_int_equal((uintptr_t)e->data % mav_dtype_bytes(e->dtype), 0);
    assert_int_equal(mav_tensor_data(t[i], &data), MAV_OK);
    assert_memory_equal(e->data, data, e->bytes);
  }
  mav_safetensors_close(s);

  /* The order given does not matter. */
  const char *backward_names[7];
  mav_tensor *backward[7];
  for (int i = 0; i < 7; i++) backward_names[i] = names[6 - i], backward[i] = t[6 - i];
  assert_int_equal(mav_safetensors_write(scratch_path("two"), 7, backward_names, backward, &diag), MAV_OK);
  unsigned char one[4096], two[4096];
  size_t n = read_all(scratch_path("one"), one, sizeof one);
  assert_true(n > 0 && n < sizeof one);
  assert_int_equal(read_all(scratch_path("two"), two, sizeof two), n);
  assert_memory_equal(one, two, n);
  assert_int_equal(scratch_files(), 2); /* no temporary is left */

  /* An existing file is replaced; an empty list is a file too. */
  assert_int_equal(mav_safetensors_write(scratch_path("two"), 0, NULL, NULL, &diag), MAV_OK);
  assert_int_equal(mav_safetensors_open(&s, scratch_path("two"), &diag), MAV_OK);
  assert_int_equal(mav_safetensors_count(s), 0);
  mav_safetensors_close(s);

  static const struct {
    const char *first, *second, *reason;
  } bad[] = {
      {"a", "a", "\"a\" is there twice"}, {"a", "", "without a name"}, {"__metadata__", "b", "reserved"}, {"a", "\xff", "not UTF-8"}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    const char *pair[2] = {bad[i].first, bad[i].second};
    assert_int_equal(mav_safetensors_write(scratch_path("three"), 2, pair, t, &diag), MAV_ERR_INVALID);
    if (!strstr(diag.text, bad[i].reason) || !strstr(diag.text, "three")) fail_msg("%s", diag.text);
  }
  assert_int_equal(mav_safetensors_write(scratch_path("no/such"), 1, names, t, &diag), MAV_ERR_IO);
  assert_int_equal(mav_safetensors_write(scratch_dir, 1, names, t, &diag), MAV_ERR_IO);
  mav_tensor *turned;
  assert_int_equal(mav_tensor_transpose(&turned, t[0], 0, 1), MAV_OK);
  assert_true(mav_safetensors_write(scratch_path("three"), 1, names, &turned, &diag) != MAV_OK); /* not contiguous */
  assert_non_null(strstr(diag.text, "tensor \"z\""));
  assert_int_equal(scratch_files(), 2);
  mav_tensor_release(turned);

  /* A write that stops half way leaves the old file and nothing else. */
  struct rlimit kept, small = {.rlim_cur = 100, .rlim_max = RLIM_INFINITY};
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &kept), 0);
  small.rlim_max = kept.rlim_max;
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  mav_err err = mav_safetensors_write(scratch_path("one"), 7, names, t, &diag);
  setrlimit(RLIMIT_FSIZE, &kept);
  signal(SIGXFSZ, SIG_DFL);
  assert_int_equal(err, MAV_ERR_IO);
  assert_int_equal(diag.native, EFBIG);
  assert_int_equal(scratch_files(), 2);
  assert_int_equal(read_all(scratch_path("one"), two, sizeof two), n);
  assert_memory_equal(one, two, n);

  for (int i = 0; i < 7; i++) mav_tensor_release(t[i]);
  mav_runtime_release(rt);
}

static void test_failing_memory(void **state) {
  (void)state;
  mav_runtime *rt = open_runtime();
  mav_tensor *t[2] = {make(rt, MAV_DTYPE_BF16, 2, (int64_t[]){3, 2}), make(rt, MAV_DTYPE_F32, 1, (int64_t[]){3})};
  static const char *const names[] = {"a", "b"};
  int64_t live = mav__mem_live();
  int failures = 0;
  scratch_clear();
  for (;; failures++) {
    mav_diag diag = {0};
    mav_safetensors *s = NULL;
    mav__mem_fail_at(failures + 1);
    mav_err err = mav_safetensors_write(scratch_path("x"), 2, names, t, &diag);
    if (!err) err = mav_safetensors_open(&s, scratch_path("x"), &diag);
    mav__mem_fail_at(0);
    mav_safetensors_close(s);
    assert_int_equal(mav__mem_live(), live);
    assert_int_equal(diag.code, err);
    assert_true(scratch_files() <= 1);
    if (!err) break;
    assert_int_equal(err, MAV_ERR_NOMEM);
  }
  assert_true(failures >= 8);
  mav_tensor_release(t[0]);
  mav_tensor_release(t[1]);
  mav_runtime_release(rt);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_bad_files),          cmocka_unit_test(test_not_files), cmocka_unit_test(test_good_file),
      cmocka_unit_test(test_unreadable_entries), cmocka_unit_test(test_write),     cmocka_unit_test(test_failing_memory),
  };
  return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
