/* kernels/cuda/attention.cu - softmax(scale q k^T) v over the paged cache, grouped queries, causal or chunked, tree rows.
 *
 * The past is cut in tiles of 64 positions and in splits of tiles, at places that its start alone decides (attention.h). A block takes
 * the queries of up to 8 NT / heads rows on one kv head, and some of the splits. Scores of a tile: mma.m16n8k16 with 16 positions by 16
 * channels of keys as A and 8 queries as B; four groups of positions by two halves of the channels are eight warps. Then softmax, a
 * query a warp, running over the tiles of a split; then values, 16 channels a warp, 16 positions a step, in order of position. Cached
 * BF16 and F8 are bf16 numbers as they are, F32 is three of them; a query is three, a weight of the softmax two: so products are those
 * of f32 but for 2^-18 of a weight. Splits are folded by 16, then all folds, each by the block that ends last: a fold weighs its parts
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
#include "attention_block.h"

/* ---- a block ---------------------------------------------------------------------------------------------------------------------- */

template <int DTYPE, int NT, int CMAX>
struct attention_block {
  static const int NQ = 8 * NT, STEPS = CMAX / 32, WIDE = CMAX / 128, PLANES = planes<DTYPE>::count;
  typedef attention_shared<NT, CMAX> shared;

  const attention_job &j;
  shared &s;
  const int warp, lane, g, t; /* lane = 4 g + t */
  const int head;             /* of the cache */
  const int C, page;
  const int row0;             /* of the block, in the batch */
  pair<DTYPE> key[STEPS][4], value[WIDE][4][4];
  float sum[WIDE][NT][4];

  __device__ __forceinline__ attention_block(const attention_job &job, shared &space)
      : j(job), s(space), warp((int)threadIdx.x / WARP), lane((int)threadIdx.x % WARP), g(lane / 4), t(lane % 4), head((int)blockIdx.y / job.sets),
        C((int)job.kv.head_dim), page((int)job.kv.page), row0((int)job.first + (int)blockIdx.z * job.group) {}

  /* ---- the block's rows and queries ---- */

  __device__ __forceinline__ void begin() {
    const int tid = (int)threadIdx.x, rows = (int)min((int64_t)j.group, j.first + j.count - row0), h0 = (int)blockIdx.y % j.sets * j.set;
    row_view v = {-1, 0, 0, IN_PLACE};
    int32_t slot = 0;
    if (tid < rows) v.seq = j.rows.seq[row0 + tid], v.pos = j.rows.pos[row0 + tid], slot = j.rows.slot[row0 + tid];
    for (int i = tid; i < NQ * (CMAX / 2); i += THREADS) { /* of idle rows too: nobody looks at their scores */
      const int query = i / (CMAX / 2), c = i % (CMAX / 2) * 2, r = query / j.set, h = h0 + query % j.set;
      const bool has = r < rows && h < j.heads && c < C;
      const float2 q = has ? *(const float2 *)(j.q + ((int64_t)(row0 + r) * j.H + head * j.heads + h) * C + c) : make_float2(0, 0);
      uint32_t low = mavk_bits_from_f32(q.x), high = mavk_bits_from_f32(q.y);
#pragma unroll
      for (int plane = 0; plane < QUERY_PLANES; plane++) {
        const uint32_t a = plane_take(&low), b = plane_take(&high);
        s.query[plane][query][c / 2] = upper_halves(a, b);
      }
    }
    ancestry tree = {j.rows.parent, j.rows.slot, j.rows.first};
    const bool is_side = v.seq >= 0 && slot != v.pos;
    v.first = v.seq >= 0 && j.chunk > 0 ? v.pos / j.chunk * j.chunk : 0;
    if (tid < rows) s.view[tid] = v;
    if (__syncthreads_or(is_side)) {
      const int64_t table = j.rows.first + j.rows.n;
      if (table <= TABLE_MAX) {
        for (int i = tid; i < table; i += THREADS) s.parent[i] = j.rows.parent[i - j.rows.first], s.slot[i] = j.rows.slot[i - j.rows.first];
        tree.parent = s.parent + j.rows.first, tree.slot = s.slot + j.rows.first;
      }
      if (tid == 0) s.tree = tree;
      __syncthreads();
      if (is_side) s.view[tid].base = side_base(tree, row0 + tid, s.view[tid].pos);
      __syncthreads();
    }
    if (tid == 0) s.done = 0, s.rows = rows;
    if (tid < NQ) {
      const int r = tid / j.set, h = h0 + tid % j.set;
      s.row[tid] = r < rows && h < j.heads && s.view[r < rows ? r : 0].seq >= 0 ? r : -1;
      s.head[tid] = (int32_t)(head * j.heads + h);
      if (r < rows && h < j.heads && s.row[tid] < 0 && blockIdx.x == 0) /* an idle row */
        for (int c = 0; c < C; c++) j.y[((row0 + r) * j.H + s.head[tid]) * C + c] = 0;
    }
  }

  /* The next rows that see the same past, to s.now; false: there are none. */
  __device__ __forceinline__ bool next() {
    __syncthreads();
    if (threadIdx.x == 0) s.last = next_past(&s.now, s.view, s.rows, &s.done);
    __syncthreads();
    return s.last != 0;
  }

  /* ---- keys and scores ---- */

  __device__ __forceinline__ int32_t key_at(int32_t tile) const { return tile * TILE + warp % 4 * 16; }
  __device__ __forceinline__ int channel_of(int step) const { return (warp / 4 * STEPS + step) * 16; }

  __device__ __forceinline__ void load_keys(const past &p, int32_t tile) {
    const int32_t at = key_at(tile);
    const int c = channel_of(0) + 2 * t, left = at <= p.in_place && at + 15 >= p.first ? C - c : 0;
    const int64_t base = left > 0 ? kv_k_at(&j.kv, kv_page(&j.kv, p.seq, at), kv_in_page(&j.kv, at) + 2 * g, head, c) : 0;
#pragma unroll
    for (int i = 0; i < STEPS; i++)
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const int further = i * 16 + k / 2 * 8 + k % 2;
        key[i][k] = further < left ? pair_load<DTYPE>(j.kv.k, base + (uint32_t)(further * page)) : pair_zero<DTYPE>();
      }
  }

  /* The past of one side branch: where two keys lie. */
  __device__ __forceinline__ void gather_keys(pair<DTYPE> (&k)[4], const int64_t at[2] /* below 0: there is none */, int c0) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int c = c0 + 2 * t + i / 2 * 8 + i % 2;
      k[i] = pair_gather<DTYPE>(j.kv.k, at[0] >= 0 && c < C, at[0] + c * page, at[1] >= 0 && c < C, at[1] + c * page);
    }
  }

  /* Of the n-th 8 queries. */
  __device__ __forceinline__ void multiply_keys(float (&d)[4], const uint32_t (&a)[PLANES][4], int n, int c0) {
    uint32_t b[QUERY_PLANES][2];
#pragma unroll
    for (int plane = 0; plane < QUERY_PLANES; plane++)
#pragma unroll
      for (int half = 0; half < 2; half++) b[plane][half] = s.query[plane][8 * n + g][c0 / 2 + 4 * half + t];
    mma_planes(d, a, b);
  }

  /* row: whose scores these are; -1: everybody's. */
  __device__ __forceinline__ void put_scores(const float (&d)[4], int n, int row) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int query = 8 * n + 2 * t + i;
      if (row < 0 || s.row[query] == row) *(float2 *)&s.score[warp / 4][query][warp % 4 * 16 + 2 * g] = make_float2(d[i], d[2 + i]);
    }
  }

  __device__ __forceinline__ void score_tile(const past &p, int32_t tile) {
    float d[NT][4] = {};
#pragma unroll
    for (int i = 0; i < STEPS; i++)
      if (channel_of(i) < C) {
        uint32_t a[PLANES][4];
        pair_fragment<DTYPE>(a, key[i]);
#pragma unroll
        for (int n = 0; n < NT; n++) multiply_keys(d[n], a, n, channel_of(i));
      }
#pragma unroll
    for (int n = 0; n < NT; n++) put_scores(d[n], n, -1);
    if (tile * TILE + TILE > p.side_from) score_sides(p, key_at(tile));
  }

  /* Scores of side branches at positions that hold ancestors of theirs. */
  __device__ __forceinline__ void score_sides(const past &p, int32_t at) {
#pragma unroll 1
    for (uint64_t left = sides_at(p, s.view, at); left; left &= left - 1) {
      const int r = __ffsll((long long)left) - 1;
      const row_view v = s.view[r];
      int64_t where[2] = {-1, -1};
      for (int i = 0; i < 2; i++) {
        const int32_t pos = at + 2 * g + i;
        if (pos < v.first || pos > v.pos) continue;
        const int32_t slot = side_slot(s.tree, row0 + r, v, pos);
        where[i] = kv_k_at(&j.kv, kv_page(&j.kv, v.seq, slot), kv_in_page(&j.kv, slot), head, 0);
      }
#pragma unroll 1
      for (int n = r * j.set / 8; n <= (r * j.set + j.set - 1) / 8; n++) {
        float d[4] = {};
#pragma unroll 1
        for (int i = 0; i < STEPS && channel_of(i) < C; i++) {
          pair<DTYPE> k[4];
          uint32_t a[PLANES][4];
          gather_keys(k, where, channel_of(i));
          pair_fragment<DTYPE>(a, k);
          multiply_keys(d, a, n, channel_of(i));
        }
        put_scores(d, n, r);
      }
    }
  }

  /* ---- softmax ---- */

  __device__ __forceinline__ void weigh_tile(const past &p, int32_t tile) {
#pragma unroll
    for (int i = 0; i < NT; i++) {
      const int query = warp * NT + i, r = s.row[query];
      const bool is_ours = r >= 0 && (p.rows >> r & 1);
      const int32_t at = tile * TILE + 2 * lane, last = is_ours ? s.view[r].pos : -1;
      const float2 a = *(const float2 *)&s.score[0][query][2 * lane], b = *(const float2 *)&s.score[1][query][2 * lane];
      const float x0 = at >= p.first && at <= last ? __fmul_rn(a.x + b.x, j.scale) : -INFINITY;
      const float x1 = at + 1 >= p.first && at + 1 <= last ? __fmul_rn(a.y + b.y, j.scale) : -INFINITY;
      const float before = s.largest[query], most = fmaxf(before, warp_max(fmaxf(x0, x1)));
      const bool any = most > -INFINITY;
      const float old = any ? expf(before - most) : 1, e0 = any ? expf(x0 - most) : 0, e1 = any ? expf(x1 - most) : 0;
      const float total = fmaf(s.total[query], old, warp_sum(e0 + e1));
      uint32_t low = mavk_bits_from_f32(e0), high = mavk_bits_from_f32(e1);
      const uint32_t top0 = plane_round(&low), top1 = plane_round(&high);
      s.weight[0][query][lane] = upper_halves(top0, top1);
      s.weight[1][query][lane] = mavk_bf16_from_f32(mavk_f32_from_bits(low)) | (uint32_t)mavk_bf16_from_f32(mavk_f32_from_bits(high)) << 16;
      __syncwarp();
      if (lane == 0) {
        s.largest[query] = most;
        s.total[query] = total;
        s.old[query] = old;
        s.scale[query] = j.kv.v_scale / total;
      }
    }
  }

  /* ---- values ---- */

  __device__ __forceinline__ void load_values(const past &p, int32_t tile) {
    const int c = warp * 16 + 2 * g;
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const int32_t at = tile * TILE + step * 16, from = p.first - at - 2 * t, to = p.in_place - at - 2 * t;
      const bool has = at <= p.in_place && at + 15 >= p.first;
      const int64_t base = has ? kv_v_at(&j.kv, kv_page(&j.kv, p.seq, at), kv_in_page(&j.kv, at) + 2 * t, head, c) : 0;
#pragma unroll
      for (int w = 0; w < WIDE; w++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
          const int further = k / 2 * 8 + k % 2;
          const bool is_there = has && c + 128 * w < C && further >= from && further <= to;
          value[w][step][k] = is_there ? pair_load<DTYPE>(j.kv.v, base + (uint32_t)(further * C + 128 * w)) : pair_zero<DTYPE>();
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

  __device__ __forceinline__ void add_values(const past &p, int32_t tile) {
#pragma unroll
    for (int n = 0; n < NT; n++) {
      const float old0 = s.old[8 * n + 2 * t], old1 = s.old[8 * n + 2 * t + 1];
#pragma unroll
      for (int w = 0; w < WIDE; w++) sum[w][n][0] *= old0, sum[w][n][1] *= old1, sum[w][n][2] *= old0, sum[w][n][3] *= old1;
    }
    if (tile * TILE + TILE > p.side_from) {
      add_sides(p, tile);
      return;
    }
#pragma unroll
    for (int step = 0; step < 4; step++)
#pragma unroll
      for (int w = 0; w < WIDE; w++)
        if ((w * WARPS + warp) * 16 < C) multiply_values(sum[w], value[w][step], step, true, 0);
  }

  /* A tile that holds ancestors of side branches: steps of 16 positions by what each of them sees, first what lies in its place. */
  __device__ __forceinline__ void add_sides(const past &p, int32_t tile) {
#pragma unroll 1
    for (int step = 0; step < 4; step++) {
      const int32_t at = tile * TILE + step * 16;
      const uint64_t sides = sides_at(p, s.view, at);
      uint64_t left = sides, rows = ~sides;
      int r = 0;
      row_view v = {p.seq, p.in_place, p.first, IN_PLACE};
#pragma unroll 1
      for (;;) {
        int64_t where[4];
        for (int k = 0; k < 4; k++) {
          const int32_t pos = at + 2 * t + k / 2 * 8 + k % 2;
          where[k] = -1;
          if (pos < v.first || pos > v.pos) continue;
          const int32_t slot = side_slot(s.tree, row0 + r, v, pos);
          where[k] = kv_v_at(&j.kv, kv_page(&j.kv, v.seq, slot), kv_in_page(&j.kv, slot), head, 2 * g);
        }
#pragma unroll
        for (int w = 0; w < WIDE; w++) {
          const int c0 = (w * WARPS + warp) * 16;
          if (c0 >= C) continue;
          pair<DTYPE> x[4];
#pragma unroll
          for (int k = 0; k < 4; k++) x[k] = where[k] >= 0 && c0 + 2 * g < C ? pair_load<DTYPE>(j.kv.v, where[k] + c0) : pair_zero<DTYPE>();
          multiply_values(sum[w], x, step, false, rows);
        }
        if (!left) break;
        r = __ffsll((long long)left) - 1;
        v = s.view[r];
        rows = (uint64_t)1 << r;
        left &= left - 1;
      }
    }
  }

  /* ---- a split ---- */

  /* Tiles begin to end; the results of split number `split` to `part`, or to y when it is all there is. */
  __device__ __forceinline__ void run_split(const past &p, int32_t split, int32_t begin, int32_t end, bool is_all) {
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int w = 0; w < WIDE; w++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[w][n][i] = 0;
    load_keys(p, begin);
    load_values(p, begin);
    __syncthreads(); /* the split before is done with shared memory */
    if (threadIdx.x < NQ) {
      const int64_t place = place_of(j, s, (int)threadIdx.x);
      s.largest[threadIdx.x] = -INFINITY, s.total[threadIdx.x] = 0;
      s.out[threadIdx.x] = place < 0 ? nullptr : is_all ? j.y + (j.first * j.H + place) * C : j.part + (place * j.splits + split) * C;
    }
    for (int32_t tile = begin; tile < end; tile++) {
      score_tile(p, tile);
      if (tile + 1 < end) load_keys(p, tile + 1);
      __syncthreads();
      weigh_tile(p, tile);
      __syncthreads();
      add_values(p, tile);
      if (tile + 1 < end) load_values(p, tile + 1);
    }
    put_results(is_all);
    if (threadIdx.x < NQ && !is_all) {
      const int64_t place = place_of(j, s, (int)threadIdx.x);
      if (place >= 0) j.part_state[place * j.splits + split] = make_float2(s.largest[threadIdx.x], s.total[threadIdx.x]);
    }
  }

  __device__ __forceinline__ void put_results(bool is_all) {
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int query = 8 * n + 2 * t + i;
        float *out = s.out[query];
        if (!out) continue;
        const float scale = is_all ? s.scale[query] : 1;
#pragma unroll
        for (int w = 0; w < WIDE; w++) {
          const int c = (w * WARPS + warp) * 16 + 2 * g;
          if (c < C) *(float2 *)(out + c) = make_float2(sum[w][n][i] * scale, sum[w][n][2 + i] * scale);
        }
      }
  }
};

template <int DTYPE, int NT, int CMAX>
static __global__ void __launch_bounds__(THREADS, CMAX > 128 || DTYPE == MAVK_F32 ? 1 : 2) attend(const __grid_constant__ attention_job j) {
  MAVK_SHARED(space);
  pdl_launch();
  pdl_wait();
  attention_block<DTYPE, NT, CMAX> b(j, *(attention_shared<NT, CMAX> *)space);
  b.begin();
  while (b.next()) {
    const past &p = b.s.now;
    const int32_t tile = p.first / TILE, tiles = p.last / TILE - tile + 1, splits = split_of(tiles - 1) + 1;
    for (int32_t round = 0; round * (int32_t)gridDim.x < splits; round++) { /* to and fro, from the last */
      const int32_t parts = (int32_t)gridDim.x, part = (int32_t)blockIdx.x;
      const int32_t split = splits - 1 - (round * parts + (round % 2 ? parts - 1 - part : part));
      if (split < 0) continue;
      b.run_split(p, split, tile + split_begin(split), tile + min(tiles, split_begin(split + 1)), splits == 1);
      if (splits > 1) fold_split(j, b.s, split, splits);
    }
  }
}

/* ---- launches ----------------------------------------------------------------------------------------------------------------------- */

template <int DTYPE, int NT, int CMAX>
static int run_kernel(mavk_cuda *c, dim3 grid, const attention_job &j) {
  return mavk_run(c, attend<DTYPE, NT, CMAX>, grid, dim3(THREADS), sizeof(attention_shared<NT, CMAX>), j);
}

/* NT: room for the queries of all rows, if they are up to 40; less where an element takes more registers. */
static int tiles_for(int64_t queries, int32_t dtype, int64_t C) {
  const int most = dtype == MAVK_F32 ? C > 128 ? 1 : 3 : C > 128 ? 3 : 5;
  return queries <= 8 || most == 1 ? 1 : queries <= 24 || most == 3 ? 3 : 5;
}

template <int DTYPE, int NT>
static int run_tiles(mavk_cuda *c, dim3 grid, const attention_job &j) {
  if constexpr (NT == 5 || (NT == 3 && DTYPE == MAVK_F32))
    return run_kernel<DTYPE, NT, 128>(c, grid, j);
  else
    return j.kv.head_dim > 128 ? run_kernel<DTYPE, NT, 256>(c, grid, j) : run_kernel<DTYPE, NT, 128>(c, grid, j);
}

static int run_any(mavk_cuda *c, int tiles, dim3 grid, const attention_job &j) {
  if (j.kv.dtype == MAVK_F32) return tiles == 1 ? run_tiles<MAVK_F32, 1>(c, grid, j) : run_tiles<MAVK_F32, 3>(c, grid, j);
  if (j.kv.dtype == MAVK_BF16) {
    if (tiles == 1) return run_tiles<MAVK_BF16, 1>(c, grid, j);
    return tiles == 3 ? run_tiles<MAVK_BF16, 3>(c, grid, j) : run_tiles<MAVK_BF16, 5>(c, grid, j);
  }
  if (tiles == 1) return run_tiles<MAVK_F8, 1>(c, grid, j);
  return tiles == 3 ? run_tiles<MAVK_F8, 3>(c, grid, j) : run_tiles<MAVK_F8, 5>(c, grid, j);
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

  const int tiles = tiles_for(T * j.heads, kv->dtype, C), room = 8 * tiles;
  j.set = j.heads < room ? j.heads : room;
  j.sets = (int32_t)ceil_div(j.heads, j.set);
  j.group = j.sets > 1 ? 1 : room / j.set;

  /* the rows that scratch, tickets and the grid allow at a time */
  const bool is_chunked = j.chunk > 0 && j.chunk < context;
  const int64_t chunk_tiles = (j.chunk + (j.chunk % TILE ? TILE - 2 : -1)) / TILE + 1; /* a chunk may begin within a tile */
  const int64_t longest = is_chunked ? chunk_tiles : ceil_div(context, TILE), across = kv->kv_heads * j.sets;
  j.splits = split_of((int32_t)longest - 1) + 1;
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
    MAVK_TRY_CUDA(run_any(c, tiles, grid, j));
  }
  return 0;
}
