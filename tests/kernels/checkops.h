/* tests/kernels/checkops.h - checks every op of ops.def: random arguments made from its description (checkops_plan.c), put
 * on a runtime (checkops_bind.c), run, compared (checkops_compare.c), timed (checkops_bench.c). checkops.c is the program.
 *
 * A plan is plain host data, a function of (op, seed) only: the same on every machine and for every runtime.
 */
#ifndef CHECKOPS_H
#define CHECKOPS_H

#include "mav.h"
#include "mavk.h"

#define ROWS_MAX 160 /* of a table */
#define SEQUENCES_MAX 4

typedef struct rng {
  uint64_t state;
} rng;

uint64_t rng_next(rng *r);  /* splitmix64 */
double rng_uniform(rng *r); /* (0, 1) */
double rng_normal(rng *r);
int64_t rng_range(rng *r, int64_t low, int64_t high); /* inclusive */
static inline bool rng_chance(rng *r, double p) {
  return rng_uniform(r) < p;
}

/* One argument. Tensor data is contiguous here; on the runtime it may be a view inside something larger. */
typedef struct operand {
  bool given;
  mav_dtype dtype;
  int dims;
  int64_t shape[MAV_DIMS_MAX];
  void *data; /* owned */
  double number;
  int pad[MAV_DIMS_MAX]; /* WEIGHT: the view leaves out this much of each dimension */
  bool transposed;       /* first and last dimension are stored the other way round */
  float *scale;          /* WEIGHT: owned, NULL: none */
  int scale_dims;
  int64_t scale_shape[2];
  mav_act act;
  float in_scale;
  bool shuffled; /* WEIGHT: if the device does that */
} operand;

typedef struct token {
  int32_t id, seq, pos, slot, parent;
} token;

typedef struct cache {
  bool given;
  int sequences;
  int64_t length[SEQUENCES_MAX], appended[SEQUENCES_MAX], key[SEQUENCES_MAX]; /* committed tokens, slots after them */
  int chunk, page, kv_heads, head_dim;
  mav_dtype dtype;
  float k_scale, v_scale; /* of f8 */
  uint64_t seed; /* of the contents */
} cache;

typedef struct plan {
  int op;
  const mav_op_desc *desc;
  uint64_t seed;
  bool bench;
  int64_t letter[26]; /* 0: not chosen yet */
  int star_dims;
  int64_t star[MAV_DIMS_MAX];
  int64_t rows, first; /* the batch: `rows` rows of the table from `first` on; 0 rows: the op takes none */
  token row[ROWS_MAX]; /* the table; parents count from its start */
  int64_t next_rows;   /* of the table that the op writes; 0: none */
  token next[ROWS_MAX];
  bool next_is_rows; /* one table for both */
  cache kv;
  operand v[MAV_ARGS_MAX];
  bool comm;
} plan;

/* What a benchmark fixes; 0: as the random plan. */
typedef struct sizes {
  int64_t T, letter[26];
  mav_dtype weight;
  int64_t context;
} sizes;

void plan_make(plan *p, int op, uint64_t seed, int64_t rows, const sizes *fixed); /* rows: of T; 0: any number */
void plan_free(plan *p);
int plan_arg(const plan *p, const char *name);  /* -1: none */
bool plan_is(const plan *p, const char *names); /* is its op one of these, separated by spaces? */
bool plan_broadcasts(const plan *p);            /* does its op broadcast? */
int64_t operand_count(const operand *v);
#define PLAN_TREES "accept accept_rejection accept_typical kv_move rows_advance rows_follow rows_put last_accepted" /* no row alone */
/* Rows that can be taken one at a time: how many there are; 0: none. And whether an argument goes by row. */
int64_t plan_row_count(const plan *p);
bool plan_is_by_row(const plan *p, int arg);
/* A plan with only these rows of the batch (ancestors in it first), for plan_row_count(p) > 0. */
void plan_pick(plan *to, const plan *from, const int64_t *rows, int64_t count);
/* Shapes and options in one line. */
const char *plan_text(const plan *p, char *out, size_t bytes);

/* A plan on a runtime. */
typedef struct side {
  mav_runtime *rt;
  const plan *p;
  mav_arg args[MAV_ARGS_MAX];
  mav_rows *rows, *next;
  mav_kv *kv;
  mav_comm *comm;
  int64_t began, ended; /* when side_call did */
  int seq[SEQUENCES_MAX];
  struct side *cache;        /* whose cache it is, when not its own */
  char *kv_host[2];          /* keys and values of the cache on the host, or NULL */
  bool kv_dirty;
  void *host[MAV_ARGS_MAX];  /* arguments of a device on the host, or NULL */
} side;

/* kv: a cache made for the same plan by another side, or NULL. Errors are in the runtime. */
mav_err side_bind(side *s, mav_runtime *rt, const plan *p, side *kv);
mav_err side_call(side *s);
void side_free(side *s);
token side_next(const side *s, int64_t row); /* of what the op wrote */
const void *side_data(side *s, int arg);     /* a contiguous tensor argument in host memory, as it is now */
/* Value (which 0: key, 1: value) of slot, head, channel, as f32; where the slot is not mapped, 0. */
float side_kv_get(const side *s, int seq, int64_t slot, int which, int64_t head, int64_t c);
void side_kv_set(side *s, int seq, int64_t slot, int which, int64_t head, int64_t c, float x);

typedef struct verdict {
  int64_t compared, nonzero, skipped; /* elements */
  double worst;                       /* difference over largest magnitude; 1e30 for a wrong integer, mask or NaN */
  double allowed;
  char what[256]; /* the first element beyond it; empty: ok */
} verdict;

/* Compares results, what is written in place, and what is appended to the cache. */
void compare(verdict *out, const plan *p, side *expected, side *actual, double tolerance);
/* The candidate's rows, up to `most` of them, alone and together: the same bits? */
mav_err compare_rows(verdict *out, const plan *p, side *all, int most);
/* Attention rows again in a cache where their past lies at its own positions, in other pages: the same bits? */
mav_err compare_relocated(verdict *out, const plan *p, side *all, int most);

/* vocabulary: V (and N where it stands for one); 0: as the shapes have it. */
int bench(mav_runtime *rt, const char *only, int64_t footprint, int64_t vocabulary, bool json);

#endif
