/* core/weights.c - the tensors of a Hugging Face directory, by name; or of one safetensors file.
 *
 * model.safetensors if it is there, else the shards that model.safetensors.index.json names; a tensor of a shard that the index
 * does not name is not listed. Refuses shard names that leave the directory by themselves (a link inside it is the user's own
 * doing: download caches are made of them). Files stay mapped while the weights or any tensor made from them live: tensors
 * hold a reference. One thread at a time, as their runtime. */
#include <string.h>

#include "file.h"
#include "json.h"
#include "safetensors.h"
#include "table.h"
#include "tensor.h"

#define OP "weights_open"
#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"
#define INDEX_BYTES_MAX ((size_t)1 << 28)
#define DEPTH_MAX 8

struct mav_weights {
  int refs;
  mav_runtime *rt; /* retained */
  char *dir;
  mav__span *name; /* (count) keys of the table, borrowed from the files */
  const mav_safetensors_entry **entry;
  const mav_safetensors **file; /* (count) where each lies */
  int count;
  mav__table table;
  mav_safetensors **shard; /* (shards) owned */
  int shards;
};

#define NO_MEMORY(w) MAV_RT_FAIL((w)->rt, NOMEM, OP, "%s: out of memory", mav__path_short((w)->dir))

static mav_err reserve(mav_weights *w, size_t count, size_t shards) {
  w->name = mav__alloc((count + 1) * sizeof *w->name);
  w->entry = mav__alloc((count + 1) * sizeof *w->entry);
  w->file = mav__alloc((count + 1) * sizeof *w->file);
  w->shard = mav__alloc((shards + 1) * sizeof *w->shard);
  if (!w->name || !w->entry || !w->file || !w->shard || mav__table_init(&w->table, count)) return NO_MEMORY(w);
  return MAV_OK;
}

/* False: the name is there already. */
static bool add(mav_weights *w, const mav_safetensors *file, const mav_safetensors_entry *e) {
  w->name[w->count] = (mav__span){e->name, strlen(e->name)};
  w->entry[w->count] = e;
  w->file[w->count] = file;
  return mav__table_add(&w->table, w->name, w->count++) < 0;
}

static mav_err open_single(mav_weights *w, const char *path) {
  mav_safetensors *file;
  MAV_TRY(mav_safetensors_open(&file, path, &w->rt->diag));
  int count = mav_safetensors_count(file);
  mav_err err = reserve(w, (size_t)count, 1);
  if (err) {
    mav_safetensors_close(file);
    return err;
  }
  w->shard[w->shards++] = file;
  for (int i = 0; i < count; i++) add(w, file, mav_safetensors_get(file, i));
  return MAV_OK;
}

/* A relative path without empty, "." or ".." components. */
static bool stays_inside(const char *path) {
  for (;;) {
    size_t n = strcspn(path, "/");
    if (n == 0 || (n == 1 && path[0] == '.') || (n == 2 && path[0] == '.' && path[1] == '.')) return false;
    if (!path[n]) return true;
    path += n + 1;
  }
}

/* The shard of this name, opened when it is new; *known maps names to shards. */
static mav_err open_shard(mav_weights *w, const char *name, mav__span *keys, mav__table *known, mav_safetensors **out) {
  size_t n = strlen(name);
  int32_t i = mav__table_find(known, keys, name, n);
  if (i < 0) {
    if (!stays_inside(name))
      return MAV_RT_FAIL(w->rt, FORMAT, OP, "%s/" INDEX ": shard \"%.100s\" is not inside the directory", mav__path_short(w->dir), name);
    char *path = mav__path_join(w->dir, name);
    if (!path) return NO_MEMORY(w);
    mav_err err = mav_safetensors_open(&w->shard[w->shards], path, &w->rt->diag);
    mav__free(path);
    MAV_TRY(err);
    i = w->shards++;
    keys[i] = (mav__span){name, n};
    mav__table_add(known, keys, i);
  }
  *out = w->shard[i];
  return MAV_OK;
}

static mav_err read_index(mav_weights *w, const cJSON *root, const char *path) {
  const cJSON *map = mav__json_get(root, "weight_map");
  const char *name = mav__path_short(path);
  if (!cJSON_IsObject(map))
    return MAV_RT_FAIL(w->rt, FORMAT, OP, "%s: weight_map is %s; an object is needed", name, mav__json_kind(map));
  size_t count = (size_t)cJSON_GetArraySize(map);
  mav__table known = {0};
  mav__span *keys = mav__alloc((count + 1) * sizeof *keys);
  mav_err err = MAV_OK;
  if (!keys || mav__table_init(&known, count)) MAV_GOTO(NO_MEMORY(w));
  MAV_GOTO(reserve(w, count, count));
  for (const cJSON *item = map->child; item; item = item->next) {
    mav_safetensors *file = NULL;
    if (!cJSON_IsString(item))
      MAV_GOTO(MAV_RT_FAIL(w->rt, FORMAT, OP, "%s: tensor \"%.100s\": its shard is %s; a file name is needed", name, item->string,
                           mav__json_kind(item)));
    MAV_GOTO(open_shard(w, item->valuestring, keys, &known, &file));
    const mav_safetensors_entry *e = mav__safetensors_find(file, item->string);
    if (!e)
      MAV_GOTO(MAV_RT_FAIL(w->rt, FORMAT, OP, "%s: tensor \"%.100s\" is not in its shard %.100s", name, item->string, item->valuestring));
    if (!add(w, file, e)) MAV_GOTO(MAV_RT_FAIL(w->rt, FORMAT, OP, "%s: tensor \"%.100s\" is there twice", name, item->string));
  }
done:
  mav__table_deinit(&known);
  mav__free(keys);
  return err;
}

static mav_err open_sharded(mav_weights *w, const char *path) {
  char *text;
  size_t bytes;
  cJSON *root = NULL;
  MAV_TRY(mav__file_read(&text, &bytes, path, INDEX_BYTES_MAX, OP, &w->rt->diag));
  mav_err err = mav__json_parse(&root, text, bytes, DEPTH_MAX, OP, path, &w->rt->diag);
  mav__free(text);
  if (!err) err = read_index(w, root, path);
  cJSON_Delete(root);
  return err;
}

mav_err mav_weights_open(mav_weights **out, mav_runtime *rt, const char *dir) {
  *out = NULL;
  mav_err err = MAV_OK;
  char *single = mav__path_join(dir, SINGLE), *index = mav__path_join(dir, INDEX);
  mav_weights *w = mav__alloc(sizeof *w);
  if (w) {
    w->refs = 1;
    w->rt = mav_runtime_retain(rt);
    w->dir = mav__strdup(dir);
  }
  const char *where = mav__path_short(dir);
  if (!single || !index || !w || !w->dir) MAV_GOTO(MAV_RT_FAIL(rt, NOMEM, OP, "%s: out of memory", where));
  if (mav__file_exists(single)) {
    MAV_GOTO(open_single(w, single));
  } else if (mav__file_exists(index)) {
    MAV_GOTO(open_sharded(w, index));
  } else if (mav__file_exists(dir) && !mav__file_is_directory(dir)) {
    MAV_GOTO(open_single(w, dir));
  } else if (!mav__file_is_directory(dir)) {
    MAV_GOTO(MAV_RT_FAIL(rt, NOTFOUND, OP, "%s: no such directory", where));
  } else {
    MAV_GOTO(MAV_RT_FAIL(rt, NOTFOUND, OP, "%s: neither " SINGLE " nor " INDEX " is there", where));
  }
  *out = w;
  w = NULL;
done:
  mav_weights_release(w);
  mav__free(index);
  mav__free(single);
  return err;
}

mav_weights *mav_weights_retain(mav_weights *w) {
  w->refs++;
  return w;
}

void mav_weights_release(mav_weights *w) {
  if (!w || --w->refs) return;
  mav__table_deinit(&w->table);
  for (int i = 0; i < w->shards; i++) mav_safetensors_close(w->shard[i]);
  mav__free(w->shard);
  mav__free(w->file);
  mav__free(w->entry);
  mav__free(w->name);
  mav__free(w->dir);
  mav_runtime_release(w->rt);
  mav__free(w);
}

int mav_weights_count(const mav_weights *w) { return w->count; }
const char *mav_weights_name(const mav_weights *w, int i) { return i >= 0 && i < w->count ? w->entry[i]->name : NULL; }

const mav_safetensors_entry *mav_weights_entry(const mav_weights *w, const char *name) {
  int32_t i = mav__table_find(&w->table, w->name, name, strlen(name));
  return i < 0 ? NULL : w->entry[i];
}

static void release_owner(void *owner) { mav_weights_release(owner); }

/* A file may leave data at any byte; kernels want elements aligned. */
static mav_err get_copy(mav_weights *w, const mav_safetensors_entry *e, mav_tensor **out) {
  MAV_TRY(mav_tensor_new(out, w->rt, e->dtype, e->dims, e->shape));
  mav_err err = mav_tensor_write(*out, e->data, e->bytes);
  if (err) {
    mav_tensor_release(*out);
    *out = NULL;
    return err;
  }
  (*out)->buffer->read_only = true;
  return MAV_OK;
}

mav_err mav_weights_get(mav_weights *w, const char *name, mav_tensor **out) {
  *out = NULL;
  int32_t i = mav__table_find(&w->table, w->name, name, strlen(name));
  if (i < 0) return MAV_RT_FAIL(w->rt, NOTFOUND, "weights_get", "%s: no tensor \"%.100s\"", mav__path_short(w->dir), name);
  const mav_safetensors_entry *e = w->entry[i];
  if (e->unreadable)
    return MAV_RT_FAIL(w->rt, UNSUPPORTED, "weights_get", "%s: tensor \"%.100s\": %s", mav__path_short(mav__safetensors_path(w->file[i])),
                       name, e->unreadable);
  if ((uintptr_t)e->data % mav_dtype_bytes(e->dtype)) return get_copy(w, e, out);
  return mav__tensor_foreign(out, w->rt, e->dtype, e->dims, e->shape, e->data, release_owner, mav_weights_retain(w));
}
