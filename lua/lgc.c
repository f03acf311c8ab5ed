/* lua/lgc.c - objects, the release queue, and the collector's knowledge of device memory.
 *
 * The collector sees 56 bytes where a tensor owns gigabytes. So every device allocation is charged: past STEP_BYTES the
 * collector takes a step of that size, and when live device memory has doubled since the last full collection, a full one
 * runs (a generational collector would keep old tensors for ever otherwise).
 *
 * __gc and __close never call the core. They queue the object, and safe points (constructors, eager ops, waits, close, memory)
 * release what is queued. The queue always has room for every live object, so a finalizer never allocates.
 * While a graph is captured nothing is released. Owner: the lmav_state of the Lua state; freed with it. */
#include <string.h>

#include "lmav.h"

#define STEP_BYTES ((int64_t)16 << 20)
#define FULL_BYTES ((int64_t)64 << 20)

static void release_runtime(void *p) { mav_runtime_release(p); }
static void release_tensor(void *p) { mav_tensor_release(p); }
static void release_rows(void *p) { mav_rows_release(p); }
static void release_kv(void *p) { mav_kv_release(p); }
static void release_graph(void *p) { mav_graph_release(p); }
static void release_spec(void *p) { mav_spec_release(p); }
static void release_weights(void *p) { mav_weights_release(p); }
static void release_safetensors(void *p) { mav_safetensors_close(p); }
static void release_pack(void *p) { mav_pack_release(p); }
static void release_pack_writer(void *p) { mav_pack_writer_close(p); }
static void release_gguf(void *p) { mav_gguf_release(p); }
static void release_tokenizer(void *p) { mav_tokenizer_release(p); }
static void release_stream(void *p) { mav_detokenizer_free(p); }
static void release_comm(void *p) { mav_comm_release(p); }

static const struct {
  const char *name;
  void (*release)(void *);
  int uservalues;
} kinds[LMAV_KIND_COUNT] = {
    [LMAV_RUNTIME] = {"mav.runtime", release_runtime, 0},
    [LMAV_TENSOR] = {"mav.tensor", release_tensor, 0},
    [LMAV_ROWS] = {"mav.rows", release_rows, 1}, /* 1: ids */
    [LMAV_KV] = {"mav.kv", release_kv, 1},       /* 1: layer handles */
    [LMAV_LAYER] = {"mav.kv.layer", release_kv, 0},
    [LMAV_SEQUENCE] = {"mav.sequence", release_kv, 0},
    [LMAV_GRAPH] = {"mav.graph", release_graph, 2}, /* 1: outputs, 2: rows */
    [LMAV_SPEC] = {"mav.spec", release_spec, 1}, /* 1: its tree */
    [LMAV_WEIGHTS] = {"mav.weights", release_weights, 0},
    [LMAV_SAFETENSORS] = {"mav.safetensors", release_safetensors, 0},
    [LMAV_PACK] = {"mav.pack", release_pack, 1}, /* 1: meta */
    [LMAV_PACK_WRITER] = {"mav.pack_writer", release_pack_writer, 0},
    [LMAV_GGUF] = {"mav.gguf", release_gguf, 0},
    [LMAV_TOKENIZER] = {"mav.tokenizer", release_tokenizer, 0},
    [LMAV_STREAM] = {"mav.stream", release_stream, 1}, /* 1: its tokenizer */
    [LMAV_COMM] = {"mav.comm", release_comm, 0},
    [LMAV_BOX] = {"mav.box", mav_free, 0},
};

const char *lmav_kind_name(lmav_kind kind) { return kinds[kind].name; }

/* Room for one more live object. May raise. */
static void queue_reserve(lua_State *L, lmav_state *state) {
  if (state->live + state->queued < state->queue_cap) return;
  lmav_drain(state);
  if (state->live + state->queued < state->queue_cap) return;
  int cap = state->queue_cap ? state->queue_cap * 2 : 64;
  lmav_push_state(L);
  lmav_release *queue = lua_newuserdatauv(L, (size_t)cap * sizeof *queue, 0);
  if (state->queued) memcpy(queue, state->queue, (size_t)state->queued * sizeof *queue);
  state->queue = queue; /* nothing raises or collects between here and the anchor */
  state->queue_cap = cap;
  lua_setiuservalue(L, -2, LMAV_STATE_QUEUE);
  lua_pop(L, 1);
}

lmav_object *lmav_new(lua_State *L, lmav_kind kind) {
  lmav_state *state = lmav_get_state(L);
  luaL_checkstack(L, 4, NULL);
  queue_reserve(L, state);
  lmav_object *o = lua_newuserdatauv(L, sizeof *o, kinds[kind].uservalues);
  *o = (lmav_object){.state = state, .kind = kind, .counted = true};
  state->live++;
  luaL_setmetatable(L, kinds[kind].name);
  return o;
}

void lmav_set(lmav_object *object, void *p, mav_runtime *rt) {
  object->p = p;
  object->rt = rt;
}

lmav_object *lmav_test(lua_State *L, int arg, lmav_kind kind) { return luaL_testudata(L, arg, kinds[kind].name); }

lmav_object *lmav_check(lua_State *L, int arg, lmav_kind kind) {
  lmav_object *o = luaL_checkudata(L, arg, kinds[kind].name);
  if (!o->p) luaL_argerror(L, arg, lua_pushfstring(L, "closed %s", kinds[kind].name));
  return o;
}

/* Closed objects give their claim on the queue up: their line takes its place until it is drained. */
static void queue_object(lmav_object *o) {
  lmav_state *state = o->state;
  if (o->counted) {
    o->counted = false;
    state->live--;
  }
  if (!o->p) return;
  state->queue[state->queued++] = (lmav_release){.p = o->p, .kind = o->kind, .number = o->number};
  o->p = NULL;
  o->rt = NULL;
}

void lmav_drain(lmav_state *state) {
  if (state->capture) return;
  while (state->queued > 0) {
    lmav_release r = state->queue[--state->queued];
    if (r.kind == LMAV_SEQUENCE) mav_kv_sequence_free(r.p, r.number);
    kinds[r.kind].release(r.p);
  }
}

/* Upvalue 1: the kind. */
static lmav_object *check_own(lua_State *L) { return luaL_checkudata(L, 1, kinds[lua_tointeger(L, lua_upvalueindex(1))].name); }

int lmav_object_gc(lua_State *L) {
  queue_object(check_own(L));
  return 0;
}

int lmav_object_close(lua_State *L) {
  lmav_object *o = check_own(L);
  queue_object(o);
  lmav_drain(o->state);
  return 0;
}

void lmav_charge(lua_State *L, mav_runtime *rt, int64_t bytes) {
  lmav_state *state = lmav_get_state(L);
  if (bytes <= 0 || state->capture) return;
  state->debt += bytes;
  if (state->debt < STEP_BYTES) return;
  mav_memory_stats memory;
  mav_runtime_memory(rt, &memory);
  if (memory.device_bytes_live > 2 * state->base + FULL_BYTES) {
    lua_gc(L, LUA_GCCOLLECT, 0);
    lmav_drain(state);
    mav_runtime_memory(rt, &memory);
    state->base = memory.device_bytes_live;
  } else {
    int64_t kib = state->debt >> 10;
    lua_gc(L, LUA_GCSTEP, (int)(kib < INT32_MAX ? kib : INT32_MAX));
    lmav_drain(state);
  }
  state->debt = 0;
}

bool lmav_relieve(lua_State *L, mav_err err) {
  if (err != MAV_ERR_NOMEM && err != MAV_ERR_FULL) return false;
  lmav_state *state = lmav_get_state(L);
  if (state->capture || state->relieving) return false;
  state->relieving = true; /* a finalizer of the user's may come here again */
  lmav_drain(state);
  lua_gc(L, LUA_GCCOLLECT, 0);
  lmav_drain(state);
  state->relieving = false;
  return true;
}

/* Runs last of all finalizers: the state was made first. */
static int state_gc(lua_State *L) {
  lmav_state *state = lua_touserdata(L, 1);
  state->capture = NULL;
  lmav_drain(state);
  return 0;
}

/* Address of the state's line in the registry; never written. */
static const char state_key = 0;

lmav_state *lmav_get_state(lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &state_key);
  lmav_state *state = lua_touserdata(L, -1);
  lua_pop(L, 1);
  return state;
}

void lmav_push_state(lua_State *L) { lua_rawgetp(L, LUA_REGISTRYINDEX, &state_key); }

static int no_new_fields(lua_State *L) {
  return luaL_error(L, "%s has no field '%s' that can be set", luaL_typename(L, 1), luaL_tolstring(L, 2, NULL));
}

/* Methods close, __gc, __close, __name and __metatable-free reading through __index. */
void lmav_new_metatable(lua_State *L, lmav_kind kind, const luaL_Reg *methods, const luaL_Reg *meta, lua_CFunction index) {
  if (!luaL_newmetatable(L, kinds[kind].name)) {
    lua_pop(L, 1);
    return;
  }
  if (meta) luaL_setfuncs(L, meta, 0);
  lua_pushinteger(L, kind);
  lua_pushcclosure(L, lmav_object_gc, 1);
  lua_pushvalue(L, -1);
  lua_setfield(L, -3, "__gc");
  lua_setfield(L, -2, "__close");
  lua_pushcfunction(L, no_new_fields);
  lua_setfield(L, -2, "__newindex");
  lua_newtable(L);
  if (methods) luaL_setfuncs(L, methods, 0);
  lua_pushinteger(L, kind);
  lua_pushcclosure(L, lmav_object_close, 1);
  lua_setfield(L, -2, "close");
  if (index) lua_pushcclosure(L, index, 1);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
}

bool lmav_push_method(lua_State *L) {
  lua_pushvalue(L, 2);
  return lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL;
}

/* false: the state exists, the library was opened before. */
bool lmav_open_gc(lua_State *L) {
  if (lmav_get_state(L)) return false;
  lmav_state *state = lua_newuserdatauv(L, sizeof *state, LMAV_STATE_USERVALUES);
  *state = (lmav_state){0};
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, state_gc);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &state_key);
  lmav_new_metatable(L, LMAV_BOX, NULL, NULL, NULL);
  return true;
}
