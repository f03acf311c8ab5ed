/* core/pack_plan.c - a pack's plan: checked, counted in chunks, and written as the pack's JSON.
 * Refuses whatever the reader would: names that are empty, repeated or not UTF-8, shapes that overflow, scales that are no f32
 * tensor of the pack. The same plan gives the same bytes. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "err.h"
#include "json.h"
#include "mem.h"
#include "pack_writer.h"
#include "utf8.h"

#define OP MAV__PACK_WRITE
#define CHUNK_BYTES ((size_t)16 << 20)
#define META_DEPTH_MAX (MAV__PACK_DEPTH_MAX - 1)

typedef struct maker {
  mav__pack_layout *l;
  const mav_pack_plan *plan;
  const char *path; /* short */
  mav_diag *diag;
} maker;

#define BAD(m, ...) MAV_FAIL((m)->diag, INVALID, OP, "%s: " __VA_ARGS__)
#define BAD_TENSOR(m, name, ...) MAV_FAIL((m)->diag, INVALID, OP, "%s: tensor \"%.100s\": " __VA_ARGS__)
#define NO_MEMORY(m) MAV_FAIL((m)->diag, NOMEM, OP, "%s: out of memory", (m)->path)

static bool is_text(const char *s) { return s[0] && mav__utf8_check(s, strlen(s)) == strlen(s); }

static mav_err check_item(maker *m, const mav_pack_item *it, mav__pack_slot *slot) {
  if (!it->name || !is_text(it->name)) return BAD(m, "a tensor whose name is empty or not UTF-8", m->path);
  if ((unsigned)it->dtype >= MAV_DTYPE_COUNT)
    return BAD_TENSOR(m, it->name, "no dtype has the number %d", m->path, it->name, (int)it->dtype);
  if (it->dims < 0 || it->dims > MAV_DIMS_MAX)
    return BAD_TENSOR(m, it->name, "%d dimensions; at most %d are possible", m->path, it->name, it->dims, MAV_DIMS_MAX);
  if (it->layout && !is_text(it->layout)) return BAD_TENSOR(m, it->name, "a layout that is empty or not UTF-8", m->path, it->name);
  if ((unsigned)it->act > MAV_ACT_DYNAMIC || (it->act && !it->scale))
    return BAD_TENSOR(m, it->name, "act is for a tensor with a scale", m->path, it->name);
  if (it->act == MAV_ACT_STATIC && (!(it->in_scale > 0) || !isfinite(it->in_scale)))
    return BAD_TENSOR(m, it->name, "in_scale must be above 0", m->path, it->name);
  uint64_t bytes = mav_dtype_bytes(it->dtype);
  bool empty = false;
  for (int d = 0; d < it->dims; d++) {
    const int64_t n = it->shape[d];
    if (n < 0 || n > INT64_C(1) << 53 || __builtin_mul_overflow(bytes, n ? (uint64_t)n : 1, &bytes) || bytes > (uint64_t)1 << 53)
      return BAD_TENSOR(m, it->name, "its shape is negative or too large", m->path, it->name);
    empty |= !n;
  }
  mav__pack_layout *l = m->l;
  slot->dtype = it->dtype;
  slot->compress = it->compress;
  slot->bytes = empty ? 0 : bytes;
  slot->chunk = l->chunks;
  slot->chunks = slot->bytes / l->chunk_bytes + (slot->bytes % l->chunk_bytes != 0);
  l->chunks += slot->chunks;
  if (!(slot->name = mav__strdup(it->name))) return NO_MEMORY(m);
  return MAV_OK;
}

static mav_err check_scales(maker *m, mav__span *name, mav__table *table) {
  const mav_pack_plan *plan = m->plan;
  for (int i = 0; i < plan->count; i++) {
    name[i] = (mav__span){plan->items[i].name, strlen(plan->items[i].name)};
    if (mav__table_add(table, name, i) >= 0) return BAD_TENSOR(m, name[i].p, "is there twice", m->path, name[i].p);
  }
  for (int i = 0; i < plan->count; i++) {
    const mav_pack_item *it = &plan->items[i], *s = NULL;
    if (!it->scale) continue;
    int32_t k = mav__table_find(table, name, it->scale, strlen(it->scale));
    if (k >= 0) s = &plan->items[k];
    if (!s || s->dtype != MAV_DTYPE_F32 || s->scale || (s->layout && strcmp(s->layout, "row") != 0))
      return BAD_TENSOR(m, it->name, "its scale, \"%.100s\", is not an f32 tensor of the pack in rows", m->path, it->name, it->scale);
  }
  return MAV_OK;
}

static bool add_item(cJSON *list, const mav_pack_item *it, const mav__pack_slot *slot) {
  static const char *const acts[] = {[MAV_ACT_NONE] = "none", [MAV_ACT_STATIC] = "static", [MAV_ACT_DYNAMIC] = "dynamic"};
  cJSON *o = cJSON_CreateObject();
  if (!cJSON_AddItemToArray(list, o)) {
    cJSON_Delete(o);
    return false;
  }
  bool ok = cJSON_AddStringToObject(o, "name", it->name) && cJSON_AddStringToObject(o, "dtype", mav_dtype_name(it->dtype));
  cJSON *shape = ok ? cJSON_AddArrayToObject(o, "shape") : NULL;
  if (!shape) return false;
  for (int d = 0; d < it->dims; d++) {
    cJSON *n = cJSON_CreateNumber((double)it->shape[d]);
    if (!cJSON_AddItemToArray(shape, n)) {
      cJSON_Delete(n);
      return false;
    }
  }
  ok = cJSON_AddStringToObject(o, "layout", it->layout ? it->layout : "row") &&
       (it->scale ? cJSON_AddStringToObject(o, "scale", it->scale) : cJSON_AddNullToObject(o, "scale")) &&
       cJSON_AddStringToObject(o, "act", acts[it->act]);
  if (ok && it->act == MAV_ACT_STATIC) ok = cJSON_AddNumberToObject(o, "in_scale", (double)it->in_scale);
  return ok && cJSON_AddNumberToObject(o, "chunk", (double)slot->chunk) && cJSON_AddNumberToObject(o, "chunks", (double)slot->chunks);
}

static mav_err make_json(maker *m, cJSON *root, const cJSON *meta) {
  const mav_pack_plan *plan = m->plan;
  mav__pack_layout *l = m->l;
  cJSON *copy = cJSON_Duplicate(meta, true), *list;
  bool ok = cJSON_AddStringToObject(root, "format", "mav.pack") && cJSON_AddNumberToObject(root, "rank", plan->rank) &&
            cJSON_AddNumberToObject(root, "ranks", plan->ranks ? plan->ranks : 1) &&
            cJSON_AddNumberToObject(root, "chunk_bytes", (double)l->chunk_bytes);
  if (!ok || !cJSON_AddItemToObject(root, "meta", copy)) {
    cJSON_Delete(copy);
    return NO_MEMORY(m);
  }
  if (!(list = cJSON_AddArrayToObject(root, "tensors"))) return NO_MEMORY(m);
  for (int i = 0; i < plan->count; i++)
    if (!add_item(list, &plan->items[i], &l->slot[i])) return NO_MEMORY(m);
  char *text = cJSON_PrintUnformatted(root);
  if (!text) return NO_MEMORY(m);
  size_t n = strlen(text);
  l->json_bytes = (size_t)mav__pack_align(n, 64);
  /* Behind the JSON, for the hash: what is compressed. */
  if ((l->json = mav__alloc(l->json_bytes + (size_t)plan->count))) {
    memset(l->json, ' ', l->json_bytes);
    memcpy(l->json, text, n);
    for (int i = 0; i < plan->count; i++) l->json[l->json_bytes + (size_t)i] = plan->items[i].compress ? 1 : 0;
    l->hash = mav__pack_hash(l->json, l->json_bytes + (size_t)plan->count);
  }
  cJSON_free(text);
  if (!l->json) return NO_MEMORY(m);
  if (l->json_bytes > MAV__PACK_JSON_MAX)
    return BAD(m, "its JSON has %zu bytes; at most %u are possible", m->path, l->json_bytes, MAV__PACK_JSON_MAX);
  l->data_start = mav__pack_align(MAV__PACK_HEAD + l->json_bytes + l->chunks * MAV__PACK_ROW, MAV__PACK_PAGE);
  return MAV_OK;
}

mav_err mav__pack_layout_init(mav__pack_layout *out, const mav_pack_plan *plan, const char *path, mav_diag *diag) {
  maker m = {.l = out, .plan = plan, .path = mav__path_short(path), .diag = diag};
  const char *meta_text = plan->meta ? plan->meta : "{}";
  const int ranks = plan->ranks ? plan->ranks : 1;
  mav__table table = {0};
  mav__span *name = NULL;
  cJSON *root = NULL, *meta = NULL;
  mav_err err = MAV_OK;
  *out = (mav__pack_layout){.chunk_bytes = plan->chunk_bytes ? plan->chunk_bytes : CHUNK_BYTES};
  if (out->chunk_bytes % MAV__PACK_PAGE || out->chunk_bytes > MAV__PACK_CHUNK_MAX)
    return BAD(&m, "chunk_bytes = %llu; expected a multiple of %d up to 2^30", m.path, (unsigned long long)out->chunk_bytes,
               MAV__PACK_PAGE);
  if (ranks < 1 || ranks > MAV__PACK_RANKS_MAX || plan->rank < 0 || plan->rank >= ranks)
    return BAD(&m, "rank %d of %d", m.path, plan->rank, ranks);
  if (plan->count < 0) return BAD(&m, "%d tensors", m.path, plan->count);
  err = mav__json_parse(&meta, meta_text, strlen(meta_text), META_DEPTH_MAX, OP, "meta", diag);
  if (err == MAV_ERR_FORMAT) err = MAV_ERR_INVALID; /* it is the caller's, not a file */
  if (err && diag) diag->code = err;
  if (err) return err;
  if (!cJSON_IsObject(meta)) MAV_GOTO(BAD(&m, "meta is %s; an object is needed", m.path, mav__json_kind(meta)));
  out->slot = mav__alloc(((size_t)plan->count + 1) * sizeof *out->slot);
  name = mav__alloc(((size_t)plan->count + 1) * sizeof *name);
  root = cJSON_CreateObject();
  if (!out->slot || !name || !root || mav__table_init(&table, (size_t)plan->count)) MAV_GOTO(NO_MEMORY(&m));
  for (; out->count < plan->count; out->count++) MAV_GOTO(check_item(&m, &plan->items[out->count], &out->slot[out->count]));
  MAV_GOTO(check_scales(&m, name, &table));
  MAV_GOTO(make_json(&m, root, meta));
done:
  cJSON_Delete(meta);
  cJSON_Delete(root);
  mav__table_deinit(&table);
  mav__free(name);
  return err;
}

void mav__pack_layout_deinit(mav__pack_layout *l) {
  for (int i = 0; l->slot && i < l->count; i++) mav__free(l->slot[i].name);
  mav__free(l->slot);
  mav__free(l->json);
  *l = (mav__pack_layout){0};
}
