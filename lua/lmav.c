/* lua/lmav.c - luaopen_mav; helpers for arguments and options; the searcher for the library's Lua modules.
 *
 * `require "mav"` gives a table: no globals, no output. Modules are named `mav.<name>`: the user's own package.path is
 * searched first, then lua/mav/<name>.lua, lua/mav/<name>/init.lua, scripts/<name>.lua, scripts/<name>/init.lua, and for
 * `mav.weights_tools.<name>` weights-tools/<name>.lua, inside the binary (MAV_EMBED_SCRIPTS) or in the source tree. */
#include "lmav.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "scripts.h"

/*lua
---@class mav
---@field version string
---@field op mav.Ops
mav = {}

---Seconds of a monotonic clock.
---@return number
function mav.now() end
*/
static int now(lua_State *L) {
  lua_pushnumber(L, (lua_Number)mav_now_ns() * 1e-9);
  return 1;
}

/* ---- words and keys --------------------------------------------------------------------------------------------- */

#define WORD_MAX 48

/* Edits (insert, delete, replace, swap) between two short words. */
static int distance(const char *a, const char *b) {
  size_t m = strlen(a), n = strlen(b);
  if (m > WORD_MAX || n > WORD_MAX) return WORD_MAX;
  int row[3][WORD_MAX + 1];
  for (size_t j = 0; j <= n; j++) row[0][j] = (int)j;
  for (size_t i = 1; i <= m; i++) {
    int *now_ = row[i % 3], *above = row[(i + 2) % 3], *twice = row[(i + 1) % 3];
    now_[0] = (int)i;
    for (size_t j = 1; j <= n; j++) {
      int best = above[j - 1] + (a[i - 1] != b[j - 1]);
      if (above[j] + 1 < best) best = above[j] + 1;
      if (now_[j - 1] + 1 < best) best = now_[j - 1] + 1;
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && twice[j - 2] + 1 < best) best = twice[j - 2] + 1;
      now_[j] = best;
    }
  }
  return row[m % 3][n];
}

const char *lmav_push_hint(lua_State *L, const char *word, const char *const *valid) {
  const char *near = NULL;
  int best = WORD_MAX;
  for (int i = 0; valid[i]; i++) {
    int d = distance(word, valid[i]);
    if (d < best) {
      best = d;
      near = valid[i];
    }
  }
  if (near && (best <= 2 || best <= (int)strlen(word) / 3)) return lua_pushfstring(L, "did you mean '%s'?", near);
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  luaL_addstring(&b, "valid:");
  for (int i = 0; valid[i]; i++) {
    luaL_addstring(&b, i ? ", " : " ");
    luaL_addstring(&b, valid[i]);
  }
  if (!valid[0]) luaL_addstring(&b, " none");
  luaL_pushresult(&b);
  return lua_tostring(L, -1);
}

static int unknown_key(lua_State *L, int arg, const char *const *keys) {
  if (lua_type(L, -2) != LUA_TSTRING) {
    const char *text = luaL_tolstring(L, -2, NULL);
    return luaL_argerror(L, arg, lua_pushfstring(L, "unexpected element [%s]: only named keys are taken", text));
  }
  const char *key = lua_tostring(L, -2);
  return luaL_argerror(L, arg, lua_pushfstring(L, "unknown key '%s' (%s)", key, lmav_push_hint(L, key, keys)));
}

static bool is_key(const char *key, const char *const *keys) {
  for (; *keys; keys++)
    if (!strcmp(key, *keys)) return true;
  return false;
}

static void check_keys(lua_State *L, int arg, bool list, const char *const *keys) {
  lua_pushnil(L);
  while (lua_next(L, arg)) {
    bool known = lua_type(L, -2) == LUA_TSTRING ? is_key(lua_tostring(L, -2), keys) : list && lua_isinteger(L, -2);
    if (!known) unknown_key(L, arg, keys);
    lua_pop(L, 1);
  }
}

bool lmav_check_options(lua_State *L, int arg, bool optional, const char *const *keys) {
  if (optional && lua_isnoneornil(L, arg)) return false;
  luaL_checktype(L, arg, LUA_TTABLE);
  check_keys(L, arg, false, keys);
  return true;
}

void lmav_check_keys(lua_State *L, int arg, const char *const *keys) {
  luaL_checktype(L, arg, LUA_TTABLE);
  check_keys(L, arg, true, keys);
}

int lmav_key_error(lua_State *L, int arg, const char *key, const char *format, ...) {
  char text[256];
  va_list ap;
  va_start(ap, format);
  vsnprintf(text, sizeof text, format, ap);
  va_end(ap);
  return luaL_argerror(L, arg, lua_pushfstring(L, "%s: %s", key, text));
}

lua_Integer lmav_opt_integer(lua_State *L, int arg, const char *key, lua_Integer low, lua_Integer high, lua_Integer value) {
  if (!arg) return value;
  if (lua_getfield(L, arg, key) != LUA_TNIL) {
    int is_integer;
    value = lua_tointegerx(L, -1, &is_integer);
    if (lua_type(L, -1) != LUA_TNUMBER || !is_integer)
      lmav_key_error(L, arg, key, "integer expected, got %s", lua_type(L, -1) == LUA_TNUMBER ? "a fraction" : luaL_typename(L, -1));
    if (value < low || value > high) lmav_key_error(L, arg, key, "%lld is out of range", (long long)value);
  }
  lua_pop(L, 1);
  return value;
}

lua_Number lmav_opt_number(lua_State *L, int arg, const char *key, lua_Number value) {
  if (!arg) return value;
  if (lua_getfield(L, arg, key) != LUA_TNIL) {
    if (lua_type(L, -1) != LUA_TNUMBER) lmav_key_error(L, arg, key, "number expected, got %s", luaL_typename(L, -1));
    value = lua_tonumber(L, -1);
  }
  lua_pop(L, 1);
  return value;
}

bool lmav_opt_boolean(lua_State *L, int arg, const char *key, bool value) {
  if (!arg) return value;
  if (lua_getfield(L, arg, key) != LUA_TNIL) {
    if (!lua_isboolean(L, -1)) lmav_key_error(L, arg, key, "boolean expected, got %s", luaL_typename(L, -1));
    value = lua_toboolean(L, -1);
  }
  lua_pop(L, 1);
  return value;
}

const char *lmav_opt_string(lua_State *L, int arg, const char *key) {
  if (!arg) {
    lua_pushnil(L);
    return NULL;
  }
  if (lua_getfield(L, arg, key) == LUA_TNIL) return NULL;
  if (lua_type(L, -1) != LUA_TSTRING) lmav_key_error(L, arg, key, "string expected, got %s", luaL_typename(L, -1));
  return lua_tostring(L, -1);
}

static int bad_dtype(lua_State *L, int arg, const char *key, const char *name) {
  const char *names[MAV_DTYPE_COUNT + 1] = {NULL};
  for (int i = 0; i < MAV_DTYPE_COUNT; i++) names[i] = mav_dtype_name((mav_dtype)i);
  const char *hint = lmav_push_hint(L, name, names);
  return luaL_argerror(L, arg, lua_pushfstring(L, "%s%sunknown dtype '%s' (%s)", key ? key : "", key ? ": " : "", name, hint));
}

mav_dtype lmav_opt_dtype(lua_State *L, int arg, const char *key, mav_dtype value) {
  const char *name = lmav_opt_string(L, arg, key);
  if (name && !mav_dtype_parse(name, &value)) bad_dtype(L, arg, key, name);
  lua_pop(L, 1);
  return value;
}

mav_dtype lmav_check_dtype(lua_State *L, int arg) {
  const char *name = luaL_checkstring(L, arg);
  mav_dtype value = MAV_DTYPE_F32;
  if (!mav_dtype_parse(name, &value)) bad_dtype(L, arg, NULL, name);
  return value;
}

int lmav_check_shape(lua_State *L, int arg, int64_t shape[MAV_DIMS_MAX]) {
  luaL_checktype(L, arg, LUA_TTABLE);
  lua_Unsigned dims = lua_rawlen(L, arg);
  if (dims > MAV_DIMS_MAX) luaL_argerror(L, arg, lua_pushfstring(L, "a shape has at most %d dimensions, got %d", MAV_DIMS_MAX, (int)dims));
  for (int i = 0; i < (int)dims; i++) {
    lua_rawgeti(L, arg, i + 1);
    int is_integer;
    shape[i] = lua_tointegerx(L, -1, &is_integer);
    if (lua_type(L, -1) != LUA_TNUMBER || !is_integer || shape[i] < 0)
      luaL_argerror(L, arg, lua_pushfstring(L, "dimension %d of the shape: size expected, got %s", i + 1, luaL_tolstring(L, -1, NULL)));
    lua_pop(L, 1);
  }
  return (int)dims;
}

void lmav_push_lua(lua_State *L, const char *module, const char *name) {
  lua_getglobal(L, "require");
  lua_pushstring(L, module);
  lua_call(L, 1, 1);
  lua_getfield(L, -1, name);
  lua_remove(L, -2);
}

/* ---- the library's Lua modules ------------------------------------------------------------------------------------ */

/* Loads a script by its path in the source tree; false: there is none (nothing pushed). Raises on a syntax error. */
static bool load_script(lua_State *L, const char *path) {
#ifdef MAV_EMBED_SCRIPTS
  for (const lmav_script *s = lmav_scripts; s->path; s++)
    if (!strcmp(s->path, path)) {
      lua_pushfstring(L, "@%s", path);
      if (luaL_loadbufferx(L, (const char *)s->text, s->bytes, lua_tostring(L, -1), "t")) lua_error(L);
      lua_remove(L, -2);
      return true;
    }
  return false;
#else
  const char *file = lua_pushfstring(L, "%s/%s", MAV_SCRIPTS_ROOT, path);
  FILE *f = fopen(file, "r");
  if (!f) {
    lua_pop(L, 1);
    return false;
  }
  fclose(f);
  if (luaL_loadfilex(L, file, "t")) lua_error(L);
  lua_remove(L, -2);
  return true;
#endif
}

#define TOOLS "weights_tools"

static int searcher(lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  if (strncmp(name, "mav.", 4) != 0) return 0;
  static const char *const patterns[] = {"lua/mav/%s.lua", "lua/mav/%s/init.lua", "scripts/%s.lua", "scripts/%s/init.lua", NULL};
  static const char *const tools[] = {"weights-tools/%s.lua", NULL};
  bool is_tool = !strncmp(name + 4, TOOLS ".", sizeof TOOLS);
  const char *stem = luaL_gsub(L, name + 4 + (is_tool ? sizeof TOOLS : 0), ".", "/"), *const *pattern = is_tool ? tools : patterns;
  luaL_Buffer tried;
  luaL_buffinit(L, &tried);
  for (int i = 0; pattern[i]; i++) {
    char path[512];
    int n = snprintf(path, sizeof path, pattern[i], stem);
    if (n < 0 || (size_t)n >= sizeof path || strstr(path, "..")) continue;
    if (load_script(L, path)) {
      lua_pushstring(L, path);
      return 2;
    }
    luaL_addstring(&tried, i ? "\n\tno script '" : "no script '");
    luaL_addstring(&tried, path);
    luaL_addstring(&tried, "'");
  }
  luaL_pushresult(&tried);
  return 1;
}

/* Pushes the name of "<name>.lua", or pushes nothing. */
static bool push_stem(lua_State *L, const char *file) {
  size_t n = strlen(file);
  if (n <= 4 || strcmp(file + n - 4, ".lua") != 0 || strchr(file, '/')) return false;
  lua_pushlstring(L, file, n - 4);
  return true;
}

/* Pushes a list of the names of the scripts in "scripts/" or "weights-tools/", not sorted. */
static void push_names(lua_State *L, const char *folder) {
  lua_newtable(L);
#ifdef MAV_EMBED_SCRIPTS
  size_t n = strlen(folder);
  for (const lmav_script *s = lmav_scripts; s->path; s++)
    if (!strncmp(s->path, folder, n) && push_stem(L, s->path + n)) lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
#else
  char names[256][64];
  DIR *dir = opendir(lua_pushfstring(L, "%s/%s", MAV_SCRIPTS_ROOT, folder));
  lua_pop(L, 1);
  if (!dir) return;
  int count = 0;
  for (struct dirent *e; count < 256 && (e = readdir(dir));)
    if (strlen(e->d_name) < sizeof names[0]) memcpy(names[count++], e->d_name, strlen(e->d_name) + 1);
  closedir(dir); /* before anything can raise */
  for (int i = 0; i < count; i++)
    if (push_stem(L, names[i])) lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
#endif
}

void lmav_push_script_names(lua_State *L) { push_names(L, "scripts/"); }

/*lua
---Names of the library's scripts `mav.<name>`, or with "weights_tools" of `mav.weights_tools.<name>`; in no order.
---@param group? "weights_tools"
---@return string[]
function mav.scripts(group) end
*/
static int scripts(lua_State *L) {
  static const char *const groups[] = {"", TOOLS, NULL}, *const folders[] = {"scripts/", "weights-tools/"};
  push_names(L, folders[luaL_checkoption(L, 1, "", groups)]);
  return 1;
}

static void add_searcher(lua_State *L) {
  if (lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE) == LUA_TTABLE && lua_getfield(L, -1, "package") == LUA_TTABLE &&
      lua_getfield(L, -1, "searchers") == LUA_TTABLE) {
    lua_pushcfunction(L, searcher);
    lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
  }
}

/* mav.show is Lua: lua/mav/show.lua. */
/*lua
---Prints a tensor's values, as NumPy does. precision: digits (4); above threshold elements (1000) only `edge` (3) at each end of a
---dimension are shown; width: of a line (100); write: what takes the text (io.write).
---@param t mav.Tensor
---@param options? {precision?: integer, edge?: integer, threshold?: integer, width?: integer, write?: fun(...: string)}
function mav.show(t, options) end
*/
static int show(lua_State *L) {
  lmav_push_lua(L, "mav.show", "show");
  lua_insert(L, 1);
  lua_call(L, lua_gettop(L) - 1, 0);
  return 0;
}

int luaopen_mav(lua_State *L) {
  luaL_checkversion(L);
  static const luaL_Reg functions[] = {{"now", now}, {"scripts", scripts}, {"show", show}, {NULL, NULL}};
  bool first = lmav_open_gc(L);
  luaL_newlib(L, functions);
  lua_pushliteral(L, MAV_VERSION);
  lua_setfield(L, -2, "version");
  lmav_open_err(L);
  lmav_open_runtime(L);
  lmav_open_tensor(L);
  lmav_open_rows(L);
  lmav_open_kv(L);
  lmav_open_op(L);
  lmav_open_graph(L);
  lmav_open_spec(L);
  lmav_open_weights(L);
  lmav_open_pack(L);
  lmav_open_gguf(L);
  lmav_open_tokenizer(L);
  lmav_open_comm(L);
  lmav_open_json(L);
  if (first) {
    int top = lua_gettop(L);
    add_searcher(L);
    lua_settop(L, top);
  }
  return 1;
}
