/* core/json.h - JSON from untrusted files, by way of cJSON. */
#ifndef MAV_CORE_JSON_H
#define MAV_CORE_JSON_H

#include <cjson/cJSON.h>
#include <stdint.h>

#include "mav.h"

/* Parses text[0, bytes); cJSON_Delete(*out). Checked first, because cJSON does not: UTF-8, nesting, control characters,
 * \u0000 (it would cut the string), and that nothing follows. Messages start with `path`. */
mav_err mav__json_parse(cJSON **out, const char *text, size_t bytes, int depth_max, const char *op, const char *path, mav_diag *diag);
/* Member of an object; NULL: none, or JSON null. */
const cJSON *mav__json_get(const cJSON *object, const char *key);
/* An integer in [min, max] (within 2^53). */
bool mav__json_int(const cJSON *item, int64_t min, int64_t max, int64_t *out);
/* "object", "string", ...; for messages. */
const char *mav__json_kind(const cJSON *item);

#endif
