/* kernels/cuda/accept.cu - which drafts are accepted: a walk from every root to one of its children, and on from there. A root is a live
 * row whose parent is not in the batch; children come after their parents; so trees are apart, and each has a walker of its own.
 *
 * accept: one block, a thread a root. Bound by latency.
 *
 * accept_rejection: three launches. (1) Blocks of 16384 ids of every row that has children: the sums P and Q of p and q, in double on
 * sixteen lanes in the order that ref.h defines. (2) A block a root walks down: children are tried in order; one that is rejected
 * changes p, and the block sums again, a warp a block of ids. (3) Parts of 4096 ids of the rows where a walk ended: the draw from
 * what p has become (gumbel.h). One block alone would take about 100 us for a row of 202,048 ids: it has a 132nd of the chip's
 * memory rate and arithmetic. Moves 8 V bytes a row, twice where a path ends; bound by the chain of 1024 additions of a lane.
 *
 * accept_typical: two launches, (1) for the entropies of rows with children and (2) for the walks, a thread a root.
 *
 * Exact, compiled without contraction. */
#include "gumbel.h"

#define THREADS 256
#define WALKERS 512        /* threads that walk a tree of accept_rejection */
#define SUM_BLOCK 16384    /* ids: ref.h folds its lanes after so many */
#define STAGE 4096         /* of them in shared memory at a time */
#define ROWS_MAX 4096      /* children that the list of the rejected can hold */

/* The first live child of row r after row `after`; rows->n: none. */
__device__ static int64_t next_child(const mavk_rows *rows, int64_t r, int64_t after) {
  int64_t c = after + 1;
  while (c < rows->n && (rows->seq[c] < 0 || mavk_parent(rows, c) != r)) c++;
  return c;
}

__device__ static bool is_root(const mavk_rows *rows, int64_t r) { return rows->seq[r] >= 0 && mavk_parent(rows, r) < 0; }

struct accept_job {
  mavk_rows rows;
  const int32_t *choice; /* (T) */
  int32_t *accepted;     /* (T) */
};

static __global__ void accept_trees(const __grid_constant__ accept_job j) {
  pdl_launch();
  pdl_wait();
  const int64_t T = j.rows.n;
  for (int64_t t = threadIdx.x; t < T; t += THREADS) j.accepted[t] = -1;
  __syncthreads();
  for (int64_t root = threadIdx.x; root < T; root += THREADS) {
    int32_t place = 0;
    for (int64_t r = is_root(&j.rows, root) ? root : T, c; r < T; r = c) {
      const int32_t choice = j.choice[r];
      j.accepted[r] = place++;
      c = next_child(&j.rows, r, r);
      while (c < T && j.rows.id[c] != choice) c = next_child(&j.rows, r, c);
    }
  }
}

extern "C" int mavk_cuda_accept(const mavk_args_accept *a, mavk_cuda *c) {
  const accept_job j = {a->rows, (const int32_t *)a->choice.p, (int32_t *)a->accepted.p};
  return mavk_run(c, accept_trees, dim3(1), dim3(THREADS), 0, j);
}

/* ---- probabilities -------------------------------------------------------------------------------------------------------------- */

struct sums {
  double p, q;
};
struct ending { /* where a walk ended: kernels/ref/accept.c, rest */
  float taken;
  int32_t end; /* children before row `end` were rejected; -1: no walk ended at this row */
};

struct probability_job {
  mavk_rows rows;
  const float *p, *q; /* (T, V); q may be NULL */
  const int64_t *key; /* (sequences) */
  const int32_t *choice; /* accept_typical: the target's */
  uint64_t seed;
  float epsilon, delta;
  int64_t V, blocks, first; /* blocks of SUM_BLOCK ids in a row; the row that a launch of draws begins with */
  row_cut cut;              /* of the draw */
  int32_t *accepted, *next; /* (T); next: the choice of accept_rejection, the next_ids of accept_typical */
  sums *total;              /* (T, blocks) */
  ending *ends;             /* (T) */
  ranked *part;             /* (rows of a launch, parts) */
  uint32_t *tickets;
};

/* A row's p after `outs` of its children, with ids out[], were rejected: max(p - taken q, 0) without their ids, and q without their ids. */
struct rest {
  const float *p, *q;
  float taken;
  const int32_t *out; /* in shared memory */
  int outs;
};

__device__ static __forceinline__ bool is_rejected(const rest &s, int32_t id) {
  bool found = false;
  for (int i = 0; i < s.outs; i++) found = found || s.out[i] == id;
  return found;
}
__device__ static __forceinline__ float rest_p(const rest &s, int32_t id) {
  const float p = s.q ? s.p[id] - s.taken * s.q[id] : s.p[id];
  return p > MAVK_LEAST && !is_rejected(s, id) ? p : 0;
}
__device__ static __forceinline__ float rest_q(const rest &s, int32_t id) {
  const float q = s.q ? s.q[id] : 0;
  return q > MAVK_LEAST && !is_rejected(s, id) ? q : 0;
}
__device__ static __forceinline__ rest rest_of(const probability_job &j, int64_t r, const int32_t *out, int outs, float taken) {
  const rest s = {j.p + r * j.V, j.q ? j.q + r * j.V : nullptr, taken, out, outs};
  return s;
}

/* Sixteen lanes folded by halves, to the first. */
__device__ static __forceinline__ double fold_lanes(double x) {
  for (int w = 8; w; w /= 2) x += __shfl_down_sync(ALL_LANES, x, w, 16);
  return x;
}

/* Blocks of p in lanes 0 to 15 of a warp and of q in lanes 16 to 31: each lane's sum. */
__device__ static __forceinline__ double rest_lane(const rest &s, int64_t first, int count) {
  const int lane = (int)threadIdx.x % WARP;
  double sum = 0;
  if (lane < 16 || s.q)
#pragma unroll 8
    for (int i = lane % 16; i < count; i += 16) {
      const int32_t id = (int32_t)first + i;
      sum += (double)(lane < 16 ? rest_p(s, id) : rest_q(s, id));
    }
  return sum;
}

/* ---- (1) sums of rows with children ----------------------------------------------------------------------------------------------- */

/* p and q, or the terms of -H: into two stages of shared memory by all threads, and from there by the lanes of the first warp. */
template <bool ENTROPY>
static __global__ void sum_rows(const __grid_constant__ probability_job j) {
  MAVK_SHARED(space);
  float *stage = (float *)space; /* (2, STAGE) */
  pdl_launch();
  pdl_wait();
  const int tid = (int)threadIdx.x, lane = tid % WARP;
  const int64_t r = blockIdx.x / j.blocks, block = blockIdx.x % j.blocks, first = block * SUM_BLOCK;
  const int count = (int)(j.V - first < SUM_BLOCK ? j.V - first : SUM_BLOCK);
  if (block == 0 && tid == 0) {
    j.accepted[r] = -1;
    j.next[r] = 0;
    if (!ENTROPY) j.ends[r].end = -1;
  }
  bool is_parent = false;
  for (int64_t c = r + 1 + tid; c < j.rows.n && j.rows.seq[r] >= 0; c += THREADS)
    is_parent = is_parent || (j.rows.seq[c] >= 0 && mavk_parent(&j.rows, c) == r);
  if (!__syncthreads_or(is_parent)) return;
  const rest s = rest_of(j, r, nullptr, 0, 0);
  double sum = 0;
  for (int at = 0; at < count; at += STAGE) {
    const int n = count - at < STAGE ? count - at : STAGE;
    for (int i = tid; i < n; i += THREADS) {
      const int32_t id = (int32_t)first + at + i;
      const float p = s.p[id];
      stage[i] = p > MAVK_LEAST ? ENTROPY ? p * mavk_log(p) : p : 0;
      if (!ENTROPY) stage[STAGE + i] = rest_q(s, id);
    }
    __syncthreads();
    if (tid < WARP && (lane < 16 || !ENTROPY))
#pragma unroll 8
      for (int i = lane % 16; i < n; i += 16) sum += (double)stage[lane / 16 * STAGE + i];
    __syncthreads();
  }
  if (tid >= WARP) return;
  sum = fold_lanes(sum);
  sums *total = &j.total[r * j.blocks + block];
  if (lane == 0) total->p = sum;
  if (lane == 16) total->q = sum;
}

__device__ static sums total_of(const sums *block, int64_t blocks) {
  sums s = {0, 0};
  for (int64_t b = 0; b < blocks; b++) s.p += block[b].p, s.q += block[b].q;
  return s;
}

/* ---- (2) the walks ---------------------------------------------------------------------------------------------------------------- */

/* The sums of a row after a rejection, by all threads of the block. */
__device__ static __forceinline__ sums sum_again(const probability_job &j, const rest &s, sums *block /* (blocks) shared */) {
  const int lane = (int)threadIdx.x % WARP;
  __syncthreads();
  for (int64_t b = threadIdx.x / WARP; b < j.blocks; b += WALKERS / WARP) {
    const int64_t first = b * SUM_BLOCK;
    const double sum = fold_lanes(rest_lane(s, first, (int)(j.V - first < SUM_BLOCK ? j.V - first : SUM_BLOCK)));
    if (lane == 0) block[b].p = sum;
    if (lane == 16) block[b].q = sum;
  }
  __syncthreads();
  return total_of(block, j.blocks);
}

static __global__ void __launch_bounds__(WALKERS, 1) walk_rejection(const __grid_constant__ probability_job j) {
  MAVK_SHARED(space);
  sums *block = (sums *)space;              /* (blocks) */
  int32_t *out = (int32_t *)(block + j.blocks); /* (children) rejected ids */
  pdl_launch();
  pdl_wait();
  const int64_t T = j.rows.n, root = blockIdx.x;
  const bool writes = threadIdx.x == 0;
  int32_t place = 0;
  int64_t r = is_root(&j.rows, root) ? root : T;
  while (r < T) { /* all threads walk alike */
    const int64_t key = j.key[j.rows.seq[r]];
    const int32_t pos = j.rows.pos[r];
    int64_t c = next_child(&j.rows, r, r), end = c, child = T;
    rest s = rest_of(j, r, out, 0, 0);
    sums sum = {0, 0};
    if (c < T) sum = total_of(j.total + r * j.blocks, j.blocks);
    while (c < T) {
      const int32_t id = j.rows.id[c];
      const double u = mavk_uniform(mavk_stream(j.seed, MAVK_STREAM_TRY), key, pos, id), p = rest_p(s, id), q = rest_q(s, id);
      if (q > 0 ? u * q * sum.p < p * sum.q : u * sum.p < p) { /* u < (p / P) / (q / Q); certain drafts: q / Q = 1 */
        child = c;
        break;
      }
      rest next = s;
      if (writes) out[next.outs] = id;
      next.outs++;
      if (q > 0) next.taken = (float)(s.taken + sum.p / sum.q);
      sum = sum_again(j, next, block);
      if (!(sum.p > 0)) break; /* nothing is left, by rounding: the draw is from p as it was */
      s = next;
      end = c + 1;
      c = next_child(&j.rows, r, c);
    }
    if (writes) {
      j.accepted[r] = place;
      if (child < T) {
        j.next[r] = j.rows.id[child];
      } else {
        j.ends[r].taken = s.taken;
        j.ends[r].end = (int32_t)end;
      }
    }
    place++;
    r = child;
    __syncthreads();
  }
}

/* ---- (3) the draw ----------------------------------------------------------------------------------------------------------------- */

static __global__ void draw_rest(const __grid_constant__ probability_job j) {
  MAVK_SHARED(space);
  uint32_t *outs = (uint32_t *)(space + ROW_SPACE);
  int32_t *out = (int32_t *)(outs + 1);
  pdl_launch();
  pdl_wait();
  const row_part p = row_part_of(j.cut);
  const int64_t r = j.first + p.row;
  const ending e = j.ends[r];
  if (e.end < 0) return;
  if (threadIdx.x == 0) *outs = 0;
  __syncthreads();
  for (int64_t c = r + 1 + threadIdx.x; c < e.end; c += THREADS)
    if (j.rows.seq[c] >= 0 && mavk_parent(&j.rows, c) == r) out[atomicAdd(outs, 1u)] = j.rows.id[c];
  __syncthreads();
  const rest s = rest_of(j, r, out, (int)*outs, e.taken);
  const noise_key n = {mavk_stream(j.seed, MAVK_STREAM_RESIDUAL), j.key[j.rows.seq[r]], j.rows.pos[r]};
  ranked best = draw_part(p, n, space, [&s](int32_t id) {
    const float x = rest_p(s, id);
    return x > 0 ? mavk_log(x) : -INFINITY;
  });
  if (j.cut.parts > 1) {
    ranked *part = j.part + p.row * j.cut.parts;
    if (threadIdx.x == 0) part[p.part] = best;
    if (!row_is_last(&j.tickets[p.row], j.cut.parts, space)) return;
    best = parts_fold(part, j.cut.parts, (ranked)0, space, fold_max());
  }
  if (threadIdx.x == 0) j.next[r] = id_of(best);
}

/* ---- typical acceptance ----------------------------------------------------------------------------------------------------------- */

static __global__ void walk_typical(const __grid_constant__ probability_job j) {
  pdl_launch();
  pdl_wait();
  const int64_t T = j.rows.n, root = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  if (root >= T) return;
  int32_t place = 0;
  for (int64_t r = is_root(&j.rows, root) ? root : T, child; r < T; r = child) {
    const float *p = j.p + r * j.V;
    int64_t c = next_child(&j.rows, r, r);
    child = T;
    if (c < T) {
      const double limit = fmin((double)j.epsilon, j.delta * exp(total_of(j.total + r * j.blocks, j.blocks).p)); /* the sum is -H */
      for (; c < T; c = next_child(&j.rows, r, c))
        if (p[j.rows.id[c]] > limit && (child == T || p[j.rows.id[c]] > p[j.rows.id[child]])) child = c;
    }
    j.accepted[r] = place++;
    j.next[r] = child < T ? j.rows.id[child] : j.choice[r];
  }
}

/* ---- launches ----------------------------------------------------------------------------------------------------------------------- */

/* Places in scratch: the sums, the endings, and last what the parts of a draw leave. */
static int lay_out(mavk_cuda *c, probability_job *j, int64_t *draws) {
  const int64_t T = j->rows.n;
  const size_t before = (size_t)(T * j->blocks) * sizeof(sums) + (size_t)T * sizeof(ending), each = (size_t)j->cut.parts * sizeof(ranked);
  j->total = (sums *)c->scratch;
  j->ends = (ending *)(j->total + T * j->blocks);
  j->part = (ranked *)(j->ends + T);
  j->tickets = c->tickets;
  if (before + each > c->scratch_bytes)
    return c->fail(c, "%lld rows of %lld probabilities do not fit the scratch memory", (long long)T, (long long)j->V);
  *draws = (int64_t)((c->scratch_bytes - before) / each);
  if (*draws > MAVK_CUDA_TICKETS) *draws = MAVK_CUDA_TICKETS;
  return 0;
}

extern "C" int mavk_cuda_accept_rejection(const mavk_args_accept_rejection *a, mavk_cuda *c) {
  probability_job j = {};
  int64_t draws = 0;
  j.rows = a->rows;
  j.p = (const float *)a->p.p, j.q = (const float *)a->q.p;
  j.key = a->kv.key;
  j.seed = (uint64_t)a->seed;
  j.V = a->p.n[1];
  j.blocks = ceil_div(j.V, SUM_BLOCK);
  j.cut = row_cut_of(&a->p);
  j.accepted = (int32_t *)a->accepted.p, j.next = (int32_t *)a->choice.p;
  MAVK_TRY_CUDA(lay_out(c, &j, &draws));
  const int64_t T = a->rows.n;
  if (T > ROWS_MAX) return c->fail(c, "%lld rows; accept_rejection takes up to %d", (long long)T, ROWS_MAX);
  const size_t out_bytes = (size_t)T * sizeof(int32_t);
  MAVK_TRY_CUDA(mavk_run(c, sum_rows<false>, dim3((unsigned)(T * j.blocks)), dim3(THREADS), 2 * STAGE * sizeof(float), j));
  MAVK_TRY_CUDA(mavk_run(c, walk_rejection, dim3((unsigned)T), dim3(WALKERS), (size_t)j.blocks * sizeof(sums) + out_bytes, j));
  for (; j.first < T; j.first += draws) {
    j.cut.rows = T - j.first < draws ? T - j.first : draws;
    MAVK_TRY_CUDA(mavk_run(c, draw_rest, dim3((unsigned)(j.cut.rows * j.cut.parts)), dim3(THREADS), ROW_SPACE + sizeof(uint32_t) + out_bytes, j));
  }
  return 0;
}

extern "C" int mavk_cuda_accept_typical(const mavk_args_accept_typical *a, mavk_cuda *c) {
  probability_job j = {};
  int64_t draws = 0;
  j.rows = a->rows;
  j.p = (const float *)a->p.p;
  j.choice = (const int32_t *)a->choice.p;
  j.epsilon = a->epsilon, j.delta = a->delta;
  j.V = a->p.n[1];
  j.blocks = ceil_div(j.V, SUM_BLOCK);
  j.cut = row_cut_of(&a->p);
  j.accepted = (int32_t *)a->accepted.p, j.next = (int32_t *)a->next_ids.p;
  MAVK_TRY_CUDA(lay_out(c, &j, &draws));
  const int64_t T = a->rows.n;
  MAVK_TRY_CUDA(mavk_run(c, sum_rows<true>, dim3((unsigned)(T * j.blocks)), dim3(THREADS), STAGE * sizeof(float), j));
  return mavk_run(c, walk_typical, dim3((unsigned)ceil_div(T, THREADS)), dim3(THREADS), 0, j);
}
