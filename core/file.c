/* core/file.c - mapping, reading and atomic replacement of files. Refuses what is not a regular file (a FIFO would block, a
 * directory cannot be mapped) and empty files. Holds no descriptor after map and read. */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "err.h"
#include "mem.h"

const char *mav__path_short(const char *path) {
  size_t n = strlen(path);
  return n > 200 ? path + n - 200 : path;
}

static mav_err open_regular(int *fd, size_t *bytes, const char *path, const char *op, mav_diag *diag) {
  struct stat st;
  const char *name = mav__path_short(path);
  int f = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (f < 0)
    return errno == ENOENT ? MAV_FAIL_ERRNO(diag, NOTFOUND, op, "%s: cannot open", name)
                           : MAV_FAIL_ERRNO(diag, IO, op, "%s: cannot open", name);
  mav_err err = MAV_OK;
  if (fstat(f, &st) < 0) err = MAV_FAIL_ERRNO(diag, IO, op, "%s: cannot stat", name);
  else if (S_ISDIR(st.st_mode)) err = mav__diag_set(diag, MAV_ERR_IO, op, __FILE__, __LINE__, EISDIR, "%s: cannot read", name);
  else if (!S_ISREG(st.st_mode)) err = MAV_FAIL(diag, IO, op, "%s: not a regular file", name);
  else if (st.st_size == 0) err = MAV_FAIL(diag, FORMAT, op, "%s: the file is empty", name);
  if (err) {
    close(f);
    return err;
  }
  *fd = f;
  *bytes = (size_t)st.st_size;
  return MAV_OK;
}

mav_err mav__file_map(mav__file *out, const char *path, const char *op, mav_diag *diag) {
  int fd;
  size_t bytes;
  MAV_TRY(open_regular(&fd, &bytes, path, op, diag));
  void *p = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
  mav_err err = p == MAP_FAILED ? MAV_FAIL_ERRNO(diag, IO, op, "%s: cannot map %zu bytes", mav__path_short(path), bytes) : MAV_OK;
  close(fd);
  if (!err) *out = (mav__file){.data = p, .bytes = bytes};
  return err;
}

void mav__file_unmap(mav__file *f) {
  if (f->data) munmap((void *)(uintptr_t)f->data, f->bytes);
  *f = (mav__file){0};
}

mav_err mav__file_read(char **text, size_t *bytes, const char *path, size_t bytes_max, const char *op, mav_diag *diag) {
  int fd;
  size_t size, used = 0;
  const char *name = mav__path_short(path);
  MAV_TRY(open_regular(&fd, &size, path, op, diag));
  mav_err err = MAV_OK;
  char *p = NULL;
  if (size > bytes_max) MAV_GOTO(MAV_FAIL(diag, RANGE, op, "%s: %zu bytes; at most %zu are accepted", name, size, bytes_max));
  if (!(p = mav__alloc(size + 1))) MAV_GOTO(MAV_FAIL(diag, NOMEM, op, "%s: out of memory for %zu bytes", name, size));
  while (used < size) {
    ssize_t n = read(fd, p + used, size - used);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) MAV_GOTO(MAV_FAIL_ERRNO(diag, IO, op, "%s: cannot read", name));
    if (n == 0) MAV_GOTO(MAV_FAIL(diag, IO, op, "%s: the file became shorter while it was read", name));
    used += (size_t)n;
  }
done:
  close(fd);
  if (err) {
    mav__free(p);
    return err;
  }
  *text = p;
  *bytes = size;
  return MAV_OK;
}

bool mav__file_is_directory(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool mav__file_exists(const char *path) {
  struct stat st;
  return stat(path, &st) == 0;
}

char *mav__path_join(const char *dir, const char *name) {
  size_t n = strlen(dir), bytes = n + strlen(name) + 2;
  char *p = mav__alloc(bytes);
  if (p) snprintf(p, bytes, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
  return p;
}

mav_err mav__writer_begin(mav__writer *w, const char *path, const char *op, mav_diag *diag) {
  size_t bytes = strlen(path) + 40;
  *w = (mav__writer){.fd = -1, .path = mav__strdup(path), .temp = mav__alloc(bytes), .op = op, .diag = diag};
  mav_err err = MAV_OK;
  if (!w->path || !w->temp) MAV_GOTO(MAV_FAIL(diag, NOMEM, op, "%s: out of memory", mav__path_short(path)));
  for (int i = 0; w->fd < 0; i++) {
    snprintf(w->temp, bytes, "%s.tmp-%ld-%d", path, (long)getpid(), i);
    w->fd = open(w->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (w->fd < 0 && (errno != EEXIST || i == 100))
      MAV_GOTO(MAV_FAIL_ERRNO(diag, IO, op, "%s: cannot create", mav__path_short(w->temp)));
  }
done:
  if (err) {
    if (w->temp) w->temp[0] = 0; /* not ours to remove */
    mav__writer_abort(w);
  }
  return err;
}

mav_err mav__writer_put(mav__writer *w, const void *data, size_t bytes) {
  for (const char *p = data; bytes;) {
    ssize_t n = write(w->fd, p, bytes < (size_t)1 << 30 ? bytes : (size_t)1 << 30);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return MAV_FAIL_ERRNO(w->diag, IO, w->op, "%s: cannot write", mav__path_short(w->temp));
    p += n;
    bytes -= (size_t)n;
  }
  return MAV_OK;
}

void mav__sync_directory(const char *path) {
  char dir[4096] = "."; /* no memory to run out of: what was written is complete by now */
  const char *slash = strrchr(path, '/');
  const size_t length = slash == path ? 1 : slash ? (size_t)(slash - path) : 1;
  if (length >= sizeof dir) return;
  if (slash) memcpy(dir, path, length);
  dir[length] = 0;
  int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  (void)fsync(fd);
  close(fd);
}

mav_err mav__writer_commit(mav__writer *w) {
  mav_err err = MAV_OK;
  const char *name = mav__path_short(w->path);
  if (fsync(w->fd) < 0) MAV_GOTO(MAV_FAIL_ERRNO(w->diag, IO, w->op, "%s: cannot sync", name));
  int fd = w->fd;
  w->fd = -1;
  if (close(fd) < 0) MAV_GOTO(MAV_FAIL_ERRNO(w->diag, IO, w->op, "%s: cannot close", name));
  if (rename(w->temp, w->path) < 0) MAV_GOTO(MAV_FAIL_ERRNO(w->diag, IO, w->op, "%s: cannot rename the finished file", name));
  w->temp[0] = 0;
  mav__sync_directory(w->path);
done:
  mav__writer_abort(w);
  return err;
}

void mav__writer_abort(mav__writer *w) {
  if (w->fd >= 0) close(w->fd);
  if (w->temp && w->temp[0]) unlink(w->temp);
  mav__free(w->temp);
  mav__free(w->path);
  *w = (mav__writer){.fd = -1};
}
