/* tests/core/pack_sample.h - a pack with tensors of every dtype, of chunks that compress, do not, and do by turns. */
#ifndef MAV_TESTS_PACK_SAMPLE_H
#define MAV_TESTS_PACK_SAMPLE_H

#include "mav.h"
#include "scratch.h"

#define SAMPLE_CHUNK 4096
#define SAMPLE_BYTES_MAX 40000

typedef enum sample_kind { SMOOTH, NOISE, TURNS } sample_kind; /* TURNS: a smooth chunk, a noisy one, ... */

static const mav_pack_item sample_items[] = {
    {.name = "f32.smooth", .dtype = MAV_DTYPE_F32, .dims = 2, .shape = {50, 70}, .compress = true},
    {.name = "f32.raw", .dtype = MAV_DTYPE_F32, .dims = 1, .shape = {2048}},
    {.name = "bf16.smooth", .dtype = MAV_DTYPE_BF16, .dims = 3, .shape = {4, 25, 100}, .compress = true},
    {.name = "bf16.turns", .dtype = MAV_DTYPE_BF16, .dims = 2, .shape = {100, 101}, .compress = true},
    {.name = "bf16.noise", .dtype = MAV_DTYPE_BF16, .dims = 1, .shape = {5000}, .compress = true},
    {.name = "f16.smooth", .dtype = MAV_DTYPE_F16, .dims = 1, .shape = {2047}, .compress = true},
    {.name = "f8.turns", .dtype = MAV_DTYPE_F8, .dims = 4, .shape = {2, 3, 5, 701}, .compress = true},
    {.name = "empty", .dtype = MAV_DTYPE_I64, .dims = 2, .shape = {3, 0}, .compress = true},
    {.name = "i32.smooth", .dtype = MAV_DTYPE_I32, .dims = 1, .shape = {4096}, .compress = true},
    {.name = "i64.raw", .dtype = MAV_DTYPE_I64, .dims = 1, .shape = {1025}},
    {.name = "u8.smooth", .dtype = MAV_DTYPE_U8, .dims = 1, .shape = {12289}, .compress = true},
    {.name = "scalar \"\xc3\xa9\\\n", .dtype = MAV_DTYPE_F32, .compress = true},
    {.name = "w.turns",
     .dtype = MAV_DTYPE_F8,
     .dims = 3,
     .shape = {3, 40, 100},
     .scale = "w.scale",
     .act = MAV_ACT_STATIC,
     .in_scale = 0.3f,
     .compress = true},
    {.name = "w.scale", .dtype = MAV_DTYPE_F32, .dims = 2, .shape = {3, 40}},
    {.name = "d.raw", .dtype = MAV_DTYPE_BF16, .dims = 2, .shape = {40, 60}, .scale = "scalar \"\xc3\xa9\\\n", .act = MAV_ACT_DYNAMIC},
    {.name = "tiled", .dtype = MAV_DTYPE_U8, .dims = 1, .shape = {100}, .layout = "tiles.16x64", .compress = true},
    {.name = "end", .dtype = MAV_DTYPE_F32, .dims = 1, .shape = {0}},
};
#define SAMPLE_COUNT ((int)(sizeof sample_items / sizeof *sample_items))

static const mav_pack_plan sample_plan = {.meta = "{ \"source\": \"sample\", \"recipe\": {\"x\": [1, 2.5, null, true]} }",
                                          .rank = 1,
                                          .ranks = 8,
                                          .chunk_bytes = SAMPLE_CHUNK,
                                          .sync_bytes = 8192,
                                          .count = SAMPLE_COUNT,
                                          .items = sample_items};

static inline uint32_t sample_random(uint32_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 17;
  return *state ^= *state << 5;
}

static inline size_t sample_size(int i) {
  size_t bytes = mav_dtype_bytes(sample_items[i].dtype);
  for (int d = 0; d < sample_items[i].dims; d++) bytes *= (size_t)sample_items[i].shape[d];
  return bytes;
}

/* The bytes of tensor i; the same every time. */
static inline const unsigned char *sample_data(int i) {
  static unsigned char data[SAMPLE_BYTES_MAX];
  uint32_t seed = 77u + (uint32_t)i;
  const char *name = sample_items[i].name;
  sample_kind kind = strstr(name, ".turns") ? TURNS : strstr(name, ".noise") ? NOISE : SMOOTH;
  size_t width = mav_dtype_bytes(sample_items[i].dtype), bytes = sample_size(i);
  for (size_t k = 0; k < bytes; k++) {
    bool noisy = kind == NOISE || (kind == TURNS && k / SAMPLE_CHUNK % 2);
    uint32_t r = sample_random(&seed);
    /* Smooth: of every element only the first byte is noise, and of bytes that only at times. */
    data[k] = (unsigned char)(noisy ? r >> 7 : width == 1 ? (r % 16 ? 7 : r >> 8) : k % width == 0 ? r >> 9 : width + k / 1000);
  }
  return data;
}

/* Puts what is missing, at most `limit` bytes, in pieces of random sizes. */
static inline mav_err sample_put(mav_pack_writer *w, uint64_t limit, uint32_t *seed, mav_diag *diag) {
  int i;
  uint64_t at;
  for (mav_pack_writer_next(w, &i, &at); i < SAMPLE_COUNT && limit; mav_pack_writer_next(w, &i, &at)) {
    uint64_t piece = 1 + sample_random(seed) % 9000, left = sample_size(i) - at;
    if (piece > left) piece = left;
    if (piece > limit) piece = limit;
    mav_err err = mav_pack_writer_put(w, i, sample_data(i) + at, (size_t)piece, diag);
    if (err) return err;
    limit -= piece;
  }
  return MAV_OK;
}

static inline mav_err sample_write(const char *path, const mav_pack_plan *plan, mav_diag *diag) {
  mav_pack_writer *w;
  uint32_t seed = 5;
  mav_err err = mav_pack_writer_open(&w, path, plan, diag);
  if (err) return err;
  err = sample_put(w, UINT64_MAX, &seed, diag);
  if (!err) err = mav_pack_writer_finish(w, diag);
  mav_pack_writer_close(w);
  return err;
}

/* A whole file; the caller frees it. */
static inline unsigned char *sample_load(const char *path, size_t *bytes) {
  FILE *f = fopen(path, "rb");
  if (!f || fseek(f, 0, SEEK_END) != 0) abort();
  *bytes = (size_t)ftell(f);
  unsigned char *p = malloc(*bytes + 1);
  rewind(f);
  if (fread(p, 1, *bytes, f) != *bytes) abort();
  fclose(f);
  return p;
}

#endif
