/* lua/lweights.c - weights by name from a Hugging Face directory (mapped, read only), and safetensors files.
 * Files are the world's: errors return nil, err. */
#include <stdlib.h>
#include <string.h>

#include "lmav.h"

/*lua
---The tensors of a Hugging Face directory, or of one safetensors file, mapped.
---@class mav.Weights
---@operator len: integer
local Weights = {}

---unreadable: why no tensor can be made of it.
---@alias mav.WeightInfo {dtype: mav.Dtype, shape: integer[], bytes: integer, unreadable?: string}

---@param dir string
---@param options? {runtime?: mav.Runtime}
---@return mav.Weights? weights
---@return mav.Error? err
function mav.weights(dir, options) end
*/
static int weights_new(lua_State *L) {
  static const char *const keys[] = {"runtime", NULL};
  const char *dir = luaL_checkstring(L, 1);
  int arg = lmav_check_options(L, 2, true, keys) ? 2 : 0;
  lua_settop(L, 2);
  mav_runtime *rt = lmav_push_runtime(L, arg);
  lmav_object *u = lmav_new(L, LMAV_WEIGHTS);
  lmav_drain(u->state);
  mav_weights *w = NULL;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_weights_open(&w, rt, dir));
  if (!err) lmav_set(u, w, rt);
  return lmav_result(L, err, mav_runtime_diag(rt), 1);
}

/*lua
---@return string[] names a new table
function Weights:names() end
*/
static int weights_names(lua_State *L) {
  mav_weights *w = lmav_check(L, 1, LMAV_WEIGHTS)->p;
  int count = mav_weights_count(w);
  lua_createtable(L, count, 0);
  for (int i = 0; i < count; i++) {
    lua_pushstring(L, mav_weights_name(w, i));
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/*lua
---@param name string
---@return boolean
function Weights:has(name) end
*/
static int weights_has(lua_State *L) {
  mav_weights *w = lmav_check(L, 1, LMAV_WEIGHTS)->p;
  lua_pushboolean(L, mav_weights_entry(w, luaL_checkstring(L, 2)) != NULL);
  return 1;
}

static int push_info(lua_State *L, const mav_safetensors_entry *e) {
  if (!e) {
    luaL_pushfail(L);
    return 1;
  }
  lua_createtable(L, 0, 4);
  lua_pushstring(L, mav_dtype_name(e->dtype));
  lua_setfield(L, -2, "dtype");
  if (e->unreadable) {
    lua_pushstring(L, e->unreadable);
    lua_setfield(L, -2, "unreadable");
  }
  lua_pushinteger(L, (lua_Integer)e->bytes);
  lua_setfield(L, -2, "bytes");
  lua_createtable(L, e->dims, 0);
  for (int i = 0; i < e->dims; i++) {
    lua_pushinteger(L, e->shape[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "shape");
  return 1;
}

/*lua
---@param name string
---@return mav.WeightInfo? info nil: no such tensor
function Weights:info(name) end
*/
static int weights_info(lua_State *L) {
  mav_weights *w = lmav_check(L, 1, LMAV_WEIGHTS)->p;
  return push_info(L, mav_weights_entry(w, luaL_checkstring(L, 2)));
}

/*lua
---A read-only tensor on the mapped file.
---@param name string
---@return mav.Tensor? t
---@return mav.Error? err
function Weights:get(name) end
*/
static int weights_get(lua_State *L) {
  lmav_object *u = lmav_check(L, 1, LMAV_WEIGHTS);
  const char *name = luaL_checkstring(L, 2);
  lmav_object *v = lmav_new(L, LMAV_TENSOR);
  mav_tensor *t = NULL;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_weights_get(u->p, name, &t));
  if (!err) lmav_set(v, t, u->rt);
  return lmav_result(L, err, mav_runtime_diag(u->rt), 1);
}

static int weights_len(lua_State *L) {
  lua_pushinteger(L, mav_weights_count(lmav_check(L, 1, LMAV_WEIGHTS)->p));
  return 1;
}

static int weights_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_WEIGHTS);
  if (u && u->p)
    lua_pushfstring(L, "mav.weights %d tensors", mav_weights_count(u->p));
  else
    lua_pushliteral(L, "mav.weights (closed)");
  return 1;
}

/* ---- safetensors --------------------------------------------------------------------------------------------------------- */

/*lua
---One safetensors file, mapped and fully checked.
---@class mav.Safetensors
---@operator len: integer
local Safetensors = {}

mav.safetensors = {}

---@param path string
---@return mav.Safetensors? file
---@return mav.Error? err
function mav.safetensors.open(path) end
*/
static int safetensors_open(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  lmav_object *u = lmav_new(L, LMAV_SAFETENSORS);
  lmav_drain(u->state);
  mav_safetensors *s = NULL;
  mav_diag diag;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_safetensors_open(&s, path, &diag));
  if (!err) lmav_set(u, s, NULL);
  return lmav_result(L, err, &diag, 1);
}

static const mav_safetensors_entry *find_entry(lua_State *L, const char *name) {
  mav_safetensors *s = lmav_check(L, 1, LMAV_SAFETENSORS)->p;
  for (int i = 0; i < mav_safetensors_count(s); i++) {
    const mav_safetensors_entry *e = mav_safetensors_get(s, i);
    if (!strcmp(e->name, name)) return e;
  }
  return NULL;
}

/*lua
---@return string[] names in the order of the file; a new table
function Safetensors:names() end
*/
static int safetensors_names(lua_State *L) {
  mav_safetensors *s = lmav_check(L, 1, LMAV_SAFETENSORS)->p;
  lua_createtable(L, mav_safetensors_count(s), 0);
  for (int i = 0; i < mav_safetensors_count(s); i++) {
    lua_pushstring(L, mav_safetensors_get(s, i)->name);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/*lua
---@param name string
---@return boolean
function Safetensors:has(name) end
*/
static int safetensors_has(lua_State *L) {
  lua_pushboolean(L, find_entry(L, luaL_checkstring(L, 2)) != NULL);
  return 1;
}

/*lua
---@param name string
---@return mav.WeightInfo? info
function Safetensors:info(name) end
*/
static int safetensors_info(lua_State *L) { return push_info(L, find_entry(L, luaL_checkstring(L, 2))); }

/*lua
---A copy of one tensor.
---@param name string
---@param options? {runtime?: mav.Runtime}
---@return mav.Tensor? t
---@return mav.Error? err
function Safetensors:get(name, options) end
*/
static int safetensors_get(lua_State *L) {
  static const char *const keys[] = {"runtime", NULL};
  const char *name = luaL_checkstring(L, 2);
  const mav_safetensors_entry *e = find_entry(L, name);
  int arg = lmav_check_options(L, 3, true, keys) ? 3 : 0;
  lua_settop(L, 3);
  if (!e) {
    mav_diag diag = lmav_diag(MAV_ERR_NOTFOUND, "safetensors_get", "no tensor '%s'", name);
    return lmav_result(L, diag.code, &diag, 1);
  }
  mav_runtime *rt = lmav_push_runtime(L, arg);
  lmav_object *u = lmav_new(L, LMAV_TENSOR);
  mav_tensor *t = NULL;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_tensor_new(&t, rt, e->dtype, e->dims, e->shape));
  if (!err) {
    lmav_set(u, t, rt);
    if (e->bytes) err = mav_tensor_write(t, e->data, e->bytes);
    if (!err) lmav_charge(L, rt, (int64_t)e->bytes);
  }
  return lmav_result(L, err, mav_runtime_diag(rt), 1);
}

static int compare_names(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/*lua
---Writes tensors to a file, in the order of their names, by way of a temporary name, synced and renamed.
---@param path string
---@param tensors table<string, mav.Tensor>
---@return true? ok
---@return mav.Error? err
function mav.safetensors.write(path, tensors) end
*/
static int safetensors_write(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  lua_Integer count = 0;
  lua_pushnil(L);
  for (; lua_next(L, 2); lua_pop(L, 1), count++) {
    if (lua_type(L, -2) != LUA_TSTRING) return luaL_argerror(L, 2, "names of tensors are strings");
    lmav_object *t = lmav_test(L, -1, LMAV_TENSOR);
    if (!t || !t->p)
      return luaL_argerror(L, 2, lua_pushfstring(L, "%s: open mav.tensor expected, got %s", lua_tostring(L, -2), luaL_typename(L, -1)));
  }
  const char **names = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *names, 0);
  mav_tensor **tensors = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof(mav_tensor *), 0);
  lua_Integer n = 0;
  for (lua_pushnil(L); lua_next(L, 2); lua_pop(L, 1))
    if (n < count) names[n++] = lua_tostring(L, -2); /* alive: keys of the table */
  qsort(names, (size_t)n, sizeof *names, compare_names);
  for (lua_Integer i = 0; i < n; i++) {
    lua_getfield(L, 2, names[i]);
    lmav_object *t = lmav_test(L, -1, LMAV_TENSOR);
    tensors[i] = t ? t->p : NULL;
    if (!tensors[i]) return luaL_argerror(L, 2, "the table changes while it is read");
    lua_pop(L, 1);
  }
  mav_diag diag;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_safetensors_write(path, (int)n, names, tensors, &diag));
  lua_pushboolean(L, 1);
  return lmav_result(L, err, &diag, 1);
}

static int safetensors_len(lua_State *L) {
  lua_pushinteger(L, mav_safetensors_count(lmav_check(L, 1, LMAV_SAFETENSORS)->p));
  return 1;
}

static int safetensors_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_SAFETENSORS);
  if (u && u->p)
    lua_pushfstring(L, "mav.safetensors %d tensors", mav_safetensors_count(u->p));
  else
    lua_pushliteral(L, "mav.safetensors (closed)");
  return 1;
}

void lmav_open_weights(lua_State *L) {
  static const luaL_Reg weights_methods[] = {
      {"names", weights_names}, {"has", weights_has}, {"info", weights_info}, {"get", weights_get}, {NULL, NULL}};
  static const luaL_Reg weights_meta[] = {{"__len", weights_len}, {"__tostring", weights_tostring}, {NULL, NULL}};
  static const luaL_Reg file_methods[] = {
      {"names", safetensors_names}, {"has", safetensors_has}, {"info", safetensors_info}, {"get", safetensors_get}, {NULL, NULL}};
  static const luaL_Reg file_meta[] = {{"__len", safetensors_len}, {"__tostring", safetensors_tostring}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"open", safetensors_open}, {"write", safetensors_write}, {NULL, NULL}};
  lmav_new_metatable(L, LMAV_WEIGHTS, weights_methods, weights_meta, NULL);
  lmav_new_metatable(L, LMAV_SAFETENSORS, file_methods, file_meta, NULL);
  luaL_newlib(L, functions);
  lua_setfield(L, -2, "safetensors");
  lua_pushcfunction(L, weights_new);
  lua_setfield(L, -2, "weights");
}
