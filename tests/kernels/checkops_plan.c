/* tests/kernels/checkops_plan.c - random arguments for any op, from its description. What no description says (which sizes
 * go together, which values make sense) is in `relate` and `fill` below. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkops.h"
#include "numeric.h"

/* ---- random numbers ----------------------------------------------------------------------------------------------- */

uint64_t rng_next(rng *r) {
  uint64_t z = (r->state += 0x9e3779b97f4a7c15u);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

double rng_uniform(rng *r) {
  return ((double)(rng_next(r) >> 11) + 0.5) * 0x1p-53;
}
double rng_normal(rng *r) {
  return sqrt(-2 * log(rng_uniform(r))) * cos(6.283185307179586 * rng_uniform(r));
}
int64_t rng_range(rng *r, int64_t low, int64_t high) {
  return low + (int64_t)(rng_next(r) % (uint64_t)(high - low + 1));
}

#define PICK(r, ...) ((const int[]){__VA_ARGS__}[rng_range(r, 0, (int64_t)(sizeof((const int[]){__VA_ARGS__}) / sizeof(int)) - 1)])

/* ---- helpers ------------------------------------------------------------------------------------------------------ */

int plan_arg(const plan *p, const char *name) {
  for (int i = 0; i < p->desc->args; i++)
    if (!strcmp(p->desc->arg[i].name, name)) return i;
  return -1;
}

bool plan_is(const plan *p, const char *names) {
  size_t n = strlen(p->desc->name);
  for (const char *s = names; (s = strstr(s, p->desc->name)); s += n)
    if ((s == names || s[-1] == ' ') && (s[n] == ' ' || !s[n])) return true;
  return false;
}

static int64_t *letter(plan *p, char c) {
  return &p->letter[c - 'A'];
}
int64_t operand_count(const operand *v) {
  int64_t n = 1;
  for (int i = 0; i < v->dims; i++) n *= v->shape[i];
  return n;
}

bool plan_broadcasts(const plan *p) {
  const char *result = p->desc->arg[p->desc->args - 1].shape;
  return result && strchr(result, '|');
}

static bool has(const plan *p, mav_arg_kind kind) {
  for (int i = 0; i < p->desc->args; i++)
    if (p->desc->arg[i].kind == kind) return true;
  return false;
}

/* ---- sizes -------------------------------------------------------------------------------------------------------- */

static int64_t any_size(rng *r) {
  if (rng_chance(r, 0.02)) return rng_range(r, 8000, 20000);
  if (rng_chance(r, 0.5))
    return PICK(r, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 160, 255, 256, 257, 320, 511, 512, 513, 640,
                1000, 1025);
  return rng_range(r, 1, 400);
}

static void set_default(plan *p, char c, int64_t value) {
  if (!*letter(p, c)) *letter(p, c) = value;
}

static void at_most(plan *p, char c, int64_t most) {
  if (!p->bench && *letter(p, c) > most) *letter(p, c) = most > 1 ? most : 1;
}

#define LONG_ROWS \
  "penalize sample perturb accept_rejection accept_typical scatter top_k_mask top_p_mask min_p_mask topk argmax softmax log_softmax entropy cumsum sum mean max min"
#define VOCABULARY "embed penalize mark_seen sample perturb accept_rejection accept_typical" /* V: what ids are below */

/* Letters of an op that depend on each other, and what keeps the reference quick. */
static void relate(plan *p, rng *r, int64_t rows, const sizes *fixed) {
  const bool weights = has(p, MAV_ARG_WEIGHT);
  if (fixed) memcpy(p->letter, fixed->letter, sizeof p->letter);
  *letter(p, 'T') = fixed ? *letter(p, 'T') : rows;
  set_default(p, 'T', PICK(r, 1, 1, 2, 3, 4, 5, 7, 8, 11, 13, 16, 17, 19, 20));
  set_default(p, 'K', rng_range(r, 1, 4));
  set_default(p, 'H', *letter(p, 'K') * rng_range(r, 1, 5));
  set_default(p, 'C', PICK(r, 2, 4, 6, 8, 16, 20, 32, 40, 64, 80, 128, 256));
  set_default(p, 'E', rng_range(r, 1, plan_is(p, "router") ? 140 : 9));
  set_default(p, 'A', rng_range(r, 1, *letter(p, 'E') < 3 ? *letter(p, 'E') : 3));
  set_default(p, 'B', rng_chance(r, 0.5) ? 1 : *letter(p, 'A'));
  set_default(p, 'Q', SEQUENCES_MAX + rng_range(r, 0, 2));
  set_default(p, 'V', plan_is(p, VOCABULARY) && !plan_is(p, "embed") ? rng_range(r, 1, 3000) : any_size(r));
  for (const char *c = "DFNIM"; *c; c++) set_default(p, *c, any_size(r));
  if (!p->bench && plan_is(p, LONG_ROWS) && rng_chance(r, 0.3)) *letter(p, 'N') = rng_range(r, 1, 3000);
  for (const char *c = "NMIV"; *c && !weights; c++) at_most(p, 'D', 1000000 / *letter(p, *c));
  if (!p->bench && !weights && plan_is(p, LONG_ROWS) && rng_chance(r, 0.12)) { /* longer than the blocks that threads share */
    *letter(p, 'V') = *letter(p, 'N') = rng_range(r, 16000, 50000);
    at_most(p, 'T', plan_is(p, "accept_rejection accept_typical") ? 7 : 3);
  }
  if (plan_is(p, "accept_rejection accept_typical") && !p->bench && rng_chance(r, 0.3)) *letter(p, 'V') = rng_range(r, 1, 20);
  if (plan_is(p, "scatter")) *letter(p, 'N') = rng_range(r, 1, *letter(p, 'V'));
  if (plan_is(p, "rows_advance rows_put")) *letter(p, 'N') = p->bench ? *letter(p, 'T') : rng_range(r, 1, 20);
  p->next_is_rows = plan_is(p, "rows_advance rows_follow") && rng_chance(r, 0.3);
  if (p->next_is_rows) *letter(p, 'N') = *letter(p, 'T');
  const int64_t T = *letter(p, 'T');
  if (has(p, MAV_ARG_KV) && !plan_is(p, "attention")) at_most(p, 'H', 12 / *letter(p, 'K') * *letter(p, 'K'));
  if (plan_is(p, "norm_qkv rope_append")) {
    at_most(p, 'C', 128);
    *letter(p, 'N') = (*letter(p, 'H') + 2 * *letter(p, 'K')) * *letter(p, 'C');
    at_most(p, 'D', 2000000 / T / *letter(p, 'N'));
  } else if (weights) {
    int64_t slots = *letter(p, 'A') + 1, wide = *letter(p, 'D');
    for (const char *c = "NFEV"; *c; c++) at_most(p, *c, 2000000 / T / wide / slots);
    at_most(p, 'A', *letter(p, 'E'));
    if (*letter(p, 'B') > 1) *letter(p, 'B') = *letter(p, 'A');
  }
  if (weights && !p->bench && rng_chance(r, 0.4)) /* sizes for which f8 weights are shuffled on a device */
    for (const char *c = plan_is(p, "norm_qkv") ? "D" : "DNFV"; *c; c++) *letter(p, *c) = (*letter(p, *c) + 31) / 32 * 32;
  *letter(p, 'R') = *letter(p, 'C') / 2;
  p->star_dims = (int)rng_range(r, 0, *letter(p, 'N') > 3000 ? 1 : 2);
  for (int i = 0; i < 3; i++) p->star[i] = rng_range(r, 1, 5);
  if (p->bench) p->star_dims = 1, p->star[0] = T;
}

/* ---- rows and cache ----------------------------------------------------------------------------------------------- */

static void make_cache(plan *p, rng *r, const sizes *fixed) {
  cache *c = &p->kv;
  c->given = has(p, MAV_ARG_KV);
  c->sequences = (int)rng_range(r, 1, SEQUENCES_MAX);
  c->kv_heads = (int)*letter(p, 'K');
  c->head_dim = (int)*letter(p, 'C');
  c->dtype = PICK(r, MAV_DTYPE_F32, MAV_DTYPE_BF16, MAV_DTYPE_F8);
  c->k_scale = (float)(0.01 + rng_uniform(r) * 0.02); /* some keys and values saturate */
  c->v_scale = (float)(0.01 + rng_uniform(r) * 0.02);
  c->page = PICK(r, 16, 32, 64, 128);
  c->chunk = rng_chance(r, 0.5) ? 0 : PICK(r, 1, 2, 8, 31, 32, 33, 64, 100, 256, 300);
  c->seed = rng_next(r);
  /* A long context for a few rows, or a short one for many. */
  int64_t most = rng_chance(r, 0.3) ? 40 : 3000000 / (*letter(p, 'T') * *letter(p, 'H') * *letter(p, 'C'));
  most = most > 1500 ? 1500 : most < 1 ? 1 : most;
  for (int s = 0; s < SEQUENCES_MAX; s++) {
    int64_t near = PICK(r, 16, 32, 64, 128, 256, 512, 1024) + rng_range(r, -3, 3); /* of pages, chunks and splits */
    c->length[s] = rng_chance(r, 0.15) ? 0 : rng_chance(r, 0.4) && near < most ? near : rng_range(r, 0, most);
    c->key[s] = (int64_t)rng_next(r);
    if (fixed) c->length[s] = fixed->context;
  }
  if (fixed)
    *c = (cache){.given = c->given,
                 .sequences = 1,
                 .length = {fixed->context},
                 .key = {1},
                 .page = 32,
                 .kv_heads = c->kv_heads,
                 .head_dim = c->head_dim,
                 .dtype = MAV_DTYPE_BF16,
                 .seed = 1};
}

static void make_rows(plan *p, rng *r) {
  const bool apart = plan_is(p, PLAN_TREES), tree = !p->bench && rng_chance(r, apart ? 0.8 : 0.5), idle = !p->bench && rng_chance(r, 0.3);
  const int64_t vocabulary = plan_is(p, VOCABULARY) ? *letter(p, 'V') : apart ? 12 : 1000;
  int64_t last[SEQUENCES_MAX] = {-1, -1, -1, -1};
  cache *c = &p->kv;
  p->rows = *letter(p, 'T');
  p->first = !p->bench && !p->next_is_rows && rng_chance(r, 0.3) ? rng_range(r, 1, 6) : 0;
  const int64_t total = p->first + p->rows, trees = rng_range(r, 1, c->sequences < total ? c->sequences : total);
  for (int64_t t = 0; t < total; t++) {
    token *w = &p->row[t];
    *w = (token){(int32_t)rng_range(r, 0, vocabulary - 1), -1, 0, -1, -1};
    if (idle && rng_chance(r, 0.2)) continue;
    const int s = (int)(apart ? t * trees / total : rng_range(r, 0, c->sequences - 1));
    w->seq = (int32_t)s;
    w->parent = (int32_t)last[s];
    if (tree && rng_chance(r, apart ? 0.7 : 0.4)) { /* a side branch: any earlier row of the sequence, or none */
      if (!apart) w->parent = -1;
      for (int64_t u = 0; u < t; u++)
        if (p->row[u].seq == s && rng_chance(r, 0.4)) w->parent = (int32_t)u;
    }
    w->pos = (int32_t)(w->parent < 0 ? c->length[s] : p->row[w->parent].pos + 1);
    w->slot = (int32_t)(c->length[s] + c->appended[s]++);
    last[s] = t;
  }
}

/* Rows to be written: old trees, of sequences that the op's other rows hold. */
static void make_next(plan *p, rng *r, char count) {
  int32_t sequences[SEQUENCES_MAX], trees = 0;
  p->next_rows = *letter(p, count);
  if (p->next_is_rows) return;
  for (int32_t s = 0; s < SEQUENCES_MAX; s++) {
    bool is_there = p->rows == 0;
    for (int64_t t = p->first; t < p->first + p->rows; t++) is_there = is_there || p->row[t].seq == s;
    if (is_there && trees < p->next_rows) sequences[trees++] = s;
  }
  if (trees > 0) trees = (int32_t)rng_range(r, 1, trees);
  int64_t root = 0;
  for (int64_t t = 0; t < p->next_rows; t++) {
    const int64_t tree = t * trees / p->next_rows;
    const bool is_root = t == 0 || tree != (t - 1) * trees / p->next_rows;
    token *w = &p->next[t];
    *w = (token){(int32_t)rng_range(r, 0, 99), -1, 0, (int32_t)rng_range(r, 0, 99), -1};
    if (is_root) root = t;
    if (trees == 0 || (!is_root && !p->bench && rng_chance(r, 0.1))) continue; /* idle */
    w->seq = sequences[trees - 1 - tree];
    w->pos = (int32_t)rng_range(r, 0, 9);
    if (is_root) continue;
    do w->parent = (int32_t)rng_range(r, root, t - 1);
    while (p->next[w->parent].seq < 0);
    w->pos = p->next[w->parent].pos + 1;
  }
}

/* A row of the batch, as the op counts them: is it there, and its parent's number (below 0: not in the batch). */
static bool is_live(const plan *p, int64_t t) { return p->row[p->first + t].seq >= 0; }
static int64_t parent_of(const plan *p, int64_t t) {
  const int32_t parent = p->row[p->first + t].parent;
  return parent < 0 ? -1 : parent - p->first;
}

/* Any live child of row t; -1: it has none. */
static int64_t any_child(const plan *p, int64_t t, rng *r) {
  int64_t child = -1;
  for (int64_t u = t + 1; u < p->rows; u++)
    if (is_live(p, u) && parent_of(p, u) == t && (child < 0 || rng_chance(r, 0.5))) child = u;
  return child;
}

/* ---- values ------------------------------------------------------------------------------------------------------- */

static mav_dtype pick_dtype(rng *r, uint32_t types) {
  for (;;) {
    int t = (int)rng_range(r, 0, MAV_DTYPE_COUNT - 1);
    if (types >> t & 1) return (mav_dtype)t;
  }
}

/* Shape of an argument from its description. */
static void make_shape(plan *p, int i, rng *r) {
  operand *v = &p->v[i];
  const char *s = p->desc->arg[i].shape;
  if (*s == '=') {
    const operand *other = &p->v[plan_arg(p, s + 1)];
    v->dims = other->dims;
    memcpy(v->shape, other->shape, sizeof v->shape);
    return;
  }
  if (*s == '*') {
    for (int d = 0; d < p->star_dims; d++) v->shape[v->dims++] = p->star[d];
    if (!s[1]) v->shape[v->dims++] = p->bench ? *letter(p, 'N') : any_size(r);
    s++;
  }
  for (; *s; s++)
    if (*s != ' ') v->shape[v->dims++] = *letter(p, *s);
}

/* The operands of a binary op: both of one shape, or broadcast. */
static void broadcast_shape(plan *p, int i, rng *r) {
  operand *v = &p->v[i];
  const operand *first = &p->v[0];
  if (i > 0) {
    v->dims = first->dims;
    memcpy(v->shape, first->shape, sizeof v->shape);
  }
  if (p->bench || rng_chance(r, 0.4)) return;
  if (i > 0 && rng_chance(r, 0.3) && v->dims < MAV_DIMS_MAX) { /* wider than the first operand */
    for (int d = v->dims++; d > 0; d--) v->shape[d] = v->shape[d - 1];
    v->shape[0] = rng_range(r, 1, 3);
  } else if (i > 0) { /* fewer dimensions, maybe none */
    int drop = (int)rng_range(r, 0, v->dims);
    v->dims -= drop;
    memmove(v->shape, v->shape + drop, sizeof *v->shape * (size_t)v->dims);
  }
  for (int d = 0; d < v->dims; d++)
    if (rng_chance(r, 0.3)) v->shape[d] = 1;
}

static double cast_value(rng *r, mav_dtype t) {
  if (t == MAV_DTYPE_U8) return (double)rng_range(r, 0, 255);
  if (t == MAV_DTYPE_I32) return (double)((int64_t)rng_next(r) >> rng_range(r, 32, 60));
  if (t == MAV_DTYPE_I64) return (double)((int64_t)rng_next(r) >> rng_range(r, 11, 60));
  static const float special[] = {0,     -0.0f, INFINITY, -INFINITY, NAN, 448,     464,     480,     -449,
                                  65504, 65520, 3e38f,    255.5f,    -1,  0x1p31f, 0x1p63f, 0x1p-10f};
  if (rng_chance(r, 0.2)) return special[rng_range(r, 0, (int64_t)(sizeof special / sizeof *special) - 1)];
  return rng_normal(r) * exp(5 * rng_normal(r));
}

static double element(const plan *p, int i, rng *r, bool ties) {
  const mav_arg_desc *d = &p->desc->arg[i];
  double x = rng_normal(r);
  if (plan_is(p, "cast")) return cast_value(r, p->v[i].dtype);
  if (!strcmp(d->name, "norm") || (plan_is(p, "rmsnorm") && !strcmp(d->name, "w"))) return 1 + 0.2 * x;
  if (!strcmp(d->name, "score")) return 1 / (1 + exp(-x));
  if (!strcmp(d->name, "seen")) return rng_chance(r, 0.1);
  if (!strcmp(d->name, "cond")) return rng_chance(r, 0.5) ? x : 0;
  if (plan_is(p, "log sqrt rsqrt")) return exp(3 * x);
  if (plan_is(p, "div") && !strcmp(d->name, "b")) return (rng_chance(r, 0.5) ? 1 : -1) * exp(x);
  if (plan_is(p, "less equal maximum minimum")) return floor(2 * x);
  if (plan_is(p, "exp") && rng_chance(r, 0.01)) return -200;
  if (plan_is(p, "sigmoid silu tanh") && rng_chance(r, 0.02)) return 200 * x;
  if (plan_is(p, "quantize")) return x * exp(4 * rng_normal(r));
  if (plan_is(p, "count_distinct stamp")) return !strcmp(d->name, "index") ? floor(rng_uniform(r) * (ties ? 3000 : 128)) - ties : 1000 * x;
  if (plan_is(p, "penalize top_k_mask top_p_mask min_p_mask sample perturb softmax log_softmax entropy argmax topk")) {
    if (ties && rng_chance(r, 0.1)) return -INFINITY;
    return ties ? floor(3 * x) / 2 : 3 * x;
  }
  return x;
}

/* A random path down every tree, as an op would accept it. */
static void fill_accepted(const plan *p, int32_t *accepted, rng *r) {
  for (int64_t t = 0; t < p->rows; t++) accepted[t] = -1;
  for (int64_t t = 0; t < p->rows; t++) {
    int32_t place = 0;
    if (!is_live(p, t) || parent_of(p, t) >= 0) continue;
    for (int64_t u = t; u >= 0; u = rng_chance(r, 0.8) ? any_child(p, u, r) : -1) accepted[u] = place++;
  }
}

/* Often a child's id. */
static void fill_choice(const plan *p, int32_t *choice, int64_t limit, rng *r) {
  for (int64_t t = 0; t < p->rows; t++) {
    const int64_t child = any_child(p, t, r);
    choice[t] = child >= 0 && rng_chance(r, 0.8) ? p->row[p->first + child].id : (int32_t)rng_range(r, 0, limit - 1);
    if (choice[t] >= limit) choice[t] = (int32_t)(limit - 1);
  }
}

/* Rows of probabilities, some of them 0. */
static void fill_probabilities(float *p, int64_t rows, int64_t n, rng *r) {
  for (int64_t t = 0; t < rows; t++) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += p[t * n + i] = i != n / 2 && rng_chance(r, 0.2) ? 0 : (float)exp(2 * rng_normal(r));
    for (int64_t i = 0; i < n; i++) p[t * n + i] = (float)(p[t * n + i] / sum);
  }
}

/* Ids of drafts: mostly drawn from the drafter's probabilities (the target's where there are none), now and then a sibling's. */
static void draw_ids(plan *p, rng *r) {
  const int q = plan_arg(p, "q");
  const operand *from = &p->v[q >= 0 && p->v[q].given ? q : plan_arg(p, "p")];
  for (int64_t t = 0; t < p->rows; t++) {
    const int64_t parent = parent_of(p, t), V = from->shape[1];
    if (!is_live(p, t) || parent < 0 || rng_chance(r, 0.1)) continue;
    const float *row = (const float *)from->data + parent * V;
    double u = rng_uniform(r);
    int64_t id = 0;
    while (id < V - 1 && (u -= row[id]) > 0) id++;
    p->row[p->first + t].id = (int32_t)id;
  }
}

/* All different, below limit. */
static void fill_distinct(int32_t *index, int64_t n, int64_t limit, rng *r) {
  int64_t k = 0;
  for (int64_t i = 0; i < limit && k < n; i++)
    if (rng_uniform(r) * (double)(limit - i) < (double)(n - k)) index[k++] = (int32_t)i;
  if (k < n) abort(); /* the last ones are taken with certainty */
  for (int64_t i = n - 1; i > 0 && rng_chance(r, 0.98); i--) { /* in any order */
    const int64_t j = rng_range(r, 0, i);
    const int32_t x = index[i];
    index[i] = index[j];
    index[j] = x;
  }
}

static void fill(plan *p, int i, rng *r) {
  const mav_arg_desc *d = &p->desc->arg[i];
  operand *v = &p->v[i];
  const int64_t n = operand_count(v), last = v->dims ? v->shape[v->dims - 1] : 1;
  const bool ties = !p->bench && rng_chance(r, 0.4);
  v->data = calloc((size_t)n + 1, mav_dtype_bytes(v->dtype));
  if (!v->data) abort();
  const int64_t limit = d->kind == MAV_ARG_INDEX ? *letter(p, *d->limit) : 12;
  if (!strcmp(d->name, "accepted")) {
    fill_accepted(p, v->data, r);
    return;
  }
  if (!strcmp(d->name, "choice")) {
    fill_choice(p, v->data, limit, r);
    return;
  }
  if (plan_is(p, "accept_rejection accept_typical")) {
    fill_probabilities(v->data, n / last, last, r);
    return;
  }
  if (plan_is(p, "scatter") && d->kind == MAV_ARG_INDEX) {
    fill_distinct(v->data, n, limit, r);
    return;
  }
  if (d->kind == MAV_ARG_INDEX) {
    for (int64_t k = 0; k < n; k++) ((int32_t *)v->data)[k] = (int32_t)rng_range(r, 0, limit - 1);
    return;
  }
  const size_t size = mav_dtype_bytes(v->dtype);
  for (int64_t k = 0; k < n; k++) {
    if (p->bench && k >= 65536) { /* a benchmark may repeat itself */
      memcpy((char *)v->data + (size_t)k * size, (char *)v->data + (size_t)(k - 65536) * size, size);
      continue;
    }
    double x = element(p, i, r, ties);
    if (!strcmp(d->name, "rope")) x = pow(10000, -(double)k / (double)n);
    if (x == -INFINITY && k % last == last / 2) x = 0; /* one finite value in every row of logits */
    if (d->kind == MAV_ARG_WEIGHT) x /= v->dtype == MAV_DTYPE_F8 ? 0.02 : sqrt((double)last);
    if (v->dtype == MAV_DTYPE_I64)
      ((int64_t *)v->data)[k] = (int64_t)x;
    else if (v->dtype == MAV_DTYPE_I32)
      ((int32_t *)v->data)[k] = (int32_t)x;
    else
      mavk_put_f32(v->data, (int32_t)v->dtype, k, (float)x);
  }
  if (plan_is(p, "quantize") && !p->bench && rng_chance(r, 0.3))
    memset(v->data, 0, (size_t)last * mav_dtype_bytes(v->dtype)); /* a zero row */
}

static void make_scale(plan *p, int i, rng *r) {
  operand *v = &p->v[i];
  const int64_t E = v->dims == 3 ? v->shape[0] : 1, N = v->shape[v->dims - 2];
  int kind = v->dims == 3 ? PICK(r, 0, 1, 2, 3) : PICK(r, 0, 1);
  if (p->bench) kind = v->dims == 3 ? 3 : 1;
  v->scale_dims = kind == 0 ? (int)rng_range(r, 0, 1) : kind == 3 ? 2 : 1; /* () or (1), (N), (E), (E, N) */
  v->scale_shape[0] = kind == 0 ? 1 : kind == 1 ? N : E;
  v->scale_shape[1] = N;
  int64_t n = kind == 0 ? 1 : v->scale_shape[0] * (kind == 3 ? N : 1);
  v->scale = calloc((size_t)n, sizeof *v->scale);
  if (!v->scale) abort();
  for (int64_t k = 0; k < n; k++) v->scale[k] = (float)(0.02 / sqrt((double)v->shape[v->dims - 1]) * (0.5 + rng_uniform(r)));
  v->act = p->bench ? MAV_ACT_NONE : (mav_act)PICK(r, MAV_ACT_NONE, MAV_ACT_NONE, MAV_ACT_STATIC, MAV_ACT_DYNAMIC);
  v->in_scale = (float)((0.3 + rng_uniform(r)) * 3 / 448); /* some activations saturate */
}

static double number(const plan *p, int i, rng *r) {
  const char *name = p->desc->arg[i].name;
  const int64_t N = *letter((plan *)p, 'N');
  if (!strcmp(name, "eps")) return rng_chance(r, 0.5) ? 1e-5 : 1e-6;
  if (!strcmp(name, "attn_scale")) return rng_chance(r, 0.5) ? 0.1 : 0;
  if (!strcmp(name, "floor_scale")) return PICK(r, 8192, 7, 100);
  if (!strcmp(name, "chunk")) return p->kv.chunk;
  if (!strcmp(name, "scale")) return rng_chance(r, 0.7) ? 0 : 0.3;
  if (!strcmp(name, "top_k")) return (double)rng_range(r, 1, *letter((plan *)p, 'E') < 4 ? *letter((plan *)p, 'E') : 4);
  if (!strcmp(name, "k"))
    return p->bench ? 20
                    : (double)(plan_is(p, "topk") ? rng_range(r, 1, N < 40 ? N : 40) : rng_range(r, 1, rng_chance(r, 0.5) ? 20 : N + 3));
  if (!strcmp(name, "p") && plan_is(p, "min_p_mask")) return p->bench ? 0.05 : rng_chance(r, 0.1) ? PICK(r, 0, 1) : 0.3 * rng_uniform(r);
  if (!strcmp(name, "p")) return p->bench ? 0.95 : rng_chance(r, 0.1) ? 1 : rng_chance(r, 0.1) ? 0.01 : rng_uniform(r);
  if (!strcmp(name, "penalty")) return (double)PICK(r, 10, 13, 7, 20) / 10;
  if (!strcmp(name, "seed")) return (double)rng_range(r, 0, INT64_C(1) << 53);
  if (!strcmp(name, "ahead")) return (double)PICK(r, 0, 0, 1, 2);
  if (!strcmp(name, "stream")) return (double)PICK(r, 0, 0, 1, 7, 15);
  if (!strcmp(name, "at")) return (double)rng_range(r, 0, N - 1);
  if (!strcmp(name, "vocab")) return (double)*letter((plan *)p, 'V');
  if (!strcmp(name, "shift")) return -(double)rng_range(r, 0, 1);
  if (!strcmp(name, "trees")) return (double)rng_range(r, 1, *letter((plan *)p, 'T') < 4 ? *letter((plan *)p, 'T') : 4);
  if (!strcmp(name, "epsilon") || !strcmp(name, "delta")) return rng_chance(r, 0.3) ? p->desc->arg[i].value : exp(-4 * rng_uniform(r));
  if (!strcmp(name, "qk_norm")) return rng_chance(r, 0.5);
  if (!strcmp(name, "half")) return rng_chance(r, 0.5);
  if (!strcmp(name, "dtype")) return (double)rng_range(r, 0, MAV_DTYPE_COUNT - 1);
  return p->desc->arg[i].value;
}

/* Gate and up share their rounded activations: one dtype, one rounding. */
static bool meets_the_same(const plan *p, int i) {
  const char *name = p->desc->arg[i].name;
  return plan_is(p, "ffn_up") && (!strcmp(name, "up") || !strcmp(name, "expert_up"));
}

/* ---- the plan ----------------------------------------------------------------------------------------------------- */

void plan_make(plan *p, int op, uint64_t seed, int64_t rows, const sizes *fixed) {
  rng state = {seed * 1000003 + (uint64_t)op}, *r = &state;
  *p = (plan){.op = op, .desc = mav_op_get(op), .seed = seed, .bench = fixed != NULL};
  for (int i = 0; i < 8; i++) rng_next(r);
  relate(p, r, rows, fixed);
  make_cache(p, r, fixed);
  if (has(p, MAV_ARG_ROWS)) make_rows(p, r);
  for (int i = 0; i < p->desc->args; i++)
    if (p->desc->arg[i].kind == MAV_ARG_ROWS_OUT) make_next(p, r, *p->desc->arg[i].shape);
  const bool experts = p->bench ? p->letter['E' - 'A'] > 1 : rng_chance(r, 0.6), rope = p->bench || rng_chance(r, 0.6);
  if (plan_is(p, "ffn_up ffn_down")) *letter(p, 'S') = experts ? *letter(p, 'A') + 1 : 1;
  p->comm = rng_chance(r, 0.5);
  for (int i = 0; i < p->desc->args; i++) {
    const mav_arg_desc *d = &p->desc->arg[i];
    operand *v = &p->v[i];
    v->given = !d->optional || rng_chance(r, 0.5);
    if (!strcmp(d->name, "rope")) v->given = rope;
    if (plan_is(p, "ffn_up ffn_down") && d->optional) v->given = experts;
    if (d->kind == MAV_ARG_NUM || d->kind == MAV_ARG_INT || d->kind == MAV_ARG_DTYPE) {
      v->number = number(p, i, r);
      v->given = v->given || v->number != d->value || p->bench;
    }
    if (!strcmp(d->name, "eps") && p->bench) v->given = false;
    if (d->kind != MAV_ARG_IN && d->kind != MAV_ARG_INDEX && d->kind != MAV_ARG_MUT && d->kind != MAV_ARG_WEIGHT) continue;
    if (!v->given) continue;
    v->dtype = pick_dtype(r, d->types);
    if (p->bench && d->types >> fixed->weight & 1) v->dtype = fixed->weight;
    if (meets_the_same(p, i)) v->dtype = p->v[i - 1].dtype;
    make_shape(p, i, r);
    if (plan_broadcasts(p)) {
      broadcast_shape(p, i, r);
      v->transposed = v->dims > 1 && !p->bench && rng_chance(r, 0.2);
    }
    if (plan_is(p, "cast")) v->transposed = v->dims > 1 && !p->bench && rng_chance(r, 0.3);
    fill(p, i, r);
    if (d->kind == MAV_ARG_WEIGHT) {
      if (!p->bench && rng_chance(r, 0.5))
        for (int k = 0; k < v->dims; k++) v->pad[k] = (int)rng_range(r, 0, 5);
      if (v->dtype == MAV_DTYPE_F8) make_scale(p, i, r);
      v->shuffled = p->bench || rng_chance(r, 0.7);
      if (meets_the_same(p, i)) v->act = p->v[i - 1].act, v->in_scale = p->v[i - 1].in_scale;
    }
  }
  if (plan_is(p, "accept_rejection accept_typical")) draw_ids(p, r);
}

void plan_free(plan *p) {
  for (int i = 0; i < MAV_ARGS_MAX; i++) {
    free(p->v[i].data);
    free(p->v[i].scale);
  }
}
