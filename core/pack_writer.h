/* core/pack_writer.h - inside a pack's writer: the plan as it is on disk, and what survives an interruption. */
#ifndef MAV_CORE_PACK_WRITER_H
#define MAV_CORE_PACK_WRITER_H

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
  uint64_t chunk, end;  /* written: chunks, and where the last one ends */
  int tensor;           /* the next chunk's */
  char *buffer;         /* the next chunk's bytes, when they come in pieces */
  size_t buffered;
  char *packed, *planes; /* chunk_bytes each where something is compressed, else NULL */
  uint64_t journaled;    /* chunks that the journal has */
  uint64_t sync_bytes, unsynced;
  mav_err failed; /* sticks */
};

/* Opens and locks .part, opens .journal, takes up what they hold. */
mav_err mav__pack_resume(mav_pack_writer *w, const mav_pack_plan *plan, mav_diag *diag);
/* Syncs .part, then notes its new chunks in the journal. */
mav_err mav__pack_sync(mav_pack_writer *w, mav_diag *diag);
mav_err mav__pack_pwrite(mav_pack_writer *w, int fd, const void *data, size_t bytes, uint64_t at, mav_diag *diag);

#endif
