/* core/pack_lz4.c - the bytes of a pack: numbers, hashes, chunks to and from LZ4. Holds no state; any thread may call it. */
#include <lz4.h>
#include <string.h>
#include <xxhash.h>

#include "pack.h"

static const char magic[8] = {'M', 'A', 'V', 'P', 'A', 'C', 'K', '\n'};

uint64_t mav__pack_hash(const void *p, size_t bytes) { return XXH3_64bits(p, bytes); }

void mav__pack_put(unsigned char *p, uint64_t v, int bytes) {
  for (int i = 0; i < bytes; i++, v >>= 8) p[i] = (unsigned char)(v & 255);
}

uint64_t mav__pack_get(const unsigned char *p, int bytes) {
  uint64_t v = 0;
  for (int i = bytes - 1; i >= 0; i--) v = v << 8 | p[i];
  return v;
}

void mav__pack_head_put(unsigned char *p, const mav__pack_head *h) {
  memcpy(p, magic, 8);
  mav__pack_put(p + 8, h->version, 4);
  mav__pack_put(p + 12, h->flags, 4);
  mav__pack_put(p + 16, h->json_bytes, 8);
  mav__pack_put(p + 24, h->chunks, 8);
  mav__pack_put(p + 32, h->data_start, 8);
  mav__pack_put(p + 40, h->file_bytes, 8);
  mav__pack_put(p + 48, h->hash, 8);
  mav__pack_put(p + 56, mav__pack_hash(p, 56), 8);
}

bool mav__pack_head_get(const unsigned char *p, mav__pack_head *h) {
  *h = (mav__pack_head){.version = (uint32_t)mav__pack_get(p + 8, 4),
                        .flags = (uint32_t)mav__pack_get(p + 12, 4),
                        .json_bytes = mav__pack_get(p + 16, 8),
                        .chunks = mav__pack_get(p + 24, 8),
                        .data_start = mav__pack_get(p + 32, 8),
                        .file_bytes = mav__pack_get(p + 40, 8),
                        .hash = mav__pack_get(p + 48, 8)};
  return !memcmp(p, magic, 8) && mav__pack_get(p + 56, 8) == mav__pack_hash(p, 56);
}

void mav__pack_chunk_put(unsigned char *p, const mav__pack_chunk *c) {
  mav__pack_put(p, c->offset, 8);
  mav__pack_put(p + 8, c->stored, 8);
  mav__pack_put(p + 16, c->raw, 8);
  mav__pack_put(p + 24, c->codec, 4);
  mav__pack_put(p + 28, c->reserved, 4);
  mav__pack_put(p + 32, c->hash, 8);
}

void mav__pack_chunk_get(const unsigned char *p, mav__pack_chunk *c) {
  *c = (mav__pack_chunk){.offset = mav__pack_get(p, 8),
                         .stored = mav__pack_get(p + 8, 8),
                         .raw = mav__pack_get(p + 16, 8),
                         .codec = (uint32_t)mav__pack_get(p + 24, 4),
                         .reserved = (uint32_t)mav__pack_get(p + 28, 4),
                         .hash = mav__pack_get(p + 32, 8)};
}

/* The high bytes of 16-bit floats, sign and exponent, are alike; the low ones are noise. Apart, LZ4 finds the former. */
static void split(unsigned char *planes, const unsigned char *p, size_t bytes) {
  size_t n = bytes / 2;
  for (size_t i = 0; i < n; i++) planes[i] = p[2 * i];
  for (size_t i = 0; i < n; i++) planes[n + i] = p[2 * i + 1];
}

static void join(unsigned char *p, const unsigned char *planes, size_t bytes) {
  const unsigned char *low = planes, *high = planes + bytes / 2;
  for (size_t i = 0; i < bytes / 2; i++) {
    p[2 * i] = low[i];
    p[2 * i + 1] = high[i];
  }
}

bool mav__pack_encode(mav__pack_chunk *c, mav_dtype dtype, const void *src, void *dst, void *planes) {
  bool is_wide = mav_dtype_bytes(dtype) == 2;
  if (is_wide) {
    split(planes, src, c->raw);
    src = planes;
  }
  int n = LZ4_compress_default(src, dst, (int)c->raw, (int)(c->raw / 10 * 9 + c->raw % 10 * 9 / 10));
  if (n <= 0) return false;
  c->stored = (uint64_t)n;
  c->codec = is_wide ? MAV__PACK_PLANES : MAV__PACK_LZ4;
  return true;
}

bool mav__pack_decode(const mav__pack_chunk *c, const void *src, void *dst, void *planes) {
  if (c->codec == MAV__PACK_RAW) {
    memcpy(dst, src, c->raw);
    return true;
  }
  bool apart = c->codec == MAV__PACK_PLANES;
  if (LZ4_decompress_safe(src, apart ? planes : dst, (int)c->stored, (int)c->raw) != (int)c->raw) return false;
  if (apart) join(dst, planes, c->raw);
  return true;
}
