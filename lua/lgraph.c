/* lua/lgraph.c - capture and replay.
 *
 *   mav.graph(options, fn):  open --fn returns--> kept --end--> ready --launch--> ready
 *                             `--any error--> aborted, and the error is raised again
 *
 * A capture is one protected call: whatever raises inside (the function, a tensor that is not one, memory) aborts it. While it
 * is open the collector is stopped and nothing is released. launch, wait and poll allocate nothing. */
#include <limits.h>
#include <string.h>

#include "lmav.h"

/*lua
---A captured list of ops with planned memory, replayed with no Lua in it. `graph[i]` is the i-th returned tensor.
---@class mav.Graph
---@field outputs mav.Tensor[] what the captured function returned; readable after a launch
---@field rows mav.Rows
---@field [integer] mav.Tensor
local Graph = {}
*/

#define GRAPH_OUTPUTS 1
#define GRAPH_ROWS 2

/* The message handler of a capture: the traceback of a string is part of it, that of an error object a field. */
static int add_traceback(lua_State *L) {
  if (lua_type(L, 1) == LUA_TSTRING) {
    luaL_traceback(L, L, lua_tostring(L, 1), 1);
    return 1;
  }
  if (lua_istable(L, 1) && luaL_getmetafield(L, 1, "__name") == LUA_TSTRING && !strcmp(lua_tostring(L, -1), "mav.error")) {
    luaL_traceback(L, L, NULL, 1);
    lua_setfield(L, 1, "traceback");
  }
  lua_settop(L, 1);
  return 1;
}

static void keep(lua_State *L, mav_graph *g, mav_tensor *t) {
  if (!mav_tensor_is_planned(t)) return;
  mav_runtime *rt = mav_tensor_runtime(t);
  if (mav_graph_keep(g, t)) lmav_raise(L, mav_runtime_diag(rt));
}

/* Runs the function (1) on the rows (2) for the graph (3); returns the table of its tensors. */
static int capture(lua_State *L) {
  lmav_object *u = lua_touserdata(L, 3);
  lua_pushvalue(L, 1);
  lua_pushvalue(L, 2);
  lua_call(L, 1, LUA_MULTRET);
  int first = 4, last = lua_gettop(L);
  luaL_checkstack(L, 4, NULL);
  lua_createtable(L, last - first + 1, 0);
  for (int i = first; i <= last; i++) {
    lmav_object *t = lmav_test(L, i, LMAV_TENSOR);
    if (!t || !t->p)
      return luaL_error(L, "the captured function returned %s as value %d: tensors expected", luaL_tolstring(L, i, NULL), i - first + 1);
    keep(L, u->p, t->p);
    lua_pushvalue(L, i);
    lua_rawseti(L, -2, i - first + 1);
  }
  return 1;
}

/*lua
---Captures what fn(rows) runs. rows: how many, or a mav.Rows. Tensors made inside belong to the plan; only those that fn returns,
---or marks with mav.keep, may be read afterwards. An error inside gives the capture up and is raised again.
---@param options {rows: integer|mav.Rows, runtime?: mav.Runtime}
---@param fn fun(rows: mav.Rows): ...
---@return mav.Graph
function mav.graph(options, fn) end
*/
static int graph_new(lua_State *L) {
  static const char *const keys[] = {"rows", "runtime", NULL};
  lmav_check_options(L, 1, false, keys);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_settop(L, 2);
  lmav_state *state = lmav_get_state(L);
  if (state->capture) return luaL_error(L, "a capture is open already");
  int type = lua_getfield(L, 1, "rows");
  lmav_object *rows = lmav_test(L, 3, LMAV_ROWS);
  if (type == LUA_TNUMBER) {
    int exact;
    lua_Integer n = lua_tointegerx(L, 3, &exact);
    if (!exact || n < 1 || n > INT32_MAX) return lmav_key_error(L, 1, "rows", "at least one row expected");
    mav_runtime *rt = lmav_push_runtime(L, 1);
    rows = lmav_new(L, LMAV_ROWS);
    mav_rows *r = NULL;
    mav_err err;
    LMAV_TRY_TWICE(L, err, mav_rows_new(&r, rt, n));
    if (err) return lmav_raise(L, mav_runtime_diag(rt));
    lmav_set(rows, r, rt);
    lua_replace(L, 3);
    lua_settop(L, 3);
  } else if (!rows || !rows->p) {
    return lmav_key_error(L, 1, "rows", "number or mav.rows expected, got %s", rows ? "a closed one" : luaL_typename(L, 3));
  }
  mav_runtime *rt = rows->rt;
  lua_getfield(L, 1, "runtime");
  lmav_object *given = lmav_test(L, 4, LMAV_RUNTIME);
  if (!lua_isnil(L, 4) && (!given || given->p != (void *)rt)) return lmav_key_error(L, 1, "runtime", "it is not the runtime of the rows");
  lua_settop(L, 3);

  lmav_object *u = lmav_new(L, LMAV_GRAPH); /* 4 */
  lua_pushvalue(L, 3);
  lua_setiuservalue(L, 4, GRAPH_ROWS);
  lua_pushcfunction(L, add_traceback); /* 5 */
  lua_pushcfunction(L, capture);       /* 6: called with the function, the rows, the graph */
  lua_pushvalue(L, 2);
  lua_pushvalue(L, 3);
  lua_pushvalue(L, 4);
  lmav_drain(state);
  mav_graph *g = NULL;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_graph_begin(&g, rt, rows->p));
  if (err) return lmav_raise(L, mav_runtime_diag(rt));
  lmav_set(u, g, rt);
  state->capture = g;
  state->capture_rt = rt;
  int running = lua_gc(L, LUA_GCISRUNNING);
  lua_gc(L, LUA_GCSTOP);
  int status = lua_pcall(L, 3, 1, 5);
  if (status == LUA_OK) err = mav_graph_end(g);
  if (status != LUA_OK || err) mav_graph_abort(g);
  state->capture = NULL;
  state->capture_rt = NULL;
  if (running) lua_gc(L, LUA_GCRESTART);
  if (status != LUA_OK) return lua_error(L);
  if (err) return lmav_raise(L, mav_runtime_diag(rt));
  lua_setiuservalue(L, 4, GRAPH_OUTPUTS);
  lua_settop(L, 4);
  return 1;
}

/*lua
---In a capture: gives a tensor memory of its own, so that it can be read after a launch. Returns it.
---@param t mav.Tensor
---@return mav.Tensor
function mav.keep(t) end
*/
static int graph_keep(lua_State *L) {
  lmav_state *state = lmav_get_state(L);
  mav_tensor *t = lmav_check_tensor(L, 1);
  if (!state->capture) return luaL_error(L, "keep: no capture is open");
  keep(L, state->capture, t);
  lua_settop(L, 1);
  return 1;
}

/*lua
---Starts a replay; may return before it is done.
---@return mav.Graph self
function Graph:launch() end
*/
static int graph_launch(lua_State *L) {
  lmav_object *u = lmav_check(L, 1, LMAV_GRAPH);
  if (mav_graph_launch(u->p)) return lmav_raise(L, mav_runtime_diag(u->rt));
  lua_settop(L, 1);
  return 1;
}

/*lua
---Blocks until the last launch is done.
---@return mav.Graph self
function Graph:wait() end
*/
static int graph_wait(lua_State *L) {
  lmav_object *u = lmav_check(L, 1, LMAV_GRAPH);
  if (mav_graph_wait(u->p)) return lmav_raise(L, mav_runtime_diag(u->rt));
  lmav_drain(u->state);
  lua_settop(L, 1);
  return 1;
}

/*lua
---@return boolean done
function Graph:poll() end
*/
static int graph_poll(lua_State *L) {
  lua_pushboolean(L, mav_graph_poll(lmav_check(L, 1, LMAV_GRAPH)->p));
  return 1;
}

/*lua
---kernels: that a launch starts on a device, elsewhere one for every op; planned_bytes: memory with reuse; unplanned_bytes: without;
---last_us: of the last launch.
---@return {ops: integer, kernels: integer, launches: integer, planned_bytes: integer, unplanned_bytes: integer, last_us: number}
function Graph:stats() end
*/
static int graph_stats(lua_State *L) {
  mav_graph_stats s;
  mav_graph_get_stats(lmav_check(L, 1, LMAV_GRAPH)->p, &s);
  lua_createtable(L, 0, 6);
  lua_pushinteger(L, s.ops);
  lua_setfield(L, -2, "ops");
  lua_pushinteger(L, s.kernels);
  lua_setfield(L, -2, "kernels");
  lua_pushinteger(L, s.launches);
  lua_setfield(L, -2, "launches");
  lua_pushinteger(L, s.planned_bytes);
  lua_setfield(L, -2, "planned_bytes");
  lua_pushinteger(L, s.unplanned_bytes);
  lua_setfield(L, -2, "unplanned_bytes");
  lua_pushnumber(L, (lua_Number)s.last_ns * 1e-3);
  lua_setfield(L, -2, "last_us");
  return 1;
}

/*lua
---Runs the graph once and times every op.
---@return {op: string, us: number}[]
function Graph:profile() end
*/
static int graph_profile(lua_State *L) {
  lmav_object *u = lmav_check(L, 1, LMAV_GRAPH);
  mav_graph_stats s;
  mav_graph_get_stats(u->p, &s);
  int *op = lua_newuserdatauv(L, (size_t)(s.ops + 1) * sizeof *op, 0);
  int64_t *ns = lua_newuserdatauv(L, (size_t)(s.ops + 1) * sizeof *ns, 0);
  if (mav_graph_profile(u->p, op, ns)) return lmav_raise(L, mav_runtime_diag(u->rt));
  lua_createtable(L, (int)s.ops, 0);
  for (int64_t i = 0; i < s.ops; i++) {
    lua_createtable(L, 0, 2);
    lua_pushstring(L, mav_op_get(op[i])->name);
    lua_setfield(L, -2, "op");
    lua_pushnumber(L, (lua_Number)ns[i] * 1e-3);
    lua_setfield(L, -2, "us");
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

static int graph_index(lua_State *L) {
  if (lua_isinteger(L, 2)) {
    lmav_check(L, 1, LMAV_GRAPH);
    lua_getiuservalue(L, 1, GRAPH_OUTPUTS);
    lua_rawgeti(L, -1, lua_tointeger(L, 2));
    return 1;
  }
  if (lmav_push_method(L)) return 1;
  lmav_check(L, 1, LMAV_GRAPH);
  const char *key = luaL_checkstring(L, 2);
  if (!strcmp(key, "outputs")) return lua_getiuservalue(L, 1, GRAPH_OUTPUTS), 1;
  if (!strcmp(key, "rows")) return lua_getiuservalue(L, 1, GRAPH_ROWS), 1;
  return 0;
}

static int graph_len(lua_State *L) {
  lmav_check(L, 1, LMAV_GRAPH);
  lua_getiuservalue(L, 1, GRAPH_OUTPUTS);
  lua_pushinteger(L, (lua_Integer)lua_rawlen(L, -1));
  return 1;
}

static int graph_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_GRAPH);
  if (!u || !u->p) {
    lua_pushliteral(L, "mav.graph (closed)");
    return 1;
  }
  mav_graph_stats s;
  mav_graph_get_stats(u->p, &s);
  lua_pushfstring(L, "mav.graph %I rows, %I ops", (LUAI_UACINT)mav_rows_count(mav_graph_rows(u->p)), (LUAI_UACINT)s.ops);
  return 1;
}

void lmav_open_graph(lua_State *L) {
  static const luaL_Reg methods[] = {{"launch", graph_launch}, {"wait", graph_wait},       {"poll", graph_poll},
                                     {"stats", graph_stats},   {"profile", graph_profile}, {NULL, NULL}};
  static const luaL_Reg meta[] = {{"__len", graph_len}, {"__tostring", graph_tostring}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"graph", graph_new}, {"keep", graph_keep}, {NULL, NULL}};
  lmav_new_metatable(L, LMAV_GRAPH, methods, meta, graph_index);
  luaL_setfuncs(L, functions, 0);
}
