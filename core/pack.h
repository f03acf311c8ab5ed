/* core/pack.h - a pack on disk (docs/pack-format.md), as its reader and its writer share it.
 *
 *   head (64) | JSON, padded | chunk table (40 a chunk) | zeros | chunks
 *
 * Where a chunk lies follows from what is before it: a tensor's first at the next multiple of 4096, every other at the next
 * multiple of 64. Full chunks are multiples of 4096, so the raw chunks of a tensor are one array. */
#ifndef MAV_CORE_PACK_H
#define MAV_CORE_PACK_H

#include "file.h"
#include "table.h"

#define MAV__PACK_VERSION 1
#define MAV__PACK_HEAD 64
#define MAV__PACK_ROW 40
#define MAV__PACK_PAGE 4096
#define MAV__PACK_LINE 64
#define MAV__PACK_CHUNK_MAX ((uint64_t)1 << 30)
#define MAV__PACK_JSON_MAX 100000000u
#define MAV__PACK_DEPTH_MAX 32
#define MAV__PACK_RANKS_MAX 65536

typedef enum mav__pack_codec {
  MAV__PACK_RAW,
  MAV__PACK_LZ4,    /* one LZ4 block */
  MAV__PACK_PLANES, /* one LZ4 block of all even bytes, then all odd ones */
  MAV__PACK_CODECS
} mav__pack_codec;

typedef struct mav__pack_head {
  uint32_t version, flags;
  uint64_t json_bytes, chunks, data_start;
  uint64_t file_bytes; /* 0: not finished */
  uint64_t hash;       /* of bytes [64, data_start) */
} mav__pack_head;

typedef struct mav__pack_chunk {
  uint64_t offset, stored, raw;
  uint32_t codec, reserved;
  uint64_t hash; /* of the stored bytes */
} mav__pack_chunk;

struct mav_pack {
  int refs;
  mav__file file;
  mav_pack_info info;
  char *path, *meta, *arena; /* arena: names and layouts */
  mav_pack_entry *entry;     /* (count) in the order of their chunks */
  mav__span *name;           /* (count) keys of the table */
  mav__table table;
  int count;
  const unsigned char *chunk;     /* (chunks) rows, mapped */
  _Atomic unsigned char *checked; /* (chunks) its hash was looked at, and right */
};

static inline uint64_t mav__pack_align(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }
/* Where a chunk lies when the one before it ends at `end`. */
static inline uint64_t mav__pack_place(uint64_t end, bool first) { return mav__pack_align(end, first ? MAV__PACK_PAGE : MAV__PACK_LINE); }

uint64_t mav__pack_hash(const void *p, size_t bytes);        /* XXH3, 64 bits, seed 0 */
void mav__pack_put(unsigned char *p, uint64_t v, int bytes); /* little endian */
uint64_t mav__pack_get(const unsigned char *p, int bytes);
void mav__pack_head_put(unsigned char *p, const mav__pack_head *h); /* and its own hash */
/* False: the magic or the hash of the head is wrong. */
bool mav__pack_head_get(const unsigned char *p, mav__pack_head *h);
void mav__pack_chunk_put(unsigned char *p, const mav__pack_chunk *c);
void mav__pack_chunk_get(const unsigned char *p, mav__pack_chunk *c);

/* Compresses into dst, which has room for raw * 9 / 10 bytes; false: it would not fit, store it raw. planes: raw bytes of
 * scratch, needed for dtypes of 16 bits. */
bool mav__pack_encode(mav__pack_chunk *c, mav_dtype dtype, const void *src, void *dst, void *planes);
/* Fills dst (c->raw bytes) from src (c->stored). planes: c->raw bytes of scratch for codec PLANES. False: malformed. */
bool mav__pack_decode(const mav__pack_chunk *c, const void *src, void *dst, void *planes);

#endif
