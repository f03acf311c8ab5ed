/* tests/fuzz/fuzz_config.c - any bytes as a config.json: refused with one line that names the file, or every size is in a range
 * that an allocation can take. The parser is scripts/maverick/config.lua over the JSON reader of the bridge. */
#include <lauxlib.h>
#include <lualib.h>
#include <unistd.h>

#include "fuzz.h"
#include "lmav.h"

static const char check[] =
    "local config = require 'mav.maverick.config'\n"
    "return function(dir)\n"
    "  local c, err = config.read(dir)\n"
    "  if not c then\n"
    "    local text = tostring(err)\n"
    "    assert(text:find('config.json', 1, true) and not text:find('\\n'), text)\n"
    "    return\n"
    "  end\n"
    "  assert(c.vocab >= 2 and c.vocab <= 1 << 24 and c.hidden >= 2 and c.hidden <= 1 << 17 and c.layers >= 1 and c.layers <= 1024)\n"
    "  assert(c.heads % c.kv_heads == 0 and c.head_dim % 2 == 0 and c.head_dim <= 1024 and c.top_k <= c.experts)\n"
    "  assert(#c.chunks == c.layers and #c.is_moe == c.layers and #c.is_rope == c.layers and #c.inv_freq == c.head_dim // 2)\n"
    "  for _, f in ipairs(c.inv_freq) do assert(f == f and f >= 0 and f < math.huge) end\n"
    "  for _, id in ipairs(c.eos) do assert(id >= 0 and id < c.vocab) end\n"
    "end\n";

static char dir[] = "/tmp/mav-fuzz-XXXXXX", path[64];
static void tidy(void) {
  unlink(path);
  rmdir(dir);
}

/* A state with the checking function on top; made once. */
static lua_State *state(void) {
  static lua_State *L;
  if (L) return L;
  FUZZ_CHECK(mkdtemp(dir));
  snprintf(path, sizeof path, "%s/config.json", dir);
  atexit(tidy);
  L = luaL_newstate();
  FUZZ_CHECK(L);
  luaL_openlibs(L);
  luaL_requiref(L, "mav", luaopen_mav, 0);
  lua_pop(L, 1);
  if (luaL_dostring(L, check)) {
    fprintf(stderr, "%s\n", lua_tostring(L, -1));
    abort();
  }
  return L;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  lua_State *L = state();
  FILE *f = fopen(path, "wb");
  FUZZ_CHECK(f && fwrite(data, 1, bytes, f) == bytes);
  fclose(f);
  lua_pushvalue(L, -1);
  lua_pushstring(L, dir);
  if (lua_pcall(L, 1, 0, 0)) {
    fprintf(stderr, "%s\n", lua_tostring(L, -1));
    abort();
  }
  return 0;
}
