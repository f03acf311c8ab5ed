/* core/pack_read.c - the bytes of a pack's tensors, by several threads.
 * The unit of work is a chunk; threads are made for one call (a pack may be read without a runtime) and claim chunks in order,
 * so the error that is reported is the one of the first bad chunk. A thread that cannot be started is done without.
 * A chunk's hash is checked when it is first read: pack->checked has a byte for each. Two threads may both do it. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "err.h"
#include "mem.h"
#include "pack.h"

#define THREADS_MAX 256

typedef struct job {
  const mav_pack *p;
  const mav_pack_entry *e;
  const char *op;
  char *dst;             /* NULL: only look at the bytes */
  bool all;              /* verify: hashes again, what is compressed, zeros */
  uint64_t begin, bytes; /* of the tensor, for dst */
  uint64_t end;          /* chunks of the tensor: claimed in [next, end) */
  _Atomic uint64_t next;
  atomic_bool failed;
  pthread_mutex_t lock; /* of what follows */
  mav_err err;
  uint64_t err_chunk;
  mav_diag diag;
} job;

typedef struct scratch {
  char *chunk, *planes; /* chunk_bytes each, when first needed */
} scratch;

static mav_err need(const job *j, char **block, mav_diag *diag) {
  size_t bytes = j->e->bytes < j->p->info.chunk_bytes ? j->e->bytes : (size_t)j->p->info.chunk_bytes;
  if (!*block) *block = mav__alloc(bytes);
  return *block ? MAV_OK : MAV_FAIL(diag, NOMEM, j->op, "%s: out of memory for a chunk of %zu bytes", mav__path_short(j->p->path), bytes);
}

static mav_err damaged(const job *j, uint64_t i, const mav__pack_chunk *c, const char *what, mav_diag *diag) {
  return MAV_FAIL(diag, FORMAT, j->op, "%s: tensor \"%.100s\": chunk %llu %s (bytes %llu to %llu of the file)", mav__path_short(j->p->path),
                  j->e->name, (unsigned long long)(j->e->chunk + i), what, (unsigned long long)c->offset,
                  (unsigned long long)(c->offset + c->stored));
}

static mav_err check_gap(const job *j, uint64_t i, const mav__pack_chunk *c, mav_diag *diag) {
  mav__pack_chunk after = {.offset = j->p->info.file_bytes};
  const uint64_t next = j->e->chunk + i + 1;
  if (next < j->p->info.chunks) mav__pack_chunk_get(j->p->chunk + next * MAV__PACK_ROW, &after);
  for (uint64_t at = c->offset + c->stored; at < after.offset; at++)
    if (j->p->file.data[at]) return damaged(j, i, c, "is not followed by zeros", diag);
  return MAV_OK;
}

static mav_err do_chunk(const job *j, uint64_t i, scratch *s, mav_diag *diag) {
  mav__pack_chunk c;
  mav__pack_chunk_get(j->p->chunk + (j->e->chunk + i) * MAV__PACK_ROW, &c);
  const char *src = j->p->file.data + c.offset;
  const uint64_t at = i * j->p->info.chunk_bytes;
  /* [from, to): what the caller wants of this chunk. */
  const uint64_t from = j->begin > at ? j->begin - at : 0, end = j->begin + j->bytes - at, to = end < c.raw ? end : c.raw;
  char *dst = j->dst ? j->dst + (at + from - j->begin) : NULL, *whole = dst;
  _Atomic unsigned char *checked = &j->p->checked[j->e->chunk + i];
  if (j->all || !atomic_load_explicit(checked, memory_order_relaxed)) {
    if (mav__pack_hash(src, c.stored) != c.hash) return damaged(j, i, &c, "is damaged", diag);
    atomic_store_explicit(checked, 1, memory_order_relaxed);
  }
  if (j->all) MAV_TRY(check_gap(j, i, &c, diag));
  if (!dst && !j->all) return MAV_OK;
  if (c.codec == MAV__PACK_RAW) {
    if (dst) memcpy(dst, src + from, to - from);
    return MAV_OK;
  }
  if (!dst || to - from < c.raw) {
    MAV_TRY(need(j, &s->chunk, diag));
    whole = s->chunk;
  }
  if (c.codec == MAV__PACK_PLANES) MAV_TRY(need(j, &s->planes, diag));
  if (!mav__pack_decode(&c, src, whole, s->planes)) return damaged(j, i, &c, "holds malformed LZ4 data", diag);
  if (dst && dst != whole) memcpy(dst, whole + from, to - from);
  return MAV_OK;
}

static void *work(void *arg) {
  job *j = arg;
  scratch s = {0};
  mav_diag diag;
  for (uint64_t i; !atomic_load(&j->failed) && (i = atomic_fetch_add(&j->next, 1)) < j->end;) {
    mav_err err = do_chunk(j, i, &s, &diag);
    if (!err) continue;
    atomic_store(&j->failed, true);
    pthread_mutex_lock(&j->lock);
    if (!j->err || i < j->err_chunk) {
      j->err = err;
      j->err_chunk = i;
      j->diag = diag;
    }
    pthread_mutex_unlock(&j->lock);
  }
  mav__free(s.planes);
  mav__free(s.chunk);
  return NULL;
}

static int processors(void) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

static mav_err run(job *j, int threads, mav_diag *diag) {
  pthread_t thread[THREADS_MAX];
  int started = 0;
  const uint64_t chunks = j->end - atomic_load(&j->next);
  if (threads <= 0) threads = processors();
  if (threads > THREADS_MAX) threads = THREADS_MAX;
  if ((uint64_t)threads > chunks) threads = (int)chunks;
  pthread_mutex_init(&j->lock, NULL);
  while (started < threads - 1 && !pthread_create(&thread[started], NULL, work, j)) started++;
  work(j);
  for (int i = 0; i < started; i++) pthread_join(thread[i], NULL);
  pthread_mutex_destroy(&j->lock);
  if (j->err && diag) *diag = j->diag;
  return j->err;
}

static mav_err check_index(const mav_pack *p, int i, const char *op, mav_diag *diag) {
  if (i >= 0 && i < p->count) return MAV_OK;
  return MAV_FAIL(diag, RANGE, op, "%s: tensor %d of %d", mav__path_short(p->path), i, p->count);
}

static mav_err look(const mav_pack *p, int i, size_t begin, size_t bytes, void *dst, int threads, const char *op, mav_diag *diag) {
  MAV_TRY(check_index(p, i, op, diag));
  const mav_pack_entry *e = &p->entry[i];
  if (begin > e->bytes || bytes > e->bytes - begin)
    return MAV_FAIL(diag, RANGE, op, "%s: tensor \"%.100s\": bytes %zu to %zu of %zu", mav__path_short(p->path), e->name, begin,
                    begin + bytes, e->bytes);
  if (bytes == 0) return MAV_OK;
  const uint64_t size = p->info.chunk_bytes;
  job j = {.p = p, .e = e, .op = op, .dst = dst, .begin = begin, .bytes = bytes, .end = (begin + bytes - 1) / size + 1};
  atomic_init(&j.next, begin / size);
  return run(&j, threads, diag);
}

mav_err mav_pack_read(const mav_pack *p, int i, size_t begin, size_t bytes, void *dst, int threads, mav_diag *diag) {
  return look(p, i, begin, bytes, dst, threads, "pack_read", diag);
}

mav_err mav_pack_check(const mav_pack *p, int i, size_t begin, size_t bytes, int threads, mav_diag *diag) {
  return look(p, i, begin, bytes, NULL, threads, "pack_check", diag);
}

mav_err mav_pack_verify(const mav_pack *p, int i, int threads, mav_diag *diag) {
  MAV_TRY(check_index(p, i, "pack_verify", diag));
  job j = {.p = p, .e = &p->entry[i], .op = "pack_verify", .all = true, .bytes = p->entry[i].bytes, .end = p->entry[i].chunks};
  return run(&j, threads, diag);
}
