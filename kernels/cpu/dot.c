/* kernels/cpu/dot.c - the tiles of dot.h and the choice among them.
 *
 * Tried, one token from memory (GB/s beside 29 of a plain sweep, one thread, AVX-512, bf16): 8 rows side by side 19; prefetching
 * each row's own next lines 20; the next rows' same columns 22; the next rows' lines in order 24 to 28 (this one). Four
 * accumulators on one row: 23. Many tokens, long rows: columns in stages of 1024 with the accumulators waiting in between, so that
 * a token tile fits the first-level cache: 100 GFLOP/s a thread instead of 150 (short runs of a row defeat the prefetcher).
 *
 * Tried, several tokens on AVX2 (multiply-adds a ns, one thread, 51 at most; bf16, rows of 256 columns in the second-level cache; 2, 3,
 * 4, 6 tokens):
 *   26 30 31 34   both halves of the lanes at once: 2 x 2, 2 x 3, 1 x 4, 1 x 6, a call for every tile
 *   24 31 23 22   one half after the other: 6 x 2, 4 x 3, 3 x 4, 2 x 6, rows in the tile function; compilers spill accumulators
 *   33 31 25 34   the same, multiply-adds as asm, everything else left to the compiler
 *   35 38 36 38   a block of columns in one asm statement, nothing spilled
 *   34 39 38 40   the sums of a tile folded in the middle of the next one (this one): at the end of its own they wait for its last
 *                 multiply-adds, and what is in flight meanwhile is too little to fill the gap
 *   31 36 35 37   activations as memory operands, a row's two steps at once (f8 does it so: 27 33 34 37 instead of 24 29 32 36)
 * The last fifth goes into the folding (rows of 512 columns: 36 42 43 45) and, for few tokens, into shifts on the multiplier's port.
 * Long rows, two passes: what a pass reads does not stay in the first-level cache, so they take columns in stages (of 512: 28 with 6
 * tokens and 2048 columns; 1024: 29; 2048: 20, as both halves at once). Two tokens have too many rows side by side then: 2 x 2.
 */
#include "dot.h"

#define EACH(i, n) _Pragma("GCC unroll 12") for (int i = 0; i < (n); i++)

/* Accumulators of a tile, by row and token, as they are summed. */
typedef dot_sum tile_sums[6][6];

/* out[t * ldo + r] = the sum of s[r][t], folded four at a time: four rows of one token, then two rows of two tokens, then four tokens
 * of the last row. */
V16_INLINE void store_sums(const int NR, const int TR, tile_sums s, float *out, int64_t ldo) {
  const int fours = NR / 4 * 4, pairs = NR / 2 * 2;
  if (fours) EACH(t, TR) _mm_storeu_ps(out + t * ldo, dot_sum4(s[0][t], s[1][t], s[2][t], s[3][t]));
  if (pairs > fours)
    EACH(g, (TR + 1) / 2) {
      const int t = 2 * g, u = t + 1 < TR ? t + 1 : t;
      const __m128 f = dot_sum4(s[fours][t], s[fours + 1][t], s[fours][u], s[fours + 1][u]);
      _mm_storel_pi((__m64 *)(out + t * ldo + fours), f);
      if (u > t) _mm_storeh_pi((__m64 *)(out + u * ldo + fours), f);
    }
  if (NR > pairs)
    EACH(g, TR / 4) {
      float four[4];
      _mm_storeu_ps(four, dot_sum4(s[pairs][4 * g], s[pairs][4 * g + 1], s[pairs][4 * g + 2], s[pairs][4 * g + 3]));
      EACH(i, 4) out[(4 * g + i) * ldo + pairs] = four[i];
    }
}

/* What a tile works on: `count` weight rows of K columns, at least as many as its own, and its tokens. */
typedef struct job {
  const uint8_t *w;
  int64_t stride, K; /* bytes; columns */
  const float *x;
  int64_t ld;
  float *out;
  int64_t ldo, count;
  int64_t ahead;       /* bytes from a row to what is prefetched meanwhile */
  const uint8_t *next; /* read after the last row */
} job;

/* The last columns of NR rows, zero padded to a block. */
V16_INLINE void pad_rest(const int NR, uint8_t padded[6][64], const uint8_t *w, int64_t stride, int64_t bytes) {
  memset(padded, 0, 6 * 64);
  EACH(r, NR) memcpy(padded[r], w + r * stride, (size_t)bytes);
}

/* One block of columns in one pass: row r's bytes are at w + r * stride, token t's activations at x + t * ld. */
V16_INLINE void step(const int32_t dtype, const int NR, const int TR, const uint8_t *w, int64_t stride, const float *x, int64_t ld,
                     dot_vec acc[6][6][DOT_PARTS]) {
  const int steps = dtype == MAVK_F8 ? 4 : dtype == MAVK_BF16 ? 2 : 1;
  const int64_t part_bytes = (dtype == MAVK_F16 ? 32 : 64) / DOT_PARTS;
  EACH(h, DOT_PARTS) {
    dot_raw raw[6];
    EACH(r, NR) if (dtype != MAVK_F16) raw[r] = dot_raw_load(w + r * stride + h * part_bytes);
    EACH(j, steps) {
      dot_vec wide[6];
      EACH(r, NR)
      wide[r] = dtype == MAVK_F8     ? dot_f8(raw[r], j)
                : dtype == MAVK_BF16 ? dot_bf16(raw[r], j)
                : dtype == MAVK_F16  ? dot_f16(w + r * stride + h * part_bytes)
                                     : dot_f32(raw[r]);
      EACH(t, TR) {
        const dot_vec a = dot_load(x + t * ld + 16 * j + DOT_LANES * h);
        EACH(r, NR) acc[r][t][h] = dot_fma(wide[r], a, acc[r][t][h]);
      }
    }
  }
}

/* A tile in one pass over the columns. Everything but the job is a constant after inlining. */
V16_INLINE void whole_tile(const int32_t dtype, const int NR, const int TR, const uint8_t *w, const job *b, const char *ahead,
                           tile_sums s) {
  const int64_t bytes = dtype == MAVK_F16 ? 32 : 64, columns = bytes / dot_element(dtype);
  const int64_t blocks = b->K / columns, rest = b->K % columns;
  dot_vec acc[6][6][DOT_PARTS];
  EACH(r, NR) EACH(t, TR) EACH(h, DOT_PARTS) acc[r][t][h] = dot_zero();
  for (int64_t i = 0; i < blocks; i++) {
    EACH(r, NR) _mm_prefetch(ahead + (i * NR + r) * bytes, _MM_HINT_T0);
    step(dtype, NR, TR, w + i * bytes, b->stride, b->x + i * columns, b->ld, acc);
  }
  if (rest) {
    uint8_t padded[6][64];
    pad_rest(NR, padded, w + blocks * bytes, b->stride, rest * dot_element(dtype));
    step(dtype, NR, TR, padded[0], 64, b->x + blocks * columns, b->ld, acc);
  }
  EACH(r, NR) EACH(t, TR) s[r][t] = dot_folded(acc[r][t]);
}

#if DOT_PARTS == 2
/* One block of columns of one half, for a tile of twelve (2 x 5: ten) accumulators. Accumulators, what is widened and what it is
 * multiplied by take all sixteen registers, which compilers do not manage without spilling; so this is written out.
 * Operands 0 to 11: accumulators by row and token. w, s: rows and their stride; x, l: tokens and theirs; z: what is three rows (4 x 3,
 * 6 x 2) or three tokens on. Registers 12 to 15 are free for use.
 */
#define OP(op, ...) op " " __VA_ARGS__ "\n\t"
#define Y(n) "%%ymm" #n
#define ROW_0 "(%[w])"
#define ROW_1 "(%[w],%[s])"
#define ROW_2 "(%[w],%[s],2)"
#define ROW_3 "(%[z])"
#define ROW_4 "(%[z],%[s])"
#define ROW_5 "(%[z],%[s],2)"
#define TOKEN_0 "(%[x])"
#define TOKEN_1 "(%[x],%[l])"
#define TOKEN_2 "(%[x],%[l],2)"
#define TOKEN_3 "(%[z])"
#define TOKEN_4 "(%[z],%[l])"
#define TOKEN_5 "(%[z],%[l],2)"

/* Row by row of weights: W(row, d) widens to register d, X(t, d) loads a token's activations, FMA(acc, a, b) multiplies. */
#define FMA(acc, a, b) OP("vfmadd231ps", Y(a) ", " Y(b) ", %" #acc)
#define STEP_6_2(W, X) \
  X(0, 12) X(1, 13) \
  W(0, 14) FMA(0, 12, 14) FMA(1, 13, 14) W(1, 15) FMA(2, 12, 15) FMA(3, 13, 15) \
  W(2, 14) FMA(4, 12, 14) FMA(5, 13, 14) W(3, 15) FMA(6, 12, 15) FMA(7, 13, 15) \
  W(4, 14) FMA(8, 12, 14) FMA(9, 13, 14) W(5, 15) FMA(10, 12, 15) FMA(11, 13, 15)
#define STEP_4_3(W, X) \
  X(0, 12) X(1, 13) X(2, 14) \
  W(0, 15) FMA(0, 12, 15) FMA(1, 13, 15) FMA(2, 14, 15) W(1, 15) FMA(3, 12, 15) FMA(4, 13, 15) FMA(5, 14, 15) \
  W(2, 15) FMA(6, 12, 15) FMA(7, 13, 15) FMA(8, 14, 15) W(3, 15) FMA(9, 12, 15) FMA(10, 13, 15) FMA(11, 14, 15)
#define STEP_3_4(W, X) \
  W(0, 13) W(1, 14) W(2, 15) \
  X(0, 12) FMA(0, 12, 13) FMA(4, 12, 14) FMA(8, 12, 15) X(1, 12) FMA(1, 12, 13) FMA(5, 12, 14) FMA(9, 12, 15) \
  X(2, 12) FMA(2, 12, 13) FMA(6, 12, 14) FMA(10, 12, 15) X(3, 12) FMA(3, 12, 13) FMA(7, 12, 14) FMA(11, 12, 15)
#define STEP_2_5(W, X) \
  W(0, 14) W(1, 15) \
  X(0, 12) FMA(0, 12, 14) FMA(5, 12, 15) X(1, 13) FMA(1, 13, 14) FMA(6, 13, 15) X(2, 12) FMA(2, 12, 14) FMA(7, 12, 15) \
  X(3, 13) FMA(3, 13, 14) FMA(8, 13, 15) X(4, 12) FMA(4, 12, 14) FMA(9, 12, 15)
#define STEP_2_6(W, X) \
  W(0, 14) W(1, 15) \
  X(0, 12) FMA(0, 12, 14) FMA(6, 12, 15) X(1, 13) FMA(1, 13, 14) FMA(7, 13, 15) X(2, 12) FMA(2, 12, 14) FMA(8, 12, 15) \
  X(3, 13) FMA(3, 13, 14) FMA(9, 13, 15) X(4, 12) FMA(4, 12, 14) FMA(10, 12, 15) X(5, 13) FMA(5, 13, 14) FMA(11, 13, 15)
#define LOAD_0(t, d) OP("vmovups", TOKEN_##t ", " Y(d))
#define LOAD_1(t, d) OP("vmovups", "64" TOKEN_##t ", " Y(d))
#define WIDE_F32(r, d) OP("vmovups", ROW_##r ", " Y(d))
#define WIDE_F16(r, d) OP("vcvtph2ps", ROW_##r ", " Y(d))
#define WIDE_EVEN(r, d) OP("vmovdqu", ROW_##r ", " Y(d)) OP("vpslld", "$16, " Y(d) ", " Y(d))
#define WIDE_ODD(r, d) OP("vmovdqu", ROW_##r ", " Y(d)) OP("vpand", "%[mask], " Y(d) ", " Y(d))
#define BLOCK_F32(nr, tr) STEP_##nr##_##tr(WIDE_F32, LOAD_0)
#define BLOCK_F16(nr, tr) STEP_##nr##_##tr(WIDE_F16, LOAD_0)
#define BLOCK_BF16(nr, tr) STEP_##nr##_##tr(WIDE_EVEN, LOAD_0) STEP_##nr##_##tr(WIDE_ODD, LOAD_1)

/* Of f8, a row's four steps at once, which share the moves; activations come from memory. 12: mask, 13: widened, 14: even codes of the
 * row, 15: odd ones. */
#define MEM(acc, at, t) OP("vfmadd231ps", at TOKEN_##t ", " Y(13) ", %" #acc)
#define MEM_2(at, a, b) MEM(a, at, 0) MEM(b, at, 1)
#define MEM_3(at, a, b, c) MEM_2(at, a, b) MEM(c, at, 2)
#define MEM_4(at, a, b, c, d) MEM_3(at, a, b, c) MEM(d, at, 3)
#define MEM_5(at, a, b, c, d, e) MEM_4(at, a, b, c, d) MEM(e, at, 4)
#define MEM_6(at, a, b, c, d, e, f) MEM_5(at, a, b, c, d, e) MEM(f, at, 5)
#define F8(r, TOKENS, ...) \
  OP("vmovdqu", ROW_##r ", " Y(14)) OP("vpsraw", "$4, " Y(14) ", " Y(15)) \
  OP("vpsllw", "$8, " Y(14) ", " Y(14)) OP("vpsraw", "$4, " Y(14) ", " Y(14)) \
  OP("vpslld", "$16, " Y(14) ", " Y(13)) OP("vpand", Y(12) ", " Y(13) ", " Y(13)) TOKENS("", __VA_ARGS__) \
  OP("vpslld", "$16, " Y(15) ", " Y(13)) OP("vpand", Y(12) ", " Y(13) ", " Y(13)) TOKENS("64", __VA_ARGS__) \
  OP("vpand", Y(12) ", " Y(14) ", " Y(13)) TOKENS("128", __VA_ARGS__) \
  OP("vpand", Y(12) ", " Y(15) ", " Y(13)) TOKENS("192", __VA_ARGS__)
#define F8_6_2 F8(0, MEM_2, 0, 1) F8(1, MEM_2, 2, 3) F8(2, MEM_2, 4, 5) F8(3, MEM_2, 6, 7) F8(4, MEM_2, 8, 9) F8(5, MEM_2, 10, 11)
#define F8_4_3 F8(0, MEM_3, 0, 1, 2) F8(1, MEM_3, 3, 4, 5) F8(2, MEM_3, 6, 7, 8) F8(3, MEM_3, 9, 10, 11)
#define F8_3_4 F8(0, MEM_4, 0, 1, 2, 3) F8(1, MEM_4, 4, 5, 6, 7) F8(2, MEM_4, 8, 9, 10, 11)
#define F8_2_5 F8(0, MEM_5, 0, 1, 2, 3, 4) F8(1, MEM_5, 5, 6, 7, 8, 9)
#define F8_2_6 F8(0, MEM_6, 0, 1, 2, 3, 4, 5) F8(1, MEM_6, 6, 7, 8, 9, 10, 11)
#define BLOCK_F8(nr, tr) OP("vmovdqa", "%[mask], " Y(12)) F8_##nr##_##tr

#define BLOCK(type, nr, tr)                                                                                                              \
  if (dtype == MAVK_##type && NR == nr && TR == tr)                                                                                      \
    __asm__ volatile(BLOCK_##type(nr, tr)                                                                                                \
                     : "+x"(c[0]), "+x"(c[1]), "+x"(c[2]), "+x"(c[3]), "+x"(c[4]), "+x"(c[5]), "+x"(c[6]), "+x"(c[7]),                   \
                       "+x"(c[8]), "+x"(c[9]), "+x"(c[10]), "+x"(c[11])                                                                  \
                     : [w] "r"(w), [s] "r"(s), [x] "r"(x), [l] "r"(l), [z] "r"(z), [mask] "m"(masks[dtype == MAVK_F8])                   \
                     : "ymm12", "ymm13", "ymm14", "ymm15", "memory");
#define BLOCKS(nr, tr) BLOCK(F32, nr, tr) BLOCK(F16, nr, tr) BLOCK(BF16, nr, tr) BLOCK(F8, nr, tr)

#define EIGHT(x) {x, x, x, x, x, x, x, x}
static const struct {
  _Alignas(32) uint32_t lanes[8];
} masks[2] = {{EIGHT(0xffff0000)}, {EIGHT(0x87f00000)}};

V16_INLINE void block(const int32_t dtype, const int NR, const int TR, const uint8_t *w, int64_t s, const char *x, int64_t l, const char *z,
                      dot_vec c[12]) {
  BLOCKS(6, 2)
  BLOCKS(4, 3)
  BLOCKS(3, 4)
  BLOCKS(2, 5)
  BLOCKS(2, 6)
}

/* `blocks` blocks of one half. */
V16_INLINE void half_run(const int32_t dtype, const int NR, const int TR, const uint8_t *w, int64_t s, const float *x, int64_t ld,
                         int64_t blocks, const char *ahead, dot_vec c[12]) {
  const int64_t bytes = dtype == MAVK_F16 ? 32 : 64, columns = bytes / dot_element(dtype);
  const char *at = (const char *)x, *z = NR > 3 ? (const char *)w + 3 * s : at + 12 * ld;
  for (; blocks > 0; blocks--) {
    EACH(r, (NR + 1) / 2) _mm_prefetch(ahead + 2 * r * bytes, _MM_HINT_T0);
    block(dtype, NR, TR, w, s, at, 4 * ld, z, c);
    ahead += NR * bytes;
    w += bytes;
    at += columns * 4;
    z += NR > 3 ? bytes : columns * 4;
  }
}

/* A store now, for the register is needed. */
#define KEEP(to, from)                                               \
  do {                                                               \
    const dot_vec kept = (from);                                     \
    __asm__ volatile("vmovaps %1, %0" : "=m"(to) : "x"(kept));       \
  } while (0)

#define STAGE 512 /* columns, of f32 half as many */

/* A tile in two passes over the columns, one for each half of the lanes. Long rows are taken in stages, so that what the second pass reads
 * is in the first-level cache; accumulators wait in memory. The sums of the tile before, in s, are folded on the way. */
V16_INLINE void halves_tile(const int32_t dtype, const int NR, const int TR, const uint8_t *w, const job *b, const char *ahead,
                            tile_sums s, float *before) {
  const int64_t bytes = dtype == MAVK_F16 ? 32 : 64, columns = bytes / dot_element(dtype), part = bytes / 2;
  const int64_t blocks = b->K / columns, rest = b->K % columns, stage = (dtype == MAVK_F32 ? STAGE / 2 : STAGE) / columns;
  dot_vec low[12], high[12], c[12];
  uint8_t padded[6][64];
  if (rest) pad_rest(NR, padded, w + blocks * bytes, b->stride, rest * dot_element(dtype));
  for (int64_t i = 0;;) {
    const int64_t n = mavk_min(stage, blocks - i);
    const uint8_t *from = w + i * bytes;
    const float *x = b->x + i * columns;
    const char *fetch = ahead + i * NR * bytes;
    const bool last = i + n == blocks;
    if (i == 0) EACH(k, 12) c[k] = dot_zero();
    else EACH(k, NR * TR) c[k] = low[k];
    half_run(dtype, NR, TR, from, b->stride, x, b->ld, n, fetch, c);
    if (last && rest) half_run(dtype, NR, TR, padded[0], 64, x + n * columns, b->ld, 1, fetch, c);
    EACH(k, NR * TR) KEEP(low[k], c[k]);
    if (i == 0) {
      store_sums(NR, TR, s, before, b->ldo);
      EACH(k, 12) c[k] = dot_zero();
    } else EACH(k, NR * TR) c[k] = high[k];
    half_run(dtype, NR, TR, from + part, b->stride, x + 8, b->ld, n, fetch + bytes, c);
    if (last) {
      if (rest) half_run(dtype, NR, TR, padded[0] + part, 64, x + n * columns + 8, b->ld, 1, fetch, c);
      break;
    }
    EACH(k, NR * TR) KEEP(high[k], c[k]);
    i += n;
  }
  EACH(r, NR) EACH(t, TR) KEEP(s[r][t], _mm256_add_ps(low[r * TR + t], c[r * TR + t]));
}
#endif

/* All rows of a job, tile by tile; the last one may overlap the one before it. */
V16_INLINE void tiles(const int32_t dtype, const int NR, const int TR, const bool HALVES, const job *b) {
  const int64_t bytes = b->count * b->stride;
  tile_sums s;
  if (HALVES) EACH(r, NR) EACH(t, TR) memset(&s[r][t], 0, sizeof s[r][t]);
  float *before = b->out;
  for (int64_t n = 0;; n = mavk_min(n + NR, b->count - NR)) {
    const int64_t at = n * b->stride + b->ahead;
    const char *ahead = (const char *)(at < bytes ? b->w + at : b->next + (at - bytes));
#if DOT_PARTS == 2
    if (HALVES) halves_tile(dtype, NR, TR, b->w + n * b->stride, b, ahead, s, before);
    else
#endif
      whole_tile(dtype, NR, TR, b->w + n * b->stride, b, ahead, s);
    if (!HALVES) store_sums(NR, TR, s, b->out + n, b->ldo);
    before = b->out + n;
    if (n + NR == b->count) break;
  }
  if (HALVES) store_sums(NR, TR, s, before, b->ldo);
}

typedef void tile_fn(const job *b);
#define TILE(type, nr, tr, halves) \
  static void tile_##type##_##nr##_##tr(const job *b) { tiles(MAVK_##type, nr, tr, halves, b); }

/* Tiles by tokens: rows, tokens, whether in two passes. */
#define TOKENS_MAX 6
#if DOT_PARTS == 1
#define SIZES(X, type) X(type, 4, 1, 0) X(type, 4, 2, 0) X(type, 4, 3, 0) X(type, 4, 4, 0) X(type, 4, 5, 0) X(type, 4, 6, 0)
#else
#define SIZES(X, type) X(type, 4, 1, 0) X(type, 6, 2, 1) X(type, 4, 3, 1) X(type, 3, 4, 1) X(type, 2, 5, 1) X(type, 2, 6, 1)
#endif
SIZES(TILE, F32)
SIZES(TILE, BF16)
SIZES(TILE, F16)
SIZES(TILE, F8)
#if DOT_PARTS == 2
TILE(F32, 2, 2, 0)
TILE(BF16, 2, 2, 0)
TILE(F16, 2, 2, 0)
TILE(F8, 2, 2, 0)
#endif

typedef struct choice {
  int rows;
  tile_fn *run;
} choice;

#define ENTRY(type, nr, tr, halves) [tr - 1] = {nr, tile_##type##_##nr##_##tr},
static const choice choices[MAVK_F8 + 1][TOKENS_MAX] = {
    [MAVK_F32] = {SIZES(ENTRY, F32)},
    [MAVK_BF16] = {SIZES(ENTRY, BF16)},
    [MAVK_F16] = {SIZES(ENTRY, F16)},
    [MAVK_F8] = {SIZES(ENTRY, F8)},
};

static const choice *choose(int32_t type, int64_t K, int64_t tokens) {
#if DOT_PARTS == 2
#define LONG(type) [MAVK_##type] = {2, tile_##type##_2_2}
  static const choice two[MAVK_F8 + 1] = {LONG(F32), LONG(BF16), LONG(F16), LONG(F8)};
  if (tokens == 2 && K * dot_element(type) > (type == MAVK_F8 ? 512 : 2048)) return &two[type];
#endif
  (void)K;
  return &choices[type][tokens - 1];
}

/* Fewer rows than a tile has: each one fills a tile. */
static void few_rows(const choice *c, const job *b, int64_t tokens) {
  float out[6 * TOKENS_MAX];
  for (int64_t n = 0; n < b->count; n++) {
    c->run(&(job){.w = b->w + n * b->stride, .K = b->K, .x = b->x, .ld = b->ld, .out = out, .ldo = 6, .count = c->rows, .next = b->next});
    for (int64_t t = 0; t < tokens; t++) b->out[t * b->ldo + n] = out[t * 6];
  }
}

/* y times the weight's scale, the row's scale and what the packing took away. */
static void scale_rows(const mavk_weight *w, int64_t e, int64_t n0, int64_t n1, const float *row_scale, int64_t T, float *y, int64_t ldy) {
  const float *scale = w->scale ? w->scale + e * w->scale_s[0] + n0 * w->scale_s[1] : NULL;
  const int64_t count = n1 - n0, by = w->scale ? w->scale_s[1] : 0;
  const v16 back = v16_set1(dot_prescale(w->a.dtype)), one = v16_set1(scale ? *scale : 1);
  float some[16];
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t n = mavk_min(16, count - i);
    v16 s = one;
    if (by) {
      for (int64_t k = 0; k < 16; k++) some[k] = k < n ? scale[(i + k) * by] : 0;
      s = v16_load(some);
    }
    for (int64_t t = 0; t < T; t++) {
      float *at = y + t * ldy + i;
      const v16 rs = v16_set1(row_scale ? row_scale[t] : 1);
      if (n == 16) v16_store(at, v16_mul(v16_mul(v16_mul(v16_load(at), back), s), rs));
      else v16_store_n(at, v16_mul(v16_mul(v16_mul(v16_load_n(at, n), back), s), rs), n);
    }
  }
}

#define AHEAD ((int64_t)8 << 10) /* bytes; at least one tile's rows */

void MAVK_CPU(dot)(const mavk_weight *w, int64_t e, int64_t n0, int64_t n1, const packed *x, int64_t T, float *y, int64_t ldy,
                   const void *next) {
  const int32_t type = w->a.dtype;
  job b = {.w = dot_row(w, e, n0), .stride = w->a.s[w->a.nd - 2] * dot_element(type), .K = w->a.n[w->a.nd - 1], .ld = x->ld, .ldo = ldy,
           .count = n1 - n0};
  if (b.count <= 0) return;
  /* Tokens in the outer loop: their tile stays in the first-level cache while the weight rows of this piece (small enough
   * for the second) pass by. Only the first pass reads memory. */
  for (int64_t t = 0, tokens; t < T; t += tokens) {
    const int64_t left = T - t, passes = mavk_ceil_div(left, TOKENS_MAX);
    tokens = mavk_ceil_div(left, passes);
    const choice *c = choose(type, b.K, tokens);
    b.x = x->x + t * x->ld;
    b.out = y + t * ldy;
    b.ahead = t ? c->rows * b.stride : mavk_max(AHEAD, c->rows * b.stride);
    b.next = t || !next ? b.w : next;
    if (b.count < c->rows) few_rows(c, &b, tokens);
    else c->run(&b);
  }
  if (w->scale || x->row_scale || type == MAVK_F8) scale_rows(w, e, n0, n1, x->row_scale, T, y, ldy);
}

float MAVK_CPU(probe)(const float *p, int64_t n) {
  v16 a = v16_zero(), b = a, c = a, d = a;
  for (int64_t i = 0; i + 64 <= n; i += 64) {
    a = v16_add(a, v16_load(p + i));
    b = v16_add(b, v16_load(p + i + 16));
    c = v16_add(c, v16_load(p + i + 32));
    d = v16_add(d, v16_load(p + i + 48));
  }
  return v16_sum(v16_add(v16_add(a, b), v16_add(c, d)));
}
