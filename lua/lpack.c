/* lua/lpack.c - packs: weights in the runtime's own form (docs/pack-format.md), read and written.
 * Files are the world's: errors return nil, err. Bytes of a tensor are counted from 0, as offsets in files are. */
#include <limits.h>
#include <string.h>

#include "lmav.h"

enum { PACK_META = 1 }; /* user value of a pack */

static const char *const acts[] = {[MAV_ACT_NONE] = "none", [MAV_ACT_STATIC] = "static", [MAV_ACT_DYNAMIC] = "dynamic", NULL};

/* ---- reading ------------------------------------------------------------------------------------------------------------- */

/*lua
---The weights of one rank in one file, mapped.
---@class mav.Pack
---@field meta table what the writer noted: source, recipe, model, ...
---@field rank integer
---@field ranks integer
---@field path string
---@field bytes integer of the file
---@operator len: integer
local Pack = {}

---@class mav.PackInfo
---@field dtype mav.Dtype
---@field shape integer[]
---@field layout string order of the elements: "row"
---@field scale string? name of the tensor that is its scale
---@field act "none"|"static"|"dynamic"
---@field in_scale number? of act "static"
---@field bytes integer of the tensor
---@field stored integer of its chunks in the file
---@field chunks integer
---@field raw boolean none is compressed: it can be mapped

---Maps a pack and checks its header; reads no weight.
---@param path string
---@return mav.Pack? pack
---@return mav.Error? err
function mav.pack(path) end
*/
static int pack_new(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  lua_settop(L, 1);
  lmav_object *u = lmav_new(L, LMAV_PACK);
  lmav_drain(u->state);
  mav_pack *p = NULL;
  mav_diag diag;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_pack_open(&p, path, &diag));
  if (err) return lmav_result(L, err, &diag, 1);
  lmav_set(u, p, NULL);
  lmav_push_decoded(L, mav_pack_get_info(p)->meta);
  if (!lua_istable(L, -1)) {
    diag = lmav_diag(MAV_ERR_FORMAT, "pack_open", "%s: meta is no object", path);
    return lmav_result(L, diag.code, &diag, 1);
  }
  lua_setiuservalue(L, 2, PACK_META);
  return 1;
}

static mav_pack *check_pack(lua_State *L) { return lmav_check(L, 1, LMAV_PACK)->p; }

/*lua
---@return string[] names in the order of the file; a new table
function Pack:names() end
*/
static int pack_names(lua_State *L) {
  mav_pack *p = check_pack(L);
  int count = mav_pack_count(p);
  lua_createtable(L, count, 0);
  for (int i = 0; i < count; i++) {
    lua_pushstring(L, mav_pack_get(p, i)->name);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/*lua
---@param name string
---@return boolean
function Pack:has(name) end
*/
static int pack_has(lua_State *L) {
  mav_pack *p = check_pack(L);
  lua_pushboolean(L, mav_pack_find(p, luaL_checkstring(L, 2)) >= 0);
  return 1;
}

static void set_integer(lua_State *L, const char *key, uint64_t value) {
  lua_pushinteger(L, (lua_Integer)value);
  lua_setfield(L, -2, key);
}

static void set_string(lua_State *L, const char *key, const char *value) {
  lua_pushstring(L, value);
  lua_setfield(L, -2, key);
}

/*lua
---@param name string
---@return mav.PackInfo? info nil: no such tensor
function Pack:info(name) end
*/
static int pack_info(lua_State *L) {
  mav_pack *p = check_pack(L);
  const mav_pack_entry *e = mav_pack_get(p, mav_pack_find(p, luaL_checkstring(L, 2)));
  if (!e) {
    luaL_pushfail(L);
    return 1;
  }
  lua_createtable(L, 0, 10);
  set_string(L, "dtype", mav_dtype_name(e->dtype));
  set_string(L, "layout", e->layout);
  set_string(L, "act", acts[e->act]);
  if (e->scale) set_string(L, "scale", e->scale);
  if (e->act == MAV_ACT_STATIC) {
    lua_pushnumber(L, (lua_Number)e->in_scale);
    lua_setfield(L, -2, "in_scale");
  }
  set_integer(L, "bytes", e->bytes);
  set_integer(L, "stored", e->stored);
  set_integer(L, "chunks", e->chunks);
  lua_pushboolean(L, e->data != NULL || e->bytes == 0);
  lua_setfield(L, -2, "raw");
  lua_createtable(L, e->dims, 0);
  for (int i = 0; i < e->dims; i++) {
    lua_pushinteger(L, e->shape[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "shape");
  return 1;
}

/* Index of the tensor named at argument 2, or -1 and an error in `diag`. */
static int find(lua_State *L, mav_pack *p, const char *op, mav_diag *diag) {
  const char *name = luaL_checkstring(L, 2);
  int i = mav_pack_find(p, name);
  if (i < 0) *diag = lmav_diag(MAV_ERR_NOTFOUND, op, "%s: no tensor '%s'", mav_pack_get_info(p)->path, name);
  return i;
}

/* A copy of a mapped tensor in the runtime's own memory, read by as many threads as it has. */
static mav_err copy(mav_pack *p, int i, mav_tensor *mapped, mav_tensor **out, mav_diag *diag) {
  const mav_pack_entry *e = mav_pack_get(p, i);
  mav_runtime *rt = mav_tensor_runtime(mapped);
  mav_tensor *t = NULL;
  void *data;
  mav_err err = mav_tensor_new(&t, rt, e->dtype, e->dims, e->shape);
  if (!err) err = mav_tensor_data(t, &data);
  if (!err && mav_tensor_scale(mapped)) err = mav_tensor_set_scale(t, mav_tensor_scale(mapped), e->act, e->in_scale);
  if (err)
    *diag = *mav_runtime_diag(rt);
  else
    err = mav_pack_read(p, i, 0, e->bytes, data, mav_runtime_threads(rt), diag);
  if (err)
    mav_tensor_release(t);
  else
    *out = t;
  return err;
}

static mav_err make_tensor(mav_pack *p, int i, mav_runtime *rt, bool copied, mav_tensor **out, mav_diag *diag) {
  mav_tensor *t;
  mav_err err = mav_pack_tensor(p, i, rt, &t);
  if (err) {
    *diag = *mav_runtime_diag(rt);
    return err;
  }
  *out = t;
  void *data;
  if (!copied || !mav_pack_get(p, i)->data || mav_tensor_data(t, &data)) return MAV_OK; /* compressed, or on a device: a copy already */
  err = copy(p, i, t, out, diag);
  mav_tensor_release(t);
  return err;
}

/*lua
---A read-only tensor, its scale attached: on the mapped file where no chunk is compressed, else unpacked into memory. copy: into
---memory in any case (huge pages, where the system has them).
---@param name string
---@param options? {runtime?: mav.Runtime, copy?: boolean}
---@return mav.Tensor? t
---@return mav.Error? err
function Pack:tensor(name, options) end
*/
static int pack_tensor(lua_State *L) {
  static const char *const keys[] = {"runtime", "copy", NULL};
  mav_pack *p = check_pack(L);
  mav_diag diag;
  int i = find(L, p, "pack_tensor", &diag);
  int arg = lmav_check_options(L, 3, true, keys) ? 3 : 0;
  lua_settop(L, 3);
  if (i < 0) return lmav_result(L, diag.code, &diag, 1);
  bool copied = lmav_opt_boolean(L, arg, "copy", false);
  mav_runtime *rt = lmav_push_runtime(L, arg);
  lmav_object *u = lmav_new(L, LMAV_TENSOR);
  lmav_drain(u->state);
  mav_tensor *t = NULL;
  mav_err err;
  LMAV_TRY_TWICE(L, err, make_tensor(p, i, rt, copied, &t, &diag));
  if (err) return lmav_result(L, err, &diag, 1);
  lmav_set(u, t, rt);
  const mav_pack_entry *e = mav_pack_get(p, i);
  if (copied || !e->data) lmav_charge(L, rt, (int64_t)e->bytes);
  return 1;
}

/*lua
---A copy of bytes [first_byte, first_byte + bytes) of a tensor; first_byte counts from 0. The hash of every chunk that is met for the
---first time is checked.
---@param name string
---@param first_byte integer
---@param bytes integer
---@param options? {runtime?: mav.Runtime}
---@return mav.Tensor? t u8
---@return mav.Error? err
function Pack:read(name, first_byte, bytes, options) end
*/
static int pack_read(lua_State *L) {
  static const char *const keys[] = {"runtime", NULL};
  mav_pack *p = check_pack(L);
  mav_diag diag;
  int i = find(L, p, "pack_read", &diag);
  lua_Integer first = luaL_checkinteger(L, 3), bytes = luaL_checkinteger(L, 4);
  int arg = lmav_check_options(L, 5, true, keys) ? 5 : 0;
  lua_settop(L, 5);
  if (i < 0) return lmav_result(L, diag.code, &diag, 1);
  lua_Integer all = (lua_Integer)mav_pack_get(p, i)->bytes;
  luaL_argcheck(L, first >= 0 && first <= all, 3, "outside the tensor");
  luaL_argcheck(L, bytes >= 0 && bytes <= all - first, 4, "more than the tensor has");
  mav_runtime *rt = lmav_push_runtime(L, arg);
  lmav_object *u = lmav_new(L, LMAV_TENSOR);
  lmav_drain(u->state);
  mav_tensor *t = NULL;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_tensor_new(&t, rt, MAV_DTYPE_U8, 1, &(int64_t){bytes}));
  if (err) return lmav_result(L, err, mav_runtime_diag(rt), 1);
  lmav_set(u, t, rt);
  void *data;
  const bool staged = mav_tensor_data(t, &data) != MAV_OK; /* a device's: by way of the host */
  if (staged) data = lua_newuserdatauv(L, (size_t)bytes + 1, 0);
  LMAV_TRY_TWICE(L, err, mav_pack_read(p, i, (size_t)first, (size_t)bytes, data, mav_runtime_threads(rt), &diag));
  if (staged && !err && mav_tensor_write(t, data, (size_t)bytes)) return lmav_raise(L, mav_runtime_diag(rt));
  if (staged) lua_pop(L, 1);
  if (!err) lmav_charge(L, rt, bytes);
  return lmav_result(L, err, &diag, 1);
}

/*lua
---Checks the hashes of the chunks that hold bytes [first_byte, first_byte + bytes) of a tensor, or its bytes to the end; each chunk
---once. A mapped tensor shows what the file holds, unchecked.
---@param name string
---@param first_byte? integer counts from 0
---@param bytes? integer
---@return true? ok
---@return mav.Error? err
function Pack:check(name, first_byte, bytes) end
*/
static int pack_check(lua_State *L) {
  mav_pack *p = check_pack(L);
  mav_diag diag;
  int i = find(L, p, "pack_check", &diag);
  lua_Integer first = luaL_optinteger(L, 3, 0);
  if (i < 0) return lmav_result(L, diag.code, &diag, 1);
  lua_Integer all = (lua_Integer)mav_pack_get(p, i)->bytes;
  luaL_argcheck(L, first >= 0 && first <= all, 3, "outside the tensor");
  lua_Integer bytes = luaL_optinteger(L, 4, all - first);
  luaL_argcheck(L, bytes >= 0 && bytes <= all - first, 4, "more than the tensor has");
  mav_err err = mav_pack_check(p, i, (size_t)first, (size_t)bytes, 0, &diag);
  lua_pushboolean(L, 1);
  return lmav_result(L, err, &diag, 1);
}

/*lua
---Reads every byte of a tensor in the file and checks it against the hashes. threads: absent, one per processor.
---@param name string
---@param threads? integer
---@return true? ok
---@return mav.Error? err
function Pack:verify(name, threads) end
*/
static int pack_verify(lua_State *L) {
  mav_pack *p = check_pack(L);
  mav_diag diag;
  int i = find(L, p, "pack_verify", &diag);
  lua_Integer threads = luaL_optinteger(L, 3, 0);
  luaL_argcheck(L, threads >= 0 && threads <= 4096, 3, "0 to 4096 threads");
  if (i < 0) return lmav_result(L, diag.code, &diag, 1);
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_pack_verify(p, i, (int)threads, &diag));
  lua_pushboolean(L, 1);
  return lmav_result(L, err, &diag, 1);
}

/*lua
---Gives this reference up. The file stays mapped while a tensor is on it.
function Pack:close() end
*/

static int pack_index(lua_State *L) {
  if (lmav_push_method(L)) return 1;
  const mav_pack_info *info = mav_pack_get_info(check_pack(L));
  const char *key = luaL_checkstring(L, 2);
  if (!strcmp(key, "meta")) return lua_getiuservalue(L, 1, PACK_META), 1;
  if (!strcmp(key, "rank")) return lua_pushinteger(L, info->rank), 1;
  if (!strcmp(key, "ranks")) return lua_pushinteger(L, info->ranks), 1;
  if (!strcmp(key, "path")) return lua_pushstring(L, info->path), 1;
  if (!strcmp(key, "bytes")) return lua_pushinteger(L, (lua_Integer)info->file_bytes), 1;
  return 0;
}

static int pack_len(lua_State *L) {
  lua_pushinteger(L, mav_pack_count(check_pack(L)));
  return 1;
}

static int pack_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_PACK);
  if (u && u->p) {
    const mav_pack_info *info = mav_pack_get_info(u->p);
    lua_pushfstring(L, "mav.pack %d tensors, rank %d of %d", mav_pack_count(u->p), info->rank, info->ranks);
  } else {
    lua_pushliteral(L, "mav.pack (closed)");
  }
  return 1;
}

/* ---- writing ------------------------------------------------------------------------------------------------------------- */

/* Calls the Lua function at index `at`. What it raises waits on top of the stack until the core is done. */
typedef struct watcher {
  lua_State *L;
  int at; /* 0: none */
  bool raised, stopped;
} watcher;

static bool watch(void *user, uint64_t done, uint64_t total) {
  watcher *w = user;
  lua_State *L = w->L;
  lua_pushvalue(L, w->at);
  lua_pushinteger(L, (lua_Integer)done);
  lua_pushinteger(L, (lua_Integer)total);
  w->raised = lua_pcall(L, 2, 1, 0) != LUA_OK;
  if (w->raised) return false;
  w->stopped = lua_isboolean(L, -1) && !lua_toboolean(L, -1);
  lua_pop(L, 1);
  return !w->stopped;
}

/* Key `key` of the table at arg, kept alive by the table at `anchor`. NULL: absent. */
static const char *anchored(lua_State *L, int arg, const char *key, int anchor) {
  const char *text = lmav_opt_string(L, arg, key);
  if (text && strlen(text) != lua_rawlen(L, -1)) lmav_key_error(L, arg, key, "it contains a zero byte");
  if (text)
    lua_rawseti(L, anchor, (lua_Integer)lua_rawlen(L, anchor) + 1);
  else
    lua_pop(L, 1);
  return text;
}

/* Reads the entry at arg. */
static void check_item(lua_State *L, mav_pack_item *item, int arg, int number, int anchor) {
  static const char *const keys[] = {"name", "dtype", "shape", "layout", "scale", "act", "in_scale", "compress", NULL};
  if (!lua_istable(L, arg)) luaL_error(L, "tensors[%d]: table expected, got %s", number, luaL_typename(L, arg));
  int top = lua_gettop(L);
  lmav_check_options(L, arg, false, keys);
  *item = (mav_pack_item){.name = anchored(L, arg, "name", anchor), .compress = lmav_opt_boolean(L, arg, "compress", false)};
  if (!item->name) luaL_error(L, "tensors[%d] has no name", number);
  if (lua_getfield(L, arg, "dtype") == LUA_TNIL || lua_getfield(L, arg, "shape") != LUA_TTABLE)
    luaL_error(L, "tensors[%d] (%s): dtype and shape are needed", number, item->name);
  item->dims = lmav_check_shape(L, lua_gettop(L), item->shape);
  lua_pop(L, 2);
  item->dtype = lmav_opt_dtype(L, arg, "dtype", MAV_DTYPE_F32);
  item->layout = anchored(L, arg, "layout", anchor);
  item->scale = anchored(L, arg, "scale", anchor);
  item->in_scale = (float)lmav_opt_number(L, arg, "in_scale", 0);
  const char *act = lmav_opt_string(L, arg, "act");
  int i = 0;
  while (act && acts[i] && strcmp(acts[i], act) != 0) i++;
  if (!acts[i]) lmav_key_error(L, arg, "act", "unknown '%s' (%s)", act, lmav_push_hint(L, act, acts));
  item->act = (mav_act)i;
  lua_settop(L, top);
}

/*lua
---Writes PATH.part and PATH.journal; finish makes PATH of them. A writer of the same plan takes up what an earlier one left.
---@class mav.PackWriter
local PackWriter = {}

---@class mav.PackItem
---@field name string
---@field dtype mav.Dtype
---@field shape integer[]
---@field layout string? "row"
---@field scale string? name of another tensor of the pack
---@field act "none"|"static"|"dynamic"|nil
---@field in_scale number? of act "static"
---@field compress boolean? LZ4 where it saves a tenth

---@class mav.PackOptions
---@field tensors mav.PackItem[] what the pack will hold, in this order
---@field meta table?
---@field rank integer? 0
---@field ranks integer? 1
---@field chunk_bytes integer? a multiple of 4096; 16 MiB
---@field sync_bytes integer? the most that a crash loses; 256 MiB
---@field fresh boolean? drop what an earlier writer left, whatever its plan
---@field progress (fun(done: integer, total: integer): boolean?)? while what an earlier writer left is read again; false: stop

---@param path string
---@param options mav.PackOptions
---@return mav.PackWriter? writer
---@return mav.Error? err
function mav.pack_writer(path, options) end
*/
static int writer_new(lua_State *L) {
  static const char *const keys[] = {"tensors", "meta", "rank", "ranks", "chunk_bytes", "sync_bytes", "fresh", "progress", NULL};
  enum { OPTIONS = 2, ANCHOR, META, TENSORS, PROGRESS, ITEMS, WRITER };
  const char *path = luaL_checkstring(L, 1);
  lmav_check_options(L, OPTIONS, false, keys);
  lua_settop(L, OPTIONS);
  mav_pack_plan plan = {.fresh = lmav_opt_boolean(L, OPTIONS, "fresh", false)};
  plan.ranks = (int)lmav_opt_integer(L, OPTIONS, "ranks", 1, 65536, 1);
  plan.rank = (int)lmav_opt_integer(L, OPTIONS, "rank", 0, plan.ranks - 1, 0);
  plan.chunk_bytes = (size_t)lmav_opt_integer(L, OPTIONS, "chunk_bytes", 4096, 1 << 30, 16 << 20);
  plan.sync_bytes = (size_t)lmav_opt_integer(L, OPTIONS, "sync_bytes", 1, (lua_Integer)1 << 53, 256 << 20);
  lua_newtable(L);
  if (lua_getfield(L, OPTIONS, "meta") == LUA_TNIL)
    lua_pushliteral(L, "{}");
  else if (lua_istable(L, -1))
    lmav_push_encoded(L, META);
  else
    return lmav_key_error(L, OPTIONS, "meta", "table expected, got %s", luaL_typename(L, -1));
  lua_replace(L, META);
  lua_settop(L, META);
  plan.meta = lua_tostring(L, META);
  if (lua_getfield(L, OPTIONS, "tensors") != LUA_TTABLE)
    return lmav_key_error(L, OPTIONS, "tensors", "list expected, got %s", luaL_typename(L, -1));
  lua_Integer count = luaL_len(L, TENSORS);
  if (count > INT_MAX / (lua_Integer)sizeof(mav_pack_item)) return lmav_key_error(L, OPTIONS, "tensors", "too many");
  watcher w = {.L = L, .at = lua_getfield(L, OPTIONS, "progress") == LUA_TNIL ? 0 : PROGRESS};
  if (w.at && !lua_isfunction(L, PROGRESS))
    return lmav_key_error(L, OPTIONS, "progress", "function expected, got %s", luaL_typename(L, PROGRESS));
  mav_pack_item *items = lua_newuserdatauv(L, (size_t)count * sizeof *items + 1, 0);
  for (lua_Integer i = 1; i <= count; i++) {
    lua_geti(L, TENSORS, i);
    lua_replace(L, OPTIONS); /* where errors point; the options have been read */
    check_item(L, &items[i - 1], OPTIONS, (int)i, ANCHOR);
  }
  plan.count = (int)count;
  plan.items = items;
  if (w.at) {
    plan.progress = watch;
    plan.user = &w;
  }
  lmav_object *u = lmav_new(L, LMAV_PACK_WRITER);
  lmav_drain(u->state);
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  mav_pack_writer *writer = NULL;
  mav_diag diag;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_pack_writer_open(&writer, path, &plan, &diag));
  if (w.raised) return lua_error(L);
  if (w.stopped) return lmav_fail(L, &diag);
  if (!err) lmav_set(u, writer, NULL);
  return lmav_result(L, err, &diag, 1);
}

static mav_pack_writer *check_writer(lua_State *L) { return lmav_check(L, 1, LMAV_PACK_WRITER)->p; }

/*lua
---What put wants next.
---@return integer index of a tensor, from 1; one more than there are: all is there
---@return integer begin its bytes that are there
function PackWriter:next() end
*/
static int writer_next(lua_State *L) {
  int tensor;
  uint64_t begin;
  mav_pack_writer_next(check_writer(L), &tensor, &begin);
  lua_pushinteger(L, tensor + 1);
  lua_pushinteger(L, (lua_Integer)begin);
  return 2;
}

/*lua
---The next bytes of tensor `index`: those of a contiguous tensor of any dtype and shape, or of them [first_byte, first_byte + bytes),
---counted from 0; without `bytes` up to the end. After an error the writer can only be closed.
---@param index integer
---@param tensor mav.Tensor
---@param first_byte? integer
---@param bytes? integer
---@return true? ok
---@return mav.Error? err
function PackWriter:put(index, tensor, first_byte, bytes) end
*/
static int writer_put(lua_State *L) {
  mav_pack_writer *w = check_writer(L);
  lua_Integer index = luaL_checkinteger(L, 2);
  mav_tensor *t = lmav_check_tensor(L, 3);
  luaL_argcheck(L, index >= 1 && index <= INT_MAX, 2, "index of a tensor of the plan expected");
  lua_Integer all = mav_tensor_count(t) * (lua_Integer)mav_dtype_bytes(mav_tensor_dtype(t)), first = luaL_optinteger(L, 4, 0);
  luaL_argcheck(L, first >= 0 && first <= all, 4, "outside the tensor");
  lua_Integer bytes = luaL_optinteger(L, 5, all - first);
  luaL_argcheck(L, bytes >= 0 && bytes <= all - first, 5, "more than the tensor has");
  void *data;
  if (mav_tensor_data(t, &data)) { /* a device's: by way of the host */
    data = lua_newuserdatauv(L, (size_t)all + 1, 0);
    if (mav_tensor_read(t, data, (size_t)all)) return lmav_raise(L, mav_runtime_diag(mav_tensor_runtime(t)));
  }
  mav_diag diag;
  mav_err err = mav_pack_writer_put(w, (int)index - 1, (const char *)data + first, (size_t)bytes, &diag);
  lua_pushboolean(L, 1);
  return lmav_result(L, err, &diag, 1);
}

/*lua
---Writes the header, syncs, and gives the file its name. All bytes must be there.
---@return true? ok
---@return mav.Error? err
function PackWriter:finish() end
*/
static int writer_finish(lua_State *L) {
  mav_diag diag;
  mav_err err = mav_pack_writer_finish(check_writer(L), &diag);
  lua_pushboolean(L, 1);
  return lmav_result(L, err, &diag, 1);
}

/*lua
---Not finished: whole chunks stay for the next writer.
function PackWriter:close() end
*/

static int writer_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_PACK_WRITER);
  if (u && u->p) {
    int tensor;
    uint64_t begin;
    mav_pack_writer_next(u->p, &tensor, &begin);
    lua_pushfstring(L, "mav.pack_writer at tensor %d, byte %I", tensor + 1, (LUAI_UACINT)begin);
  } else {
    lua_pushliteral(L, "mav.pack_writer (closed)");
  }
  return 1;
}

void lmav_open_pack(lua_State *L) {
  static const luaL_Reg methods[] = {{"names", pack_names}, {"has", pack_has},     {"info", pack_info},     {"tensor", pack_tensor},
                                     {"read", pack_read},   {"check", pack_check}, {"verify", pack_verify}, {NULL, NULL}};
  static const luaL_Reg meta[] = {{"__len", pack_len}, {"__tostring", pack_tostring}, {NULL, NULL}};
  static const luaL_Reg writer_methods[] = {{"next", writer_next}, {"put", writer_put}, {"finish", writer_finish}, {NULL, NULL}};
  static const luaL_Reg writer_meta[] = {{"__tostring", writer_tostring}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"pack", pack_new}, {"pack_writer", writer_new}, {NULL, NULL}};
  lmav_new_metatable(L, LMAV_PACK, methods, meta, pack_index);
  lmav_new_metatable(L, LMAV_PACK_WRITER, writer_methods, writer_meta, NULL);
  luaL_setfuncs(L, functions, 0);
}
