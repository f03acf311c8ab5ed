/* kernels/ref/spec.c - what happens between two speculative steps: keys and values that move to their positions, the rows of
 * the next step, and what is counted and timed. */
#include <time.h>

#include "ref.h"

/* A row comes after its ancestors and its slot is not before its position, so nothing is overwritten that is still to move. */
void mavk_ref_kv_move(const mavk_args_kv_move *a) {
  const mavk_kv *kv = &a->kv;
  for (int64_t t = 0; t < a->rows.n; t++) {
    const int32_t seq = a->rows.seq[t], from = a->rows.slot[t], to = a->rows.pos[t];
    if (seq < 0 || *ref_index(&a->accepted, t) < 0 || from == to) continue;
    for (int64_t head = 0; head < kv->kv_heads; head++)
      for (int64_t c = 0; c < kv->head_dim; c++) {
        mavk_convert(kv->k, kv->dtype, ref_k_at(kv, seq, to, head, c), kv->k, kv->dtype, ref_k_at(kv, seq, from, head, c));
        mavk_convert(kv->v, kv->dtype, ref_v_at(kv, seq, to, head, c), kv->v, kv->dtype, ref_v_at(kv, seq, from, head, c));
      }
  }
}

/* The last accepted row of a sequence; without one its first row, or -1. */
static int64_t last_of(const mavk_rows *rows, const mavk_array *accepted, int32_t seq) {
  int64_t last = -1;
  for (int64_t t = 0; t < rows->n; t++)
    if (rows->seq[t] == seq && (last < 0 || *ref_index(accepted, t) > *ref_index(accepted, last))) last = t;
  return last;
}

void mavk_ref_rows_advance(const mavk_args_rows_advance *a) {
  const mavk_rows *next = &a->next;
  int64_t root = -1; /* of the tree that row i belongs to; -1: none that goes on */
  for (int64_t i = 0; i < next->n; i++) {
    if (next->seq[i] < 0) continue;
    if (next->parent[i] < 0) {
      const int64_t last = last_of(&a->rows, &a->accepted, next->seq[i]);
      root = last < 0 ? -1 : i;
      if (root < 0) continue;
      next->id[i] = *ref_index(&a->choice, last);
      next->pos[i] = (int32_t)(a->rows.pos[last] + 1 + a->shift);
    } else if (root >= 0) {
      next->pos[i] = next->pos[mavk_parent(next, i)] + 1;
    }
    if (root >= 0) next->slot[i] = (int32_t)(next->pos[root] + i - root);
  }
}

void mavk_ref_rows_follow(const mavk_args_rows_follow *a) {
  for (int64_t t = 0; t < a->rows.n; t++) {
    const bool is_live = a->rows.seq[t] >= 0 && *ref_index(&a->accepted, t) >= 0;
    a->next.id[t] = is_live ? *ref_index(&a->choice, t) : 0;
    a->next.seq[t] = is_live ? a->rows.seq[t] : -1;
    a->next.pos[t] = a->next.slot[t] = is_live ? a->rows.pos[t] : 0;
    a->next.parent[t] = -1;
  }
}

void mavk_ref_rows_put(const mavk_args_rows_put *a) {
  for (int64_t i = 0; i < a->next.n; i++) a->next.id[i] = *ref_index(&a->ids, i);
}

void mavk_ref_last_accepted(const mavk_args_last_accepted *a) {
  int32_t *index = a->index.p;
  int64_t tree = 0;
  for (int64_t root = 0; root < a->rows.n && tree < a->trees; root++) {
    if (a->rows.seq[root] < 0 || mavk_parent(&a->rows, root) >= 0) continue;
    int64_t last = root;
    for (int64_t t = root + 1; t < a->rows.n; t++)
      if (a->rows.seq[t] >= 0 && *ref_index(&a->accepted, t) > 0 && mavk_parent(&a->rows, t) == last) last = t;
    index[tree++] = (int32_t)last;
  }
  for (; tree < a->trees; tree++) index[tree] = tree > 0 ? index[tree - 1] : 0;
}

void mavk_ref_count_distinct(const mavk_args_count_distinct *a) {
  int32_t distinct = 0;
  for (int64_t i = 0; i < ref_count(&a->index); i++) {
    int64_t j = 0;
    while (*ref_index(&a->index, j) != *ref_index(&a->index, i)) j++;
    distinct += j == i;
  }
  ((int32_t *)a->total.p)[a->at] = distinct;
}

void mavk_ref_stamp(const mavk_args_stamp *a) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  ((int64_t *)a->time.p)[a->at] = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
