/* The host on a terminal: prompt, multi-line input, results, Ctrl-C, completion, the history file. argv[1]: the host. */
// clang-format off
#include <setjmp.h> /* cmocka.h wants these first */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <errno.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *host;
static char directory[] = "/tmp/mav-repl-XXXXXX";

typedef struct session {
  int fd;
  pid_t pid;
  char text[1 << 16];
  size_t used, seen;
} session;

static void begin(session *s) {
  struct winsize size = {.ws_row = 24, .ws_col = 100};
  *s = (session){0};
  s->pid = forkpty(&s->fd, NULL, NULL, &size);
  assert_true(s->pid >= 0);
  if (s->pid == 0) {
    setenv("XDG_STATE_HOME", directory, 1);
    setenv("TERM", "dumb", 1);
    unsetenv("LUA_INIT");
    execl(host, host, (char *)NULL);
    _exit(127);
  }
}

/* Reads until text appears behind what was seen before. */
static void expect(session *s, const char *text) {
  for (int waited = 0; waited < 20000;) {
    char *hit = strstr(s->text + s->seen, text);
    if (hit) {
      s->seen = (size_t)(hit - s->text) + strlen(text);
      return;
    }
    struct pollfd p = {.fd = s->fd, .events = POLLIN};
    int ready = poll(&p, 1, 100);
    if (ready == 0) {
      waited += 100;
      continue;
    }
    ssize_t n = read(s->fd, s->text + s->used, sizeof s->text - 1 - s->used);
    if (n <= 0) break;
    s->used += (size_t)n;
  }
  fail_msg("'%s' did not come; got: %s", text, s->text + s->seen);
}

static void type(session *s, const char *text) { assert_int_equal(write(s->fd, text, strlen(text)), (ssize_t)strlen(text)); }

static int end(session *s) {
  int status = 0;
  char rest[4096];
  while (read(s->fd, rest, sizeof rest) > 0) continue;
  waitpid(s->pid, &status, 0);
  close(s->fd);
  return status;
}

/* Ctrl-D until the program is gone: the editor may still be changing the terminal's mode when the first one arrives, which then
 * becomes a character of the line (Ctrl-U clears it). */
static int leave(session *s) {
  int status = 0;
  char rest[4096];
  for (int tries = 0; tries < 100; tries++) {
    if (write(s->fd, "\x15\x04", 2) < 0) break;
    struct pollfd p = {.fd = s->fd, .events = POLLIN};
    ssize_t n = 1;
    while (n > 0 && poll(&p, 1, 200) > 0) n = read(s->fd, rest, sizeof rest);
    if (n <= 0) break;
  }
  waitpid(s->pid, &status, 0);
  close(s->fd);
  return status;
}

static void history_path(char *path, size_t bytes) { snprintf(path, bytes, "%s/mav/history", directory); }

static void test_session(void **state) {
  (void)state;
  session s;
  begin(&s);
  expect(&s, "mav ");
  expect(&s, "> ");
  type(&s, "20 + 22\n");
  expect(&s, "\n42");
  expect(&s, "> ");
  type(&s, "for i = 7, 7 do\n");
  expect(&s, ">> ");
  type(&s, "print('<' .. i .. '>') end\n");
  expect(&s, "\n<7>");
  expect(&s, "> ");
  type(&s, "error('told you')\n");
  expect(&s, "told you");
  expect(&s, "stack traceback");
  expect(&s, "> ");
  type(&s, "local mav = require 'mav' print(mav.version .. '!')\n");
  expect(&s, "\n0.");
  expect(&s, "> ");
  assert_int_equal(leave(&s), 0);
}

static void test_interrupt(void **state) {
  (void)state;
  session s;
  begin(&s);
  expect(&s, "> ");
  type(&s, "print('on') while true do end\n");
  expect(&s, "\non");
  type(&s, "\x03");
  expect(&s, "interrupted!");
  expect(&s, "> ");
  type(&s, "'still ' .. 'here'\n");
  expect(&s, "\nstill here");
  expect(&s, "> ");
  type(&s, "os.exit(5)\n");
  int status = end(&s);
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 5);
}

static void test_completion(void **state) {
  (void)state;
  session s;
  begin(&s);
  expect(&s, "> ");
  type(&s, "string.forma\t('%d!', 9)\n");
  expect(&s, "\n9!");
  expect(&s, "> ");
  type(&s, "mav = require 'mav' rt = mav.runtime{device = 'ref'}\n");
  expect(&s, "> ");
  type(&s, "print('<' .. type(rt:mem\t()) .. '>')\n");
  expect(&s, "\n<table>");
  expect(&s, "> ");
  type(&s, "x = setmetatable({}, {__index = function() print('ne' .. 'ver') end})\n");
  expect(&s, "> ");
  type(&s, "x.y.z\t\x15'o' .. 'k'\n"); /* calls no metamethod to complete; Ctrl-U clears the line */
  expect(&s, "\nok");
  assert_null(strstr(s.text, "never"));
  expect(&s, "> ");
  assert_int_equal(leave(&s), 0);
}

static void test_history(void **state) {
  (void)state;
  char path[256];
  history_path(path, sizeof path);
  struct stat st;
  assert_int_equal(stat(path, &st), 0); /* of the sessions before */
  assert_int_equal(st.st_mode & 077, 0);
  session s;
  begin(&s);
  expect(&s, "> ");
  type(&s, "'first ' .. 'line'\n");
  expect(&s, "\nfirst line");
  expect(&s, "> ");
  assert_int_equal(leave(&s), 0);
  begin(&s);
  expect(&s, "> ");
  type(&s, "\x10\n"); /* Ctrl-P: the line before */
  expect(&s, "\nfirst line");
  expect(&s, "> ");
  assert_int_equal(leave(&s), 0);
}

int main(int argc, char **argv) {
  if (argc < 2 || !mkdtemp(directory)) return 2;
  host = argv[1];
  alarm(100); /* a session that does not end */
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_session), cmocka_unit_test(test_interrupt), cmocka_unit_test(test_completion),
                                     cmocka_unit_test(test_history)};
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  char path[256];
  history_path(path, sizeof path);
  unlink(path);
  snprintf(path, sizeof path, "%s/mav", directory);
  rmdir(path);
  rmdir(directory);
  return failed;
}
