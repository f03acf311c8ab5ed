/* lua/mav.c - the host program: lua(1)'s contract (options, LUA_INIT, arg, REPL, Ctrl-C), and sub-commands.
 *
 *   mav [options] [script.lua | NAME] [args]
 *
 * A word without '/' that names a command (scripts/NAME.lua that returns {summary=, run=}) runs it, by lua/mav/host.lua; anything
 * else is a script file, as for lua. `require "mav"` is built in; no global is made. Standard descriptors that are closed are
 * opened on /dev/null first, so that no file of ours gets the number of stdout.
 * Statics: the running state, for the signal handler, as in lua.c. */
#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "line.h"
#include "lmav.h"

#define NAME "mav"
#define PROMPT "> "
#define PROMPT_MORE ">> "
#define EOF_MARK "<eof>"

static lua_State *running;

/* ---- calls: interrupts, messages ------------------------------------------------------------------------------------------- */

static void on_interrupt(int i);

/* The interrupt has become an error; the next one is to become one too. */
static void stop(lua_State *L, lua_Debug *ar) {
  (void)ar;
  struct sigaction again = {.sa_handler = on_interrupt};
  lua_sethook(L, NULL, 0, 0);
  sigaction(SIGINT, &again, NULL);
  luaL_error(L, "interrupted!");
}

/* A second Ctrl-C before the hook runs kills the process, as ever. */
static void on_interrupt(int i) {
  int events = LUA_MASKCALL | LUA_MASKRET | LUA_MASKLINE | LUA_MASKCOUNT;
  struct sigaction standard = {.sa_handler = SIG_DFL};
  sigaction(i, &standard, NULL);
  lua_sethook(running, stop, events, 1);
}

static bool is_mav_error(lua_State *L, int arg) {
  bool yes = lua_istable(L, arg) && luaL_getmetafield(L, arg, "__name") == LUA_TSTRING;
  if (!yes) return false;
  yes = !strcmp(lua_tostring(L, -1), "mav.error");
  lua_pop(L, 1);
  return yes;
}

static int message_handler(lua_State *L) {
  const char *message = lua_tostring(L, 1);
  if (!message) {
    if (is_mav_error(L, 1)) {
      message = luaL_tolstring(L, 1, NULL);
      if (lua_getfield(L, 1, "traceback") == LUA_TSTRING) {
        lua_pushfstring(L, "%s\n%s", message, lua_tostring(L, -1));
        return 1;
      }
    } else if (luaL_callmeta(L, 1, "__tostring") && lua_type(L, -1) == LUA_TSTRING) {
      return 1;
    } else {
      message = lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, 1));
    }
  }
  if (!strstr(message, "\nstack traceback:"))
    luaL_traceback(L, L, message, 1);
  else
    lua_pushstring(L, message); /* a capture added one already */
  return 1;
}

static int call(lua_State *L, int args, int results) {
  int base = lua_gettop(L) - args;
  lua_pushcfunction(L, message_handler);
  lua_insert(L, base);
  running = L;
  struct sigaction on = {.sa_handler = on_interrupt}, off = {.sa_handler = SIG_DFL};
  sigemptyset(&on.sa_mask);
  sigaction(SIGINT, &on, NULL);
  int status = lua_pcall(L, args, results, base);
  sigaction(SIGINT, &off, NULL);
  lua_remove(L, base);
  return status;
}

static void message(const char *name, const char *text) {
  fflush(stdout);
  if (name) fprintf(stderr, "%s: ", name);
  fprintf(stderr, "%s\n", text);
}

static int report(lua_State *L, int status) {
  if (status != LUA_OK) {
    const char *text = lua_tostring(L, -1);
    message(NAME, text ? text : "(error message not a string)");
    lua_pop(L, 1);
  }
  return status;
}

/* ---- what to run ------------------------------------------------------------------------------------------------------------ */

static int run_chunk(lua_State *L, int status) {
  if (status == LUA_OK) status = call(L, 0, 0);
  return report(L, status);
}

static int run_string(lua_State *L, const char *text, const char *name) {
  return run_chunk(L, luaL_loadbuffer(L, text, strlen(text), name));
}

/* -l module, -l global=module. */
static int run_library(lua_State *L, const char *text) {
  const char *equals = strchr(text, '='), *module = equals ? equals + 1 : text;
  lua_pushlstring(L, text, equals ? (size_t)(equals - text) : strlen(text));
  lua_getglobal(L, "require");
  lua_pushstring(L, module);
  int status = call(L, 1, 1);
  if (status == LUA_OK) {
    lua_setglobal(L, lua_tostring(L, -2));
    lua_pop(L, 1);
    return status;
  }
  lua_remove(L, -2);
  return report(L, status);
}

static int run_init(lua_State *L) {
  const char *name = "=LUA_INIT_5_4", *init = getenv(name + 1);
  if (!init) init = getenv((name = "=LUA_INIT") + 1);
  if (!init) return LUA_OK;
  if (init[0] == '@') return run_chunk(L, luaL_loadfile(L, init + 1));
  return run_string(L, init, name);
}

/* Global `arg`: the script at 0, its arguments from 1 on, what stands before it at negative numbers. */
static void set_arg(lua_State *L, char **argv, int argc, int script) {
  if (script == argc) script = 0;
  lua_createtable(L, argc - script, script + 1);
  for (int i = 0; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i - script);
  }
  lua_setglobal(L, "arg");
}

static int push_arguments(lua_State *L) {
  if (lua_getglobal(L, "arg") != LUA_TTABLE) luaL_error(L, "'arg' is not a table");
  int n = (int)luaL_len(L, -1);
  luaL_checkstack(L, n + 3, "too many arguments to script");
  for (int i = 1; i <= n; i++) lua_rawgeti(L, -i, i);
  lua_remove(L, -n - 1);
  return n;
}

static int run_script(lua_State *L, char **argv) {
  const char *file = argv[0];
  if (!strcmp(file, "-") && strcmp(argv[-1], "--") != 0) file = NULL;
  int status = luaL_loadfile(L, file);
  if (status == LUA_OK) {
    int n = push_arguments(L);
    status = call(L, n, 0);
  }
  return report(L, status);
}

/* ---- commands --------------------------------------------------------------------------------------------------------------- */

/* hint(word, list): "did you mean 'x'?" */
static int hint(lua_State *L) {
  const char *word = luaL_checkstring(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_Integer n = (lua_Integer)lua_rawlen(L, 2);
  luaL_checkstack(L, (int)n + 4, NULL);
  const char **list = lua_newuserdatauv(L, (size_t)(n + 1) * sizeof *list, 0);
  for (lua_Integer i = 0; i < n; i++) {
    lua_rawgeti(L, 2, i + 1);
    list[i] = luaL_checkstring(L, -1);
  }
  list[n] = NULL;
  lmav_push_hint(L, word, list);
  return 1;
}

/* Calls a function of lua/mav/host.lua with what it needs of this file; its result is an exit status, or nil. */
static int host_call(lua_State *L) {
  lmav_push_lua(L, "mav.host", lua_tostring(L, lua_upvalueindex(1)));
  lua_insert(L, 1);
  lmav_push_script_names(L);
  lua_pushcfunction(L, hint);
  lua_call(L, lua_gettop(L) - 1, 1);
  return 1;
}

/* Leaves the result on the stack. */
static int host(lua_State *L, const char *function, int args) {
  lua_pushstring(L, function);
  lua_pushcclosure(L, host_call, 1);
  lua_insert(L, -args - 1);
  return report(L, call(L, args, 1));
}

static bool is_word(const char *s) {
  if (!((*s | 32) >= 'a' && (*s | 32) <= 'z')) return false;
  for (; *s; s++)
    if (!(*s == '_' || *s == '-' || (*s >= '0' && *s <= '9') || ((*s | 32) >= 'a' && (*s | 32) <= 'z'))) return false;
  return true;
}

/* ---- read, evaluate, print ---------------------------------------------------------------------------------------------------- */

static char *read_line(lua_State *L, bool first) {
  const char *prompt = first ? PROMPT : PROMPT_MORE;
  if (lua_getglobal(L, first ? "_PROMPT" : "_PROMPT2") != LUA_TNIL) prompt = luaL_tolstring(L, -1, NULL);
  char *line = line_read(prompt);
  lua_settop(L, first ? 0 : 1);
  return line;
}

static bool is_incomplete(lua_State *L, int status) {
  if (status != LUA_ERRSYNTAX) return false;
  size_t n, m = sizeof EOF_MARK - 1;
  const char *text = lua_tolstring(L, -1, &n);
  if (n < m || strcmp(text + n - m, EOF_MARK) != 0) return false;
  lua_pop(L, 1);
  return true;
}

/* Pushes one line; false: end of input. */
static bool push_line(lua_State *L, bool first) {
  char *line = read_line(L, first);
  if (!line) return false;
  lua_pushstring(L, line);
  free(line);
  return true;
}

/* Loads one statement or expression, over as many lines as it takes; -1: end of input. "=x" means "return x".
 * Leaves the chunk, or a message. */
static int load_line(lua_State *L) {
  lua_settop(L, 0);
  if (!push_line(L, true)) return -1;
  bool equals = *lua_tostring(L, 1) == '=';
  if (equals) {
    lua_pushfstring(L, "return %s", lua_tostring(L, 1) + 1);
    lua_replace(L, 1);
  }
  size_t n;
  const char *text = lua_pushfstring(L, "return %s", lua_tostring(L, 1));
  int status = luaL_loadbuffer(L, text, strlen(text), "=stdin");
  lua_remove(L, 2);
  while (status != LUA_OK) {
    lua_settop(L, 1);
    text = lua_tolstring(L, 1, &n);
    status = luaL_loadbuffer(L, text, n, "=stdin");
    if (!is_incomplete(L, status)) break;
    if (!push_line(L, false)) {
      status = luaL_loadbuffer(L, text, n, "=stdin"); /* its message */
      break;
    }
    lua_pushliteral(L, "\n");
    lua_insert(L, -2);
    lua_concat(L, 3);
    status = LUA_ERRSYNTAX;
  }
  text = lua_tostring(L, 1);
  line_remember(equals ? lua_pushfstring(L, "=%s", text + sizeof "return " - 1) : text);
  if (equals) lua_pop(L, 1);
  lua_remove(L, 1);
  return status;
}

static void print_results(lua_State *L) {
  int n = lua_gettop(L);
  if (n == 0) return;
  luaL_checkstack(L, LUA_MINSTACK, "too many results to print");
  lua_getglobal(L, "print");
  lua_insert(L, 1);
  if (call(L, n, 0) != LUA_OK) message(NAME, lua_pushfstring(L, "error calling 'print' (%s)", lua_tostring(L, -1)));
}

static void repl(lua_State *L) {
  int status;
  line_open(L);
  while ((status = load_line(L)) != -1) {
    if (status == LUA_OK) status = call(L, 0, LUA_MULTRET);
    if (status == LUA_OK)
      print_results(L);
    else
      message(NULL, lua_tostring(L, -1) ? lua_tostring(L, -1) : "(error message not a string)");
  }
  lua_settop(L, 0);
  fputc('\n', stdout);
  fflush(stdout);
}

/* ---- options ------------------------------------------------------------------------------------------------------------------- */

typedef struct options {
  bool bad, interactive, version, execute, no_environment, help;
  int script; /* of argv; argc: none */
} options;

static options read_options(int argc, char **argv) {
  options o = {0};
  int i;
  for (i = 1; argc > 0 && argv[i]; i++) {
    const char *a = argv[i];
    o.script = i;
    if (a[0] != '-' || !a[1]) return o;
    bool single = !a[2];
    switch (a[1]) {
      case '-':
        if (!a[2]) {
          o.script = i + 1;
          return o;
        }
        if (!strcmp(a, "--help"))
          o.help = true;
        else if (!strcmp(a, "--version"))
          o.version = true;
        else
          return o.bad = true, o;
        break;
      case 'h':
        if (!single) return o.bad = true, o;
        o.help = true;
        break;
      case 'E':
        if (!single) return o.bad = true, o;
        o.no_environment = true;
        break;
      case 'W':
        if (!single) return o.bad = true, o;
        break;
      case 'i':
        if (!single) return o.bad = true, o;
        o.interactive = o.version = true;
        break;
      case 'v':
        if (!single) return o.bad = true, o;
        o.version = true;
        break;
      case 'e':
        o.execute = true; /* fall through */
        __attribute__((fallthrough));
      case 'l':
        if (single && (!argv[++i] || argv[i][0] == '-')) return o.bad = true, o;
        break;
      default:
        return o.bad = true, o;
    }
  }
  o.script = i < argc ? i : argc;
  return o;
}

/* -e, -l and -W, in order. */
static bool run_options(lua_State *L, char **argv, int n) {
  for (int i = 1; i < n; i++) {
    char kind = argv[i][1];
    if (kind == 'e' || kind == 'l') {
      const char *text = argv[i][2] ? argv[i] + 2 : argv[++i];
      if ((kind == 'e' ? run_string(L, text, "=(command line)") : run_library(L, text)) != LUA_OK) return false;
    } else if (kind == 'W') {
      lua_warning(L, "@on", 0);
    }
  }
  return true;
}

static void print_version(void) {
  fputs("mav " MAV_VERSION "  " LUA_COPYRIGHT "\n", stdout);
  fflush(stdout);
}

static void print_bad_option(const char *bad) {
  fprintf(stderr, NAME ": ");
  if (bad[1] == 'e' || bad[1] == 'l')
    fprintf(stderr, "'%s' needs argument\n", bad);
  else
    fprintf(stderr, "unrecognized option '%s'\n", bad);
  fprintf(stderr, "usage: " NAME
                  " [-e stat] [-l mod] [-i] [-v] [-E] [-W] [--] [script.lua | command] [args]\n"
                  "       " NAME " --help\n");
}

/* The whole program, in protected mode; returns its exit status. */
static int program(lua_State *L) {
  int argc = (int)lua_tointeger(L, 1);
  char **argv = lua_touserdata(L, 2);
  lua_settop(L, 0);
  options o = read_options(argc, argv);
  luaL_checkversion(L);
  if (o.bad) {
    print_bad_option(argv[o.script]);
    return lua_pushinteger(L, EXIT_FAILURE), 1;
  }
  if (o.version && !o.help) print_version();
  if (o.no_environment) {
    lua_pushboolean(L, 1);
    lua_setfield(L, LUA_REGISTRYINDEX, "LUA_NOENV");
  }
  luaL_openlibs(L);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  lua_pushcfunction(L, luaopen_mav);
  lua_setfield(L, -2, "mav");
  lua_settop(L, 0);
  set_arg(L, argv, argc, o.script);
  lua_gc(L, LUA_GCGEN, 0, 0);
  bool scripted = o.script < argc;
  const char *word = scripted && is_word(argv[o.script]) ? argv[o.script] : NULL;
  luaL_requiref(L, "mav", luaopen_mav, 0); /* no global; adds the searcher that finds "mav.maverick" and mav.host */
  lua_settop(L, 0);
  if (o.help) {
    int status = host(L, "help", 0);
    return lua_pushinteger(L, status == LUA_OK ? EXIT_SUCCESS : EXIT_FAILURE), 1;
  }
  bool ok = (o.no_environment || run_init(L) == LUA_OK) && run_options(L, argv, o.script);
  if (ok && word) {
    lua_pushstring(L, word);
    lua_getglobal(L, "arg");
    ok = host(L, "command", 2) == LUA_OK;
    if (ok && lua_isinteger(L, -1) && !o.interactive) return 1;
    if (ok && lua_isnil(L, -1)) word = NULL; /* no command: a file */
    lua_settop(L, 0);
  }
  if (ok && scripted && !word) ok = run_script(L, argv + o.script) == LUA_OK;
  if (ok && o.interactive) {
    repl(L);
  } else if (ok && !scripted && !o.execute && !o.version) {
    if (isatty(STDIN_FILENO)) {
      print_version();
      repl(L);
    } else {
      ok = run_chunk(L, luaL_loadfile(L, NULL)) == LUA_OK;
    }
  }
  return lua_pushinteger(L, ok ? EXIT_SUCCESS : EXIT_FAILURE), 1;
}

static void open_standard(void) {
  for (int fd = 0; fd < 3; fd++)
    if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", O_RDWR) < 0) exit(EXIT_FAILURE);
}

int main(int argc, char **argv) {
  open_standard();
  lua_State *L = luaL_newstate();
  if (!L) {
    message(NAME, "cannot create state: not enough memory");
    return EXIT_FAILURE;
  }
  lua_pushcfunction(L, program);
  lua_pushinteger(L, argc);
  lua_pushlightuserdata(L, argv);
  int status = lua_pcall(L, 2, 1, 0);
  int code = status == LUA_OK ? (int)lua_tointeger(L, -1) : EXIT_FAILURE;
  report(L, status);
  lua_close(L);
  if ((fflush(stdout) || ferror(stdout)) && errno != EPIPE && code == 0) {
    message(NAME, "cannot write to stdout");
    code = EXIT_FAILURE;
  }
  return code;
}
