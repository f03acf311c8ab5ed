/* lua/lspec.c - the speculative decode loop as a stepper, and the guard for functions that a loop calls every step. All methods
 * are on the replay path: positional, and they allocate nothing (commit appends to a table that has room). */
#include <string.h>

#include "lmav.h"

/*lua
---The speculative decode loop of one sequence, a step at a time: begin, then draft or drafted, verify, commit, and again.
---Drafts form a tree, level by level, in one row table; level 0 is the last token. See core/mav.h.
---@class mav.Spec
---@field state "idle"|"drafted"|"verifying"|"committed"|"rolled back"|"error"
---@field depth integer the deepest level
---@field tree mav.Rows the whole table
local Spec = {}

---widths: children of every node, level by level; {1, 1, 1} is a chain of three drafts, {} plain decoding.
---@param options {kv: mav.Kv, widths: integer[]}
---@return mav.Spec
function mav.spec(options) end
*/
static int spec_new(lua_State *L) {
  static const char *const keys[] = {"kv", "widths", NULL};
  lmav_check_options(L, 1, false, keys);
  lua_settop(L, 1);
  lua_getfield(L, 1, "kv");
  lmav_object *kv = lmav_test(L, 2, LMAV_KV);
  if (!kv || !kv->p) return lmav_key_error(L, 1, "kv", "mav.kv expected, got %s", kv ? "a closed one" : luaL_typename(L, 2));
  if (lua_getfield(L, 1, "widths") != LUA_TTABLE) return lmav_key_error(L, 1, "widths", "list expected, got %s", luaL_typename(L, 3));
  int32_t widths[MAV_SPEC_ROWS_MAX];
  lua_Unsigned depth = lua_rawlen(L, 3);
  if (depth >= MAV_SPEC_ROWS_MAX) return lmav_key_error(L, 1, "widths", "at most %d levels", MAV_SPEC_ROWS_MAX - 1);
  for (int i = 0; i < (int)depth; i++) {
    int exact;
    lua_rawgeti(L, 3, i + 1);
    lua_Integer n = lua_tointegerx(L, -1, &exact);
    if (!exact || n < 1 || n > MAV_SPEC_ROWS_MAX) return lmav_key_error(L, 1, "widths", "level %d: an integer from 1 to %d expected", i + 1, MAV_SPEC_ROWS_MAX);
    widths[i] = (int32_t)n;
    lua_pop(L, 1);
  }
  lmav_object *u = lmav_new(L, LMAV_SPEC); /* 4 */
  mav_spec *s = NULL;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_spec_new(&s, kv->p, (int)depth, widths));
  if (err) return lmav_raise(L, mav_runtime_diag(kv->rt));
  lmav_set(u, s, kv->rt);
  lmav_object *tree = lmav_new(L, LMAV_ROWS);
  lmav_set(tree, mav_rows_retain(mav_spec_tree(s)), kv->rt);
  lua_setiuservalue(L, 4, 1);
  return 1;
}

static lmav_object *check_spec(lua_State *L) { return lmav_check(L, 1, LMAV_SPEC); }

static int done(lua_State *L, lmav_object *u, mav_err err) {
  if (err) return lmav_raise(L, mav_runtime_diag(u->rt));
  return 0;
}

/*lua
---The sequence to continue and its last token, which is not in the cache yet. From any state.
---@param seq mav.Sequence
---@param id integer
function Spec:begin(seq, id) end
*/
static int spec_begin(lua_State *L) {
  lmav_object *u = check_spec(L), *seq = lmav_check(L, 2, LMAV_SEQUENCE);
  lua_Integer id = luaL_checkinteger(L, 3);
  luaL_argcheck(L, seq->p == mav_spec_kv(u->p), 2, "a sequence of another cache");
  luaL_argcheck(L, id >= 0 && id <= INT32_MAX, 3, "a token id expected");
  return done(L, u, mav_spec_begin(u->p, seq->number, (int32_t)id));
}

static int check_depth(lua_State *L, const lmav_object *u) {
  lua_Integer depth = luaL_checkinteger(L, 2);
  luaL_argcheck(L, depth >= 0 && depth <= mav_spec_depth(u->p), 2, "there is no such level");
  return (int)depth;
}

/*lua
---Rows of levels 0 to depth.
---@param depth integer
---@return integer
function Spec:size(depth) end
*/
static int spec_size(lua_State *L) {
  lmav_object *u = check_spec(L);
  lua_pushinteger(L, mav_spec_size(u->p, check_depth(L, u)));
  return 1;
}

/*lua
---Drafts from a list: the ids of rows 2 to size(depth).
---@param depth integer
---@param ids integer[]
function Spec:draft(depth, ids) end
*/
static int spec_draft(lua_State *L) {
  lmav_object *u = check_spec(L);
  const int depth = check_depth(L, u);
  luaL_checktype(L, 3, LUA_TTABLE);
  int32_t ids[MAV_SPEC_ROWS_MAX];
  const int64_t count = mav_spec_size(u->p, depth) - 1;
  for (int64_t i = 0; i < count; i++) {
    int exact;
    lua_rawgeti(L, 3, i + 1);
    lua_Integer id = lua_tointegerx(L, -1, &exact);
    if (!exact || id < 0 || id > INT32_MAX)
      return luaL_argerror(L, 3, lua_pushfstring(L, "draft %I is %s: a token id expected", (LUAI_UACINT)(i + 1), luaL_tolstring(L, -1, NULL)));
    ids[i] = (int32_t)id;
    lua_pop(L, 1);
  }
  return done(L, u, mav_spec_draft(u->p, depth, ids));
}

/*lua
---Drafts of this depth were written into the table by a graph.
---@param depth integer
function Spec:drafted(depth) end
*/
static int spec_drafted(lua_State *L) {
  lmav_object *u = check_spec(L);
  return done(L, u, mav_spec_drafted(u->p, check_depth(L, u)));
}

/*lua
---Reserves slots and launches the graph of the drafted depth, whose rows are the first rows of the tree.
---@param graph mav.Graph
function Spec:verify(graph) end
*/
static int spec_verify(lua_State *L) {
  lmav_object *u = check_spec(L), *g = lmav_check(L, 2, LMAV_GRAPH);
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_spec_verify(u->p, g->p));
  return done(L, u, err);
}

/*lua
---Ends the step: commits the accepted path and appends the emitted tokens to ids after `length`. Returns how many those are.
---accepted: nil when only the root was verified. advanced: a graph moved the tree to the next root already.
---@param accepted mav.Tensor?
---@param choice mav.Tensor
---@param advanced boolean
---@param ids integer[]
---@param length integer
---@return integer count
function Spec:commit(accepted, choice, advanced, ids, length) end
*/
static int spec_commit(lua_State *L) {
  lmav_object *u = check_spec(L);
  mav_tensor *accepted = lua_isnoneornil(L, 2) ? NULL : lmav_check_tensor(L, 2), *choice = lmav_check_tensor(L, 3);
  luaL_checktype(L, 5, LUA_TTABLE);
  lua_Integer length = luaL_checkinteger(L, 6);
  int32_t ids[MAV_SPEC_ROWS_MAX + 1];
  int count;
  if (mav_spec_commit(u->p, accepted, choice, lua_toboolean(L, 4), ids, &count)) return lmav_raise(L, mav_runtime_diag(u->rt));
  for (int i = 0; i < count; i++) {
    lua_pushinteger(L, ids[i]);
    lua_rawseti(L, 5, length + 1 + i);
  }
  lmav_drain(u->state);
  lua_pushinteger(L, count);
  return 1;
}

/*lua
---Asserts what must hold in the present state; raises what does not.
function Spec:check() end
*/
static int spec_check(lua_State *L) {
  lmav_object *u = check_spec(L);
  return done(L, u, mav_spec_check(u->p));
}

/*lua
---Levels drafted and accepted, tokens emitted, since the object was made.
---@return {steps: integer, drafted: integer, accepted: integer, emitted: integer}
function Spec:stats() end
*/
static int spec_stats(lua_State *L) {
  mav_spec_stats s;
  mav_spec_get_stats(check_spec(L)->p, &s);
  lua_createtable(L, 0, 4);
  lua_pushinteger(L, s.steps);
  lua_setfield(L, -2, "steps");
  lua_pushinteger(L, s.drafted);
  lua_setfield(L, -2, "drafted");
  lua_pushinteger(L, s.accepted);
  lua_setfield(L, -2, "accepted");
  lua_pushinteger(L, s.emitted);
  lua_setfield(L, -2, "emitted");
  return 1;
}

static int spec_index(lua_State *L) {
  if (lmav_push_method(L)) return 1;
  lmav_object *u = check_spec(L);
  const char *key = luaL_checkstring(L, 2);
  if (!strcmp(key, "state")) return lua_pushstring(L, mav_spec_state_name(mav_spec_get_state(u->p))), 1;
  if (!strcmp(key, "depth")) return lua_pushinteger(L, mav_spec_depth(u->p)), 1;
  if (!strcmp(key, "tree")) return lua_getiuservalue(L, 1, 1), 1;
  return 0;
}

static int spec_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_SPEC);
  if (u && u->p)
    lua_pushfstring(L, "mav.spec %d levels, %I rows, %s", mav_spec_depth(u->p), (LUAI_UACINT)mav_spec_size(u->p, mav_spec_depth(u->p)),
                    mav_spec_state_name(mav_spec_get_state(u->p)));
  else
    lua_pushliteral(L, "mav.spec (closed)");
  return 1;
}

/* ---- the guard ---------------------------------------------------------------------------------------------------------- */

#define GUARD_INSTRUCTIONS 10000 /* between looks at the clock */
#define GUARD_SECONDS_MAX 1e9    /* about 30 years */

/* Addresses in the registry: the time when the guarded call must be over, INT64_MAX while there is none; what stopped it. */
static const char guard_key = 0, guard_text = 0;

static int64_t guard_set(lua_State *L, int64_t until) { /* returns the one before */
  int64_t before = lua_rawgetp(L, LUA_REGISTRYINDEX, &guard_key) == LUA_TNUMBER ? (int64_t)lua_tointeger(L, -1) : INT64_MAX;
  lua_pop(L, 1);
  lua_pushinteger(L, until);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &guard_key);
  return before;
}

static void guard_hook(lua_State *L, lua_Debug *ar) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &guard_key);
  const int64_t until = (int64_t)lua_tointeger(L, -1);
  lua_pop(L, 1);
  if (until == INT64_MAX) { /* a coroutine that a guarded function made and left */
    lua_sethook(L, NULL, 0, 0);
    return;
  }
  if (mav_now_ns() <= until) return;
  if (lua_gethookcount(L) != 1) {
    lua_sethook(L, guard_hook, LUA_MASKCOUNT, 1); /* a pcall that swallows the error gets it again at once */
    lua_getinfo(L, "Sl", ar);
    lua_pushfstring(L, "%s:%d: stopped: the function ran longer than it may", ar->short_src, ar->currentline);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &guard_text);
  }
  lua_pushliteral(L, "not enough memory"); /* the one error that calls no message handler: one that loops would run without hooks */
  lua_error(L);
}

/*lua
---Calls fn(...) and stops it with an error when it runs longer than `seconds`: for functions of others in a loop of one's own. The
---clock is looked at every 10,000 instructions; a long C function is not interrupted, nor a finalizer, nor a coroutine that was made
---outside. One level: a guard in a guard keeps the outer's time.
---@param seconds number
---@param fn function
---@param ... any
---@return any ...
function mav.guard(seconds, fn, ...) end
*/
static int guard(lua_State *L) {
  lua_Number seconds = luaL_checknumber(L, 1);
  luaL_argcheck(L, seconds >= 0, 1, "a time in seconds expected");
  if (seconds > GUARD_SECONDS_MAX) seconds = GUARD_SECONDS_MAX;
  luaL_checkany(L, 2);
  lua_Hook hook = lua_gethook(L);
  if (hook) { /* a debugger, an interrupt or an outer guard: leave it */
    lua_call(L, lua_gettop(L) - 2, LUA_MULTRET);
    return lua_gettop(L) - 1;
  }
  const int64_t until = mav_now_ns() + (int64_t)(seconds * 1e9), outer = guard_set(L, until); /* of a guard around another coroutine */
  if (outer < until) guard_set(L, outer);
  lua_sethook(L, guard_hook, LUA_MASKCOUNT, GUARD_INSTRUCTIONS);
  int status = lua_pcall(L, lua_gettop(L) - 2, LUA_MULTRET, 0);
  if (lua_gethook(L) == guard_hook) lua_sethook(L, NULL, 0, 0);
  luaL_checkstack(L, 2, NULL);
  guard_set(L, outer);
  const bool stopped = lua_rawgetp(L, LUA_REGISTRYINDEX, &guard_text) == LUA_TSTRING;
  if (stopped) {
    lua_pushnil(L);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &guard_text);
  }
  if (!stopped || status != LUA_ERRMEM) lua_pop(L, 1);
  if (status) return lua_error(L);
  return lua_gettop(L) - 1;
}

void lmav_open_spec(lua_State *L) {
  static const luaL_Reg methods[] = {{"begin", spec_begin},   {"size", spec_size},     {"draft", spec_draft}, {"drafted", spec_drafted},
                                     {"verify", spec_verify}, {"commit", spec_commit}, {"check", spec_check}, {"stats", spec_stats},
                                     {NULL, NULL}};
  static const luaL_Reg meta[] = {{"__tostring", spec_tostring}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"spec", spec_new}, {"guard", guard}, {NULL, NULL}};
  lmav_new_metatable(L, LMAV_SPEC, methods, meta, spec_index);
  luaL_setfuncs(L, functions, 0);
}
