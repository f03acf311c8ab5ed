/* lua/lgguf.c - GGUF files: metadata by key, tensors by name. Files are the world's: errors return nil, err. */
#include <stdint.h>

#include "lmav.h"

/*lua
---A GGUF file, mapped and fully checked.
---@class mav.Gguf
---@operator len: integer
local Gguf = {}

---type: as the file has it; dtype: of tensors made of it; unreadable: why none can be made.
---@alias mav.GgufInfo {type: string, dtype: mav.Dtype, shape: integer[], bytes: integer, unreadable?: string}

---@param path string
---@return mav.Gguf? file
---@return mav.Error? err
function mav.gguf(path) end
*/
static int gguf_new(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  lmav_object *u = lmav_new(L, LMAV_GGUF);
  lmav_drain(u->state);
  mav_gguf *g = NULL;
  mav_diag diag;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_gguf_open(&g, path, &diag));
  if (!err) lmav_set(u, g, NULL);
  return lmav_result(L, err, &diag, 1);
}

static mav_gguf *check_gguf(lua_State *L) { return lmav_check(L, 1, LMAV_GGUF)->p; }

/*lua
---@return string[] names of the tensors; a new table
function Gguf:names() end
*/
static int gguf_names(lua_State *L) {
  mav_gguf *g = check_gguf(L);
  int count = mav_gguf_count(g);
  lua_createtable(L, count, 0);
  for (int i = 0; i < count; i++) {
    lua_pushstring(L, mav_gguf_get(g, i)->name);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/*lua
---@param name string
---@return boolean
function Gguf:has(name) end
*/
static int gguf_has(lua_State *L) {
  mav_gguf *g = check_gguf(L);
  lua_pushboolean(L, mav_gguf_find(g, luaL_checkstring(L, 2)) >= 0);
  return 1;
}

/*lua
---@param name string
---@return mav.GgufInfo? info nil: no such tensor
function Gguf:info(name) end
*/
static int gguf_info(lua_State *L) {
  mav_gguf *g = check_gguf(L);
  const mav_gguf_entry *e = mav_gguf_get(g, mav_gguf_find(g, luaL_checkstring(L, 2)));
  if (!e) {
    luaL_pushfail(L);
    return 1;
  }
  lua_createtable(L, 0, 5);
  lua_pushstring(L, e->type);
  lua_setfield(L, -2, "type");
  lua_pushstring(L, mav_dtype_name(e->dtype));
  lua_setfield(L, -2, "dtype");
  lua_pushinteger(L, (lua_Integer)e->bytes);
  lua_setfield(L, -2, "bytes");
  if (e->unreadable) {
    lua_pushstring(L, e->unreadable);
    lua_setfield(L, -2, "unreadable");
  }
  lua_createtable(L, e->dims, 0);
  for (int i = 0; i < e->dims; i++) {
    lua_pushinteger(L, e->shape[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "shape");
  return 1;
}

/*lua
---Rows of a tensor, (count, columns), all dimensions but the last taken together: read-only on the mapped file, or widened to f32.
---@param name string
---@param first? integer from 1
---@param last? integer the last one
---@param options? {runtime?: mav.Runtime}
---@return mav.Tensor? t
---@return mav.Error? err
function Gguf:rows(name, first, last, options) end
*/
static int gguf_rows(lua_State *L) {
  static const char *const keys[] = {"runtime", NULL};
  mav_gguf *g = check_gguf(L);
  const char *name = luaL_checkstring(L, 2);
  int i = mav_gguf_find(g, name);
  int arg = lmav_check_options(L, 5, true, keys) ? 5 : 0;
  const mav_gguf_entry *e = mav_gguf_get(g, i);
  lua_settop(L, 5);
  if (!e) {
    mav_diag diag = lmav_diag(MAV_ERR_NOTFOUND, "gguf_rows", "no tensor '%s'", name);
    return lmav_result(L, diag.code, &diag, 1);
  }
  lua_Integer rows = 1;
  for (int d = 0; d + 1 < e->dims; d++) rows *= e->shape[d];
  lua_Integer first = luaL_optinteger(L, 3, 1), last = luaL_optinteger(L, 4, rows);
  luaL_argcheck(L, first >= 1 && first <= rows, 3, "outside the tensor");
  luaL_argcheck(L, last >= first - 1 && last <= rows, 4, "outside the tensor");
  mav_runtime *rt = lmav_push_runtime(L, arg);
  lmav_object *u = lmav_new(L, LMAV_TENSOR);
  lmav_drain(u->state);
  mav_tensor *t = NULL;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_gguf_rows(g, i, rt, first - 1, last - first + 1, &t));
  if (!err) {
    lmav_set(u, t, rt);
    if (e->is_blocks) lmav_charge(L, rt, mav_tensor_count(t) * (int64_t)mav_dtype_bytes(e->dtype));
  }
  return lmav_result(L, err, mav_runtime_diag(rt), 1);
}

/*lua
---@return string[] keys of the metadata; a new table
function Gguf:keys() end
*/
static int gguf_keys(lua_State *L) {
  mav_gguf *g = check_gguf(L);
  int count = mav_gguf_keys(g);
  lua_createtable(L, count, 0);
  for (int i = 0; i < count; i++) {
    lua_pushstring(L, mav_gguf_get_key(g, i)->key);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

static void push_item(lua_State *L, const mav_gguf_value *v, const mav_gguf_item *item) {
  if (v->of == MAV_GGUF_STRING)
    lua_pushlstring(L, item->text, item->bytes);
  else if (v->of == MAV_GGUF_BOOL)
    lua_pushboolean(L, item->integer != 0);
  else if (v->of == MAV_GGUF_F32 || v->of == MAV_GGUF_F64 || (v->of == MAV_GGUF_U64 && item->integer < 0))
    lua_pushnumber(L, item->real);
  else
    lua_pushinteger(L, item->integer);
}

/*lua
---A value of the metadata; an array as a table.
---@param key string
---@return any value nil: no such key
---@return string? type "u32", "f32", "bool", "string", "array", ...
function Gguf:value(key) end
*/
static int gguf_value(lua_State *L) {
  static const char *const types[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
  mav_gguf *g = check_gguf(L);
  const mav_gguf_value *v = mav_gguf_get_key(g, mav_gguf_find_key(g, luaL_checkstring(L, 2)));
  if (!v) {
    luaL_pushfail(L);
    return 1;
  }
  const void *at = NULL;
  mav_gguf_item item;
  if (v->type == MAV_GGUF_ARRAY) lua_newtable(L);
  while (mav_gguf_next(v, &at, &item)) {
    push_item(L, v, &item);
    if (v->type == MAV_GGUF_ARRAY) lua_rawseti(L, -2, (lua_Integer)item.index);
  }
  lua_pushstring(L, types[v->type]);
  return 2;
}

/*lua
---Gives this reference up. The file stays mapped while a tensor is on it.
function Gguf:close() end
*/

static int gguf_len(lua_State *L) {
  lua_pushinteger(L, mav_gguf_count(check_gguf(L)));
  return 1;
}

static int gguf_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_GGUF);
  if (u && u->p)
    lua_pushfstring(L, "mav.gguf %d tensors", mav_gguf_count(u->p));
  else
    lua_pushliteral(L, "mav.gguf (closed)");
  return 1;
}

void lmav_open_gguf(lua_State *L) {
  static const luaL_Reg methods[] = {{"names", gguf_names}, {"has", gguf_has},     {"info", gguf_info}, {"rows", gguf_rows},
                                     {"keys", gguf_keys},   {"value", gguf_value}, {NULL, NULL}};
  static const luaL_Reg meta[] = {{"__len", gguf_len}, {"__tostring", gguf_tostring}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"gguf", gguf_new}, {NULL, NULL}};
  lmav_new_metatable(L, LMAV_GGUF, methods, meta, NULL);
  luaL_setfuncs(L, functions, 0);
}
