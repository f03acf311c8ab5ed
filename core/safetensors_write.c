/* core/safetensors_write.c - writing a safetensors file.
 * The bytes depend on the tensors alone, not on the order they are given in: widest dtype first, then by name, so that every
 * tensor is aligned to its own elements without holes (the format has none); the header is padded with spaces until the data
 * starts at a multiple of 64. Refuses names that are empty, repeated, reserved or not UTF-8, and tensors that the host cannot
 * read. Nothing appears under the final name unless all was written and synced. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "err.h"
#include "file.h"
#include "mem.h"
#include "utf8.h"

#define OP "safetensors_write"

typedef struct item {
  const char *name;
  mav_tensor *tensor;
  const void *data; /* NULL: on a device */
  size_t bytes;
} item;

typedef struct text {
  char *p;
  size_t used, room;
} text;

static const char *dtype_name(mav_dtype t) {
  switch (t) {
    case MAV_DTYPE_F32: return "F32";
    case MAV_DTYPE_BF16: return "BF16";
    case MAV_DTYPE_F16: return "F16";
    case MAV_DTYPE_F8: return "F8_E4M3";
    case MAV_DTYPE_I32: return "I32";
    case MAV_DTYPE_I64: return "I64";
    case MAV_DTYPE_U8: return "U8";
    case MAV_DTYPE_COUNT: break;
  }
  return NULL;
}

static mav_err append(text *t, const char *p, size_t n) {
  if (t->room - t->used < n) {
    size_t room = 2 * (t->room + n) + 256;
    char *grown = mav__realloc(t->p, room);
    if (!grown) return MAV_ERR_NOMEM;
    t->p = grown;
    t->room = room;
  }
  memcpy(t->p + t->used, p, n);
  t->used += n;
  return MAV_OK;
}

static mav_err append_quoted(text *t, const char *s) {
  char code[8];
  MAV_TRY(append(t, "\"", 1));
  for (; *s; s++) {
    if ((unsigned char)*s >= 32 && *s != '"' && *s != '\\') MAV_TRY(append(t, s, 1));
    else MAV_TRY(append(t, code, (size_t)snprintf(code, sizeof code, "\\u%04x", (unsigned char)*s)));
  }
  return append(t, "\"", 1);
}

static mav_err append_entry(text *t, const item *it, size_t begin) {
  char number[64];
  MAV_TRY(append(t, t->used > 8 + 1 ? "," : "", t->used > 8 + 1));
  MAV_TRY(append_quoted(t, it->name));
  const char *dtype = dtype_name(mav_tensor_dtype(it->tensor));
  MAV_TRY(append(t, number, (size_t)snprintf(number, sizeof number, ":{\"dtype\":\"%s\",\"shape\":[", dtype)));
  for (int d = 0; d < mav_tensor_dims(it->tensor); d++) {
    int n = snprintf(number, sizeof number, "%s%lld", d ? "," : "", (long long)mav_tensor_size(it->tensor, d));
    MAV_TRY(append(t, number, (size_t)n));
  }
  int n = snprintf(number, sizeof number, "],\"data_offsets\":[%zu,%zu]}", begin, begin + it->bytes);
  return append(t, number, (size_t)n);
}

/* Length, JSON and padding. */
static mav_err make_header(text *t, const item *items, int count) {
  size_t begin = 0;
  MAV_TRY(append(t, "\0\0\0\0\0\0\0\0{", 9));
  for (int i = 0; i < count; i++) {
    MAV_TRY(append_entry(t, &items[i], begin));
    begin += items[i].bytes;
  }
  MAV_TRY(append(t, "}", 1));
  while (t->used % 64) MAV_TRY(append(t, " ", 1));
  uint64_t n = t->used - 8;
  for (int i = 0; i < 8; i++, n >>= 8) t->p[i] = (char)(n & 255);
  return MAV_OK;
}

static int by_width_and_name(const void *x, const void *y) {
  const item *a = x, *b = y;
  size_t a_width = mav_dtype_bytes(mav_tensor_dtype(a->tensor)), b_width = mav_dtype_bytes(mav_tensor_dtype(b->tensor));
  return a_width != b_width ? (a_width < b_width) - (a_width > b_width) : strcmp(a->name, b->name);
}

static int by_name(const void *x, const void *y) { return strcmp(((const item *)x)->name, ((const item *)y)->name); }

static mav_err check_item(item *it, const char *path, mav_diag *diag) {
  const char *name = it->name;
  if (!name || !name[0]) return MAV_FAIL(diag, INVALID, OP, "%s: a tensor without a name", path);
  if (!strcmp(name, "__metadata__")) return MAV_FAIL(diag, INVALID, OP, "%s: the name \"__metadata__\" is reserved", path);
  if (mav__utf8_check(name, strlen(name)) != strlen(name)) return MAV_FAIL(diag, INVALID, OP, "%s: a name that is not UTF-8", path);
  void *data = NULL;
  mav_err err = mav_tensor_data(it->tensor, &data);
  if (err && err != MAV_ERR_UNSUPPORTED) {
    const mav_diag *why = mav_runtime_diag(mav_tensor_runtime(it->tensor));
    return mav__diag_set(diag, err, OP, __FILE__, __LINE__, 0, "%s: tensor \"%.100s\": %.200s", path, name, why->text);
  }
  it->data = data;
  it->bytes = (size_t)mav_tensor_count(it->tensor) * mav_dtype_bytes(mav_tensor_dtype(it->tensor));
  return MAV_OK;
}

static mav_err put_item(mav__writer *w, const item *it, const char *path, mav_diag *diag) {
  if (it->data || !it->bytes) return mav__writer_put(w, it->data, it->bytes);
  void *staged = mav__alloc(it->bytes);
  if (!staged) return MAV_FAIL(diag, NOMEM, OP, "%s: out of memory", path);
  mav_err err = mav_tensor_read(it->tensor, staged, it->bytes);
  if (err && diag) *diag = *mav_runtime_diag(mav_tensor_runtime(it->tensor));
  if (!err) err = mav__writer_put(w, staged, it->bytes);
  mav__free(staged);
  return err;
}

mav_err mav_safetensors_write(const char *path, int count, const char *const *names, mav_tensor *const *tensors, mav_diag *diag) {
  const char *where = mav__path_short(path);
  mav_err err = MAV_OK;
  text header = {0};
  mav__writer w = {.fd = -1};
  struct stat st;
  if (count < 0) return MAV_FAIL(diag, INVALID, OP, "%s: %d tensors", where, count);
  if (!*path) return MAV_FAIL(diag, INVALID, OP, "the file has no name");
  if (lstat(path, &st) == 0 && !S_ISREG(st.st_mode)) /* the rename would put a file in its place */
    return MAV_FAIL(diag, IO, OP, "%s: exists and is not a regular file", where);
  item *items = mav__alloc(((size_t)count + 1) * sizeof *items);
  if (!items) MAV_GOTO(MAV_FAIL(diag, NOMEM, OP, "%s: out of memory", where));
  for (int i = 0; i < count; i++) {
    items[i] = (item){.name = names[i], .tensor = tensors[i]};
    MAV_GOTO(check_item(&items[i], where, diag));
  }
  qsort(items, (size_t)count, sizeof *items, by_name);
  for (int i = 1; i < count; i++)
    if (!strcmp(items[i - 1].name, items[i].name))
      MAV_GOTO(MAV_FAIL(diag, INVALID, OP, "%s: tensor \"%.100s\" is there twice", where, items[i].name));
  qsort(items, (size_t)count, sizeof *items, by_width_and_name);
  if (make_header(&header, items, count)) MAV_GOTO(MAV_FAIL(diag, NOMEM, OP, "%s: out of memory", where));
  MAV_GOTO(mav__writer_begin(&w, path, OP, diag));
  MAV_GOTO(mav__writer_put(&w, header.p, header.used));
  for (int i = 0; i < count; i++) MAV_GOTO(put_item(&w, &items[i], where, diag));
  err = mav__writer_commit(&w);
done:
  mav__writer_abort(&w);
  mav__free(header.p);
  mav__free(items);
  return err;
}
