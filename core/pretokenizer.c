/* core/pretokenizer.c - pre-tokenization with PCRE2.
 *
 * tokenizer.json is written for Oniguruma. What both engines read alike passes; \s and \S become Unicode White_Space (PCRE2's
 * own also take U+180E); anything that they read differently (\h, \w, (?m), nested classes, ...) is refused by name rather
 * than matched wrongly. Character classes are of the Unicode version that the linked PCRE2 has (10.42: 14.0; tokenizers 0.23
 * has 16.0): a letter assigned between the two is cut as a symbol. Matching is bounded: a pattern that explodes ends in an
 * error, not in minutes.
 * Threads: compiled patterns are shared, match data belongs to one call. */
#include "pretokenizer.h"

#include <stdio.h>
#include <string.h>

#include "err.h"
#include "mem.h"

#if PCRE2_MAJOR == 10 && PCRE2_MINOR < 40
#error "PCRE2 10.40 or later is needed: \\p{White_Space}"
#endif

#define MATCH_LIMIT 1000000u /* backtracking steps of one match, plus 32 for each byte of text */
#define HEAP_LIMIT_KB 262144u

static void *pcre_alloc(PCRE2_SIZE bytes, void *data) {
  (void)data;
  return mav__alloc(bytes);
}

static void pcre_free(void *p, void *data) {
  (void)data;
  mav__free(p);
}

mav_err mav__pretokenizer_init(mav__pretokenizer *p) {
  *p = (mav__pretokenizer){.general = pcre2_general_context_create(pcre_alloc, pcre_free, NULL)};
  return p->general ? MAV_OK : MAV_ERR_NOMEM;
}

void mav__pretokenizer_deinit(mav__pretokenizer *p) {
  for (int i = 0; i < p->splits; i++) pcre2_code_free(p->split[i]);
  pcre2_general_context_free(p->general);
  *p = (mav__pretokenizer){0};
}

/* "(?" is followed by one of these, or refused. */
static bool group_is_known(const char *s) {
  static const char *const known[] = {":", "=", "!", "<=", "<!", ">", "i:", "i)", "-i:", "-i)"};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (!strncmp(s, known[i], strlen(known[i]))) return true;
  return false;
}

/* Oniguruma's pattern as PCRE2 reads it; dst has room for 16 bytes per byte. Refused: *what says what. */
static bool translate(char *dst, const char *s, const char **what) {
  bool in_class = false;
  for (; *s; s++) {
    *what = s;
    if (*s == '\\') {
      char c = *++s;
      bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
      if (!c || (letter && !strchr("sSpPdDrntfxAzZ", c)) || (in_class && c && strchr("AzZ", c))) return false;
      if (c == 's' || c == 'S') dst += sprintf(dst, "\\%c{White_Space}", c == 's' ? 'p' : 'P');
      else *dst++ = '\\', *dst++ = c;
      if (strchr("pPx", c) && s[1] == '{') /* up to the brace, which is then no quantifier's */
        while (s[1] && *s != '}') *dst++ = *++s;
      continue;
    }
    if (in_class) {
      if (*s == '[' || (*s == '&' && s[1] == '&')) return false;
      if (*s == ']') in_class = false;
    } else if (*s == '[') {
      in_class = true;
      *dst++ = *s;
      if (s[1] == '^') *dst++ = *++s;
      if (s[1] == ']') return false;
      continue;
    } else if (*s == '(') {
      if (s[1] == '*' || (s[1] == '?' && !group_is_known(s + 2))) return false;
    } else if (*s == '}' && s[1] == '+') {
      return false;
    }
    *dst++ = *s;
  }
  *dst = 0;
  return true;
}

mav_err mav__pretokenizer_add(mav__pretokenizer *p, const char *pattern, const char *op, const char *name, mav_diag *diag) {
  size_t n = strlen(pattern);
  if (p->splits == MAV__SPLITS_MAX)
    return MAV_FAIL(diag, UNSUPPORTED, op, "%s: more than %d Split pre-tokenizers", name, MAV__SPLITS_MAX);
  if (n > 65536) return MAV_FAIL(diag, UNSUPPORTED, op, "%s: a Split pattern of %zu bytes", name, n);
  char *text = mav__alloc(16 * n + 1);
  pcre2_compile_context *context = pcre2_compile_context_create(p->general);
  pcre2_code *code = NULL;
  const char *what = pattern;
  int status = 0;
  PCRE2_SIZE at = 0;
  mav_err err = MAV_OK;
  if (!text || !context) MAV_GOTO(MAV_FAIL(diag, NOMEM, op, "%s: out of memory", name));
  if (!translate(text, pattern, &what))
    MAV_GOTO(MAV_FAIL(diag, UNSUPPORTED, op, "%s: the Split pattern uses \"%.6s\" at character %zu, which is not supported", name, what,
                      (size_t)(what - pattern)));
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                       &status, &at, context);
  if (!code && status == PCRE2_ERROR_HEAP_FAILED) MAV_GOTO(MAV_FAIL(diag, NOMEM, op, "%s: out of memory", name));
  if (!code) {
    PCRE2_UCHAR why[160];
    if (pcre2_get_error_message(status, why, sizeof why) < 0) snprintf((char *)why, sizeof why, "PCRE2 error %d", status);
    MAV_GOTO(MAV_FAIL(diag, FORMAT, op, "%s: the Split pattern does not compile: %s", name, (char *)why));
  }
  (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* without it the interpreter matches */
  p->split[p->splits++] = code;
done:
  pcre2_compile_context_free(context);
  mav__free(text);
  return err;
}

mav_err mav__pretokenizer_work_init(mav__pretokenizer_work *w, const mav__pretokenizer *p) {
  *w = (mav__pretokenizer_work){.context = pcre2_match_context_create(p->general)};
  bool ok = w->context;
  for (int i = 0; ok && i < p->splits; i++) ok = (w->match[i] = pcre2_match_data_create(1, p->general));
  if (!ok) {
    mav__pretokenizer_work_deinit(w);
    return MAV_ERR_NOMEM;
  }
  pcre2_set_heap_limit(w->context, HEAP_LIMIT_KB);
  return MAV_OK;
}

void mav__pretokenizer_work_deinit(mav__pretokenizer_work *w) {
  for (int i = 0; i < MAV__SPLITS_MAX; i++) pcre2_match_data_free(w->match[i]);
  pcre2_match_context_free(w->context);
  *w = (mav__pretokenizer_work){0};
}

typedef struct run {
  const mav__pretokenizer *p;
  mav__pretokenizer_work *w;
  mav__piece_fn each;
  void *ctx;
  const char *op;
  mav_diag *diag;
} run;

static mav_err match_fail(const run *r, int status, int level, size_t bytes) {
  PCRE2_UCHAR why[160];
  if (status == PCRE2_ERROR_NOMEMORY) return MAV_FAIL(r->diag, NOMEM, r->op, "out of memory while matching Split pattern %d", level + 1);
  if (pcre2_get_error_message(status, why, sizeof why) < 0) snprintf((char *)why, sizeof why, "PCRE2 error %d", status);
  mav_err code = status == PCRE2_ERROR_MATCHLIMIT || status == PCRE2_ERROR_DEPTHLIMIT || status == PCRE2_ERROR_HEAPLIMIT ? MAV_ERR_RANGE
                                                                                                                  : MAV_ERR_INVALID;
  return mav__diag_set(r->diag, code, r->op, __FILE__, __LINE__, 0, "Split pattern %d of the tokenizer gave up on a text of %zu bytes: %s",
                       level + 1, bytes, (char *)why);
}

static mav_err split(const run *r, int level, const char *text, size_t n) {
  if (level == r->p->splits) return r->each(r->ctx, text, n);
  pcre2_match_data *match = r->w->match[level];
  const PCRE2_SIZE *range = pcre2_get_ovector_pointer(match);
  PCRE2_SPTR subject = (PCRE2_SPTR)text;
  /* done: end of what was handed on; at: where the next match may start (past done after an empty match). */
  for (size_t done = 0, at = 0; done < n;) {
    int status = at > n ? PCRE2_ERROR_NOMATCH
                        : pcre2_match(r->p->split[level], subject, n, at, PCRE2_NO_UTF_CHECK, match, r->w->context);
    if (status == PCRE2_ERROR_JIT_STACKLIMIT)
      status = pcre2_match(r->p->split[level], subject, n, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match, r->w->context);
    if (status < 0 && status != PCRE2_ERROR_NOMATCH) return match_fail(r, status, level, n);
    size_t first = status < 0 ? n : range[0], end = status < 0 ? n : range[1];
    if (first > done) MAV_TRY(split(r, level + 1, text + done, first - done));
    if (end > first) MAV_TRY(split(r, level + 1, text + first, end - first));
    done = at = end;
    if (end == first && status >= 0) /* empty: a border, and the search goes on behind the next character */
      do at++;
      while (at < n && ((unsigned char)text[at] & 0xC0) == 0x80);
  }
  return MAV_OK;
}

mav_err mav__pretokenizer_run(const mav__pretokenizer *p, mav__pretokenizer_work *w, const char *text, size_t n, mav__piece_fn each,
                              void *ctx, const char *op, mav_diag *diag) {
  run r = {.p = p, .w = w, .each = each, .ctx = ctx, .op = op, .diag = diag};
  uint64_t limit = MATCH_LIMIT + 32 * (uint64_t)n;
  pcre2_set_match_limit(w->context, limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX);
  return split(&r, 0, text, n);
}
