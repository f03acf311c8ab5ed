/* examples/embed_lua.c - generates text from a C program: the model is a Lua script, so the program hosts Lua and mav.so.
 *
 *     cc embed_lua.c $(pkg-config --cflags --libs lua5.4) -o embed_lua
 *     LUA_CPATH='/where/mav.so/lies/?.so;;' ./embed_lua MODEL_DIR PROMPT
 *
 * C sees pieces of text as they come. Any Lua of yours (a sampler, a changed forward pass) can be loaded into the same state.
 */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>

/* Called for every piece. Returning false stops the generation. */
static int on_piece(lua_State *L) {
  size_t bytes;
  const char *text = luaL_checklstring(L, 1, &bytes);
  fwrite(text, 1, bytes, stdout);
  fflush(stdout);
  lua_pushboolean(L, 1);
  return 1;
}

/* generate(model directory, prompt, most tokens, function(piece)) -> tokens/s */
static const char script[] =
    "require 'mav'\n"
    "local maverick = require 'mav.maverick'\n"
    "return function(dir, prompt, max_tokens, on_piece)\n"
    "  local model = assert(maverick.load(dir))\n"
    "  local s <close> = model:session {}\n"
    "  for piece in s:generate(prompt, { max_tokens = max_tokens }) do\n"
    "    if not on_piece(piece) then break end\n"
    "  end\n"
    "  return s.stats.tokens_per_s\n"
    "end\n";

int main(int argc, char **argv) {
  const char *dir = argc > 1 ? argv[1] : "models/tiny-maverick", *prompt = argc > 2 ? argv[2] : "local function";
  int status = EXIT_FAILURE;
  lua_State *L = luaL_newstate();
  if (!L) return status;
  luaL_openlibs(L);

  /* Every failure arrives as a Lua error: its text is one line that says what was wrong. */
  if (luaL_loadbuffer(L, script, sizeof script - 1, "=embed_lua") || lua_pcall(L, 0, 1, 0)) goto failed;
  lua_pushstring(L, dir);
  lua_pushstring(L, prompt);
  lua_pushinteger(L, 32);
  lua_pushcfunction(L, on_piece);
  if (lua_pcall(L, 4, 1, 0)) goto failed;
  if (!lua_isnil(L, -1)) fprintf(stderr, "\n%.1f tokens/s\n", lua_tonumber(L, -1));
  status = EXIT_SUCCESS;
  goto done;

failed:
  fprintf(stderr, "embed_lua: %s\n", luaL_tolstring(L, -1, NULL));
done:
  lua_close(L); /* frees the model, the cache, the device */
  return status;
}
