/* tests/simt/engine.cc - runs a launch: block after block, one fiber a thread.
 *
 * A thread runs until it waits (a barrier, its warp, the kernel before) or ends; then any ready thread of the same warp goes on, and when
 * the warp has none, any of another warp. "Any" is random, so that a missing barrier gives a wrong result. A fiber whose thread has ended
 * goes on as a thread that has not begun, so threads that never wait cost a call. When nothing is ready and threads wait: a fault. */
#include "engine.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <unordered_map>
#include <vector>

enum wait_for { NOT_STARTED, RUNS, AT_MEETING, AT_BARRIER, AT_PDL, ENDED };
enum { WARPS_MAX = THREADS_MAX / 32, BARRIERS = 16, CANARY = 64 };

struct thread {
  uint3 index;
  unsigned number;
  fiber *at;
  wait_for state;
  bool waited; /* for the kernel before */
  int barrier;
  const char *name; /* of the meeting */
  simt_meeting *meeting;
  uint32_t mask;
  void *post;
};

struct warp {
  uint32_t ready, meeting, pdl, ended; /* lanes that are not there have ended */
};

struct barrier {
  uint32_t waiting[WARPS_MAX];
  int arrived, expected, count, result;
};

struct block {
  run *r;
  uint3 index;
  unsigned threads_count, warps_count, ended;
  uint32_t ready_warps;
  unsigned warp_now;
  bool launched; /* pdl_launch was called */
  unsigned char *map, *shared;
  block *next_free;
  barrier barriers[BARRIERS];
  warp warps[WARPS_MAX];
  thread threads[THREADS_MAX];
};

struct run {
  launch l;
  uint64_t total, start, step, next;
  bool released; /* the kernel before is done */
  block *early;
};

extern "C" {
unsigned char *simt_shared;
unsigned simt_lane;
}
uint3 simt_thread_index, simt_block_index;
dim3 simt_block_size, simt_grid_size;

static thread *now; /* NULL: no kernel runs */
static block *here;
static fiber *home; /* who runs the block */
static block *free_blocks;
static int64_t launches;

/* ---- order ------------------------------------------------------------------------------------------------------------ */

uint64_t simt_seed() {
  static const uint64_t seed = [] {
    const char *s = getenv("MAV_SIMT_SEED");
    return s && *s ? strtoull(s, nullptr, 0) : 1;
  }();
  return seed;
}

static uint64_t random_state = (simt_seed() + 1) * UINT64_C(0x9E3779B97F4A7C15);

uint64_t simt_random() { /* xorshift64*: Vigna, ACM TOMS 42 (2016) */
  uint64_t x = random_state;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  random_state = x;
  return x * UINT64_C(0x2545F4914F6CDD1D) >> 16;
}

/* The first bit of a mask, not 0, at `at` or after it, around the end. */
static unsigned bit_from(uint32_t mask, unsigned at) {
  at &= 31;
  return ((unsigned)__builtin_ctz(mask >> at | mask << (-at & 31)) + at) & 31;
}

static thread *pick(block *b) {
  if (!b->ready_warps) return nullptr;
  const unsigned random = (unsigned)simt_random();
  if (!(b->ready_warps >> b->warp_now & 1)) b->warp_now = bit_from(b->ready_warps, random >> 5);
  warp *w = &b->warps[b->warp_now];
  const unsigned lane = bit_from(w->ready, random);
  w->ready &= ~(1u << lane);
  if (!w->ready) b->ready_warps &= ~(1u << b->warp_now);
  return &b->threads[b->warp_now * 32 + lane];
}

static void set_ready(block *b, unsigned warp_number, uint32_t lanes) {
  b->warps[warp_number].ready |= lanes;
  if (lanes) b->ready_warps |= 1u << warp_number;
}

/* ---- threads ------------------------------------------------------------------------------------------------------------ */

static void become(thread *t) {
  now = t;
  simt_thread_index = t->index;
  simt_lane = t->number % 32;
  t->state = RUNS;
}

static void thread_main();

/* From the fiber `from` to thread t, or home when there is none. */
static void go(fiber *from, thread *t, bool ends) {
  fiber *to = home;
  if (t) {
    if (!t->at && !(t->at = fiber_get(thread_main))) abort(); /* a million stacks would not fit */
    to = t->at;
    become(t);
  } else {
    now = nullptr;
  }
  fiber_switch(from, to, ends);
}

static void park(wait_for state) {
  thread *me = now;
  me->state = state;
  thread *t = pick(here);
  if (t == me)
    become(me);
  else
    go(me->at, t, false);
}

static void thread_ends(thread *t) {
  block *b = here;
  if (b->r->l.pdl && !t->waited) simt_fault(cudaErrorLaunchFailure, "ended without pdl_wait, in a launch that overlaps the one before");
  t->state = ENDED;
  b->ended++;
  b->warps[t->number / 32].ended |= 1u << t->number % 32;
}

static void thread_main() {
  fiber_started();
  for (;;) {
    block *b = here;
    b->r->l.call(b->r->l.kernel, b->r->l.argument);
    thread_ends(now);
    fiber *me = now->at;
    now->at = nullptr;
    thread *t = pick(b);
    if (t && !t->at) {
      t->at = me;
      become(t);
      continue;
    }
    fiber_give(me);
    go(me, t, true);
  }
}

extern "C" void simt_yield(void) {
  block *b = here;
  if (!now || !b->ready_warps) return;
  const unsigned random = (unsigned)simt_random();
  if (random & 3) return;
  b->warp_now = bit_from(b->ready_warps, random >> 2);
  thread *me = now;
  thread *t = pick(b);
  set_ready(b, me->number / 32, 1u << me->number % 32);
  go(me->at, t, false);
}

/* ---- barriers, meetings, the kernel before ---------------------------------------------------------------------------------- */

static void need_kernel(const char *what) {
  if (now) return;
  fprintf(stderr, "simt: %s outside of a kernel\n", what);
  abort();
}

extern "C" int simt_barrier(int id, int threads, int predicate, int what) {
  need_kernel("a barrier");
  if (id < 0 || id >= BARRIERS) simt_fault(cudaErrorLaunchFailure, "barrier %d: there are 0 to %d", id, BARRIERS - 1);
  block *b = here;
  barrier *r = &b->barriers[id];
  thread *me = now;
  const int expected = threads ? threads : (int)b->threads_count;
  if (r->arrived && r->expected != expected)
    simt_fault(cudaErrorLaunchFailure, "barrier %d for %d threads, and others wait at it for %d", id, expected, r->expected);
  r->expected = expected;
  r->arrived++;
  r->count += predicate != 0;
  r->waiting[me->number / 32] |= 1u << me->number % 32;
  me->barrier = id;
  if (r->arrived == expected) {
    r->result = r->count;
    r->arrived = r->count = 0;
    for (unsigned w = 0; w < b->warps_count; w++) {
      set_ready(b, w, r->waiting[w]);
      r->waiting[w] = 0;
    }
    b->warp_now = bit_from(b->ready_warps, (unsigned)simt_random());
  }
  park(AT_BARRIER);
  return what == SIMT_COUNT ? r->result : what == SIMT_AND ? r->result == expected : r->result != 0;
}

extern "C" void simt_meet(const char *name, simt_meeting *meeting, uint32_t mask, void *post) {
  need_kernel(name);
  block *b = here;
  thread *me = now, *lanes = &b->threads[me->number / 32 * 32];
  warp *w = &b->warps[me->number / 32];
  const uint32_t bit = 1u << me->number % 32;
  if (!(mask & bit)) simt_fault(cudaErrorLaunchFailure, "%s: the mask %08x does not hold the calling lane %u", name, mask, me->number % 32);
  me->name = name;
  me->meeting = meeting;
  me->mask = mask;
  me->post = post;
  if (((w->meeting | bit) & mask) != mask) {
    w->meeting |= bit;
    park(AT_MEETING);
    return;
  }
  void *posts[32];
  for (uint32_t left = mask; left; left &= left - 1) {
    const int i = __builtin_ctz(left);
    thread *t = &lanes[i];
    if (t->mask != mask || t->meeting != meeting || (t->name != name && strcmp(t->name, name)))
      simt_fault(cudaErrorLaunchFailure, "%s with the mask %08x, and lane %d waits at %s with the mask %08x", name, mask, i, t->name,
                 t->mask);
    posts[i] = t->post;
  }
  meeting(mask, posts);
  w->meeting &= ~mask;
  set_ready(b, me->number / 32, mask & ~bit);
}

struct shuffle {
  uint64_t in, out;
  unsigned from;
};
static void meet_shuffle(uint32_t mask, void *const *posts) {
  for (uint32_t left = mask; left; left &= left - 1) {
    shuffle *s = (shuffle *)posts[__builtin_ctz(left)];
    s->out = mask >> s->from & 1 ? ((const shuffle *)posts[s->from])->in : ~UINT64_C(0); /* undefined: NaN */
  }
}
extern "C" uint64_t simt_shuffle(const char *name, uint32_t mask, uint64_t bits, unsigned from) {
  shuffle s = {bits, 0, from & 31};
  simt_meet(name, meet_shuffle, mask, &s);
  return s.out;
}

extern "C" void simt_pdl_wait(void) {
  need_kernel("pdl_wait");
  now->waited = true;
  if (here->r->released) return;
  here->warps[now->number / 32].pdl |= 1u << now->number % 32;
  park(AT_PDL);
}

extern "C" void simt_pdl_launch(void) { here->launched = true; }

/* ---- blocks -------------------------------------------------------------------------------------------------------------------- */

static block *block_new() {
  if (block *b = free_blocks) {
    free_blocks = b->next_free;
    return b;
  }
  block *b = (block *)calloc(1, sizeof *b);
  const size_t page = 4096, bytes = SHARED_BYTES_MAX / page * page + page;
  b->map = (unsigned char *)mmap(nullptr, bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (b->map == MAP_FAILED || mprotect(b->map + page, bytes, PROT_READ | PROT_WRITE)) abort();
  b->map += page;
  return b;
}

static unsigned char *shared_end(block *b) { return b->map + SHARED_BYTES_MAX / 4096 * 4096 + 4096; }

static void block_free(block *b) {
  for (unsigned i = 0; i < b->threads_count; i++)
    if (b->threads[i].at) fiber_give(b->threads[i].at);
  b->next_free = free_blocks;
  free_blocks = b;
}

static block *block_begin(run *r, uint64_t number) {
  const launch *l = &r->l;
  block *b = block_new();
  b->r = r;
  b->index = {(unsigned)(number % l->grid.x), (unsigned)(number / l->grid.x % l->grid.y), (unsigned)(number / l->grid.x / l->grid.y)};
  b->threads_count = l->block.x * l->block.y * l->block.z;
  b->warps_count = (b->threads_count + 31) / 32;
  b->ended = 0;
  b->launched = false;
  b->ready_warps = b->warps_count == 32 ? ~0u : (1u << b->warps_count) - 1;
  b->warp_now = bit_from(b->ready_warps, (unsigned)simt_random());
  memset(b->barriers, 0, sizeof b->barriers);
  for (unsigned w = 0; w < b->warps_count; w++) {
    const unsigned lanes = b->threads_count - 32 * w;
    const uint32_t there = lanes < 32 ? (1u << lanes) - 1 : ~0u;
    b->warps[w] = {there, 0, 0, ~there};
  }
  uint3 at = {0, 0, 0};
  for (unsigned i = 0; i < b->threads_count; i++) {
    thread *t = &b->threads[i];
    *t = {};
    t->index = at;
    t->number = i;
    if (++at.x == l->block.x) at.x = 0, ++at.y == l->block.y ? at.y = 0, at.z++ : 0;
  }
  b->shared = shared_end(b) - (l->shared_bytes + 15) / 16 * 16;
  memset(b->shared - CANARY, 0xff, (size_t)(shared_end(b) - b->shared) + CANARY);
  return b;
}

static void thread_fault(block *b, thread *t, cudaError_t error, const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Why nothing goes on. */
static void explain(block *b) {
  for (unsigned i = 0; i < b->threads_count; i++) {
    thread *t = &b->threads[i];
    if (t->state != AT_MEETING) continue;
    for (uint32_t left = t->mask; left; left &= left - 1) {
      const unsigned lane = (unsigned)__builtin_ctz(left), number = i / 32 * 32 + lane;
      const thread *o = &b->threads[number];
      if (number >= b->threads_count)
        return thread_fault(b, t, cudaErrorLaunchFailure, "%s (mask %08x) waits for lane %u, which does not exist", t->name, t->mask, lane);
      if (o->state == ENDED)
        return thread_fault(b, t, cudaErrorLaunchFailure, "%s (mask %08x) waits for lane %u, which has ended", t->name, t->mask, lane);
      if (o->state == AT_BARRIER)
        return thread_fault(b, t, cudaErrorLaunchFailure, "%s (mask %08x) waits for lane %u, which waits at a barrier of the block", t->name,
                            t->mask, lane);
      if (o->state == AT_MEETING && (o->mask != t->mask || o->meeting != t->meeting))
        return thread_fault(b, t, cudaErrorLaunchFailure, "%s (mask %08x) waits for lane %u, which waits at %s (mask %08x)", t->name,
                            t->mask, lane, o->name, o->mask);
    }
  }
  for (unsigned i = 0; i < b->threads_count; i++) {
    thread *t = &b->threads[i];
    if (t->state != AT_BARRIER) continue;
    const barrier *r = &b->barriers[t->barrier];
    for (unsigned j = 0; j < b->threads_count; j++) {
      const thread *o = &b->threads[j];
      if (o->state == AT_BARRIER && o->barrier == t->barrier) continue;
      return thread_fault(b, t, cudaErrorLaunchFailure, "waits at barrier %d (__syncthreads is 0) with %d of %d threads; thread (%u, %u, %u) %s",
                          t->barrier, r->arrived, r->expected, o->index.x, o->index.y, o->index.z,
                          o->state == ENDED ? "has ended" : "waits elsewhere");
    }
    return thread_fault(b, t, cudaErrorLaunchFailure, "waits at barrier %d with %d of %d threads", t->barrier, r->arrived, r->expected);
  }
  thread_fault(b, nullptr, cudaErrorLaunchFailure, "nothing goes on");
}

/* Runs what can run; whether the block has ended. */
static bool block_go(block *b) {
  here = b;
  home = fiber_of_thread();
  simt_shared = b->shared;
  simt_block_index = b->index;
  simt_block_size = b->r->l.block;
  simt_grid_size = b->r->l.grid;
  SIMT_POISON(b->shared - CANARY, CANARY);
  SIMT_POISON(b->shared + b->r->l.shared_bytes, (size_t)(shared_end(b) - b->shared) - b->r->l.shared_bytes);
  if (thread *t = pick(b)) go(home, t, false);
  SIMT_UNPOISON(b->shared - CANARY, (size_t)(shared_end(b) - b->shared) + CANARY);
  char text[512];
  cudaError_t error;
  if (fault_take_signal(text, sizeof text, &error)) {
    thread *t = now;
    now = nullptr;
    thread_fault(b, t, error, "%s", text);
  }
  if (simt_fault_now.error) return false;
  if (b->ended < b->threads_count) {
    uint32_t pdl = 0;
    for (unsigned w = 0; w < b->warps_count; w++) pdl |= b->warps[w].pdl;
    if (!pdl || b->r->released) explain(b);
    return false;
  }
  const launch *l = &b->r->l;
  for (const unsigned char *p = b->shared - CANARY; p < shared_end(b); p++) {
    if (p == b->shared) p += l->shared_bytes;
    if (p < shared_end(b) && *p != 0xff) {
      thread_fault(b, nullptr, cudaErrorIllegalAddress, "wrote shared memory %s", p < b->shared ? "before its start" : "after its end");
      return false;
    }
  }
  if (l->pdl && !b->launched) thread_fault(b, nullptr, cudaErrorLaunchFailure, "no thread called pdl_launch");
  return true;
}

/* ---- launches ---------------------------------------------------------------------------------------------------------------------- */

static uint64_t gcd(uint64_t a, uint64_t b) { return b ? gcd(b, a % b) : a; }

run *run_new(const launch *l) {
  run *r = new run{};
  r->l = *l;
  r->total = (uint64_t)l->grid.x * l->grid.y * l->grid.z;
  r->start = simt_random() % r->total;
  r->step = simt_random() % r->total;
  while (gcd(r->step, r->total) != 1) r->step++;
  launches++;
  return r;
}

static block *run_next(run *r) { return block_begin(r, (r->start + r->next++ * r->step) % r->total); }

static void finish(block *b) {
  if (!simt_fault_now.error) block_go(b);
  block_free(b);
}

void run_early(run *r) {
  if (simt_fault_now.error) return;
  r->early = run_next(r);
  memory_open();
  if (block_go(r->early)) { /* a fault, or a kernel that waits for nothing */
    block_free(r->early);
    r->early = nullptr;
  }
  memory_close();
}

void run_finish(run *r) {
  r->released = true;
  memory_open();
  block *early = r->early;
  r->early = nullptr;
  if (early)
    for (unsigned w = 0; w < early->warps_count; w++) set_ready(early, w, early->warps[w].pdl), early->warps[w].pdl = 0;
  const bool first = simt_random() & 1;
  if (early && first) finish(early);
  while (r->next < r->total && !simt_fault_now.error) finish(run_next(r));
  if (early && !first) finish(early);
  memory_close();
  delete r;
}

void run_abandon(run *r) {
  if (r->early) block_free(r->early);
  delete r;
}

/* ---- names, faults --------------------------------------------------------------------------------------------------------------------- */

static std::unordered_map<const void *, kernel_info> &kernels() {
  static std::unordered_map<const void *, kernel_info> all;
  return all;
}

extern "C" void simt_register(const void *kernel, simt_call *call, size_t argument_bytes, const char *type) {
  kernels().insert({kernel, {call, argument_bytes, type, SHARED_BYTES_PLAIN}});
}

kernel_info *kernel_find(const void *kernel) {
  auto i = kernels().find(kernel);
  return i == kernels().end() ? nullptr : &i->second;
}

/* The kernel's name where the linker knows it, the type of its argument otherwise. */
static void kernel_name(const launch *l, char *text, size_t size) {
  Dl_info info;
  if (dladdr(l->kernel, &info) && info.dli_sname && info.dli_saddr == l->kernel) {
    int status;
    char *plain = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
    snprintf(text, size, "%s", plain ? plain : info.dli_sname);
    free(plain);
    return;
  }
  const char *p = strstr(l->type, "P = ");
  snprintf(text, size, "kernel(%s", p ? p + 4 : l->type);
  if (char *end = strpbrk(text, "];")) *end = ')', end[1] = 0;
}

static void thread_fault_v(block *b, thread *t, cudaError_t error, const char *format, va_list args) {
  char name[256], where[512], place[64] = "";
  kernel_name(&b->r->l, name, sizeof name);
  if (t) snprintf(place, sizeof place, " thread (%u, %u, %u)", t->index.x, t->index.y, t->index.z);
  snprintf(where, sizeof where, "%s: block (%u, %u, %u)%s, launch %lld of seed %llu", name, b->index.x, b->index.y, b->index.z, place,
           (long long)launches, (unsigned long long)simt_seed());
  fault_set(error, where, format, args);
}

static void thread_fault(block *b, thread *t, cudaError_t error, const char *format, ...) {
  va_list args;
  va_start(args, format);
  thread_fault_v(b, t, error, format, args);
  va_end(args);
}

extern "C" void simt_fault(cudaError_t error, const char *format, ...) {
  need_kernel(format);
  va_list args;
  va_start(args, format);
  thread_fault_v(here, now, error, format, args);
  va_end(args);
  engine_leave();
  abort();
}

bool engine_is_inside() { return now != nullptr; }

/* From a thread that will not go on. After a signal it stays `now`, for the message. */
void engine_leave() {
  fiber *me = now->at;
  if (simt_fault_now.error) now = nullptr;
  fiber_switch(me, home, true);
}

bool engine_describe(const void *address, char *text, size_t size) {
  const unsigned char *p = (const unsigned char *)address;
  const block *b = here;
  if (!b || p < b->map - 4096 || p >= b->map + SHARED_BYTES_MAX / 4096 * 4096 + 8192) return false;
  const size_t bytes = b->r->l.shared_bytes;
  if (p >= b->shared)
    snprintf(text, size, "shared memory: %lld bytes after the start of %zu", (long long)(p - b->shared), bytes);
  else
    snprintf(text, size, "shared memory: %lld bytes before the start of %zu", (long long)(b->shared - p), bytes);
  return true;
}
