/* examples/embed.c - libmav in a C program, without Lua: tensors from a file, ops captured in a graph and replayed, and errors.
 *
 *     cc embed.c -lmav -o embed && ./embed [MODEL_DIR]
 *
 * It scores next tokens with a model's first and last matrix alone (embed, then lm_head): a bigram table of sorts, wrong but
 * short. The whole forward pass is a script: to run it from C, see embed_lua.c.
 */
#include <mav.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 3

/* An op's arguments, set by name. */
typedef struct call {
  mav_runtime *rt;
  int op;
  mav_arg arg[MAV_ARGS_MAX];
} call;

static call call_begin(mav_runtime *rt, const char *name) { return (call){.rt = rt, .op = mav_op_find(name)}; }

static mav_arg *slot(call *c, const char *name) {
  const mav_op_desc *d = mav_op_get(c->op);
  for (int i = 0; d && i < d->args; i++)
    if (!strcmp(d->arg[i].name, name)) return &c->arg[i];
  fprintf(stderr, "no argument %s\n", name);
  exit(2);
}

static void set_tensor(call *c, const char *name, mav_tensor *t) { *slot(c, name) = (mav_arg){.given = true, .tensor = t}; }
static void set_rows(call *c, const char *name, mav_rows *r) { *slot(c, name) = (mav_arg){.given = true, .rows = r}; }
static void set_number(call *c, const char *name, double x) { *slot(c, name) = (mav_arg){.given = true, .number = x}; }

/* Runs or records the op. Results are new references in their slots. */
static mav_err run(call *c) { return mav_op_call(c->rt, c->op, c->arg); }

/* Ids of the two best next tokens of every row. Eager, or recorded when a capture is open: the same code. */
static mav_err forward(mav_runtime *rt, mav_rows *rows, mav_tensor *table, mav_tensor *norm, mav_tensor *head, mav_tensor **best) {
  call embed = call_begin(rt, "embed"), lm_head = call_begin(rt, "lm_head"), topk = call_begin(rt, "topk");
  set_rows(&embed, "rows", rows);
  set_tensor(&embed, "table", table);
  mav_err err = run(&embed);
  if (!err) {
    set_tensor(&lm_head, "x", slot(&embed, "y")->tensor);
    set_tensor(&lm_head, "norm", norm);
    set_tensor(&lm_head, "w", head);
    err = run(&lm_head);
  }
  if (!err) {
    set_tensor(&topk, "x", slot(&lm_head, "logits")->tensor);
    set_number(&topk, "k", 2);
    err = run(&topk);
  }
  mav_tensor_release(slot(&embed, "y")->tensor);
  mav_tensor_release(slot(&lm_head, "logits")->tensor);
  mav_tensor_release(slot(&topk, "values")->tensor);
  *best = slot(&topk, "index")->tensor;
  return err;
}

/* The ids go where the device reads them; nothing is captured again. */
static mav_err fill(mav_rows *rows, const int32_t *ids) {
  for (int i = 0; i < ROWS; i++) {
    mav_err err = mav_rows_set(rows, i, ids[i], 0, i, i - 1, -1);
    if (err) return err;
  }
  return MAV_OK;
}

static void print_best(mav_tokenizer *tok, const int32_t *ids, const int32_t *best) {
  for (int i = 0; i < ROWS; i++) {
    size_t n[3];
    const char *text[3] = {mav_tokenizer_piece(tok, ids[i], &n[0], NULL), mav_tokenizer_piece(tok, best[2 * i], &n[1], NULL),
                           mav_tokenizer_piece(tok, best[2 * i + 1], &n[2], NULL)};
    printf("  after \"%.*s\": \"%.*s\" or \"%.*s\"\n", (int)n[0], text[0], (int)n[1], text[1], (int)n[2], text[2]);
  }
}

/* A kept result of the last launch, compared with the same ops run at once: equal to the bit. */
static mav_err show(mav_runtime *rt, mav_tokenizer *tok, mav_rows *rows, const int32_t *ids, mav_tensor *replayed, mav_tensor *table,
                    mav_tensor *norm, mav_tensor *head) {
  int32_t best[2 * ROWS], again[2 * ROWS];
  mav_tensor *eager = NULL;
  mav_err err = mav_tensor_read(replayed, best, sizeof best);
  if (!err) err = forward(rt, rows, table, norm, head, &eager);
  if (!err) err = mav_tensor_read(eager, again, sizeof again);
  mav_tensor_release(eager);
  if (err) return err;
  print_best(tok, ids, best);
  if (memcmp(best, again, sizeof best)) {
    fprintf(stderr, "the replay differs from the eager run\n");
    exit(1);
  }
  return MAV_OK;
}

int main(int argc, char **argv) {
  const char *dir = argc > 1 ? argv[1] : "models/tiny-maverick";
  mav_diag diag = {0};
  mav_runtime *rt = NULL;
  mav_tokenizer *tok = NULL;
  mav_weights *weights = NULL;
  mav_tensor *table = NULL, *norm = NULL, *head = NULL, *best = NULL;
  mav_rows *rows = NULL;
  mav_graph *graph = NULL;
  int32_t *ids = NULL;
  size_t count = 0;
  mav_err err;

  /* Without a runtime, the diagnostic goes where the caller says. */
  if (mav_runtime_new(&rt, &(mav_runtime_options){.device = "auto"}, &diag) || mav_tokenizer_open(&tok, dir, &diag) ||
      mav_tokenizer_encode(tok, "return a + b", 12, 0, &ids, &count, &diag)) {
    fprintf(stderr, "embed: %s: %s (%s)\n", diag.op, diag.text, mav_err_name(diag.code));
    err = diag.code;
    goto done;
  }
  printf("%s, %s, %d threads; %zu ids\n", mav_runtime_device(rt), mav_runtime_isa(rt), mav_runtime_threads(rt), count);
  if (count < ROWS + 1) {
    fprintf(stderr, "embed: the text is too short\n");
    err = MAV_ERR_RANGE;
    goto done;
  }

  /* From here on it is in the runtime. */
  if ((err = mav_weights_open(&weights, rt, dir)) || (err = mav_weights_get(weights, "model.embed_tokens.weight", &table)) ||
      (err = mav_weights_get(weights, "model.norm.weight", &norm)))
    goto failed;
  if (mav_weights_get(weights, "lm_head.weight", &head)) head = mav_tensor_retain(table); /* tied embeddings */

  /* Capture once. What is kept has memory of its own; everything between lives in planned memory. */
  if ((err = mav_rows_new(&rows, rt, ROWS)) || (err = mav_graph_begin(&graph, rt, rows)) ||
      (err = forward(rt, rows, table, norm, head, &best)) || (err = mav_graph_keep(graph, best)) || (err = mav_graph_end(graph)))
    goto failed;

  /* Replay: set rows, launch, wait, read. Nothing is allocated. */
  for (int step = 0; step < 2; step++) {
    mav_memory_stats before, after;
    mav_runtime_memory(rt, &before);
    if ((err = fill(rows, ids + step)) || (err = mav_graph_launch(graph)) || (err = mav_graph_wait(graph))) goto failed;
    mav_runtime_memory(rt, &after);
    printf("launch %d: %lld allocations\n", step + 1, (long long)(after.host_allocs - before.host_allocs));
    if ((err = show(rt, tok, rows, ids + step, best, table, norm, head))) goto failed;
  }

  /* A mistake: the norm's weight in the place of the matrix. The call fails, says why, and changes nothing. */
  mav_tensor *none = NULL;
  if (!forward(rt, rows, table, norm, norm, &none)) {
    fprintf(stderr, "embed: a wrong shape was accepted\n");
    err = MAV_ERR_STATE;
    goto done;
  }
  const mav_diag *why = mav_runtime_diag(rt);
  printf("as it should: %s: %s (%s)\n", why->op, why->text, mav_err_name(why->code));
  goto done;

failed:
  fprintf(stderr, "embed: %s: %s (%s)\n", mav_runtime_diag(rt)->op, mav_runtime_diag(rt)->text, mav_err_name(err));
done: /* every release takes NULL; the runtime lives until the last object made from it is gone */
  mav_tensor_release(best);
  mav_graph_release(graph);
  mav_rows_release(rows);
  mav_tensor_release(head);
  mav_tensor_release(norm);
  mav_tensor_release(table);
  mav_weights_release(weights);
  mav_free(ids);
  mav_tokenizer_release(tok);
  mav_runtime_release(rt);
  return err ? 1 : 0;
}
