/* kernels/cuda/attention.cu - softmax(scale q k^T) v over the paged cache, grouped queries, causal or chunked, tree rows.
 *
 * The past is cut in tiles of 64 positions and in splits of tiles, at places that its start alone decides (attention.h). A block takes
 * the queries of up to 8 NT / heads rows on one kv head, and some of the splits. Scores of a tile: mma.m16n8k16 with 16 positions by 16
 * channels of keys as A and 8 queries as B; four groups of positions by two halves of the channels are eight warps. Then softmax, a
 * query a warp, running over the tiles of a split; then values, 16 channels a warp, 16 positions a step, in order of position. Cached
 * BF16 and F8 are bf16 numbers as they are, F32 is three of them; a query is three, a weight of the softmax two: so products are those
 * of f32 but for 2^-17 of a weight. Splits are folded by 16, then all folds, each by the block that ends last: a fold weighs its parts
 * by e^(their largest score - the largest of all) and sums them in order.
 *
 * A row's bits depend on its own past: positions have their place in a tile wherever their keys lie and whatever rows are beside it. Rows
 * of a block that see the same past (one sequence, one chunk) share what is read; side branches of a draft tree, whose slots are not
 * their positions, gather the few groups of 16 positions that hold ancestors of theirs on their own.
 *
 * Grid: (parts of the splits, kv heads, groups of rows), as many parts as make two blocks a multiprocessor: what is fixed when a graph is
 * captured; a block finds from the rows which splits there are and takes every parts-th, the longest first. Keys and values go from
 * memory to registers as the fragments that mma wants, a tile ahead; lanes 4 apart read neighbours, 32 bytes a row of a page in BF16.
 *
 * Moves 2 C cached elements a position and kv head, once a group of rows, and (C + 2) floats a query and split through scratch; bound by
 * memory for long pasts, by latency for short ones: three loads after each other (row, page, key), two barriers a tile, up to two folds.
 * Tolerance 2e-5. */
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

template <int NT, int CMAX>
struct attention_shared {
  static const int NQ = 8 * NT, CW = CMAX / 2 + 4;
  uint32_t query[QUERY_PLANES][NQ][CW]; /* pairs of channels */
  float score[2][NQ][SCORES];           /* halves of the channels; weights of a fold */
  uint32_t weight[WEIGHT_PLANES][NQ][WEIGHTS];
  float old[NQ], scale[NQ];             /* what the sums so far are multiplied by; what the result is */
  int32_t row[NQ], head[NQ];            /* of a query: its row in the block, -1: none; its head */
  row_view view[NQ];                    /* of a row */
  uint32_t last;
  int32_t parent[TABLE_MAX], slot[TABLE_MAX];
};

/* The rows of a block that see the same past. */
struct past {
  int32_t seq, first, last; /* last: of any of them */
  int32_t in_place;         /* the last position that lies in its place for some of them */
  uint64_t rows, sides;     /* sets of rows of the block: all; side branches */
};

/* The next rows of the block not yet done. All threads come to the same. */
__device__ static __forceinline__ bool next_past(past *p, const row_view *view, int rows, uint64_t *done) {
  int i = 0;
  while (i < rows && (*done >> i & 1)) i++;
  if (i == rows) return false;
  *p = {view[i].seq, view[i].first, 0, -1, 0, 0};
  for (; i < rows; i++) {
    const row_view v = view[i];
    if ((*done >> i & 1) || v.seq != p->seq || v.first != p->first) continue;
    const bool is_side = v.base != IN_PLACE;
    p->rows |= (uint64_t)1 << i;
    p->sides |= (uint64_t)is_side << i;
    p->last = max(p->last, v.pos);
    p->in_place = max(p->in_place, is_side ? v.base - 1 : v.pos);
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

template <int DTYPE, int NT, int CMAX>
struct attention_block {
  static const int NQ = 8 * NT, STEPS = CMAX / 32, WIDE = CMAX / 128, PLANES = planes<DTYPE>::count;
  typedef attention_shared<NT, CMAX> shared;

  const attention_job &j;
  shared &s;
  const int warp, lane, g, t; /* lane = 4 g + t */
  const int64_t head;         /* of the cache */
  const int C, page;
  int64_t row0;               /* of the block, in the batch */
  ancestry tree;
  pair<DTYPE> key[STEPS][4], value[WIDE][4][4];
  float sum[WIDE][NT][4], largest[NT], total[NT];

  __device__ __forceinline__ attention_block(const attention_job &job, shared &space)
      : j(job), s(space), warp((int)threadIdx.x / WARP), lane((int)threadIdx.x % WARP), g(lane / 4), t(lane % 4), head(blockIdx.y / job.sets),
        C((int)job.kv.head_dim), page((int)job.kv.page), row0(job.first + (int64_t)blockIdx.z * job.group) {}

  /* ---- the block's rows and queries ---- */

  __device__ __forceinline__ int begin() {
    const int tid = (int)threadIdx.x, rows = (int)min((int64_t)j.group, j.first + j.count - row0);
    tree = {j.rows.parent, j.rows.slot, j.rows.first};
    bool is_side = false;
    if (tid < rows) {
      row_view v = {j.rows.seq[row0 + tid], 0, 0, IN_PLACE};
      if (v.seq >= 0) {
        v.pos = j.rows.pos[row0 + tid];
        v.first = j.chunk > 0 ? v.pos / j.chunk * j.chunk : 0;
        is_side = j.rows.slot[row0 + tid] != v.pos;
      }
      s.view[tid] = v;
    }
    if (__syncthreads_or(is_side)) {
      const int64_t table = j.rows.first + j.rows.n;
      if (table <= TABLE_MAX) {
        for (int i = tid; i < table; i += THREADS) s.parent[i] = j.rows.parent[i - j.rows.first], s.slot[i] = j.rows.slot[i - j.rows.first];
        tree.parent = s.parent + j.rows.first, tree.slot = s.slot + j.rows.first;
        __syncthreads();
      }
      if (is_side) s.view[tid].base = side_base(tree, row0 + tid, s.view[tid].pos);
    }
    if (tid < NQ) {
      const int r = tid / j.set, h = (int)(blockIdx.y % j.sets) * j.set + tid % j.set;
      s.row[tid] = r < rows && h < j.heads && s.view[r < rows ? r : 0].seq >= 0 ? r : -1;
      s.head[tid] = (int32_t)(head * j.heads + h);
      if (r < rows && h < j.heads && s.row[tid] < 0 && blockIdx.x == 0) /* an idle row */
        for (int c = 0; c < C; c++) j.y[((row0 + r) * j.H + s.head[tid]) * C + c] = 0;
    }
    __syncthreads();
    for (int i = tid; i < NQ * (CMAX / 2); i += THREADS) {
      const int query = i / (CMAX / 2), c = i % (CMAX / 2) * 2;
      const bool has = s.row[query] >= 0 && c < C;
      const float *q = j.q + ((row0 + s.row[query]) * j.H + s.head[query]) * C + c;
      uint32_t low = has ? mavk_bits_from_f32(q[0]) : 0, high = has ? mavk_bits_from_f32(q[1]) : 0;
#pragma unroll
      for (int plane = 0; plane < QUERY_PLANES; plane++) {
        const uint32_t a = plane_take(&low), b = plane_take(&high);
        s.query[plane][query][c / 2] = upper_halves(a, b);
      }
    }
    return rows;
  }

  /* ---- keys and scores ---- */

  __device__ __forceinline__ int32_t key_at(int64_t tile) const { return (int32_t)(tile * TILE) + warp % 4 * 16; }
  __device__ __forceinline__ int channel_of(int step) const { return (warp / 4 * STEPS + step) * 16; }

  __device__ __forceinline__ void load_keys(const past &p, int64_t tile) {
    const int32_t at = key_at(tile);
    const bool has = at <= p.in_place && at + 15 >= p.first;
    const int64_t base = has ? kv_k_at(&j.kv, kv_page(&j.kv, p.seq, at), kv_in_page(&j.kv, at) + 2 * g, head, 0) : 0;
#pragma unroll
    for (int i = 0; i < STEPS; i++)
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const int c = channel_of(i) + 2 * t + k / 2 * 8 + k % 2;
        key[i][k] = has && c < C ? pair_load<DTYPE>(j.kv.k, base + c * page) : pair_zero<DTYPE>();
      }
  }

  /* The same for the past of side branch r alone, as it sees it. */
  __device__ __forceinline__ void gather_keys(pair<DTYPE> (&k)[4], const past &p, int r, const int64_t at[2], const bool has[2], int c0) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int c = c0 + 2 * t + i / 2 * 8 + i % 2;
      k[i] = pair_gather<DTYPE>(j.kv.k, has[0] && c < C, at[0] + c * page, has[1] && c < C, at[1] + c * page);
    }
  }

  __device__ __forceinline__ void multiply_keys(float (&d)[NT][4], const pair<DTYPE> (&k)[4], int c0) {
    uint32_t a[PLANES][4];
    pair_fragment<DTYPE>(a, k);
#pragma unroll
    for (int n = 0; n < NT; n++) {
      uint32_t b[QUERY_PLANES][2];
#pragma unroll
      for (int plane = 0; plane < QUERY_PLANES; plane++)
#pragma unroll
        for (int half = 0; half < 2; half++) b[plane][half] = s.query[plane][8 * n + g][c0 / 2 + 4 * half + t];
      mma_planes(d[n], a, b);
    }
  }

  /* row: whose scores these are; -1: everybody's. */
  __device__ __forceinline__ void put_scores(const float (&d)[NT][4], int row) {
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int query = 8 * n + 2 * t + i;
        if (row < 0 || s.row[query] == row) *(float2 *)&s.score[warp / 4][query][warp % 4 * 16 + 2 * g] = make_float2(d[n][i], d[n][2 + i]);
      }
  }

  __device__ __forceinline__ void score_tile(const past &p, int64_t tile) {
    const int32_t at = key_at(tile);
    float d[NT][4] = {};
#pragma unroll
    for (int i = 0; i < STEPS; i++)
      if (channel_of(i) < C) multiply_keys(d, key[i], channel_of(i));
    put_scores(d, -1);
    for (uint64_t left = p.sides ? sides_at(p, s.view, at) : 0; left; left &= left - 1) {
      const int r = __ffsll((long long)left) - 1;
      const row_view v = s.view[r];
      int64_t where[2] = {0, 0};
      bool has[2];
      for (int i = 0; i < 2; i++) {
        const int32_t pos = at + 2 * g + i;
        has[i] = pos >= v.first && pos <= v.pos;
        if (!has[i]) continue;
        const int32_t slot = side_slot(tree, row0 + r, v, pos);
        where[i] = kv_k_at(&j.kv, kv_page(&j.kv, v.seq, slot), kv_in_page(&j.kv, slot), head, 0);
      }
      float e[NT][4] = {};
      for (int i = 0; i < STEPS; i++) {
        if (channel_of(i) >= C) break;
        pair<DTYPE> k[4];
        gather_keys(k, p, r, where, has, channel_of(i));
        multiply_keys(e, k, channel_of(i));
      }
      put_scores(e, r);
    }
  }

  /* ---- softmax ---- */

  __device__ __forceinline__ void weigh_tile(const past &p, int64_t tile) {
#pragma unroll
    for (int i = 0; i < NT; i++) {
      const int query = warp * NT + i, r = s.row[query];
      const bool is_ours = r >= 0 && (p.rows >> r & 1);
      const int32_t at = (int32_t)(tile * TILE) + 2 * lane, last = is_ours ? s.view[r].pos : -1;
      const float2 a = *(const float2 *)&s.score[0][query][2 * lane], b = *(const float2 *)&s.score[1][query][2 * lane];
      const float x0 = at >= p.first && at <= last ? __fmul_rn(a.x + b.x, j.scale) : -INFINITY;
      const float x1 = at + 1 >= p.first && at + 1 <= last ? __fmul_rn(a.y + b.y, j.scale) : -INFINITY;
      const float most = fmaxf(largest[i], warp_max(fmaxf(x0, x1)));
      const bool any = most > -INFINITY;
      const float old = any ? expf(largest[i] - most) : 1, e0 = any ? expf(x0 - most) : 0, e1 = any ? expf(x1 - most) : 0;
      total[i] = fmaf(total[i], old, warp_sum(e0 + e1));
      largest[i] = most;
      uint32_t low = mavk_bits_from_f32(e0), high = mavk_bits_from_f32(e1);
      const uint32_t top0 = plane_take(&low), top1 = plane_take(&high);
      s.weight[0][query][lane] = upper_halves(top0, top1);
      s.weight[1][query][lane] = mavk_bf16_from_f32(mavk_f32_from_bits(low)) | (uint32_t)mavk_bf16_from_f32(mavk_f32_from_bits(high)) << 16;
      if (lane == 0) {
        s.old[query] = old;
        s.scale[query] = j.kv.v_scale / total[i];
      }
    }
  }

  /* ---- values ---- */

  __device__ __forceinline__ void load_values(const past &p, int64_t tile) {
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const int32_t at = (int32_t)(tile * TILE) + step * 16;
      const bool has = at <= p.in_place && at + 15 >= p.first;
      const int64_t base = has ? kv_v_at(&j.kv, kv_page(&j.kv, p.seq, at), kv_in_page(&j.kv, at), head, 0) : 0;
#pragma unroll
      for (int w = 0; w < WIDE; w++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
          const int c = (w * WARPS + warp) * 16 + 2 * g, i = 2 * t + k / 2 * 8 + k % 2;
          const bool is_there = has && c < C && at + i >= p.first && at + i <= p.in_place;
          value[w][step][k] = is_there ? pair_load<DTYPE>(j.kv.v, base + i * C + c) : pair_zero<DTYPE>();
        }
    }
  }

  /* rows: of which the weights count. */
  __device__ __forceinline__ void multiply_values(float (&d)[NT][4], const pair<DTYPE> (&v)[4], int step, bool all, uint64_t rows) {
    uint32_t a[PLANES][4];
    pair_fragment<DTYPE>(a, v);
#pragma unroll
    for (int n = 0; n < NT; n++) {
      const int r = all ? 0 : s.row[8 * n + g];
      const bool counts = all || (r >= 0 && (rows >> r & 1));
      uint32_t b[WEIGHT_PLANES][2];
#pragma unroll
      for (int plane = 0; plane < WEIGHT_PLANES; plane++)
#pragma unroll
        for (int half = 0; half < 2; half++) b[plane][half] = counts ? s.weight[plane][8 * n + g][step * 8 + 4 * half + t] : 0;
      mma_planes(d[n], a, b);
    }
  }

  __device__ __forceinline__ void gather_values(float (&d)[NT][4], int r, int32_t at, int step, int c) {
    const row_view v = s.view[r];
    pair<DTYPE> x[4];
    for (int k = 0; k < 4; k++) {
      const int32_t pos = at + 2 * t + k / 2 * 8 + k % 2;
      x[k] = pair_zero<DTYPE>();
      if (pos < v.first || pos > v.pos || c >= C) continue;
      const int32_t slot = side_slot(tree, row0 + r, v, pos);
      x[k] = pair_load<DTYPE>(j.kv.v, kv_v_at(&j.kv, kv_page(&j.kv, v.seq, slot), kv_in_page(&j.kv, slot), head, c));
    }
    multiply_values(d, x, step, false, (uint64_t)1 << r);
  }

  __device__ __forceinline__ void add_values(const past &p, int64_t tile) {
#pragma unroll
    for (int n = 0; n < NT; n++) {
      const float old0 = s.old[8 * n + 2 * t], old1 = s.old[8 * n + 2 * t + 1];
#pragma unroll
      for (int w = 0; w < WIDE; w++) sum[w][n][0] *= old0, sum[w][n][1] *= old1, sum[w][n][2] *= old0, sum[w][n][3] *= old1;
    }
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const int32_t at = (int32_t)(tile * TILE) + step * 16;
      const uint64_t sides = p.sides ? sides_at(p, s.view, at) : 0;
#pragma unroll
      for (int w = 0; w < WIDE; w++) {
        const int c0 = (w * WARPS + warp) * 16;
        if (c0 >= C) continue;
        multiply_values(sum[w], value[w][step], step, sides == 0, ~sides);
        for (uint64_t left = sides; left; left &= left - 1) gather_values(sum[w], __ffsll((long long)left) - 1, at, step, c0 + 2 * g);
      }
    }
  }

  /* ---- a split ---- */

  /* The query's place among those of the launch; -1: it is not one of these rows'. */
  __device__ __forceinline__ int64_t place_of(const past &p, int query) const {
    const int r = s.row[query];
    return r >= 0 && (p.rows >> r & 1) ? (row0 - j.first + r) * j.H + s.head[query] : -1;
  }

  __device__ __forceinline__ void run_split(const past &p, int64_t begin, int64_t end) {
#pragma unroll
    for (int n = 0; n < NT; n++) {
      largest[n] = -INFINITY, total[n] = 0;
#pragma unroll
      for (int w = 0; w < WIDE; w++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[w][n][i] = 0;
    }
    load_keys(p, begin);
    load_values(p, begin);
    __syncthreads();
    for (int64_t tile = begin; tile < end; tile++) {
      score_tile(p, tile);
      if (tile + 1 < end) load_keys(p, tile + 1);
      __syncthreads();
      weigh_tile(p, tile);
      __syncthreads();
      add_values(p, tile);
      if (tile + 1 < end) load_values(p, tile + 1);
    }
  }

  /* Its results: to y when it is all there is, else to `part`. */
  __device__ __forceinline__ void put_split(const past &p, int64_t split, bool is_all) {
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int query = 8 * n + 2 * t + i;
        const int64_t place = place_of(p, query);
        if (place < 0) continue;
        const float scale = is_all ? s.scale[query] : 1;
        float *out = is_all ? j.y + (j.first * j.H + place) * C : j.part + (place * j.splits + split) * C;
#pragma unroll
        for (int w = 0; w < WIDE; w++) {
          const int c = (w * WARPS + warp) * 16 + 2 * g;
          if (c < C) *(float2 *)(out + c) = make_float2(sum[w][n][i] * scale, sum[w][n][2 + i] * scale);
        }
      }
#pragma unroll
    for (int i = 0; i < NT; i++) {
      const int64_t place = place_of(p, warp * NT + i);
      if (place >= 0 && !is_all && lane == 0) j.part_state[place * j.splits + split] = make_float2(largest[i], total[i]);
    }
  }

  /* ---- folds ---- */

  /* True in all threads of the block that comes last of `expected`; it sees what the others wrote. */
  __device__ __forceinline__ bool is_last(uint32_t *ticket, int64_t expected) {
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

  /* n results that lie one after the other, `stride` a query, become one: fold number `out` of `folds`, or the row's result (out < 0). */
  __device__ __forceinline__ void fold_results(const past &p, const float *x, const float2 *state, int64_t stride, int64_t from, int n, int64_t out) {
    float *weight = &s.score[0][0][0]; /* (NQ, n): FOLD or the folds of 2^30 positions are below 2 SCORES */
    for (int query = warp; query < NQ; query += WARPS) {
      const int64_t place = place_of(p, query);
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
    for (int i = (int)threadIdx.x; i < NQ * (C / 2); i += THREADS) {
      const int query = i / (C / 2), c = i % (C / 2) * 2;
      const int64_t place = place_of(p, query);
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

  __device__ __forceinline__ void fold_split(const past &p, int64_t split, int64_t splits) {
    const int leader = __ffsll((long long)p.rows) - 1;
    uint32_t *ticket = j.tickets + ((row0 - j.first + leader) * gridDim.y + blockIdx.y) * (j.folds + 1);
    const int64_t fold = split / FOLD, folds = (splits + FOLD - 1) / FOLD, n = min((int64_t)FOLD, splits - fold * FOLD);
    if (!is_last(ticket + 1 + fold, n)) return;
    fold_results(p, j.part, j.part_state, j.splits, fold * FOLD, (int)n, folds > 1 ? fold : -1);
    if (folds > 1 && is_last(ticket, folds)) fold_results(p, j.fold, j.fold_state, j.folds, 0, (int)folds, -1);
  }
};

template <int DTYPE, int NT, int CMAX>
static __global__ void __launch_bounds__(THREADS, DTYPE == MAVK_F32 || CMAX > 128 ? 1 : 2) attend(const __grid_constant__ attention_job j) {
  MAVK_SHARED(space);
  pdl_launch();
  pdl_wait();
  attention_block<DTYPE, NT, CMAX> b(j, *(attention_shared<NT, CMAX> *)space);
  const int rows = b.begin();
  const int64_t parts = gridDim.x, part = blockIdx.x;
  uint64_t done = 0;
  for (int r = 0; r < rows; r++)
    if (b.s.view[r].seq < 0) done |= (uint64_t)1 << r;
  for (past p; next_past(&p, b.s.view, rows, &done);) {
    const int64_t tile = p.first / TILE, tiles = p.last / TILE - tile + 1, splits = split_of(tiles - 1) + 1;
    for (int64_t round = 0; round * parts < splits; round++) { /* to and fro, from the last */
      const int64_t split = splits - 1 - (round * parts + (round % 2 ? parts - 1 - part : part));
      if (split < 0) continue;
      b.run_split(p, tile + split_begin(split), tile + min(tiles, split_begin(split + 1)));
      b.put_split(p, split, splits == 1);
      if (splits > 1) b.fold_split(p, split, splits);
    }
  }
}

/* ---- launches ----------------------------------------------------------------------------------------------------------------------- */

template <int DTYPE, int NT, int CMAX>
static int run_kernel(mavk_cuda *c, dim3 grid, const attention_job &j) {
  return mavk_run(c, attend<DTYPE, NT, CMAX>, grid, dim3(THREADS), sizeof(attention_shared<NT, CMAX>), j);
}

template <int DTYPE>
static int run_dtype(mavk_cuda *c, int tiles, dim3 grid, const attention_job &j) {
  if (j.kv.head_dim > 128) return tiles == 1 ? run_kernel<DTYPE, 1, 256>(c, grid, j) : run_kernel<DTYPE, 3, 256>(c, grid, j);
  return tiles == 1 ? run_kernel<DTYPE, 1, 128>(c, grid, j) : tiles == 3 ? run_kernel<DTYPE, 3, 128>(c, grid, j) : run_kernel<DTYPE, 5, 128>(c, grid, j);
}

extern "C" int mavk_cuda_attention(const mavk_args_attention *a, mavk_cuda *c) {
  const mavk_kv *kv = &a->kv;
  const int64_t T = a->rows.n, C = kv->head_dim, context = kv->table_stride * kv->page;
  if (C > 256) return c->fail(c, "head_dim %lld; this device takes up to 256", (long long)C);
  attention_job j = {};
  j.q = (const float *)a->q.p, j.y = (float *)a->y.p;
  j.rows = a->rows;
  j.kv = *kv;
  j.H = a->q.n[1];
  j.heads = (int32_t)(j.H / kv->kv_heads);
  j.chunk = (int32_t)a->chunk;
  j.scale = (a->scale > 0 ? a->scale : 1 / sqrtf((float)C)) * (kv->dtype == MAVK_F8 ? kv->k_scale : 1);
  if (kv->dtype != MAVK_F8) j.kv.v_scale = 1;

  /* queries of a block: 8 times `tiles` */
  const int most = C > 128 ? 3 : 5, tiles = T * j.heads <= 8 ? 1 : T * j.heads <= 24 ? 3 : most;
  j.set = j.heads < 8 * tiles ? j.heads : 8 * tiles;
  j.sets = (int32_t)ceil_div(j.heads, j.set);
  j.group = j.sets > 1 ? 1 : 8 * tiles / j.set;

  /* the rows that scratch, tickets and the grid allow at a time */
  const bool is_chunked = j.chunk > 0 && j.chunk < context;
  const int64_t longest = is_chunked ? (j.chunk + TILE - 2) / TILE + 1 : ceil_div(context, TILE), across = kv->kv_heads * j.sets;
  j.splits = (int32_t)(split_of(longest - 1) + 1);
  j.folds = (int32_t)ceil_div(j.splits, FOLD);
  const int64_t floats = j.H * (j.splits + j.folds) * (C + 2);
  int64_t rows = (int64_t)(c->scratch_bytes / sizeof(float)) / floats;
  if (rows > MAVK_CUDA_TICKETS / (across * (j.folds + 1))) rows = MAVK_CUDA_TICKETS / (across * (j.folds + 1));
  if (rows < 1) return c->fail(c, "a context of %lld positions on %lld heads does not fit the scratch memory", (long long)context, (long long)j.H);
  if (rows > T) rows = T;
  if (rows > j.group) rows -= rows % j.group;
  j.part_state = (float2 *)c->scratch;
  j.fold_state = j.part_state + rows * j.H * j.splits;
  j.part = (float *)(j.fold_state + rows * j.H * j.folds);
  j.fold = j.part + rows * j.H * j.splits * C;
  j.tickets = c->tickets;

  for (; j.first < T; j.first += rows) {
    j.count = T - j.first < rows ? T - j.first : rows;
    const int64_t groups = ceil_div(j.count, j.group), parts = 2 * c->multiprocessors / (across * groups);
    const dim3 grid((unsigned)(parts < 1 ? 1 : parts < j.splits ? parts : j.splits), (unsigned)across, (unsigned)groups);
    if (kv->dtype == MAVK_F32)
      MAVK_TRY_CUDA(run_dtype<MAVK_F32>(c, tiles, grid, j));
    else if (kv->dtype == MAVK_BF16)
      MAVK_TRY_CUDA(run_dtype<MAVK_BF16>(c, tiles, grid, j));
    else
      MAVK_TRY_CUDA(run_dtype<MAVK_F8>(c, tiles, grid, j));
  }
  return 0;
}
