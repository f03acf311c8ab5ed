/* core/plan.c - where planned tensors lie in the arena: largest first, each at the lowest offset that is free during its
 * whole life. Greedy by size: Pisarchyk and Lee, arXiv 2001.03288, section 5.2.
 */
#include <stdlib.h>

#include "graph.h"

#define ALIGN ((size_t)256)

static int by_size(const void *a, const void *b) {
  const mav__plan *x = *(mav__plan *const *)a, *y = *(mav__plan *const *)b;
  if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
  return x->first < y->first ? -1 : x->first > y->first;
}

static int by_offset(const void *a, const void *b) {
  const mav__plan *x = *(mav__plan *const *)a, *y = *(mav__plan *const *)b;
  return x->offset < y->offset ? -1 : x->offset > y->offset;
}

mav_err mav__plan_offsets(mav_graph *g, size_t *total) {
  int64_t n = 0;
  *total = 0;
  mav__plan **order = mav__alloc((size_t)(g->plans.count + 1) * 2 * sizeof *order), **live = order + g->plans.count;
  if (!order) return MAV_RT_NOMEM(g->rt, "graph_end");
  for (int64_t i = 0; i < g->plans.count; i++)
    if (!g->plans.at[i].keep) order[n++] = &g->plans.at[i];
  qsort(order, (size_t)n, sizeof *order, by_size);
  for (int64_t i = 0; i < n; i++) {
    mav__plan *p = order[i];
    size_t bytes = (p->bytes + ALIGN - 1) / ALIGN * ALIGN, offset = 0;
    int64_t m = 0;
    for (int64_t j = 0; j < i; j++) /* placed before, alive at the same time */
      if (order[j]->first <= p->last && p->first <= order[j]->last) live[m++] = order[j];
    qsort(live, (size_t)m, sizeof *live, by_offset);
    for (int64_t j = 0; j < m; j++) {
      if (offset + bytes <= live[j]->offset) break;
      size_t end = live[j]->offset + (live[j]->bytes + ALIGN - 1) / ALIGN * ALIGN;
      if (end > offset) offset = end;
    }
    p->offset = offset;
    if (offset + bytes > *total) *total = offset + bytes;
  }
  mav__free(order);
  return MAV_OK;
}
