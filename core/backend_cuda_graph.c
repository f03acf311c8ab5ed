/* core/backend_cuda_graph.c - graphs of the cuda backend: captured from the stream once, launched with one call, waited for by looking at a
 * number in pinned memory.
 *
 *   launch k:  uploads of what the host changed | nodes ... | mailbox: small results to pinned memory, then the number k
 *
 * The number of launches is counted on both sides, so launch k is done when the mailbox has published k or more. All launches go
 * to one stream and end in order. A device that fails publishes nothing: so the stream is asked now and then, which finds errors.
 * The edges between the nodes are those of programmatic dependent launch, kept by the capture; between graphs there is none. */
#define _GNU_SOURCE
#include <string.h>
#include <time.h>

#include "backend_cuda.h"

#define LOOKS 256           /* at the number, between questions to the stream */
#define AWAKE_NS 2000000    /* a wait longer than this sleeps between its looks */
#define NAP_NS 20000

typedef struct graph {
  cudaGraphExec_t exec; /* NULL: graphs are switched off, and the nodes run one by one */
  const mav__node *nodes;
  int64_t count;
  int64_t kernels; /* of the nodes; known when they were captured, or launched once */
  int64_t letters;
  mavk_letter letter[];
} graph;

/* Everything of a launch, onto the stream. */
static mav_err enqueue(mav_runtime *rt, graph *g) {
  cuda *c = mav__cuda(rt);
  const int64_t before = c->kernels;
  c->apart = true; /* its weights may have been written a moment ago */
  MAV_TRY(mav__cuda_run(rt, g->nodes, g->count));
  g->kernels = c->kernels - before;
  c->op = "graph_launch";
  for (int64_t i = 0; i < g->letters || i == 0; i += MAVK_LETTERS) {
    const int64_t n = g->letters - i < MAVK_LETTERS ? g->letters - i : MAVK_LETTERS;
    uint32_t *counter = i + n == g->letters ? c->counter : NULL; /* the last one */
    if (mavk_cuda_mailbox(&c->k, g->letter + i, (int)n, counter, c->arrived)) return c->noted;
  }
  return MAV_OK;
}

static mav_err capture(mav_runtime *rt, graph *g) {
  static const char op[] = "graph_end";
  cuda *c = mav__cuda(rt);
  cudaGraph_t captured = NULL;
  MAV_TRY(mav__cuda_run_dry(rt, g->nodes, g->count));
  /* relaxed: a kernel that is new may have to be loaded meanwhile */
  CUDA_TRY(rt, op, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeRelaxed));
  mav_err err = enqueue(rt, g);
  const mav_diag diag = rt->diag;
  const cudaError_t ended = cudaStreamEndCapture(c->stream, &captured); /* in any case */
  if (err) rt->diag = diag;                                             /* the first reason */
  else err = CUDA(rt, op, ended);
  if (!err) err = CUDA(rt, op, cudaGraphInstantiate(&g->exec, captured, 0));
  if (!err) err = CUDA(rt, op, cudaGraphUpload(g->exec, c->stream));
  if (captured) cudaGraphDestroy(captured);
  return err;
}

mav_err mav__cuda_graph_new(mav_runtime *rt, const mav__node *nodes, int64_t count, const mav__mail *mail, int64_t mails, void **out) {
  cuda *c = mav__cuda(rt);
  *out = NULL;
  graph *g = rt->host->alloc(sizeof *g + (size_t)mails * sizeof *g->letter);
  if (!g) return CUDA_FAIL(rt, NOMEM, "graph_end", "out of host memory");
  g->nodes = nodes;
  g->count = count;
  g->letters = mails;
  for (int64_t i = 0; i < mails; i++) g->letter[i] = (mavk_letter){mail[i].host, mail[i].device, (int64_t)mail[i].bytes};
  mav_err err = c->k.off & MAVK_CUDA_OFF_GRAPHS ? MAV_OK : capture(rt, g);
  if (err) mav__cuda_graph_free(rt, g);
  else *out = g;
  return err;
}

int64_t mav__cuda_graph_kernels(void *graph_) {
  const graph *g = graph_;
  return g->kernels;
}

void mav__cuda_graph_free(mav_runtime *rt, void *graph_) {
  cuda *c = mav__cuda(rt);
  graph *g = graph_;
  if (!g) return;
  if (c->seen < c->launched && !rt->failed) mav__cuda_settle(rt);
  if (g->exec) cudaGraphExecDestroy(g->exec);
  rt->host->free(g);
}

mav_err mav__cuda_graph_launch(mav_runtime *rt, void *graph_, uint64_t *ticket) {
  cuda *c = mav__cuda(rt);
  graph *g = graph_;
  if (g->exec) CUDA_TRY(rt, "graph_launch", cudaGraphLaunch(g->exec, c->stream));
  else MAV_TRY(enqueue(rt, g));
  *ticket = ++c->launched;
  return MAV_OK;
}

/* ---- waiting ---------------------------------------------------------------------------------------------------------- */

/* Looks at the number; launches are less than 2^31 ahead of it. */
static bool look(cuda *c, uint64_t ticket) {
  if (c->seen >= ticket) return true;
  const uint32_t number = __atomic_load_n(c->arrived, __ATOMIC_ACQUIRE);
  const int32_t news = (int32_t)(number - (uint32_t)c->seen);
  if (news > 0) c->seen += (uint64_t)news;
  return c->seen >= ticket;
}

/* Asks the stream: an idle one is done, whatever was published. */
static mav_err ask(mav_runtime *rt) {
  cuda *c = mav__cuda(rt);
  cudaError_t e = mav__cuda_injected(rt);
  if (!e) e = cudaStreamQuery(c->stream);
  if (e == cudaErrorNotReady) return MAV_OK;
  if (e) return mav__cuda_error(rt, e, "graph_wait", "cudaStreamQuery()", __FILE__, __LINE__);
  c->seen = c->launched;
  return MAV_OK;
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

mav_err mav__cuda_wait(mav_runtime *rt, uint64_t ticket) {
  cuda *c = mav__cuda(rt);
  int64_t start = 0;
  while (true) {
    for (int i = 0; i < LOOKS; i++) {
      if (look(c, ticket)) return MAV_OK;
      __builtin_ia32_pause();
    }
    if (rt->failed) return mav__cuda_failed(rt);
    MAV_TRY(ask(rt));
    const int64_t now = now_ns();
    if (!start) start = now;
    if (now - start > AWAKE_NS) nanosleep(&(struct timespec){0, NAP_NS}, NULL);
  }
}

bool mav__cuda_poll(mav_runtime *rt, uint64_t ticket) {
  cuda *c = mav__cuda(rt);
  if (look(c, ticket) || rt->failed) return true;
  return ask(rt) != MAV_OK || c->seen >= ticket; /* wait tells the error */
}

mav_err mav__cuda_profile(mav_runtime *rt, const mav__node *nodes, int64_t count, int64_t *ns) {
  static const char op[] = "graph_profile";
  cuda *c = mav__cuda(rt);
  cudaEvent_t event[2] = {NULL, NULL};
  float ms;
  mav_err err = MAV_OK;
  for (int i = 0; i < 2; i++) MAV_GOTO(CUDA(rt, op, cudaEventCreate(&event[i])));
  c->apart = true;
  for (int64_t i = 0; i < count; i++) {
    MAV_GOTO(CUDA(rt, op, cudaEventRecord(event[0], c->stream)));
    MAV_GOTO(mav__cuda_run(rt, &nodes[i], 1));
    MAV_GOTO(CUDA(rt, op, cudaEventRecord(event[1], c->stream)));
    MAV_GOTO(CUDA(rt, op, cudaEventSynchronize(event[1])));
    MAV_GOTO(CUDA(rt, op, cudaEventElapsedTime(&ms, event[0], event[1])));
    ns[i] = (int64_t)((double)ms * 1e6);
  }
done:
  for (int i = 0; i < 2; i++)
    if (event[i]) cudaEventDestroy(event[i]);
  return err;
}
