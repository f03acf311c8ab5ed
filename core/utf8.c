/* core/utf8.c - validation and lossy copying of UTF-8. Pure functions; any thread. */
#include "utf8.h"

#include <stdint.h>
#include <string.h>

mav__utf8_kind mav__utf8_step(const char *text, size_t n, size_t *bytes) {
  const unsigned char *p = (const unsigned char *)text;
  unsigned char lead = p[0];
  size_t length;
  unsigned char low = 0x80, high = 0xBF; /* of the second byte */
  *bytes = 1;
  if (lead < 0x80) return MAV__UTF8_VALID;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return MAV__UTF8_INVALID;
  }
  for (size_t i = 1; i < length; i++) {
    *bytes = i;
    if (i == n) return MAV__UTF8_PARTIAL;
    if (p[i] < low || p[i] > high) return MAV__UTF8_INVALID;
    low = 0x80;
    high = 0xBF;
  }
  *bytes = length;
  return MAV__UTF8_VALID;
}

size_t mav__utf8_check(const char *p, size_t n) {
  size_t i = 0;
  while (i < n) {
    uint64_t word;
    if (n - i >= sizeof word) {
      memcpy(&word, p + i, sizeof word);
      if (!(word & UINT64_C(0x8080808080808080))) {
        i += sizeof word;
        continue;
      }
    }
    size_t bytes;
    if (mav__utf8_step(p + i, n - i, &bytes) != MAV__UTF8_VALID) return i;
    i += bytes;
  }
  return n;
}

size_t mav__utf8_lossy(char *dst, const char *p, size_t n, size_t *held) {
  size_t written = 0;
  if (held) *held = 0;
  for (size_t i = 0, bytes; i < n; i += bytes) {
    mav__utf8_kind kind = mav__utf8_step(p + i, n - i, &bytes);
    if (kind == MAV__UTF8_VALID) {
      memcpy(dst + written, p + i, bytes);
      written += bytes;
    } else if (kind == MAV__UTF8_PARTIAL && held) {
      *held = bytes;
    } else {
      memcpy(dst + written, "\xEF\xBF\xBD", 3);
      written += 3;
    }
  }
  return written;
}
