/* core/tokenizer_file.c - reading tokenizer.json.
 *
 * Accepts byte-level BPE: no normalizer; Split (regular expression, isolated) and ByteLevel pre-tokenizers; added tokens;
 * TemplateProcessing that puts tokens in front. Everything else that would change ids is refused by name, nothing is ignored
 * silently. `truncation` and `padding` are settings of a caller, not of the vocabulary: they are not used.
 * Characters outside the byte-level alphabet make a vocabulary entry unreachable from text: it has its bytes as written. */
#include <string.h>

#include "err.h"
#include "file.h"
#include "json.h"
#include "mem.h"
#include "tokenizer.h"

#define OP "tokenizer_open"
#define FILE_BYTES_MAX ((size_t)1 << 30)
#define DEPTH_MAX 32

/* GPT-2's pattern: what ByteLevel with use_regex means. */
#define BYTELEVEL_PATTERN "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

typedef struct reader {
  mav_tokenizer *t;
  const char *name; /* of the file, for messages */
  mav_diag *diag;
  char *scratch; /* as long as the file: any string of it fits, decoded */
} reader;

#define BAD(r, ...) MAV_FAIL((r)->diag, FORMAT, OP, "%s: " __VA_ARGS__)
#define REFUSE(r, ...) MAV_FAIL((r)->diag, UNSUPPORTED, OP, "%s: " __VA_ARGS__)
#define OUT_OF_MEMORY(r) MAV_FAIL((r)->diag, NOMEM, OP, "%s: out of memory", (r)->name)

static const char *type_of(const cJSON *item) {
  const cJSON *type = mav__json_get(item, "type");
  return cJSON_IsString(type) ? type->valuestring : "(no type)";
}

static bool is_true(const cJSON *object, const char *key, bool absent) {
  const cJSON *item = mav__json_get(object, key);
  return item ? cJSON_IsTrue(item) : absent;
}

static const char *keep(reader *r, const char *p, size_t n) {
  char *at = r->t->arena + r->t->arena_used;
  if (n) memcpy(at, p, n);
  r->t->arena_used += n;
  return at;
}

/* ---- vocabulary and merges ---- */

/* The largest id decides the size of the tables, so it is looked for first. */
static mav_err measure(reader *r, const cJSON *vocab, const cJSON *added, size_t *bytes, size_t *words) {
  int64_t id, largest = -1;
  for (const cJSON *item = vocab->child; item; item = item->next) {
    if (!mav__json_int(item, 0, MAV__TOKENS_MAX - 1, &id))
      return BAD(r, "token \"%.60s\" of model.vocab has no id in 0 .. %d", r->name, item->string, MAV__TOKENS_MAX - 1);
    if (id > largest) largest = id;
    *bytes += strlen(item->string);
    ++*words;
  }
  int at = 0;
  for (const cJSON *item = added ? added->child : NULL; item; item = item->next, at++) {
    const cJSON *content = mav__json_get(item, "content");
    if (!cJSON_IsString(content) || !content->valuestring[0]) return BAD(r, "added_tokens[%d] has no content", r->name, at);
    if (!mav__json_int(mav__json_get(item, "id"), 0, MAV__TOKENS_MAX - 1, &id))
      return BAD(r, "added token \"%.60s\" has no id in 0 .. %d", r->name, content->valuestring, MAV__TOKENS_MAX - 1);
    if (id > largest) largest = id;
    *bytes += strlen(content->valuestring);
  }
  if (largest < 0) return BAD(r, "model.vocab is empty", r->name);
  r->t->size = (int32_t)largest + 1;
  return MAV_OK;
}

static mav_err read_vocab(reader *r, const cJSON *vocab) {
  mav_tokenizer *t = r->t;
  for (const cJSON *item = vocab->child; item; item = item->next) {
    int32_t id = (int32_t)item->valuedouble;
    size_t length = strlen(item->string), n = 0;
    bool reachable = mav__bytelevel_decode(r->scratch, &n, item->string, length);
    if (!length) return BAD(r, "token %d is empty", r->name, id);
    if (t->piece[id].p) return BAD(r, "id %d is given twice in model.vocab, the second time to \"%.60s\"", r->name, id, item->string);
    if (!reachable) n = length;
    t->piece[id] = (mav__span){keep(r, reachable ? r->scratch : item->string, n), n};
    if (!reachable) continue;
    int32_t other = mav__table_add(&t->bpe.words, t->piece, id);
    if (other >= 0) return BAD(r, "token \"%.60s\" is in model.vocab twice, as %d and %d", r->name, item->string, other, id);
    if (n == 1) t->bpe.byte_id[(unsigned char)t->piece[id].p[0]] = id;
    if (n > t->bpe.longest) t->bpe.longest = n;
  }
  return MAV_OK;
}

/* Both forms: ["a", "b"] and the older "a b". */
static bool merge_sides(const cJSON *item, mav__span side[2]) {
  if (cJSON_IsString(item)) {
    const char *s = item->valuestring, *space = strchr(s, ' ');
    if (!space || strchr(space + 1, ' ')) return false;
    side[0] = (mav__span){s, (size_t)(space - s)};
    side[1] = (mav__span){space + 1, strlen(space + 1)};
  } else {
    const cJSON *a = cJSON_IsArray(item) ? item->child : NULL, *b = a ? a->next : NULL;
    if (!cJSON_IsString(a) || !cJSON_IsString(b) || b->next) return false;
    side[0] = (mav__span){a->valuestring, strlen(a->valuestring)};
    side[1] = (mav__span){b->valuestring, strlen(b->valuestring)};
  }
  return side[0].n && side[1].n;
}

static mav_err read_merges(reader *r, const cJSON *merges) {
  mav_tokenizer *t = r->t;
  size_t count = 0;
  for (const cJSON *item = merges->child; item; item = item->next) count++;
  if (mav__bpe_reserve(&t->bpe, count)) return OUT_OF_MEMORY(r);
  int32_t rank = 0;
  for (const cJSON *item = merges->child; item; item = item->next, rank++) {
    mav__span side[2];
    int32_t id[2];
    size_t used = 0;
    if (!merge_sides(item, side)) return BAD(r, "model.merges[%d] is not a pair of tokens", r->name, rank);
    for (int i = 0; i < 2; i++) {
      size_t n = 0;
      id[i] = mav__bytelevel_decode(r->scratch + used, &n, side[i].p, side[i].n)
                  ? mav__table_find(&t->bpe.words, t->piece, r->scratch + used, n)
                  : -1;
      if (id[i] < 0)
        return BAD(r, "model.merges[%d] names \"%.*s\", which is not in model.vocab", r->name, rank, (int)(side[i].n < 60 ? side[i].n : 60),
                   side[i].p);
      used += n;
    }
    int32_t result = mav__table_find(&t->bpe.words, t->piece, r->scratch, used);
    if (result < 0)
      return BAD(r, "model.merges[%d]: the merged token \"%.*s%.*s\" is not in model.vocab", r->name, rank,
                 (int)(side[0].n < 60 ? side[0].n : 60), side[0].p, (int)(side[1].n < 60 ? side[1].n : 60), side[1].p);
    if (!mav__bpe_add(&t->bpe, id[0], id[1], rank, result)) return BAD(r, "model.merges[%d] repeats an earlier pair", r->name, rank);
  }
  return MAV_OK;
}

static mav_err read_model(reader *r, const cJSON *root, const cJSON *added) {
  mav_tokenizer *t = r->t;
  const cJSON *model = mav__json_get(root, "model"), *item;
  if (!cJSON_IsObject(model)) return BAD(r, "\"model\" is %s; an object is needed", r->name, mav__json_kind(model));
  const cJSON *vocab = mav__json_get(model, "vocab"), *merges = mav__json_get(model, "merges");
  /* Files older than the field have no type. */
  if (mav__json_get(model, "type") && strcmp(type_of(model), "BPE") != 0)
    return REFUSE(r, "model type \"%.60s\"; only BPE is supported", r->name, type_of(model));
  if (!cJSON_IsObject(vocab)) return BAD(r, "model.vocab is %s; an object is needed", r->name, mav__json_kind(vocab));
  if (!cJSON_IsArray(merges)) return BAD(r, "model.merges is %s; an array is needed", r->name, mav__json_kind(merges));
  if ((item = mav__json_get(model, "dropout")) && !(cJSON_IsNumber(item) && item->valuedouble == 0))
    return REFUSE(r, "model.dropout is not supported", r->name);
  static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
  for (int i = 0; i < 2; i++)
    if ((item = mav__json_get(model, affixes[i])) && !(cJSON_IsString(item) && !item->valuestring[0]))
      return REFUSE(r, "model.%s is not supported", r->name, affixes[i]);
  if (is_true(model, "byte_fallback", false)) return REFUSE(r, "model.byte_fallback is not supported", r->name);
  t->bpe.ignore_merges = is_true(model, "ignore_merges", false);

  size_t bytes = 0, words = 0;
  MAV_TRY(measure(r, vocab, added, &bytes, &words));
  t->arena = mav__alloc(bytes + 1);
  t->piece = mav__alloc((size_t)t->size * sizeof *t->piece);
  t->special = mav__alloc((size_t)t->size * sizeof *t->special);
  if (!t->arena || !t->piece || !t->special || mav__table_init(&t->bpe.words, words)) return OUT_OF_MEMORY(r);
  t->bpe.piece = t->piece;
  for (int i = 0; i < 256; i++) t->bpe.byte_id[i] = -1;
  MAV_TRY(read_vocab(r, vocab));
  return read_merges(r, merges);
}

/* ---- added tokens ---- */

static bool same(const mav__span *a, const char *p, size_t n) { return a->n == n && !memcmp(a->p, p, n); }

static bool is_added(const mav__added *a, const mav__span *s) {
  const mav__added_token *found;
  return mav__added_search(a, s->p, s->n, &found) == 0 && found && found->content.n == s->n;
}

static mav_err read_added(reader *r, const cJSON *added) {
  mav_tokenizer *t = r->t;
  int32_t count = 0;
  for (const cJSON *item = added ? added->child : NULL; item; item = item->next) count++;
  for (int i = 0; i < 2; i++)
    if (!(t->added[i].token = mav__alloc((size_t)(count + 1) * sizeof *t->added[i].token))) return OUT_OF_MEMORY(r);
  for (const cJSON *item = added ? added->child : NULL; item; item = item->next) {
    const char *content = mav__json_get(item, "content")->valuestring;
    int32_t id = (int32_t)mav__json_get(item, "id")->valuedouble;
    bool special = is_true(item, "special", false);
    size_t length = strlen(content), n = 0;
    static const char *const refused[] = {"single_word", "lstrip", "rstrip"};
    for (int i = 0; i < 3; i++)
      if (is_true(item, refused[i], false))
        return REFUSE(r, "added token \"%.60s\" with %s is not supported", r->name, content, refused[i]);
    /* A vocabulary entry may be marked as added; then both must agree on the id. */
    int32_t word = mav__bytelevel_decode(r->scratch, &n, content, length) ? mav__table_find(&t->bpe.words, t->piece, r->scratch, n) : -1;
    if (word >= 0 && word != id) return BAD(r, "added token \"%.60s\" has id %d, but %d in model.vocab", r->name, content, id, word);
    if (t->piece[id].p && word < 0 && !same(&t->piece[id], content, length))
      return BAD(r, "id %d of added token \"%.60s\" is taken", r->name, id, content);
    mav__span span = {keep(r, content, length), length};
    if (!t->piece[id].p) t->piece[id] = span;
    if (special) t->special[id] = true;
    mav__added *list = &t->added[is_true(item, "normalized", !special)];
    list->token[list->count++] = (mav__added_token){.content = span, .id = id, .special = special};
  }
  for (int i = 0; i < 2; i++) mav__added_sort(&t->added[i]);
  for (int i = 0; i < 2; i++)
    for (int32_t k = 0; k < t->added[i].count; k++) {
      const mav__span *a = &t->added[i].token[k].content;
      if ((k && same(&t->added[i].token[k - 1].content, a->p, a->n)) || (i && is_added(&t->added[0], a)))
        return BAD(r, "added token \"%.*s\" is given twice", r->name, (int)(a->n < 60 ? a->n : 60), a->p);
    }
  return MAV_OK;
}

/* ---- pre-tokenizers, post-processors and the rest ---- */

static mav_err read_split(reader *r, const cJSON *item) {
  const cJSON *pattern = mav__json_get(item, "pattern"), *regex = mav__json_get(pattern, "Regex");
  const cJSON *behavior = mav__json_get(item, "behavior");
  if (!cJSON_IsString(regex)) return REFUSE(r, "a Split pre-tokenizer without a Regex pattern is not supported", r->name);
  if (!cJSON_IsString(behavior) || strcmp(behavior->valuestring, "Isolated") != 0)
    return REFUSE(r, "Split behavior \"%.40s\"; only Isolated is supported", r->name,
                  cJSON_IsString(behavior) ? behavior->valuestring : "(none)");
  if (is_true(item, "invert", false)) return REFUSE(r, "an inverted Split is not supported", r->name);
  return mav__pretokenizer_add(&r->t->pretokenizer, regex->valuestring, OP, r->name, r->diag);
}

static mav_err read_bytelevel(reader *r, const cJSON *item) {
  if (is_true(item, "add_prefix_space", true)) return REFUSE(r, "ByteLevel with add_prefix_space is not supported", r->name);
  if (!is_true(item, "use_regex", true)) return MAV_OK;
  return mav__pretokenizer_add(&r->t->pretokenizer, BYTELEVEL_PATTERN, OP, r->name, r->diag);
}

static mav_err read_pretokenizer(reader *r, const cJSON *root) {
  const cJSON *item = mav__json_get(root, "pre_tokenizer");
  if (!item) return REFUSE(r, "no pre_tokenizer; a ByteLevel one is needed", r->name);
  bool is_sequence = !strcmp(type_of(item), "Sequence"), bytelevel = false;
  if (is_sequence) {
    const cJSON *list = mav__json_get(item, "pretokenizers");
    if (!cJSON_IsArray(list)) return BAD(r, "pre_tokenizer.pretokenizers is %s; an array is needed", r->name, mav__json_kind(list));
    item = list->child;
  }
  for (; item; item = is_sequence ? item->next : NULL) {
    if (bytelevel) return REFUSE(r, "pre_tokenizer type \"%.60s\" after ByteLevel is not supported", r->name, type_of(item));
    if (!strcmp(type_of(item), "Split")) MAV_TRY(read_split(r, item));
    else if (!strcmp(type_of(item), "ByteLevel")) MAV_TRY(read_bytelevel(r, item));
    else return REFUSE(r, "pre_tokenizer type \"%.60s\"; Split and ByteLevel are supported", r->name, type_of(item));
    bytelevel = !strcmp(type_of(item), "ByteLevel");
  }
  return bytelevel ? MAV_OK : REFUSE(r, "the pre_tokenizer has no ByteLevel; only byte-level BPE is supported", r->name);
}

/* Ids that one SpecialToken of a template stands for, appended to bos. */
static mav_err read_template_token(reader *r, const cJSON *processor, const cJSON *token) {
  const cJSON *id = mav__json_get(token, "id");
  const cJSON *entry = cJSON_IsString(id) ? mav__json_get(mav__json_get(processor, "special_tokens"), id->valuestring) : NULL;
  const cJSON *ids = mav__json_get(entry, "ids");
  if (!cJSON_IsArray(ids))
    return BAD(r, "the post_processor uses \"%.60s\", which its special_tokens lack", r->name,
               cJSON_IsString(id) ? id->valuestring : "(no id)");
  for (const cJSON *item = ids->child; item; item = item->next) {
    int64_t n;
    if (!mav__json_int(item, 0, r->t->size - 1, &n) || !r->t->piece[n].p)
      return BAD(r, "post_processor token \"%.60s\" has an id that is no token", r->name, id->valuestring);
    if (r->t->bos_count == MAV__BOS_MAX) return REFUSE(r, "the post_processor prepends more than %d tokens", r->name, MAV__BOS_MAX);
    r->t->bos[r->t->bos_count++] = (int32_t)n;
  }
  return MAV_OK;
}

static mav_err read_template(reader *r, const cJSON *processor) {
  const cJSON *single = mav__json_get(processor, "single");
  if (!cJSON_IsArray(single)) return BAD(r, "post_processor.single is %s; an array is needed", r->name, mav__json_kind(single));
  bool text = false;
  for (const cJSON *item = single->child; item; item = item->next) {
    const cJSON *token = mav__json_get(item, "SpecialToken");
    if (token && text) return REFUSE(r, "a post_processor that appends tokens is not supported", r->name);
    if (token) MAV_TRY(read_template_token(r, processor, token));
    else if (mav__json_get(item, "Sequence") && !text) text = true;
    else return BAD(r, "post_processor.single is not one Sequence and some SpecialTokens", r->name);
  }
  return text ? MAV_OK : BAD(r, "post_processor.single has no Sequence", r->name);
}

static mav_err read_postprocessor(reader *r, const cJSON *root) {
  const cJSON *item = mav__json_get(root, "post_processor");
  bool is_sequence = item && !strcmp(type_of(item), "Sequence");
  if (is_sequence) {
    const cJSON *list = mav__json_get(item, "processors");
    if (!cJSON_IsArray(list)) return BAD(r, "post_processor.processors is %s; an array is needed", r->name, mav__json_kind(list));
    item = list->child;
  }
  bool seen = false;
  for (; item; item = is_sequence ? item->next : NULL) {
    if (!strcmp(type_of(item), "ByteLevel")) continue; /* moves offsets only */
    if (strcmp(type_of(item), "TemplateProcessing") != 0)
      return REFUSE(r, "post_processor type \"%.60s\"; TemplateProcessing is supported", r->name, type_of(item));
    if (seen) return REFUSE(r, "more than one TemplateProcessing is not supported", r->name);
    MAV_TRY(read_template(r, item));
    seen = true;
  }
  return MAV_OK;
}

static mav_err read_root(reader *r, const cJSON *root) {
  if (!cJSON_IsObject(root)) return BAD(r, "%s; an object is needed", r->name, mav__json_kind(root));
  const cJSON *added = mav__json_get(root, "added_tokens"), *item;
  if (added && !cJSON_IsArray(added)) return BAD(r, "added_tokens is %s; an array is needed", r->name, mav__json_kind(added));
  if ((item = mav__json_get(root, "normalizer"))) return REFUSE(r, "normalizer type \"%.60s\" is not supported", r->name, type_of(item));
  if ((item = mav__json_get(root, "decoder")) && strcmp(type_of(item), "ByteLevel") != 0)
    return REFUSE(r, "decoder type \"%.60s\"; ByteLevel is supported", r->name, type_of(item));
  MAV_TRY(read_model(r, root, added));
  MAV_TRY(read_added(r, added));
  MAV_TRY(read_pretokenizer(r, root));
  return read_postprocessor(r, root);
}

mav_err mav__tokenizer_load(mav_tokenizer *t, const char *path, mav_diag *diag) {
  reader r = {.t = t, .name = mav__path_short(path), .diag = diag};
  char *text = NULL;
  size_t bytes;
  cJSON *root = NULL;
  mav_err err = MAV_OK;
  if (!(t->path = mav__strdup(path)) || mav__pretokenizer_init(&t->pretokenizer)) return OUT_OF_MEMORY(&r);
  MAV_GOTO(mav__file_read(&text, &bytes, path, FILE_BYTES_MAX, OP, diag));
  MAV_GOTO(mav__json_parse(&root, text, bytes, DEPTH_MAX, OP, path, diag));
  r.scratch = text; /* parsed: its memory serves again */
  MAV_GOTO(read_root(&r, root));
done:
  cJSON_Delete(root);
  mav__free(text);
  return err;
}
