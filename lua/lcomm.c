/* lua/lcomm.c - the ranks that share the work. Only the single rank exists so far. */
#include <string.h>

#include "lmav.h"

/*lua
---Ranks; `comm` of the ops that end in an all-reduce.
---@class mav.Comm
---@field rank integer from 0
---@field ranks integer
local Comm = {}

---The communicator of this process alone.
---@param options? {runtime?: mav.Runtime}
---@return mav.Comm? comm
---@return mav.Error? err
function mav.comm(options) end
*/
static int comm_new(lua_State *L) {
  static const char *const keys[] = {"runtime", NULL};
  int arg = lmav_check_options(L, 1, true, keys) ? 1 : 0;
  lua_settop(L, 1);
  mav_runtime *rt = lmav_push_runtime(L, arg);
  lmav_object *u = lmav_new(L, LMAV_COMM);
  mav_comm *c = NULL;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_comm_self(&c, rt));
  if (!err) lmav_set(u, c, rt);
  return lmav_result(L, err, mav_runtime_diag(rt), 1);
}

static int comm_index(lua_State *L) {
  if (lmav_push_method(L)) return 1;
  lmav_object *u = lmav_check(L, 1, LMAV_COMM);
  const char *key = luaL_checkstring(L, 2);
  if (!strcmp(key, "rank")) return lua_pushinteger(L, mav_comm_rank(u->p)), 1;
  if (!strcmp(key, "ranks")) return lua_pushinteger(L, mav_comm_ranks(u->p)), 1;
  return 0;
}

static int comm_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_COMM);
  if (u && u->p)
    lua_pushfstring(L, "mav.comm rank %d of %d", mav_comm_rank(u->p), mav_comm_ranks(u->p));
  else
    lua_pushliteral(L, "mav.comm (closed)");
  return 1;
}

void lmav_open_comm(lua_State *L) {
  static const luaL_Reg meta[] = {{"__tostring", comm_tostring}, {NULL, NULL}};
  lmav_new_metatable(L, LMAV_COMM, NULL, meta, comm_index);
  lua_pushcfunction(L, comm_new);
  lua_setfield(L, -2, "comm");
}
