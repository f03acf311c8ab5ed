/* core/json.c - the strict door before cJSON. cJSON's own nodes come from malloc: its hooks are process-wide, and a program
 * that embeds the library may use cJSON too. They live only while a file is being opened. */
#include "json.h"

#include <string.h>

#include "err.h"
#include "file.h"
#include "utf8.h"

/* One pass over the raw text; it knows strings and brackets and leaves the grammar to cJSON. */
static mav_err scan(const char *text, size_t bytes, int depth_max, const char *op, const char *name, mav_diag *diag) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < bytes; i++) {
    unsigned char c = (unsigned char)text[i];
    if (c < 32 && (quoted || (c != '\t' && c != '\n' && c != '\r')))
      return MAV_FAIL(diag, FORMAT, op, "%s: malformed JSON: control character 0x%02x at byte %zu", name, c, i);
    if (quoted) {
      if (c == '"') quoted = false;
      if (c != '\\' || ++i == bytes) continue;
      if (bytes - i >= 5 && !memcmp(text + i, "u0000", 5))
        return MAV_FAIL(diag, FORMAT, op, "%s: \\u0000 in a string at byte %zu", name, i - 1);
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      if (++depth > depth_max) return MAV_FAIL(diag, FORMAT, op, "%s: JSON nested deeper than %d at byte %zu", name, depth_max, i);
    } else if (c == '}' || c == ']') {
      depth--;
    }
  }
  return MAV_OK;
}

mav_err mav__json_parse(cJSON **out, const char *text, size_t bytes, int depth_max, const char *op, const char *path, mav_diag *diag) {
  const char *name = mav__path_short(path), *end = NULL;
  size_t bad = mav__utf8_check(text, bytes);
  if (bad < bytes) return MAV_FAIL(diag, FORMAT, op, "%s: malformed JSON: invalid UTF-8 at byte %zu", name, bad);
  MAV_TRY(scan(text, bytes, depth_max, op, name, diag));
  cJSON *json = cJSON_ParseWithLengthOpts(text, bytes, &end, false);
  size_t at = end ? (size_t)(end - text) : 0;
  if (!json) return MAV_FAIL(diag, FORMAT, op, "%s: malformed JSON at byte %zu of %zu", name, at < bytes ? at : bytes, bytes);
  while (at < bytes && strchr(" \t\r\n", text[at])) at++;
  if (at < bytes) {
    cJSON_Delete(json);
    return MAV_FAIL(diag, FORMAT, op, "%s: malformed JSON: text after the end at byte %zu", name, at);
  }
  *out = json;
  return MAV_OK;
}

const cJSON *mav__json_get(const cJSON *object, const char *key) {
  const cJSON *item = cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
  return cJSON_IsNull(item) ? NULL : item;
}

bool mav__json_int(const cJSON *item, int64_t min, int64_t max, int64_t *out) {
  if (!cJSON_IsNumber(item)) return false;
  double v = item->valuedouble;
  if (!(v >= -9007199254740992.0 && v <= 9007199254740992.0)) return false;
  int64_t n = (int64_t)v;
  if ((double)n != v || n < min || n > max) return false;
  *out = n;
  return true;
}

const char *mav__json_kind(const cJSON *item) {
  return !item                  ? "nothing"
         : cJSON_IsObject(item) ? "an object"
         : cJSON_IsArray(item)  ? "an array"
         : cJSON_IsString(item) ? "a string"
         : cJSON_IsNumber(item) ? "a number"
         : cJSON_IsBool(item)   ? "a boolean"
                                : "null";
}
