/* tests/fuzz/fuzz_pack.c - any bytes as a pack: refused with one line, or every entry is what it says and reads or is refused.
 * Hashes would keep a fuzzer out; those of the head are made right first, and those of the chunks too when the input's last
 * byte is odd (a hash is 8 bytes, and a file with the wrong ones has its own way to be refused). */
#include "fuzz.h"
#include "mav.h"
#include "mem.h"
#include "pack.h"

static void mend(uint8_t *p, size_t bytes) {
  mav__pack_head h;
  if (bytes < MAV__PACK_HEAD) return;
  memcpy(p, "MAVPACK\n", 8);
  mav__pack_head_get(p, &h);
  h.file_bytes = bytes;
  if (h.json_bytes <= bytes && h.chunks <= bytes / MAV__PACK_ROW && h.data_start >= MAV__PACK_HEAD && h.data_start <= bytes) {
    uint8_t *row = p + MAV__PACK_HEAD + h.json_bytes, *end = p + h.data_start;
    for (uint64_t i = 0; p[bytes - 1] & 1 && i < h.chunks && end - row >= MAV__PACK_ROW; i++, row += MAV__PACK_ROW) {
      mav__pack_chunk c;
      mav__pack_chunk_get(row, &c);
      if (c.offset > bytes || c.stored > bytes - c.offset) continue;
      c.hash = mav__pack_hash(p + c.offset, c.stored);
      mav__pack_chunk_put(row, &c);
    }
    h.hash = mav__pack_hash(p + MAV__PACK_HEAD, h.data_start - MAV__PACK_HEAD);
  }
  mav__pack_head_put(p, &h);
}

static void check_entry(const mav_pack *p, int i) {
  const mav_pack_entry *e = mav_pack_get(p, i);
  FUZZ_CHECK(e->name && e->name[0] && mav_pack_find(p, e->name) == i && e->layout[0]);
  FUZZ_CHECK(e->dims >= 0 && e->dims <= MAV_DIMS_MAX && (unsigned)e->dtype < MAV_DTYPE_COUNT);
  size_t bytes = mav_dtype_bytes(e->dtype);
  for (int d = 0; d < e->dims; d++) bytes *= (size_t)e->shape[d];
  FUZZ_CHECK(bytes == e->bytes && e->stored <= bytes && bytes <= 255 * e->stored);
  FUZZ_CHECK(!e->scale || mav_pack_get(p, mav_pack_find(p, e->scale))->dtype == MAV_DTYPE_F32);
  char *all = malloc(bytes + 1), *part = malloc(bytes + 1);
  FUZZ_CHECK(all && part);
  mav_diag diag = {0};
  mav_err err = mav_pack_read(p, i, 0, bytes, all, 1, &diag);
  FUZZ_CHECK(err == diag.code && (!err || err == MAV_ERR_FORMAT));
  if (!err && e->data) FUZZ_CHECK(!memcmp(all, e->data, bytes));
  if (!err) {
    FUZZ_CHECK(!mav_pack_read(p, i, bytes / 3, bytes / 2, part, 1, &diag));
    FUZZ_CHECK(!memcmp(all + bytes / 3, part, bytes / 2));
  }
  mav_err verified = mav_pack_verify(p, i, 1, NULL);
  FUZZ_CHECK(!verified || verified == MAV_ERR_FORMAT);
  FUZZ_CHECK(!err || verified); /* what cannot be read does not pass */
  free(part);
  free(all);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  int64_t live = mav__mem_live();
  uint8_t *file = malloc(bytes + 1);
  FUZZ_CHECK(file);
  memcpy(file, data, bytes);
  if (bytes && data[0] != '!') mend(file, bytes); /* '!': as it is */
  mav_pack *p;
  mav_diag diag = {0};
  mav_err err = mav_pack_open(&p, fuzz_file(file, bytes), &diag);
  if (err) {
    FUZZ_CHECK(!p && err == diag.code && diag.text[0] && !strchr(diag.text, '\n'));
  } else {
    FUZZ_CHECK(mav_pack_get_info(p)->file_bytes == bytes);
    for (int i = 0; i < mav_pack_count(p); i++) check_entry(p, i);
    mav_pack_release(p);
  }
  free(file);
  FUZZ_CHECK(mav__mem_live() == live);
  return 0;
}
