/* core/pack_writer.h - inside a pack's writer: the plan as it is on disk, and what survives an interruption. */
#ifndef MAV_CORE_PACK_WRITER_H
#define MAV_CORE_PACK_WRITER_H

#include <pthread.h>

#include "pack.h"

#define MAV__PACK_WRITE "pack_write"

typedef struct mav__pack_slot {
  char *name; /* for messages */
  mav_dtype dtype;
  bool compress;
  uint64_t bytes, chunk, chunks;
} mav__pack_slot;

typedef struct mav__pack_layout {
  mav__pack_slot *slot; /* (count) */
  int count;
  char *json; /* padded */
  size_t json_bytes;
  uint64_t chunk_bytes, chunks, data_start;
  uint64_t hash; /* of all that the file's bytes depend on, but the tensors' */
} mav__pack_layout;

/* Checks a plan and makes its JSON. deinit also after a failure. */
mav_err mav__pack_layout_init(mav__pack_layout *out, const mav_pack_plan *plan, const char *path, mav_diag *diag);
void mav__pack_layout_deinit(mav__pack_layout *l);

struct mav_pack_writer {
  char *path, *part, *journal;
  int fd, journal_fd; /* of .part (locked) and .journal; -1: closed */
  mav__pack_layout layout;
  unsigned char *table; /* (chunks) rows, filled up to `chunk` */
  uint64_t chunk;       /* taken from the caller: chunks */
  int tensor;           /* the next chunk's */
  char *buffer;         /* the next chunk's bytes */
  size_t buffered;
  mav_err failed; /* sticks */

  /* One chunk is written while the next one comes in: by a thread, from the first chunk until finish or close. */
  pthread_t thread;
  bool has_thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool is_busy, is_ending;   /* of the thread; under the lock, as the next two are while it has no chunk */
  const mav__pack_slot *job; /* the tensor of the chunk in `spare` */
  uint64_t job_bytes;
  mav_err behind; /* what a chunk that was taken met, until the caller is told; sticks */
  mav_diag diag;
  /* Of whoever writes: the thread while it is busy, else the caller. */
  char *spare;
  uint64_t written, end; /* chunks, and where the last one ends */
  char *packed, *planes; /* chunk_bytes each where something is compressed, else NULL */
  uint64_t journaled;    /* chunks that the journal has */
  uint64_t sync_bytes, unsynced;
};

/* Opens and locks .part, opens .journal, takes up what they hold. */
mav_err mav__pack_resume(mav_pack_writer *w, const mav_pack_plan *plan, mav_diag *diag);
/* Syncs .part, then notes its new chunks in the journal. */
mav_err mav__pack_sync(mav_pack_writer *w, mav_diag *diag);
mav_err mav__pack_pwrite(mav_pack_writer *w, int fd, const void *data, size_t bytes, uint64_t at, mav_diag *diag);

#endif
