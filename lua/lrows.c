/* lua/lrows.c - the ragged batch: token rows. Row numbers and parents count from 1; ids, sequences, positions and slots are
 * 0-based numbers. rows:set is on the replay path: positional, and it allocates nothing. */
#include <limits.h>
#include <string.h>

#include "lmav.h"

/*lua
---T token rows, each with (id, sequence, position, parent, slot). `#rows` is T.
---@class mav.Rows
---@field ids mav.Tensor i32 (T): the memory the device reads
---@operator len: integer
local Rows = {}

---@param n integer rows
---@param options? {runtime?: mav.Runtime}
---@return mav.Rows
function mav.rows(n, options) end
*/
static int rows_new(lua_State *L) {
  static const char *const keys[] = {"runtime", NULL};
  lua_Integer n = luaL_checkinteger(L, 1);
  luaL_argcheck(L, n >= 1 && n <= INT32_MAX, 1, "at least one row expected");
  int arg = lmav_check_options(L, 2, true, keys) ? 2 : 0;
  lua_settop(L, 2);
  mav_runtime *rt = lmav_push_runtime(L, arg);
  lmav_object *u = lmav_new(L, LMAV_ROWS);
  lmav_drain(u->state);
  mav_rows *rows = NULL;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_rows_new(&rows, rt, n));
  if (err) return lmav_raise(L, mav_runtime_diag(rt));
  lmav_set(u, rows, rt);
  return 1;
}

static int32_t check_int32(lua_State *L, int arg) {
  lua_Integer i = luaL_checkinteger(L, arg);
  luaL_argcheck(L, i >= INT32_MIN && i <= INT32_MAX, arg, "out of range");
  return (int32_t)i;
}

/*lua
---Fills row i. seq is a sequence or its number; a negative number makes the row idle. parent: an earlier row of the batch,
---0 or nil: none, the cache comes before it. slot: where its keys go; nil: its position.
---@param i integer row, from 1
---@param id integer token
---@param seq mav.Sequence|integer
---@param pos integer position, from 0
---@param parent? integer row, from 1
---@param slot? integer
function Rows:set(i, id, seq, pos, parent, slot) end
*/
static int rows_set(lua_State *L) {
  lmav_object *u = lmav_check(L, 1, LMAV_ROWS);
  lua_Integer i = luaL_checkinteger(L, 2);
  if (i < 1 || i > mav_rows_count(u->p))
    return luaL_argerror(L, 2, lua_pushfstring(L, "row %I is outside 1..%I", (LUAI_UACINT)i, (LUAI_UACINT)mav_rows_count(u->p)));
  int32_t id = check_int32(L, 3);
  int32_t seq = lua_type(L, 4) == LUA_TUSERDATA ? lmav_check(L, 4, LMAV_SEQUENCE)->number : check_int32(L, 4);
  int32_t pos = check_int32(L, 5);
  int32_t parent = lua_isnoneornil(L, 6) ? 0 : check_int32(L, 6);
  int32_t slot = lua_isnoneornil(L, 7) ? -1 : check_int32(L, 7);
  luaL_argcheck(L, parent >= 0 && parent < i, 6, "parent must be an earlier row, or 0");
  if (mav_rows_set(u->p, i - 1, id, seq, pos, parent - 1, slot)) return lmav_raise(L, mav_runtime_diag(u->rt));
  return 0;
}

/*lua
---Rows first to last of the same table, for ops that work on a part of a draft tree. Their parents still count in the table.
---@param first integer from 1
---@param last integer
---@return mav.Rows
function Rows:slice(first, last) end
*/
static int rows_slice(lua_State *L) {
  lmav_object *u = lmav_check(L, 1, LMAV_ROWS);
  lua_Integer first = luaL_checkinteger(L, 2), last = luaL_checkinteger(L, 3), count = mav_rows_count(u->p);
  luaL_argcheck(L, first >= 1 && first <= count, 2, "outside the rows");
  luaL_argcheck(L, last >= first && last <= count, 3, "outside the rows");
  lmav_object *part = lmav_new(L, LMAV_ROWS);
  mav_rows *rows = NULL;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_rows_slice(&rows, u->p, first - 1, last - first + 1));
  if (err) return lmav_raise(L, mav_runtime_diag(u->rt));
  lmav_set(part, rows, u->rt);
  return 1;
}

static int rows_len(lua_State *L) {
  lua_pushinteger(L, mav_rows_count(lmav_check(L, 1, LMAV_ROWS)->p));
  return 1;
}

static int rows_index(lua_State *L) {
  if (lmav_push_method(L)) return 1;
  lmav_object *u = lmav_check(L, 1, LMAV_ROWS);
  if (lua_type(L, 2) != LUA_TSTRING || strcmp(lua_tostring(L, 2), "ids") != 0) return 0;
  lua_getiuservalue(L, 1, 1);
  lmav_object *ids = lmav_test(L, -1, LMAV_TENSOR);
  if (ids && ids->p) return 1;
  lmav_push_tensor(L, mav_rows_ids(u->p));
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, 1, 1);
  return 1;
}

static int rows_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_ROWS);
  if (u && u->p)
    lua_pushfstring(L, "mav.rows %I", (LUAI_UACINT)mav_rows_count(u->p));
  else
    lua_pushliteral(L, "mav.rows (closed)");
  return 1;
}

void lmav_open_rows(lua_State *L) {
  static const luaL_Reg methods[] = {{"set", rows_set}, {"slice", rows_slice}, {NULL, NULL}};
  static const luaL_Reg meta[] = {{"__len", rows_len}, {"__tostring", rows_tostring}, {NULL, NULL}};
  lmav_new_metatable(L, LMAV_ROWS, methods, meta, rows_index);
  lua_pushcfunction(L, rows_new);
  lua_setfield(L, -2, "rows");
}
