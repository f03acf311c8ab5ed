/* tests/kernels/checkops_compare.c - results of two sides within an op's tolerance; a row alone against the row in its batch.
 *
 * Floats: largest difference over the largest magnitude of the expected result. Integers and masks exactly, except where
 * the choice was a near-tie. Idle rows are not compared. Rows whose activations lie on a rounding border of e4m3 after a
 * norm are skipped: the last bit of the norm decides there (`on_border`).
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkops.h"
#include "numeric.h"

#define NEAR_TIE 1e-6

static int64_t count_of(const mav_tensor *t) {
  return mav_tensor_count(t);
}
static int64_t last_of(const mav_tensor *t) {
  return mav_tensor_dims(t) ? mav_tensor_size(t, mav_tensor_dims(t) - 1) : 1;
}
static const operand *named(const plan *p, const char *name) {
  return &p->v[plan_arg(p, name)];
}
static bool is(const plan *p, const char *op) {
  return !strcmp(p->desc->name, op);
}

static void fail(verdict *out, double error, const char *text) {
  if (error > out->worst || !(error == error)) out->worst = error == error ? error : 1e30;
  if (!out->what[0]) snprintf(out->what, sizeof out->what, "%s", text);
}

/* ---- where a difference is no mistake ----------------------------------------------------------------------------- */

/* Does x / step lie within a few float steps of the middle between two e4m3 values? */
static bool near_border(double x, double step) {
  double q = fabs(x / step);
  if (q > 448) return false;
  double ulp = q < 0x1p-6 ? 0x1p-9 : ldexp(1, (int)floor(log2(q)) - 3), f = q / ulp;
  return fabs(f - floor(f) - 0.5) * ulp < 2e-6 * q;
}

/* Row t of x, normalized and scaled as weight w meets it: could any activation be rounded either way? */
static bool on_border(const plan *p, int64_t t, const operand *w, double score) {
  const operand *x = named(p, "x"), *norm = named(p, "norm"), *eps = named(p, "eps");
  const int64_t D = x->shape[x->dims - 1];
  const float *row = (const float *)x->data + t * D;
  if (w->act == MAV_ACT_NONE) return false;
  double sum = 0, largest = 0;
  for (int64_t d = 0; d < D; d++) sum += (double)row[d] * row[d];
  double rms = score / sqrt(sum / (double)D + (eps->given ? eps->number : 1e-5)), step = w->in_scale;
  for (int64_t d = 0; d < D; d++) largest = fmax(largest, fabs(row[d] * rms * mavk_f32_at(norm->data, (int32_t)norm->dtype, d)));
  if (w->act == MAV_ACT_DYNAMIC) step = largest / 448;
  for (int64_t d = 0; d < D; d++)
    if (near_border(row[d] * rms * mavk_f32_at(norm->data, (int32_t)norm->dtype, d), step)) return true;
  return false;
}

static bool skip_row(const plan *p, int64_t t) {
  if (p->rows && p->row[p->first + t].seq < 0) return true;
  if (is(p, "norm_qkv") || is(p, "router") || is(p, "lm_head")) return on_border(p, t, named(p, "w"), 1);
  if (!is(p, "ffn_up")) return false;
  bool skip = on_border(p, t, named(p, "gate"), 1) || on_border(p, t, named(p, "up"), 1);
  const operand *score = named(p, "score");
  for (int64_t a = 0; score->given && a < score->shape[1]; a++) {
    double s = ((const float *)score->data)[t * score->shape[1] + a];
    skip = skip || on_border(p, t, named(p, "expert_gate"), s) || on_border(p, t, named(p, "expert_up"), s);
  }
  return skip;
}

/* Router: are the logits of the two experts equal within rounding? Scores say so, except where sigmoid saturates. */
static bool router_tie(const plan *p, int64_t t, int32_t a, int32_t b) {
  const operand *x = named(p, "x"), *norm = named(p, "norm"), *w = named(p, "w");
  const int64_t D = x->shape[1];
  double la = 0, lb = 0, sum = 0, size = 0;
  const float *row = (const float *)x->data + t * D;
  if (a < 0 || b < 0 || a >= w->shape[0] || b >= w->shape[0] || w->act != MAV_ACT_NONE) return false;
  for (int64_t d = 0; d < D; d++) sum += (double)row[d] * row[d];
  for (int64_t d = 0; d < D; d++) {
    double v = row[d] / sqrt(sum / (double)D + 1e-5) * mavk_f32_at(norm->data, (int32_t)norm->dtype, d);
    la += v * mavk_f32_at(w->data, (int32_t)w->dtype, a * D + d);
    lb += v * mavk_f32_at(w->data, (int32_t)w->dtype, b * D + d);
    size += fabs(v * mavk_f32_at(w->data, (int32_t)w->dtype, a * D + d));
  }
  if (w->scale && w->scale_dims > 0 && w->scale_shape[0] > 1) la *= w->scale[a], lb *= w->scale[b];
  return fabs(la - lb) <= NEAR_TIE * size;
}

/* Is element i of a row at the threshold of a probability filter? */
static bool mask_tie(const plan *p, const float *x, int64_t n, int64_t i) {
  const operand *limit = named(p, "p");
  double best = -INFINITY, sum = 0, below = 0;
  for (int64_t k = 0; k < n; k++) best = fmax(best, x[k]);
  for (int64_t k = 0; k < n; k++) {
    sum += exp(x[k] - best);
    if (x[k] < x[i] || (x[k] == x[i] && k <= i)) below += exp(x[k] - best);
  }
  if (is(p, "min_p_mask")) return fabs(exp(x[i] - best) - limit->number) <= NEAR_TIE * limit->number;
  return fabs(below / sum - (1 - limit->number)) <= NEAR_TIE;
}

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

static void compare_floats(verdict *out, const plan *p, int arg, side *e, side *a, int64_t rows, double tolerance) {
  const mav_tensor *t = e->args[arg].tensor;
  const int64_t n = count_of(t), each = rows ? n / rows : n, last = last_of(t);
  const int32_t dtype = (int32_t)mav_tensor_dtype(t);
  const void *ve = side_data(e, arg), *va = side_data(a, arg);
  const bool filter = is(p, "top_p_mask") || is(p, "min_p_mask");
  double largest = 0;
  char text[256];
  for (int64_t i = 0; i < n; i++) {
    double x = fabs((double)mavk_f32_at(ve, dtype, i));
    if (x > largest && isfinite(x)) largest = x;
  }
  for (int64_t r = 0; r < (rows ? rows : 1); r++) {
    if (rows && skip_row(p, r)) {
      out->skipped += each;
      continue;
    }
    for (int64_t i = r * each; i < (r + 1) * each; i++) {
      float x = mavk_f32_at(ve, dtype, i), y = mavk_f32_at(va, dtype, i);
      out->compared++;
      out->nonzero += x != 0;
      if (x == y || (x != x && y != y)) continue;
      if (filter && mask_tie(p, (const float *)p->v[0].data + i / last * last, last, i % last)) continue;
      double error = isfinite(x) && isfinite(y) ? fabs((double)x - y) / (largest > 0 ? largest : 1) : 1e30;
      snprintf(text, sizeof text, "%s[%lld] of row %lld is %.9g, expected %.9g", p->desc->arg[arg].name, (long long)(i - r * each),
               (long long)r, (double)y, (double)x);
      if (error > tolerance)
        fail(out, error, text);
      else if (error > out->worst)
        out->worst = error;
    }
  }
}

static void compare_integers(verdict *out, const plan *p, int arg, side *e, side *a, int64_t rows) {
  const mav_tensor *t = e->args[arg].tensor;
  const int64_t n = count_of(t), each = rows ? n / rows : n;
  const int32_t dtype = (int32_t)mav_tensor_dtype(t);
  const void *ve = side_data(e, arg), *va = side_data(a, arg);
  char text[256];
  for (int64_t i = 0; i < n; i++) {
    if (rows && skip_row(p, i / each)) {
      out->skipped++;
      continue;
    }
    int64_t x = mavk_i64_at(ve, dtype, i), y = mavk_i64_at(va, dtype, i);
    out->compared++;
    out->nonzero += x != 0;
    if (is(p, "stamp") && i == (int64_t)named(p, "at")->number) { /* the time of the call */
      const bool elsewhere = !strcmp(mav_runtime_device(a->rt), "cuda"); /* a device has a clock of its own */
      if (x < e->began || x > e->ended || (elsewhere ? y <= 0 : y < a->began || y > a->ended)) fail(out, 1e30, "the stamp is not of the call");
      continue;
    }
    if (x == y || (is(p, "router") && router_tie(p, i / each, (int32_t)x, (int32_t)y))) continue;
    snprintf(text, sizeof text, "%s[%lld] is %lld, expected %lld", p->desc->arg[arg].name, (long long)i, (long long)y, (long long)x);
    fail(out, 1e30, text);
  }
}

/* ---- the cache ---------------------------------------------------------------------------------------------------- */

/* Appended slots within the tolerance, or one step of bf16 or f8; everything else untouched. What kv_move copies: exactly. */
static void compare_cache(verdict *out, const plan *p, side *e, side *a, double tolerance) {
  const cache *c = &p->kv;
  char text[256];
  for (int s = 0; s < c->sequences; s++) {
    bool skip[ROWS_MAX] = {false};
    for (int64_t t = 0; t < p->rows; t++)
      if (p->row[p->first + t].seq == s && skip_row(p, t)) skip[p->row[p->first + t].slot - c->length[s]] = true;
    for (int64_t slot = 0; slot < c->length[s] + c->appended[s]; slot++) {
      const bool appended = slot >= c->length[s] && !is(p, "kv_move");
      for (int which = 0; which < 2; which++) {
        for (int64_t i = 0; i < c->kv_heads * c->head_dim; i++) {
          float x = side_kv_get(e, s, slot, which, i / c->head_dim, i % c->head_dim),
                y = side_kv_get(a, s, slot, which, i / c->head_dim, i % c->head_dim);
          if (appended && skip[slot - c->length[s]]) {
            out->skipped++;
            continue;
          }
          out->compared++;
          out->nonzero += x != 0 && is(p, "kv_move");
          if (x == y) continue;
          double error = fabs((double)x - y) / 4; /* what is appended has magnitudes of 1 to 5 */
          double step = c->dtype == MAV_DTYPE_BF16 ? fabs(x) * 0x1p-7 : 0;
          if (c->dtype == MAV_DTYPE_F8) step = fmax(fabs(x) * 0x1p-3, 0x1p-9 * (double)(which ? c->v_scale : c->k_scale));
          double allowed = !appended ? 0 : step / 4 + tolerance;
          snprintf(text, sizeof text, "%s of sequence %d, slot %lld, head %lld, channel %lld is %.9g, expected %.9g",
                   which ? "value" : "key", s, (long long)slot, (long long)(i / c->head_dim), (long long)(i % c->head_dim), (double)y,
                   (double)x);
          if (!(error <= allowed))
            fail(out, error, text);
          else if (c->dtype == MAV_DTYPE_F32 && error > out->worst)
            out->worst = error;
        }
      }
    }
  }
}

static void compare_next(verdict *out, const plan *p, side *e, side *a) {
  char text[256];
  for (int64_t i = 0; i < p->next_rows; i++) {
    const token x = side_next(e, i), y = side_next(a, i);
    out->compared++;
    out->nonzero += x.id != 0;
    if (x.id == y.id && x.seq == y.seq && x.pos == y.pos && x.slot == y.slot && x.parent == y.parent) continue;
    snprintf(text, sizeof text,
             "row %lld is id %d, sequence %d, position %d, slot %d, parent %d; expected id %d, sequence %d, position %d, slot %d, parent %d",
             (long long)i, y.id, y.seq, y.pos, y.slot, y.parent, x.id, x.seq, x.pos, x.slot, x.parent);
    fail(out, 1e30, text);
  }
}

void compare(verdict *out, const plan *p, side *e, side *a, double tolerance) {
  const int64_t rows = plan_row_count(p);
  out->allowed = tolerance;
  for (int i = 0; i < p->desc->args; i++) {
    const mav_arg_desc *d = &p->desc->arg[i];
    if (d->kind != MAV_ARG_OUT && d->kind != MAV_ARG_MUT) continue;
    if (mav_tensor_count(e->args[i].tensor) != mav_tensor_count(a->args[i].tensor) ||
        mav_tensor_dtype(e->args[i].tensor) != mav_tensor_dtype(a->args[i].tensor)) {
      fail(out, 1e30, "the results have different shapes");
      return;
    }
    const int64_t by_row = d->kind == MAV_ARG_OUT && rows && mav_tensor_count(e->args[i].tensor) % rows == 0 ? rows : 0;
    if (mavk_dtype_is_float((int32_t)mav_tensor_dtype(e->args[i].tensor)))
      compare_floats(out, p, i, e, a, by_row, tolerance);
    else
      compare_integers(out, p, i, e, a, by_row);
  }
  if (plan_is(p, "norm_qkv rope_append kv_move")) compare_cache(out, p, e, a, tolerance);
  compare_next(out, p, e, a);
}

/* ---- rows alone --------------------------------------------------------------------------------------------------- */

/* The row's ancestors in the batch and the row itself, oldest first. */
static int64_t closure(const plan *p, int64_t r, int64_t *rows) {
  int64_t n = 0;
  for (int64_t u = p->first + r; u >= p->first; u = p->rows ? p->row[u].parent : -1) rows[n++] = u - p->first;
  for (int64_t i = 0; i < n / 2; i++) {
    int64_t u = rows[i];
    rows[i] = rows[n - 1 - i];
    rows[n - 1 - i] = u;
  }
  return n;
}

/* The last row of `alone` against row r of `all`. */
static void same_bits(verdict *out, const plan *p, side *all, int64_t r, int64_t rows, side *alone, int64_t alone_rows,
                      const char *how) {
  for (int i = 0; i < p->desc->args; i++) {
    if (p->desc->arg[i].kind != MAV_ARG_OUT) continue;
    const mav_tensor *t = all->args[i].tensor;
    const size_t bytes = (size_t)(count_of(t) / rows) * mav_dtype_bytes(mav_tensor_dtype(t));
    const char *x = (const char *)side_data(all, i) + bytes * (size_t)r,
               *y = (const char *)side_data(alone, i) + bytes * (size_t)(alone_rows - 1);
    out->compared += (int64_t)bytes;
    if (!bytes || !memcmp(x, y, bytes)) continue;
    char text[256];
    snprintf(text, sizeof text, "row %lld of %lld: other bits in %s when %s", (long long)r, (long long)rows, p->desc->arg[i].name, how);
    fail(out, 1e30, text);
  }
}

mav_err compare_rows(verdict *out, const plan *p, side *all, int most) {
  const int64_t rows = plan_row_count(p);
  const int64_t step = rows > most ? rows / most : 1;
  for (int64_t r = p->rows ? rows - 1 : rows - 1; r >= 0; r -= step) {
    if (p->rows && p->row[p->first + r].seq < 0) continue;
    int64_t chosen[ROWS_MAX], n = closure(p, r, chosen);
    plan one;
    side s;
    plan_pick(&one, p, chosen, n);
    mav_err err = side_bind(&s, all->rt, &one, all);
    if (!err) err = side_call(&s);
    if (!err) same_bits(out, p, all, r, rows, &s, n, "alone");
    side_free(&s);
    plan_free(&one);
    if (err) return err;
  }
  return MAV_OK;
}

/* The slot of position j as row r of the table sees it. */
static int64_t slot_of(const plan *p, int64_t r, int64_t j) {
  while (r >= 0 && p->row[r].pos > j) r = p->row[r].parent;
  return r >= 0 ? p->row[r].slot : j;
}

mav_err compare_relocated(verdict *out, const plan *p, side *all, int most) {
  for (int64_t r = p->rows - 1, done = 0; r >= 0 && done < most; r--) {
    const token *w = &p->row[p->first + r];
    if (w->seq < 0) continue;
    plan one;
    side s;
    plan_pick(&one, p, &r, 1);
    one.first = 0;
    one.kv.sequences = 1;
    one.kv.page = p->kv.page == 16 ? 64 : 16;
    one.kv.length[0] = w->pos;
    one.kv.appended[0] = 1;
    one.row[0] = (token){w->id, 0, w->pos, w->pos, -1};
    mav_err err = side_bind(&s, all->rt, &one, NULL);
    for (int64_t j = p->kv.chunk ? w->pos / p->kv.chunk * p->kv.chunk : 0; j <= w->pos && !err; j++)
      for (int which = 0; which < 2; which++)
        for (int64_t h = 0; h < p->kv.kv_heads; h++)
          for (int64_t c = 0; c < p->kv.head_dim; c++)
            side_kv_set(&s, 0, j, which, h, c, side_kv_get(all, w->seq, slot_of(p, p->first + r, j), which, h, c));
    if (!err) err = side_call(&s);
    if (!err) same_bits(out, p, all, r, p->rows, &s, 1, "its past lies in other pages and slots");
    side_free(&s);
    plan_free(&one);
    if (err) return err;
    done++;
  }
  return MAV_OK;
}
