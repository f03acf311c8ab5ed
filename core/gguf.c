/* core/gguf.c - GGUF files (versions 2 and 3), the format of llama.cpp: metadata by key and tensors by name, on the mapped file.
 *
 * Opening reads all of the header and none of the data. It refuses whatever ends outside the file or its part of it, counts that
 * the file cannot hold, names that are there twice or are no text, sizes that overflow, and data that is not aligned as the
 * header says. Tensors of types that are not widened here are listed, with the reason why none can be made. The mapping lives
 * until the last release; tensors made from it hold a reference. Big-endian files are refused (their version reads as a large
 * number).
 *
 *   magic "GGUF" | u32 version | u64 tensors | u64 keys
 *   keys:     string key | u32 type | value           string: u64 bytes, text    array: u32 type, u64 count, values
 *   tensors:  string name | u32 dims | u64 size x dims, innermost first | u32 type | u64 offset in the data
 *   the data, at a multiple of general.alignment (32) */
#include <string.h>

#include "err.h"
#include "file.h"
#include "mem.h"
#include "numeric.h"
#include "table.h"
#include "tensor.h"
#include "utf8.h"

#define OP "gguf_open"
#define TEXT_MAX ((uint64_t)65535) /* bytes of a key or a name */
#define ENTRY_LEAST 24             /* bytes of a tensor's description: no name, no sizes */
#define KEY_LEAST 13               /* of a key: empty, one byte of value */

/* ggml's types by number: elements and bytes of a block. */
static const struct type_row {
  const char *name;
  uint16_t block, bytes;
  mav_dtype dtype; /* of tensors made of it; MAV_DTYPE_COUNT: none are */
} types[] = {
    [0] = {"f32", 1, 4, MAV_DTYPE_F32},         [1] = {"f16", 1, 2, MAV_DTYPE_F16},         [2] = {"q4_0", 32, 18, MAV_DTYPE_COUNT},
    [3] = {"q4_1", 32, 20, MAV_DTYPE_COUNT},    [6] = {"q5_0", 32, 22, MAV_DTYPE_COUNT},    [7] = {"q5_1", 32, 24, MAV_DTYPE_COUNT},
    [8] = {"q8_0", 32, 34, MAV_DTYPE_F32},      [9] = {"q8_1", 32, 36, MAV_DTYPE_COUNT},    [10] = {"q2_k", 256, 84, MAV_DTYPE_COUNT},
    [11] = {"q3_k", 256, 110, MAV_DTYPE_COUNT}, [12] = {"q4_k", 256, 144, MAV_DTYPE_COUNT}, [13] = {"q5_k", 256, 176, MAV_DTYPE_COUNT},
    [14] = {"q6_k", 256, 210, MAV_DTYPE_COUNT}, [15] = {"q8_k", 256, 292, MAV_DTYPE_COUNT}, [24] = {"i8", 1, 1, MAV_DTYPE_COUNT},
    [25] = {"i16", 1, 2, MAV_DTYPE_COUNT},      [26] = {"i32", 1, 4, MAV_DTYPE_I32},        [27] = {"i64", 1, 8, MAV_DTYPE_I64},
    [28] = {"f64", 1, 8, MAV_DTYPE_COUNT},      [30] = {"bf16", 1, 2, MAV_DTYPE_BF16},
};
#define TYPES (sizeof types / sizeof *types)

static const char unreadable[] = "only f32, f16, bf16, q8_0, i32 and i64 are read";

struct mav_gguf {
  int refs;
  mav__file file;
  char *path;
  int count, keys;
  mav_gguf_entry *entry;
  mav_gguf_value *value;
  mav__span *name, *key; /* in the file */
  mav__table names, key_table;
  char *text; /* names and keys, terminated */
};

typedef struct reader {
  mav_gguf *g;
  const char *path; /* short */
  const unsigned char *at, *end;
  mav_diag *diag;
} reader;

#define BAD(r, ...) MAV_FAIL((r)->diag, FORMAT, OP, "%s: " __VA_ARGS__)
#define ENDS(r, what) BAD(r, "the file ends within %s", (r)->path, what)

static uint64_t number(const unsigned char *p, int bytes) {
  uint64_t n = 0;
  for (int i = bytes - 1; i >= 0; i--) n = n << 8 | p[i];
  return n;
}

static bool has(const reader *r, uint64_t bytes) { return bytes <= (uint64_t)(r->end - r->at); }

static mav_err take(reader *r, int bytes, uint64_t *out, const char *what) {
  if (!has(r, (uint64_t)bytes)) return ENDS(r, what);
  *out = number(r->at, bytes);
  r->at += bytes;
  return MAV_OK;
}

static mav_err take_text(reader *r, mav__span *out, const char *what) {
  uint64_t n;
  MAV_TRY(take(r, 8, &n, what));
  if (n > TEXT_MAX) return BAD(r, "%s of %llu bytes", r->path, what, (unsigned long long)n);
  if (!has(r, n)) return ENDS(r, what);
  *out = (mav__span){(const char *)r->at, (size_t)n};
  r->at += n;
  if (n == 0 || memchr(out->p, 0, out->n) || mav__utf8_check(out->p, out->n) < out->n)
    return BAD(r, "%s is empty or no text", r->path, what);
  return MAV_OK;
}

/* ---- metadata --------------------------------------------------------------------------------------------------------- */

/* Bytes of a scalar; 0: a string or an array. */
static int scalar_bytes(uint64_t type) {
  static const unsigned char bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return type < sizeof bytes ? bytes[type] : 0;
}

static mav_err skip_strings(reader *r, uint64_t count, const mav__span *key) {
  for (uint64_t i = 0; i < count; i++) {
    uint64_t n;
    MAV_TRY(take(r, 8, &n, "the strings of an array"));
    if (!has(r, n))
      return BAD(r, "key %.*s: a string of %llu bytes ends outside the file", r->path, (int)(key->n > 60 ? 60 : key->n), key->p,
                 (unsigned long long)n);
    r->at += n;
  }
  return MAV_OK;
}

static mav_err read_key(reader *r, int i) {
  mav_gguf_value *v = &r->g->value[i];
  mav__span *key = &r->g->key[i];
  uint64_t type, count = 1;
  MAV_TRY(take_text(r, key, "a key"));
  const int shown = (int)(key->n > 60 ? 60 : key->n);
  MAV_TRY(take(r, 4, &type, "the type of a key"));
  if (type > MAV_GGUF_F64) return BAD(r, "key %.*s has the unknown type %llu", r->path, shown, key->p, (unsigned long long)type);
  v->type = v->of = (mav_gguf_type)type;
  if (type == MAV_GGUF_ARRAY) {
    MAV_TRY(take(r, 4, &type, "the type of an array"));
    MAV_TRY(take(r, 8, &count, "the length of an array"));
    if (type > MAV_GGUF_F64 || type == MAV_GGUF_ARRAY)
      return BAD(r, "key %.*s: an array of type %llu", r->path, shown, key->p, (unsigned long long)type);
    v->of = (mav_gguf_type)type;
  }
  const int width = scalar_bytes(type);
  const uint64_t most = (uint64_t)(r->end - r->at) / (uint64_t)(width ? width : 8);
  if (count > most) return BAD(r, "key %.*s: %llu values end outside the file", r->path, shown, key->p, (unsigned long long)count);
  v->count = count;
  v->data = r->at;
  if (!width) return skip_strings(r, count, key);
  r->at += count * (uint64_t)width;
  return MAV_OK;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------------- */

static mav_err read_entry(reader *r, int i) {
  mav_gguf_entry *e = &r->g->entry[i];
  mav__span *name = &r->g->name[i];
  uint64_t dims, type, offset, size[MAV_DIMS_MAX] = {0}, elements = 1;
  MAV_TRY(take_text(r, name, "the name of a tensor"));
  const int shown = (int)(name->n > 100 ? 100 : name->n);
  MAV_TRY(take(r, 4, &dims, "a tensor's description"));
  if (dims > MAV_DIMS_MAX)
    return BAD(r, "tensor \"%.*s\": %llu dimensions; at most %d are possible", r->path, shown, name->p, (unsigned long long)dims,
               MAV_DIMS_MAX);
  for (uint64_t d = 0; d < dims; d++) {
    MAV_TRY(take(r, 8, &size[d], "a tensor's description"));
    if (size[d] == 0 || size[d] > (uint64_t)1 << 53 || __builtin_mul_overflow(elements, size[d], &elements))
      return BAD(r, "tensor \"%.*s\": the product of its shape is 0 or overflows", r->path, shown, name->p);
  }
  MAV_TRY(take(r, 4, &type, "a tensor's description"));
  MAV_TRY(take(r, 8, &offset, "a tensor's description"));
  if (type >= TYPES || !types[type].name)
    return BAD(r, "tensor \"%.*s\" has the unknown type %llu", r->path, shown, name->p, (unsigned long long)type);
  const struct type_row *row = &types[type];
  if (size[0] % row->block)
    return BAD(r, "tensor \"%.*s\": rows of %llu elements are no whole blocks of %s", r->path, shown, name->p, (unsigned long long)size[0],
               row->name);
  if (__builtin_mul_overflow(elements / row->block, (uint64_t)row->bytes, &elements))
    return BAD(r, "tensor \"%.*s\": its size overflows", r->path, shown, name->p);
  e->type = row->name;
  e->dtype = row->dtype == MAV_DTYPE_COUNT ? MAV_DTYPE_U8 : row->dtype;
  e->unreadable = row->dtype == MAV_DTYPE_COUNT ? unreadable : NULL;
  e->is_blocks = row->block > 1;
  e->dims = (int)dims;
  for (uint64_t d = 0; d < dims; d++) e->shape[d] = (int64_t)size[dims - 1 - d];
  e->bytes = (size_t)elements;
  e->offset = offset;
  return MAV_OK;
}

/* Where the data begins: after the header, aligned as general.alignment says. */
static mav_err place(reader *r) {
  mav_gguf *g = r->g;
  uint64_t alignment = 32;
  const int i = mav_gguf_find_key(g, "general.alignment");
  if (i >= 0) {
    const mav_gguf_value *v = &g->value[i];
    if (v->type != MAV_GGUF_U32) return BAD(r, "general.alignment is not a u32", r->path);
    alignment = number(v->data, 4);
    if (alignment == 0 || alignment & (alignment - 1) || alignment > 1 << 20)
      return BAD(r, "general.alignment is %llu; a power of two is needed", r->path, (unsigned long long)alignment);
  }
  const unsigned char *base = (const unsigned char *)g->file.data;
  const uint64_t header = (uint64_t)(r->at - base), begin = (header + alignment - 1) & ~(alignment - 1);
  for (int t = 0; t < g->count; t++) {
    mav_gguf_entry *e = &g->entry[t];
    uint64_t end;
    if (e->offset % alignment)
      return BAD(r, "tensor \"%.100s\": its data is not aligned to %llu", r->path, e->name, (unsigned long long)alignment);
    if (__builtin_add_overflow(e->offset, begin, &e->offset) || __builtin_add_overflow(e->offset, (uint64_t)e->bytes, &end) ||
        end > g->file.bytes)
      return BAD(r, "tensor \"%.100s\": its %zu bytes end outside the file", r->path, e->name, e->bytes);
    e->data = base + e->offset;
  }
  return MAV_OK;
}

/* ---- the file --------------------------------------------------------------------------------------------------------- */

static const char *keep(char **room, const mav__span *s) {
  char *at = memcpy(*room, s->p, s->n);
  at[s->n] = 0;
  *room += s->n + 1;
  return at;
}

/* Terminated names and keys, and tables of them. */
static mav_err index_names(reader *r) {
  mav_gguf *g = r->g;
  size_t bytes = 1;
  for (int i = 0; i < g->count; i++) bytes += g->name[i].n + 1;
  for (int i = 0; i < g->keys; i++) bytes += g->key[i].n + 1;
  char *room = g->text = mav__alloc(bytes);
  if (!room) return MAV_FAIL(r->diag, NOMEM, OP, "%s: out of memory", r->path);
  for (int i = 0; i < g->count; i++) {
    g->entry[i].name = keep(&room, &g->name[i]);
    if (mav__table_add(&g->names, g->name, i) >= 0) return BAD(r, "tensor \"%.100s\" is there twice", r->path, g->entry[i].name);
  }
  for (int i = 0; i < g->keys; i++) {
    g->value[i].key = keep(&room, &g->key[i]);
    if (mav__table_add(&g->key_table, g->key, i) >= 0) return BAD(r, "key %.100s is there twice", r->path, g->value[i].key);
  }
  return MAV_OK;
}

static mav_err read_file(reader *r) {
  mav_gguf *g = r->g;
  uint64_t magic, version, count, keys;
  MAV_TRY(take(r, 4, &magic, "its head"));
  if (magic != 0x46554747) return BAD(r, "no GGUF file", r->path);
  MAV_TRY(take(r, 4, &version, "its head"));
  if (version != 2 && version != 3) return BAD(r, "GGUF version %llu; 2 and 3 are read", r->path, (unsigned long long)version);
  MAV_TRY(take(r, 8, &count, "its head"));
  MAV_TRY(take(r, 8, &keys, "its head"));
  const uint64_t room = (uint64_t)(r->end - r->at);
  if (count > room / ENTRY_LEAST || keys > room / KEY_LEAST || count > INT32_MAX / 4 || keys > INT32_MAX / 4)
    return BAD(r, "%llu tensors and %llu keys do not fit into %zu bytes", r->path, (unsigned long long)count, (unsigned long long)keys,
               g->file.bytes);
  g->entry = mav__alloc((count + 1) * sizeof *g->entry);
  g->name = mav__alloc((count + 1) * sizeof *g->name);
  g->value = mav__alloc((keys + 1) * sizeof *g->value);
  g->key = mav__alloc((keys + 1) * sizeof *g->key);
  if (!g->entry || !g->name || !g->value || !g->key || mav__table_init(&g->names, count) || mav__table_init(&g->key_table, keys))
    return MAV_FAIL(r->diag, NOMEM, OP, "%s: out of memory", r->path);
  for (; g->keys < (int)keys; g->keys++) MAV_TRY(read_key(r, g->keys));
  for (; g->count < (int)count; g->count++) MAV_TRY(read_entry(r, g->count));
  MAV_TRY(index_names(r));
  return place(r);
}

mav_err mav_gguf_open(mav_gguf **out, const char *path, mav_diag *diag) {
  *out = NULL;
  mav_err err = MAV_OK;
  reader r = {.path = mav__path_short(path), .diag = diag};
  mav_gguf *g = r.g = mav__alloc(sizeof *g);
  if (g) g->refs = 1;
  if (!g || !(g->path = mav__strdup(path))) MAV_GOTO(MAV_FAIL(diag, NOMEM, OP, "%s: out of memory", r.path));
  MAV_GOTO(mav__file_map(&g->file, path, OP, diag));
  r.at = (const unsigned char *)g->file.data;
  r.end = r.at + g->file.bytes;
  MAV_GOTO(read_file(&r));
  *out = g;
  g = NULL;
done:
  mav_gguf_release(g);
  return err;
}

mav_gguf *mav_gguf_retain(mav_gguf *g) {
  g->refs++;
  return g;
}

void mav_gguf_release(mav_gguf *g) {
  if (!g || --g->refs) return;
  mav__table_deinit(&g->key_table);
  mav__table_deinit(&g->names);
  mav__file_unmap(&g->file);
  mav__free(g->text);
  mav__free(g->key);
  mav__free(g->value);
  mav__free(g->name);
  mav__free(g->entry);
  mav__free(g->path);
  mav__free(g);
}

int mav_gguf_count(const mav_gguf *g) { return g->count; }
const mav_gguf_entry *mav_gguf_get(const mav_gguf *g, int i) { return i >= 0 && i < g->count ? &g->entry[i] : NULL; }
int mav_gguf_find(const mav_gguf *g, const char *name) { return mav__table_find(&g->names, g->name, name, strlen(name)); }
int mav_gguf_keys(const mav_gguf *g) { return g->keys; }
const mav_gguf_value *mav_gguf_get_key(const mav_gguf *g, int i) { return i >= 0 && i < g->keys ? &g->value[i] : NULL; }
int mav_gguf_find_key(const mav_gguf *g, const char *key) { return mav__table_find(&g->key_table, g->key, key, strlen(key)); }

bool mav_gguf_next(const mav_gguf_value *v, const void **at, mav_gguf_item *item) {
  const unsigned char *p = *at ? *at : v->data;
  if (!*at) item->index = 0;
  if (item->index >= v->count) return false;
  item->index++;
  item->text = NULL;
  item->bytes = 0;
  const int width = scalar_bytes(v->of);
  const uint64_t bits = number(p, width ? width : 8);
  uint32_t low = (uint32_t)bits;
  float real;
  switch (v->of) {
    case MAV_GGUF_I8:
      item->integer = (int8_t)bits;
      break;
    case MAV_GGUF_I16:
      item->integer = (int16_t)bits;
      break;
    case MAV_GGUF_I32:
      item->integer = (int32_t)bits;
      break;
    default:
      item->integer = (int64_t)bits;
      break;
  }
  item->real = v->of == MAV_GGUF_U64 ? (double)bits : (double)item->integer;
  if (v->of == MAV_GGUF_F32) {
    memcpy(&real, &low, sizeof real);
    item->real = (double)real;
  } else if (v->of == MAV_GGUF_F64) {
    memcpy(&item->real, &bits, sizeof bits);
  } else if (v->of == MAV_GGUF_STRING) {
    item->text = (const char *)p + 8;
    item->bytes = (size_t)bits;
    p += bits + 8;
  }
  *at = p + width;
  return true;
}

/* ---- rows ------------------------------------------------------------------------------------------------------------- */

static void release_owner(void *owner) { mav_gguf_release(owner); }

/* Blocks of an f16 scale and 32 signed bytes. */
static void widen_q8_0(float *dst, const unsigned char *src, int64_t blocks) {
  for (; blocks > 0; blocks--, src += 34, dst += 32) {
    const float scale = mavk_f32_from_f16((uint16_t)(src[0] | src[1] << 8));
    for (int i = 0; i < 32; i++) dst[i] = scale * (float)(int8_t)src[2 + i];
  }
}

mav_err mav_gguf_rows(mav_gguf *g, int i, mav_runtime *rt, int64_t first, int64_t count, mav_tensor **out) {
  *out = NULL;
  const char *path = mav__path_short(g->path);
  if (i < 0 || i >= g->count) return MAV_RT_FAIL(rt, RANGE, "gguf_rows", "%s: tensor %d of %d", path, i, g->count);
  const mav_gguf_entry *e = &g->entry[i];
  if (e->unreadable)
    return MAV_RT_FAIL(rt, UNSUPPORTED, "gguf_rows", "%s: tensor \"%.100s\" is %s; %s", path, e->name, e->type, e->unreadable);
  int64_t rows = 1, columns = e->dims ? e->shape[e->dims - 1] : 1;
  for (int d = 0; d + 1 < e->dims; d++) rows *= e->shape[d];
  if (first < 0 || count < 0 || first > rows || count > rows - first)
    return MAV_RT_FAIL(rt, RANGE, "gguf_rows", "%s: tensor \"%.100s\": rows %lld to %lld of %lld", path, e->name, (long long)first,
                       (long long)(first + count), (long long)rows);
  const size_t line = rows ? e->bytes / (size_t)rows : 0;
  const char *data = (const char *)e->data + (size_t)first * line;
  const int64_t shape[2] = {count, columns};
  if (!e->is_blocks && (uintptr_t)data % mav_dtype_bytes(e->dtype) == 0)
    return mav__tensor_foreign(out, rt, e->dtype, 2, shape, data, release_owner, mav_gguf_retain(g));
  mav_tensor *t;
  MAV_TRY(mav_tensor_new(&t, rt, e->dtype, 2, shape));
  const size_t bytes = (size_t)mav_tensor_count(t) * mav_dtype_bytes(e->dtype);
  mav_err err = MAV_OK;
  if (!e->is_blocks) {
    err = mav_tensor_write(t, data, bytes);
  } else {
    void *dst = NULL, *staged = NULL; /* staged: of a device, by way of the host */
    if (mav_tensor_data(t, &dst)) dst = staged = mav__alloc(bytes + 1);
    if (!dst) err = MAV_RT_NOMEM(rt, "gguf_rows");
    else widen_q8_0(dst, (const unsigned char *)data, count * (columns / 32));
    if (!err && staged) err = mav_tensor_write(t, staged, bytes);
    mav__free(staged);
  }
  if (err)
    mav_tensor_release(t);
  else
    *out = t;
  return err;
}
