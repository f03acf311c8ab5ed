/* tests/core/test_pack.c - reading packs: every dtype and codec, tensors, every flipped bit and every cut, files that lie,
 * a terabyte that is not read, failing memory. Writing and resuming: test_pack_write.c. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "mav.h"
#include "mem.h"
#include "pack.h"
#include "pack_sample.h"

static mav_runtime *rt;

static int setup(void **state) {
  mav_runtime_options options = {.device = "ref", .threads = 1};
  return scratch_setup(state) || mav_runtime_new(&rt, &options, NULL);
}

static int teardown(void **state) {
  mav_runtime_release(rt);
  return scratch_teardown(state);
}

static mav_pack *open_pack(const char *path) {
  mav_pack *p;
  mav_diag diag = {0};
  if (mav_pack_open(&p, path, &diag)) fail_msg("%s", diag.text);
  return p;
}

static const char *sample(void) {
  const char *path = scratch_path("sample.mav");
  mav_diag diag = {0};
  if (sample_write(path, &sample_plan, &diag)) fail_msg("%s", diag.text);
  return path;
}

static void check_data(const mav_pack *p, int threads) {
  unsigned char *out = malloc(SAMPLE_BYTES_MAX);
  mav_diag diag = {0};
  for (int i = 0; i < SAMPLE_COUNT; i++) {
    size_t bytes = sample_size(i);
    const unsigned char *data = sample_data(i);
    if (mav_pack_read(p, i, 0, bytes, out, threads, &diag) || mav_pack_verify(p, i, threads, &diag)) fail_msg("%s", diag.text);
    assert_memory_equal(out, data, bytes);
    const size_t parts[][2] = {{0, 1}, {bytes / 2, bytes / 2}, {bytes / 3, bytes / 3}, {4095, 2}, {4096, 4096}, {8191, 1}, {bytes, 0}};
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
      if (parts[k][0] + parts[k][1] > bytes) continue;
      memset(out, 0, SAMPLE_BYTES_MAX);
      if (mav_pack_read(p, i, parts[k][0], parts[k][1], out, threads, &diag)) fail_msg("%s", diag.text);
      assert_memory_equal(out, data + parts[k][0], parts[k][1]);
      assert_int_equal(out[parts[k][1]], 0);
    }
    assert_int_equal(mav_pack_read(p, i, bytes, 1, out, threads, &diag), MAV_ERR_RANGE);
    assert_int_equal(mav_pack_read(p, i, 1, SIZE_MAX, out, threads, &diag), MAV_ERR_RANGE);
  }
  free(out);
}

static void test_round_trip(void **state) {
  (void)state;
  mav_pack *p = open_pack(sample());
  const mav_pack_info *info = mav_pack_get_info(p);
  assert_true(info->rank == 1 && info->ranks == 8 && info->chunk_bytes == SAMPLE_CHUNK);
  assert_string_equal(info->meta, "{\"source\":\"sample\",\"recipe\":{\"x\":[1,2.5,null,true]}}");
  assert_non_null(strstr(info->path, "sample.mav"));
  assert_int_equal(mav_pack_count(p), SAMPLE_COUNT);
  assert_null(mav_pack_get(p, -1));
  assert_null(mav_pack_get(p, SAMPLE_COUNT));
  assert_int_equal(mav_pack_find(p, "no such"), -1);
  for (int i = 0; i < SAMPLE_COUNT; i++) {
    const mav_pack_item *it = &sample_items[i];
    const mav_pack_entry *e = mav_pack_get(p, i);
    assert_int_equal(mav_pack_find(p, it->name), i);
    assert_string_equal(e->name, it->name);
    assert_string_equal(e->layout, it->layout ? it->layout : "row");
    assert_true(e->dtype == it->dtype && e->dims == it->dims && !memcmp(e->shape, it->shape, (size_t)it->dims * sizeof *e->shape));
    assert_true(e->act == it->act && e->in_scale == it->in_scale && !e->scale == !it->scale);
    if (it->scale) assert_string_equal(e->scale, it->scale);
    assert_int_equal(e->bytes, sample_size(i));
    bool compressed = it->compress && e->bytes > 0 && !strstr(it->name, "noise") && !strstr(it->name, "scalar");
    if (compressed ? e->data || e->stored * 10 > e->bytes * 9
                   : !e->data || e->stored != e->bytes || memcmp(e->data, sample_data(i), e->bytes) != 0)
      fail_msg("%s: %zu bytes in %zu", e->name, e->bytes, e->stored);
    if (e->data && e->bytes) assert_int_equal((uintptr_t)e->data % 4096, 0);
    for (uint64_t c = e->chunk; c < e->chunk + e->chunks; c++) {
      mav__pack_chunk chunk;
      mav__pack_chunk_get(p->chunk + c * MAV__PACK_ROW, &chunk);
      bool noisy = !compressed || chunk.raw < 64 || (strstr(it->name, "turns") && (c - e->chunk) % 2);
      assert_int_equal(chunk.codec, noisy ? MAV__PACK_RAW : mav_dtype_bytes(it->dtype) == 2 ? MAV__PACK_PLANES : MAV__PACK_LZ4);
    }
  }
  check_data(p, 1);
  check_data(p, 3);
  check_data(p, 0);
  assert_int_equal(mav_pack_verify(p, SAMPLE_COUNT, 1, NULL), MAV_ERR_RANGE);
  mav_pack_release(mav_pack_retain(p));
  mav_pack_release(p);
  mav_pack_release(NULL);
}

static void test_tensors(void **state) {
  (void)state;
  int64_t live = mav__mem_live();
  mav_pack *p = open_pack(sample());
  mav_tensor *t[SAMPLE_COUNT];
  unsigned char *out = malloc(SAMPLE_BYTES_MAX);
  for (int i = 0; i < SAMPLE_COUNT; i++) {
    const mav_pack_entry *e = mav_pack_get(p, i);
    mav_err err = mav_pack_tensor(p, i, rt, &t[i]);
    if (strcmp(e->layout, "row") != 0) {
      assert_int_equal(err, MAV_ERR_UNSUPPORTED);
      assert_non_null(strstr(mav_runtime_diag(rt)->text, "\"tiled\": its layout is \"tiles.16x64\""));
      assert_null(t[i]);
      continue;
    }
    if (err) fail_msg("%s", mav_runtime_diag(rt)->text);
    void *data;
    assert_int_equal(mav_tensor_data(t[i], &data), MAV_OK);
    if (e->data) assert_ptr_equal(data, e->data); /* mapped, not copied */
    if (e->bytes) assert_true(mav_tensor_write(t[i], out, e->bytes) != MAV_OK);
    assert_true((mav_tensor_scale(t[i]) != NULL) == (e->scale != NULL));
  }
  assert_int_equal(mav_pack_tensor(p, SAMPLE_COUNT, rt, &(mav_tensor *){NULL}), MAV_ERR_RANGE);
  const mav_tensor *scale = mav_tensor_scale(t[12]);
  assert_true(mav_tensor_size(scale, 0) == 3 && mav_tensor_size(scale, 1) == 40);
  /* Tensors keep the mapping alive, even of a file that is gone. */
  mav_pack_release(p);
  scratch_clear();
  for (int i = 0; i < SAMPLE_COUNT; i++) {
    if (!t[i]) continue;
    assert_int_equal(mav_tensor_read(t[i], out, sample_size(i)), MAV_OK);
    assert_memory_equal(out, sample_data(i), sample_size(i));
    mav_tensor_release(t[i]);
  }
  free(out);
  assert_int_equal(mav__mem_live(), live);
}

/* A scale of a wrong shape is found when the tensor is made. */
static void test_scale_that_does_not_fit(void **state) {
  (void)state;
  const mav_pack_item items[] = {{.name = "w", .dtype = MAV_DTYPE_F8, .dims = 2, .shape = {4, 4}, .scale = "s"},
                                 {.name = "s", .dtype = MAV_DTYPE_F32, .dims = 1, .shape = {3}}};
  const mav_pack_plan plan = {.count = 2, .items = items};
  mav_pack_writer *w;
  mav_tensor *t;
  assert_int_equal(mav_pack_writer_open(&w, scratch_path("x"), &plan, NULL), MAV_OK);
  assert_int_equal(mav_pack_writer_put(w, 0, "0123456789abcdef", 16, NULL), MAV_OK);
  assert_int_equal(mav_pack_writer_put(w, 1, "0123456789abcdef", 12, NULL), MAV_OK);
  assert_int_equal(mav_pack_writer_finish(w, NULL), MAV_OK);
  mav_pack_writer_close(w);
  mav_pack *p = open_pack(scratch_path("x"));
  assert_int_equal(mav_pack_tensor(p, 0, rt, &t), MAV_ERR_SHAPE);
  assert_null(t);
  mav_pack_release(p);
}

/* ---- damage ---- */

static void change(const char *path, size_t at, unsigned char flip) {
  unsigned char byte;
  int fd = open(path, O_RDWR);
  assert_true(fd >= 0 && pread(fd, &byte, 1, (off_t)at) == 1);
  byte ^= flip;
  assert_true(pwrite(fd, &byte, 1, (off_t)at) == 1);
  close(fd);
}

/* The tensor whose chunk, or the gap behind it, has this byte. */
static int owner(const mav_pack *p, uint64_t at, bool *lz4, bool *gap) {
  for (int i = 0; i < p->count; i++)
    for (uint64_t c = p->entry[i].chunk; c < p->entry[i].chunk + p->entry[i].chunks; c++) {
      mav__pack_chunk chunk, next = {.offset = p->info.file_bytes};
      mav__pack_chunk_get(p->chunk + c * MAV__PACK_ROW, &chunk);
      if (c + 1 < p->info.chunks) mav__pack_chunk_get(p->chunk + (c + 1) * MAV__PACK_ROW, &next);
      *gap = at >= chunk.offset + chunk.stored;
      *lz4 = chunk.codec != MAV__PACK_RAW && !*gap;
      if (at >= chunk.offset && at < next.offset) return i;
    }
  return -1;
}

static void test_flipped_bits(void **state) {
  (void)state;
  const char *path = sample();
  mav_pack *good = open_pack(path), *p;
  const uint64_t bytes = good->info.file_bytes;
  unsigned char *out = malloc(SAMPLE_BYTES_MAX);
  char name[512], quoted[128];
  snprintf(name, sizeof name, "%s", path);
  mav__pack_head head;
  assert_true(mav__pack_head_get((const unsigned char *)good->file.data, &head));
  uint32_t seed = 99;
  int64_t live = mav__mem_live();
  for (uint64_t at = 0; at < head.data_start; at++) { /* every byte before the data */
    unsigned char flip = (unsigned char)(1 << sample_random(&seed) % 8);
    mav_diag diag = {0};
    change(name, at, flip);
    mav_err err = mav_pack_open(&p, name, &diag);
    change(name, at, flip);
    assert_null(p);
    if (err != MAV_ERR_FORMAT || !strstr(diag.text, "sample.mav")) fail_msg("byte %d: %s", (int)at, diag.text);
  }
  int lz4_flips = 0, raw_flips = 0;
  for (int n = 0; n < 10000; n++) {
    uint64_t at = head.data_start + sample_random(&seed) % (bytes - head.data_start);
    unsigned char flip = (unsigned char)(1 << sample_random(&seed) % 8);
    bool lz4 = false, gap = false;
    mav_diag diag = {0};
    int i = owner(good, at, &lz4, &gap);
    change(name, at, flip);
    p = open_pack(name);
    const mav_pack_entry *e = mav_pack_get(p, i);
    snprintf(quoted, sizeof quoted, "tensor \"%.5s", e->name);
    assert_int_equal(mav_pack_verify(p, i, 1, &diag), MAV_ERR_FORMAT);
    if (!strstr(diag.text, quoted) || !strstr(diag.text, "sample.mav")) fail_msg("byte %d: %s", (int)at, diag.text);
    assert_int_equal(mav_pack_read(p, i, 0, e->bytes, out, 1, &diag), gap ? MAV_OK : MAV_ERR_FORMAT);
    assert_int_equal(mav_pack_check(p, i, 0, e->bytes, 1, &diag), gap ? MAV_OK : MAV_ERR_FORMAT);
    if (!gap && (!strstr(diag.text, quoted) || !strstr(diag.text, " is damaged"))) fail_msg("byte %d: %s", (int)at, diag.text);
    lz4_flips += lz4;
    raw_flips += !lz4;
    if (n % 100 == 0)
      for (int k = 0; k < SAMPLE_COUNT; k++) assert_int_equal(mav_pack_verify(p, k, 2, NULL), k == i ? MAV_ERR_FORMAT : MAV_OK);
    mav_pack_release(p);
    change(name, at, flip);
  }
  assert_true(lz4_flips > 1000 && raw_flips > 1000);
  assert_int_equal(mav__mem_live(), live);
  check_data(good, 1);
  mav_pack_release(good);
  free(out);
}

static void test_cut_files(void **state) {
  (void)state;
  size_t bytes;
  mav_pack *p;
  unsigned char *file = sample_load(sample(), &bytes);
  int64_t live = mav__mem_live();
  for (size_t n = 0; n < bytes; n += n < 6000 ? 61 : 1000) {
    mav_diag diag = {0};
    assert_int_equal(mav_pack_open(&p, scratch_write("cut", file, n), &diag), MAV_ERR_FORMAT);
    if (n >= 64 && !strstr(diag.text, "had")) fail_msg("%s", diag.text);
  }
  file[bytes] = 0;
  assert_int_equal(mav_pack_open(&p, scratch_write("cut", file, bytes + 1), NULL), MAV_ERR_FORMAT); /* and longer ones */
  assert_int_equal(mav_pack_open(&p, scratch_write("cut", file, bytes - 1), NULL), MAV_ERR_FORMAT);
  assert_int_equal(mav_pack_open(&p, scratch_path("absent"), NULL), MAV_ERR_NOTFOUND);
  assert_int_equal(mav_pack_open(&p, scratch_dir, NULL), MAV_ERR_IO);
  assert_int_equal(mav__mem_live(), live);
  free(file);
}

/* ---- files that lie, with hashes that are right ---- */

typedef struct lie {
  const char *json;
  mav__pack_chunk chunk[3];
  int chunks;
  uint64_t end; /* of the file, behind data_start */
  const char *reason;
  mav_err code; /* 0: FORMAT */
} lie;

/* Offsets of chunks are given from data_start, which is 4096. */
static const char *craft(const char *name, const lie *l, uint32_t version, uint32_t flags) {
  static unsigned char p[4096 + 70000];
  memset(p, 0, sizeof p);
  size_t n = strlen(l->json), json = (n + 63) / 64 * 64;
  memset(p + 64, ' ', json);
  memcpy(p + 64, l->json, n);
  for (int i = 0; i < l->chunks; i++) {
    mav__pack_chunk c = l->chunk[i];
    c.offset += 4096;
    if (c.offset + c.stored <= sizeof p && c.stored <= sizeof p) c.hash = mav__pack_hash(p + c.offset, c.stored);
    mav__pack_chunk_put(p + 64 + json + i * 40, &c);
  }
  mav__pack_head h = {.version = version, .flags = flags, .json_bytes = json, .chunks = (uint64_t)l->chunks, .data_start = 4096};
  h.file_bytes = 4096 + l->end;
  h.hash = mav__pack_hash(p + 64, 4096 - 64);
  mav__pack_head_put(p, &h);
  return scratch_write(name, p, h.file_bytes);
}

#define J(fields, tensors) "{\"format\":\"mav.pack\"," fields ",\"meta\":{},\"tensors\":[" tensors "]}"
#define RANKS "\"rank\":0,\"ranks\":1"
#define P(tensors) J(RANKS ",\"chunk_bytes\":4096", tensors)
#define T(name, dtype, shape, chunk, chunks)                                                                                 \
  "{\"name\":\"" name "\",\"dtype\":\"" dtype "\",\"shape\":" shape ",\"layout\":\"row\",\"act\":\"none\",\"chunk\":" #chunk \
  ",\"chunks\":" #chunks "}"
#define W(scale, act, more) \
  "{\"name\":\"w\",\"dtype\":\"u8\",\"shape\":[0],\"layout\":\"row\",\"scale\":" scale ",\"act\":" act more ",\"chunk\":0,\"chunks\":0}"
#define RAW(at, n) \
  { .offset = (at), .stored = (n), .raw = (n) }

static const lie lies[] = {
    {.json = "", .reason = "sizes in its head"},
    {.json = "{", .reason = "malformed JSON"},
    {.json = "[]", .reason = "format is not"},
    {.json = "{\"format\":\"mav.pack\"}", .reason = "rank and ranks"},
    {.json = J("\"rank\":1,\"ranks\":1,\"chunk_bytes\":4096", ""), .reason = "rank and ranks"},
    {.json = J("\"rank\":-1,\"ranks\":1,\"chunk_bytes\":4096", ""), .reason = "rank and ranks"},
    {.json = J("\"rank\":0,\"ranks\":0,\"chunk_bytes\":4096", ""), .reason = "rank and ranks"},
    {.json = J(RANKS, ""), .reason = "chunk_bytes"},
    {.json = J(RANKS ",\"chunk_bytes\":0", ""), .reason = "chunk_bytes"},
    {.json = J(RANKS ",\"chunk_bytes\":4097", ""), .reason = "chunk_bytes"},
    {.json = J(RANKS ",\"chunk_bytes\":2147483648", ""), .reason = "chunk_bytes"},
    {.json = "{\"format\":\"mav.pack\"," RANKS ",\"chunk_bytes\":4096,\"meta\":3,\"tensors\":[]}", .reason = "meta is a number"},
    {.json = "{\"format\":\"mav.pack\"," RANKS ",\"chunk_bytes\":4096,\"meta\":{},\"tensors\":{}}", .reason = "tensors is an object"},
    {.json = P("7"), .reason = "without a name"},
    {.json = P(T("", "u8", "[0]", 0, 0)), .reason = "without a name"},
    {.json = P(T("w", "U8", "[0]", 0, 0)), .reason = "\"w\": its dtype"},
    {.json = P(T("w", "f64", "[0]", 0, 0)), .reason = "\"w\": its dtype"},
    {.json = P("{\"name\":\"w\",\"dtype\":\"u8\",\"shape\":[0]}"), .reason = "\"w\": it has no layout"},
    {.json = P(T("w", "u8", "3", 0, 0)), .reason = "\"w\": shape is not an array"},
    {.json = P(T("w", "u8", "[0,1,1,1,1]", 0, 0)), .reason = "\"w\": shape is not an array"},
    {.json = P(T("w", "u8", "[-1]", 0, 0)), .reason = "\"w\": shape[0]"},
    {.json = P(T("w", "u8", "[1,0.5]", 0, 0)), .reason = "\"w\": shape[1]"},
    {.json = P(T("w", "i64", "[9007199254740992,0,9007199254740992]", 0, 0)), .reason = "\"w\": the product"},
    {.json = P(T("w", "u8", "[0]", 0, 0) "," T("w", "u8", "[0]", 0, 0)), .reason = "\"w\": is there twice"},
    {.json = P(T("w", "u8", "[5]", 0, 1)), .reason = "\"w\": its chunks are not in the table"},
    {.json = P(T("w", "u8", "[5]", 0, 0)), .reason = "\"w\": chunk and chunks are not 0 and 1"},
    {.json = P(T("w", "u8", "[5]", 1, 1)), .chunk = {RAW(0, 5)}, .chunks = 1, .end = 5, .reason = "chunk and chunks"},
    {.json = P(T("w", "u8", "[4097]", 0, 1)), .chunk = {RAW(0, 4096)}, .chunks = 1, .end = 4096, .reason = "not 0 and 2"},
    {.json = P(""), .chunk = {RAW(0, 5)}, .chunks = 1, .end = 5, .reason = "1 chunks belong to no tensor"},
    {.json = P(""), .end = 5, .reason = "5 bytes at the end"},
    {.json = P(T("w", "u8", "[5]", 0, 1)), .chunk = {RAW(0, 5)}, .chunks = 1, .end = 6, .reason = "1 bytes at the end"},
    {.json = P(T("w", "u8", "[5]", 0, 1)), .chunk = {RAW(0, 5)}, .chunks = 1, .end = 4, .reason = "ends past the file"},
    {.json = P(T("w", "u8", "[5]", 0, 1)), .chunk = {RAW(0, 4)}, .chunks = 1, .end = 4, .reason = "has 4 bytes; 5 are expected"},
    {.json = P(T("w", "u8", "[5]", 0, 1)), .chunk = {RAW(64, 5)}, .chunks = 1, .end = 69, .reason = "is at byte 4160; its place is 4096"},
    {.json = P(T("w", "u8", "[5]", 0, 1)), .chunk = {RAW(UINT64_MAX - 4096, 5)}, .chunks = 1, .end = 5, .reason = "its place is"},
    {.json = P(T("w", "u8", "[5]", 0, 1)), .chunk = {{.raw = 5, .stored = 6}}, .chunks = 1, .end = 6, .reason = "cannot be stored in 6"},
    {.json = P(T("w", "u8", "[5]", 0, 1)),
     .chunk = {{.raw = 5, .stored = 5, .codec = 1}},
     .chunks = 1,
     .end = 5,
     .reason = "cannot be stored"},
    {.json = P(T("w", "u8", "[5]", 0, 1)), .chunk = {{.raw = 5, .stored = 0, .codec = 1}}, .chunks = 1, .reason = "cannot be stored"},
    {.json = P(T("w", "u8", "[4096]", 0, 1)),
     .chunk = {{.raw = 4096, .stored = 16, .codec = 1}},
     .chunks = 1,
     .end = 16,
     .reason = "cannot be stored"},
    {.json = P(T("w", "u8", "[4096]", 0, 1)),
     .chunk = {{.raw = 4096, .stored = 99, .codec = 2}},
     .chunks = 1,
     .end = 99,
     .reason = "codec 2"},
    {.json = P(T("w", "u8", "[5]", 0, 1)), .chunk = {{.raw = 5, .stored = 5, .codec = 3}}, .chunks = 1, .end = 5, .reason = "codec 3"},
    {.json = P(T("w", "u8", "[5]", 0, 1)), .chunk = {{.raw = 5, .stored = 5, .reserved = 1}}, .chunks = 1, .end = 5, .reason = "codec 0"},
    {.json = P(T("v", "u8", "[4097]", 0, 2) "," T("w", "u8", "[5]", 2, 1)),
     .chunk = {RAW(0, 4096), RAW(4096, 1), RAW(4096 + 64, 5)},
     .chunks = 3,
     .end = 4096 + 69,
     .reason = "\"w\": chunk 2 is at"},
    {.json = P(T("v", "u8", "[4097]", 0, 2) "," T("w", "u8", "[5]", 2, 1)),
     .chunk = {RAW(0, 4096), RAW(0, 1), RAW(8192, 5)},
     .chunks = 3,
     .end = 8197,
     .reason = "\"v\": chunk 1 is at"},
    {.json = P(W("3", "\"none\"", "")), .reason = "scale is a number"},
    {.json = P(W("null", "\"hot\"", "")), .reason = "act is none of"},
    {.json = P(W("null", "4", "")), .reason = "act is none of"},
    {.json = P(W("null", "\"dynamic\"", "")), .reason = "act is dynamic, but it has no scale"},
    {.json = P(W("\"s\"", "\"none\"", "")), .reason = "its scale, \"s\", is not"},
    {.json = P(W("\"w\"", "\"none\"", "")), .reason = "its scale, \"w\", is not"},
    {.json = P(W("\"s\"", "\"none\"", "") "," T("s", "bf16", "[0]", 0, 0)), .reason = "its scale, \"s\", is not"},
    {.json = P(W("\"s\"", "\"static\"", "") "," T("s", "f32", "[0]", 0, 0)), .reason = "in_scale"},
    {.json = P(W("\"s\"", "\"static\"", ",\"in_scale\":0") "," T("s", "f32", "[0]", 0, 0)), .reason = "in_scale"},
    {.json = P(W("\"s\"", "\"static\"", ",\"in_scale\":1e300") "," T("s", "f32", "[0]", 0, 0)), .reason = "in_scale"},
};

static void test_lies(void **state) {
  (void)state;
  int64_t live = mav__mem_live();
  mav_pack *p = (mav_pack *)1;
  mav_diag diag = {0};
  for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
    mav_err err = mav_pack_open(&p, craft("lie.mav", &lies[i], 1, 0), &diag);
    if (err != MAV_ERR_FORMAT || !strstr(diag.text, lies[i].reason) || !strstr(diag.text, "lie.mav"))
      fail_msg("%s\n  gave %s: %s\n  wanted %s", lies[i].json, mav_err_name(err), diag.text, lies[i].reason);
    assert_null(p);
    assert_string_equal(diag.op, "pack_open");
  }
  assert_int_equal(mav__mem_live(), live);
  const lie truth = {.json = P(T("v", "u8", "[4097]", 0, 2) "," T("w", "u8", "[5]", 2, 1)),
                     .chunk = {RAW(0, 4096), RAW(4096, 1), RAW(8192, 5)},
                     .chunks = 3,
                     .end = 8197};
  p = open_pack(craft("true.mav", &truth, 1, 0));
  assert_int_equal(mav_pack_get(p, 0)->chunks, 2);
  mav_pack_release(p);
  const lie scaled = {.json = P(W("\"s\"", "\"static\"", ",\"in_scale\":0.5") "," T("s", "f32", "[0]", 0, 0))};
  p = open_pack(craft("true.mav", &scaled, 1, 0));
  assert_true(mav_pack_get(p, 0)->in_scale == 0.5f);
  mav_pack_release(p);
  assert_int_equal(mav_pack_open(&p, craft("new.mav", &truth, 2, 0), &diag), MAV_ERR_UNSUPPORTED);
  assert_non_null(strstr(diag.text, "version 2"));
  assert_int_equal(mav_pack_open(&p, craft("flag.mav", &truth, 1, 1), &diag), MAV_ERR_FORMAT);
  /* LZ4 data that is malformed under a good hash. */
  const lie bad = {.json = P(T("w", "u8", "[4096]", 0, 1)), .chunk = {{.raw = 4096, .stored = 99, .codec = 1}}, .chunks = 1, .end = 99};
  unsigned char out[4096];
  p = open_pack(craft("bad.mav", &bad, 1, 0));
  assert_int_equal(mav_pack_read(p, 0, 0, 4096, out, 1, &diag), MAV_ERR_FORMAT);
  assert_non_null(strstr(diag.text, "malformed"));
  assert_int_equal(mav_pack_verify(p, 0, 1, &diag), MAV_ERR_FORMAT);
  mav_pack_release(p);
}

/* ---- size, memory ---- */

/* A terabyte of zeros that takes no room: opening touches the header alone. */
static void test_terabyte(void **state) {
  (void)state;
  enum { CHUNKS = 65536, CHUNK = 16 << 20 };
  const char *json = J(RANKS ",\"chunk_bytes\":16777216", T("w", "u8", "[1099511627776]", 0, 65536)), *path = scratch_path("tera.mav");
  size_t n = strlen(json), padded = (n + 63) / 64 * 64, start = (64 + padded + CHUNKS * 40 + 4095) / 4096 * 4096;
  const uint64_t bytes = start + ((uint64_t)1 << 40);
  unsigned char *zeros = calloc(1, CHUNK), *p = calloc(1, start), last[100] = {1}, resident;
  memset(p + 64, ' ', padded);
  memcpy(p + 64, json, n);
  mav__pack_chunk c = {.stored = CHUNK, .raw = CHUNK, .hash = mav__pack_hash(zeros, CHUNK)};
  for (uint64_t i = 0; i < CHUNKS; i++) {
    c.offset = start + i * CHUNK;
    mav__pack_chunk_put(p + 64 + padded + i * 40, &c);
  }
  mav__pack_head_put(p, &(mav__pack_head){.version = 1,
                                          .json_bytes = padded,
                                          .chunks = CHUNKS,
                                          .data_start = start,
                                          .file_bytes = bytes,
                                          .hash = mav__pack_hash(p + 64, start - 64)});
  scratch_write("tera.mav", p, start);
  free(p);
  free(zeros);
  if (truncate(path, (off_t)bytes) != 0) {
    remove(path);
    skip(); /* a file system without large sparse files */
  }
  mav_pack *pack = open_pack(path);
  const mav_pack_entry *e = mav_pack_get(pack, 0);
  assert_true(e->data && e->bytes == (size_t)1 << 40 && e->chunks == CHUNKS);
  for (uint64_t at = 1; at < 16; at++) { /* no page of the data was read */
    assert_int_equal(mincore((char *)(uintptr_t)e->data + (at << 36), 4096, &resident), 0);
    assert_int_equal(resident & 1, 0);
  }
  assert_int_equal(mav_pack_read(pack, 0, e->bytes - 100, 100, last, 1, NULL), MAV_OK);
  assert_int_equal(last[0], 0);
  mav_pack_release(pack);
  remove(path);
}

static mav_err use_everything(mav_diag *diag) {
  mav_pack *p = NULL;
  mav_err err = sample_write(scratch_path("x"), &sample_plan, diag);
  if (!err) err = mav_pack_open(&p, scratch_path("x"), diag);
  unsigned char out[10];
  for (int i = 0; !err && i < SAMPLE_COUNT; i++) {
    mav_tensor *t = NULL;
    if (sample_items[i].layout) continue;
    err = mav_pack_tensor(p, i, rt, &t);
    if (err && diag) *diag = *mav_runtime_diag(rt);
    mav_tensor_release(t);
    if (!err) err = mav_pack_verify(p, i, 1, diag);
    if (!err && sample_size(i) > 10) err = mav_pack_read(p, i, 1, 9, out, 1, diag);
  }
  mav_pack_release(p);
  return err;
}

static void test_failing_memory(void **state) {
  (void)state;
  int64_t allocs = mav__mem_allocs(), live = mav__mem_live();
  scratch_clear();
  assert_int_equal(use_everything(NULL), MAV_OK);
  allocs = mav__mem_allocs() - allocs;
  assert_true(allocs > 60);
  int failures = 0;
  for (int64_t n = 1; n <= allocs; n++) {
    mav_diag diag = {0};
    mav__mem_fail_at(n);
    mav_err err = use_everything(&diag);
    mav__mem_fail_at(0);
    if (err && (err != MAV_ERR_NOMEM || diag.code != err)) fail_msg("allocation %d: %s: %s", (int)n, mav_err_name(err), diag.text);
    failures += err != MAV_OK;
    assert_int_equal(mav__mem_live(), live);
  }
  assert_true(failures + 4 >= allocs); /* syncing a directory is done without when memory fails */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trip),   cmocka_unit_test(test_tensors),        cmocka_unit_test(test_scale_that_does_not_fit),
      cmocka_unit_test(test_flipped_bits), cmocka_unit_test(test_cut_files),      cmocka_unit_test(test_lies),
      cmocka_unit_test(test_terabyte),     cmocka_unit_test(test_failing_memory),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
