/* Two lua_States in one process: nothing is shared, whatever the order in which they close; and one in each of two threads. */
// clang-format off
#include <setjmp.h> /* cmocka.h wants these first */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <lauxlib.h>
#include <lualib.h>
#include <pthread.h>

#include "lmav.h"
#include "mem.h"

static lua_State *open_state(void) {
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  luaL_requiref(L, "mav", luaopen_mav, 1);
  lua_pop(L, 1);
  return L;
}

static void run(lua_State *L, const char *text) {
  if (luaL_dostring(L, text)) fail_msg("%s", luaL_tolstring(L, -1, NULL));
  lua_settop(L, 0);
}

static const char setup[] =
    "rt = mav.default_runtime(mav.runtime{device = 'ref'}) x = mav.tensor{1, 2, 3} "
    "g = mav.graph({rows = 1}, function() return x + 1 end)";
static const char use[] = "g:launch():wait() assert(g[1]:get(2) == 3) local y = x * 2 assert(y:get(3) == 6)";

static void test_two_states(void **state) {
  (void)state;
  for (int first = 0; first < 2; first++) {
    lua_State *L[2] = {open_state(), open_state()};
    run(L[0], setup);
    run(L[1], setup);
    for (int i = 0; i < 10; i++) run(L[i & 1], use);
    /* A capture that is open in one leaves the other alone. */
    run(L[0], "co = coroutine.create(function() end)");
    run(L[1], "assert(not pcall(mav.graph, {rows = 1}, error))");
    run(L[0], use);
    lua_close(L[first]);
    run(L[!first], use);
    lua_close(L[!first]);
    assert_int_equal(mav__mem_live(), 0);
  }
}

static void test_open_twice(void **state) {
  (void)state;
  lua_State *L = open_state();
  run(L, setup);
  luaL_requiref(L, "mav", luaopen_mav, 1);
  lua_pushcfunction(L, luaopen_mav);
  lua_call(L, 0, 1);
  lua_setglobal(L, "again");
  run(L, use);
  run(L,
      "assert(again.json.null == mav.json.null) assert(#again.tensor{1} == 1) assert(again.op.add{a = x, b = again.tensor(1)}:get(1) == "
      "2)");
  run(L, "local n = 0 for _ in pairs(package.searchers) do n = n + 1 end assert(n == 5)");
  lua_close(L);
  assert_int_equal(mav__mem_live(), 0);
}

static void test_close_in_a_capture(void **state) {
  (void)state;
  lua_State *L = open_state();
  run(L, setup);
  run(L,
      "pcall(mav.graph, {rows = 1}, function() local t = mav.zeros{2} t:close() t = nil collectgarbage() local u = x + 1 u:close() "
      "rt:close() "
      "mav.default_runtime() error'x' end) collectgarbage()");
  lua_close(L);
  assert_int_equal(mav__mem_live(), 0);
}

static void test_no_base_library(void **state) {
  (void)state;
  lua_State *L = luaL_newstate(); /* no libraries: no package.searchers */
  luaL_requiref(L, "mav", luaopen_mav, 1);
  lua_pop(L, 1);
  run(L, "rt = mav.runtime{device = 'ref'} t = mav.tensor({1, 2}, {runtime = rt}) t = t + 1");
  lua_close(L);
  assert_int_equal(mav__mem_live(), 0);
}

static void *thread(void *arg) {
  (void)arg;
  for (int i = 0; i < 20; i++) {
    lua_State *L = luaL_newstate();
    luaL_openlibs(L);
    luaL_requiref(L, "mav", luaopen_mav, 1);
    lua_pop(L, 1);
    if (luaL_dostring(L, setup)) return "setup";
    for (int j = 0; j < 20; j++)
      if (luaL_dostring(L, use)) return "use";
    lua_close(L);
  }
  return NULL;
}

static void test_two_threads(void **state) {
  (void)state;
  pthread_t t[2];
  for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&t[i], NULL, thread, NULL), 0);
  for (int i = 0; i < 2; i++) {
    void *result;
    pthread_join(t[i], &result);
    assert_null(result);
  }
  assert_int_equal(mav__mem_live(), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_two_states), cmocka_unit_test(test_open_twice),
                                     cmocka_unit_test(test_close_in_a_capture), cmocka_unit_test(test_no_base_library),
                                     cmocka_unit_test(test_two_threads)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
