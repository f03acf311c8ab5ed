/* lua/lerr.c - the boundary between mav_err and Lua errors.
 *
 * A programmer's mistake (INVALID, SHAPE, DTYPE, RANGE, STATE) raises. A condition of the world (NOMEM, IO, NOTFOUND, FORMAT,
 * UNSUPPORTED, FULL, DEVICE) returns nil, err from bindings that end in lmav_result; computations, whose results are
 * passed on without a look (ops, tensors, graphs), end in lmav_raise and raise those too.
 * Either way the error is the same object: a table {code, op, message, where} with __tostring. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "lmav.h"

#define ERROR_NAME "mav.error"

/*lua
---An error of the core. `tostring(err)` is one line.
---@class mav.Error
---@field code string one of the keys of `mav.errors`: "NOMEM", "IO", "NOTFOUND", ...
---@field op string the operation that failed
---@field message string what was wrong, where, what to do
---@field where string position in Mav's own source, "core/kv.c:120"
---@field position string? position in the script, when the error was raised
---@field traceback string? of the script, when it was raised in a capture

---What each error code means.
---@type table<string, string>
mav.errors = {}
*/

static bool is_world(mav_err e) {
  switch (e) {
    case MAV_ERR_NOMEM:
    case MAV_ERR_IO:
    case MAV_ERR_NOTFOUND:
    case MAV_ERR_FORMAT:
    case MAV_ERR_UNSUPPORTED:
    case MAV_ERR_FULL:
    case MAV_ERR_DEVICE:
      return true;
    default:
      return false;
  }
}

void lmav_push_error(lua_State *L, const mav_diag *diag) {
  const mav_diag d = *diag; /* the runtime's own may change under a collector step */
  luaL_checkstack(L, 4, NULL);
  lua_createtable(L, 0, 5);
  lua_pushstring(L, mav_err_name(d.code));
  lua_setfield(L, -2, "code");
  lua_pushstring(L, d.op);
  lua_setfield(L, -2, "op");
  lua_pushstring(L, d.text[0] ? d.text : mav_err_text(d.code));
  lua_setfield(L, -2, "message");
  if (d.file) {
    const char *file = strstr(d.file, "/core/");
    if (!file) file = strstr(d.file, "/lua/");
    lua_pushfstring(L, "%s:%d", file ? file + 1 : d.file, d.line);
    lua_setfield(L, -2, "where");
  }
  luaL_setmetatable(L, ERROR_NAME);
}

int lmav_raise(lua_State *L, const mav_diag *diag) {
  lmav_push_error(L, diag);
  luaL_where(L, 1);
  if (lua_rawlen(L, -1) > 0)
    lua_setfield(L, -2, "position");
  else
    lua_pop(L, 1);
  return lua_error(L);
}

int lmav_fail(lua_State *L, const mav_diag *diag) {
  luaL_pushfail(L);
  lmav_push_error(L, diag);
  return 2;
}

int lmav_result(lua_State *L, mav_err err, const mav_diag *diag, int n) {
  if (!err) return n;
  return is_world(err) ? lmav_fail(L, diag) : lmav_raise(L, diag);
}

mav_diag lmav_diag(mav_err code, const char *op, const char *format, ...) {
  mav_diag d = {.code = code, .file = __FILE__, .line = __LINE__};
  snprintf(d.op, sizeof d.op, "%s", op);
  va_list ap;
  va_start(ap, format);
  vsnprintf(d.text, sizeof d.text, format, ap);
  va_end(ap);
  return d;
}

static int error_tostring(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  static const char *const fields[] = {"position", "op", "message", "code"};
  for (int i = 0; i < 4; i++) {
    lua_pushstring(L, fields[i]);
    lua_rawget(L, 1);
    if (lua_type(L, -1) != LUA_TSTRING) {
      lua_pop(L, 1);
      lua_pushliteral(L, "");
    }
  }
  lua_pushfstring(L, "%s%s: %s (%s)", lua_tostring(L, 2), lua_tostring(L, 3), lua_tostring(L, 4), lua_tostring(L, 5));
  return 1;
}

void lmav_open_err(lua_State *L) {
  if (luaL_newmetatable(L, ERROR_NAME)) {
    lua_pushcfunction(L, error_tostring);
    lua_setfield(L, -2, "__tostring");
  }
  lua_pop(L, 1);
  lua_newtable(L);
#define X(name, code, text) \
  lua_pushliteral(L, text); \
  lua_setfield(L, -2, #name);
  MAV_ERR_MAP(X)
#undef X
  lua_setfield(L, -2, "errors");
}
