/* kernels/cpu/dot.c - the tiles of dot.h and the choice among them.
 *
 * Tried, one token from memory (GB/s beside 29 of a plain sweep, one thread, AVX-512, bf16): 8 rows side by side 19; prefetching
 * each row's own next lines 20; the next rows' same columns 22; the next rows' lines in order 24 to 28 (this one). Four
 * accumulators on one row: 23. Many tokens, long rows: columns in stages of 1024 with the accumulators waiting in between, so that
 * a token tile fits the first-level cache: 100 GFLOP/s a thread instead of 150 (short runs of a row defeat the prefetcher).
 */
#include "dot.h"

#define EACH(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < (n); i++)

/* out[t * ldo + r] = the sum of acc[r][t], four at a time where they lie side by side. */
V16_INLINE void store_sums(const int NR, const int TR, dot_vec acc[8][8][DOT_PARTS], float *out, int64_t ldo) {
#define LANES(r, t) dot_lanes(acc[r][t])
  const int many = NR % 4 == 0 ? TR : NR == 2 ? TR / 2 * 2 : TR / 4 * 4; /* tokens that are stored four sums at a time */
  if (NR % 4 == 0) {
    EACH(t, TR) EACH(g, NR / 4)
    _mm_storeu_ps(out + t * ldo + 4 * g, v16_sum4(LANES(4 * g, t), LANES(4 * g + 1, t), LANES(4 * g + 2, t), LANES(4 * g + 3, t)));
  } else if (NR == 2) {
    EACH(g, TR / 2) {
      const __m128 s = v16_sum4(LANES(0, 2 * g), LANES(1, 2 * g), LANES(0, 2 * g + 1), LANES(1, 2 * g + 1));
      _mm_storel_pi((__m64 *)(out + 2 * g * ldo), s);
      _mm_storeh_pi((__m64 *)(out + (2 * g + 1) * ldo), s);
    }
  } else {
    EACH(g, TR / 4) {
      float four[4];
      _mm_storeu_ps(four, v16_sum4(LANES(0, 4 * g), LANES(0, 4 * g + 1), LANES(0, 4 * g + 2), LANES(0, 4 * g + 3)));
      EACH(i, 4) out[(4 * g + i) * ldo] = four[i];
    }
  }
  EACH(i, TR - many) EACH(r, NR) out[(many + i) * ldo + r] = v16_sum(LANES(r, many + i));
#undef LANES
}

/* One block of columns: row r's bytes are at w + r * stride, token t's activations at x + t * ld. */
V16_INLINE void step(const int32_t dtype, const int NR, const int TR, const uint8_t *w, int64_t stride, const float *x, int64_t ld,
                     dot_vec acc[8][8][DOT_PARTS]) {
  const int steps = dtype == MAVK_F8 ? 4 : dtype == MAVK_BF16 ? 2 : 1;
  const int64_t part_bytes = (dtype == MAVK_F16 ? 32 : 64) / DOT_PARTS;
  EACH(h, DOT_PARTS) {
    dot_raw raw[8];
    EACH(r, NR) if (dtype != MAVK_F16) raw[r] = dot_raw_load(w + r * stride + h * part_bytes);
    EACH(j, steps) {
      dot_vec wide[8];
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

/* One tile: NR rows at w, TR tokens; meanwhile as many bytes from `ahead` on are prefetched. Everything is a constant after
 * inlining. */
V16_INLINE void tile(const int32_t dtype, const int NR, const int TR, const uint8_t *w, int64_t stride, int64_t K, const float *x, int64_t ld,
                     float *out, int64_t ldo, const char *ahead) {
  const int64_t bytes = dtype == MAVK_F16 ? 32 : 64, columns = bytes / dot_element(dtype);
  const int64_t blocks = K / columns, rest = K % columns;
  dot_vec acc[8][8][DOT_PARTS];
  EACH(r, NR) EACH(t, TR) EACH(h, DOT_PARTS) acc[r][t][h] = dot_zero();
  for (int64_t b = 0; b < blocks; b++) {
    EACH(r, NR) _mm_prefetch(ahead + (b * NR + r) * bytes, _MM_HINT_T0);
    step(dtype, NR, TR, w + b * bytes, stride, x + b * columns, ld, acc);
  }
  if (rest) { /* the last columns, zero padded */
    uint8_t padded[8][64] = {{0}};
    EACH(r, NR) memcpy(padded[r], w + r * stride + blocks * bytes, (size_t)(rest * dot_element(dtype)));
    step(dtype, NR, TR, padded[0], 64, x + blocks * columns, ld, acc);
  }
  store_sums(NR, TR, acc, out, ldo);
}

typedef void tile_fn(const uint8_t *w, int64_t stride, int64_t K, const float *x, int64_t ld, float *out, int64_t ldo, const char *ahead);

#define TILE(type, nr, tr)                                                                                                       \
  static void tile_##type##_##nr##_##tr(const uint8_t *w, int64_t stride, int64_t K, const float *x, int64_t ld, float *out,     \
                                        int64_t ldo, const char *ahead) {                                                        \
    tile(MAVK_##type, nr, tr, w, stride, K, x, ld, out, ldo, ahead);                                                             \
  }
#define NAME(type, nr, tr) tile_##type##_##nr##_##tr

/* Tiles by tokens: rows side by side, and the most tokens of one tile. */
#if MAVK_ISA_avx512
#define TOKENS_MAX 6
#define SIZES(X, type) X(type, 4, 1) X(type, 4, 2) X(type, 4, 3) X(type, 4, 4) X(type, 4, 5) X(type, 4, 6)
#define SIZES_F8 SIZES
#else
#define TOKENS_MAX 6
#define SIZES(X, type) X(type, 4, 1) X(type, 2, 2) X(type, 2, 3) X(type, 1, 4) X(type, 1, 5) X(type, 1, 6)
#define SIZES_F8(X, type) X(type, 4, 1) X(type, 2, 2) X(type, 1, 3) X(type, 1, 4) X(type, 1, 5) X(type, 1, 6) /* 2 x 3 spills */
#endif
#define ONES(X, type) X(type, 1, 1) X(type, 1, 2) X(type, 1, 3)
#define ONES_MORE(X, type) X(type, 1, 4) X(type, 1, 5) X(type, 1, 6)
#define ALL(type)         \
  SIZES(TILE, type)       \
  ONES(TILE, type)
ALL(F32)
ALL(BF16)
ALL(F16)
SIZES_F8(TILE, F8)
TILE(F8, 1, 1) TILE(F8, 1, 2)
#if MAVK_ISA_avx512
ONES_MORE(TILE, F32)
ONES_MORE(TILE, BF16)
ONES_MORE(TILE, F16)
TILE(F8, 1, 3)
ONES_MORE(TILE, F8)
#endif

typedef struct choice {
  int rows;
  tile_fn *many, *one;
} choice;

#define ENTRY(type, nr, tr) [tr - 1] = {nr, NAME(type, nr, tr), NAME(type, 1, tr)},
static const choice choices[MAVK_F8 + 1][TOKENS_MAX] = {
    [MAVK_F32] = {SIZES(ENTRY, F32)},
    [MAVK_BF16] = {SIZES(ENTRY, BF16)},
    [MAVK_F16] = {SIZES(ENTRY, F16)},
    [MAVK_F8] = {SIZES_F8(ENTRY, F8)},
};

static void scale_rows(const mavk_weight *w, int64_t e, int64_t n0, int64_t n1, const float *row_scale, int64_t T, float *y, int64_t ldy) {
  const float back = dot_prescale(w->a.dtype);
  for (int64_t t = 0; t < T; t++) {
    const float rs = row_scale ? row_scale[t] : 1;
    for (int64_t n = n0; n < n1; n++) {
      const float s = w->scale ? w->scale[e * w->scale_s[0] + n * w->scale_s[1]] : 1;
      y[t * ldy + n - n0] = y[t * ldy + n - n0] * back * s * rs;
    }
  }
}

#define AHEAD ((int64_t)8 << 10) /* bytes; at least one tile's rows */

void MAVK_CPU(dot)(const mavk_weight *w, int64_t e, int64_t n0, int64_t n1, const packed *x, int64_t T, float *y, int64_t ldy,
                   const void *next) {
  const int32_t type = w->a.dtype;
  const int64_t K = w->a.n[w->a.nd - 1], stride = w->a.s[w->a.nd - 2] * dot_element(type), bytes = (n1 - n0) * stride;
  const uint8_t *rows = dot_row(w, e, n0);
  /* Tokens in the outer loop: their tile stays in the first-level cache while the weight rows of this piece (small enough
   * for the second) pass by. Only the first pass reads memory. */
  for (int64_t t = 0; t < T;) {
    const int64_t left = T - t;
    const int64_t tr = left <= TOKENS_MAX ? left : left < 2 * TOKENS_MAX ? (left + 1) / 2 : TOKENS_MAX;
    const choice *c = &choices[type][tr - 1];
    const int64_t ahead = mavk_max(AHEAD, c->rows * stride);
    for (int64_t n = 0, step; n < n1 - n0; n += step) {
      step = n + c->rows <= n1 - n0 ? c->rows : 1;
      const int64_t at = n * stride + ahead;
      const uint8_t *after = t > 0 ? rows + n * stride : at < bytes ? rows + at : next ? (const uint8_t *)next + (at - bytes) : rows;
      (step == 1 ? c->one : c->many)(rows + n * stride, stride, K, x->x + t * x->ld, x->ld, y + t * ldy + n, ldy, (const char *)after);
    }
    t += tr;
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
