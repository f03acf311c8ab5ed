/* core/added.c - matching added tokens. A text costs at most one walk per byte, each no longer than the longest token. */
#include "added.h"

#include <stdlib.h>
#include <string.h>

#include "mem.h"

static int compare(const void *x, const void *y) {
  const mav__span *a = &((const mav__added_token *)x)->content, *b = &((const mav__added_token *)y)->content;
  int order = memcmp(a->p, b->p, a->n < b->n ? a->n : b->n);
  return order ? order : (a->n > b->n) - (a->n < b->n);
}

void mav__added_sort(mav__added *a) {
  int32_t i = 0;
  if (a->count) qsort(a->token, (size_t)a->count, sizeof *a->token, compare);
  for (int byte = 0; byte < 257; byte++) {
    while (i < a->count && (unsigned char)a->token[i].content.p[0] < byte) i++;
    a->first[byte] = i;
  }
}

void mav__added_deinit(mav__added *a) {
  mav__free(a->token);
  *a = (mav__added){0};
}

/* The first token of [low, high), all equal up to `depth`, whose next byte is at least `byte`. A token that ends at depth
 * sorts before the others. */
static int32_t bound(const mav__added *a, int32_t low, int32_t high, size_t depth, int byte) {
  while (low < high) {
    int32_t mid = low + (high - low) / 2;
    const mav__span *s = &a->token[mid].content;
    int at = s->n > depth ? (unsigned char)s->p[depth] : -1;
    if (at < byte) low = mid + 1;
    else high = mid;
  }
  return low;
}

static const mav__added_token *longest_at(const mav__added *a, const char *p, size_t n) {
  const mav__added_token *best = NULL;
  unsigned char byte = (unsigned char)p[0];
  int32_t low = a->first[byte], high = a->first[byte + 1];
  for (size_t depth = 1; low < high; depth++) {
    if (a->token[low].content.n == depth) best = &a->token[low];
    if (depth == n) break;
    byte = (unsigned char)p[depth];
    low = bound(a, low, high, depth, byte);
    high = bound(a, low, high, depth, byte + 1);
  }
  return best;
}

size_t mav__added_search(const mav__added *a, const char *p, size_t n, const mav__added_token **token) {
  *token = NULL;
  if (!a->count) return n;
  for (size_t i = 0; i < n; i++) {
    unsigned char byte = (unsigned char)p[i];
    if (a->first[byte] == a->first[byte + 1]) continue;
    *token = longest_at(a, p + i, n - i);
    if (*token) return i;
  }
  return n;
}
