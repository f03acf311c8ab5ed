/* lua/lkv.c - the paged KV cache, its layer handles and its sequences. Layers count from 1; positions, lengths and sequence
 * ids are 0-based numbers. reserve and commit are on the replay path: they allocate nothing on this side. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "lmav.h"

/* A number of tokens or heads for every layer, from a list or from one number; NULL: the key is absent. Stays on the stack. */
static int32_t *per_layer(lua_State *L, const char *key, int layers, lua_Integer least, lua_Integer most, bool even) {
  int type = lua_getfield(L, 1, key), source = lua_gettop(L);
  if (type == LUA_TNIL) return NULL;
  if (type != LUA_TTABLE && type != LUA_TNUMBER) lmav_key_error(L, 1, key, "list or number expected, got %s", luaL_typename(L, -1));
  if (type == LUA_TTABLE && lua_rawlen(L, -1) != (lua_Unsigned)layers)
    lmav_key_error(L, 1, key, "%d layers need as many values, got %d", layers, (int)lua_rawlen(L, -1));
  int32_t *list = lua_newuserdatauv(L, (size_t)layers * sizeof *list, 0);
  for (int i = 0; i < layers; i++) {
    if (type == LUA_TTABLE) lua_rawgeti(L, source, i + 1);
    else lua_pushvalue(L, source);
    int exact;
    lua_Integer n = lua_tointegerx(L, -1, &exact);
    if (!exact || n < least || n > most || (even && n % 2))
      lmav_key_error(L, 1, key, "layer %d: an %s from %d to %d expected", i + 1, even ? "even number" : "integer", (int)least, (int)most);
    list[i] = (int32_t)n;
    lua_pop(L, 1);
  }
  return list;
}

/* A scale for every layer, likewise. */
static float *scales(lua_State *L, const char *key, int layers) {
  int type = lua_getfield(L, 1, key), source = lua_gettop(L);
  if (type == LUA_TNIL) return NULL;
  if (type != LUA_TTABLE && type != LUA_TNUMBER) lmav_key_error(L, 1, key, "list or number expected, got %s", luaL_typename(L, -1));
  if (type == LUA_TTABLE && lua_rawlen(L, -1) != (lua_Unsigned)layers)
    lmav_key_error(L, 1, key, "%d layers need as many values, got %d", layers, (int)lua_rawlen(L, -1));
  float *list = lua_newuserdatauv(L, (size_t)layers * sizeof *list, 0);
  for (int i = 0; i < layers; i++) {
    if (type == LUA_TTABLE) lua_rawgeti(L, source, i + 1);
    else lua_pushvalue(L, source);
    int is_number;
    list[i] = (float)lua_tonumberx(L, -1, &is_number);
    if (!is_number || !(list[i] > 0) || !isfinite(list[i])) lmav_key_error(L, 1, key, "layer %d: a number above 0 expected", i + 1);
    lua_pop(L, 1);
  }
  return list;
}

/*lua
---A paged KV cache.
---@class mav.Kv
---@field layers integer
---@field sequences integer most at a time
---@field dtype string of keys and values
---@field pages_free integer of the scarcest kind of layer
---@field pages_live integer over all kinds of layers; 0 when no sequence is left
local Kv = {}

---One layer of a cache: what ops take as `kv`.
---@class mav.Layer
---@field layer integer

---A sequence of one cache. `#seq` is its length in committed tokens.
---@class mav.Sequence
---@field id integer what rows carry
---@field floor integer it cannot be truncated below this length
---@operator len: integer
local Sequence = {}

---A new cache. chunk: attention chunk of every layer (a list, or one number for all), 0: full. kv_heads and head_dim: also lists, where
---layers differ (those of a draft head, say, beside the model's: one sequence then holds both). An f8 cache holds e4m3(k / k_scale) and
---e4m3(v / v_scale); a scale for every layer (a list, or one number for all), 1 when absent.
---@param options {layers: integer, kv_heads: integer|integer[], head_dim: integer|integer[], tokens: integer, chunk?: integer|integer[], dtype?: "f32"|"bf16"|"f8", k_scale?: number|number[], v_scale?: number|number[], sequences?: integer, page?: integer, context_max?: integer, runtime?: mav.Runtime}
---@return mav.Kv? kv
---@return mav.Error? err
function mav.kv(options) end
*/
static int kv_new(lua_State *L) {
  static const char *const keys[] = {"layers", "chunk",       "kv_heads", "head_dim", "dtype",   "tokens", "sequences",
                                     "page",   "context_max", "runtime",  "k_scale",  "v_scale", NULL};
  lmav_check_options(L, 1, false, keys);
  lua_settop(L, 1);
  static const char *const required[] = {"layers", "kv_heads", "head_dim", "tokens"};
  for (int i = 0; i < 4; i++) {
    if (lua_getfield(L, 1, required[i]) == LUA_TNIL) return lmav_key_error(L, 1, required[i], "it is required");
    lua_pop(L, 1);
  }
  mav_kv_options o = {0};
  o.layers = (int)lmav_opt_integer(L, 1, "layers", 1, 1 << 20, 0);
  o.dtype = lmav_opt_dtype(L, 1, "dtype", MAV_DTYPE_BF16);
  o.tokens = lmav_opt_integer(L, 1, "tokens", 1, (lua_Integer)1 << 48, 0);
  o.sequences = (int)lmav_opt_integer(L, 1, "sequences", 0, INT_MAX, 0);
  o.page = (int)lmav_opt_integer(L, 1, "page", 0, 1 << 20, 0);
  o.context_max = lmav_opt_integer(L, 1, "context_max", 0, (lua_Integer)1 << 48, 0);
  o.chunk = per_layer(L, "chunk", o.layers, 0, INT32_MAX, false);
  o.layer_kv_heads = per_layer(L, "kv_heads", o.layers, 1, 4096, false);
  o.k_scale = scales(L, "k_scale", o.layers);
  o.v_scale = scales(L, "v_scale", o.layers);
  o.layer_head_dim = per_layer(L, "head_dim", o.layers, 2, 1024, true);
  mav_runtime *rt = lmav_push_runtime(L, 1);
  lmav_object *u = lmav_new(L, LMAV_KV);
  lmav_drain(u->state);
  mav_kv *kv = NULL;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_kv_new(&kv, rt, &o));
  if (!err) lmav_set(u, kv, rt);
  return lmav_result(L, err, mav_runtime_diag(rt), 1);
}

/*lua
---The handle of one layer.
---@param i integer layer, from 1
---@return mav.Layer
function Kv:layer(i) end
*/
static int kv_layer(lua_State *L) {
  lmav_object *u = lmav_check(L, 1, LMAV_KV);
  lua_Integer i = luaL_checkinteger(L, 2);
  int layers = mav_kv_layers(u->p);
  if (i < 1 || i > layers) return luaL_argerror(L, 2, lua_pushfstring(L, "layer %I is outside 1..%d", (LUAI_UACINT)i, layers));
  lua_settop(L, 1);
  if (lua_getiuservalue(L, 1, 1) != LUA_TTABLE) {
    lua_pop(L, 1);
    lua_createtable(L, layers, 0);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, 1, 1);
  }
  lua_rawgeti(L, 2, i);
  lmav_object *layer = lmav_test(L, -1, LMAV_LAYER);
  if (layer && layer->p) return 1;
  layer = lmav_new(L, LMAV_LAYER);
  layer->number = (int)i - 1;
  lmav_set(layer, mav_kv_retain(u->p), u->rt);
  lua_pushvalue(L, -1);
  lua_rawseti(L, 2, i);
  return 1;
}

/*lua
---A new sequence. key keys its sampling noise.
---@param options? {key?: integer}
---@return mav.Sequence? seq
---@return mav.Error? err FULL: there are as many as there may be
function Kv:sequence(options) end
*/
static int kv_sequence(lua_State *L) {
  static const char *const keys[] = {"key", NULL};
  lmav_object *u = lmav_check(L, 1, LMAV_KV);
  int arg = lmav_check_options(L, 2, true, keys) ? 2 : 0;
  int64_t key = lmav_opt_integer(L, arg, "key", INT64_MIN, INT64_MAX, 0);
  lmav_drain(u->state);
  lmav_object *s = lmav_new(L, LMAV_SEQUENCE);
  int seq = -1;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_kv_sequence_new(u->p, key, &seq));
  if (!err) {
    s->number = seq;
    lmav_set(s, mav_kv_retain(u->p), u->rt);
  }
  return lmav_result(L, err, mav_runtime_diag(u->rt), 1);
}

static int kv_index(lua_State *L) {
  if (lmav_push_method(L)) return 1;
  lmav_object *u = lmav_check(L, 1, LMAV_KV);
  const char *key = luaL_checkstring(L, 2);
  if (!strcmp(key, "pages_free") || !strcmp(key, "pages_live")) {
    lmav_drain(u->state);
    lua_pushinteger(L, key[6] == 'f' ? mav_kv_pages_free(u->p) : mav_kv_pages_live(u->p));
    return 1;
  }
  if (!strcmp(key, "layers")) return lua_pushinteger(L, mav_kv_layers(u->p)), 1;
  if (!strcmp(key, "sequences")) return lua_pushinteger(L, mav_kv_sequences(u->p)), 1;
  if (!strcmp(key, "dtype")) return lua_pushstring(L, mav_dtype_name(mav_kv_dtype(u->p))), 1;
  return 0;
}

static int kv_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_KV);
  if (u && u->p)
    lua_pushfstring(L, "mav.kv %d layers, %I pages free", mav_kv_layers(u->p), (LUAI_UACINT)mav_kv_pages_free(u->p));
  else
    lua_pushliteral(L, "mav.kv (closed)");
  return 1;
}

static int layer_index(lua_State *L) {
  if (lmav_push_method(L)) return 1;
  lmav_object *u = lmav_check(L, 1, LMAV_LAYER);
  if (lua_type(L, 2) != LUA_TSTRING || strcmp(lua_tostring(L, 2), "layer") != 0) return 0;
  lua_pushinteger(L, u->number + 1);
  return 1;
}

static int layer_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_LAYER);
  if (u && u->p)
    lua_pushfstring(L, "mav.kv.layer %d", u->number + 1);
  else
    lua_pushliteral(L, "mav.kv.layer (closed)");
  return 1;
}

/* ---- sequences --------------------------------------------------------------------------------------------------------- */

static lmav_object *check_sequence(lua_State *L, int arg) { return lmav_check(L, arg, LMAV_SEQUENCE); }

/*lua
---A new sequence with the same tokens; whole pages are shared until one side writes.
---@param options? {key?: integer}
---@return mav.Sequence? seq
---@return mav.Error? err
function Sequence:fork(options) end
*/
static int sequence_fork(lua_State *L) {
  static const char *const keys[] = {"key", NULL};
  lmav_object *u = check_sequence(L, 1);
  int arg = lmav_check_options(L, 2, true, keys) ? 2 : 0;
  int64_t key = lmav_opt_integer(L, arg, "key", INT64_MIN, INT64_MAX, 0);
  lmav_drain(u->state);
  lmav_object *s = lmav_new(L, LMAV_SEQUENCE);
  int seq = -1;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_kv_sequence_fork(u->p, u->number, key, &seq));
  if (!err) {
    s->number = seq;
    lmav_set(s, mav_kv_retain(u->p), u->rt);
  }
  return lmav_result(L, err, mav_runtime_diag(u->rt), 1);
}

static int64_t check_tokens(lua_State *L, int arg) {
  lua_Integer n = luaL_checkinteger(L, arg);
  luaL_argcheck(L, n >= 0, arg, "a number of tokens expected");
  return n;
}

static int sequence_result(lua_State *L, lmav_object *u, mav_err err) {
  lua_pushboolean(L, 1);
  return lmav_result(L, err, mav_runtime_diag(u->rt), 1);
}

/*lua
---Drops the tokens from this length on. Raises below the floor.
---@param length integer
---@return true? ok
---@return mav.Error? err
function Sequence:truncate(length) end
*/
static int sequence_truncate(lua_State *L) {
  lmav_object *u = check_sequence(L, 1);
  return sequence_result(L, u, mav_kv_sequence_truncate(u->p, u->number, check_tokens(L, 2)));
}

/*lua
---Makes the next n positions writable: pages are allocated, shared ones copied. Before rows that append.
---@param n integer
---@return true? ok
---@return mav.Error? err FULL: no pages left
function Sequence:reserve(n) end
*/
static int sequence_reserve(lua_State *L) {
  lmav_object *u = check_sequence(L, 1);
  int64_t n = check_tokens(L, 2);
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_kv_sequence_reserve(u->p, u->number, n));
  return sequence_result(L, u, err);
}

/*lua
---n appended tokens become part of the sequence.
---@param n integer
---@return true? ok
---@return mav.Error? err
function Sequence:commit(n) end
*/
static int sequence_commit(lua_State *L) {
  lmav_object *u = check_sequence(L, 1);
  return sequence_result(L, u, mav_kv_sequence_commit(u->p, u->number, check_tokens(L, 2)));
}

/*lua
---Gives its pages back. A second call does nothing.
function Sequence:close() end
*/

static int sequence_len(lua_State *L) {
  lmav_object *u = check_sequence(L, 1);
  lua_pushinteger(L, mav_kv_sequence_length(u->p, u->number));
  return 1;
}

static int sequence_index(lua_State *L) {
  if (lmav_push_method(L)) return 1;
  lmav_object *u = check_sequence(L, 1);
  const char *key = luaL_checkstring(L, 2);
  if (!strcmp(key, "id")) return lua_pushinteger(L, u->number), 1;
  if (!strcmp(key, "floor")) return lua_pushinteger(L, mav_kv_sequence_floor(u->p, u->number)), 1;
  return 0;
}

static int sequence_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_SEQUENCE);
  if (u && u->p)
    lua_pushfstring(L, "mav.sequence %d, %I tokens", u->number, (LUAI_UACINT)mav_kv_sequence_length(u->p, u->number));
  else
    lua_pushliteral(L, "mav.sequence (closed)");
  return 1;
}

void lmav_open_kv(lua_State *L) {
  static const luaL_Reg kv_methods[] = {{"layer", kv_layer}, {"sequence", kv_sequence}, {NULL, NULL}};
  static const luaL_Reg kv_meta[] = {{"__tostring", kv_tostring}, {NULL, NULL}};
  static const luaL_Reg layer_meta[] = {{"__tostring", layer_tostring}, {NULL, NULL}};
  static const luaL_Reg sequence_methods[] = {
      {"fork", sequence_fork}, {"truncate", sequence_truncate}, {"reserve", sequence_reserve}, {"commit", sequence_commit}, {NULL, NULL}};
  static const luaL_Reg sequence_meta[] = {{"__len", sequence_len}, {"__tostring", sequence_tostring}, {NULL, NULL}};
  lmav_new_metatable(L, LMAV_KV, kv_methods, kv_meta, kv_index);
  lmav_new_metatable(L, LMAV_LAYER, NULL, layer_meta, layer_index);
  lmav_new_metatable(L, LMAV_SEQUENCE, sequence_methods, sequence_meta, sequence_index);
  lua_pushcfunction(L, kv_new);
  lua_setfield(L, -2, "kv");
}
