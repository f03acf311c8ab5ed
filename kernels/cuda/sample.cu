/* kernels/cuda/sample.cu - sample: argmax(x + g), g Gumbel noise keyed by (seed, sequence, position + 1, id); perturb: y = x + g.
 *
 * Grid: rows x parts of 4096 ids (rows.h), 256 threads, four neighbouring ids a thread and step, which share a counter. The block of a row
 * that ends last folds what the parts left. One block a row would leave 131 of 132 multiprocessors idle: a row of 202,048 logits costs
 * about a hundred instructions an id. Moves 4 V bytes a row (perturb 8 V); bound by the noise's arithmetic where nothing was filtered out,
 * else by latency: four ids at -inf cost their loads only. Exact: the operations of kernels/noise.h, compiled without contraction. */
#include "gumbel.h"

#define THREADS 256

struct sample_job {
  const float *x; /* (T, V) */
  mavk_rows rows;
  const int64_t *key; /* (sequences) */
  uint64_t seed;
  int64_t ahead, first; /* first: row that this launch begins with */
  row_cut cut;
  int32_t *ids; /* (T) */
  float *y;     /* (T, V) */
  ranked *part; /* (rows, parts) */
  uint32_t *tickets;
};

__device__ static __forceinline__ noise_key key_of(const sample_job &j, int64_t row, int32_t seq) {
  const noise_key n = {j.seed, j.key[seq], (int32_t)(j.rows.pos[row] + j.ahead)};
  return n;
}

static __global__ void sample_part(const __grid_constant__ sample_job j) {
  MAVK_SHARED(space);
  pdl_launch();
  pdl_wait();
  const row_part p = row_part_of(j.cut);
  const int64_t row = j.first + p.row;
  const int32_t seq = j.rows.seq[row];
  const float *x = j.x + row * j.cut.n;
  ranked best = 0;
  if (seq >= 0) best = draw_part(p, key_of(j, row, seq), space, [x](int32_t id) { return x[id]; });
  if (j.cut.parts > 1) {
    ranked *part = j.part + p.row * j.cut.parts;
    if (threadIdx.x == 0) part[p.part] = best;
    if (!row_is_last(&j.tickets[p.row], j.cut.parts, space)) return;
    best = parts_fold(part, j.cut.parts, (ranked)0, space, fold_max());
  }
  if (threadIdx.x == 0) j.ids[row] = id_of(best);
}

static __global__ void perturb_part(const __grid_constant__ sample_job j) {
  pdl_launch();
  pdl_wait();
  const row_part p = row_part_of(j.cut);
  const int32_t seq = j.rows.seq[p.row];
  const float *x = j.x + p.row * j.cut.n + p.first;
  float *y = j.y + p.row * j.cut.n + p.first;
  for (int i = 4 * (int)threadIdx.x; i < p.count; i += 4 * THREADS) {
    float v[4], g[4] = {0, 0, 0, 0};
    bool any = false;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      v[k] = seq >= 0 && i + k < p.count ? x[i + k] : 0;
      any = any || v[k] != -INFINITY;
    }
    if (seq >= 0 && any) noise_of(g, key_of(j, p.row, seq), (int32_t)p.first + i);
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (i + k < p.count) y[i + k] = v[k] + g[k];
  }
}

extern "C" int mavk_cuda_sample(const mavk_args_sample *a, mavk_cuda *c) {
  sample_job j = {};
  j.x = (const float *)a->x.p;
  j.rows = a->rows;
  j.key = a->kv.key;
  j.seed = (uint64_t)a->seed;
  j.ahead = a->ahead;
  j.cut = row_cut_of(&a->x);
  j.ids = (int32_t *)a->ids.p;
  j.part = (ranked *)c->scratch;
  j.tickets = c->tickets;
  const int64_t group = row_group(c, &j.cut, (size_t)j.cut.parts * sizeof(ranked));
  if (group == 0) return c->fail(c, "a row of %lld logits does not fit the scratch memory", (long long)j.cut.n);
  for (int64_t rows = j.cut.rows; j.first < rows; j.first += group) {
    j.cut.rows = rows - j.first < group ? rows - j.first : group;
    MAVK_TRY_CUDA(mavk_run(c, sample_part, dim3((unsigned)(j.cut.rows * j.cut.parts)), dim3(THREADS), ROW_SPACE, j));
  }
  return 0;
}

extern "C" int mavk_cuda_perturb(const mavk_args_perturb *a, mavk_cuda *c) {
  sample_job j = {};
  j.x = (const float *)a->x.p;
  j.rows = a->rows;
  j.key = a->kv.key;
  j.seed = mavk_stream((uint64_t)a->seed, (uint32_t)a->stream);
  j.ahead = a->ahead;
  j.cut = row_cut_of(&a->x);
  j.y = (float *)a->y.p;
  return mavk_run(c, perturb_part, dim3((unsigned)(j.cut.rows * j.cut.parts)), dim3(THREADS), 0, j);
}
