/* tests/core/test_weights.c - one file and shards, tensors on mapped memory, directories that lie, failing memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mav.h"
#include "mem.h"
#include "scratch.h"

#define INDEX "model.safetensors.index.json"

static mav_runtime *rt;

static int setup(void **state) {
  mav_runtime_options options = {.device = "ref", .threads = 1};
  return scratch_setup(state) || mav_runtime_new(&rt, &options, NULL);
}

static int teardown(void **state) {
  mav_runtime_release(rt);
  return scratch_teardown(state);
}

/* Data bytes count up from `first`. The header is padded so that the data starts at a multiple of 8 plus `skew`. */
static void write_shard(const char *name, const char *header, size_t data, int first, size_t skew) {
  size_t n = strlen(header);
  while (n % 8 != skew) n++;
  unsigned char *p = calloc(1, 8 + n + data);
  for (int i = 0; i < 8; i++) p[i] = (unsigned char)((uint64_t)n >> 8 * i & 255);
  memset(p + 8, ' ', n);
  memcpy(p + 8, header, strlen(header));
  for (size_t i = 0; i < data; i++) p[8 + n + i] = (unsigned char)((int)i + first);
  scratch_write(name, p, 8 + n + data);
  free(p);
}

#define T(name, dtype, shape, from, to) "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"
#define SHARD_1 "{" T("a", "BF16", "[2,2]", 0, 8) "," T("vision", "F64", "[1]", 8, 16) "}"
#define SHARD_2 "{" T("b", "U8", "[3]", 0, 3) "," T("unlisted", "U8", "[1]", 3, 4) "}"

static void write_sharded(const char *index) {
  scratch_clear();
  write_shard("s1.safetensors", SHARD_1, 16, 0, 0);
  write_shard("s2.safetensors", SHARD_2, 4, 100, 0);
  scratch_write(INDEX, index, strlen(index));
}

static mav_weights *open_dir(void) {
  mav_weights *w;
  if (mav_weights_open(&w, rt, scratch_dir)) fail_msg("%s", mav_runtime_diag(rt)->text);
  return w;
}

static void test_sharded(void **state) {
  (void)state;
  write_sharded(
      "{\"metadata\":{\"total_size\":19},\"weight_map\":{\"b\":\"s2.safetensors\",\"a\":\"s1.safetensors\",\"vision\":\"s1.safetensors\"}"
      "}");
  mav_weights *w = open_dir();
  assert_int_equal(mav_weights_count(w), 3);
  assert_string_equal(mav_weights_name(w, 0), "b");
  assert_null(mav_weights_name(w, 3));
  assert_null(mav_weights_name(w, -1));
  assert_null(mav_weights_entry(w, "unlisted"));
  assert_int_equal(mav_weights_entry(w, "b")->bytes, 3);

  mav_tensor *a, *none = (mav_tensor *)1;
  void *data;
  assert_int_equal(mav_weights_get(w, "a", &a), MAV_OK);
  assert_int_equal(mav_tensor_dtype(a), MAV_DTYPE_BF16);
  assert_int_equal(mav_tensor_size(a, 1), 2);
  assert_ptr_equal(mav_weights_entry(w, "a")->data, mav_tensor_data(a, &data) ? NULL : data); /* mapped, not copied */
  assert_true(mav_tensor_write(a, "12345678", 8) != MAV_OK);                                  /* read only */

  assert_int_equal(mav_weights_get(w, "vision", &none), MAV_ERR_UNSUPPORTED);
  assert_null(none);
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "s1.safetensors"));
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "\"vision\""));
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "F64"));
  assert_int_equal(mav_weights_get(w, "unlisted", &none), MAV_ERR_NOTFOUND);
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "\"unlisted\""));

  /* The tensor keeps the mapping alive, even of files that are gone. */
  mav_weights_release(mav_weights_retain(w));
  mav_weights_release(w);
  mav_weights_release(NULL);
  scratch_clear();
  unsigned char bytes[8];
  assert_int_equal(mav_tensor_read(a, bytes, 8), MAV_OK);
  for (int i = 0; i < 8; i++) assert_int_equal(bytes[i], i);
  mav_tensor_release(a);
}

/* model.safetensors wins over an index, as in transformers; misaligned data is copied. */
static void test_single(void **state) {
  (void)state;
  write_sharded("not read");
  write_shard("model.safetensors", "{" T("x", "F32", "[2]", 0, 8) "," T("y", "U8", "[1]", 8, 9) "}", 9, 7, 5);
  mav_weights *w = open_dir();
  assert_int_equal(mav_weights_count(w), 2);
  mav_tensor *x, *y;
  void *data;
  unsigned char bytes[8];
  assert_int_equal(mav_weights_get(w, "x", &x), MAV_OK);
  assert_int_equal(mav_tensor_data(x, &data), MAV_OK);
  assert_int_equal((uintptr_t)data % 4, 0);
  assert_int_equal(mav_tensor_read(x, bytes, 8), MAV_OK);
  for (int i = 0; i < 8; i++) assert_int_equal(bytes[i], 7 + i);
  assert_true(mav_tensor_write(x, bytes, 8) != MAV_OK);
  assert_int_equal(mav_weights_get(w, "y", &y), MAV_OK);
  assert_int_equal(mav_tensor_data(y, &data), MAV_OK);
  assert_ptr_equal(data, mav_weights_entry(w, "y")->data);
  mav_tensor_release(x);
  mav_weights_release(w);
  mav_tensor_release(y);
}

static const struct bad_index {
  const char *text;
  mav_err code;
  const char *file, *reason;
} bad_indexes[] = {
    {"", MAV_ERR_FORMAT, INDEX, "empty"},
    {"{", MAV_ERR_FORMAT, INDEX, "malformed JSON"},
    {"[]", MAV_ERR_FORMAT, INDEX, "weight_map is nothing"},
    {"{\"weight_map\":[]}", MAV_ERR_FORMAT, INDEX, "weight_map is an array"},
    {"{\"weight_map\":{\"a\":1}}", MAV_ERR_FORMAT, INDEX, "tensor \"a\": its shard is a number"},
    {"{\"weight_map\":{\"a\":\"s3.safetensors\"}}", MAV_ERR_NOTFOUND, "s3.safetensors", "No such file"},
    {"{\"weight_map\":{\"a\":\"s2.safetensors\"}}", MAV_ERR_FORMAT, INDEX, "tensor \"a\" is not in its shard s2.safetensors"},
    {"{\"weight_map\":{\"a\":\"s1.safetensors\",\"a\":\"s1.safetensors\"}}", MAV_ERR_FORMAT, INDEX, "tensor \"a\" is there twice"},
    {"{\"weight_map\":{\"a\":\"" INDEX "\"}}", MAV_ERR_FORMAT, INDEX, "header"},
    {"{\"weight_map\":{\"a\":\"\"}}", MAV_ERR_FORMAT, INDEX, "not inside"},
    {"{\"weight_map\":{\"a\":\".\"}}", MAV_ERR_FORMAT, INDEX, "not inside"},
    {"{\"weight_map\":{\"a\":\"..\"}}", MAV_ERR_FORMAT, INDEX, "not inside"},
    {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", MAV_ERR_FORMAT, INDEX, "\"/etc/passwd\" is not inside"},
    {"{\"weight_map\":{\"a\":\"../x/s1.safetensors\"}}", MAV_ERR_FORMAT, INDEX, "not inside"},
    {"{\"weight_map\":{\"a\":\"x/../../s1.safetensors\"}}", MAV_ERR_FORMAT, INDEX, "not inside"},
    {"{\"weight_map\":{\"a\":\"x//s1.safetensors\"}}", MAV_ERR_FORMAT, INDEX, "not inside"},
    {"{\"weight_map\":{\"a\":\"x/s1.safetensors\"}}", MAV_ERR_NOTFOUND, "x/s1.safetensors", "No such file"},
};

static void test_bad_indexes(void **state) {
  (void)state;
  int64_t live = mav__mem_live();
  for (size_t i = 0; i < sizeof bad_indexes / sizeof *bad_indexes; i++) {
    const struct bad_index *b = &bad_indexes[i];
    mav_weights *w = (mav_weights *)1;
    write_sharded(b->text);
    mav_err err = mav_weights_open(&w, rt, scratch_dir);
    const char *text = mav_runtime_diag(rt)->text;
    if (err != b->code || !strstr(text, b->file) || !strstr(text, b->reason))
      fail_msg("%s\n  gave %s: %s\n  wanted %s: %s", b->text, mav_err_name(err), text, b->file, b->reason);
    assert_null(w);
  }
  assert_int_equal(mav__mem_live(), live);
}

static void test_no_weights(void **state) {
  (void)state;
  mav_weights *w;
  scratch_clear();
  assert_int_equal(mav_weights_open(&w, rt, scratch_dir), MAV_ERR_NOTFOUND);
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "model.safetensors"));
  assert_int_equal(mav_weights_open(&w, rt, scratch_path("absent")), MAV_ERR_NOTFOUND);
  assert_non_null(strstr(mav_runtime_diag(rt)->text, "absent: no such directory"));
}

/* Thousands of names: every one is found. */
static void test_many(void **state) {
  (void)state;
  enum { COUNT = 5000 };
  char *header = malloc(COUNT * 100), *p = header, name[40];
  *p++ = '{';
  for (int i = 0; i < COUNT; i++)
    p += sprintf(p, "%s\"layers.%d.w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}", i ? "," : "", i, i, i + 1);
  strcpy(p, "}");
  scratch_clear();
  write_shard("model.safetensors", header, COUNT, 0, 0);
  free(header);
  mav_weights *w = open_dir();
  for (int i = 0; i < COUNT; i++) {
    sprintf(name, "layers.%d.w", i);
    assert_int_equal(*(const unsigned char *)mav_weights_entry(w, name)->data, i & 255);
  }
  assert_null(mav_weights_entry(w, "layers.5000.w"));
  mav_weights_release(w);
}

static void test_failing_memory(void **state) {
  (void)state;
  write_sharded("{\"weight_map\":{\"b\":\"s2.safetensors\",\"a\":\"s1.safetensors\"}}");
  int64_t live = mav__mem_live();
  int failures = 0;
  for (;; failures++) {
    mav_weights *w = NULL;
    mav_tensor *a = NULL;
    mav__mem_fail_at(failures + 1);
    mav_err err = mav_weights_open(&w, rt, scratch_dir);
    if (!err) err = mav_weights_get(w, "a", &a);
    mav__mem_fail_at(0);
    mav_tensor_release(a);
    mav_weights_release(w);
    assert_int_equal(mav__mem_live(), live);
    if (!err) break;
    assert_int_equal(err, MAV_ERR_NOMEM);
  }
  assert_true(failures >= 20);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sharded),    cmocka_unit_test(test_single), cmocka_unit_test(test_bad_indexes),
      cmocka_unit_test(test_no_weights), cmocka_unit_test(test_many),   cmocka_unit_test(test_failing_memory),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
