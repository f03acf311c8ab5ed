/* tests/core/scratch.h - a directory of files that a test writes; removed at the end. Include after cmocka.h. */
#ifndef MAV_TESTS_SCRATCH_H
#define MAV_TESTS_SCRATCH_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char scratch_dir[64];

static inline int scratch_setup(void **state) {
  (void)state;
  strcpy(scratch_dir, "/tmp/mav-test-XXXXXX");
  return mkdtemp(scratch_dir) ? 0 : -1;
}

static inline int scratch_files(void) {
  int count = 0;
  DIR *d = opendir(scratch_dir);
  for (struct dirent *e; d && (e = readdir(d));) count += e->d_name[0] != '.';
  if (d) closedir(d);
  return count;
}

static inline void scratch_clear(void) {
  DIR *d = opendir(scratch_dir);
  char path[512];
  for (struct dirent *e; d && (e = readdir(d));) {
    if (e->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "%s/%.200s", scratch_dir, e->d_name);
    if (remove(path) != 0) abort();
  }
  if (d) closedir(d);
}

static inline int scratch_teardown(void **state) {
  (void)state;
  scratch_clear();
  return rmdir(scratch_dir);
}

/* The path of a name in the directory; overwritten by the fourth call after it. */
static inline const char *scratch_path(const char *name) {
  static char path[4][512];
  static int turn;
  char *p = path[turn++ & 3];
  snprintf(p, sizeof path[0], "%s/%s", scratch_dir, name);
  return p;
}

static inline const char *scratch_write(const char *name, const void *data, size_t bytes) {
  const char *path = scratch_path(name);
  FILE *f = fopen(path, "wb");
  if (!f || (bytes && fwrite(data, 1, bytes, f) != bytes) || fclose(f) != 0) abort();
  return path;
}

#endif
