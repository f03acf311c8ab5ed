/* core/err.c - error names and the diagnostic. Refuses nothing: a diagnostic can always be written. */
#include "err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *mav_err_name(mav_err e) {
  switch (e) {
#define X(name, code, text) \
  case MAV_ERR_##name: return #name;
    MAV_ERR_MAP(X)
#undef X
  }
  return "UNKNOWN";
}

const char *mav_err_text(mav_err e) {
  switch (e) {
#define X(name, code, text) \
  case MAV_ERR_##name: return text;
    MAV_ERR_MAP(X)
#undef X
  }
  return "unknown error";
}

mav_err mav__diag_set(mav_diag *d, mav_err code, const char *op, const char *file, int line, long native, const char *format, ...) {
  if (!d) return code;
  va_list ap;
  va_start(ap, format);
  mav_diag n = {.code = code, .file = file, .line = line, .native = native};
  snprintf(n.op, sizeof n.op, "%s", op);
  int used = vsnprintf(n.text, sizeof n.text, format, ap);
  va_end(ap);
  if (native > 0 && used >= 0 && (size_t)used < sizeof n.text)
    snprintf(n.text + used, sizeof n.text - (size_t)used, ": %s", strerror((int)native));
  for (char *c = n.text; *c; c++)
    if ((unsigned char)*c < 32 || *c == 127) *c = '?';
  *d = n;
  return code;
}
