/* tests/core/test_pack_write.c - writing packs: plans that are refused, the order of bytes, writers that are killed, files
 * they leave damaged, full disks. Whatever happens, the finished file is the same and its name never names half of one. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "mav.h"
#include "mem.h"
#include "pack_sample.h"

static unsigned char *reference; /* the sample, written at once */
static size_t reference_bytes;
static uint64_t sample_total;

static int setup(void **state) {
  mav_diag diag = {0};
  if (scratch_setup(state) || sample_write(scratch_path("reference"), &sample_plan, &diag)) return -1;
  reference = sample_load(scratch_path("reference"), &reference_bytes);
  for (int i = 0; i < SAMPLE_COUNT; i++) sample_total += sample_size(i);
  scratch_clear();
  return 0;
}

static int teardown(void **state) {
  free(reference);
  return scratch_teardown(state);
}

static void check_file(const char *path) {
  size_t bytes;
  unsigned char *p = sample_load(path, &bytes);
  assert_int_equal(bytes, reference_bytes);
  assert_memory_equal(p, reference, bytes);
  free(p);
}

static mav_pack_writer *open_writer(const char *path) {
  mav_pack_writer *w;
  mav_diag diag = {0};
  if (mav_pack_writer_open(&w, path, &sample_plan, &diag)) fail_msg("%s", diag.text);
  return w;
}

static void finish(mav_pack_writer *w) {
  mav_diag diag = {0};
  if (mav_pack_writer_finish(w, &diag)) fail_msg("%s", diag.text);
  mav_pack_writer_close(w);
}

#define ONE(...)                                   \
  {                                                \
    .count = 1, .items = (const mav_pack_item[]) { \
      { __VA_ARGS__ }                              \
    }                                              \
  }
#define TWO(first, second)                                         \
  {                                                                \
    .count = 2, .items = (const mav_pack_item[]) { first, second } \
  }
#define ITEM(...) \
  { __VA_ARGS__ }

static void test_bad_plans(void **state) {
  (void)state;
  const struct {
    mav_pack_plan plan;
    const char *reason;
  } bad[] = {
      {{.count = -1}, "-1 tensors"},
      {{.chunk_bytes = 100}, "chunk_bytes = 100"},
      {{.chunk_bytes = (size_t)1 << 31}, "chunk_bytes"},
      {{.rank = 1}, "rank 1 of 1"},
      {{.rank = -1, .ranks = 2}, "rank -1 of 2"},
      {{.ranks = -1}, "rank 0 of -1"},
      {{.meta = "[]"}, "meta is an array"},
      {{.meta = "{"}, "meta: malformed JSON"},
      {{.meta = "{\"a\":\"\xff\"}"}, "meta: malformed JSON: invalid UTF-8"},
      {{.meta = "{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}"}, "nested"},
      {ONE(.dtype = MAV_DTYPE_U8), "empty or not UTF-8"},
      {ONE(.name = ""), "empty or not UTF-8"},
      {ONE(.name = "\xff"), "empty or not UTF-8"},
      {ONE(.name = "w", .dtype = MAV_DTYPE_COUNT), "\"w\": no dtype"},
      {ONE(.name = "w", .dims = 5), "\"w\": 5 dimensions"},
      {ONE(.name = "w", .dims = 1, .shape = {-1}), "\"w\": its shape"},
      {ONE(.name = "w", .dims = 3, .shape = {1 << 30, 1 << 30, 1 << 30}), "\"w\": its shape"},
      {ONE(.name = "w", .layout = ""), "\"w\": a layout"},
      {ONE(.name = "w", .act = MAV_ACT_DYNAMIC), "\"w\": act is for"},
      {ONE(.name = "w", .act = (mav_act)9, .scale = "w"), "\"w\": act is for"},
      {ONE(.name = "w", .scale = "w"), "its scale, \"w\", is not"},
      {ONE(.name = "w", .scale = "s"), "its scale, \"s\", is not"},
      {TWO(ITEM(.name = "w"), ITEM(.name = "w")), "\"w\": is there twice"},
      {TWO(ITEM(.name = "w", .scale = "s"), ITEM(.name = "s", .dtype = MAV_DTYPE_BF16)), "its scale, \"s\", is not"},
      {TWO(ITEM(.name = "w", .scale = "s"), ITEM(.name = "s", .layout = "t")), "its scale, \"s\", is not"},
      {TWO(ITEM(.name = "w", .scale = "s", .act = MAV_ACT_STATIC), ITEM(.name = "s")), "\"w\": in_scale"},
  };
  int64_t live = mav__mem_live();
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    mav_pack_writer *w = (mav_pack_writer *)1;
    mav_diag diag = {0};
    mav_err err = mav_pack_writer_open(&w, scratch_path("bad"), &bad[i].plan, &diag);
    if (err != MAV_ERR_INVALID || diag.code != err || !strstr(diag.text, bad[i].reason))
      fail_msg("%s: %s, wanted %s", mav_err_name(err), diag.text, bad[i].reason);
    assert_null(w);
  }
  assert_int_equal(mav__mem_live(), live);
  assert_int_equal(scratch_files(), 0);
}

static void test_places_that_cannot_be(void **state) {
  (void)state;
  mav_pack_writer *w;
  mav_diag diag;
  assert_int_equal(mav_pack_writer_open(&w, "", &sample_plan, &diag), MAV_ERR_INVALID);
  assert_int_equal(mav_pack_writer_open(&w, scratch_path("no/such"), &sample_plan, &diag), MAV_ERR_IO);
  assert_int_equal(mav_pack_writer_open(&w, scratch_dir, &sample_plan, &diag), MAV_ERR_IO);
  assert_int_equal(mkdir(scratch_path("x.part"), 0700), 0);
  assert_int_equal(mav_pack_writer_open(&w, scratch_path("x"), &sample_plan, &diag), MAV_ERR_IO);
  assert_non_null(strstr(diag.text, "x.part"));
  assert_int_equal(symlink("elsewhere", scratch_path("y.part")), 0);
  assert_int_equal(mav_pack_writer_open(&w, scratch_path("y"), &sample_plan, &diag), MAV_ERR_IO);
  assert_int_equal(scratch_files(), 2);
  scratch_clear();
  mav_pack_writer *first = open_writer(scratch_path("x"));
  assert_int_equal(mav_pack_writer_open(&w, scratch_path("x"), &sample_plan, &diag), MAV_ERR_IO);
  assert_non_null(strstr(diag.text, "another writer is at work"));
  mav_pack_writer_close(first);
  mav_pack *p;
  assert_int_equal(mav_pack_open(&p, scratch_path("x.part"), &diag), MAV_ERR_FORMAT);
  assert_non_null(strstr(diag.text, "unfinished"));
  scratch_clear();
}

static void test_order_of_bytes(void **state) {
  (void)state;
  mav_diag diag;
  int tensor;
  uint64_t at;
  mav_pack_writer *w = open_writer(scratch_path("x"));
  assert_int_equal(mav_pack_writer_put(w, 1, reference, 5, &diag), MAV_ERR_INVALID);
  assert_non_null(strstr(diag.text, "\"f32.raw\"; \"f32.smooth\" is next"));
  assert_int_equal(mav_pack_writer_put(w, -1, reference, 5, &diag), MAV_ERR_RANGE);
  assert_int_equal(mav_pack_writer_put(w, SAMPLE_COUNT, reference, 5, &diag), MAV_ERR_RANGE);
  assert_int_equal(mav_pack_writer_put(w, 7, NULL, 0, &diag), MAV_OK); /* an empty one may come at any time */
  assert_int_equal(mav_pack_writer_put(w, 0, sample_data(0), 13990, &diag), MAV_OK);
  mav_pack_writer_next(w, &tensor, &at);
  assert_true(tensor == 0 && at == 13990);
  assert_int_equal(mav_pack_writer_put(w, 0, reference, 11, &diag), MAV_ERR_INVALID);
  assert_non_null(strstr(diag.text, "11 more bytes, but only 10 are missing"));
  assert_int_equal(mav_pack_writer_finish(w, &diag), MAV_ERR_STATE);
  assert_non_null(strstr(diag.text, "\"f32.smooth\" is not complete"));
  assert_int_equal(mav_pack_writer_put(w, 0, sample_data(0) + 13990, 10, &diag), MAV_OK);
  mav_pack_writer_next(w, &tensor, &at);
  assert_true(tensor == 1 && at == 0);
  uint32_t seed = 3;
  assert_int_equal(sample_put(w, UINT64_MAX, &seed, &diag), MAV_OK);
  mav_pack_writer_next(w, &tensor, &at);
  assert_true(tensor == SAMPLE_COUNT && at == 0);
  assert_int_equal(mav_pack_writer_put(w, 3, reference, 1, &diag), MAV_ERR_INVALID);
  assert_int_equal(mav_pack_writer_finish(w, &diag), MAV_OK);
  assert_int_equal(mav_pack_writer_finish(w, &diag), MAV_ERR_STATE);
  mav_pack_writer_close(w);
  mav_pack_writer_close(NULL);
  check_file(scratch_path("x"));
  assert_int_equal(scratch_files(), 1);
  /* An empty plan is a pack too, and replaces an older file. */
  mav_pack *p;
  assert_int_equal(mav_pack_writer_open(&w, scratch_path("x"), &(mav_pack_plan){0}, &diag), MAV_OK);
  check_file(scratch_path("x")); /* until then it stays */
  finish(w);
  assert_int_equal(mav_pack_open(&p, scratch_path("x"), &diag), MAV_OK);
  assert_int_equal(mav_pack_count(p), 0);
  assert_string_equal(mav_pack_get_info(p)->meta, "{}");
  assert_int_equal(mav_pack_get_info(p)->ranks, 1);
  mav_pack_release(p);
  scratch_clear();
}

/* ---- interruptions ---- */

static size_t size_of(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 ? (size_t)st.st_size : 0;
}

static void flip_at(const char *path, size_t at) {
  unsigned char byte;
  int fd = open(path, O_RDWR);
  assert_true(fd >= 0 && pread(fd, &byte, 1, (off_t)at) == 1);
  byte ^= 0x10;
  assert_true(pwrite(fd, &byte, 1, (off_t)at) == 1);
  close(fd);
}

static void add_junk(const char *path, size_t bytes) {
  FILE *f = fopen(path, "ab");
  for (size_t i = 0; i < bytes; i++) fputc((int)(i * 7 + 1) & 255, f);
  fclose(f);
}

/* What a crash may leave of the two files; 0: as they are. */
static void damage(int kind, const char *part, const char *journal, uint32_t *seed) {
  size_t part_bytes = size_of(part), journal_bytes = size_of(journal), r = sample_random(seed);
  switch (kind) {
    case 1: /* the end of .part is lost */
      assert_int_equal(truncate(part, (off_t)(part_bytes - r % (part_bytes / 2))), 0);
      break;
    case 2: /* or damaged */
      if (part_bytes > 20000) flip_at(part, part_bytes - 1 - r % 8000);
      break;
    case 3: /* a torn record */
      if (journal_bytes > 64) assert_int_equal(truncate(journal, (off_t)(journal_bytes - 1 - r % (journal_bytes - 64 < 63 ? 1 : 63))), 0);
      break;
    case 4: /* a damaged one */
      if (journal_bytes > 64) flip_at(journal, 64 + r % (journal_bytes - 64));
      break;
    case 5: /* more than was meant */
      add_junk(part, 1 + r % 9000);
      add_junk(journal, 1 + r % 200);
      break;
    case 6: /* a gap that is not zero */
      if (part_bytes > 20000) flip_at(part, part_bytes - part_bytes % 4096 - 1);
      break;
    default:
      break;
  }
}

/* Another process writes `bytes` more and is killed. True: it came to the end. */
static bool write_and_die(const char *path, uint64_t bytes, uint32_t seed) {
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    mav_pack_writer *w;
    if (mav_pack_writer_open(&w, path, &sample_plan, NULL) || sample_put(w, bytes, &seed, NULL)) _exit(3);
    int tensor;
    uint64_t at;
    mav_pack_writer_next(w, &tensor, &at);
    if (tensor == SAMPLE_COUNT) _exit(0);
    raise(SIGKILL);
    _exit(4);
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  if (WIFSIGNALED(status)) {
    assert_int_equal(WTERMSIG(status), SIGKILL);
    return false;
  }
  assert_int_equal(WEXITSTATUS(status), 0);
  return true;
}

/* 20 times: killed at random points, several times in a row, the files damaged in between. */
static void test_killed_writers(void **state) {
  (void)state;
  char path[512], part[520], journal[520];
  snprintf(path, sizeof path, "%s/x", scratch_dir);
  snprintf(part, sizeof part, "%s.part", path);
  snprintf(journal, sizeof journal, "%s.journal", path);
  uint32_t seed = 4242;
  int resumed = 0, kills = 0;
  for (int round = 0; round < 20; round++) {
    const int kind = round % 7;
    for (int n = 0; n < 1 + round % 3 && !write_and_die(path, sample_random(&seed) % sample_total, sample_random(&seed)); n++, kills++) {
      assert_int_equal(size_of(path), 0);
      damage(kind, part, journal, &seed);
    }
    mav_pack_writer *w = open_writer(path);
    int tensor;
    uint64_t at;
    mav_pack_writer_next(w, &tensor, &at);
    assert_int_equal(at % SAMPLE_CHUNK, 0);
    resumed += tensor > 0;
    mav_diag diag = {0};
    if (sample_put(w, UINT64_MAX, &seed, &diag)) fail_msg("%s", diag.text);
    finish(w);
    check_file(path);
    assert_int_equal(scratch_files(), 1);
    scratch_clear();
  }
  assert_true(kills >= 20 && resumed >= 10);
}

/* A writer that is closed loses only the chunk that was not full; one that is damaged goes back to before the damage. */
static void test_resume_is_exact(void **state) {
  (void)state;
  uint32_t seed = 8;
  int tensor;
  uint64_t at;
  for (uint64_t bytes = 0; bytes < sample_total; bytes += 7777) {
    mav_pack_writer *w = open_writer(scratch_path("x"));
    assert_int_equal(sample_put(w, bytes, &seed, NULL), MAV_OK);
    mav_pack_writer_next(w, &tensor, &at);
    mav_pack_writer_close(w);
    w = open_writer(scratch_path("x"));
    int after;
    uint64_t after_at;
    mav_pack_writer_next(w, &after, &after_at);
    assert_true(after == tensor && after_at == at / SAMPLE_CHUNK * SAMPLE_CHUNK);
    assert_int_equal(sample_put(w, UINT64_MAX, &seed, NULL), MAV_OK);
    mav_pack_writer_close(w);
    w = open_writer(scratch_path("x")); /* nothing is missing but the end */
    mav_pack_writer_next(w, &after, &after_at);
    assert_true(after == SAMPLE_COUNT);
    finish(w);
    check_file(scratch_path("x"));
    scratch_clear();
  }
}

typedef struct seen {
  uint64_t done, total;
  int calls, stop_at;
} seen;

static bool watch(void *user, uint64_t done, uint64_t total) {
  seen *s = user;
  s->calls++;
  if (done <= s->done || done > total) s->stop_at = -1;
  s->done = done;
  s->total = total;
  return s->calls != s->stop_at;
}

static void test_other_plans(void **state) {
  (void)state;
  mav_pack_writer *w;
  mav_diag diag;
  uint32_t seed = 8;
  const char *const stays = "123";
  mav_pack_item items[SAMPLE_COUNT];
  memcpy(items, sample_items, sizeof items);
  w = open_writer(scratch_path("x"));
  assert_int_equal(sample_put(w, 60000, &seed, NULL), MAV_OK);
  mav_pack_writer_close(w);
  size_t part = size_of(scratch_path("x.part"));
  mav_pack_plan plan[5];
  for (int i = 0; i < 5; i++) plan[i] = sample_plan;
  plan[0].chunk_bytes = 8192;
  plan[1].meta = "{}";
  plan[2].count--;
  plan[3].rank = 2;
  items[4].compress = false;
  plan[4].items = items;
  for (int i = 0; i < 5; i++) {
    assert_int_equal(mav_pack_writer_open(&w, scratch_path("x"), &plan[i], &diag), MAV_ERR_IO);
    assert_non_null(strstr(diag.text, "x.part: left by a writer of another plan"));
  }
  /* The same plan: progress is told, and may stop it. */
  seen s = {.stop_at = 3};
  plan[0] = sample_plan;
  plan[0].sync_bytes = 1; /* not a part of the plan */
  plan[0].progress = watch;
  plan[0].user = &s;
  assert_int_equal(mav_pack_writer_open(&w, scratch_path("x"), &plan[0], &diag), MAV_ERR_STATE);
  assert_int_equal(s.calls, 3);
  assert_int_equal(size_of(scratch_path("x.part")), part);
  s = (seen){.stop_at = 1000};
  assert_int_equal(mav_pack_writer_open(&w, scratch_path("x"), &plan[0], &diag), MAV_OK);
  assert_true(s.calls > 10 && s.stop_at == 1000 && s.done == s.total);
  mav_pack_writer_close(w);
  /* fresh drops it. */
  plan[0] = sample_plan;
  plan[0].fresh = true;
  assert_int_equal(mav_pack_writer_open(&w, scratch_path("x"), &plan[0], &diag), MAV_OK);
  int tensor;
  uint64_t at;
  mav_pack_writer_next(w, &tensor, &at);
  assert_true(tensor == 0 && at == 0);
  assert_int_equal(sample_put(w, 60000, &seed, NULL), MAV_OK);
  mav_pack_writer_close(w);
  /* Without its journal, or with one that is none, nothing is touched. */
  assert_int_equal(truncate(scratch_path("x.journal"), 63), 0);
  assert_int_equal(mav_pack_writer_open(&w, scratch_path("x"), &sample_plan, &diag), MAV_ERR_IO);
  assert_non_null(strstr(diag.text, "its journal is no more"));
  assert_int_equal(remove(scratch_path("x.journal")), 0);
  scratch_write("x.part", stays, 3);
  assert_int_equal(mav_pack_writer_open(&w, scratch_path("x"), &sample_plan, &diag), MAV_ERR_IO);
  assert_int_equal(size_of(scratch_path("x.part")), 3);
  /* A journal alone holds nothing. */
  scratch_clear();
  scratch_write("x.journal", stays, 3);
  w = open_writer(scratch_path("x"));
  assert_int_equal(sample_put(w, UINT64_MAX, &seed, NULL), MAV_OK);
  finish(w);
  check_file(scratch_path("x"));
  scratch_clear();
}

/* The disk is full at many points: a clear error, an older file of the name stays, and more room lets it go on. */
static void test_full_disk(void **state) {
  (void)state;
  struct rlimit kept, small;
  mav_diag diag;
  uint32_t seed = 8;
  int failures = 0;
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &kept), 0);
  small = kept;
  int64_t live = mav__mem_live();
  signal(SIGXFSZ, SIG_IGN);
  for (size_t room = 0; room < reference_bytes; room += room < 300 ? 50 : 9999) {
    mav_pack_writer *w = NULL;
    scratch_write("x", "older", 5);
    small.rlim_cur = room;
    memset(&diag, 0, sizeof diag);
    setrlimit(RLIMIT_FSIZE, &small);
    mav_err err = mav_pack_writer_open(&w, scratch_path("x"), &sample_plan, &diag);
    if (!err) err = sample_put(w, UINT64_MAX, &seed, &diag);
    if (!err) err = mav_pack_writer_finish(w, &diag);
    mav_err again = w ? mav_pack_writer_put(w, 0, "x", 1, NULL) : err;
    mav_pack_writer_close(w);
    setrlimit(RLIMIT_FSIZE, &kept);
    if (err != MAV_ERR_IO || diag.native != EFBIG || !(strstr(diag.text, "x.part") || strstr(diag.text, "x.journal")))
      fail_msg("%s: %s", mav_err_name(err), diag.text);
    assert_int_equal(again, err);
    assert_int_equal(size_of(scratch_path("x")), 5);
    failures++;
    if (room % 3 == 0) { /* else the next round goes on with it */
      w = open_writer(scratch_path("x"));
      assert_int_equal(sample_put(w, UINT64_MAX, &seed, NULL), MAV_OK);
      finish(w);
      check_file(scratch_path("x"));
      assert_int_equal(scratch_files(), 1);
    }
  }
  signal(SIGXFSZ, SIG_DFL);
  assert_true(failures > 12);
  assert_int_equal(mav__mem_live(), live);
  scratch_clear();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_bad_plans),      cmocka_unit_test(test_places_that_cannot_be), cmocka_unit_test(test_order_of_bytes),
      cmocka_unit_test(test_killed_writers), cmocka_unit_test(test_resume_is_exact),       cmocka_unit_test(test_other_plans),
      cmocka_unit_test(test_full_disk),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
