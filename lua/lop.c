/* lua/lop.c - mav.op.<name>{...}: one binding for every line of kernels/ops.def, from its description.
 *
 * Arguments are named as in the description; results may be given under their own names, or as `out` (a list when there are
 * several). Optional arguments may be false. Where the shape is "*" a number stands for a tensor of one element.
 * Results are returned in order. Errors raise. */
#include <math.h>
#include <string.h>

#include "lmav.h"

typedef struct call {
  const mav_op_desc *desc;
  int op, arg;             /* arg: stack index that errors are charged to */
  int index[MAV_ARGS_MAX]; /* stack index of each argument's value, 0: not given */
  mav_arg args[MAV_ARGS_MAX];
} call;

static int bad_value(lua_State *L, const call *c, int i, const char *expected) {
  const char *got = luaL_typename(L, c->index[i]);
  if (luaL_getmetafield(L, c->index[i], "__name") == LUA_TSTRING) got = lua_tostring(L, -1);
  return luaL_argerror(L, c->arg, lua_pushfstring(L, "%s: %s expected, got %s", c->desc->arg[i].name, expected, got));
}

/* The open object of a kind behind argument i. */
static lmav_object *object(lua_State *L, const call *c, int i, lmav_kind kind) {
  lmav_object *o = lmav_test(L, c->index[i], kind);
  if (!o) {
    bad_value(L, c, i, kind == LMAV_LAYER ? "mav.kv.layer (kv:layer(i))" : lmav_kind_name(kind));
    return NULL;
  }
  if (!o->p) luaL_argerror(L, c->arg, lua_pushfstring(L, "%s: closed %s", c->desc->arg[i].name, lmav_kind_name(kind)));
  return o;
}

static bool takes_numbers(const mav_arg_desc *a) { return a->kind == MAV_ARG_IN && !strcmp(a->shape, "*"); }

/* Fills the argument; numbers that stand for tensors wait for the runtime. */
static void read_argument(lua_State *L, call *c, int i, mav_runtime **rt) {
  const mav_arg_desc *a = &c->desc->arg[i];
  mav_arg *v = &c->args[i];
  lmav_object *o = NULL;
  v->given = true;
  switch (a->kind) {
    case MAV_ARG_IN:
    case MAV_ARG_INDEX:
    case MAV_ARG_MUT:
    case MAV_ARG_WEIGHT:
    case MAV_ARG_OUT:
      if (takes_numbers(a) && lua_type(L, c->index[i]) == LUA_TNUMBER) {
        v->tensor = NULL;
        return;
      }
      o = object(L, c, i, LMAV_TENSOR);
      v->tensor = o->p;
      break;
    case MAV_ARG_ROWS:
    case MAV_ARG_ROWS_OUT:
      o = object(L, c, i, LMAV_ROWS);
      v->rows = o->p;
      break;
    case MAV_ARG_KV:
      o = object(L, c, i, LMAV_LAYER);
      v->kv.cache = o->p;
      v->kv.layer = o->number;
      break;
    case MAV_ARG_COMM:
      o = object(L, c, i, LMAV_COMM);
      v->comm = o->p;
      break;
    case MAV_ARG_NUM:
      if (lua_type(L, c->index[i]) != LUA_TNUMBER) bad_value(L, c, i, "number");
      v->number = lua_tonumber(L, c->index[i]);
      return;
    case MAV_ARG_INT: {
      int exact = 1;
      if (lua_isboolean(L, c->index[i])) {
        v->number = lua_toboolean(L, c->index[i]);
      } else {
        v->number = (double)lua_tointegerx(L, c->index[i], &exact);
        if (!exact || lua_type(L, c->index[i]) != LUA_TNUMBER) bad_value(L, c, i, "integer");
      }
      return;
    }
    case MAV_ARG_DTYPE: {
      if (lua_type(L, c->index[i]) != LUA_TSTRING) bad_value(L, c, i, "name of a dtype");
      v->number = lmav_check_dtype(L, c->index[i]);
      return;
    }
  }
  if (!*rt) *rt = o->rt;
}

static int missing(lua_State *L, const call *c, int i) {
  return luaL_argerror(L, c->arg, lua_pushfstring(L, "%s is required: %s", c->desc->arg[i].name, c->desc->arg[i].doc));
}

/* c->index is filled. Runs the op and pushes its results. */
static int run(lua_State *L, call *c) {
  const mav_op_desc *d = c->desc;
  mav_runtime *rt = NULL;
  luaL_checkstack(L, 3 * MAV_ARGS_MAX, NULL);
  for (int i = 0; i < d->args; i++) {
    const mav_arg_desc *a = &d->arg[i];
    c->args[i] = (mav_arg){0};
    if (c->index[i] && lua_type(L, c->index[i]) == LUA_TBOOLEAN && !lua_toboolean(L, c->index[i]) && a->optional) c->index[i] = 0;
    if (c->index[i]) {
      read_argument(L, c, i, &rt);
    } else {
      bool number = a->kind == MAV_ARG_NUM || a->kind == MAV_ARG_INT;
      bool needed = number ? a->value == MAV_REQUIRED : a->kind != MAV_ARG_DTYPE && a->kind != MAV_ARG_OUT && a->kind != MAV_ARG_COMM;
      if (needed && !a->optional) missing(L, c, i);
    }
  }
  if (!rt) rt = lmav_push_runtime(L, 0);
  lmav_state *state = lmav_get_state(L);
  if (state->capture && rt != state->capture_rt)
    return luaL_error(L, "%s: its arguments belong to another runtime (%s) than the capture (%s), which would not record it; name it with runtime = in mav.graph",
                      d->name, mav_runtime_device(rt), mav_runtime_device(state->capture_rt));
  lmav_drain(state);
  for (int i = 0; i < d->args; i++) /* numbers, as tensors without dimensions */
    if (takes_numbers(&d->arg[i]) && c->args[i].given && !c->args[i].tensor) {
      lmav_object *o = lmav_new(L, LMAV_TENSOR);
      mav_tensor *t = NULL;
      mav_err err;
      LMAV_TRY_TWICE(L, err, mav_tensor_new(&t, rt, MAV_DTYPE_F32, 0, NULL));
      if (err) return lmav_raise(L, mav_runtime_diag(rt));
      lmav_set(o, t, rt);
      if (mav_tensor_set(t, 0, lua_tonumber(L, c->index[i]))) return lmav_raise(L, mav_runtime_diag(rt));
      c->args[i].tensor = t;
    }
  lmav_object *results[MAV_ARGS_MAX] = {NULL};
  int count = 0;
  for (int i = 0; i < d->args; i++) {
    if (d->arg[i].kind != MAV_ARG_OUT) continue;
    count++;
    if (c->args[i].given)
      lua_pushvalue(L, c->index[i]);
    else
      results[i] = lmav_new(L, LMAV_TENSOR);
  }
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_op_call(rt, c->op, c->args));
  if (err) return lmav_raise(L, mav_runtime_diag(rt));
  int64_t bytes = 0;
  for (int i = 0; i < d->args; i++)
    if (results[i]) {
      mav_tensor *t = c->args[i].tensor;
      lmav_set(results[i], t, rt);
      bytes += mav_tensor_count(t) * (int64_t)mav_dtype_bytes(mav_tensor_dtype(t));
    }
  lmav_charge(L, rt, bytes);
  return count;
}

int lmav_op_run(lua_State *L, const char *name, int count, const int *index, const mav_dtype *dtype) {
  call c = {.op = mav_op_find(name), .arg = 1};
  if (c.op < 0) return luaL_error(L, "no op '%s'", name);
  c.desc = mav_op_get(c.op);
  for (int i = 0, next = 0; i < c.desc->args; i++) {
    const mav_arg_desc *a = &c.desc->arg[i];
    if (a->kind == MAV_ARG_DTYPE && dtype) {
      lua_pushstring(L, mav_dtype_name(*dtype));
      c.index[i] = lua_gettop(L);
    } else if (a->kind != MAV_ARG_OUT && next < count) {
      c.index[i] = index[next++];
    }
  }
  return run(L, &c);
}

static int unknown(lua_State *L, const mav_op_desc *d) {
  if (lua_type(L, -2) != LUA_TSTRING)
    return luaL_argerror(L, 1, lua_pushfstring(L, "unexpected element [%s]: arguments are named", luaL_tolstring(L, -2, NULL)));
  const char *names[MAV_ARGS_MAX + 2] = {NULL};
  for (int i = 0; i < d->args; i++) names[i] = d->arg[i].name;
  names[d->args] = "out";
  const char *key = lua_tostring(L, -2);
  return luaL_argerror(L, 1, lua_pushfstring(L, "unknown key '%s' (%s)", key, lmav_push_hint(L, key, names)));
}

/* `out`: one tensor, or a list of them. */
static void read_out(lua_State *L, call *c) {
  int outs = 0, first = 0;
  for (int i = c->desc->args - 1; i >= 0; i--)
    if (c->desc->arg[i].kind == MAV_ARG_OUT) {
      outs++;
      first = i;
    }
  if (!outs) luaL_argerror(L, c->arg, "out: the op has no result");
  if (lua_type(L, -1) != LUA_TTABLE) {
    if (outs > 1) luaL_argerror(L, c->arg, lua_pushfstring(L, "out: list of %d tensors expected, got %s", outs, luaL_typename(L, -1)));
    c->index[first] = lua_gettop(L);
    return;
  }
  int list = lua_gettop(L);
  for (int i = first, n = 0; i < c->desc->args; i++)
    if (c->desc->arg[i].kind == MAV_ARG_OUT) {
      lua_rawgeti(L, list, ++n);
      if (!lua_isnil(L, -1)) c->index[i] = lua_gettop(L);
    }
}

/* Upvalues: the op, the table from argument names to argument numbers. */
static int op_call(lua_State *L) {
  call c = {.op = (int)lua_tointeger(L, lua_upvalueindex(1)), .arg = 1};
  c.desc = mav_op_get(c.op);
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  luaL_checkstack(L, 3 * MAV_ARGS_MAX, NULL);
  /* Keys are checked first, then values are fetched: each stays on the stack, which keeps it alive. */
  uint32_t seen = 0;
  lua_pushnil(L);
  while (lua_next(L, 1)) {
    lua_pop(L, 1);
    lua_pushvalue(L, -1);
    if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNUMBER) unknown(L, c.desc);
    seen |= (uint32_t)1 << lua_tointeger(L, -1);
    lua_pop(L, 1);
  }
  if (seen >> c.desc->args & 1) {
    lua_getfield(L, 1, "out");
    read_out(L, &c);
  }
  for (int i = 0; i < c.desc->args; i++)
    if (seen >> i & 1) {
      if (c.index[i]) return luaL_argerror(L, 1, lua_pushfstring(L, "both out and %s are given", c.desc->arg[i].name));
      lua_getfield(L, 1, c.desc->arg[i].name);
      if (!lua_isnil(L, -1)) c.index[i] = lua_gettop(L);
    }
  return run(L, &c);
}

/* mav.op.<unknown>: the name that was meant. */
static int op_missing(lua_State *L) {
  const char *name = luaL_tolstring(L, 2, NULL);
  int count = mav_op_count();
  const char **names = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *names, 0);
  for (int i = 0; i < count; i++) names[i] = mav_op_get(i)->name;
  names[count] = NULL;
  return luaL_error(L, "no op '%s' (%s)", name, lmav_push_hint(L, name, names));
}

/*lua
---The descriptions of all ops, in the order of kernels/ops.def; a new table.
---@return {name: string, doc: string, source: string, tolerance: number, args: {name: string, kind: string, optional: boolean, shape: string?, types: mav.Dtype[], limit: string?, default: number|string?, doc: string}[]}[]
function mav.ops() end
*/
static int ops(lua_State *L) {
  static const char *const kind_names[] = {"in", "index", "mut", "weight", "rows", "rows_out", "kv", "comm", "number", "integer", "dtype", "out"};
  lua_createtable(L, mav_op_count(), 0);
  for (int op = 0; op < mav_op_count(); op++) {
    const mav_op_desc *d = mav_op_get(op);
    lua_createtable(L, 0, 5);
    lua_pushstring(L, d->name);
    lua_setfield(L, -2, "name");
    lua_pushstring(L, d->doc);
    lua_setfield(L, -2, "doc");
    lua_pushstring(L, d->source);
    lua_setfield(L, -2, "source");
    lua_pushnumber(L, d->tolerance);
    lua_setfield(L, -2, "tolerance");
    lua_createtable(L, d->args, 0);
    for (int i = 0; i < d->args; i++) {
      const mav_arg_desc *a = &d->arg[i];
      lua_createtable(L, 0, 8);
      lua_pushstring(L, a->name);
      lua_setfield(L, -2, "name");
      lua_pushstring(L, kind_names[a->kind]);
      lua_setfield(L, -2, "kind");
      lua_pushboolean(L, a->optional || a->kind == MAV_ARG_OUT || a->kind == MAV_ARG_COMM || a->kind == MAV_ARG_DTYPE ||
                             ((a->kind == MAV_ARG_NUM || a->kind == MAV_ARG_INT) && a->value != MAV_REQUIRED));
      lua_setfield(L, -2, "optional");
      lua_pushstring(L, a->shape);
      lua_setfield(L, -2, "shape");
      lua_pushstring(L, a->limit);
      lua_setfield(L, -2, "limit");
      lua_pushstring(L, a->doc);
      lua_setfield(L, -2, "doc");
      lua_newtable(L);
      for (int t = 0, n = 0; t < MAV_DTYPE_COUNT; t++)
        if (a->types >> t & 1) {
          lua_pushstring(L, mav_dtype_name((mav_dtype)t));
          lua_rawseti(L, -2, ++n);
        }
      lua_setfield(L, -2, "types");
      if (a->kind == MAV_ARG_DTYPE)
        lua_pushstring(L, mav_dtype_name((mav_dtype)a->value));
      else if (a->kind == MAV_ARG_INT && a->value != MAV_REQUIRED)
        lua_pushinteger(L, (lua_Integer)a->value);
      else if (a->kind == MAV_ARG_NUM && a->value != MAV_REQUIRED)
        lua_pushnumber(L, a->value);
      else
        lua_pushnil(L);
      lua_setfield(L, -2, "default");
      lua_rawseti(L, -2, i + 1);
    }
    lua_setfield(L, -2, "args");
    lua_rawseti(L, -2, op + 1);
  }
  return 1;
}

void lmav_open_op(lua_State *L) {
  int count = mav_op_count();
  lua_createtable(L, 0, count);
  for (int op = 0; op < count; op++) {
    const mav_op_desc *d = mav_op_get(op);
    lua_pushinteger(L, op);
    lua_createtable(L, 0, d->args + 1);
    for (int i = 0; i < d->args; i++) {
      lua_pushinteger(L, i);
      lua_setfield(L, -2, d->arg[i].name);
    }
    lua_pushinteger(L, d->args);
    lua_setfield(L, -2, "out");
    lua_pushcclosure(L, op_call, 2);
    lua_setfield(L, -2, d->name);
  }
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, op_missing);
  lua_setfield(L, -2, "__index");
  lua_setmetatable(L, -2);
  lua_setfield(L, -2, "op");
  lua_pushcfunction(L, ops);
  lua_setfield(L, -2, "ops");
}
