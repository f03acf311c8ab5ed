/* tests/kernels/checkops.c - the program: every op of ops.def, a candidate against the reference. See --help. */
#include "checkops.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "checkops: checks every op of kernels/ops.def on a candidate against a reference, with random arguments.\n"
    "\n"
    "  checkops                                 the cpu backend against ref, all ops\n"
    "  checkops --isa avx2 --threads 3          another instruction set, another team\n"
    "  checkops --op attention --seed 17        one case again, with its shapes\n"
    "  checkops --against cpu:avx2:1 --exact    the candidate must give the same bits as another build of itself\n"
    "  checkops --bench --op matmul             times instead: us, bytes, GB/s, share of the measured bandwidth\n"
    "\n"
    "  --device D      candidate: cpu (default), ref, cuda (of MAV_CUDA_LIBRARY, or beside this program)\n"
    "  --isa I         its instruction set: avx2, avx512      --threads N   its threads (0: all)\n"
    "  --against SPEC  reference: device[:isa[:threads]]; default ref\n"
    "  --exact         no tolerance\n"
    "  --op NAME       only this op\n"
    "  --cases N       cases per op (default 40; ops with weights or a cache: three times that)\n"
    "  --seed N        only this case                         --first N     first seed of all ops (default 1)\n"
    "  --rows N        rows (T) of every case, up to 150: from 65 on, the cuda backend's products are cuBLASLt's\n"
    "  --plant-fault OP  spoils one element of the candidate's results of OP: must be reported as a failure\n"
    "  --bench         times; --footprint MB: data cycled through, beyond the caches (default 512); --vocab N: for logits\n"
    "  --json          one JSON object per op\n"
    "  --verbose       every case\n"
    "\n"
    "What is random: sizes (odd, even, around powers of two), dtypes, scales of f8 weights and how activations are rounded,\n"
    "views with padding, optional arguments, chains and trees of rows over several sequences, parts of a longer table, idle\n"
    "rows, contexts around page, chunk and split borders. Worst: largest difference over the largest magnitude of the\n"
    "expected result. Rows: each row alone must give the same bits as in its batch; attention rows also with their past in\n"
    "other pages and slots. That is done, and counted, in cases of at most 16 rows: with --rows 17 most ops have none.\n"
    "An op without a case, or whose results are all zero, fails; so does one with a case that an error ended (\"did not run\n"
    "to its end\"). Exit status: 0, 1 (an op failed), 2 (usage, or no device).\n";

#define ALONE_ROWS 16 /* cases of more rows are not compared row by row; beyond 64 the cuda backend does not promise the same bits */

typedef struct options {
  const char *device, *isa, *op, *against, *plant;
  int threads, cases;
  int64_t seed, first, rows, footprint, vocab;
  bool exact, bench, json, verbose;
} options;

static int usage(const char *what, const char *arg) {
  fprintf(stderr, "checkops: %s%s%s; try --help\n", what, arg ? " " : "", arg ? arg : "");
  return 2;
}

static bool number(const char *text, int64_t *out) {
  char *end;
  errno = 0;
  *out = strtoll(text, &end, 10);
  return *text && !*end && !errno && *out >= 0;
}

static int parse(options *o, int argc, char **argv) {
  *o = (options){.device = "cpu", .against = "ref", .cases = 40, .seed = -1, .first = 1, .footprint = 512};
  for (int i = 1; i < argc; i++) {
    const char *a = argv[i], *v = i + 1 < argc ? argv[i + 1] : NULL;
    int64_t n = -1;
    const char **text = !strcmp(a, "--device")        ? &o->device
                        : !strcmp(a, "--isa")         ? &o->isa
                        : !strcmp(a, "--op")          ? &o->op
                        : !strcmp(a, "--against")     ? &o->against
                        : !strcmp(a, "--plant-fault") ? &o->plant
                                                      : NULL;
    if (!strcmp(a, "--help") || !strcmp(a, "-h")) {
      fputs(help, stdout);
      exit(0);
    } else if (!strcmp(a, "--exact"))
      o->exact = true;
    else if (!strcmp(a, "--bench"))
      o->bench = true;
    else if (!strcmp(a, "--json"))
      o->json = true;
    else if (!strcmp(a, "--verbose"))
      o->verbose = true;
    else if (text) {
      if (!v) return usage("no value for", a);
      *text = v, i++;
    } else if (!strcmp(a, "--threads") || !strcmp(a, "--cases") || !strcmp(a, "--seed") || !strcmp(a, "--first") ||
               !strcmp(a, "--rows") || !strcmp(a, "--footprint") || !strcmp(a, "--vocab")) {
      if (!v || !number(v, &n) || (n > 1000000 && strcmp(a, "--seed") && strcmp(a, "--first"))) return usage("no number for", a);
      i++;
      if (a[2] == 't')
        o->threads = (int)n;
      else if (a[2] == 'v')
        o->vocab = n;
      else if (a[2] == 'r')
        o->rows = n;
      else if (a[2] == 'c')
        o->cases = (int)n;
      else if (a[2] == 's')
        o->seed = n;
      else if (a[3] == 'i')
        o->first = n;
      else
        o->footprint = n;
    } else
      return usage("unknown argument", a);
  }
  if (o->op && mav_op_find(o->op) < 0) return usage("there is no op", o->op);
  if (o->rows > 150) return usage("too many --rows: at most", "150");
  if (o->plant && mav_op_find(o->plant) < 0) return usage("there is no op", o->plant);
  return 0;
}

static mav_runtime *open_runtime(const char *device, const char *isa, int threads) {
  mav_runtime *rt;
  mav_diag diag;
  mav_runtime_options o = {.device = device, .isa = isa, .threads = threads};
  if (mav_runtime_new(&rt, &o, &diag) == MAV_OK) return rt;
  fprintf(stderr, "checkops: %s\n", diag.text);
  return NULL;
}

/* "cpu:avx2:1" */
static mav_runtime *open_spec(const char *spec) {
  char text[64];
  snprintf(text, sizeof text, "%s", spec);
  char *isa = strchr(text, ':'), *threads = NULL;
  if (isa) *isa++ = 0, threads = strchr(isa, ':');
  if (threads) *threads++ = 0;
  return open_runtime(text, isa && *isa ? isa : NULL, threads ? atoi(threads) : 0);
}

typedef struct tally {
  int64_t cases, row_cases, not_run; /* not_run: ended with an error */
  verdict all, rows;
  bool differs;         /* the failure that is kept is a difference: the first one goes before errors */
  uint64_t failed_seed; /* of the failure that is kept */
  char failure[768];
} tally;

static void merge(verdict *to, const verdict *v) {
  to->compared += v->compared;
  to->nonzero += v->nonzero;
  to->skipped += v->skipped;
  if (v->worst > to->worst) to->worst = v->worst;
  if (!to->what[0]) memcpy(to->what, v->what, sizeof to->what);
}

/* Spoils the middle element of the first result, or of what is written in place, an id of rows that are written, a key. */
static void spoil(side *s) {
  if (s->next) {
    mav_tensor_set(mav_rows_ids(s->next), s->p->next_rows / 2, -7);
    return;
  }
  if (!strcmp(s->p->desc->name, "kv_move")) side_kv_set(s, 0, 0, 0, 0, 0, 9);
  for (int i = 0; i < s->p->desc->args; i++) {
    mav_arg_kind k = s->p->desc->arg[i].kind;
    if (k != MAV_ARG_OUT && k != MAV_ARG_MUT) continue;
    int64_t n = mav_tensor_count(s->args[i].tensor), at = n / 2;
    double x;
    if (n && mav_tensor_get(s->args[i].tensor, at, &x) == MAV_OK)
      mav_tensor_set(s->args[i].tensor, at, x == x && x - x == 0 ? x * 1.01 + 1 : 0);
    return;
  }
}

static void note(tally *t, const plan *p, bool differs, const char *what) {
  char text[400];
  if (t->failure[0] && (t->differs || !differs)) return;
  t->differs = differs;
  t->failed_seed = p->seed;
  snprintf(t->failure, sizeof t->failure, "seed %llu: %s\n    %s", (unsigned long long)p->seed, what, plan_text(p, text, sizeof text));
}

#define LIBRARY_ROWS 64 /* GEMM_ROWS of kernels/cuda/gemm.h: tensor cores add products of codes with fewer bits than f32 has */

static double tolerance_of(const plan *p, const mav_runtime *candidate) {
  bool rounds = false;
  for (int i = 0; i < p->desc->args; i++) rounds = rounds || (p->v[i].given && p->v[i].act != MAV_ACT_NONE);
  const bool library = rounds && p->letter['T' - 'A'] > LIBRARY_ROWS && !strcmp(mav_runtime_device(candidate), "cuda");
  return library && p->desc->tolerance < 1e-3 ? 1e-3 : p->desc->tolerance;
}

static void run_case(tally *t, const options *o, mav_runtime *reference, mav_runtime *candidate, int op, uint64_t seed) {
  plan p;
  side e, a;
  verdict v = {0}, rows = {0};
  plan_make(&p, op, seed, o->rows, NULL);
  const bool alone = plan_row_count(&p) > 0 && plan_row_count(&p) <= ALONE_ROWS;
  e = a = (side){0};
  mav_err err = side_bind(&e, reference, &p, NULL);
  if (!err) err = side_call(&e);
  const mav_runtime *at = reference;
  if (!err) {
    at = candidate;
    err = side_bind(&a, candidate, &p, NULL);
    if (!err) err = side_call(&a);
  }
  if (!err) {
    if (o->plant && !strcmp(o->plant, p.desc->name)) spoil(&a);
    compare(&v, &p, &e, &a, o->exact ? 0 : tolerance_of(&p, candidate));
    t->cases++;
    if (alone) err = compare_rows(&rows, &p, &a, 4);
    if (!err && alone && !strcmp(p.desc->name, "attention")) err = compare_relocated(&rows, &p, &a, 4);
    if (alone && rows.compared) t->row_cases++;
  }
  char error[sizeof v.what + 64] = "";
  if (err) snprintf(error, sizeof error, "did not run to its end: %s: %.200s", mav_runtime_device(at), mav_runtime_diag(at)->text);
  const char *what = v.what[0] ? v.what : rows.what[0] ? rows.what : error;
  if (what[0]) note(t, &p, what != error, what);
  t->not_run += err != MAV_OK;
  if (o->verbose || o->seed >= 0) {
    char text[512];
    printf("  %s seed %llu: %s | worst %.2e, %lld compared, %lld skipped%s%s\n", p.desc->name, (unsigned long long)seed,
           plan_text(&p, text, sizeof text), v.worst, (long long)v.compared, (long long)v.skipped, what[0] ? " | " : "", what);
  }
  merge(&t->all, &v);
  merge(&t->rows, &rows);
  side_free(&e);
  side_free(&a);
  plan_free(&p);
}

static bool has_arg(const mav_op_desc *d, mav_arg_kind kind) {
  for (int i = 0; i < d->args; i++)
    if (d->arg[i].kind == kind) return true;
  return false;
}

/* True: ok. */
static bool run_op(const options *o, mav_runtime *reference, mav_runtime *candidate, int op) {
  const mav_op_desc *d = mav_op_get(op);
  tally t = {0};
  const int cases = o->cases * (has_arg(d, MAV_ARG_WEIGHT) || has_arg(d, MAV_ARG_KV) ? 3 : 1);
  if (o->seed >= 0)
    run_case(&t, o, reference, candidate, op, (uint64_t)o->seed);
  else
    for (int i = 0; i < cases; i++) run_case(&t, o, reference, candidate, op, (uint64_t)(o->first + i));
  const char *why = "";
  if (t.all.what[0] || t.rows.what[0])
    why = "differs";
  else if (t.not_run)
    why = "did not run to its end";
  else if (!t.cases || !t.all.compared)
    why = "nothing was compared";
  else if (o->seed < 0 && cases >= 10 && !t.all.nonzero)
    why = "all results were zero";
  else if (t.all.skipped > t.all.compared / 2 && o->seed < 0 && cases >= 10)
    why = "too much was skipped";
  const bool ok = !*why;
  if (o->json) {
    printf(
        "{\"op\":\"%s\",\"ok\":%s,\"cases\":%lld,\"compared\":%lld,\"skipped\":%lld,\"worst\":%.3g,\"tolerance\":%.3g,\"row_cases\":%lld,"
        "\"not_run\":%lld}"
        "\n",
        d->name, ok ? "true" : "false", (long long)t.cases, (long long)t.all.compared, (long long)t.all.skipped, t.all.worst,
        o->exact ? 0 : d->tolerance, (long long)t.row_cases, (long long)t.not_run);
  } else {
    printf("%-16s %5lld cases %10lld elements  worst %8.2e of %7.1e  rows %5lld  %s%s%s\n", d->name, (long long)t.cases,
           (long long)t.all.compared, t.all.worst, o->exact ? 0 : d->tolerance, (long long)t.row_cases, ok ? "ok" : "FAIL", ok ? "" : ": ",
           why);
    if (t.failure[0])
      printf("    %s\n    again: checkops --device %s --isa %s --threads %d --against %s%s --op %s --seed %llu --rows %lld\n", t.failure,
             mav_runtime_device(candidate), mav_runtime_isa(candidate), mav_runtime_threads(candidate), o->against,
             o->exact ? " --exact" : "", d->name, (unsigned long long)t.failed_seed, (long long)o->rows);
  }
  fflush(stdout);
  return ok;
}

int main(int argc, char **argv) {
  options o;
  int status = parse(&o, argc, argv);
  if (status) return status;
  mav_runtime *candidate = open_runtime(o.device, o.isa, o.threads);
  if (!candidate) return 2;
  if (o.bench) {
    status = bench(candidate, o.op, o.footprint << 20, o.vocab, o.json);
    mav_runtime_release(candidate);
    return status;
  }
  mav_runtime *reference = open_spec(o.against);
  if (!reference) {
    mav_runtime_release(candidate);
    return 2;
  }
  if (!o.json)
    printf("checkops: %s %s, %d threads, against %s\n", mav_runtime_device(candidate), mav_runtime_isa(candidate),
           mav_runtime_threads(candidate), o.against);
  if (!o.json && o.rows > ALONE_ROWS) printf("rows: compared alone only in cases of at most %d rows; most ops have none\n", ALONE_ROWS);
  int passed = 0, failed = 0;
  for (int op = 0; op < mav_op_count(); op++) {
    if (o.op && strcmp(o.op, mav_op_get(op)->name)) continue;
    if (run_op(&o, reference, candidate, op)) {
      passed++;
      continue;
    }
    failed++;
    mav_tensor *t; /* a device that was lost takes nothing more: the other ops get it anew */
    const bool alive = mav_tensor_new(&t, candidate, MAV_DTYPE_F32, 1, (int64_t[]){1}) == MAV_OK;
    if (alive) {
      mav_tensor_release(t);
      continue;
    }
    mav_runtime_release(candidate);
    candidate = open_runtime(o.device, o.isa, o.threads);
    if (!candidate) return 2;
  }
  mav_runtime_release(candidate);
  mav_runtime_release(reference);
  if (!o.json) printf("%d passed, %d failed\n", passed, failed);
  return failed || !passed ? 1 : 0;
}
