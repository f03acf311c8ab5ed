/* tests/kernels/checkops_bench.c - how long each op takes at decode-like shapes, and how close it comes to the memory.
 *
 * Each line is a captured graph that runs the op on several copies of its arguments, more in total than the caches hold
 * (--footprint) where 64 copies reach that far; the time is the median launch over the copies. Bytes are what the op must
 * move (mav_op_bytes, and the context that attention reads); share compares with mav_runtime_bandwidth.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkops.h"

enum { COPIES_MAX = 64, LAUNCHES_MAX = 200 };

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static double cache_bytes(const plan *p) {
  if (strcmp(p->desc->name, "attention")) return 0;
  return 2.0 * (double)p->kv.length[0] * p->kv.kv_heads * p->kv.head_dim * (double)mav_dtype_bytes(p->kv.dtype);
}

/* Median seconds of one op. */
static mav_err measure(mav_runtime *rt, const plan *p, int64_t footprint, double *seconds, double *bytes, int *copies) {
  static side s[COPIES_MAX];
  double time[LAUNCHES_MAX];
  mav_rows *rows = NULL;
  mav_graph *g = NULL;
  int launches = 0;
  *copies = 1;
  memset(s, 0, sizeof s);
  mav_err err = mav_rows_new(&rows, rt, 1);
  for (int i = 0; i < *copies && !err; i++) {
    err = side_bind(&s[i], rt, p, NULL);
    *bytes = mav_op_bytes(rt, p->op, s[0].args) + cache_bytes(p);
    *copies = *bytes * COPIES_MAX <= (double)footprint ? COPIES_MAX
              : *bytes >= (double)footprint            ? 1
                                                       : (int)((double)footprint / *bytes) + 1;
  }
  if (!err) err = mav_graph_begin(&g, rt, rows);
  for (int i = 0; i < *copies && !err; i++) err = side_call(&s[i]);
  if (!err) *bytes = mav_op_bytes(rt, p->op, s[0].args) + cache_bytes(p); /* now with the results */
  if (!err) err = mav_graph_end(g);
  int64_t start = mav_now_ns();
  for (int i = -1; i < LAUNCHES_MAX && !err && (i < 5 || mav_now_ns() - start < 300000000); i++) {
    int64_t t = mav_now_ns();
    err = mav_graph_launch(g);
    if (!err) err = mav_graph_wait(g);
    if (i >= 0) time[launches++] = (double)(mav_now_ns() - t) * 1e-9 / *copies;
  }
  if (!err) {
    qsort(time, (size_t)launches, sizeof *time, by_value);
    *seconds = time[launches / 2];
  }
  if (g) mav_graph_release(g);
  for (int i = 0; i < COPIES_MAX; i++) side_free(&s[i]);
  if (rows) mav_rows_release(rows);
  return err;
}

static void set(sizes *s, const char *letters, const int64_t *values) {
  for (int i = 0; letters[i]; i++) s->letter[letters[i] - 'A'] = values[i];
}

int bench(mav_runtime *rt, const char *only, int64_t footprint, int64_t vocabulary, bool json) {
  static const char letters[] = "DNFMIVHKCEA";
  static const int64_t shapes[2][11] = {{1024, 1024, 2048, 1024, 1024, 32768, 8, 2, 64, 16, 1},
                                        {5120, 5120, 4096, 5120, 5120, 32768, 40, 8, 128, 4, 1}};
  static const int64_t rows[] = {1, 4, 16};
  double roof = 0;
  int failed = 0;
  if (mav_runtime_bandwidth(rt, (size_t)256 << 20, 3, &roof)) roof = 0;
  if (!json)
    printf("%s %s, %d threads, %.1f GB/s read\n%-16s %-5s %5s %3s %10s %10s %8s %6s\n", mav_runtime_device(rt), mav_runtime_isa(rt),
           mav_runtime_threads(rt), roof, "op", "w", "D", "T", "us", "KB", "GB/s", "share");
  for (int op = 0; op < mav_op_count(); op++) {
    const mav_op_desc *d = mav_op_get(op);
    bool weights = false;
    if (only && strcmp(only, d->name)) continue;
    for (int i = 0; i < d->args; i++) weights = weights || d->arg[i].kind == MAV_ARG_WEIGHT;
    for (int shape = 0; shape < 2; shape++)
      for (int dtype = 0; dtype < (weights ? 2 : 1); dtype++)
        for (int r = 0; r < 3; r++) {
          plan p;
          sizes s = {.weight = dtype ? MAV_DTYPE_F8 : MAV_DTYPE_BF16, .context = shape ? 4096 : 1024};
          double seconds = 0, bytes = 0;
          int copies;
          set(&s, letters, shapes[shape]);
          s.letter['T' - 'A'] = rows[r];
          if (vocabulary > 0) s.letter['V' - 'A'] = vocabulary;
          if (!weights && d->arg[0].shape && strstr(d->arg[0].shape, " N")) s.letter['N' - 'A'] = s.letter['V' - 'A']; /* logits */
          plan_make(&p, op, 1, 0, &s);
          mav_err err = measure(rt, &p, footprint, &seconds, &bytes, &copies);
          plan_free(&p);
          if (err) {
            fprintf(stderr, "checkops: %s: %s\n", d->name, mav_runtime_diag(rt)->text);
            failed++;
            continue;
          }
          const double speed = bytes / seconds * 1e-9;
          const char *w = weights ? mav_dtype_name(s.weight) : "-";
          if (json)
            printf(
                "{\"op\":\"%s\",\"weight\":\"%s\",\"D\":%lld,\"T\":%lld,\"us\":%.3f,\"bytes\":%.0f,\"gb_per_s\":%.3f,\"share\":%.4f,"
                "\"copies\":%d}\n",
                d->name, w, (long long)shapes[shape][0], (long long)rows[r], seconds * 1e6, bytes, speed, roof > 0 ? speed / roof : 0,
                copies);
          else
            printf("%-16s %-5s %5lld %3lld %10.2f %10.1f %8.2f %5.0f%%%s\n", d->name, w, (long long)shapes[shape][0], (long long)rows[r],
                   seconds * 1e6, bytes * 1e-3, speed, roof > 0 ? 100 * speed / roof : 0,
                   bytes * copies < (double)footprint ? "  in cache" : "");
          fflush(stdout);
        }
  }
  return failed ? 1 : 0;
}
