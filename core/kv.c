/* core/kv.c - the paged KV cache and its sequences.
 *
 * A slot of a sequence is in page table[seq][slot / page] of every layer of a group (layers with the same attention
 * chunk). Pages are shared by forked sequences and copied when one of them is about to write (reserve).
 *
 * Invariants: (1) refs[page] counts the table entries that name it; a page is on the free list exactly when that is 0.
 * (2) pages of slots [the group's floor, reserved) are mapped, none beyond. (3) committed slots are never written.
 * (4) a group with a chunk keeps the block before the current one, so a step back over a border stays possible.
 * Memory of a layer is taken once, at creation; the operating system backs it as pages are touched.
 */
#include "kv.h"

#include <math.h>
#include <string.h>

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
/* A sequence's line of the page table, for the host: to read, and to write the entries of blocks [first, end). */
static const int32_t *table_of(const mav_kv *kv, const mav__kv_group *g, int seq) {
  return (const int32_t *)mav__host_read(g->table->buffer) + (int64_t)seq * kv->stride;
}
static int32_t *table_edit(const mav_kv *kv, const mav__kv_group *g, int seq, int64_t first, int64_t end) {
  const size_t line = (size_t)(seq * kv->stride) * sizeof(int32_t);
  char *table = mav__host_write(g->table->buffer, line + (size_t)first * sizeof(int32_t), (size_t)(end - first) * sizeof(int32_t));
  return (int32_t *)(table + line);
}

static int heads_of(const mav_kv_options *o, int layer) { return o->layer_kv_heads ? o->layer_kv_heads[layer] : o->kv_heads; }
static int dim_of(const mav_kv_options *o, int layer) { return o->layer_head_dim ? o->layer_head_dim[layer] : o->head_dim; }

/* The scale of a layer; 1 where the cache has none. */
static float scale_of(const mav_kv_options *o, const float *scale, int layer) {
  return scale && o->dtype == MAV_DTYPE_F8 ? scale[layer] : 1;
}

static bool is_scale(float x) { return x > 0 && isfinite(x); }

static mav_err check_options(mav_runtime *rt, const mav_kv_options *o) {
  const char *op = "kv_new";
  if (o->layers < 1 || o->layers > 4096) return MAV_RT_FAIL(rt, RANGE, op, "layers = %d; expected 1 to 4096", o->layers);
  for (int i = 0; i < o->layers; i++) {
    const int heads = heads_of(o, i), dim = dim_of(o, i);
    if (heads < 1 || heads > 4096) return MAV_RT_FAIL(rt, RANGE, op, "layer %d: kv_heads = %d; expected 1 to 4096", i, heads);
    if (dim < 2 || dim > 1024 || dim % 2)
      return MAV_RT_FAIL(rt, RANGE, op, "layer %d: head_dim = %d; expected an even number from 2 to 1024", i, dim);
  }
  if (o->dtype != MAV_DTYPE_F32 && o->dtype != MAV_DTYPE_BF16 && o->dtype != MAV_DTYPE_F8)
    return MAV_RT_FAIL(rt, DTYPE, op, "dtype %s; the cache is f32, bf16 or f8", mav_dtype_name(o->dtype));
  for (int i = 0; i < o->layers; i++)
    if (!is_scale(scale_of(o, o->k_scale, i)) || !is_scale(scale_of(o, o->v_scale, i)))
      return MAV_RT_FAIL(rt, RANGE, op, "layer %d: scales of keys and values are %g and %g; expected numbers above 0", i,
                         (double)scale_of(o, o->k_scale, i), (double)scale_of(o, o->v_scale, i));
  if (o->tokens < 1 || o->tokens > (int64_t)1 << 31)
    return MAV_RT_FAIL(rt, RANGE, op, "tokens = %lld; expected 1 to 2^31", (long long)o->tokens);
  if (o->sequences < 0 || o->sequences > 65536) return MAV_RT_FAIL(rt, RANGE, op, "sequences = %d; expected 0 to 65536", o->sequences);
  if (o->page && (o->page < 16 || o->page > 4096 || (o->page & (o->page - 1))))
    return MAV_RT_FAIL(rt, RANGE, op, "page = %d; expected a power of two from 16 to 4096", o->page);
  if (o->context_max < 0 || o->context_max > (int64_t)1 << 30)
    return MAV_RT_FAIL(rt, RANGE, op, "context_max = %lld; expected at most 2^30", (long long)o->context_max);
  for (int i = 0; o->chunk && i < o->layers; i++)
    if (o->chunk[i] < 0) return MAV_RT_FAIL(rt, RANGE, op, "chunk of layer %d is %d", i, o->chunk[i]);
  return MAV_OK;
}

static mav_err group_init(mav_kv *kv, mav__kv_group *g, int32_t chunk, int64_t tokens) {
  mav_runtime *rt = kv->rt;
  if (chunk) { /* the current block, the one before it, and room for a prompt piece, in every sequence */
    int64_t most = (2 * (int64_t)chunk + 1024) * kv->sequences;
    if (tokens > most) tokens = most;
  }
  g->chunk = chunk;
  g->pages = g->free = ceil_div(tokens, kv->page) + kv->sequences;
  g->refs = mav__alloc((size_t)g->pages * sizeof *g->refs);
  g->free_list = mav__alloc((size_t)g->pages * sizeof *g->free_list);
  g->floor = mav__alloc((size_t)kv->sequences * sizeof *g->floor);
  if (!g->refs || !g->free_list || !g->floor) return MAV_RT_NOMEM(rt, "kv_new");
  for (int64_t i = 0; i < g->pages; i++) g->free_list[i] = (int32_t)(g->pages - 1 - i);
  MAV_TRY(mav_tensor_new(&g->table, rt, MAV_DTYPE_I32, 2, (int64_t[]){kv->sequences, kv->stride}));
  mav__buffer *b = g->table->buffer;
  MAV_TRY(mav__mirror_add(b, "kv_new"));
  memset(mav__host_replace(b), 0xff, b->bytes);
  return MAV_OK;
}

static size_t page_bytes(const mav_kv *kv, const mav__kv_layer *l) {
  return (size_t)(l->kv_heads * kv->page * l->head_dim) * mav_dtype_bytes(kv->dtype);
}

mav_err mav_kv_new(mav_kv **out, mav_runtime *rt, const mav_kv_options *o) {
  *out = NULL;
  MAV_TRY(check_options(rt, o));
  mav_kv *kv = mav__alloc(sizeof *kv);
  if (!kv) return MAV_RT_NOMEM(rt, "kv_new");
  *kv = (mav_kv){.refs = 1, .rt = mav_runtime_retain(rt), .layers = o->layers, .dtype = o->dtype, .sequences = o->sequences ? o->sequences : 64, .page = o->page ? o->page : 32};
  kv->context_max = o->context_max ? o->context_max : o->tokens;
  kv->stride = ceil_div(kv->context_max, kv->page);
  mav_err err = MAV_OK;
  kv->layer = mav__alloc((size_t)kv->layers * sizeof *kv->layer);
  kv->group = mav__alloc((size_t)kv->layers * sizeof *kv->group);
  kv->seq = mav__alloc((size_t)kv->sequences * sizeof *kv->seq);
  if (!kv->layer || !kv->group || !kv->seq) {
    err = MAV_RT_NOMEM(rt, "kv_new");
    goto done;
  }
  MAV_GOTO(mav_tensor_new(&kv->keys, rt, MAV_DTYPE_I64, 1, (int64_t[]){kv->sequences}));
  MAV_GOTO(mav__mirror_add(kv->keys->buffer, "kv_new"));
  memset(mav__host_replace(kv->keys->buffer), 0, kv->keys->buffer->bytes);
  for (int i = 0; i < kv->layers; i++) {
    int32_t chunk = o->chunk ? o->chunk[i] : 0;
    int g = 0;
    while (g < kv->groups && kv->group[g].chunk != chunk) g++;
    if (g == kv->groups) {
      kv->groups++;
      MAV_GOTO(group_init(kv, &kv->group[g], chunk, o->tokens));
    }
    mav__kv_layer *l = &kv->layer[i];
    l->group = g;
    l->kv_heads = heads_of(o, i);
    l->head_dim = dim_of(o, i);
    l->k_scale = scale_of(o, o->k_scale, i);
    l->v_scale = scale_of(o, o->v_scale, i);
    size_t bytes = (size_t)kv->group[g].pages * page_bytes(kv, l);
    MAV_GOTO(mav__buffer_new(&l->k, rt, MAV__BUFFER_OWNED, bytes, true, "kv_new"));
    MAV_GOTO(mav__buffer_new(&l->v, rt, MAV__BUFFER_OWNED, bytes, true, "kv_new"));
  }
  *out = kv;
  return MAV_OK;
done:
  mav_kv_release(kv);
  return err;
}

mav_kv *mav_kv_retain(mav_kv *kv) {
  kv->refs++;
  return kv;
}

void mav_kv_release(mav_kv *kv) {
  if (!kv || --kv->refs) return;
  for (int i = 0; kv->layer && i < kv->layers; i++) {
    mav__buffer_release(kv->layer[i].k);
    mav__buffer_release(kv->layer[i].v);
  }
  for (int i = 0; i < kv->groups; i++) {
    mav__free(kv->group[i].refs);
    mav__free(kv->group[i].free_list);
    mav__free(kv->group[i].floor);
    mav_tensor_release(kv->group[i].table);
  }
  mav_tensor_release(kv->keys);
  mav__free(kv->layer);
  mav__free(kv->group);
  mav__free(kv->seq);
  mav_runtime_release(kv->rt);
  mav__free(kv);
}

int mav_kv_layers(const mav_kv *kv) { return kv->layers; }
int mav_kv_sequences(const mav_kv *kv) { return kv->sequences; }
mav_dtype mav_kv_dtype(const mav_kv *kv) { return kv->dtype; }

int64_t mav_kv_pages_free(const mav_kv *kv) {
  int64_t least = kv->group[0].free;
  for (int g = 1; g < kv->groups; g++)
    if (kv->group[g].free < least) least = kv->group[g].free;
  return least;
}

int64_t mav_kv_pages_live(const mav_kv *kv) {
  int64_t n = 0;
  for (int g = 0; g < kv->groups; g++) n += kv->group[g].pages - kv->group[g].free;
  return n;
}

/* Drops the pages of blocks [first, end) of a sequence. */
static void pages_drop(const mav_kv *kv, mav__kv_group *g, int seq, int64_t first, int64_t end) {
  if (first >= end) return;
  int32_t *entry = table_edit(kv, g, seq, first, end);
  for (int64_t b = first; b < end; b++) {
    if (entry[b] < 0) continue;
    if (--g->refs[entry[b]] == 0) g->free_list[g->free++] = entry[b];
    entry[b] = -1;
  }
}

static mav_err sequence(const mav_kv *kv, int seq, const char *op, mav__kv_sequence **out) {
  if (seq < 0 || seq >= kv->sequences || !kv->seq[seq].live)
    return MAV_RT_FAIL(kv->rt, INVALID, op, "there is no sequence %d", seq);
  *out = &kv->seq[seq];
  return MAV_OK;
}

mav_err mav_kv_sequence_new(mav_kv *kv, int64_t key, int *out) {
  for (int i = 0; i < kv->sequences; i++)
    if (!kv->seq[i].live) {
      kv->seq[i] = (mav__kv_sequence){.live = true};
      for (int g = 0; g < kv->groups; g++) kv->group[g].floor[i] = 0;
      ((int64_t *)mav__host_write(kv->keys->buffer, (size_t)i * sizeof key, sizeof key))[i] = key;
      *out = i;
      return MAV_OK;
    }
  return MAV_RT_FAIL(kv->rt, FULL, "kv_sequence_new", "all %d sequences are in use; close some, or make the cache with more", kv->sequences);
}

mav_err mav_kv_sequence_free(mav_kv *kv, int seq) {
  mav__kv_sequence *s;
  MAV_TRY(sequence(kv, seq, "kv_sequence_free", &s));
  for (int g = 0; g < kv->groups; g++) pages_drop(kv, &kv->group[g], seq, 0, ceil_div(s->reserved, kv->page));
  s->live = false;
  return MAV_OK;
}

mav_err mav_kv_sequence_fork(mav_kv *kv, int seq, int64_t key, int *out) {
  mav__kv_sequence *s;
  MAV_TRY(sequence(kv, seq, "kv_sequence_fork", &s));
  MAV_TRY(mav_kv_sequence_new(kv, key, out));
  mav__kv_sequence *t = &kv->seq[*out];
  t->length = t->reserved = s->length;
  t->floor = s->floor;
  for (int g = 0; g < kv->groups; g++) {
    const int32_t *from = table_of(kv, &kv->group[g], seq);
    kv->group[g].floor[*out] = kv->group[g].floor[seq];
    const int64_t blocks = ceil_div(t->reserved, kv->page);
    int32_t *to = table_edit(kv, &kv->group[g], *out, 0, blocks);
    for (int64_t b = 0; b < blocks; b++)
      if ((to[b] = from[b]) >= 0) kv->group[g].refs[to[b]]++;
  }
  return MAV_OK;
}

mav_err mav_kv_sequence_truncate(mav_kv *kv, int seq, int64_t length) {
  mav__kv_sequence *s;
  MAV_TRY(sequence(kv, seq, "kv_sequence_truncate", &s));
  if (length < s->floor || length > s->length)
    return MAV_RT_FAIL(kv->rt, RANGE, "kv_sequence_truncate", "length %lld; this sequence can be cut to %lld (its floor) up to %lld",
                       (long long)length, (long long)s->floor, (long long)s->length);
  for (int g = 0; g < kv->groups; g++)
    pages_drop(kv, &kv->group[g], seq, ceil_div(length, kv->page), ceil_div(s->reserved, kv->page));
  s->length = s->reserved = length;
  return MAV_OK;
}

int64_t mav_kv_sequence_length(const mav_kv *kv, int seq) {
  return seq >= 0 && seq < kv->sequences && kv->seq[seq].live ? kv->seq[seq].length : -1;
}

int64_t mav_kv_sequence_floor(const mav_kv *kv, int seq) {
  return seq >= 0 && seq < kv->sequences && kv->seq[seq].live ? kv->seq[seq].floor : -1;
}

static mav_err copy_within(mav__buffer *b, size_t to, size_t from, size_t bytes) {
  char *p = b->data;
  if (b->on_device) return b->rt->backend->copy(b->rt, p + to, p + from, bytes);
  memcpy(p + to, p + from, bytes);
  return MAV_OK;
}

/* A page of its own for a block of a sequence: a copy of the one that other sequences also map. */
static mav_err page_own(mav_kv *kv, int group, int seq, int64_t block) {
  mav__kv_group *g = &kv->group[group];
  const int32_t old = table_of(kv, g, seq)[block];
  if (old >= 0 && g->refs[old] == 1) return MAV_OK;
  if (!g->free)
    return MAV_RT_FAIL(kv->rt, FULL, "kv_sequence_reserve", "all %lld pages of %lld tokens are in use%s", (long long)g->pages,
                       (long long)kv->page, g->chunk ? "; layers with a chunk keep two chunks and 1024 tokens more: reserve fewer at a time" : "");
  const int32_t fresh = g->free_list[g->free - 1];
  for (int i = 0; i < kv->layers && old >= 0; i++) {
    if (kv->layer[i].group != group) continue;
    const size_t n = page_bytes(kv, &kv->layer[i]), to = n * (size_t)fresh, from = n * (size_t)old;
    MAV_TRY(copy_within(kv->layer[i].k, to, from, n));
    MAV_TRY(copy_within(kv->layer[i].v, to, from, n));
  }
  if (old >= 0) g->refs[old]--;
  g->refs[fresh] = 1;
  g->free--;
  table_edit(kv, g, seq, block, block + 1)[block] = fresh;
  return MAV_OK;
}

mav_err mav_kv_sequence_reserve(mav_kv *kv, int seq, int64_t count) {
  mav__kv_sequence *s;
  MAV_TRY(sequence(kv, seq, "kv_sequence_reserve", &s));
  if (count < 0 || count > kv->context_max - s->length)
    return MAV_RT_FAIL(kv->rt, FULL, "kv_sequence_reserve", "%lld tokens after %lld; the cache was made for contexts of %lld",
                       (long long)count, (long long)s->length, (long long)kv->context_max);
  const int64_t end = s->length + count;
  mav_err err = MAV_OK;
  for (int g = 0; g < kv->groups && !err; g++)
    for (int64_t b = s->length / kv->page; b < ceil_div(end, kv->page) && !err; b++) err = page_own(kv, g, seq, b);
  if (err) { /* give back what was mapped beyond the old end */
    for (int g = 0; g < kv->groups; g++) pages_drop(kv, &kv->group[g], seq, ceil_div(s->reserved, kv->page), ceil_div(end, kv->page));
    return err;
  }
  if (end > s->reserved) s->reserved = end;
  return MAV_OK;
}

mav_err mav_kv_sequence_commit(mav_kv *kv, int seq, int64_t count) {
  mav__kv_sequence *s;
  MAV_TRY(sequence(kv, seq, "kv_sequence_commit", &s));
  if (count < 0 || count > s->reserved - s->length)
    return MAV_RT_FAIL(kv->rt, STATE, "kv_sequence_commit", "%lld tokens, but %lld are reserved", (long long)count,
                       (long long)(s->reserved - s->length));
  int64_t before = s->length;
  s->length += count;
  for (int i = 0; i < kv->groups; i++) {
    mav__kv_group *g = &kv->group[i];
    if (!g->chunk) continue;
    int64_t block = s->length / g->chunk, keep = (block - 1) * g->chunk;
    if (keep <= 0 || before / g->chunk == block) continue;
    pages_drop(kv, g, seq, g->floor[seq] / kv->page, keep / kv->page);
    if (keep > g->floor[seq]) g->floor[seq] = keep;
    if (keep > s->floor) s->floor = keep;
  }
  return MAV_OK;
}

mavk_kv mav__kv_kernel(const mav_kv *kv, int layer) {
  const mav__kv_layer *l = &kv->layer[layer];
  return (mavk_kv){.k = l->k->data,
                   .v = l->v->data,
                   .dtype = (int32_t)kv->dtype,
                   .k_scale = l->k_scale,
                   .v_scale = l->v_scale,
                   .page = kv->page,
                   .kv_heads = l->kv_heads,
                   .head_dim = l->head_dim,
                   .table = mav__tensor_pointer(kv->group[l->group].table),
                   .table_stride = kv->stride,
                   .key = mav__tensor_pointer(kv->keys)};
}

#define SAME_SLOT_ROWS 64 /* batches up to here (a draft tree) are searched for shared slots; longer ones are chains of a prompt */

/* Row i of a part whose ancestors come before the part: what attention reads on its way up. */
static mav_err check_ancestors(const mav_kv *kv, const mav__kv_sequence *s, const mavk_rows *r, int64_t i, const char *op) {
  int64_t k = i;
  for (int64_t p; (p = mavk_parent(r, k)) != MAVK_NO_ROW; k = p)
    if (r->seq[p] != r->seq[i] || r->pos[p] + 1 != r->pos[k] || r->slot[p] < s->floor || r->slot[p] >= s->reserved)
      return MAV_RT_FAIL(kv->rt, STATE, op, "row %lld: its ancestor, row %lld of the table, is at position %d, slot %d of sequence %d", (long long)i,
                         (long long)(r->first + p), r->pos[p], r->slot[p], r->seq[p]);
  if (r->pos[k] < s->floor || r->pos[k] > s->reserved)
    return MAV_RT_FAIL(kv->rt, STATE, op, "row %lld: the root of its tree is at position %d, but sequence %d holds positions %lld to %lld", (long long)i,
                       r->pos[k], r->seq[i], (long long)s->floor, (long long)s->length);
  return MAV_OK;
}

mav_err mav__kv_check_rows(const mav_kv *kv, const mav_rows *rows, bool moves, const char *op) {
  mavk_rows r = mav__rows_host(rows);
  for (int64_t i = 0; i < r.n; i++) {
    if (r.seq[i] < 0) continue;
    mav__kv_sequence *s;
    MAV_TRY(sequence(kv, r.seq[i], op, &s));
    if (r.slot[i] < s->length || r.slot[i] >= s->reserved)
      return MAV_RT_FAIL(kv->rt, STATE, op, "row %lld: slot %d of sequence %d is not reserved (committed %lld, reserved up to %lld)",
                         (long long)i, r.slot[i], r.seq[i], (long long)s->length, (long long)s->reserved);
    if (r.parent[i] < 0 && (r.pos[i] > s->length || r.pos[i] < s->floor))
      return MAV_RT_FAIL(kv->rt, STATE, op, "row %lld: position %d, but sequence %d holds positions %lld to %lld", (long long)i, r.pos[i],
                         r.seq[i], (long long)s->floor, (long long)s->length);
    if (r.parent[i] < 0 && r.pos[i] < s->length && r.slot[i] == r.pos[i])
      return MAV_RT_FAIL(kv->rt, STATE, op, "row %lld would overwrite a committed position", (long long)i);
    const int64_t p = mavk_parent(&r, i);
    if (p != MAVK_NO_ROW && r.slot[i] == r.pos[i] && r.slot[p] != r.pos[p])
      return MAV_RT_FAIL(kv->rt, INVALID, op, "row %lld sits at its position, but its parent does not", (long long)i);
    if (p != MAVK_NO_ROW && p < 0) MAV_TRY(check_ancestors(kv, s, &r, i, op));
    if (moves && (r.pos[i] < s->length || r.pos[i] >= s->reserved))
      return MAV_RT_FAIL(kv->rt, STATE, op, "row %lld: position %d of sequence %d is no place to move to (committed %lld, reserved up to %lld)",
                         (long long)i, r.pos[i], r.seq[i], (long long)s->length, (long long)s->reserved);
    for (int64_t k = 0; k < i && r.n <= SAME_SLOT_ROWS; k++)
      if (r.seq[k] == r.seq[i] && r.slot[k] == r.slot[i])
        return MAV_RT_FAIL(kv->rt, INVALID, op, "rows %lld and %lld of sequence %d share slot %d; give siblings slots of their own", (long long)k,
                           (long long)i, r.seq[i], r.slot[i]);
  }
  return MAV_OK;
}

mav_err mav__kv_check_ahead(const mav_kv *kv, const mav_rows *rows, int64_t ahead, const char *op) {
  mavk_rows r = mav__rows_host(rows);
  for (int64_t i = 0; i < r.n; i++) {
    if (r.seq[i] < 0) continue;
    mav__kv_sequence *s;
    MAV_TRY(sequence(kv, r.seq[i], op, &s));
    if (r.pos[i] < s->length || r.pos[i] + ahead >= s->reserved)
      return MAV_RT_FAIL(kv->rt, STATE, op, "row %lld: position %d of sequence %d leaves no room for the %lld slots of the drafts after it (committed "
                         "%lld, reserved up to %lld)", (long long)i, r.pos[i], r.seq[i], (long long)ahead, (long long)s->length, (long long)s->reserved);
  }
  return MAV_OK;
}
