/* core/pack_journal.c - what survives when a pack's writer is interrupted.
 *
 *   PATH.part     the pack: an unfinished head, nothing up to data_start, chunks
 *   PATH.journal  64 bytes that name the plan, then 64 bytes a chunk: its row of the table, the plan, a hash
 *
 * Invariants: (1) .part has bytes only after the journal's beginning is on disk; (2) a record is written only after the data
 * of its chunk is on disk, and records stand in the order of chunks; (3) whoever writes holds the lock on .part; (4) nothing
 * of an unknown plan is touched, unless the caller asks for that. To resume, records are believed up to the first that is torn
 * or out of order or whose chunk does not have its hash; both files are cut there, so that what follows is written again into
 * holes, and gaps between chunks stay zero. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "err.h"
#include "mem.h"
#include "pack_writer.h"

#define OP MAV__PACK_WRITE
#define RECORD 64
#define JOURNAL_VERSION 1

static const unsigned char magic[8] = {'M', 'A', 'V', 'J', 'R', 'N', 'L', '\n'};

mav_err mav__pack_pwrite(mav_pack_writer *w, int fd, const void *data, size_t bytes, uint64_t at, mav_diag *diag) {
  for (const char *p = data; bytes;) {
    ssize_t n = pwrite(fd, p, bytes < (size_t)1 << 30 ? bytes : (size_t)1 << 30, (off_t)at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      return MAV_FAIL_ERRNO(diag, IO, OP, "%s: cannot write; what is there is kept, and taken up when this is run again",
                            mav__path_short(fd == w->fd ? w->part : w->journal));
    p += n;
    at += (uint64_t)n;
    bytes -= (size_t)n;
  }
  return MAV_OK;
}

/* False: there are not so many, or they cannot be read. */
static bool read_at(int fd, void *data, size_t bytes, uint64_t at) {
  for (char *p = data; bytes;) {
    ssize_t n = pread(fd, p, bytes < (size_t)1 << 30 ? bytes : (size_t)1 << 30, (off_t)at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    p += n;
    at += (uint64_t)n;
    bytes -= (size_t)n;
  }
  return true;
}

static mav_err open_own(int *fd, const char *path, mav_diag *diag) {
  struct stat st;
  int f = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
  if (f < 0) return MAV_FAIL_ERRNO(diag, IO, OP, "%s: cannot create", mav__path_short(path));
  *fd = f;
  if (fstat(f, &st) < 0) return MAV_FAIL_ERRNO(diag, IO, OP, "%s: cannot stat", mav__path_short(path));
  if (!S_ISREG(st.st_mode)) return MAV_FAIL(diag, IO, OP, "%s: exists and is not a regular file", mav__path_short(path));
  return MAV_OK;
}

/* The lock is on the file; a writer that finished meanwhile has given it another name. */
static mav_err lock(mav_pack_writer *w, mav_diag *diag) {
  struct stat held, named;
  if (flock(w->fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK)
    return MAV_FAIL(diag, IO, OP, "%s: another writer is at work on it", mav__path_short(w->part));
  if (fstat(w->fd, &held) < 0 || stat(w->part, &named) < 0 || held.st_ino != named.st_ino || held.st_dev != named.st_dev)
    return MAV_FAIL(diag, IO, OP, "%s: another writer was at work on it; try again", mav__path_short(w->part));
  return MAV_OK;
}

static mav_err cut(mav_pack_writer *w, int fd, uint64_t bytes, mav_diag *diag) {
  if (ftruncate(fd, (off_t)bytes) < 0)
    return MAV_FAIL_ERRNO(diag, IO, OP, "%s: cannot cut", mav__path_short(fd == w->fd ? w->part : w->journal));
  return MAV_OK;
}

static void make_beginning(const mav_pack_writer *w, unsigned char *p) {
  memset(p, 0, RECORD);
  memcpy(p, magic, sizeof magic);
  mav__pack_put(p + 8, JOURNAL_VERSION, 4);
  mav__pack_put(p + 16, w->layout.hash, 8);
  mav__pack_put(p + 56, mav__pack_hash(p, 56), 8);
}

static mav_err begin(mav_pack_writer *w, mav_diag *diag) {
  unsigned char record[RECORD], head[MAV__PACK_HEAD];
  MAV_TRY(cut(w, w->fd, 0, diag));
  MAV_TRY(cut(w, w->journal_fd, 0, diag));
  make_beginning(w, record);
  MAV_TRY(mav__pack_pwrite(w, w->journal_fd, record, RECORD, 0, diag));
  if (fsync(w->journal_fd) < 0) return MAV_FAIL_ERRNO(diag, IO, OP, "%s: cannot sync", mav__path_short(w->journal));
  mav__sync_directory(w->part);
  mav__pack_head_put(head, &(mav__pack_head){.version = MAV__PACK_VERSION,
                                             .json_bytes = w->layout.json_bytes,
                                             .chunks = w->layout.chunks,
                                             .data_start = w->layout.data_start});
  return mav__pack_pwrite(w, w->fd, head, sizeof head, 0, diag);
}

static void make_record(const mav_pack_writer *w, uint64_t i, unsigned char *p) {
  mav__pack_put(p, i, 8);
  memcpy(p + 8, w->table + i * MAV__PACK_ROW, MAV__PACK_ROW);
  mav__pack_put(p + 48, w->layout.hash, 8);
  mav__pack_put(p + 56, mav__pack_hash(p, 56), 8);
}

/* Are the bytes [from, to), less than a page, zero? */
static bool is_gap(mav_pack_writer *w, uint64_t from, uint64_t to) {
  char gap[MAV__PACK_PAGE];
  if (!read_at(w->fd, gap, (size_t)(to - from), from)) return false;
  for (uint64_t i = 0; i < to - from; i++)
    if (gap[i]) return false;
  return true;
}

/* True: record i is whole, and so is its chunk; both are taken up. */
static bool take_up(mav_pack_writer *w, uint64_t i) {
  const mav__pack_layout *l = &w->layout;
  unsigned char p[RECORD];
  mav__pack_chunk c;
  while (i >= l->slot[w->tensor].chunk + l->slot[w->tensor].chunks) w->tensor++;
  const mav__pack_slot *slot = &l->slot[w->tensor];
  uint64_t left = slot->bytes - (i - slot->chunk) * l->chunk_bytes, raw = left < l->chunk_bytes ? left : l->chunk_bytes;
  if (!read_at(w->journal_fd, p, RECORD, RECORD + i * RECORD)) return false;
  if (mav__pack_get(p + 56, 8) != mav__pack_hash(p, 56) || mav__pack_get(p, 8) != i || mav__pack_get(p + 48, 8) != l->hash) return false;
  mav__pack_chunk_get(p + 8, &c);
  if (c.offset != mav__pack_place(w->end, i == slot->chunk) || c.raw != raw || c.stored > raw) return false;
  if (!is_gap(w, w->end, c.offset) || !read_at(w->fd, w->buffer, c.stored, c.offset)) return false;
  if (mav__pack_hash(w->buffer, c.stored) != c.hash) return false;
  memcpy(w->table + i * MAV__PACK_ROW, p + 8, MAV__PACK_ROW);
  w->chunk = w->journaled = i + 1;
  w->end = c.offset + c.stored;
  return true;
}

static mav_err take_up_all(mav_pack_writer *w, const mav_pack_plan *plan, mav_diag *diag) {
  const uint64_t start = w->end;
  struct stat st;
  if (fstat(w->fd, &st) < 0) return MAV_FAIL_ERRNO(diag, IO, OP, "%s: cannot stat", mav__path_short(w->part));
  const uint64_t total = (uint64_t)st.st_size > start ? (uint64_t)st.st_size - start : 0;
  for (uint64_t i = 0; i < w->layout.chunks && take_up(w, i); i++)
    if (plan->progress && !plan->progress(plan->user, w->end - start, total))
      return MAV_FAIL(diag, STATE, OP, "%s: stopped while it was read again", mav__path_short(w->part));
  MAV_TRY(cut(w, w->journal_fd, RECORD + w->journaled * RECORD, diag));
  return cut(w, w->fd, w->end, diag);
}

mav_err mav__pack_resume(mav_pack_writer *w, const mav_pack_plan *plan, mav_diag *diag) {
  unsigned char record[RECORD], own[RECORD];
  struct stat st;
  const char *part = mav__path_short(w->part);
  MAV_TRY(open_own(&w->fd, w->part, diag));
  MAV_TRY(lock(w, diag));
  MAV_TRY(open_own(&w->journal_fd, w->journal, diag));
  if (fstat(w->fd, &st) < 0) return MAV_FAIL_ERRNO(diag, IO, OP, "%s: cannot stat", part);
  if (plan->fresh || st.st_size == 0) return begin(w, diag);
  make_beginning(w, own);
  if (!read_at(w->journal_fd, record, RECORD, 0) || memcmp(record, own, 8) != 0 ||
      mav__pack_get(record + 56, 8) != mav__pack_hash(record, 56))
    return MAV_FAIL(diag, IO, OP, "%s: left by an earlier writer, but its journal is no more; give --fresh to start over, or remove it", part);
  if (memcmp(record, own, RECORD) != 0)
    return MAV_FAIL(diag, IO, OP,
                    "%s: left by a writer of another plan (tensors, meta or chunks differ); give --fresh to start over, or remove it",
                    part);
  return take_up_all(w, plan, diag);
}

mav_err mav__pack_sync(mav_pack_writer *w, mav_diag *diag) {
  unsigned char record[32 * RECORD];
  if (w->journaled == w->written) return MAV_OK;
  if (fdatasync(w->fd) < 0) return MAV_FAIL_ERRNO(diag, IO, OP, "%s: cannot sync", mav__path_short(w->part));
  for (uint64_t i = w->journaled; i < w->written;) {
    uint64_t n = w->written - i < 32 ? w->written - i : 32;
    for (uint64_t k = 0; k < n; k++) make_record(w, i + k, record + k * RECORD);
    MAV_TRY(mav__pack_pwrite(w, w->journal_fd, record, (size_t)n * RECORD, RECORD + i * RECORD, diag));
    i += n;
  }
  if (fdatasync(w->journal_fd) < 0) return MAV_FAIL_ERRNO(diag, IO, OP, "%s: cannot sync", mav__path_short(w->journal));
  w->journaled = w->written;
  w->unsynced = 0;
  return MAV_OK;
}
