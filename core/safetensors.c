/* core/safetensors.c - opening a safetensors file.
 *
 *   u64 n (little endian) | n bytes of JSON: {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...} | data
 *
 * Nothing of the data is touched before all is checked: (1) the header lies inside the file and is JSON of the expected form;
 * (2) names are unique; (3) shape times dtype is the length of the range, without overflow; (4) the ranges, sorted, cover the
 * data exactly: no overlap, no hole, nothing behind. An entry of a dtype or rank that tensors cannot have (vision towers bring
 * them) is listed with its reason and does not spoil the file. The mapping lives until close. Any thread may read. */
#include "safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "err.h"
#include "file.h"
#include "json.h"
#include "mem.h"
#include "table.h"

#define OP "safetensors_open"
#define HEADER_MAX 100000000u /* of the format's own library */
#define DEPTH_MAX 8
#define REASON_ROOM 64

struct mav_safetensors {
  mav__file file;
  char *path;
  char *arena;                  /* names and reasons */
  mav_safetensors_entry *entry; /* (count) by offset */
  mav__span *name;              /* (count) keys of the table */
  mav__table table;
  int count;
};

/* Every dtype of the format, so that sizes can be checked; kind MAV_DTYPE_COUNT: no tensor of ours. */
static const struct dtype_row {
  const char *name;
  int bits;
  mav_dtype kind;
} dtypes[] = {
    {"BF16", 16, MAV_DTYPE_BF16},    {"F32", 32, MAV_DTYPE_F32},      {"F16", 16, MAV_DTYPE_F16},     {"F8_E4M3", 8, MAV_DTYPE_F8},
    {"I32", 32, MAV_DTYPE_I32},      {"I64", 64, MAV_DTYPE_I64},      {"U8", 8, MAV_DTYPE_U8},        {"BOOL", 8, MAV_DTYPE_U8},
    {"I8", 8, MAV_DTYPE_COUNT},      {"F8_E5M2", 8, MAV_DTYPE_COUNT}, {"F8_E8M0", 8, MAV_DTYPE_COUNT}, {"I16", 16, MAV_DTYPE_COUNT},
    {"U16", 16, MAV_DTYPE_COUNT},    {"U32", 32, MAV_DTYPE_COUNT},    {"U64", 64, MAV_DTYPE_COUNT},   {"F64", 64, MAV_DTYPE_COUNT},
    {"C64", 64, MAV_DTYPE_COUNT},    {"F4", 4, MAV_DTYPE_COUNT},      {"F6_E2M3", 6, MAV_DTYPE_COUNT}, {"F6_E3M2", 6, MAV_DTYPE_COUNT},
};

typedef struct reader {
  mav_safetensors *s;
  const char *path; /* short */
  size_t data_at, data_bytes;
  char *room; /* next free byte of the arena */
  mav_diag *diag;
} reader;

#define BAD(r, ...) MAV_FAIL((r)->diag, FORMAT, OP, "%s: " __VA_ARGS__)
#define BAD_TENSOR(r, name, ...) MAV_FAIL((r)->diag, FORMAT, OP, "%s: tensor \"%.100s\": " __VA_ARGS__)

static const struct dtype_row *find_dtype(const char *name) {
  for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
    if (!strcmp(dtypes[i].name, name)) return &dtypes[i];
  return NULL;
}

static const char *keep(reader *r, const char *text) {
  size_t n = strlen(text) + 1;
  char *at = memcpy(r->room, text, n);
  r->room += n;
  return at;
}

/* shape -> e->dims, e->shape, and the count of elements. */
static mav_err read_shape(reader *r, const cJSON *shape, mav_safetensors_entry *e, int *dims, uint64_t *count) {
  *dims = 0;
  *count = 1;
  if (!cJSON_IsArray(shape)) return BAD_TENSOR(r, e->name, "shape is %s; an array is needed", r->path, e->name, mav__json_kind(shape));
  for (const cJSON *item = shape->child; item; item = item->next, ++*dims) {
    int64_t n;
    if (!mav__json_int(item, 0, INT64_C(1) << 53, &n)) return BAD_TENSOR(r, e->name, "shape[%d] is not a size", r->path, e->name, *dims);
    if (__builtin_mul_overflow(*count, (uint64_t)n, count))
      return BAD_TENSOR(r, e->name, "the product of its shape overflows", r->path, e->name);
    if (*dims < MAV_DIMS_MAX) e->shape[*dims] = n;
  }
  e->dims = *dims <= MAV_DIMS_MAX ? *dims : 0;
  return MAV_OK;
}

static mav_err read_entry(reader *r, const cJSON *item, mav_safetensors_entry *e) {
  const cJSON *dtype = mav__json_get(item, "dtype"), *shape = mav__json_get(item, "shape"), *range = mav__json_get(item, "data_offsets");
  int64_t begin, end;
  int dims;
  uint64_t count, bits;
  char reason[REASON_ROOM];
  e->name = keep(r, item->string);
  if (!e->name[0]) return BAD(r, "a tensor without a name", r->path);
  if (!cJSON_IsObject(item)) return BAD_TENSOR(r, e->name, "its entry is %s; an object is needed", r->path, e->name, mav__json_kind(item));
  if (!cJSON_IsString(dtype) || !shape || !range || cJSON_GetArraySize(item) != 3)
    return BAD_TENSOR(r, e->name, "its entry needs dtype, shape and data_offsets, each once and nothing else", r->path, e->name);
  MAV_TRY(read_shape(r, shape, e, &dims, &count));
  if (!cJSON_IsArray(range) || cJSON_GetArraySize(range) != 2 || !mav__json_int(range->child, 0, INT64_C(1) << 53, &begin) ||
      !mav__json_int(range->child->next, 0, INT64_C(1) << 53, &end))
    return BAD_TENSOR(r, e->name, "data_offsets is not a pair of offsets", r->path, e->name);
  if (begin > end || (uint64_t)end > r->data_bytes)
    return BAD_TENSOR(r, e->name, "data_offsets [%lld, %lld] lie outside the %zu bytes of data", r->path, e->name, (long long)begin,
                      (long long)end, r->data_bytes);
  e->data = r->s->file.data + r->data_at + begin;
  e->bytes = (size_t)(end - begin);

  const struct dtype_row *row = find_dtype(dtype->valuestring);
  e->dtype = row ? row->kind : MAV_DTYPE_COUNT;
  if (row && (__builtin_mul_overflow(count, (uint64_t)row->bits, &bits) || bits % 8 || bits / 8 != e->bytes))
    return BAD_TENSOR(r, e->name, "%zu bytes of data, but its shape has %llu elements of %s", r->path, e->name, e->bytes,
                      (unsigned long long)count, row->name);
  reason[0] = 0;
  if (e->dtype == MAV_DTYPE_COUNT) snprintf(reason, sizeof reason, "dtype %.24s is not supported", dtype->valuestring);
  else if (dims > MAV_DIMS_MAX) snprintf(reason, sizeof reason, "%d dimensions; at most %d are supported", dims, MAV_DIMS_MAX);
  if (reason[0]) e->unreadable = keep(r, reason);
  return MAV_OK;
}

static mav_err read_metadata(reader *r, const cJSON *item) {
  if (!cJSON_IsObject(item)) return BAD(r, "__metadata__ is %s; an object is needed", r->path, mav__json_kind(item));
  for (const cJSON *pair = item->child; pair; pair = pair->next)
    if (!cJSON_IsString(pair)) return BAD(r, "__metadata__.%.60s is %s; a string is needed", r->path, pair->string, mav__json_kind(pair));
  return MAV_OK;
}

static int by_offset(const void *x, const void *y) {
  const mav_safetensors_entry *a = x, *b = y;
  const char *a_data = a->data, *b_data = b->data;
  if (a_data != b_data) return a_data < b_data ? -1 : 1;
  if (a->bytes != b->bytes) return a->bytes < b->bytes ? -1 : 1;
  return strcmp(a->name, b->name);
}

/* Unique names; ranges that cover the data exactly. */
static mav_err check_entries(reader *r) {
  mav_safetensors *s = r->s;
  const char *base = s->file.data + r->data_at, *at = base;
  if (s->count) qsort(s->entry, (size_t)s->count, sizeof *s->entry, by_offset);
  for (int i = 0; i < s->count; i++) {
    s->name[i] = (mav__span){s->entry[i].name, strlen(s->entry[i].name)};
    if (mav__table_add(&s->table, s->name, i) >= 0) return BAD_TENSOR(r, s->entry[i].name, "is there twice", r->path, s->entry[i].name);
  }
  for (int i = 0; i < s->count; i++) {
    const mav_safetensors_entry *e = &s->entry[i];
    const char *data = e->data;
    if (data < at) return BAD_TENSOR(r, e->name, "its data overlaps tensor \"%.100s\"", r->path, e->name, s->entry[i - 1].name);
    if (data > at) return BAD_TENSOR(r, e->name, "%zu bytes before its data belong to no tensor", r->path, e->name, (size_t)(data - at));
    at = data + e->bytes;
  }
  if ((size_t)(at - base) != r->data_bytes)
    return BAD(r, "%zu bytes at the end belong to no tensor", r->path, r->data_bytes - (size_t)(at - base));
  return MAV_OK;
}

static mav_err read_header(reader *r, const cJSON *root) {
  mav_safetensors *s = r->s;
  size_t names = 0;
  int count = 0;
  if (!cJSON_IsObject(root)) return BAD(r, "the header is %s; an object is needed", r->path, mav__json_kind(root));
  for (const cJSON *item = root->child; item; item = item->next, count++) {
    names += strlen(item->string) + 1;
    const cJSON *dtype = mav__json_get(item, "dtype");
    if (!cJSON_IsString(dtype) || !find_dtype(dtype->valuestring) || find_dtype(dtype->valuestring)->kind == MAV_DTYPE_COUNT ||
        cJSON_GetArraySize(mav__json_get(item, "shape")) > MAV_DIMS_MAX)
      names += REASON_ROOM;
  }
  s->arena = r->room = mav__alloc(names + 1);
  s->entry = mav__alloc((size_t)(count + 1) * sizeof *s->entry);
  s->name = mav__alloc((size_t)(count + 1) * sizeof *s->name);
  if (!s->arena || !s->entry || !s->name || mav__table_init(&s->table, (size_t)count))
    return MAV_FAIL(r->diag, NOMEM, OP, "%s: out of memory", r->path);
  bool metadata = false;
  for (const cJSON *item = root->child; item; item = item->next) {
    if (strcmp(item->string, "__metadata__") != 0) {
      MAV_TRY(read_entry(r, item, &s->entry[s->count]));
      s->count++;
      continue;
    }
    if (metadata) return BAD(r, "__metadata__ is there twice", r->path);
    metadata = true;
    MAV_TRY(read_metadata(r, item));
  }
  return check_entries(r);
}

mav_err mav_safetensors_open(mav_safetensors **out, const char *path, mav_diag *diag) {
  *out = NULL;
  mav_err err = MAV_OK;
  cJSON *root = NULL;
  reader r = {.path = mav__path_short(path), .diag = diag};
  mav_safetensors *s = r.s = mav__alloc(sizeof *s);
  if (!s || !(s->path = mav__strdup(path))) MAV_GOTO(MAV_FAIL(diag, NOMEM, OP, "%s: out of memory", r.path));
  MAV_GOTO(mav__file_map(&s->file, path, OP, diag));
  const unsigned char *file = (const unsigned char *)s->file.data;
  if (s->file.bytes < 8) MAV_GOTO(BAD(&r, "%zu bytes are no safetensors file", r.path, s->file.bytes));
  uint64_t header = 0;
  for (int i = 7; i >= 0; i--) header = header << 8 | file[i];
  if (header > HEADER_MAX)
    MAV_GOTO(BAD(&r, "a header of %llu bytes; at most %u are accepted", r.path, (unsigned long long)header, HEADER_MAX));
  if (header > s->file.bytes - 8)
    MAV_GOTO(BAD(&r, "the header of %llu bytes ends past the file of %zu", r.path, (unsigned long long)header, s->file.bytes));
  if (header == 0 || file[8] != '{') MAV_GOTO(BAD(&r, "the header does not start with {", r.path));
  r.data_at = 8 + (size_t)header;
  r.data_bytes = s->file.bytes - r.data_at;
  MAV_GOTO(mav__json_parse(&root, s->file.data + 8, (size_t)header, DEPTH_MAX, OP, path, diag));
  MAV_GOTO(read_header(&r, root));
  *out = s;
  s = NULL;
done:
  cJSON_Delete(root);
  mav_safetensors_close(s);
  return err;
}

void mav_safetensors_close(mav_safetensors *s) {
  if (!s) return;
  mav__table_deinit(&s->table);
  mav__file_unmap(&s->file);
  mav__free(s->name);
  mav__free(s->entry);
  mav__free(s->arena);
  mav__free(s->path);
  mav__free(s);
}

int mav_safetensors_count(const mav_safetensors *s) { return s->count; }
const mav_safetensors_entry *mav_safetensors_get(const mav_safetensors *s, int i) {
  return i >= 0 && i < s->count ? &s->entry[i] : NULL;
}
const char *mav__safetensors_path(const mav_safetensors *s) { return s->path; }

const mav_safetensors_entry *mav__safetensors_find(const mav_safetensors *s, const char *name) {
  int32_t i = mav__table_find(&s->table, s->name, name, strlen(name));
  return i < 0 ? NULL : &s->entry[i];
}
