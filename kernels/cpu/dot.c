/* kernels/cpu/dot.c - the tiles of dot.h and the choice among them.
 *
 * Tried: four accumulators per row and one row at a time (slower from cache: more folding); reading each row's own next
 * lines ahead instead of the next rows' (loses 4% from memory: a row is shorter than the hardware's ramp-up).
 */
#include "dot.h"

/* One tile: NR rows at w[r], TR tokens. Everything is a constant after inlining. */
V16_INLINE void tile(const int32_t dtype, const int NR, const int TR, const uint8_t *w, int64_t stride, int64_t K, const float *x, int64_t ld,
                     float *out /* (TR, NR) sums */, int64_t ldo) {
  const int steps = dtype == MAVK_F8 ? 4 : dtype == MAVK_BF16 ? 2 : 1;
  const int64_t bytes = dtype == MAVK_F16 ? 32 : 64, columns = 16 * steps;
  const int64_t blocks = K / columns, rest = K % columns;
  uint8_t padded[8][64];
  v16 acc[8][8];
#pragma GCC unroll 8
  for (int r = 0; r < NR; r++)
#pragma GCC unroll 8
    for (int t = 0; t < TR; t++) acc[r][t] = v16_zero();

#define STEP(source, b)                                                                                                           \
  do {                                                                                                                            \
    raw16 raw[8];                                                                                                                 \
    _Pragma("GCC unroll 8") for (int r = 0; r < NR; r++) if (dtype != MAVK_F16) raw[r] = raw16_load(source);                      \
    _Pragma("GCC unroll 4") for (int j = 0; j < steps; j++) {                                                                     \
      v16 wide[8];                                                                                                                \
      _Pragma("GCC unroll 8") for (int r = 0; r < NR; r++) wide[r] = dtype == MAVK_F8     ? raw16_f8(raw[r], j)                   \
                                                                     : dtype == MAVK_BF16 ? raw16_bf16(raw[r], j)                 \
                                                                     : dtype == MAVK_F16  ? v16_load_f16((const uint16_t *)(source)) \
                                                                                          : raw16_f32(raw[r]);                    \
      _Pragma("GCC unroll 8") for (int t = 0; t < TR; t++) {                                                                      \
        const v16 a = v16_load(x + t * ld + (b) * columns + 16 * j);                                                              \
        _Pragma("GCC unroll 8") for (int r = 0; r < NR; r++) acc[r][t] = v16_fma(wide[r], a, acc[r][t]);                          \
      }                                                                                                                           \
    }                                                                                                                             \
  } while (0)

  for (int64_t b = 0; b < blocks; b++) {
#pragma GCC unroll 8
    for (int r = 0; r < NR; r++) _mm_prefetch((const char *)(w + (r + NR) * stride + b * bytes), _MM_HINT_T0);
    STEP(w + r * stride + b * bytes, b);
  }
  if (rest) {
#pragma GCC unroll 8
    for (int r = 0; r < NR; r++) {
      memset(padded[r], 0, sizeof padded[r]);
      memcpy(padded[r], w + r * stride + blocks * bytes, (size_t)(rest * (bytes / columns)));
    }
    STEP(padded[r], blocks);
  }
#undef STEP
#pragma GCC unroll 8
  for (int t = 0; t < TR; t++)
#pragma GCC unroll 8
    for (int r = 0; r < NR; r++) out[t * ldo + r] = v16_sum(acc[r][t]);
}

typedef void tile_fn(const uint8_t *w, int64_t stride, int64_t K, const float *x, int64_t ld, float *out, int64_t ldo);

#define TILE(type, nr, tr)                                                                                                       \
  static void tile_##type##_##nr##_##tr(const uint8_t *w, int64_t stride, int64_t K, const float *x, int64_t ld, float *out,     \
                                        int64_t ldo) {                                                                           \
    tile(MAVK_##type, nr, tr, w, stride, K, x, ld, out, ldo);                                                                    \
  }
#define NAME(type, nr, tr) tile_##type##_##nr##_##tr

/* Tiles by tokens: rows side by side, and the most tokens of one tile. */
#if MAVK_ISA_avx512
#define TOKENS_MAX 6
#define SIZES(X, type) X(type, 8, 1) X(type, 8, 2) X(type, 4, 3) X(type, 4, 4) X(type, 4, 5) X(type, 4, 6)
#else
#define TOKENS_MAX 6
#define SIZES(X, type) X(type, 4, 1) X(type, 2, 2) X(type, 2, 3) X(type, 1, 4) X(type, 1, 5) X(type, 1, 6)
#endif
#define ONES(X, type) X(type, 1, 1) X(type, 1, 2) X(type, 1, 3)
#define ONES_MORE(X, type) X(type, 1, 4) X(type, 1, 5) X(type, 1, 6)
#define ALL(type)         \
  SIZES(TILE, type)       \
  ONES(TILE, type)
ALL(F32)
ALL(BF16)
ALL(F16)
ALL(F8)
#if MAVK_ISA_avx512
ONES_MORE(TILE, F32)
ONES_MORE(TILE, BF16)
ONES_MORE(TILE, F16)
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
    [MAVK_F8] = {SIZES(ENTRY, F8)},
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

void MAVK_CPU(dot)(const mavk_weight *w, int64_t e, int64_t n0, int64_t n1, const packed *x, int64_t T, float *y, int64_t ldy) {
  const int32_t type = w->a.dtype;
  const int nd = w->a.nd;
  const int64_t size = dot_element(type), K = w->a.n[nd - 1], stride = w->a.s[nd - 2] * size;
  const uint8_t *base = (const uint8_t *)w->a.p + (nd == 3 ? e * w->a.s[0] * size : 0);
  /* Tokens in the outer loop: their tile stays in the first-level cache while the weight rows of this piece (small enough
   * for the second) pass by. */
  for (int64_t t = 0; t < T;) {
    const int64_t left = T - t;
    const int64_t tr = left <= TOKENS_MAX ? left : left < 2 * TOKENS_MAX ? (left + 1) / 2 : TOKENS_MAX;
    const choice *c = &choices[type][tr - 1];
    int64_t n = n0;
    for (; n + c->rows <= n1; n += c->rows) c->many(base + n * stride, stride, K, x->x + t * x->ld, x->ld, y + t * ldy + n - n0, ldy);
    for (; n < n1; n++) c->one(base + n * stride, stride, K, x->x + t * x->ld, x->ld, y + t * ldy + n - n0, ldy);
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
