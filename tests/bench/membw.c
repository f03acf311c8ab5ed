/* membw: DRAM read bandwidth, the yardstick of the CPU benchmarks.
 *
 * Every thread sums its own part of a buffer much larger than any cache; the parts are
 * touched first by the thread that reads them. One pass of all threads is one sample.
 *
 *   cc -O3 -pthread membw.c -o membw && ./membw [THREADS=1] [MIB=1024] [PASSES=9]
 *
 * prints {"threads":T,"mib":M,"isa":"..","gb_per_s":{"min":..,"median":..,"max":..}},
 * 1 GB = 1e9 bytes. The widest vectors the processor has are chosen at run time.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define THREADS_MAX 256
#define BLOCK ((size_t)512) /* bytes read in one turn of the inner loops */
#define HUGE_PAGE ((size_t)2 << 20)

typedef uint64_t sum_fn(const uint8_t *p, size_t bytes);

__attribute__((target("avx2"))) static uint64_t sum_avx2(const uint8_t *p, size_t bytes) {
  __m256i acc[8] = {0};
  for (size_t i = 0; i < bytes; i += BLOCK) {
    for (size_t j = 0; j < BLOCK / 32; j++) acc[j % 8] = _mm256_add_epi64(acc[j % 8], _mm256_load_si256((const __m256i *)(p + i) + j));
  }
  for (size_t j = 1; j < 8; j++) acc[0] = _mm256_add_epi64(acc[0], acc[j]);
  uint64_t lane[4];
  _mm256_storeu_si256((__m256i *)lane, acc[0]);
  return lane[0] + lane[1] + lane[2] + lane[3];
}

__attribute__((target("avx512f"))) static uint64_t sum_avx512(const uint8_t *p, size_t bytes) {
  __m512i acc[8] = {0};
  for (size_t i = 0; i < bytes; i += BLOCK) {
    for (size_t j = 0; j < BLOCK / 64; j++) acc[j] = _mm512_add_epi64(acc[j], _mm512_load_si512((const __m512i *)(p + i) + j));
  }
  for (size_t j = 1; j < 8; j++) acc[0] = _mm512_add_epi64(acc[0], acc[j]);
  return (uint64_t)_mm512_reduce_add_epi64(acc[0]);
}

struct probe {
  pthread_barrier_t barrier;
  uint8_t *buffer;
  size_t part; /* bytes a thread */
  int threads, passes;
  sum_fn *sum;
  double *gb_per_s; /* (passes), written by thread 0 */
};

struct worker {
  struct probe *probe;
  int id;
  pthread_t thread;
  volatile uint64_t sink; /* keeps the sums alive */
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Pin to the id-th processor this process may use; a refusal costs only precision. */
static void pin(int id) {
  cpu_set_t allowed, one;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  int left = id % CPU_COUNT(&allowed);
  for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (CPU_ISSET(cpu, &allowed) && left-- == 0) {
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      sched_setaffinity(0, sizeof one, &one);
      return;
    }
  }
}

static void *work(void *arg) {
  struct worker *w = arg;
  struct probe *p = w->probe;
  uint8_t *mine = p->buffer + p->part * (size_t)w->id;
  pin(w->id);
  memset(mine, w->id + 1, p->part);
  for (int i = 0; i < p->passes; i++) {
    pthread_barrier_wait(&p->barrier);
    double start = now();
    w->sink += p->sum(mine, p->part);
    pthread_barrier_wait(&p->barrier);
    if (w->id == 0) p->gb_per_s[i] = (double)p->part * p->threads / (now() - start) / 1e9;
  }
  return NULL;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  static struct worker workers[THREADS_MAX];
  struct probe p = {.threads = argc > 1 ? atoi(argv[1]) : 1, .passes = argc > 3 ? atoi(argv[3]) : 9};
  long mib = argc > 2 ? atol(argv[2]) : 1024;
  if (p.threads < 1 || p.threads > THREADS_MAX || mib < 1 || p.passes < 1) {
    fprintf(stderr, "usage: membw [THREADS=1] [MIB=1024] [PASSES=9]\n");
    return 2;
  }
  const char *isa = "avx2";
  p.sum = sum_avx2;
  if (__builtin_cpu_supports("avx512f")) {
    isa = "avx512";
    p.sum = sum_avx512;
  } else if (!__builtin_cpu_supports("avx2")) {
    fprintf(stderr, "membw: needs AVX2\n");
    return 1;
  }

  size_t total = (size_t)mib << 20;
  p.part = total / (size_t)p.threads / 4096 * 4096;
  p.gb_per_s = malloc((size_t)p.passes * sizeof *p.gb_per_s);
  uint8_t *map = mmap(NULL, total + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED || p.gb_per_s == NULL || p.part == 0 || pthread_barrier_init(&p.barrier, NULL, (unsigned)p.threads) != 0) {
    perror("membw");
    return 1;
  }
  p.buffer = (uint8_t *)(((uintptr_t)map + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
  madvise(p.buffer, total, MADV_HUGEPAGE);

  for (int i = 0; i < p.threads; i++) {
    workers[i].probe = &p;
    workers[i].id = i;
    if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0) {
      perror("membw: pthread_create");
      return 1;
    }
  }
  for (int i = 0; i < p.threads; i++) pthread_join(workers[i].thread, NULL);

  qsort(p.gb_per_s, (size_t)p.passes, sizeof *p.gb_per_s, by_value);
  printf("{\"threads\":%d,\"mib\":%ld,\"isa\":\"%s\",\"gb_per_s\":{\"min\":%.2f,\"median\":%.2f,\"max\":%.2f}}\n", p.threads, mib, isa,
         p.gb_per_s[0], p.gb_per_s[p.passes / 2], p.gb_per_s[p.passes - 1]);
  return 0;
}
