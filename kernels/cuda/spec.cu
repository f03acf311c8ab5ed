/* kernels/cuda/spec.cu - what happens between two speculative steps: the rows of the next step, and what is counted and timed.
 * kernels/ref/spec.c says what each op means; here every row is worked out by a thread of its own, from what was there before.
 *
 * Grid: one block each. Bound by latency: all fit a line or two of memory for the row counts of a step. Exact. */
#include "cuda.h"

#define THREADS 256

/* ---- rows ----------------------------------------------------------------------------------------------------------------------- */

struct advance_job {
  mavk_rows rows, next; /* may be the same */
  const int32_t *accepted, *choice; /* (T) */
  int32_t shift;
  int4 *made; /* (N): is the row written; its pos, slot and, of a root, the row whose choice is its id (else -1) */
};

/* The last accepted row of a sequence; without one its first row, or -1. */
__device__ static int64_t last_of(const mavk_rows *rows, const int32_t *accepted, int32_t seq) {
  int64_t last = -1;
  int32_t place = 0;
  for (int64_t t = 0; t < rows->n; t++)
    if (rows->seq[t] == seq && (last < 0 || accepted[t] > place)) last = t, place = accepted[t];
  return last;
}

/* Row i of next, from the rows as they were. */
__device__ static int4 advanced(const advance_job &j, int64_t i) {
  const int4 left = make_int4(0, 0, 0, -1);
  if (j.next.seq[i] < 0) return left;
  int64_t root = i; /* of the tree that row i belongs to */
  while (root >= 0 && (j.next.seq[root] < 0 || j.next.parent[root] >= 0)) root--;
  if (root < 0) return left;
  const int64_t last = last_of(&j.rows, j.accepted, j.next.seq[root]);
  if (last < 0) return left;
  const int32_t pos = j.rows.pos[last] + 1 + j.shift;
  int32_t depth = 0;
  for (int64_t r = i; j.next.parent[r] >= 0; r = mavk_parent(&j.next, r)) depth++;
  return make_int4(1, pos + depth, (int32_t)(pos + i - root), i == root ? (int32_t)last : -1);
}

static __global__ void advance(const __grid_constant__ advance_job j) {
  pdl_launch();
  pdl_wait();
  for (int64_t i = threadIdx.x; i < j.next.n; i += THREADS) j.made[i] = advanced(j, i);
  __syncthreads();
  for (int64_t i = threadIdx.x; i < j.next.n; i += THREADS) {
    const int4 m = j.made[i];
    if (!m.x) continue;
    j.next.pos[i] = m.y;
    j.next.slot[i] = m.z;
    if (m.w >= 0) j.next.id[i] = j.choice[m.w];
  }
}

extern "C" int mavk_cuda_rows_advance(const mavk_args_rows_advance *a, mavk_cuda *c) {
  const advance_job j = {a->rows, a->next, (const int32_t *)a->accepted.p, (const int32_t *)a->choice.p, (int32_t)a->shift, (int4 *)c->scratch};
  if ((size_t)a->next.n * sizeof(int4) > c->scratch_bytes) return c->fail(c, "%lld rows do not fit the scratch memory", (long long)a->next.n);
  return mavk_run(c, advance, dim3(1), dim3(THREADS), 0, j);
}

struct follow_job {
  mavk_rows rows, next; /* may be the same */
  const int32_t *accepted, *choice;
};

static __global__ void follow(const __grid_constant__ follow_job j) {
  pdl_launch();
  pdl_wait();
  for (int64_t t = threadIdx.x; t < j.rows.n; t += THREADS) {
    const int32_t seq = j.rows.seq[t];
    const bool is_live = seq >= 0 && j.accepted[t] >= 0;
    const int32_t pos = is_live ? j.rows.pos[t] : 0;
    j.next.id[t] = is_live ? j.choice[t] : 0;
    j.next.seq[t] = is_live ? seq : -1;
    j.next.pos[t] = j.next.slot[t] = pos;
    j.next.parent[t] = -1;
  }
}

extern "C" int mavk_cuda_rows_follow(const mavk_args_rows_follow *a, mavk_cuda *c) {
  const follow_job j = {a->rows, a->next, (const int32_t *)a->accepted.p, (const int32_t *)a->choice.p};
  return mavk_run(c, follow, dim3(1), dim3(THREADS), 0, j);
}

struct put_job {
  const int32_t *ids;
  mavk_rows next;
};

static __global__ void put(const __grid_constant__ put_job j) {
  pdl_launch();
  pdl_wait();
  for (int64_t i = threadIdx.x; i < j.next.n; i += THREADS) j.next.id[i] = j.ids[i];
}

extern "C" int mavk_cuda_rows_put(const mavk_args_rows_put *a, mavk_cuda *c) {
  const put_job j = {(const int32_t *)a->ids.p, a->next};
  return mavk_run(c, put, dim3(1), dim3(THREADS), 0, j);
}

struct last_job {
  mavk_rows rows;
  const int32_t *accepted; /* (T) */
  int32_t *index;          /* (trees) */
  int64_t trees;
};

__device__ static bool is_root(const mavk_rows *rows, int64_t r) { return rows->seq[r] >= 0 && mavk_parent(rows, r) < 0; }

/* The end of the path from a root; a path's rows are those with a place above 0 whose parent is on it. */
__device__ static int64_t end_of(const last_job &j, int64_t root) {
  int64_t last = root;
  for (int64_t t = root + 1; t < j.rows.n; t++)
    if (j.rows.seq[t] >= 0 && j.accepted[t] > 0 && mavk_parent(&j.rows, t) == last) last = t;
  return last;
}

static __global__ void last_rows(const __grid_constant__ last_job j) {
  pdl_launch();
  pdl_wait();
  for (int64_t i = threadIdx.x; i < j.trees; i += THREADS) {
    int64_t tree = -1, root = -1; /* root number i, or the last there is */
    for (int64_t r = 0; r < j.rows.n && tree < i; r++)
      if (is_root(&j.rows, r)) tree++, root = r;
    j.index[i] = root < 0 ? 0 : (int32_t)end_of(j, root);
  }
}

extern "C" int mavk_cuda_last_accepted(const mavk_args_last_accepted *a, mavk_cuda *c) {
  const last_job j = {a->rows, (const int32_t *)a->accepted.p, (int32_t *)a->index.p, a->trees};
  return mavk_run(c, last_rows, dim3(1), dim3(THREADS), 0, j);
}

/* ---- counted and timed ------------------------------------------------------------------------------------------------------------ */

#define SMALL 8192 /* values that a set of bits in shared memory holds; others are searched for */

struct count_job {
  const int32_t *index; /* (n) */
  int64_t n;
  int32_t *total;
};

static __global__ void count(const __grid_constant__ count_job j) {
  MAVK_SHARED(space);
  uint32_t *set = (uint32_t *)space, *distinct = set + SMALL / 32;
  pdl_launch();
  for (int i = (int)threadIdx.x; i <= SMALL / 32; i += THREADS) set[i] = 0; /* distinct too */
  pdl_wait();
  __syncthreads();
  uint32_t mine = 0;
  for (int64_t i = threadIdx.x; i < j.n; i += THREADS) {
    const int32_t v = j.index[i];
    if (v >= 0 && v < SMALL) {
      mine += !(atomicOr(&set[v / 32], 1u << v % 32) >> v % 32 & 1u);
    } else {
      int64_t k = 0;
      while (j.index[k] != v) k++;
      mine += k == i;
    }
  }
  atomicAdd(distinct, mine);
  __syncthreads();
  if (threadIdx.x == 0) *j.total = (int32_t)*distinct;
}

extern "C" int mavk_cuda_count_distinct(const mavk_args_count_distinct *a, mavk_cuda *c) {
  const count_job j = {(const int32_t *)a->index.p, a->index.n[0] * a->index.n[1], (int32_t *)a->total.p + a->at};
  return mavk_run(c, count, dim3(1), dim3(THREADS), SMALL / 8 + sizeof(uint32_t), j);
}

struct stamp_job {
  int64_t *time;
};

static __global__ void stamp(const __grid_constant__ stamp_job j) {
  pdl_launch();
  pdl_wait(); /* everything before is done */
  *j.time = device_clock_ns();
}

extern "C" int mavk_cuda_stamp(const mavk_args_stamp *a, mavk_cuda *c) {
  const stamp_job j = {(int64_t *)a->time.p + a->at};
  return mavk_run(c, stamp, dim3(1), dim3(1), 0, j);
}
