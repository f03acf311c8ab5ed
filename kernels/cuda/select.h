/* kernels/cuda/select.h - the edge of a row in ascending order, without sorting it: the smallest key whose cumulative weight is above a
 * limit. top_k_mask, top_p_mask and topk are what is at or above the edge.
 *
 *              key, ascending: value, then         weight of an element        limit
 *   top_k      -  (equals share one key)           1                           N - k
 *   top_p      index                               e^(x - best), fixed point   (1 - p) x the sum of all
 *   topk       index from the end                  1                           N - k
 *
 * Weights are integers, so sums have no order and no rounding: e^(x - best) is counted in units of 2^-62 times the next power of two
 * above N, at least one unit where it is not 0 (then p = 1 drops what has no probability and nothing else).
 *
 * Four phases: (0) the best of every part; (1) a histogram over BINS bins of 1/64 below the best, the last one for all that is 32
 * below or more; the block that ends last finds the bin in which the limit is crossed; (2) the elements of that bin are listed; the
 * block that ends last finds the edge among them, by ranks for a short list, by digits of the key for a long one; (3) the result.
 * Rows of one part run all phases in one launch, longer ones each in its own. Every element is read four times, from the L2 cache
 * after the first. The list's order is that of chance, the result does not depend on it. */
#ifndef MAVK_CUDA_SELECT_H
#define MAVK_CUDA_SELECT_H

#include "rows.h"

typedef unsigned long long u64;

enum select_kind { SELECT_TOP_K, SELECT_TOP_P, SELECT_TOPK };
enum { PHASE_BEST, PHASE_BINS, PHASE_EDGE, PHASE_RESULT };

#define BINS 2048
#define BINS_PER_NAT 64
#define SHORT_LIST 1024                   /* keys and weights of it fill the space of the bins */
#define SELECT_SPACE (ROW_SPACE + BINS * 8)

/* What phases leave for the next. */
struct select_row {
  u64 limit, below, edge; /* the limit; weight of the bins below `bin`; the smallest key that stays */
  int32_t bin;
  uint32_t listed, taken; /* elements of the bin; results of topk */
};

struct select_job {
  const float *x; /* (rows, N) */
  float *y;       /* (rows, N): a mask's result, which holds the list until then; (rows, k): values of topk */
  int32_t *index; /* (rows, k), topk */
  int64_t k, sorted; /* of topk: the next power of two */
  double drop, unit; /* top_p: 1 - p; the weight of the best */
  row_cut cut;
  uint32_t *list; /* (rows, N) element numbers */
  u64 *keys;      /* (rows, sorted), topk */
  u64 *weight;    /* (rows, BINS) */
  float *best;    /* (rows, parts) */
  select_row *state; /* (rows) */
  uint32_t *tickets;
};

/* ---- elements ------------------------------------------------------------------------------------------------------ */

template <int KIND>
__device__ static __forceinline__ u64 key_of(float x, uint32_t i) {
  const u64 value = (u64)ordered_bits(x) << 32;
  return KIND == SELECT_TOP_K ? value : KIND == SELECT_TOP_P ? value | i : value | (0xffffffffu - i);
}

template <int KIND>
__device__ static __forceinline__ u64 weight_of(float x, float best, double unit) {
  if (KIND != SELECT_TOP_P) return 1;
  const float e = x == best ? 1 : expf(x - best);
  if (!(e > 0)) return 0; /* NaN too */
  const u64 w = (u64)((double)e * unit + 0.5);
  return w ? w : 1;
}

/* Ascending with x. */
__device__ static __forceinline__ int bin_of(float x, float best) {
  const float below = (best - x) * BINS_PER_NAT;
  return below < BINS - 1 ? BINS - 1 - (int)below : 0; /* NaN, and -inf below -inf: 0 */
}

/* ---- the first bin through which the sum is above the limit ------------------------------------------------------------ */

struct bin_found {
  u64 before; /* sum of the bins before it */
  int32_t bin; /* -1: there is none */
};

/* space: ROW_SPACE bytes. */
__device__ static __forceinline__ bin_found find_bin(const u64 *bin, int bins, u64 own_sum, u64 limit, void *space) {
  const int each = (bins + (int)blockDim.x - 1) / (int)blockDim.x, first = (int)threadIdx.x * each;
  u64 before = sum_before(own_sum, space);
  bin_found *found = (bin_found *)space;
  __syncthreads();
  if (threadIdx.x == 0) *found = bin_found{0, -1};
  __syncthreads();
  if (before <= limit && before + own_sum > limit) { /* one thread at most */
    int i = first;
    while (before + bin[i] <= limit) before += bin[i++];
    *found = bin_found{before, i};
  }
  __syncthreads();
  const bin_found result = *found;
  __syncthreads();
  return result;
}

/* Of the bins that this thread looks at in find_bin. */
__device__ static __forceinline__ u64 sum_own(const u64 *bin, int bins) {
  const int each = (bins + (int)blockDim.x - 1) / (int)blockDim.x, first = (int)threadIdx.x * each;
  u64 sum = 0;
  for (int i = first; i < first + each && i < bins; i++) sum += bin[i];
  return sum;
}

__device__ static __forceinline__ void clear_bins(u64 *bin, int bins) {
  for (int i = (int)threadIdx.x; i < bins; i += (int)blockDim.x) bin[i] = 0;
}

/* ---- phases -------------------------------------------------------------------------------------------------------- */

__device__ static __forceinline__ void phase_best(const select_job &j, const row_part &p, unsigned char *space) {
  float v[ROW_EACH], best = -INFINITY;
  row_load(v, j.x + p.row * j.cut.n + p.first, p.count, -INFINITY);
#pragma unroll
  for (int k = 0; k < ROW_EACH; k++) best = fold_max()(best, v[k]);
  best = block_fold(best, space, fold_max());
  if (threadIdx.x == 0) j.best[p.row * j.cut.parts + p.part] = best;
  if (p.part > 0) return;
  clear_bins(j.weight + p.row * BINS, BINS);
  if (threadIdx.x == 0) j.state[p.row] = select_row{0, 0, 0, -1, 0, 0};
}

template <int KIND>
__device__ static __forceinline__ void phase_bins(const select_job &j, const row_part &p, float best, unsigned char *space) {
  u64 *bin = (u64 *)(space + ROW_SPACE), *all = j.weight + p.row * BINS;
  float v[ROW_EACH];
  row_load(v, j.x + p.row * j.cut.n + p.first, p.count, -INFINITY);
  clear_bins(bin, BINS);
  __syncthreads();
#pragma unroll
  for (int k = 0; k < ROW_EACH; k++) {
    if (k * (int)blockDim.x + (int)threadIdx.x >= p.count) continue;
    const u64 w = weight_of<KIND>(v[k], best, j.unit);
    if (w) atomicAdd(&bin[bin_of(v[k], best)], w);
  }
  __syncthreads();
  if (j.cut.parts > 1) {
    for (int i = (int)threadIdx.x; i < BINS; i += (int)blockDim.x)
      if (bin[i]) atomicAdd(&all[i], bin[i]);
    if (!row_is_last(&j.tickets[p.row], j.cut.parts, space)) return;
    for (int i = (int)threadIdx.x; i < BINS; i += (int)blockDim.x) bin[i] = all[i];
    __syncthreads();
  }
  const u64 own = sum_own(bin, BINS), sum = block_fold(own, space, fold_sum());
  u64 limit = (u64)(j.cut.n - j.k);
  if (KIND == SELECT_TOP_P) limit = best < INFINITY ? (u64)(j.drop * (double)sum) : sum;
  if (sum > 0 && limit >= sum) limit = sum - 1; /* the best stays */
  __syncthreads();
  const bin_found found = find_bin(bin, BINS, own, limit, space);
  if (threadIdx.x > 0) return;
  j.state[p.row].limit = limit;
  j.state[p.row].below = found.before;
  j.state[p.row].bin = found.bin;
}

/* The edge among a list of elements, below which lies weight `below`; to every thread. */
template <int KIND>
__device__ static __forceinline__ u64 edge_of_list(const select_job &j, const float *x, const uint32_t *list, int listed, float best, u64 below,
                                                   u64 limit, unsigned char *space) {
  u64 *bin = (u64 *)(space + ROW_SPACE), *edge = (u64 *)space;
  const int threads = (int)blockDim.x, thread = (int)threadIdx.x;
  __syncthreads();
  if (listed <= SHORT_LIST && KIND != SELECT_TOP_K) { /* keys differ */
    u64 *key = bin, *weight = bin + SHORT_LIST;
    for (int i = thread; i < listed; i += threads) {
      key[i] = key_of<KIND>(x[list[i]], list[i]);
      weight[i] = weight_of<KIND>(x[list[i]], best, j.unit);
    }
    if (thread == 0) *edge = 0;
    __syncthreads();
    for (int i = thread; i < listed; i += threads) {
      u64 before = below;
      for (int m = 0; m < listed; m++) before += key[m] < key[i] ? weight[m] : 0;
      if (before <= limit && before + weight[i] > limit) *edge = key[i];
    }
    __syncthreads();
    return *edge;
  }
  u64 prefix = 0;
  const int end = KIND == SELECT_TOP_K ? 32 : 0;
  for (int shift = 56; shift >= end; shift -= 8) {
    clear_bins(bin, 256);
    __syncthreads();
    for (int i = thread; i < listed; i += threads) {
      const u64 key = key_of<KIND>(x[list[i]], list[i]);
      if (shift < 56 && key >> (shift + 8) != prefix) continue;
      atomicAdd(&bin[key >> shift & 255], weight_of<KIND>(x[list[i]], best, j.unit));
    }
    __syncthreads();
    const bin_found found = find_bin(bin, 256, sum_own(bin, 256), limit - below, space);
    if (found.bin < 0) return 0;
    prefix = prefix << 8 | (u64)found.bin;
    below += found.before;
  }
  return prefix << end;
}

template <int KIND>
__device__ static __forceinline__ void phase_edge(const select_job &j, const row_part &p, float best, unsigned char *space) {
  select_row *state = &j.state[p.row];
  const float *x = j.x + p.row * j.cut.n;
  uint32_t *list = j.list + p.row * j.cut.n;
  const int bin = state->bin;
  float v[ROW_EACH];
  row_load(v, x + p.first, p.count, -INFINITY);
#pragma unroll
  for (int k = 0; k < ROW_EACH; k++) {
    const int i = k * (int)blockDim.x + (int)threadIdx.x;
    if (i < p.count && bin_of(v[k], best) == bin) list[atomicAdd(&state->listed, 1u)] = (uint32_t)(p.first + i);
  }
  if (!row_is_last(&j.tickets[p.row], j.cut.parts, space)) return;
  const u64 edge = edge_of_list<KIND>(j, x, list, (int)__ldcg(&state->listed), best, state->below, state->limit, space);
  if (threadIdx.x == 0) state->edge = edge;
}

template <int KIND>
__device__ static __forceinline__ void phase_mask(const select_job &j, const row_part &p) {
  const u64 edge = j.state[p.row].edge;
  float v[ROW_EACH], *y = j.y + p.row * j.cut.n + p.first;
  row_load(v, j.x + p.row * j.cut.n + p.first, p.count, -INFINITY);
#pragma unroll
  for (int k = 0; k < ROW_EACH; k++) {
    const int i = k * (int)blockDim.x + (int)threadIdx.x;
    if (i < p.count) y[i] = key_of<KIND>(v[k], (uint32_t)(p.first + i)) >= edge ? v[k] : -INFINITY;
  }
}

/* Descending, by a bitonic network; n: a power of two. */
__device__ static __forceinline__ void sort_keys(u64 *key, int64_t n) {
  for (int64_t size = 2; size <= n; size *= 2)
    for (int64_t step = size / 2; step > 0; step /= 2) {
      for (int64_t t = threadIdx.x; t < n / 2; t += blockDim.x) {
        const int64_t i = t / step * step * 2 + t % step;
        const u64 a = key[i], b = key[i + step];
        if ((a < b) == ((i & size) == 0)) key[i] = b, key[i + step] = a;
      }
      __syncthreads();
    }
}

__device__ static __forceinline__ void phase_topk(const select_job &j, const row_part &p, unsigned char *space) {
  select_row *state = &j.state[p.row];
  const u64 edge = state->edge;
  const float *x = j.x + p.row * j.cut.n;
  u64 *keys = j.keys + p.row * j.sorted;
  float v[ROW_EACH];
  row_load(v, x + p.first, p.count, -INFINITY);
#pragma unroll
  for (int k = 0; k < ROW_EACH; k++) {
    const int i = k * (int)blockDim.x + (int)threadIdx.x;
    const u64 key = key_of<SELECT_TOPK>(v[k], (uint32_t)(p.first + i));
    if (i < p.count && key >= edge) keys[atomicAdd(&state->taken, 1u)] = key;
  }
  if (!row_is_last(&j.tickets[p.row], j.cut.parts, space)) return;
  u64 *sorted = j.sorted <= BINS ? (u64 *)(space + ROW_SPACE) : keys;
  for (int64_t i = threadIdx.x; i < j.sorted; i += blockDim.x) sorted[i] = i < j.k ? keys[i] : 0;
  __syncthreads();
  sort_keys(sorted, j.sorted);
  for (int64_t i = threadIdx.x; i < j.k; i += blockDim.x) {
    const uint32_t at = 0xffffffffu - (uint32_t)sorted[i];
    j.y[p.row * j.k + i] = x[at];
    j.index[p.row * j.k + i] = (int32_t)at;
  }
}

template <int KIND, int FROM, int TO>
static __global__ void select_rows(const __grid_constant__ select_job j) {
  MAVK_SHARED(space);
  pdl_launch();
  pdl_wait();
  const row_part p = row_part_of(j.cut);
  float best = 0;
#pragma unroll
  for (int phase = FROM; phase <= TO; phase++) {
    if (phase > FROM) __syncthreads();
    if (phase == PHASE_BEST) phase_best(j, p, space);
    if (phase == PHASE_BINS || phase == PHASE_EDGE)
      best = parts_fold(j.best + p.row * j.cut.parts, j.cut.parts, -INFINITY, space, fold_max());
    if (phase == PHASE_BINS) phase_bins<KIND>(j, p, best, space);
    if (phase == PHASE_EDGE) phase_edge<KIND>(j, p, best, space);
    if (phase == PHASE_RESULT && KIND == SELECT_TOPK) phase_topk(j, p, space);
    if (phase == PHASE_RESULT && KIND != SELECT_TOPK) phase_mask<KIND>(j, p);
  }
}

/* ---- the host's half ----------------------------------------------------------------------------------------------- */

/* j: x, y, index, k, drop of all rows. */
template <int KIND>
static int run_select(mavk_cuda *c, const mavk_array *x, select_job j) {
  j.cut = row_cut_of(x);
  const int64_t rows = j.cut.rows, n = j.cut.n, y_each = KIND == SELECT_TOPK ? j.k : n;
  if (rows == 0 || n == 0) return 0;
  int bits = 0;
  while ((INT64_C(1) << bits) < n) bits++;
  j.unit = (double)(UINT64_C(1) << (62 - bits));
  for (j.sorted = 1; j.sorted < j.k;) j.sorted *= 2;
  if (KIND != SELECT_TOPK) j.sorted = 0;
  const int64_t listed = KIND == SELECT_TOPK ? n + n % 2 : 0;
  const size_t each = BINS * sizeof(u64) + (size_t)j.sorted * sizeof(u64) + sizeof(select_row) + (size_t)listed * sizeof(uint32_t) +
                      (size_t)(j.cut.parts + j.cut.parts % 2) * sizeof(float);
  const int64_t group = row_group(c, &j.cut, each);
  if (group == 0) return c->fail(c, "rows of %lld elements do not fit the scratch memory", (long long)n);
  const float *first_x = (const float *)x->p;
  float *first_y = j.y;
  int32_t *first_index = j.index;
  j.weight = (u64 *)c->scratch;
  j.keys = j.weight + group * BINS;
  j.state = (select_row *)(j.keys + group * j.sorted);
  j.list = (uint32_t *)(j.state + group);
  j.best = (float *)(j.list + group * listed);
  j.tickets = c->tickets;
  for (int64_t r = 0; r < rows; r += group) {
    j.x = first_x + r * n;
    j.y = first_y + r * y_each;
    if (KIND == SELECT_TOPK) j.index = first_index + r * j.k;
    else j.list = (uint32_t *)j.y;
    j.cut.rows = rows - r < group ? rows - r : group;
    const dim3 grid((unsigned)(j.cut.rows * j.cut.parts)), block((unsigned)j.cut.threads);
    if (j.cut.parts == 1) {
      MAVK_TRY_CUDA(mavk_run(c, select_rows<KIND, PHASE_BEST, PHASE_RESULT>, grid, block, SELECT_SPACE, j));
      continue;
    }
    MAVK_TRY_CUDA(mavk_run(c, select_rows<KIND, PHASE_BEST, PHASE_BEST>, grid, block, ROW_SPACE, j));
    MAVK_TRY_CUDA(mavk_run(c, select_rows<KIND, PHASE_BINS, PHASE_BINS>, grid, block, SELECT_SPACE, j));
    MAVK_TRY_CUDA(mavk_run(c, select_rows<KIND, PHASE_EDGE, PHASE_EDGE>, grid, block, SELECT_SPACE, j));
    MAVK_TRY_CUDA(mavk_run(c, select_rows<KIND, PHASE_RESULT, PHASE_RESULT>, grid, block, SELECT_SPACE, j));
  }
  return 0;
}

#endif
