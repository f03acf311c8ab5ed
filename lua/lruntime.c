/* lua/lruntime.c - runtimes, and the state's default one, which constructors use when they are given none. */
#include <string.h>

#include "lmav.h"

/*lua
---One device, its memory and its error state. Every object made from it keeps it alive.
---@class mav.Runtime
---@field device string "ref", "cpu" or "cuda"
---@field isa string "c", "avx2", "avx512", "sm_90", ...
---@field threads integer
---@field fallback string? why device "auto" chose the processor
local Runtime = {}
*/

static const char *const runtime_keys[] = {"device", "threads", "isa", "library", "off", NULL};

/*lua
---A new runtime. "auto", the default: cuda where there is a device, its driver and the library, else cpu (`fallback` says why).
---library: path of the cuda backend (MAV_CUDA_LIBRARY, else beside this program). off: what cuda should not use, of
---"pdl,graphs,prefetch,spatial,tensor,blas" (MAV_CUDA_OFF).
---@param options? {device?: "auto"|"cuda"|"cpu"|"ref", threads?: integer, isa?: "avx2"|"avx512", library?: string, off?: string}
---@return mav.Runtime? runtime
---@return mav.Error? err
function mav.runtime(options) end
*/
static int runtime_new(lua_State *L) {
  int arg = lmav_check_options(L, 1, true, runtime_keys) ? 1 : 0;
  lua_settop(L, 1);
  mav_runtime_options o = {0};
  o.threads = (int)lmav_opt_integer(L, arg, "threads", 0, 4096, 0);
  o.device = lmav_opt_string(L, arg, "device");
  o.isa = lmav_opt_string(L, arg, "isa");
  o.library = lmav_opt_string(L, arg, "library");
  o.off = lmav_opt_string(L, arg, "off");
  lmav_object *u = lmav_new(L, LMAV_RUNTIME);
  mav_runtime *rt = NULL;
  mav_diag diag;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_runtime_new(&rt, &o, &diag));
  if (!err) lmav_set(u, rt, rt);
  return lmav_result(L, err, &diag, 1);
}

/*lua
---The runtime of this Lua state that constructors use when they are given none; made when first asked for (device "auto").
---With an argument, sets it.
---@param runtime? mav.Runtime
---@return mav.Runtime? runtime
---@return mav.Error? err
function mav.default_runtime(runtime) end
*/
static int default_runtime(lua_State *L) {
  lua_settop(L, 1);
  if (!lua_isnil(L, 1)) {
    lmav_check(L, 1, LMAV_RUNTIME);
    lmav_push_state(L);
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, -2, LMAV_STATE_DEFAULT_RUNTIME);
    lua_settop(L, 1);
    return 1;
  }
  lmav_push_state(L);
  lua_getiuservalue(L, -1, LMAV_STATE_DEFAULT_RUNTIME);
  lmav_object *u = lmav_test(L, -1, LMAV_RUNTIME);
  if (u && u->p) return 1;
  lua_pop(L, 1);
  lua_pushcfunction(L, runtime_new);
  lua_call(L, 0, 2);
  if (lua_isnil(L, -2)) return 2;
  lua_pop(L, 1);
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, -3, LMAV_STATE_DEFAULT_RUNTIME);
  return 1;
}

mav_runtime *lmav_push_runtime(lua_State *L, int arg) {
  lmav_object *u;
  if (arg && lua_getfield(L, arg, "runtime") != LUA_TNIL) {
    u = lmav_test(L, -1, LMAV_RUNTIME);
    if (!u) lmav_key_error(L, arg, "runtime", "mav.runtime expected, got %s", luaL_typename(L, -1));
    if (!u->p) lmav_key_error(L, arg, "runtime", "it is closed");
    return u->p;
  }
  if (arg) lua_pop(L, 1);
  lua_pushcfunction(L, default_runtime);
  lua_call(L, 0, 2);
  if (lua_isnil(L, -2)) lua_error(L); /* the error object */
  lua_pop(L, 1);
  u = lua_touserdata(L, -1);
  return u->p;
}

/*lua
---Bytes and calls: host_bytes_live, host_allocs, device_bytes_live, device_bytes_max, arena_bytes.
---@return {host_bytes_live: integer, host_allocs: integer, device_bytes_live: integer, device_bytes_max: integer, arena_bytes: integer}
function Runtime:memory() end
*/
static int runtime_memory(lua_State *L) {
  lmav_object *u = lmav_check(L, 1, LMAV_RUNTIME);
  lmav_drain(u->state);
  mav_memory_stats m;
  mav_runtime_memory(u->p, &m);
  lua_createtable(L, 0, 5);
#define FIELD(name)           \
  lua_pushinteger(L, m.name); \
  lua_setfield(L, -2, #name)
  FIELD(host_bytes_live);
  FIELD(host_allocs);
  FIELD(device_bytes_live);
  FIELD(device_bytes_max);
  FIELD(arena_bytes);
#undef FIELD
  return 1;
}

/*lua
---Bytes read from the device's memory per second in GB/s: all of it sums a buffer, best of `repeats`.
---@param options? {bytes?: integer, repeats?: integer}
---@return number? gb_per_s
---@return mav.Error? err
function Runtime:bandwidth(options) end
*/
static int runtime_bandwidth(lua_State *L) {
  static const char *const keys[] = {"bytes", "repeats", NULL};
  lmav_object *u = lmav_check(L, 1, LMAV_RUNTIME);
  int arg = lmav_check_options(L, 2, true, keys) ? 2 : 0;
  lua_Integer bytes = lmav_opt_integer(L, arg, "bytes", 4096, (lua_Integer)1 << 40, (lua_Integer)512 << 20);
  lua_Integer repeats = lmav_opt_integer(L, arg, "repeats", 1, 1000000, 5);
  double gb_per_s = 0;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_runtime_bandwidth(u->p, (size_t)bytes, (int)repeats, &gb_per_s));
  lua_pushnumber(L, gb_per_s);
  return lmav_result(L, err, mav_runtime_diag(u->p), 1);
}

/*lua
---Waits until the device has done all that it was given: to time ops that run at once, which on a device are only on their way when they
---return. Nothing on a host.
---@return mav.Runtime self
function Runtime:wait() end
*/
static int runtime_wait(lua_State *L) {
  lmav_object *u = lmav_check(L, 1, LMAV_RUNTIME);
  if (mav_runtime_wait(u->p)) return lmav_raise(L, mav_runtime_diag(u->p));
  lua_settop(L, 1);
  return 1;
}

/*lua
---Gives this reference up. The device is freed with the last object made from it.
function Runtime:close() end
*/

static int runtime_index(lua_State *L) {
  if (lmav_push_method(L)) return 1;
  lmav_object *u = lmav_check(L, 1, LMAV_RUNTIME);
  const char *key = luaL_checkstring(L, 2);
  switch (key[0]) {
    case 'd':
      if (!strcmp(key, "device")) return lua_pushstring(L, mav_runtime_device(u->p)), 1;
      break;
    case 'f':
      if (!strcmp(key, "fallback")) return lua_pushstring(L, mav_runtime_fallback(u->p)), 1;
      break;
    case 'i':
      if (!strcmp(key, "isa")) return lua_pushstring(L, mav_runtime_isa(u->p)), 1;
      break;
    case 't':
      if (!strcmp(key, "threads")) return lua_pushinteger(L, mav_runtime_threads(u->p)), 1;
      break;
    default:
      break;
  }
  return 0;
}

static int runtime_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_RUNTIME);
  if (!u || !u->p)
    lua_pushliteral(L, "mav.runtime (closed)");
  else
    lua_pushfstring(L, "mav.runtime %s %s, %d threads", mav_runtime_device(u->p), mav_runtime_isa(u->p), mav_runtime_threads(u->p));
  return 1;
}

void lmav_open_runtime(lua_State *L) {
  static const luaL_Reg methods[] = {{"memory", runtime_memory}, {"bandwidth", runtime_bandwidth}, {"wait", runtime_wait}, {NULL, NULL}};
  static const luaL_Reg meta[] = {{"__tostring", runtime_tostring}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"runtime", runtime_new}, {"default_runtime", default_runtime}, {NULL, NULL}};
  lmav_new_metatable(L, LMAV_RUNTIME, methods, meta, runtime_index);
  luaL_setfuncs(L, functions, 0);
}
