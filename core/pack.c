/* core/pack.c - opening a pack.
 *
 * Nothing of the data is touched: (1) the head and all up to the data have the hashes they name, and the file has its size;
 * (2) the JSON is of the expected form, names are unique, a scale is an f32 tensor of this pack; (3) tensors own the chunks
 * in order, as many as their shape and chunk_bytes make, none left over; (4) every chunk lies where the format places it,
 * inside the file, and nothing follows the last. What is refused names the file and the tensor. The mapping lives until the
 * last release; tensors made from it hold a reference. Any thread may read. */
#include "pack.h"

#include <math.h>
#include <string.h>

#include "err.h"
#include "json.h"
#include "mem.h"

#define OP "pack_open"

typedef struct reader {
  mav_pack *p;
  const char *path;    /* short */
  uint64_t chunk, end; /* of what was read so far: chunks, and where the last ends */
  char *room;          /* next free byte of the arena */
  mav_diag *diag;
} reader;

#define BAD(r, ...) MAV_FAIL((r)->diag, FORMAT, OP, "%s: " __VA_ARGS__)
#define BAD_TENSOR(r, name, ...) MAV_FAIL((r)->diag, FORMAT, OP, "%s: tensor \"%.100s\": " __VA_ARGS__)

static const char *keep(reader *r, const char *text) {
  size_t n = strlen(text) + 1;
  char *at = memcpy(r->room, text, n);
  r->room += n;
  return at;
}

static mav_err read_shape(reader *r, const cJSON *shape, mav_pack_entry *e) {
  uint64_t bytes = mav_dtype_bytes(e->dtype);
  if (!cJSON_IsArray(shape) || cJSON_GetArraySize(shape) > MAV_DIMS_MAX)
    return BAD_TENSOR(r, e->name, "shape is not an array of at most %d sizes", r->path, e->name, MAV_DIMS_MAX);
  bool empty = false;
  for (const cJSON *item = shape->child; item; item = item->next) {
    int64_t n;
    if (!mav__json_int(item, 0, INT64_C(1) << 53, &n)) return BAD_TENSOR(r, e->name, "shape[%d] is not a size", r->path, e->name, e->dims);
    if (__builtin_mul_overflow(bytes, n ? (uint64_t)n : 1, &bytes) || bytes > INT64_MAX)
      return BAD_TENSOR(r, e->name, "the product of its shape overflows", r->path, e->name);
    empty |= !n;
    e->shape[e->dims++] = n;
  }
  e->bytes = empty ? 0 : (size_t)bytes;
  return MAV_OK;
}

static mav_err read_scale(reader *r, const cJSON *item, mav_pack_entry *e) {
  static const char *const acts[] = {[MAV_ACT_NONE] = "none", [MAV_ACT_STATIC] = "static", [MAV_ACT_DYNAMIC] = "dynamic"};
  const cJSON *scale = mav__json_get(item, "scale"), *act = mav__json_get(item, "act"), *in_scale = mav__json_get(item, "in_scale");
  if (scale && !cJSON_IsString(scale))
    return BAD_TENSOR(r, e->name, "scale is %s; a name is needed", r->path, e->name, mav__json_kind(scale));
  if (scale) e->scale = scale->valuestring; /* until it is looked up */
  int i = 0;
  while (i < 3 && !(cJSON_IsString(act) && !strcmp(act->valuestring, acts[i]))) i++;
  if (i == 3) return BAD_TENSOR(r, e->name, "act is none of none, static and dynamic", r->path, e->name);
  e->act = (mav_act)i;
  if (e->act != MAV_ACT_NONE && !e->scale) return BAD_TENSOR(r, e->name, "act is %s, but it has no scale", r->path, e->name, acts[e->act]);
  if (e->act == MAV_ACT_STATIC) {
    if (cJSON_IsNumber(in_scale)) e->in_scale = (float)in_scale->valuedouble;
    if (!(e->in_scale > 0) || !isfinite(e->in_scale)) return BAD_TENSOR(r, e->name, "in_scale is not a number above 0", r->path, e->name);
  }
  return MAV_OK;
}

static mav_err read_chunk(reader *r, mav_pack_entry *e, uint64_t i, mav__pack_chunk *c) {
  const mav_pack_info *info = &r->p->info;
  const unsigned long long number = e->chunk + i;
  mav__pack_chunk_get(r->p->chunk + (e->chunk + i) * MAV__PACK_ROW, c);
  uint64_t left = e->bytes - i * info->chunk_bytes, raw = left < info->chunk_bytes ? left : info->chunk_bytes;
  if (c->raw != raw)
    return BAD_TENSOR(r, e->name, "chunk %llu has %llu bytes; %llu are expected", r->path, e->name, number, (unsigned long long)c->raw,
                      (unsigned long long)raw);
  if (c->codec >= MAV__PACK_CODECS || c->reserved || (c->codec == MAV__PACK_PLANES && mav_dtype_bytes(e->dtype) != 2))
    return BAD_TENSOR(r, e->name, "chunk %llu has codec %u, which does not exist or not for %s", r->path, e->name, number, c->codec,
                      mav_dtype_name(e->dtype));
  /* LZ4 never makes more than 255 bytes of one: what is allocated later is bounded by the file. */
  if (c->codec == MAV__PACK_RAW ? c->stored != raw : c->stored >= raw || c->stored < (raw + 254) / 255)
    return BAD_TENSOR(r, e->name, "chunk %llu cannot be stored in %llu bytes", r->path, e->name, number, (unsigned long long)c->stored);
  uint64_t place = mav__pack_place(r->end, i == 0);
  if (c->offset != place)
    return BAD_TENSOR(r, e->name, "chunk %llu is at byte %llu; its place is %llu", r->path, e->name, number, (unsigned long long)c->offset,
                      (unsigned long long)place);
  if (c->offset > info->file_bytes || c->stored > info->file_bytes - c->offset)
    return BAD_TENSOR(r, e->name, "chunk %llu ends past the file", r->path, e->name, number);
  r->end = c->offset + c->stored;
  return MAV_OK;
}

static mav_err read_entry(reader *r, const cJSON *item, mav_pack_entry *e) {
  const mav_pack_info *info = &r->p->info;
  const cJSON *name = mav__json_get(item, "name"), *dtype = mav__json_get(item, "dtype"), *layout = mav__json_get(item, "layout");
  int64_t chunk, chunks;
  if (!cJSON_IsString(name) || !name->valuestring[0]) return BAD(r, "a tensor without a name", r->path);
  e->name = keep(r, name->valuestring);
  e->dtype = MAV_DTYPE_COUNT;
  for (int t = 0; cJSON_IsString(dtype) && t < MAV_DTYPE_COUNT; t++)
    if (!strcmp(dtype->valuestring, mav_dtype_name((mav_dtype)t))) e->dtype = (mav_dtype)t;
  if (e->dtype == MAV_DTYPE_COUNT) return BAD_TENSOR(r, e->name, "its dtype is not known", r->path, e->name);
  if (!cJSON_IsString(layout) || !layout->valuestring[0]) return BAD_TENSOR(r, e->name, "it has no layout", r->path, e->name);
  e->layout = keep(r, layout->valuestring);
  MAV_TRY(read_shape(r, mav__json_get(item, "shape"), e));
  MAV_TRY(read_scale(r, item, e));
  e->chunk = r->chunk;
  e->chunks = e->bytes / info->chunk_bytes + (e->bytes % info->chunk_bytes != 0);
  if (!mav__json_int(mav__json_get(item, "chunk"), 0, INT64_C(1) << 53, &chunk) || (uint64_t)chunk != e->chunk ||
      !mav__json_int(mav__json_get(item, "chunks"), 0, INT64_C(1) << 53, &chunks) || (uint64_t)chunks != e->chunks)
    return BAD_TENSOR(r, e->name, "chunk and chunks are not %llu and %llu, which follow from the shapes", r->path, e->name,
                      (unsigned long long)e->chunk, (unsigned long long)e->chunks);
  if (e->chunks > info->chunks - r->chunk) return BAD_TENSOR(r, e->name, "its chunks are not in the table", r->path, e->name);
  bool is_raw = true;
  e->data = r->p->file.data;
  for (uint64_t i = 0; i < e->chunks; i++) {
    mav__pack_chunk c;
    MAV_TRY(read_chunk(r, e, i, &c));
    if (i == 0) e->data = r->p->file.data + c.offset;
    e->stored += c.stored;
    is_raw &= c.codec == MAV__PACK_RAW;
  }
  if (!is_raw) e->data = NULL;
  r->chunk += e->chunks;
  return MAV_OK;
}

/* Replaces the names of scales, which belong to the JSON, by those of the entries they name. */
static mav_err find_scales(reader *r) {
  for (int i = 0; i < r->p->count; i++) {
    mav_pack_entry *e = &r->p->entry[i];
    if (!e->scale) continue;
    const mav_pack_entry *s = mav_pack_get(r->p, mav_pack_find(r->p, e->scale));
    if (!s || s->dtype != MAV_DTYPE_F32 || s->scale || strcmp(s->layout, "row") != 0)
      return BAD_TENSOR(r, e->name, "its scale, \"%.100s\", is not an f32 tensor of this file in rows", r->path, e->name, e->scale);
    e->scale = s->name;
  }
  return MAV_OK;
}

static mav_err read_json(reader *r, const cJSON *root) {
  mav_pack *p = r->p;
  const cJSON *format = mav__json_get(root, "format"), *meta = mav__json_get(root, "meta"), *tensors = mav__json_get(root, "tensors");
  int64_t rank, ranks, chunk_bytes;
  size_t text = 1;
  if (!cJSON_IsString(format) || strcmp(format->valuestring, "mav.pack") != 0) return BAD(r, "format is not \"mav.pack\"", r->path);
  if (!mav__json_int(mav__json_get(root, "ranks"), 1, MAV__PACK_RANKS_MAX, &ranks) ||
      !mav__json_int(mav__json_get(root, "rank"), 0, ranks - 1, &rank))
    return BAD(r, "rank and ranks are not a rank and a count", r->path);
  if (!mav__json_int(mav__json_get(root, "chunk_bytes"), MAV__PACK_PAGE, MAV__PACK_CHUNK_MAX, &chunk_bytes) || chunk_bytes % MAV__PACK_PAGE)
    return BAD(r, "chunk_bytes is not a multiple of %d up to 2^30", r->path, MAV__PACK_PAGE);
  if (!cJSON_IsObject(meta)) return BAD(r, "meta is %s; an object is needed", r->path, mav__json_kind(meta));
  if (!cJSON_IsArray(tensors)) return BAD(r, "tensors is %s; an array is needed", r->path, mav__json_kind(tensors));
  p->info.rank = (int)rank;
  p->info.ranks = (int)ranks;
  p->info.chunk_bytes = (uint64_t)chunk_bytes;
  char *printed = cJSON_PrintUnformatted(meta);
  p->info.meta = p->meta = printed ? mav__strdup(printed) : NULL;
  cJSON_free(printed);
  for (const cJSON *item = tensors->child; item; item = item->next) {
    const cJSON *name = mav__json_get(item, "name"), *layout = mav__json_get(item, "layout");
    text += cJSON_IsString(name) ? strlen(name->valuestring) + 1 : 0;
    text += cJSON_IsString(layout) ? strlen(layout->valuestring) + 1 : 0;
  }
  size_t count = (size_t)cJSON_GetArraySize(tensors);
  p->arena = r->room = mav__alloc(text);
  p->entry = mav__alloc((count + 1) * sizeof *p->entry);
  p->name = mav__alloc((count + 1) * sizeof *p->name);
  if (!p->meta || !p->arena || !p->entry || !p->name || mav__table_init(&p->table, count))
    return MAV_FAIL(r->diag, NOMEM, OP, "%s: out of memory", r->path);
  for (const cJSON *item = tensors->child; item; item = item->next) {
    mav_pack_entry *e = &p->entry[p->count];
    MAV_TRY(read_entry(r, item, e));
    p->name[p->count] = (mav__span){e->name, strlen(e->name)};
    if (mav__table_add(&p->table, p->name, p->count++) >= 0) return BAD_TENSOR(r, e->name, "is there twice", r->path, e->name);
  }
  if (r->chunk != p->info.chunks)
    return BAD(r, "%llu chunks belong to no tensor", r->path, (unsigned long long)(p->info.chunks - r->chunk));
  if (r->end != p->info.file_bytes)
    return BAD(r, "%llu bytes at the end belong to no tensor", r->path, (unsigned long long)(p->info.file_bytes - r->end));
  return find_scales(r);
}

/* The head, and the hash of all that is before the data. */
static mav_err read_head(reader *r, mav__pack_head *h) {
  const mav__file *f = &r->p->file;
  const unsigned char *bytes = (const unsigned char *)f->data;
  if (f->bytes < MAV__PACK_HEAD || memcmp(bytes, "MAVPACK\n", 8) != 0) return BAD(r, "not a pack", r->path);
  if (!mav__pack_head_get(bytes, h)) return BAD(r, "its first 64 bytes are damaged", r->path);
  if (h->version != MAV__PACK_VERSION)
    return MAV_FAIL(r->diag, UNSUPPORTED, OP, "%s: a pack of version %u; this build reads %d", r->path, h->version, MAV__PACK_VERSION);
  if (h->file_bytes == 0) return BAD(r, "an unfinished pack; its writer did not come to the end", r->path);
  if (h->file_bytes != f->bytes)
    return BAD(r, "the file has %zu bytes, but had %llu when it was finished", r->path, f->bytes, (unsigned long long)h->file_bytes);
  if (h->flags || h->json_bytes == 0 || h->json_bytes > MAV__PACK_JSON_MAX || h->json_bytes % 64 || h->chunks > f->bytes / MAV__PACK_ROW ||
      h->data_start != mav__pack_align(MAV__PACK_HEAD + h->json_bytes + h->chunks * MAV__PACK_ROW, MAV__PACK_PAGE) ||
      h->data_start > f->bytes)
    return BAD(r, "the sizes in its head do not agree", r->path);
  if (mav__pack_hash(bytes + MAV__PACK_HEAD, h->data_start - MAV__PACK_HEAD) != h->hash)
    return BAD(r, "the header is damaged (bytes 64 to %llu)", r->path, (unsigned long long)h->data_start);
  return MAV_OK;
}

mav_err mav_pack_open(mav_pack **out, const char *path, mav_diag *diag) {
  *out = NULL;
  mav_err err = MAV_OK;
  cJSON *root = NULL;
  mav__pack_head h;
  reader r = {.path = mav__path_short(path), .diag = diag};
  mav_pack *p = r.p = mav__alloc(sizeof *p);
  if (p) p->refs = 1;
  if (!p || !(p->path = mav__strdup(path))) MAV_GOTO(MAV_FAIL(diag, NOMEM, OP, "%s: out of memory", r.path));
  MAV_GOTO(mav__file_map(&p->file, path, OP, diag));
  MAV_GOTO(read_head(&r, &h));
  p->info = (mav_pack_info){.path = p->path, .chunks = h.chunks, .file_bytes = h.file_bytes};
  p->chunk = (const unsigned char *)p->file.data + MAV__PACK_HEAD + h.json_bytes;
  p->checked = mav__alloc(h.chunks + 1);
  if (!p->checked) MAV_GOTO(MAV_FAIL(diag, NOMEM, OP, "%s: out of memory", r.path));
  r.end = h.data_start;
  MAV_GOTO(mav__json_parse(&root, p->file.data + MAV__PACK_HEAD, (size_t)h.json_bytes, MAV__PACK_DEPTH_MAX, OP, path, diag));
  MAV_GOTO(read_json(&r, root));
  *out = p;
  p = NULL;
done:
  cJSON_Delete(root);
  mav_pack_release(p);
  return err;
}

mav_pack *mav_pack_retain(mav_pack *p) {
  p->refs++;
  return p;
}

void mav_pack_release(mav_pack *p) {
  if (!p || --p->refs) return;
  mav__table_deinit(&p->table);
  mav__file_unmap(&p->file);
  mav__free((void *)p->checked);
  mav__free(p->name);
  mav__free(p->entry);
  mav__free(p->arena);
  mav__free(p->meta);
  mav__free(p->path);
  mav__free(p);
}

const mav_pack_info *mav_pack_get_info(const mav_pack *p) { return &p->info; }
int mav_pack_count(const mav_pack *p) { return p->count; }
const mav_pack_entry *mav_pack_get(const mav_pack *p, int i) { return i >= 0 && i < p->count ? &p->entry[i] : NULL; }
int mav_pack_find(const mav_pack *p, const char *name) { return mav__table_find(&p->table, p->name, name, strlen(name)); }
