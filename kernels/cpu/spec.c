/* kernels/cpu/spec.c - what happens between two speculative steps: keys and values that move to their positions, the rows of
 * the next step, and what is counted and timed. All but kv_move are done by the thread that comes first. */
#include <string.h>
#include <time.h>

#include "../numeric.h"
#include "cpu.h"

/* ---- keys and values ---------------------------------------------------------------------------------------------- */

/* Where one head's part of a slot's page begins. */
static int64_t page_of(const mavk_kv *kv, int32_t seq, int64_t slot, int64_t head) {
  return ((int64_t)kv->table[seq * kv->table_stride + slot / kv->page] * kv->kv_heads + head) * kv->page * kv->head_dim;
}

static void move_slot(const mavk_kv *kv, int32_t seq, int64_t from, int64_t to, int64_t head) {
  const int64_t size = (int64_t)mavk_dtype_bytes(kv->dtype), C = kv->head_dim;
  const int64_t at = page_of(kv, seq, from, head), onto = page_of(kv, seq, to, head);
  const char *k = (const char *)kv->k + (at + from % kv->page) * size, *v = (const char *)kv->v + (at + from % kv->page * C) * size;
  char *new_k = (char *)kv->k + (onto + to % kv->page) * size, *new_v = (char *)kv->v + (onto + to % kv->page * C) * size;
  const int64_t step = kv->page * size; /* keys are transposed in their page */
  memmove(new_v, v, (size_t)(C * size));
  for (int64_t c = 0; c < C; c++)
    switch (size) {
      case 1: new_k[c * step] = k[c * step]; break;
      case 2: memcpy(new_k + c * step, k + c * step, 2); break;
      default: memcpy(new_k + c * step, k + c * step, 4);
    }
}

/* Heads are the pieces. A row comes after its ancestors and its slot is not before its position, so nothing is overwritten
 * that is still to move. */
void MAVK_CPU(kv_move)(const mavk_args_kv_move *a, mavk_thread *t) {
  const int32_t *accepted = a->accepted.p;
  for (int64_t head; (head = mavk_claim(t)) < a->kv.kv_heads;)
    for (int64_t r = 0; r < a->rows.n; r++)
      if (a->rows.seq[r] >= 0 && accepted[r] >= 0 && a->rows.slot[r] != a->rows.pos[r])
        move_slot(&a->kv, a->rows.seq[r], a->rows.slot[r], a->rows.pos[r], head);
}

/* ---- rows --------------------------------------------------------------------------------------------------------- */

/* The last accepted row of a sequence; without one its first row, or -1. */
static int64_t last_of(const mavk_rows *rows, const int32_t *accepted, int32_t seq) {
  int64_t last = -1;
  for (int64_t r = 0; r < rows->n; r++)
    if (rows->seq[r] == seq && (last < 0 || accepted[r] > accepted[last])) last = r;
  return last;
}

void MAVK_CPU(rows_advance)(const mavk_args_rows_advance *a, mavk_thread *t) {
  const mavk_rows *next = &a->next;
  if (mavk_claim(t) > 0) return;
  int64_t root = -1; /* of the tree that row i belongs to; -1: none that goes on */
  for (int64_t i = 0; i < next->n; i++) {
    if (next->seq[i] < 0) continue;
    if (next->parent[i] < 0) {
      const int64_t last = last_of(&a->rows, a->accepted.p, next->seq[i]);
      root = last < 0 ? -1 : i;
      if (root < 0) continue;
      next->id[i] = ((const int32_t *)a->choice.p)[last];
      next->pos[i] = (int32_t)(a->rows.pos[last] + 1 + a->shift);
    } else if (root >= 0) {
      next->pos[i] = next->pos[mavk_parent(next, i)] + 1;
    }
    if (root >= 0) next->slot[i] = (int32_t)(next->pos[root] + i - root);
  }
}

void MAVK_CPU(rows_follow)(const mavk_args_rows_follow *a, mavk_thread *t) {
  const int32_t *accepted = a->accepted.p, *choice = a->choice.p;
  if (mavk_claim(t) > 0) return;
  for (int64_t r = 0; r < a->rows.n; r++) {
    const bool is_live = a->rows.seq[r] >= 0 && accepted[r] >= 0;
    a->next.id[r] = is_live ? choice[r] : 0;
    a->next.seq[r] = is_live ? a->rows.seq[r] : -1;
    a->next.pos[r] = a->next.slot[r] = is_live ? a->rows.pos[r] : 0;
    a->next.parent[r] = -1;
  }
}

void MAVK_CPU(rows_put)(const mavk_args_rows_put *a, mavk_thread *t) {
  if (mavk_claim(t) == 0) memcpy(a->next.id, a->ids.p, (size_t)a->next.n * sizeof *a->next.id);
}

void MAVK_CPU(last_accepted)(const mavk_args_last_accepted *a, mavk_thread *t) {
  const mavk_rows *rows = &a->rows;
  const int32_t *accepted = a->accepted.p;
  int32_t *index = a->index.p;
  int64_t tree = 0;
  if (mavk_claim(t) > 0) return;
  for (int64_t root = 0; root < rows->n && tree < a->trees; root++) {
    if (rows->seq[root] < 0 || mavk_parent(rows, root) >= 0) continue;
    int64_t last = root;
    for (int64_t r = root + 1; r < rows->n; r++)
      if (rows->seq[r] >= 0 && accepted[r] > 0 && mavk_parent(rows, r) == last) last = r;
    index[tree++] = (int32_t)last;
  }
  for (; tree < a->trees; tree++) index[tree] = tree > 0 ? index[tree - 1] : 0;
}

/* ---- counted and timed -------------------------------------------------------------------------------------------- */

#define SMALL 1024 /* values that a set of bits holds; others are searched for */

void MAVK_CPU(count_distinct)(const mavk_args_count_distinct *a, mavk_thread *t) {
  const int64_t n = a->index.n[0] * a->index.n[1];
  const int32_t *index = a->index.p;
  uint64_t set[SMALL / 64] = {0};
  int32_t distinct = 0;
  if (mavk_claim(t) > 0) return;
  for (int64_t i = 0; i < n; i++) {
    if (index[i] >= 0 && index[i] < SMALL) {
      const uint64_t bit = UINT64_C(1) << (index[i] % 64);
      distinct += !(set[index[i] / 64] & bit);
      set[index[i] / 64] |= bit;
    } else {
      int64_t j = 0;
      while (index[j] != index[i]) j++;
      distinct += j == i;
    }
  }
  ((int32_t *)a->total.p)[a->at] = distinct;
}

void MAVK_CPU(stamp)(const mavk_args_stamp *a, mavk_thread *t) {
  struct timespec now;
  if (mavk_claim(t) > 0) return;
  clock_gettime(CLOCK_MONOTONIC, &now);
  ((int64_t *)a->time.p)[a->at] = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
