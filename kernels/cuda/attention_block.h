/* kernels/cuda/attention_block.h - what a block of attention.cu is told, what it keeps in shared memory, which of its rows go together,
 * and how the results of splits are folded. */
#ifndef MAVK_CUDA_ATTENTION_BLOCK_H
#define MAVK_CUDA_ATTENTION_BLOCK_H

#include "attention.h"

#define WARPS 8
#define THREADS (WARPS * WARP)
#define SCORES (TILE + 4)        /* a query's stride in scores: pairs of 8 lanes in banks of their own */
#define WEIGHTS (TILE / 2 + 4)   /* and in weights, in pairs */
#define WEIGHT_PLANES 2
#define QUERY_PLANES 3
#define TABLE_MAX 512            /* rows whose parents and slots fit shared memory */

struct attention_job {
  const float *q; /* (T, H, C) */
  float *y;       /* (T, H * C) */
  mavk_rows rows;
  mavk_kv kv;
  int64_t H, first, count;     /* rows of this launch */
  int32_t heads, set, sets, group; /* query heads of a kv head; of a block; blocks for them; rows of a block */
  int32_t chunk, splits, folds; /* the most that there can be */
  float scale;
  float *part, *fold;           /* (rows of a launch, H, splits or folds, C) */
  float2 *part_state, *fold_state; /* the same without C: largest score, sum of exponentials */
  uint32_t *tickets;            /* (rows of a launch, kv heads x sets, folds + 1) */
};

/* The rows of a block that see the same past. */
struct past {
  int32_t seq, first, last; /* last: of any of them */
  int32_t in_place;         /* the last position that lies in its place for some of them */
  int32_t side_from;        /* the first one that holds an ancestor of a side branch; IN_PLACE */
  uint64_t rows, sides;     /* sets of rows of the block: all; side branches */
};

template <int NT, int CMAX>
struct attention_shared {
  static const int NQ = 8 * NT, CW = CMAX / 2 + 4;
  uint32_t query[QUERY_PLANES][NQ][CW]; /* pairs of channels */
  float score[2][NQ][SCORES];           /* halves of the channels; weights of a fold */
  uint32_t weight[WEIGHT_PLANES][NQ][WEIGHTS];
  float largest[NQ], total[NQ];         /* score, sum of exponentials, of the split so far */
  float old[NQ], scale[NQ];             /* what the sums so far are multiplied by; what the result is */
  float *out[NQ];                       /* where its result goes; NULL: it is not one of the rows that the block is at */
  int32_t row[NQ], head[NQ];            /* of a query: its row in the block, -1: none; its head */
  row_view view[NQ];                    /* of a row */
  ancestry tree;
  past now;     /* that the block is at */
  uint64_t done; /* rows that need no more work */
  int32_t rows;  /* of the block */
  uint32_t last;
  int32_t parent[TABLE_MAX], slot[TABLE_MAX];
};

/* The next rows of the block that are not done. */
__device__ static __forceinline__ bool next_past(past *p, const row_view *view, int rows, uint64_t *done) {
  int i = 0;
  while (i < rows && (view[i].seq < 0 || (*done >> i & 1))) i++;
  if (i == rows) return false;
  *p = {view[i].seq, view[i].first, 0, -1, IN_PLACE, 0, 0};
  for (; i < rows; i++) {
    const row_view v = view[i];
    if (v.seq < 0 || (*done >> i & 1) || v.seq != p->seq || v.first != p->first) continue;
    const bool is_side = v.base != IN_PLACE;
    p->rows |= (uint64_t)1 << i;
    p->sides |= (uint64_t)is_side << i;
    p->last = max(p->last, v.pos);
    p->in_place = max(p->in_place, is_side ? v.base - 1 : v.pos);
    p->side_from = min(p->side_from, v.base);
  }
  *done |= p->rows;
  return true;
}

/* Side branches with ancestors among positions j to j + 15. */
__device__ static __forceinline__ uint64_t sides_at(const past &p, const row_view *view, int32_t j) {
  uint64_t found = 0;
  for (uint64_t left = p.sides; left; left &= left - 1) {
    const int i = __ffsll((long long)left) - 1;
    if (view[i].base <= j + 15 && view[i].pos >= j) found |= (uint64_t)1 << i;
  }
  return found;
}

/* The place of a query among those of the launch; -1: it is not one of the rows that the block is at. */
template <typename S>
__device__ static __forceinline__ int64_t place_of(const attention_job &j, const S &s, int query) {
  const int r = s.row[query];
  return r >= 0 && (s.now.rows >> r & 1) ? ((int64_t)blockIdx.z * j.group + r) * j.H + s.head[query] : -1;
}

/* ---- folds ------------------------------------------------------------------------------------------------------------------------ */

/* True in all threads of the block that comes last of `expected`; it sees what the others wrote. */
template <typename S>
__device__ static __forceinline__ bool comes_last(S &s, uint32_t *ticket, int32_t expected) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    s.last = atomicAdd(ticket, 1u) == (uint32_t)expected - 1;
    if (s.last) *ticket = 0;
    __threadfence();
  }
  __syncthreads();
  return s.last != 0;
}

/* n results that lie one after the other, `stride` a query, become one: fold number `out`, or the row's result (out < 0). */
template <typename S>
__device__ static __forceinline__ void fold_results(const attention_job &j, S &s, const float *x, const float2 *state, int32_t stride, int32_t from,
                                                    int32_t n, int32_t out) {
  const int lane = (int)threadIdx.x % WARP, C = (int)j.kv.head_dim;
  float *weight = &s.score[0][0][0]; /* (NQ, n): the folds of 2^30 positions are fewer than 2 SCORES */
  for (int query = (int)threadIdx.x / WARP; query < S::NQ; query += WARPS) {
    const int64_t place = place_of(j, s, query);
    if (place < 0) continue;
    float most = -INFINITY, whole = 0;
    for (int i = lane; i < n; i += WARP) most = fmaxf(most, __ldcg(&state[place * stride + from + i]).x);
    most = warp_max(most);
    for (int i = lane; i < n; i += WARP) {
      const float2 v = __ldcg(&state[place * stride + from + i]);
      const float w = v.x > -INFINITY ? expf(v.x - most) : 0;
      weight[query * n + i] = w;
      whole = fmaf(w, v.y, whole);
    }
    whole = warp_sum(whole);
    if (lane == 0) {
      s.scale[query] = j.kv.v_scale / whole;
      if (out >= 0) j.fold_state[place * j.folds + out] = make_float2(most, whole);
    }
  }
  __syncthreads();
  for (int i = (int)threadIdx.x; i < S::NQ * (C / 2); i += THREADS) {
    const int query = i / (C / 2), c = i % (C / 2) * 2;
    const int64_t place = place_of(j, s, query);
    if (place < 0) continue;
    const float *from_x = x + (place * stride + from) * C + c, *w = weight + query * n;
    float2 y = make_float2(0, 0);
#pragma unroll 8
    for (int k = 0; k < n; k++) {
      const float2 v = __ldcg((const float2 *)(from_x + (int64_t)k * C));
      y.x = fmaf(w[k], v.x, y.x);
      y.y = fmaf(w[k], v.y, y.y);
    }
    if (out < 0) y.x *= s.scale[query], y.y *= s.scale[query];
    *(float2 *)(out < 0 ? j.y + (j.first * j.H + place) * C + c : j.fold + (place * j.folds + out) * C + c) = y;
  }
}

/* A function of its own: registers of the block's loops are no concern of it. */
template <typename S>
__device__ static __noinline__ void fold_split(const attention_job &j, S &s, int32_t split, int32_t splits) {
  const int leader = __ffsll((long long)s.now.rows) - 1;
  uint32_t *ticket = j.tickets + (((int64_t)blockIdx.z * j.group + leader) * gridDim.y + blockIdx.y) * (j.folds + 1);
  const int32_t fold = split / FOLD, folds = (splits + FOLD - 1) / FOLD, n = min(FOLD, splits - fold * FOLD);
  if (!comes_last(s, ticket + 1 + fold, n)) return;
  fold_results(j, s, j.part, j.part_state, j.splits, fold * FOLD, n, folds > 1 ? fold : -1);
  if (folds > 1 && comes_last(s, ticket, folds)) fold_results(j, s, j.fold, j.fold_state, j.folds, 0, folds, -1);
}

#endif
