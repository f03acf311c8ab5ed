/* kernels/layout.h - where the elements of a weight lie, shared by kernels, tools and tests. Index functions and copies, plain C.
 *
 *   row        (N, K) row after row: element (r, k) at r K + k.
 *
 *   m16n8k16   8-bit codes in the order in which a warp loads the A operand of mma.m16n8k16 (PTX ISA, "Matrix Fragments for
 *              mma.m16n8k16"). Tiles of 16 rows x 32 columns, 512 bytes, row of tiles after row of tiles; a tile is 32 lanes x 16
 *              bytes, so that lane l of a warp loads its 16 bytes at tile + 16 l, all 32 lanes one after the other. They are the
 *              eight A registers of two steps of 16 columns, as codes:
 *
 *                lane  4 (r % 8) + k % 8 / 2        the PTX groupID and threadID_in_group
 *                byte  4 (k / 8) + 2 (k % 2) + r / 8      for a row r < 16 and a column k < 32 of the tile
 *
 *              So a 32-bit word w = {e0, e2, e1, e3} (lowest byte first) holds (e0, e1) of row r % 8, columns k, k + 1, and (e2, e3)
 *              of row r % 8 + 8: w & 0x00ff00ff and w >> 8 & 0x00ff00ff are two pairs of codes in halves of 16 bits, one shift
 *              away from two registers of f16 pairs: a0 a1 and a2 a3 of word 0, a4 a5 and a6 a7 of word 1, and the next 16 columns
 *              in words 2 and 3.
 *
 *              N must be a multiple of 16, K of 32. Sixteen rows are 16 K bytes, as in row: blocks of 16 rows move as one.
 *
 *   gate, up   rows of two matrices (F, D) as one (2 F, D), eight of gate, then eight of up: in a tile of m16n8k16 a lane then has a row
 *              of gate in c0 c1 and the same row of up in c2 c3 of the accumulator, and SwiGLU needs no exchange.
 *
 * What is called a bijection here is tested as one: tests/kernels/test_layout.c. weights-tools/layouts.lua has the same in Lua. */
#ifndef MAVK_LAYOUT_H
#define MAVK_LAYOUT_H

#include "mavk.h"

#define MAVK_MMA_ROWS 16
#define MAVK_MMA_COLUMNS 32
#define MAVK_MMA_TILE (MAVK_MMA_ROWS * MAVK_MMA_COLUMNS)
#define MAVK_MMA_LANE_BYTES 16

MAVK_FN bool mavk_mma_fits(int64_t N, int64_t K) { return N % MAVK_MMA_ROWS == 0 && K % MAVK_MMA_COLUMNS == 0; }

/* Byte of element (r, k) of a tile. */
MAVK_FN int mavk_mma_tile_at(int r, int k) {
  const int lane = 4 * (r % 8) + k % 8 / 2, byte = 4 * (k / 8) + 2 * (k % 2) + r / 8;
  return lane * MAVK_MMA_LANE_BYTES + byte;
}

/* The element of a byte of a tile. */
MAVK_FN void mavk_mma_tile_of(int at, int *r, int *k) {
  const int lane = at / MAVK_MMA_LANE_BYTES, byte = at % MAVK_MMA_LANE_BYTES;
  *r = lane / 4 + 8 * (byte % 2);
  *k = 8 * (byte / 4) + 2 * (lane % 4) + byte / 2 % 2;
}

/* Byte of element (r, k) of a matrix of K columns. */
MAVK_FN int64_t mavk_mma_at(int64_t r, int64_t k, int64_t K) {
  const int64_t tile = r / MAVK_MMA_ROWS * (K / MAVK_MMA_COLUMNS) + k / MAVK_MMA_COLUMNS;
  return tile * MAVK_MMA_TILE + mavk_mma_tile_at((int)(r % MAVK_MMA_ROWS), (int)(k % MAVK_MMA_COLUMNS));
}

/* The element of a byte of a matrix of K columns. */
MAVK_FN void mavk_mma_of(int64_t at, int64_t K, int64_t *r, int64_t *k) {
  const int64_t tile = at / MAVK_MMA_TILE, across = K / MAVK_MMA_COLUMNS;
  int row, column;
  mavk_mma_tile_of((int)(at % MAVK_MMA_TILE), &row, &column);
  *r = tile / across * MAVK_MMA_ROWS + row;
  *k = tile % across * MAVK_MMA_COLUMNS + column;
}

/* x (N, K) in rows -> y in the layout; they do not overlap. */
MAVK_FN void mavk_mma_pack(uint8_t *y, const uint8_t *x, int64_t N, int64_t K) {
  for (int64_t at = 0; at < N * K; at++) {
    int64_t r, k;
    mavk_mma_of(at, K, &r, &k);
    y[at] = x[r * K + k];
  }
}

/* And back. */
MAVK_FN void mavk_mma_unpack(uint8_t *y, const uint8_t *x, int64_t N, int64_t K) {
  for (int64_t at = 0; at < N * K; at++) {
    int64_t r, k;
    mavk_mma_of(at, K, &r, &k);
    y[r * K + k] = x[at];
  }
}

/* Widens a word of codes to its two pairs, each code in the low byte of a half. */
MAVK_FN void mavk_mma_pairs(uint32_t word, uint32_t *low, uint32_t *high) {
  *low = word & 0x00ff00ffu;
  *high = word >> 8 & 0x00ff00ffu;
}

#define MAVK_GATE_UP_ROWS 8

/* The row, in the matrix of both, of row i of gate (up: false) or of up. */
MAVK_FN int64_t mavk_gate_up_at(int64_t i, bool up) {
  return i / MAVK_GATE_UP_ROWS * (2 * MAVK_GATE_UP_ROWS) + (up ? MAVK_GATE_UP_ROWS : 0) + i % MAVK_GATE_UP_ROWS;
}

/* The row of gate or of up that is row `at` of the matrix of both. */
MAVK_FN int64_t mavk_gate_up_of(int64_t at, bool *up) {
  *up = at % (2 * MAVK_GATE_UP_ROWS) >= MAVK_GATE_UP_ROWS;
  return at / (2 * MAVK_GATE_UP_ROWS) * MAVK_GATE_UP_ROWS + at % MAVK_GATE_UP_ROWS;
}

#endif
