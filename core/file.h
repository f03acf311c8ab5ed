/* core/file.h - files: mapped, read whole, and replaced as a whole. */
#ifndef MAV_CORE_FILE_H
#define MAV_CORE_FILE_H

#include "mav.h"

typedef struct mav__file {
  const char *data; /* read only */
  size_t bytes;     /* never 0 */
} mav__file;

/* Regular, not empty files only. The mapping stays valid when the file is renamed or removed, but not when it is truncated. */
mav_err mav__file_map(mav__file *out, const char *path, const char *op, mav_diag *diag);
void mav__file_unmap(mav__file *f);
/* The whole file, terminated; the caller frees *text with mav__free. Larger than bytes_max: MAV_ERR_RANGE. */
mav_err mav__file_read(char **text, size_t *bytes, const char *path, size_t bytes_max, const char *op, mav_diag *diag);
bool mav__file_is_directory(const char *path);
bool mav__file_exists(const char *path);
/* "dir/name", allocated; NULL: out of memory. */
char *mav__path_join(const char *dir, const char *name);
/* The end of a path that is too long for a one-line message. */
const char *mav__path_short(const char *path);

/* Syncs the directory that the file `path` is in: a rename survives a power loss only then. File systems that cannot do that, and a
 * lack of memory for the name, are left alone. */
void mav__sync_directory(const char *path);

/* Writes beside `path` under a temporary name; commit syncs and renames, abort removes. One of the two ends it. */
typedef struct mav__writer {
  int fd;
  char *path, *temp;
  const char *op;
  mav_diag *diag;
} mav__writer;
mav_err mav__writer_begin(mav__writer *w, const char *path, const char *op, mav_diag *diag);
mav_err mav__writer_put(mav__writer *w, const void *data, size_t bytes);
mav_err mav__writer_commit(mav__writer *w);
void mav__writer_abort(mav__writer *w);

#endif
