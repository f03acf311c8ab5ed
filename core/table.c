/* core/table.c - the string table behind vocabularies and tensor names. Refuses more than 2^29 entries. */
#include "table.h"

#include <string.h>

#include "mem.h"

uint64_t mav__hash(const char *p, size_t n) {
  const uint64_t k = UINT64_C(0x9E3779B97F4A7C15);
  uint64_t h = (n + 1) * k, word;
  for (; n >= sizeof word; p += sizeof word, n -= sizeof word) {
    memcpy(&word, p, sizeof word);
    h = (h ^ word) * k;
    h ^= h >> 32;
  }
  word = 0;
  if (n) memcpy(&word, p, n);
  h = (h ^ word) * k;
  h ^= h >> 29;
  h *= UINT64_C(0xBF58476D1CE4E5B9);
  return h ^ h >> 32;
}

mav_err mav__table_init(mav__table *t, size_t entries) {
  uint32_t slots = 8;
  if (entries > (size_t)1 << 29) return MAV_ERR_NOMEM;
  while (slots < 2 * entries) slots *= 2;
  t->slot = mav__alloc(slots * sizeof *t->slot);
  t->mask = slots - 1;
  return t->slot ? MAV_OK : MAV_ERR_NOMEM;
}

void mav__table_deinit(mav__table *t) {
  mav__free(t->slot);
  t->slot = NULL;
}

/* The slot that holds p[0, n), or the empty one where it belongs. */
static struct mav__slot *probe(const mav__table *t, const mav__span *keys, const char *p, size_t n, uint32_t *hash) {
  *hash = (uint32_t)mav__hash(p, n);
  for (uint32_t i = *hash & t->mask;; i = (i + 1) & t->mask) {
    struct mav__slot *s = &t->slot[i];
    if (!s->value) return s;
    const mav__span *key = &keys[s->value - 1];
    if (s->hash == *hash && key->n == n && (n == 0 || !memcmp(key->p, p, n))) return s;
  }
}

int32_t mav__table_find(const mav__table *t, const mav__span *keys, const char *p, size_t n) {
  uint32_t hash;
  return probe(t, keys, p, n, &hash)->value - 1;
}

int32_t mav__table_add(mav__table *t, const mav__span *keys, int32_t value) {
  uint32_t hash;
  struct mav__slot *s = probe(t, keys, keys[value].p, keys[value].n, &hash);
  if (s->value) return s->value - 1;
  s->hash = hash;
  s->value = value + 1;
  return -1;
}
