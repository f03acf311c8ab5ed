/* lua/lmav.h - what the files of the bridge share. lua/ is the only folder that includes lua.h, and of the core it
 * knows mav.h alone.
 *
 * Every userdata is one lmav_object: empty first, then the core's object is acquired into it, then it is filled. So an
 * error raised at any point leaks nothing. Invariants:
 *   1. __gc == __close, idempotent; they only queue the core's object (lgc.c), which safe points release.
 *   2. No malloc'ed pointer lives across a Lua call that can raise, unless a userdata on the stack owns it.
 *   3. No mutable C statics: several lua_States live in one process. What a state shares is in lmav_state.
 *   4. The replay path (graph launch, wait, poll; rows set; sequence reserve, commit; tensor get, set) allocates nothing.
 * Threads: a lua_State and every runtime it made belong to one thread at a time.
 *
 * Blocks that start with "lua" right after the comment opener are LuaCATS annotations; lua/gendoc.lua collects them. */
#ifndef LMAV_H
#define LMAV_H

#include <lauxlib.h>
#include <lua.h>

#include "mav.h"

#if LUA_VERSION_NUM != 504
#error "the bridge is written for Lua 5.4"
#endif

typedef struct lmav_state lmav_state;

/* The nouns. The order is that of the table in lgc.c. */
typedef enum lmav_kind {
  LMAV_RUNTIME,
  LMAV_TENSOR,
  LMAV_ROWS,
  LMAV_KV,
  LMAV_LAYER,    /* p: its mav_kv; number: the layer, 0-based */
  LMAV_SEQUENCE, /* p: its mav_kv; number: the sequence */
  LMAV_GRAPH,
  LMAV_SPEC,
  LMAV_WEIGHTS,
  LMAV_SAFETENSORS,
  LMAV_PACK,
  LMAV_PACK_WRITER,
  LMAV_GGUF,
  LMAV_TOKENIZER,
  LMAV_STREAM,
  LMAV_COMM,
  LMAV_BOX, /* p: memory for mav_free */
  LMAV_KIND_COUNT
} lmav_kind;

typedef struct lmav_object {
  lmav_state *state;
  void *p;         /* the core's object, owned; NULL: closed, or not acquired yet */
  mav_runtime *rt; /* borrowed from p; NULL where p has none */
  lmav_kind kind;
  int number;
  bool counted;
} lmav_object;

/* One line of the release queue. */
typedef struct lmav_release {
  void *p;
  lmav_kind kind;
  int number;
} lmav_release;

struct lmav_state {
  mav_graph *capture; /* the open capture, or NULL; borrowed from its userdata on the capturing stack */
  mav_runtime *capture_rt;
  lmav_release *queue; /* memory of the state's user value 2; room for every live object */
  int queued, queue_cap, live;
  int64_t debt; /* device bytes allocated since the last collector step */
  int64_t base; /* device bytes live after the last full collection */
  bool relieving;
};

/* User values of the state's userdata. */
enum { LMAV_STATE_DEFAULT_RUNTIME = 1, LMAV_STATE_QUEUE = 2, LMAV_STATE_USERVALUES = 2 };

/* lmav.c */
MAV_API int luaopen_mav(lua_State *L);
/* Pushes a list of the names of the top-level scripts: what `mav NAME` may run. */
void lmav_push_script_names(lua_State *L);
/* Pushes require(module)[name]. */
void lmav_push_lua(lua_State *L, const char *module, const char *name);

/* Option tables. keys end with NULL; an unknown key raises and names the nearest. arg may be absent or nil when `optional`. */
bool lmav_check_options(lua_State *L, int arg, bool optional, const char *const *keys);
/* The same for the string keys of a table that also has a list part. */
void lmav_check_keys(lua_State *L, int arg, const char *const *keys);
/* Raises luaL_argerror with "key: text". */
int lmav_key_error(lua_State *L, int arg, const char *key, const char *format, ...) MAV_PRINTF(4, 5);
/* One key of the options at arg, or the default when it is absent; arg 0: no options. Nothing stays on the stack. */
lua_Integer lmav_opt_integer(lua_State *L, int arg, const char *key, lua_Integer low, lua_Integer high, lua_Integer value);
lua_Number lmav_opt_number(lua_State *L, int arg, const char *key, lua_Number value);
bool lmav_opt_boolean(lua_State *L, int arg, const char *key, bool value);
mav_dtype lmav_opt_dtype(lua_State *L, int arg, const char *key, mav_dtype value);
/* Leaves the string on the stack (so that it stays valid), or nil. */
const char *lmav_opt_string(lua_State *L, int arg, const char *key);
/* "did you mean 'x'?" or the list of what is valid; pushes the text. */
const char *lmav_push_hint(lua_State *L, const char *word, const char *const *valid);
mav_dtype lmav_check_dtype(lua_State *L, int arg);
/* Reads the list at arg as a shape. */
int lmav_check_shape(lua_State *L, int arg, int64_t shape[MAV_DIMS_MAX]);

/* lerr.c: a binding ends in exactly one of these. */
int lmav_raise(lua_State *L, const mav_diag *diag);
int lmav_fail(lua_State *L, const mav_diag *diag); /* nil, err */
/* err 0: the n values on top. A condition of the world: nil, err. A programmer's mistake: raises. */
int lmav_result(lua_State *L, mav_err err, const mav_diag *diag, int n);
void lmav_push_error(lua_State *L, const mav_diag *diag);
/* A diagnostic of the bridge's own. */
mav_diag lmav_diag(mav_err code, const char *op, const char *format, ...) MAV_PRINTF(3, 4);
void lmav_open_err(lua_State *L);

/* lgc.c */
bool lmav_open_gc(lua_State *L); /* makes the state; false: it exists */
lmav_state *lmav_get_state(lua_State *L);
void lmav_push_state(lua_State *L);
/* The metatable of a kind; adds close, __gc, __close. index: an __index function for fields, NULL: the table of methods. */
void lmav_new_metatable(lua_State *L, lmav_kind kind, const luaL_Reg *methods, const luaL_Reg *meta, lua_CFunction index);
/* How every index function starts: pushes method `key` (upvalue 1 is the table of methods); false: nil was pushed. */
bool lmav_push_method(lua_State *L);
lmav_object *lmav_new(lua_State *L, lmav_kind kind);
/* The object at arg; raises when it is of another kind, or closed. */
lmav_object *lmav_check(lua_State *L, int arg, lmav_kind kind);
lmav_object *lmav_test(lua_State *L, int arg, lmav_kind kind); /* NULL: another kind; may be closed */
const char *lmav_kind_name(lmav_kind kind);
void lmav_set(lmav_object *object, void *p, mav_runtime *rt);
void lmav_drain(lmav_state *state); /* a safe point; does nothing while capturing */
void lmav_charge(lua_State *L, mav_runtime *rt, int64_t bytes);
bool lmav_relieve(lua_State *L, mav_err err); /* true: garbage was collected, try once more */
int lmav_object_gc(lua_State *L);             /* __gc and __close: queues; upvalue 1 is the kind */
int lmav_object_close(lua_State *L);          /* method close: queues, then drains */

/* Calls once more after a collection when memory or room ran out. */
#define LMAV_TRY_TWICE(L, err, call)                       \
  do {                                                     \
    (err) = (call);                                        \
    if ((err) && lmav_relieve((L), (err))) (err) = (call); \
  } while (0)

/* lruntime.c: pushes the runtime that key `runtime` of the options at arg names (0: no options), else the default. */
mav_runtime *lmav_push_runtime(lua_State *L, int arg);
void lmav_open_runtime(lua_State *L);

/* ltensor.c */
mav_tensor *lmav_check_tensor(lua_State *L, int arg);
void lmav_push_tensor(lua_State *L, mav_tensor *borrowed); /* retains; nil for NULL */
void lmav_push_shape_text(lua_State *L, const mav_tensor *t);
void lmav_open_tensor(lua_State *L);

/* ljson.c. The text is JSON that the core has checked; what Lua cannot hold raises. */
void lmav_push_decoded(lua_State *L, const char *text);
void lmav_push_encoded(lua_State *L, int index); /* the value there as a string */

/* lop.c: runs an op whose tensor arguments are, in order, at these stack indices; pushes its results. */
int lmav_op_run(lua_State *L, const char *name, int count, const int *index, const mav_dtype *dtype);
void lmav_open_op(lua_State *L);

void lmav_open_rows(lua_State *L);
void lmav_open_kv(lua_State *L);
void lmav_open_graph(lua_State *L);
void lmav_open_spec(lua_State *L);
void lmav_open_weights(lua_State *L);
void lmav_open_pack(lua_State *L);
void lmav_open_gguf(lua_State *L);
void lmav_open_tokenizer(lua_State *L);
void lmav_open_comm(lua_State *L);
void lmav_open_json(lua_State *L);

#endif
