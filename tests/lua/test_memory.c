/* Every binding with its n-th allocation failing, for every n: Lua's own, and the library's. Afterwards, with the state closed, no
 * byte may be live on either side. The library's failures come in two kinds: one that a collection cures (the binding tries again),
 * and one that comes back after every collection (the binding fails). */
// clang-format off
#include <setjmp.h> /* cmocka.h wants these first */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lmav.h"
#include "mem.h"

typedef struct heap {
  int64_t live, calls, fail_at; /* from the fail_at-th call on every allocation fails; 0: none */
} heap;

static void *allocate(void *ud, void *p, size_t before, size_t after) {
  heap *h = ud;
  if (!p) before = 0;
  if (!after) {
    free(p);
    h->live -= (int64_t)before;
    return NULL;
  }
  if (after > before && h->fail_at && ++h->calls >= h->fail_at) return NULL;
  void *q = realloc(p, after);
  if (q) h->live += (int64_t)after - (int64_t)before;
  return q;
}

/* What each case starts from. */
static const char prelude[] =
    "local mav = require 'mav' local op = mav.op\n"
    "local rt = assert(mav.runtime{device = 'ref'}) mav.default_runtime(rt)\n"
    "local dir = ...\n";

static const struct {
  const char *name, *text;
} cases[] = {
    {"open", "return mav.version"},
    {"runtime",
     "local r = assert(mav.runtime{device = 'ref', threads = 1}) r:memory() r:bandwidth{bytes = 1 << 20, repeats = 1} local _ = "
     "tostring(r) r:close()"},
    {"default", "rt:close() mav.default_runtime() mav.zeros{1}"},
    {"tensor",
     "local t = mav.tensor{{1, 2}, {3, 4}, dtype = 'bf16'} t:totable() t:bytes() local _ = tostring(t), t.shape, t.scale "
     "local u <close> = mav.tensor(t:bytes(), {dtype = 'bf16', shape = {2, 2}}) u:set(1, 1, u:get(2, 2))"},
    {"views",
     "local t = mav.zeros{2, 3} t:slice(2, 1, 2) t:select(1, 2) t:reshape{6} t:transpose(1, 2):contiguous() t:to('i32') "
     "mav.zeros{2, 3}:copy_from(t)"},
    {"quantize",
     "local q = mav.tensor{{1, 2}, {3, 4}}:quantize() local _ = q.scale q:set_scale(mav.tensor(1), {act = 'static', in_scale = 1})"},
    {"show", "require('mav.show').text(mav.zeros{2, 3})"},
    {"arithmetic", "local a = mav.tensor{1, 2} local b = (a + 1) * a - 2 / a b = -b b:close()"},
    {"op",
     "local v, i = op.topk{x = mav.tensor{3, 1, 2}, k = 2} op.take{x = mav.zeros{1, 3}, index = i:reshape{1, 2}} "
     "op.add{a = v, b = 1, out = v} op.topk{x = mav.tensor{3, 1}, k = 1, out = {mav.zeros{1}, mav.zeros{1, dtype = 'i32'}}}"},
    {"op errors",
     "pcall(op.neg, {}) pcall(op.neg, {x = 1, z = 2}) pcall(op.add, {a = mav.zeros{2}, b = mav.zeros{3}}) pcall(function() return op.ad "
     "end)"},
    {"ops", "mav.ops()"},
    {"rows",
     "local r = mav.rows(2) r:set(1, 5, 0, 0) r:set(2, 6, 0, 1, 1) local _ = r.ids:totable(), #r, tostring(r) "
     "local p <close> = r:slice(2, 2) _ = p.ids:totable(), #p:slice(1, 1)"},
    {"kv",
     "local kv = assert(mav.kv{layers = 2, kv_heads = 1, head_dim = 4, tokens = 64, sequences = 2, dtype = 'f32', chunk = {0, 32}}) "
     "kv:layer(2) local s = assert(kv:sequence{key = 3}) assert(s:reserve(33)) assert(s:commit(33)) local f <close> = assert(s:fork()) "
     "assert(f:reserve(1)) assert(s:truncate(32)) local _ = kv.pages_free, tostring(kv), tostring(s), s.floor s:close()"},
    {"kv lists", "assert(mav.kv{layers = 2, kv_heads = {1, 2}, head_dim = {4, 2}, tokens = 32, chunk = 32, sequences = 1}):layer(1)"},
    {"spec",
     "local kv = assert(mav.kv{layers = 1, kv_heads = 1, head_dim = 2, tokens = 64, sequences = 2, dtype = 'f32'}) local seq = assert(kv:sequence()) "
     "local s <close> = mav.spec{kv = kv, widths = {2, 1}} local ids, t = {}, mav.zeros{9, 2} "
     "local function graph(d) return mav.graph({rows = s.tree:slice(1, s:size(d))}, function(r) return op.embed{rows = r, table = t} end) end "
     "local one, all = graph(0), graph(2) local accepted = mav.tensor({0, 1, -1, 2, -1}, {dtype = 'i32'}) "
     "local choice = mav.tensor({1, 2, 3, 4, 5}, {dtype = 'i32'}) "
     "s:begin(seq, 1) s:draft(2, {1, 2, 3, 4}) s:verify(all) assert(s:commit(accepted, choice, false, ids, 0) == 3) s:check() "
     "s:drafted(0) s:verify(one) s:commit(nil, choice, false, ids, 3) assert(#seq == 4 and #ids == 4) "
     "local _ = s.state, s.depth, s:stats(), tostring(s)"},
    {"spec with ops",
     "local kv = assert(mav.kv{layers = 1, kv_heads = 1, head_dim = 2, tokens = 64, sequences = 1, dtype = 'f32'}) local seq = assert(kv:sequence()) "
     "local s = mav.spec{kv = kv, widths = {2}} local tree, t = s.tree, mav.zeros{9, 2} "
     "local g = mav.graph({rows = tree}, function(r) local x = op.embed{rows = r, table = t} "
     "op.norm_qkv{x = x, norm = mav.tensor{1, 1}, w = mav.zeros{6, 2}, rows = r, kv = kv:layer(1)} "
     "local choice = op.argmax{x = op.matmul{x = x, w = t}} local accepted = op.accept{rows = r, choice = choice} "
     "op.kv_move{rows = r, accepted = accepted, kv = kv:layer(1)} "
     "op.rows_advance{rows = r, accepted = accepted, choice = choice, next = tree, vocab = 9} "
     "op.rows_put{ids = op.argmax{x = mav.zeros{2, 9}}, next = tree:slice(2, 3), vocab = 9} return accepted, choice end) "
     "s:begin(seq, 1) s:draft(1, {2, 0}) s:verify(g) assert(s:commit(g[1], g[2], true, {}, 0) == 2) s:check() s:drafted(1) s:verify(g)"},
    {"spec errors",
     "local kv = assert(mav.kv{layers = 1, kv_heads = 1, head_dim = 2, tokens = 32, sequences = 1}) local s = mav.spec{kv = kv, widths = {1}} "
     "pcall(mav.spec, {kv = kv, widths = {0}}) pcall(mav.spec, {kv = kv, widths = {9, 9}}) pcall(s.draft, s, 1, {}) pcall(s.draft, s, 1, {-1}) "
     "pcall(s.drafted, s, 0) pcall(s.begin, s, kv, 1) pcall(s.commit, s, nil, mav.zeros{1}, false, {}, 0)"},
    {"guard",
     "assert(select('#', mav.guard(9, function(...) return ... end, 1, 2, 3)) == 3) pcall(mav.guard, 9, error, {}) "
     "pcall(mav.guard, 0, function() for _ = 1, 30000 do end end) pcall(mav.guard, 9, mav.guard, 9, mav.zeros, {2}) "
     "assert(not debug.gethook())"},
    {"graph",
     "local x = mav.tensor{1, 2} local g = mav.graph({rows = 2}, function(rows) local y = mav.keep(x * 2) return op.embed{rows = rows, "
     "table = mav.zeros{3, 2}}, y + 1 end) g.rows:set(1, 0, 0, 0) g.rows:set(2, 1, 0, 1) g:launch():wait() g:stats() g:profile() "
     "local _ = g.outputs, g[2]:totable(), tostring(g) g:close()"},
    {"capture errors",
     "local x = mav.tensor{1} pcall(mav.graph, {rows = 1}, function() local y = x + 1 error 'no' end) "
     "pcall(mav.graph, {rows = 1}, function() return x + mav.zeros{2} + mav.zeros{3} end) pcall(mav.graph, {rows = 1}, function() return 1 "
     "end)"},
    {"weights",
     "local w = assert(mav.weights(dir)) w:names() w:info(w:names()[1]) assert(w:get(w:names()[1])) w:get 'nothing' mav.weights "
     "'/nowhere'"},
    {"safetensors",
     "local path = os.tmpname() local ok, err = pcall(function() assert(mav.safetensors.write(path, {a = mav.zeros{2}, b = mav.zeros{1}})) "
     "local s = assert(mav.safetensors.open(path)) s:names() s:info 'a' assert(s:get 'a') s:get 'c' end) os.remove(path) assert(ok, err)"},
    {"pack",
     "local path = os.tmpname() local function go(progress) local w <close> = assert(mav.pack_writer(path, {meta = {a = 1}, "
     "chunk_bytes = 4096, progress = progress, tensors = {{name = 'w', dtype = 'f8', shape = {2, 4000}, scale = 's', act = 'dynamic', "
     "compress = true}, {name = 's', dtype = 'f32', shape = {2}}}})) local q = mav.zeros{2, 4000}:quantize() local i, at = w:next() "
     "if i == 1 then assert(w:put(1, q, at)) end if progress then assert(w:put(2, q.scale)) assert(w:finish()) end end "
     "local ok, err = pcall(function() go() go(function(done, total) local _ = done .. '/' .. total end) local p <close> = "
     "assert(mav.pack(path)) local _ = p.meta, p:names(), p:info 'w', tostring(p), p:check 'w', p:verify('w', 1) assert(p:tensor 'w') "
     "assert(p:tensor('s', {copy = true})) assert(p:read('w', 10, 5000)) p:tensor 'nothing' end) "
     "for _, suffix in ipairs{'', '.part', '.journal'} do os.remove(path .. suffix) end assert(ok, err)"},
    {"gguf",
     "local path = os.tmpname() local ok, err = pcall(function() local f = io.open(path, 'wb') f:write('GGUF', ('<I4I8I8'):pack(3, 1, 2), "
     "('<s8I4I4I8s8s8'):pack('list', 9, 8, 2, 'a', 'b'), ('<s8I4f'):pack('x', 6, 1), ('<s8I4I8I8I4I8'):pack('q', 2, 32, 1, 8, 0)) "
     "f:write(('\\0'):rep(-f:seek() % 32 + 34)) f:close() local g <close> = assert(mav.gguf(path)) local _ = g:names(), g:keys(), "
     "g:info 'q', g:value 'list', g:value 'x', tostring(g), g:has 'q' assert(g:rows 'q') g:rows 'none' end) os.remove(path) "
     "assert(ok, err)"},
    {"tokenizer",
     "local t = assert(mav.tokenizer(dir)) local ids = assert(t:encode 'local x = 1') assert(t:decode(ids)) local s = assert(t:stream()) "
     "for _, id in ipairs(ids) do s:push(id) end s:finish() t:piece(ids[1]) t:find 'a' t:encode '\\xff'"},
    {"comm", "op.all_reduce{x = mav.tensor{1}, comm = assert(mav.comm())}"},
    {"json",
     "mav.json.encode(mav.json.decode('{\"a\":[1,2.5,\"\\\\u00e9\",null],\"b\":{},\"c\":' .. "
     "('[1,2,3,\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"]') .. '}'), "
     "{indent = 2}) mav.json.decode '[1,' mav.json.array()"},
};

/* A finalizer that runs in every collection: once the library has made this many allocations, its next one fails too. */
static int64_t stubborn_from;

static int fail_again(lua_State *L) {
  if (mav__mem_allocs() >= stubborn_from) mav__mem_fail_at(1);
  lua_newtable(L);
  if (lua_getmetatable(L, 1)) lua_setmetatable(L, -2);
  return 0;
}

static void add_saboteur(lua_State *L) {
  lua_newtable(L);
  lua_newtable(L);
  lua_pushcfunction(L, fail_again);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
  lua_pop(L, 1);
}

static int prepare(lua_State *L) {
  luaL_openlibs(L);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  lua_pushcfunction(L, luaopen_mav);
  lua_setfield(L, -2, "mav");
  return 0;
}

typedef enum mode { LUA_SIDE, CURABLE, STUBBORN } mode;

/* One run with the n-th allocation failing: false when there were fewer, and all went well. */
static bool run(const char *name, const char *text, mode m, int64_t n) {
  static const char *const modes[] = {"Lua's", "the library's", "the library's, again and again,"};
  heap h = {0};
  int64_t live = mav__mem_live();
  lua_State *L = lua_newstate(allocate, &h);
  assert_non_null(L);
  lua_pushcfunction(L, prepare);
  assert_int_equal(lua_pcall(L, 0, 0, 0), LUA_OK);
  char source[4096];
  snprintf(source, sizeof source, "%s%s", prelude, text);
  if (luaL_loadstring(L, source)) fail_msg("%s: %s", name, lua_tostring(L, -1));
  lua_pushstring(L, MAV_SOURCE_DIR "/tests/oracle/models/maverick");
  if (m == STUBBORN) add_saboteur(L);
  int64_t before = mav__mem_allocs();
  if (m == LUA_SIDE) {
    h.fail_at = n;
  } else {
    mav__mem_fail_at(n);
    stubborn_from = before + n;
  }
  int status = lua_pcall(L, 1, 0, 0);
  int64_t used = m == LUA_SIDE ? h.calls : mav__mem_allocs() - before;
  h.fail_at = 0;
  mav__mem_fail_at(0);
  if (status != LUA_OK && used < n) fail_msg("%s: %s", name, luaL_tolstring(L, -1, NULL));
  lua_close(L);
  if (h.live != 0) fail_msg("%s: %s allocation %lld: %lld bytes of Lua's are live", name, modes[m], (long long)n, (long long)h.live);
  if (mav__mem_live() != live)
    fail_msg("%s: %s allocation %lld: %lld bytes of the library's are live", name, modes[m], (long long)n,
             (long long)(mav__mem_live() - live));
  return used >= n;
}

static void every(mode m) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int64_t n = 1;
    /* Big cases are mostly loops over the same lines (a tokenizer's table): past the first thousand, thin out. */
    while (run(cases[i].name, cases[i].text, m, n)) n += 1 + (n > 1000 ? n / 50 : 0);
    print_message("%s: %lld\n", cases[i].name, (long long)n);
  }
}

static void test_lua_fails(void **state) {
  (void)state;
  every(LUA_SIDE);
}

static void test_library_fails_once(void **state) {
  (void)state;
  every(CURABLE);
}

static void test_library_fails(void **state) {
  (void)state;
  every(STUBBORN);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_library_fails_once), cmocka_unit_test(test_library_fails),
                                     cmocka_unit_test(test_lua_fails)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
