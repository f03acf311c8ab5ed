/* lua/ljson.c - mav.json: strict JSON (RFC 8259) straight to and from Lua values.
 *
 * Not over cJSON, which the core uses: a tree of its would have to outlive Lua calls that raise, its numbers are all doubles
 * (2^53 + 1 would change), it ends strings at \u0000, and it takes text that is not UTF-8.
 * null is mav.json.null; arrays carry a metatable (mav.json.array makes one, so that an empty table is written as []).
 * Integers stay integers where they fit 64 bits. decode: text that is no JSON is the world's and returns nil, err with line and
 * column. encode: keys sorted; values that JSON cannot hold raise. Nesting is limited (512) on both sides. */
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lmav.h"

#define DEPTH 512
#define ARRAY_NAME "mav.json.array"
#define NULL_NAME "mav.json.null"

/*lua
mav.json = {}

---Stands for null.
---@type userdata
mav.json.null = nil

---Marks a table as an array, so that it is written as one when it is empty. Decoded arrays are marked.
---@param t? table
---@return table
function mav.json.array(t) end
*/
static int json_array(lua_State *L) {
  if (lua_isnoneornil(L, 1)) {
    lua_settop(L, 0);
    lua_newtable(L);
  }
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  luaL_setmetatable(L, ARRAY_NAME);
  return 1;
}

static int null_tostring(lua_State *L) {
  lua_pushliteral(L, "null");
  return 1;
}

/* ---- decode -------------------------------------------------------------------------------------------------------------- */

typedef struct decoder {
  lua_State *L;
  const char *start, *at, *end;
  const char *error; /* static text */
} decoder;

static bool fail(decoder *d, const char *text) {
  if (!d->error) d->error = text;
  return false;
}

static void skip_space(decoder *d) {
  while (d->at < d->end && (*d->at == ' ' || *d->at == '\t' || *d->at == '\n' || *d->at == '\r')) d->at++;
}

/* Length of the well-formed UTF-8 sequence at s, 0: none. */
static size_t utf8_length(const char *s, const char *end) {
  const unsigned char *p = (const unsigned char *)s;
  size_t left = (size_t)(end - s);
  if (p[0] < 0x80) return 1;
  if (p[0] < 0xc2 || p[0] > 0xf4) return 0;
  size_t n = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
  if (left < n) return 0;
  unsigned low = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80, high = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;
  if (p[1] < low || p[1] > high) return 0;
  for (size_t i = 2; i < n; i++)
    if ((p[i] & 0xc0) != 0x80) return 0;
  return n;
}

static bool hex4(decoder *d, unsigned *out) {
  if (d->end - d->at < 4) return fail(d, "four hexadecimal digits expected after \\u");
  unsigned v = 0;
  for (int i = 0; i < 4; i++) {
    char c = d->at[i];
    if (c >= '0' && c <= '9')
      v = v * 16 + (unsigned)(c - '0');
    else if ((c | 32) >= 'a' && (c | 32) <= 'f')
      v = v * 16 + (unsigned)((c | 32) - 'a') + 10;
    else
      return fail(d, "four hexadecimal digits expected after \\u");
  }
  d->at += 4;
  *out = v;
  return true;
}

static void add_utf8(luaL_Buffer *b, unsigned c) {
  if (c < 0x80) {
    luaL_addchar(b, (char)c);
  } else if (c < 0x800) {
    luaL_addchar(b, (char)(0xc0 | c >> 6));
    luaL_addchar(b, (char)(0x80 | (c & 63)));
  } else if (c < 0x10000) {
    luaL_addchar(b, (char)(0xe0 | c >> 12));
    luaL_addchar(b, (char)(0x80 | (c >> 6 & 63)));
    luaL_addchar(b, (char)(0x80 | (c & 63)));
  } else {
    luaL_addchar(b, (char)(0xf0 | c >> 18));
    luaL_addchar(b, (char)(0x80 | (c >> 12 & 63)));
    luaL_addchar(b, (char)(0x80 | (c >> 6 & 63)));
    luaL_addchar(b, (char)(0x80 | (c & 63)));
  }
}

static bool escape(decoder *d, luaL_Buffer *b) {
  if (d->at == d->end) return fail(d, "unfinished string");
  char c = *d->at++;
  unsigned code, second;
  switch (c) {
    case '"':
    case '\\':
    case '/':
      luaL_addchar(b, c);
      return true;
    case 'b':
      luaL_addchar(b, '\b');
      return true;
    case 'f':
      luaL_addchar(b, '\f');
      return true;
    case 'n':
      luaL_addchar(b, '\n');
      return true;
    case 'r':
      luaL_addchar(b, '\r');
      return true;
    case 't':
      luaL_addchar(b, '\t');
      return true;
    case 'u':
      break;
    default:
      d->at--;
      return fail(d, "unknown escape");
  }
  if (!hex4(d, &code)) return false;
  if (code >= 0xdc00 && code < 0xe000) return fail(d, "low surrogate without a high one");
  if (code >= 0xd800 && code < 0xdc00) {
    if (d->end - d->at < 2 || d->at[0] != '\\' || d->at[1] != 'u') return fail(d, "high surrogate without a low one");
    d->at += 2;
    if (!hex4(d, &second)) return false;
    if (second < 0xdc00 || second > 0xdfff) return fail(d, "high surrogate without a low one");
    code = 0x10000 + ((code - 0xd800) << 10) + (second - 0xdc00);
  }
  add_utf8(b, code);
  return true;
}

static bool decode_string(decoder *d) {
  luaL_Buffer b;
  luaL_buffinit(d->L, &b);
  bool ok = true;
  d->at++;
  for (;;) {
    const char *run = d->at;
    while (d->at < d->end && (unsigned char)*d->at >= 32 && (unsigned char)*d->at < 128 && *d->at != '"' && *d->at != '\\') d->at++;
    luaL_addlstring(&b, run, (size_t)(d->at - run));
    if (d->at == d->end) {
      ok = fail(d, "unfinished string");
      break;
    }
    if (*d->at == '"') {
      d->at++;
      break;
    }
    if (*d->at == '\\') {
      d->at++;
      if (!(ok = escape(d, &b))) break;
    } else if ((unsigned char)*d->at < 32) {
      ok = fail(d, "control character in a string");
      break;
    } else {
      size_t n = utf8_length(d->at, d->end);
      if (!n) {
        ok = fail(d, "invalid UTF-8");
        break;
      }
      luaL_addlstring(&b, d->at, n);
      d->at += n;
    }
  }
  luaL_pushresult(&b);
  return ok;
}

static bool is_digit(const decoder *d) { return d->at < d->end && *d->at >= '0' && *d->at <= '9'; }

static bool decode_number(decoder *d) {
  const char *start = d->at;
  bool whole = true;
  if (*d->at == '-') d->at++;
  if (!is_digit(d)) return fail(d, "digit expected");
  if (*d->at == '0')
    d->at++;
  else
    while (is_digit(d)) d->at++;
  if (is_digit(d)) return fail(d, "leading zero");
  if (d->at < d->end && *d->at == '.') {
    whole = false;
    d->at++;
    if (!is_digit(d)) return fail(d, "digit expected");
    while (is_digit(d)) d->at++;
  }
  if (d->at < d->end && (*d->at | 32) == 'e') {
    whole = false;
    d->at++;
    if (d->at < d->end && (*d->at == '+' || *d->at == '-')) d->at++;
    if (!is_digit(d)) return fail(d, "digit expected");
    while (is_digit(d)) d->at++;
  }
  size_t n = (size_t)(d->at - start);
  if (whole && n <= 20) { /* lua_stringtonumber would wrap what does not fit */
    uint64_t v = 0;
    bool fits = true, negative = *start == '-';
    for (const char *p = start + negative; p < d->at; p++)
      if (__builtin_mul_overflow(v, 10u, &v) || __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v)) fits = false;
    if (fits && v <= (uint64_t)INT64_MAX + negative) {
      lua_pushinteger(d->L, negative ? (lua_Integer)(0 - v) : (lua_Integer)v);
      return true;
    }
  }
  lua_pushlstring(d->L, start, n);
  const char *text = lua_tostring(d->L, -1);
  if (whole) text = lua_pushfstring(d->L, "%s.0", text);
  if (!lua_stringtonumber(d->L, text)) return fail(d, "number too long");
  lua_replace(d->L, whole ? -3 : -2);
  if (whole) lua_pop(d->L, 1);
  return true;
}

static bool decode_word(decoder *d, const char *word) {
  size_t n = strlen(word);
  if ((size_t)(d->end - d->at) < n || memcmp(d->at, word, n) != 0) return fail(d, "value expected");
  d->at += n;
  return true;
}

static bool decode_value(decoder *d, int depth);

static bool decode_array(decoder *d, int depth) {
  lua_newtable(d->L);
  luaL_setmetatable(d->L, ARRAY_NAME);
  d->at++;
  skip_space(d);
  if (d->at < d->end && *d->at == ']') return d->at++, true;
  for (lua_Integer i = 1;; i++) {
    if (!decode_value(d, depth)) return false;
    lua_rawseti(d->L, -2, i);
    skip_space(d);
    if (d->at < d->end && *d->at == ',') {
      d->at++;
      continue;
    }
    if (d->at < d->end && *d->at == ']') return d->at++, true;
    return fail(d, "',' or ']' expected");
  }
}

static bool decode_object(decoder *d, int depth) {
  lua_newtable(d->L);
  d->at++;
  skip_space(d);
  if (d->at < d->end && *d->at == '}') return d->at++, true;
  for (;;) {
    skip_space(d);
    if (d->at == d->end || *d->at != '"') return fail(d, "string expected as a key");
    if (!decode_string(d)) return false;
    skip_space(d);
    if (d->at == d->end || *d->at != ':') return fail(d, "':' expected");
    d->at++;
    if (!decode_value(d, depth)) return false;
    lua_rawset(d->L, -3);
    skip_space(d);
    if (d->at < d->end && *d->at == ',') {
      d->at++;
      continue;
    }
    if (d->at < d->end && *d->at == '}') return d->at++, true;
    return fail(d, "',' or '}' expected");
  }
}

/* Pushes the value; on failure the stack is left as it is. */
static bool decode_value(decoder *d, int depth) {
  if (depth <= 0) return fail(d, "nested too deep");
  luaL_checkstack(d->L, 8, "JSON");
  skip_space(d);
  if (d->at == d->end) return fail(d, "value expected, got the end");
  switch (*d->at) {
    case '{':
      return decode_object(d, depth - 1);
    case '[':
      return decode_array(d, depth - 1);
    case '"':
      return decode_string(d);
    case 't':
    case 'f':
      lua_pushboolean(d->L, *d->at == 't');
      return decode_word(d, *d->at == 't' ? "true" : "false");
    case 'n':
      if (!decode_word(d, "null")) return false;
      lua_getfield(d->L, LUA_REGISTRYINDEX, NULL_NAME);
      return true;
    default:
      return decode_number(d);
  }
}

/*lua
---@param text string
---@param options? {depth?: integer} deepest nesting, 512 at most
---@return any value
---@return mav.Error? err with line and column
function mav.json.decode(text, options) end
*/
static int json_decode(lua_State *L) {
  static const char *const keys[] = {"depth", NULL};
  size_t bytes;
  const char *text = luaL_checklstring(L, 1, &bytes);
  int arg = lmav_check_options(L, 2, true, keys) ? 2 : 0;
  int depth = (int)lmav_opt_integer(L, arg, "depth", 1, DEPTH, DEPTH);
  decoder d = {.L = L, .start = text, .at = text, .end = text + bytes};
  if (bytes >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) d.at += 3;
  bool ok = decode_value(&d, depth);
  if (ok) {
    skip_space(&d);
    if (d.at == d.end) return 1;
    fail(&d, "end of text expected");
  }
  long line = 1, column = 1;
  for (const char *p = text; p < d.at; p++) {
    if (*p == '\n') {
      line++;
      column = 1;
    } else if (((unsigned char)*p & 0xc0) != 0x80) {
      column++;
    }
  }
  mav_diag diag = lmav_diag(MAV_ERR_FORMAT, "json_decode", "line %ld, column %ld: %s", line, column, d.error);
  return lmav_result(L, diag.code, &diag, 1);
}

/* ---- encode -------------------------------------------------------------------------------------------------------------- */

/* Text grows in a userdata at a fixed index: values are pushed above it (a luaL_Buffer would want the top). */
typedef struct writer {
  lua_State *L;
  char *text; /* memory of the userdata at index `box` */
  size_t used, cap;
  int box, indent;
} writer;

static void put(writer *w, const char *s, size_t n) {
  if (w->cap - w->used < n) {
    size_t cap = w->cap * 2 > w->used + n ? w->cap * 2 : w->used + n;
    char *text = lua_newuserdatauv(w->L, cap, 0);
    memcpy(text, w->text, w->used);
    w->text = text;
    w->cap = cap;
    lua_replace(w->L, w->box);
  }
  memcpy(w->text + w->used, s, n);
  w->used += n;
}

static void put_line(writer *w, int level) {
  if (!w->indent) return;
  put(w, "\n", 1);
  for (int i = 0; i < w->indent * level; i++) put(w, " ", 1);
}

static void encode_string(writer *w, const char *s, size_t n) {
  static const char digits[] = "0123456789abcdef";
  const char *end = s + n;
  put(w, "\"", 1);
  while (s < end) {
    const char *run = s;
    while (s < end && (unsigned char)*s >= 32 && (unsigned char)*s < 127 && *s != '"' && *s != '\\') s++;
    put(w, run, (size_t)(s - run));
    if (s == end) break;
    unsigned char c = (unsigned char)*s;
    if (c >= 128) {
      size_t length = utf8_length(s, end);
      if (!length) luaL_error(w->L, "json: a string is not UTF-8 (byte %d)", (int)(s - (end - n)) + 1);
      put(w, s, length);
      s += length;
      continue;
    }
    s++;
    switch (c) {
      case '"':
        put(w, "\\\"", 2);
        break;
      case '\\':
        put(w, "\\\\", 2);
        break;
      case '\n':
        put(w, "\\n", 2);
        break;
      case '\r':
        put(w, "\\r", 2);
        break;
      case '\t':
        put(w, "\\t", 2);
        break;
      default: {
        char code[6] = {'\\', 'u', '0', '0', digits[c >> 4], digits[c & 15]};
        put(w, code, 6);
      }
    }
  }
  put(w, "\"", 1);
}

/* The shortest text that reads back as the same double. */
static void encode_double(writer *w, double v) {
  if (isnan(v) || isinf(v)) luaL_error(w->L, "json: %s cannot be written", isnan(v) ? "nan" : "inf");
  char text[40];
  int n = 0;
  for (int digits = 15; digits <= 17; digits++) {
    n = snprintf(text, sizeof text - 2, "%.*g", digits, v);
    if (strtod(text, NULL) == v) break;
  }
  char point = localeconv()->decimal_point[0];
  bool fraction = false;
  for (int i = 0; i < n; i++) {
    if (text[i] == point) text[i] = '.';
    if (text[i] == '.' || text[i] == 'e') fraction = true;
  }
  put(w, text, (size_t)n);
  if (!fraction) put(w, ".0", 2);
}

static void encode_value(writer *w, int depth);

static void encode_array(writer *w, int depth, lua_Integer n) {
  int level = DEPTH - depth;
  put(w, "[", 1);
  for (lua_Integer i = 1; i <= n; i++) {
    if (i > 1) put(w, ",", 1);
    put_line(w, level + 1);
    lua_rawgeti(w->L, -1, i);
    encode_value(w, depth - 1);
    lua_pop(w->L, 1);
  }
  if (n) put_line(w, level);
  put(w, "]", 1);
}

static int compare_keys(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static void encode_object(writer *w, int depth, lua_Integer count) {
  lua_State *L = w->L;
  int level = DEPTH - depth;
  const char **keys = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *keys, 0);
  lua_Integer n = 0;
  for (lua_pushnil(L); lua_next(L, -3); lua_pop(L, 1)) keys[n++] = lua_tostring(L, -2); /* alive: keys of the table */
  qsort(keys, (size_t)n, sizeof *keys, compare_keys);
  put(w, "{", 1);
  for (lua_Integer i = 0; i < n; i++) {
    if (i) put(w, ",", 1);
    put_line(w, level + 1);
    lua_pushstring(L, keys[i]);
    size_t bytes;
    const char *key = lua_tolstring(L, -1, &bytes);
    encode_string(w, key, bytes);
    put(w, ": ", w->indent ? 2 : 1);
    lua_rawget(L, -3);
    encode_value(w, depth - 1);
    lua_pop(L, 1);
  }
  if (n) put_line(w, level);
  put(w, "}", 1);
  lua_pop(L, 1);
}

static void encode_table(writer *w, int depth) {
  lua_State *L = w->L;
  bool marked = false;
  if (lua_getmetatable(L, -1)) {
    luaL_getmetatable(L, ARRAY_NAME);
    marked = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
  }
  lua_Integer n = (lua_Integer)lua_rawlen(L, -1), strings = 0, numbers = 0;
  for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
    if (lua_type(L, -2) == LUA_TSTRING) {
      if (strlen(lua_tostring(L, -2)) != lua_rawlen(L, -2)) luaL_error(L, "json: a key contains a zero byte");
      strings++;
    } else if (lua_isinteger(L, -2)) {
      lua_Integer i = lua_tointeger(L, -2);
      if (i < 1 || i > n) luaL_error(L, "json: a list has a gap before element %I", (LUAI_UACINT)i);
      numbers++;
    } else {
      luaL_error(L, "json: a key is a %s; keys are strings", luaL_typename(L, -2));
    }
  }
  if (strings && (numbers || marked)) luaL_error(L, "json: a table has both a list part and named keys");
  if (numbers != n) luaL_error(L, "json: a list has gaps");
  if (numbers || marked)
    encode_array(w, depth, n);
  else
    encode_object(w, depth, strings);
}

static void encode_value(writer *w, int depth) {
  lua_State *L = w->L;
  if (depth <= 0) luaL_error(L, "json: nested deeper than %d", DEPTH);
  luaL_checkstack(L, 8, "JSON");
  char text[32];
  size_t n;
  const char *s;
  switch (lua_type(L, -1)) {
    case LUA_TBOOLEAN:
      put(w, lua_toboolean(L, -1) ? "true" : "false", lua_toboolean(L, -1) ? 4 : 5);
      return;
    case LUA_TNUMBER:
      if (lua_isinteger(L, -1))
        put(w, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)lua_tointeger(L, -1)));
      else
        encode_double(w, lua_tonumber(L, -1));
      return;
    case LUA_TSTRING:
      s = lua_tolstring(L, -1, &n);
      encode_string(w, s, n);
      return;
    case LUA_TTABLE:
      encode_table(w, depth);
      return;
    default:
      lua_getfield(L, LUA_REGISTRYINDEX, NULL_NAME);
      if (!lua_rawequal(L, -1, -2)) luaL_error(L, "json: a %s cannot be written", luaL_typename(L, -2));
      lua_pop(L, 1);
      put(w, "null", 4);
  }
}

/*lua
---Keys are sorted. Raises on values that JSON cannot hold (nan, functions, cycles, mixed tables, text that is not UTF-8).
---@param value any
---@param options? {indent?: integer} spaces a level; absent: one line
---@return string
function mav.json.encode(value, options) end
*/
static int json_encode(lua_State *L) {
  static const char *const keys[] = {"indent", NULL};
  luaL_checkany(L, 1);
  int arg = lmav_check_options(L, 2, true, keys) ? 2 : 0;
  lua_settop(L, 2);
  writer w = {.L = L, .cap = 256, .box = 3};
  w.indent = (int)lmav_opt_integer(L, arg, "indent", 0, 16, 0);
  w.text = lua_newuserdatauv(L, w.cap, 0);
  lua_pushvalue(L, 1);
  encode_value(&w, DEPTH);
  lua_pushlstring(L, w.text, w.used);
  return 1;
}

void lmav_push_decoded(lua_State *L, const char *text) {
  lua_pushcfunction(L, json_decode);
  lua_pushstring(L, text);
  lua_call(L, 1, 2);
  if (lua_isnil(L, -2)) lua_error(L); /* the error object */
  lua_pop(L, 1);
}

void lmav_push_encoded(lua_State *L, int index) {
  index = lua_absindex(L, index);
  lua_pushcfunction(L, json_encode);
  lua_pushvalue(L, index);
  lua_call(L, 1, 1);
}

void lmav_open_json(lua_State *L) {
  static const luaL_Reg functions[] = {{"array", json_array}, {"decode", json_decode}, {"encode", json_encode}, {NULL, NULL}};
  luaL_newmetatable(L, ARRAY_NAME);
  lua_pop(L, 1);
  luaL_newlib(L, functions);
  if (lua_getfield(L, LUA_REGISTRYINDEX, NULL_NAME) == LUA_TNIL) {
    lua_pop(L, 1);
    lua_newuserdatauv(L, 0, 0);
    lua_createtable(L, 0, 2);
    lua_pushliteral(L, NULL_NAME);
    lua_setfield(L, -2, "__name");
    lua_pushcfunction(L, null_tostring);
    lua_setfield(L, -2, "__tostring");
    lua_setmetatable(L, -2);
    lua_pushvalue(L, -1);
    lua_setfield(L, LUA_REGISTRYINDEX, NULL_NAME);
  }
  lua_setfield(L, -2, "null");
  lua_setfield(L, -2, "json");
}
