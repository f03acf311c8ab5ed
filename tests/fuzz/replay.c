/* tests/fuzz/replay.c - runs a fuzz target over files and directories of files, without a fuzzer. */
#include <dirent.h>
#include <sys/stat.h>

#include "fuzz.h"

static int run_file(const char *path) {
  FILE *f = fopen(path, "rb");
  if (!f) {
    perror(path);
    return -1;
  }
  size_t used = 0, room = 1 << 12;
  uint8_t *data = malloc(room);
  for (size_t n; data && (n = fread(data + used, 1, room - used, f)) > 0;)
    if ((used += n) == room) data = realloc(data, room *= 2);
  fclose(f);
  if (!data) return -1;
  uint8_t *exact = malloc(used ? used : 1); /* so that a sanitizer sees the end */
  if (!exact) return -1;
  memcpy(exact, data, used);
  free(data);
  LLVMFuzzerTestOneInput(exact, used);
  free(exact);
  return 1;
}

static int run_path(const char *path) {
  struct stat st;
  if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) return run_file(path);
  int count = 0;
  DIR *d = opendir(path);
  char name[4096];
  for (struct dirent *e; d && (e = readdir(d));) {
    if (e->d_name[0] == '.') continue;
    snprintf(name, sizeof name, "%s/%s", path, e->d_name);
    int n = run_file(name);
    if (n < 0) count = -1;
    if (count >= 0) count += n;
  }
  if (d) closedir(d);
  return count;
}

int main(int argc, char **argv) {
  int total = 0;
  for (int i = 1; i < argc; i++) {
    int n = run_path(argv[i]);
    if (n < 0) return 1;
    total += n;
  }
  printf("%d inputs\n", total);
  return total ? 0 : 1; /* an empty corpus is a mistake */
}
