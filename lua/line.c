/* lua/line.c - line editing, the history file, completion.
 *
 * The history lives in $XDG_STATE_HOME/mav/history (~/.local/state/mav/history); it and its folder are made by the first
 * interactive session, never before. Completion looks at values without calling any metamethod: tables, and the methods of
 * userdata. Statics: libedit has one line and one history, and its callbacks take no argument. */
#include "line.h"

#include <editline/readline.h>
#include <lauxlib.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HISTORY_LINES 1000

static lua_State *completing;
static bool editing;
static char history_path[PATH_MAX];

/* ---- completion ----------------------------------------------------------------------------------------------------------- */

static char **matches; /* of the word under completion; owned here until libedit takes each */
static int match_count, match_next;

static bool is_name(char c) { return c == '_' || (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z'); }

/* Replaces the value on top by what its fields are looked up in; false: nothing. */
static bool push_fields(lua_State *L) {
  if (lua_istable(L, -1)) return true;
  if (!luaL_getmetafield(L, -1, "__index")) return false;
  if (lua_iscfunction(L, -1) && lua_getupvalue(L, -1, 1)) lua_remove(L, -2); /* the bridge's: upvalue 1 holds the methods */
  lua_remove(L, -2);
  return lua_istable(L, -1);
}

static void add_matches(lua_State *L, const char *head, size_t head_bytes, const char *tail) {
  size_t n = strlen(tail);
  for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
    if (lua_type(L, -2) != LUA_TSTRING) continue;
    const char *key = lua_tostring(L, -2);
    if (strncmp(key, tail, n) != 0 || (n == 0 && key[0] == '_') || (key[0] >= '0' && key[0] <= '9')) continue;
    const char *c = key;
    while (is_name(*c)) c++;
    if (*c) continue;
    char **more = realloc(matches, (size_t)(match_count + 1) * sizeof *more);
    if (!more) return;
    matches = more;
    char *text = malloc(head_bytes + strlen(key) + 1);
    if (!text) return;
    memcpy(text, head, head_bytes);
    strcpy(text + head_bytes, key);
    matches[match_count++] = text;
  }
}

/* word: names joined by '.' or ':'. */
static int find_matches(lua_State *L) {
  const char *word = lua_touserdata(L, 1);
  const char *at = word;
  lua_pushglobaltable(L);
  for (;;) {
    const char *end = at;
    while (is_name(*end)) end++;
    if (*end != '.' && *end != ':') break;
    if (!push_fields(L)) return 0;
    lua_pushlstring(L, at, (size_t)(end - at));
    if (lua_rawget(L, -2) == LUA_TNIL) return 0;
    at = end + 1;
  }
  if (push_fields(L)) add_matches(L, word, (size_t)(at - word), at);
  return 0;
}

static char *next_match(const char *text, int state) {
  (void)text;
  (void)state;
  return match_next < match_count ? matches[match_next++] : NULL;
}

static char **complete(const char *text, int start, int end) {
  (void)start;
  (void)end;
  rl_attempted_completion_over = 1; /* no file names */
  while (match_next < match_count) free(matches[match_next++]);
  match_count = match_next = 0;
  char *word = strdup(text);
  if (!word) return NULL;
  if (lua_checkstack(completing, 4)) {
    lua_pushcfunction(completing, find_matches);
    lua_pushlightuserdata(completing, word);
    if (lua_pcall(completing, 1, 0, 0)) lua_pop(completing, 1);
  }
  free(word);
  return match_count ? rl_completion_matches(text, next_match) : NULL;
}

/* ---- history --------------------------------------------------------------------------------------------------------------- */

/* Makes every folder of path but the last component; false: it cannot be. */
static bool make_folders(char *path) {
  for (char *c = path + 1; *c; c++)
    if (*c == '/') {
      *c = 0;
      bool ok = mkdir(path, 0700) == 0 || access(path, X_OK) == 0;
      *c = '/';
      if (!ok) return false;
    }
  return true;
}

static void open_history(void) {
  const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
  int n = state && state[0] == '/' ? snprintf(history_path, sizeof history_path, "%s/mav/history", state)
          : home && home[0] == '/' ? snprintf(history_path, sizeof history_path, "%s/.local/state/mav/history", home)
                                   : -1;
  if (n < 0 || (size_t)n >= sizeof history_path || !make_folders(history_path)) {
    history_path[0] = 0;
    return;
  }
  stifle_history(HISTORY_LINES);
  read_history(history_path);
}

void line_open(lua_State *L) {
  completing = L;
  editing = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
  if (!editing) return;
  static char name[] = "mav";
  rl_readline_name = name;
  rl_initialize();
  rl_attempted_completion_function = complete;
  rl_completion_append_character = 0;
  rl_basic_word_break_characters = " \t\n\"'`@$><=;|&{}()[]+-*/%^~#,";
  using_history();
  open_history();
}

char *line_read(const char *prompt) {
  if (editing) return readline(prompt);
  fputs(prompt, stdout);
  fflush(stdout);
  char *line = NULL;
  size_t room = 0;
  ssize_t n = getline(&line, &room, stdin);
  if (n < 0) {
    free(line);
    return NULL;
  }
  if (n > 0 && line[n - 1] == '\n') line[n - 1] = 0;
  return line;
}

void line_remember(const char *line) {
  if (!editing || !*line) return;
  HIST_ENTRY *last = history_length > 0 ? history_get(history_base + history_length - 1) : NULL;
  if (last && last->line && !strcmp(last->line, line)) return;
  add_history(line);
  if (!history_path[0]) return;
  mode_t mask = umask(0077);
  write_history(history_path);
  umask(mask);
}
