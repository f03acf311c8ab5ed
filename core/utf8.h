/* core/utf8.h - UTF-8 as Unicode 15 table 3-7 has it: no overlong forms, no surrogates, nothing past U+10FFFF. */
#ifndef MAV_CORE_UTF8_H
#define MAV_CORE_UTF8_H

#include <stddef.h>

typedef enum mav__utf8_kind {
  MAV__UTF8_VALID,   /* one character */
  MAV__UTF8_INVALID, /* one maximal invalid subpart: what a single U+FFFD replaces */
  MAV__UTF8_PARTIAL, /* a proper prefix of a character, cut by the end */
} mav__utf8_kind;

/* Looks at the start of p[0, n), n >= 1, and tells how many bytes that verdict covers. */
mav__utf8_kind mav__utf8_step(const char *p, size_t n, size_t *bytes);
/* Offset of the first byte that is not valid UTF-8; n when all is. */
size_t mav__utf8_check(const char *p, size_t n);
/* Copies p[0, n) to dst, U+FFFD for every maximal invalid subpart. A partial character at the end is left out and counted
 * in *held (0..3), or replaced as well when held is NULL. Returns the bytes written: at most 3 n. */
size_t mav__utf8_lossy(char *dst, const char *p, size_t n, size_t *held);

#endif
