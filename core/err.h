/* core/err.h - raising errors inside the core: MAV_FAIL fills a diagnostic and yields its code, MAV_TRY passes one on. */
#ifndef MAV_CORE_ERR_H
#define MAV_CORE_ERR_H

#include "mav.h"

/* Fills *d (may be NULL) and returns code. Text is one line; control characters are replaced. */
mav_err mav__diag_set(mav_diag *d, mav_err code, const char *op, const char *file, int line, long native, const char *format, ...)
    MAV_PRINTF(7, 8);

/* The value is the constant and not what the call returns, so that compilers and analyzers know that it is not 0. */
#define MAV_FAIL_WITH(diag, code, op, native, ...) \
  (mav__diag_set((diag), MAV_ERR_##code, (op), __FILE__, __LINE__, (native), __VA_ARGS__), MAV_ERR_##code)
#define MAV_FAIL(diag, code, op, ...) MAV_FAIL_WITH(diag, code, op, 0, __VA_ARGS__)
#define MAV_FAIL_ERRNO(diag, code, op, ...) MAV_FAIL_WITH(diag, code, op, errno, __VA_ARGS__)

#define MAV_TRY(x)                      \
  do {                                  \
    mav_err mav_try_err = (x);          \
    if (mav_try_err) return mav_try_err; \
  } while (0)

/* For functions with one `done:` label that cleans up; needs a local `mav_err err`. */
#define MAV_GOTO(x)     \
  do {                  \
    err = (x);          \
    if (err) goto done; \
  } while (0)

#endif
