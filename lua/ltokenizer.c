/* lua/ltokenizer.c - tokenizers and their streaming decoders. Token ids are the model's own numbers, from 0. */
#include <string.h>

#include "lmav.h"

/*lua
---A byte-level BPE tokenizer. `#tok` is one more than the largest id.
---@class mav.Tokenizer
---@operator len: integer
local Tokenizer = {}

---Gives text as soon as it is complete UTF-8.
---@class mav.Stream
local Stream = {}

---@param path string tokenizer.json, or its directory
---@return mav.Tokenizer? tok
---@return mav.Error? err
function mav.tokenizer(path) end
*/
static int tokenizer_new(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  lmav_object *u = lmav_new(L, LMAV_TOKENIZER);
  lmav_drain(u->state);
  mav_tokenizer *t = NULL;
  mav_diag diag;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_tokenizer_open(&t, path, &diag));
  if (!err) lmav_set(u, t, NULL);
  return lmav_result(L, err, &diag, 1);
}

static mav_tokenizer *check(lua_State *L) { return lmav_check(L, 1, LMAV_TOKENIZER)->p; }

/* Empties a box at once, instead of leaving its memory to the collector. */
static void empty(lmav_object *box) {
  mav_free(box->p);
  box->p = NULL;
}

/*lua
---bos: begin with what the tokenizer's post-processor prepends (true). special: special tokens in the text become single
---ids (false: they are plain text).
---@param text string UTF-8
---@param options? {bos?: boolean, special?: boolean}
---@return integer[]? ids
---@return mav.Error? err the text is not UTF-8
function Tokenizer:encode(text, options) end
*/
static int tokenizer_encode(lua_State *L) {
  static const char *const keys[] = {"bos", "special", NULL};
  mav_tokenizer *t = check(L);
  size_t bytes;
  const char *text = luaL_checklstring(L, 2, &bytes);
  int arg = lmav_check_options(L, 3, true, keys) ? 3 : 0;
  int flags =
      (lmav_opt_boolean(L, arg, "bos", true) ? MAV_ENCODE_BOS : 0) | (lmav_opt_boolean(L, arg, "special", false) ? MAV_ENCODE_SPECIAL : 0);
  lmav_object *box = lmav_new(L, LMAV_BOX);
  int32_t *ids = NULL;
  size_t count = 0;
  mav_diag diag;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_tokenizer_encode(t, text, bytes, flags, &ids, &count, &diag));
  if (err) return lmav_fail(L, &diag); /* text is the world's */
  box->p = ids;
  lua_createtable(L, count < INT32_MAX ? (int)count : 0, 0);
  for (size_t i = 0; i < count; i++) {
    lua_pushinteger(L, ids[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  empty(box);
  return 1;
}

/*lua
---The text of ids; bytes that are not UTF-8 become U+FFFD.
---@param ids integer[]
---@param options? {skip_special?: boolean}
---@return string? text
---@return mav.Error? err
function Tokenizer:decode(ids, options) end
*/
static int tokenizer_decode(lua_State *L) {
  static const char *const keys[] = {"skip_special", NULL};
  mav_tokenizer *t = check(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  int arg = lmav_check_options(L, 3, true, keys) ? 3 : 0;
  bool skip = lmav_opt_boolean(L, arg, "skip_special", false);
  lua_Integer count = luaL_len(L, 2);
  int32_t *ids = lua_newuserdatauv(L, ((size_t)count + 1) * sizeof *ids, 0);
  for (lua_Integer i = 0; i < count; i++) {
    lua_geti(L, 2, i + 1);
    int exact;
    lua_Integer id = lua_tointegerx(L, -1, &exact);
    if (!exact || id < INT32_MIN || id > INT32_MAX)
      return luaL_argerror(L, 2,
                           lua_pushfstring(L, "element %I: token id expected, got %s", (LUAI_UACINT)(i + 1), luaL_tolstring(L, -1, NULL)));
    ids[i] = (int32_t)id;
    lua_pop(L, 1);
  }
  lmav_object *box = lmav_new(L, LMAV_BOX);
  char *text = NULL;
  size_t bytes = 0;
  mav_diag diag;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_tokenizer_decode(t, ids, (size_t)count, skip, &text, &bytes, &diag));
  if (err) return lmav_result(L, err, &diag, 1);
  box->p = text;
  lua_pushlstring(L, text, bytes);
  empty(box);
  return 1;
}

/*lua
---@param id integer
---@return string? piece its raw bytes; nil: no such id
---@return boolean? special
function Tokenizer:piece(id) end
*/
static int tokenizer_piece(lua_State *L) {
  mav_tokenizer *t = check(L);
  lua_Integer id = luaL_checkinteger(L, 2);
  size_t bytes = 0;
  bool special = false;
  const char *piece = id < 0 || id > INT32_MAX ? NULL : mav_tokenizer_piece(t, (int32_t)id, &bytes, &special);
  if (!piece) {
    luaL_pushfail(L);
    return 1;
  }
  lua_pushlstring(L, piece, bytes);
  lua_pushboolean(L, special);
  return 2;
}

/*lua
---The id of a token with exactly this content, special or not.
---@param content string
---@return integer? id
function Tokenizer:find(content) end
*/
static int tokenizer_find(lua_State *L) {
  int32_t id = mav_tokenizer_find(check(L), luaL_checkstring(L, 2));
  if (id < 0)
    luaL_pushfail(L);
  else
    lua_pushinteger(L, id);
  return 1;
}

/*lua
---A new streaming decoder.
---@param options? {skip_special?: boolean}
---@return mav.Stream? stream
---@return mav.Error? err
function Tokenizer:stream(options) end
*/
static int tokenizer_stream(lua_State *L) {
  static const char *const keys[] = {"skip_special", NULL};
  mav_tokenizer *t = check(L);
  int arg = lmav_check_options(L, 2, true, keys) ? 2 : 0;
  bool skip = lmav_opt_boolean(L, arg, "skip_special", false);
  lmav_object *u = lmav_new(L, LMAV_STREAM);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  mav_detokenizer *d = NULL;
  mav_diag diag;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_detokenizer_new(&d, t, skip, &diag));
  if (!err) lmav_set(u, d, NULL);
  return lmav_result(L, err, &diag, 1);
}

static int stream_result(lua_State *L, mav_err err, const mav_diag *diag, const char *text, size_t bytes) {
  if (!err) lua_pushlstring(L, text, bytes);
  return lmav_result(L, err, diag, 1);
}

/*lua
---@param id integer
---@return string? text what is complete now, often ""
---@return mav.Error? err
function Stream:push(id) end
*/
static int stream_push(lua_State *L) {
  lmav_object *u = lmav_check(L, 1, LMAV_STREAM);
  lua_Integer id = luaL_checkinteger(L, 2);
  luaL_argcheck(L, id >= 0 && id <= INT32_MAX, 2, "token id expected");
  const char *text = "";
  size_t bytes = 0;
  mav_diag diag;
  mav_err err = mav_detokenizer_push(u->p, (int32_t)id, &text, &bytes, &diag);
  return stream_result(L, err, &diag, text, bytes);
}

/*lua
---What is left: an incomplete sequence as U+FFFD.
---@return string? text
---@return mav.Error? err
function Stream:finish() end
*/
static int stream_finish(lua_State *L) {
  lmav_object *u = lmav_check(L, 1, LMAV_STREAM);
  const char *text = "";
  size_t bytes = 0;
  mav_diag diag;
  mav_err err = mav_detokenizer_finish(u->p, &text, &bytes, &diag);
  return stream_result(L, err, &diag, text, bytes);
}

static int tokenizer_len(lua_State *L) {
  lua_pushinteger(L, mav_tokenizer_size(check(L)));
  return 1;
}

static int tokenizer_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_TOKENIZER);
  if (u && u->p)
    lua_pushfstring(L, "mav.tokenizer %d ids", mav_tokenizer_size(u->p));
  else
    lua_pushliteral(L, "mav.tokenizer (closed)");
  return 1;
}

static int stream_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_STREAM);
  lua_pushstring(L, u && u->p ? "mav.stream" : "mav.stream (closed)");
  return 1;
}

void lmav_open_tokenizer(lua_State *L) {
  static const luaL_Reg methods[] = {{"encode", tokenizer_encode}, {"decode", tokenizer_decode}, {"piece", tokenizer_piece},
                                     {"find", tokenizer_find},     {"stream", tokenizer_stream}, {NULL, NULL}};
  static const luaL_Reg meta[] = {{"__len", tokenizer_len}, {"__tostring", tokenizer_tostring}, {NULL, NULL}};
  static const luaL_Reg stream_methods[] = {{"push", stream_push}, {"finish", stream_finish}, {NULL, NULL}};
  static const luaL_Reg stream_meta[] = {{"__tostring", stream_tostring}, {NULL, NULL}};
  lmav_new_metatable(L, LMAV_TOKENIZER, methods, meta, NULL);
  lmav_new_metatable(L, LMAV_STREAM, stream_methods, stream_meta, NULL);
  lua_pushcfunction(L, tokenizer_new);
  lua_setfield(L, -2, "tokenizer");
}
