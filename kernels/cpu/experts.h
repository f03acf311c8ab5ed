/* kernels/cpu/experts.h - which rows go to which expert. */
#ifndef MAVK_EXPERTS_H
#define MAVK_EXPERTS_H

#include "pack.h"

/* The (token, choice) pairs t * A + a sorted by expert, in order within one. */
typedef struct experts {
  int64_t groups;    /* distinct experts */
  int32_t *expert;   /* (groups) */
  int32_t *first;    /* (groups + 1) where each one's pairs begin */
  int32_t *pair;     /* (T * A) */
  int32_t *token;    /* (T * A) pair / A */
} experts;

static inline experts experts_group(scratch *s, const int32_t *index, int64_t T, int64_t A, int64_t E) {
  const int64_t n = T * A;
  experts g = {.expert = scratch_take(&s->own, n * 4), .first = scratch_take(&s->own, (n + 1) * 4), .pair = scratch_take(&s->own, n * 4),
               .token = scratch_take(&s->own, n * 4)};
  int32_t *count = scratch_take(&s->own, (E + 1) * 4);
  memset(count, 0, (size_t)(E + 1) * sizeof *count);
  for (int64_t i = 0; i < n; i++) count[index[i]]++;
  int32_t at = 0;
  for (int64_t e = 0; e < E; e++) {
    const int32_t c = count[e];
    count[e] = at;
    if (!c) continue;
    g.expert[g.groups] = (int32_t)e;
    g.first[g.groups++] = at;
    at += c;
  }
  g.first[g.groups] = at;
  for (int64_t i = 0; i < n; i++) {
    const int32_t to = count[index[i]]++;
    g.pair[to] = (int32_t)i;
    g.token[to] = (int32_t)(i / A);
  }
  return g;
}

/* The packed rows of one group. */
static inline packed experts_rows(const experts *g, int64_t group, const packed *all) {
  const int64_t first = g->first[group];
  return (packed){all->x + first * all->ld, all->ld, all->row_scale ? all->row_scale + first : NULL};
}

#endif
