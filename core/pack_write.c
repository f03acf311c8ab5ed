/* core/pack_write.c - writing a pack: bytes in the order of the plan become chunks, chunks go to PATH.part.
 *
 *   open -> put, put, ... -> finish -> close      at any time: close (or a crash), then open again
 *
 * Chunks are independent of each other and of how put cuts the bytes, so an interruption does not show in the file. The name
 * PATH appears by a rename when all is on disk; until then an older file of that name stays as it is. What fails for reasons
 * of the world (a full disk) makes the writer fail for good: the next one starts from what the journal has.
 *
 * A thread hashes, compresses, writes and syncs one chunk while put collects the next: half of the time would go by waiting for the
 * other half. So put may tell of a chunk that an earlier put completed; finish and close wait for the thread. Without a thread (none
 * can be started) put does its work. The thread allocates nothing and takes no signals. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "err.h"
#include "mem.h"
#include "pack_writer.h"

#define OP MAV__PACK_WRITE
#define SYNC_BYTES ((uint64_t)256 << 20)

static char *with_suffix(const char *path, const char *suffix) {
  size_t bytes = strlen(path) + strlen(suffix) + 1;
  char *p = mav__alloc(bytes);
  if (p) snprintf(p, bytes, "%s%s", path, suffix);
  return p;
}

/* Past the tensors that are whole; empty ones always are. */
static void advance(mav_pack_writer *w) {
  const mav__pack_layout *l = &w->layout;
  while (w->tensor < l->count && w->chunk == l->slot[w->tensor].chunk + l->slot[w->tensor].chunks) w->tensor++;
}

mav_err mav_pack_writer_open(mav_pack_writer **out, const char *path, const mav_pack_plan *plan, mav_diag *diag) {
  const char *where = mav__path_short(path);
  mav_err err = MAV_OK;
  struct stat st;
  bool compress = false;
  *out = NULL;
  if (!*path) return MAV_FAIL(diag, INVALID, OP, "the file has no name");
  if (lstat(path, &st) == 0 && !S_ISREG(st.st_mode)) /* the rename would put a file in its place */
    return MAV_FAIL(diag, IO, OP, "%s: exists and is not a regular file", where);
  mav_pack_writer *w = mav__alloc(sizeof *w);
  if (!w) return MAV_FAIL(diag, NOMEM, OP, "%s: out of memory", where);
  w->fd = w->journal_fd = -1;
  pthread_mutex_init(&w->lock, NULL);
  pthread_cond_init(&w->changed, NULL);
  MAV_GOTO(mav__pack_layout_init(&w->layout, plan, path, diag));
  const mav__pack_layout *l = &w->layout;
  uint64_t chunk_bytes = 1; /* of the largest chunk */
  for (int i = 0; i < l->count; i++) {
    if (l->slot[i].bytes > chunk_bytes) chunk_bytes = l->slot[i].bytes;
    compress |= l->slot[i].compress;
  }
  if (chunk_bytes > l->chunk_bytes) chunk_bytes = l->chunk_bytes;
  w->path = mav__strdup(path);
  w->part = with_suffix(path, ".part");
  w->journal = with_suffix(path, ".journal");
  w->table = mav__alloc((size_t)l->chunks * MAV__PACK_ROW + 1);
  w->buffer = mav__alloc((size_t)chunk_bytes);
  w->spare = mav__alloc((size_t)chunk_bytes);
  if (compress) w->packed = mav__alloc((size_t)chunk_bytes);
  if (compress) w->planes = mav__alloc((size_t)chunk_bytes);
  if (!w->path || !w->part || !w->journal || !w->table || !w->buffer || !w->spare || (compress && (!w->packed || !w->planes)))
    MAV_GOTO(MAV_FAIL(diag, NOMEM, OP, "%s: out of memory", where));
  w->end = l->data_start;
  w->sync_bytes = plan->sync_bytes ? plan->sync_bytes : SYNC_BYTES;
  MAV_GOTO(mav__pack_resume(w, plan, diag));
  w->written = w->chunk;
  advance(w);
  *out = w;
  w = NULL;
done:
  if (w) w->failed = err;
  mav_pack_writer_close(w);
  return err;
}

void mav_pack_writer_next(const mav_pack_writer *w, int *tensor, uint64_t *begin) {
  *tensor = w->tensor;
  *begin = w->tensor < w->layout.count ? (w->chunk - w->layout.slot[w->tensor].chunk) * w->layout.chunk_bytes + w->buffered : 0;
}

/* The disk begins now, and the next sync finds little to wait for. A hint: where it is refused, the sync does it all. */
static void write_behind(int fd, uint64_t at, uint64_t bytes) {
#ifdef __linux__
  (void)sync_file_range(fd, (off_t)at, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
#else
  (void)fd, (void)at, (void)bytes;
#endif
}

static mav_err write_chunk(mav_pack_writer *w, const mav__pack_slot *slot, const void *data, uint64_t raw, mav_diag *diag) {
  mav__pack_chunk c = {.offset = mav__pack_place(w->end, w->written == slot->chunk), .stored = raw, .raw = raw};
  if (slot->compress && mav__pack_encode(&c, slot->dtype, data, w->packed, w->planes)) data = w->packed;
  c.hash = mav__pack_hash(data, c.stored);
  MAV_TRY(mav__pack_pwrite(w, w->fd, data, c.stored, c.offset, diag));
  write_behind(w->fd, c.offset, c.stored);
  mav__pack_chunk_put(w->table + w->written * MAV__PACK_ROW, &c);
  w->written++;
  w->end = c.offset + c.stored;
  if ((w->unsynced += c.stored) >= w->sync_bytes) return mav__pack_sync(w, diag);
  return MAV_OK;
}

/* ---- the thread ------------------------------------------------------------------------------------------------------------ */

static void *work(void *arg) {
  mav_pack_writer *w = arg;
  pthread_mutex_lock(&w->lock);
  for (;;) {
    while (!w->is_busy && !w->is_ending) pthread_cond_wait(&w->changed, &w->lock);
    if (!w->is_busy) break;
    pthread_mutex_unlock(&w->lock);
    mav_diag diag = {0};
    mav_err err = write_chunk(w, w->job, w->spare, w->job_bytes, &diag);
    pthread_mutex_lock(&w->lock);
    if (err) {
      w->behind = err;
      w->diag = diag;
    }
    w->is_busy = false;
    pthread_cond_signal(&w->changed);
  }
  pthread_mutex_unlock(&w->lock);
  return NULL;
}

static void start(mav_pack_writer *w) {
  sigset_t all, kept;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &kept);
  w->has_thread = !pthread_create(&w->thread, NULL, work, w);
  pthread_sigmask(SIG_SETMASK, &kept, NULL);
}

/* Waits until all chunks that were taken are in the file, or one of them has failed. */
static mav_err drain(mav_pack_writer *w, mav_diag *diag) {
  if (!w->has_thread) return w->behind;
  pthread_mutex_lock(&w->lock);
  while (w->is_busy) pthread_cond_wait(&w->changed, &w->lock);
  pthread_mutex_unlock(&w->lock);
  if (w->behind && diag) *diag = w->diag;
  return w->behind;
}

static void stop(mav_pack_writer *w) {
  if (!w->has_thread) return;
  pthread_mutex_lock(&w->lock);
  w->is_ending = true;
  pthread_cond_signal(&w->changed);
  pthread_mutex_unlock(&w->lock);
  pthread_join(w->thread, NULL);
  w->has_thread = false;
}

/* The buffer holds a whole chunk. */
static mav_err give_chunk(mav_pack_writer *w, const mav__pack_slot *slot, uint64_t raw, mav_diag *diag) {
  if (!w->has_thread) start(w);
  MAV_TRY(drain(w, diag));
  if (w->has_thread) {
    char *full = w->buffer;
    w->buffer = w->spare;
    pthread_mutex_lock(&w->lock);
    w->spare = full;
    w->job = slot;
    w->job_bytes = raw;
    w->is_busy = true;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
  } else {
    MAV_TRY(write_chunk(w, slot, w->buffer, raw, diag));
  }
  w->chunk++;
  w->buffered = 0;
  advance(w);
  return MAV_OK;
}

static mav_err usable(mav_pack_writer *w, mav_diag *diag) {
  if (!w->failed) return MAV_OK;
  return mav__diag_set(diag, w->failed, OP, __FILE__, __LINE__, 0, "%s: the writer failed before; open it again to resume",
                       mav__path_short(w->path));
}

mav_err mav_pack_writer_put(mav_pack_writer *w, int tensor, const void *data, size_t bytes, mav_diag *diag) {
  const mav__pack_layout *l = &w->layout;
  MAV_TRY(usable(w, diag));
  if (tensor < 0 || tensor >= l->count) return MAV_FAIL(diag, RANGE, OP, "%s: tensor %d of %d", mav__path_short(w->path), tensor, l->count);
  if (bytes == 0) return MAV_OK;
  const mav__pack_slot *slot = &l->slot[tensor];
  if (tensor != w->tensor)
    return MAV_FAIL(diag, INVALID, OP, "%s: bytes of tensor \"%.100s\"; %s%.100s%s", mav__path_short(w->path), slot->name,
                    w->tensor < l->count ? "\"" : "all are there", w->tensor < l->count ? l->slot[w->tensor].name : "",
                    w->tensor < l->count ? "\" is next" : "");
  int next;
  uint64_t at;
  mav_pack_writer_next(w, &next, &at);
  if (bytes > slot->bytes - at)
    return MAV_FAIL(diag, INVALID, OP, "%s: tensor \"%.100s\": %zu more bytes, but only %llu are missing", mav__path_short(w->path),
                    slot->name, bytes, (unsigned long long)(slot->bytes - at));
  for (const char *p = data; bytes;) {
    uint64_t begin = (w->chunk - slot->chunk) * l->chunk_bytes, left = slot->bytes - begin;
    size_t raw = (size_t)(left < l->chunk_bytes ? left : l->chunk_bytes), n = raw - w->buffered < bytes ? raw - w->buffered : bytes;
    memcpy(w->buffer + w->buffered, p, n);
    w->buffered += n;
    if (w->buffered == raw) {
      w->failed = give_chunk(w, slot, raw, diag);
      if (w->failed) return w->failed;
    }
    p += n;
    bytes -= n;
  }
  return MAV_OK;
}

static mav_err write_header(mav_pack_writer *w, mav_diag *diag) {
  const mav__pack_layout *l = &w->layout;
  unsigned char *p = mav__alloc((size_t)l->data_start);
  if (!p) return MAV_FAIL(diag, NOMEM, OP, "%s: out of memory", mav__path_short(w->path));
  memcpy(p + MAV__PACK_HEAD, l->json, l->json_bytes);
  memcpy(p + MAV__PACK_HEAD + l->json_bytes, w->table, (size_t)l->chunks * MAV__PACK_ROW);
  mav__pack_head_put(p, &(mav__pack_head){.version = MAV__PACK_VERSION,
                                          .json_bytes = l->json_bytes,
                                          .chunks = l->chunks,
                                          .data_start = l->data_start,
                                          .file_bytes = w->end,
                                          .hash = mav__pack_hash(p + MAV__PACK_HEAD, (size_t)l->data_start - MAV__PACK_HEAD)});
  mav_err err = mav__pack_pwrite(w, w->fd, p, (size_t)l->data_start, 0, diag);
  mav__free(p);
  return err;
}

static mav_err finish(mav_pack_writer *w, mav_diag *diag) {
  MAV_TRY(drain(w, diag));
  MAV_TRY(mav__pack_sync(w, diag));
  MAV_TRY(write_header(w, diag));
  if (fsync(w->fd) < 0) return MAV_FAIL_ERRNO(diag, IO, OP, "%s: cannot sync", mav__path_short(w->part));
  if (rename(w->part, w->path) < 0) return MAV_FAIL_ERRNO(diag, IO, OP, "%s: cannot rename the finished file", mav__path_short(w->path));
  mav__sync_directory(w->path);
  unlink(w->journal); /* one that stays behind does no harm: without .part it is not read */
  return MAV_OK;
}

mav_err mav_pack_writer_finish(mav_pack_writer *w, mav_diag *diag) {
  const mav__pack_layout *l = &w->layout;
  MAV_TRY(usable(w, diag));
  if (w->tensor < l->count)
    return MAV_FAIL(diag, STATE, OP, "%s: tensor \"%.100s\" is not complete", mav__path_short(w->path), l->slot[w->tensor].name);
  if (w->fd < 0) return MAV_FAIL(diag, STATE, OP, "%s: it is finished", mav__path_short(w->path));
  w->failed = finish(w, diag);
  if (w->failed) return w->failed;
  stop(w);
  close(w->fd);
  close(w->journal_fd);
  w->fd = w->journal_fd = -1;
  return MAV_OK;
}

void mav_pack_writer_close(mav_pack_writer *w) {
  if (!w) return;
  mav_err behind = drain(w, NULL);
  stop(w);
  pthread_cond_destroy(&w->changed);
  pthread_mutex_destroy(&w->lock);
  if (w->fd >= 0 && !w->failed && !behind) (void)mav__pack_sync(w, NULL);
  if (w->journal_fd >= 0) close(w->journal_fd);
  if (w->fd >= 0) close(w->fd);
  mav__pack_layout_deinit(&w->layout);
  mav__free(w->planes);
  mav__free(w->packed);
  mav__free(w->spare);
  mav__free(w->buffer);
  mav__free(w->table);
  mav__free(w->journal);
  mav__free(w->part);
  mav__free(w->path);
  mav__free(w);
}
