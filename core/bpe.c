/* core/bpe.c - merging one pre-token.
 *
 * The adjacent pair of lowest rank is merged first, the leftmost among equals, until no pair has a rank. Up to SHORT symbols
 * by scanning an array; past that with a heap over a linked list, O(n log n), so that a megabyte without a border is no
 * attack. Invariants: (1) ranks are unique to pairs, so a heap entry whose rank is still the one at its position is valid;
 * (2) symbols only grow, so every entry refers to the same left border for ever. Threads: any, each with its own work. */
#include "bpe.h"

#include <string.h>

#include "mem.h"

#define SHORT 48

mav_err mav__ids_push(mav__ids *ids, int32_t id) {
  if (ids->count == ids->room) {
    size_t room = ids->room ? 2 * ids->room : 64;
    int32_t *data = mav__realloc(ids->data, room * sizeof *data);
    if (!data) return MAV_ERR_NOMEM;
    ids->data = data;
    ids->room = room;
  }
  ids->data[ids->count++] = id;
  return MAV_OK;
}

void mav__bpe_work_deinit(mav__bpe_work *w) {
  mav__free(w->data);
  *w = (mav__bpe_work){0};
}

static void *work_reserve(mav__bpe_work *w, size_t bytes) {
  if (w->bytes < bytes) {
    mav__bpe_work_deinit(w);
    w->data = mav__alloc(bytes);
    if (w->data) w->bytes = bytes;
  }
  return w->data;
}

void mav__bpe_deinit(mav__bpe *b) {
  mav__table_deinit(&b->words);
  mav__free(b->merge);
  b->merge = NULL;
}

mav_err mav__bpe_reserve(mav__bpe *b, size_t count) {
  uint32_t slots = 8;
  if (count > (size_t)1 << 28) return MAV_ERR_NOMEM;
  while (slots < 2 * count) slots *= 2;
  b->merge = mav__alloc(slots * sizeof *b->merge);
  b->merge_mask = slots - 1;
  return b->merge ? MAV_OK : MAV_ERR_NOMEM;
}

/* The slot of a pair, or the empty one where it belongs. */
static struct mav__merge *probe(const mav__bpe *b, int32_t left, int32_t right) {
  uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
  uint64_t h = pair * UINT64_C(0x9E3779B97F4A7C15);
  for (uint32_t i = (uint32_t)(h >> 32 ^ h >> 12) & b->merge_mask;; i = (i + 1) & b->merge_mask) {
    struct mav__merge *m = &b->merge[i];
    if (!m->rank || m->pair == pair) return m;
  }
}

bool mav__bpe_add(mav__bpe *b, int32_t left, int32_t right, int32_t rank, int32_t id) {
  struct mav__merge *m = probe(b, left, right);
  if (m->rank) return false;
  *m = (struct mav__merge){.pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right, .rank = rank + 1, .id = id};
  return true;
}

typedef struct symbol {
  int32_t id;
  int32_t rank, merged; /* of the pair with the next symbol; rank 0: no such merge */
  int32_t prev, next;   /* long pre-tokens only; -1: none */
} symbol;

static void rank_pair(const mav__bpe *b, symbol *s, const symbol *next) {
  s->rank = 0;
  if (!next) return;
  const struct mav__merge *m = probe(b, s->id, next->id);
  s->rank = m->rank;
  s->merged = m->id;
}

/* Merges s[0, n) in place; returns the symbols left. */
static size_t merge_short(const mav__bpe *b, symbol *s, size_t n) {
  for (;;) {
    size_t best = n;
    for (size_t i = 0; i + 1 < n; i++)
      if (s[i].rank && (best == n || s[i].rank < s[best].rank)) best = i;
    if (best == n) return n;
    s[best].id = s[best].merged;
    n--;
    memmove(s + best + 1, s + best + 2, (n - best - 1) * sizeof *s);
    rank_pair(b, s + best, best + 1 < n ? s + best + 1 : NULL);
    if (best) rank_pair(b, s + best - 1, s + best);
  }
}

/* A binary heap of rank << 32 | position. */
static void heap_push(uint64_t *heap, size_t *count, uint64_t key) {
  size_t i = (*count)++;
  for (; i && heap[(i - 1) / 2] > key; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
  heap[i] = key;
}

static uint64_t heap_pop(uint64_t *heap, size_t *count) {
  uint64_t top = heap[0], key = heap[--*count];
  size_t i = 0;
  for (size_t child; (child = 2 * i + 1) < *count; i = child) {
    if (child + 1 < *count && heap[child + 1] < heap[child]) child++;
    if (heap[child] >= key) break;
    heap[i] = heap[child];
  }
  heap[i] = key;
  return top;
}

static void offer(uint64_t *heap, size_t *count, const symbol *s, int32_t at) {
  if (s[at].rank) heap_push(heap, count, (uint64_t)s[at].rank << 32 | (uint32_t)at);
}

/* heap has room for 3 n: n - 1 pairs at first, at most two more for each of n - 1 merges. */
static void merge_long(const mav__bpe *b, symbol *s, size_t n, uint64_t *heap) {
  size_t count = 0;
  for (size_t i = 0; i < n; i++) {
    s[i].prev = (int32_t)i - 1;
    s[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    offer(heap, &count, s, (int32_t)i);
  }
  while (count) {
    uint64_t top = heap_pop(heap, &count);
    int32_t at = (int32_t)(uint32_t)top;
    symbol *left = &s[at];
    if ((uint64_t)left->rank != top >> 32) continue; /* stale */
    symbol *right = &s[left->next];
    left->id = left->merged;
    left->next = right->next;
    right->rank = 0;
    if (left->next >= 0) s[left->next].prev = at;
    rank_pair(b, left, left->next >= 0 ? &s[left->next] : NULL);
    offer(heap, &count, s, at);
    if (left->prev >= 0) {
      rank_pair(b, &s[left->prev], left);
      offer(heap, &count, s, left->prev);
    }
  }
}

mav_err mav__bpe_encode(const mav__bpe *b, mav__bpe_work *w, const char *p, size_t n, mav__ids *out, unsigned char *missing) {
  symbol few[SHORT], *s = few;
  if (b->ignore_merges && n <= b->longest) {
    int32_t id = mav__table_find(&b->words, b->piece, p, n);
    if (id >= 0) return mav__ids_push(out, id);
  }
  if (n > SHORT) {
    if (n > SIZE_MAX / (sizeof *s + 3 * sizeof(uint64_t))) return MAV_ERR_NOMEM;
    s = work_reserve(w, n * (sizeof *s + 3 * sizeof(uint64_t)));
    if (!s) return MAV_ERR_NOMEM;
  }
  /* The heap comes first in the scratch memory: its elements want the stricter alignment. */
  uint64_t *heap = (uint64_t *)(void *)s;
  if (n > SHORT) s = (symbol *)(void *)(heap + 3 * n);
  for (size_t i = 0; i < n; i++) {
    s[i].id = b->byte_id[(unsigned char)p[i]];
    if (s[i].id < 0) {
      *missing = (unsigned char)p[i];
      return MAV_ERR_NOTFOUND;
    }
  }
  for (size_t i = 0; i < n; i++) rank_pair(b, &s[i], i + 1 < n ? &s[i + 1] : NULL);
  if (n <= SHORT) {
    n = merge_short(b, s, n);
    for (size_t i = 0; i < n; i++)
      if (mav__ids_push(out, s[i].id)) return MAV_ERR_NOMEM;
    return MAV_OK;
  }
  merge_long(b, s, n, heap);
  for (int32_t i = 0; i >= 0; i = s[i].next)
    if (mav__ids_push(out, s[i].id)) return MAV_ERR_NOMEM;
  return MAV_OK;
}

int mav__bytelevel_byte(uint32_t c) {
  if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255)) return (int)c;
  if (c < 256 || c > 323) return -1;
  int k = (int)c - 256; /* the k-th of the other bytes */
  return k < 33 ? k : k < 67 ? 127 + k - 33 : 173;
}

bool mav__bytelevel_decode(char *dst, size_t *bytes, const char *s, size_t n) {
  const unsigned char *u = (const unsigned char *)s;
  size_t written = 0;
  for (size_t i = 0; i < n; i++) {
    uint32_t c = u[i];
    if (c >= 0xE0) return false; /* past U+07FF */
    if (c >= 0xC0 && i + 1 < n) c = (c & 31) << 6 | (u[++i] & 63u);
    int byte = mav__bytelevel_byte(c);
    if (byte < 0) return false;
    dst[written++] = (char)byte;
  }
  *bytes = written;
  return true;
}
