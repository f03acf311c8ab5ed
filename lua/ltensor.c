/* lua/ltensor.c - tensors. Element numbers and dimensions are 1-based, as Lua's are; token ids, positions and other values
 * that tensors hold are 0-based numbers, as everywhere in the field. Errors raise, out of memory too: tensors are passed on
 * without a look. get and set allocate nothing. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lmav.h"

/*lua
---A view (dtype, shape, strides) on shared memory. Dimensions and elements count from 1.
---Arithmetic: `+ - * /` and unary `-` between tensors, or a tensor and a number, broadcast as in NumPy (f32).
---`#t` is the size of the first dimension.
---@class mav.Tensor
---@field dtype mav.Dtype
---@field shape integer[] a new table
---@field dims integer
---@field scale mav.Tensor? of a quantized weight: value = code * scale
---@field is_contiguous boolean
---@field is_planned boolean it belongs to a graph's plan and cannot be read
---@field is_shuffled boolean it can only be a weight of ops: see shuffle
---@operator add(mav.Tensor|number): mav.Tensor
---@operator sub(mav.Tensor|number): mav.Tensor
---@operator mul(mav.Tensor|number): mav.Tensor
---@operator div(mav.Tensor|number): mav.Tensor
---@operator unm: mav.Tensor
---@operator len: integer
local Tensor = {}

---@alias mav.Dtype "f32"|"bf16"|"f16"|"f8"|"i32"|"i64"|"u8"
---@alias mav.Numbers number|(number|number[]|number[][]|number[][][])[]
*/

mav_tensor *lmav_check_tensor(lua_State *L, int arg) { return lmav_check(L, arg, LMAV_TENSOR)->p; }

static lmav_object *check(lua_State *L, int arg) { return lmav_check(L, arg, LMAV_TENSOR); }

void lmav_push_tensor(lua_State *L, mav_tensor *borrowed) {
  if (!borrowed) {
    lua_pushnil(L);
    return;
  }
  lmav_object *u = lmav_new(L, LMAV_TENSOR);
  lmav_set(u, mav_tensor_retain(borrowed), mav_tensor_runtime(borrowed));
}

/* Puts a view, or a copy, into u and returns 1, or raises. */
static int finish(lua_State *L, lmav_object *u, mav_err err, mav_runtime *rt, mav_tensor *t) {
  if (err) return lmav_raise(L, mav_runtime_diag(rt));
  lmav_set(u, t, rt);
  return 1;
}

/* A new zeroed tensor, on top of the stack. */
static mav_tensor *push_new(lua_State *L, mav_runtime *rt, mav_dtype dtype, int dims, const int64_t *shape) {
  lmav_object *u = lmav_new(L, LMAV_TENSOR);
  lmav_drain(u->state);
  mav_tensor *t = NULL;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_tensor_new(&t, rt, dtype, dims, shape));
  finish(L, u, err, rt, t);
  lmav_charge(L, rt, mav_tensor_count(t) * (int64_t)mav_dtype_bytes(dtype));
  return t;
}

/* ---- from Lua values ------------------------------------------------------------------------------------------------ */

typedef struct filler {
  mav_tensor *t;
  void *data; /* NULL: elements are set one by one */
  mav_runtime *rt;
  mav_dtype dtype;
  int64_t next, count;
  const int64_t *shape;
  int dims;
} filler;

static bool is_whole(mav_dtype d) { return d == MAV_DTYPE_I32 || d == MAV_DTYPE_I64 || d == MAV_DTYPE_U8; }

/* Element `next` from the value on top of the stack. */
static void fill_one(lua_State *L, filler *f) {
  if (lua_type(L, -1) != LUA_TNUMBER)
    luaL_error(L, "element %I: number expected, got %s", (LUAI_UACINT)(f->next + 1), luaL_typename(L, -1));
  if (f->next >= f->count) luaL_error(L, "more than the %I elements of the shape", (LUAI_UACINT)f->count);
  if (is_whole(f->dtype)) {
    int exact;
    lua_Integer i = lua_tointegerx(L, -1, &exact);
    lua_Integer low = f->dtype == MAV_DTYPE_I32 ? INT32_MIN : f->dtype == MAV_DTYPE_U8 ? 0 : INT64_MIN;
    lua_Integer high = f->dtype == MAV_DTYPE_I32 ? INT32_MAX : f->dtype == MAV_DTYPE_U8 ? UINT8_MAX : INT64_MAX;
    if (!exact || i < low || i > high)
      luaL_error(L, "element %I: %s does not fit into %s", (LUAI_UACINT)(f->next + 1), luaL_tolstring(L, -1, NULL),
                 mav_dtype_name(f->dtype));
    if (f->data && f->dtype == MAV_DTYPE_I64) { /* a double would round it */
      ((int64_t *)f->data)[f->next++] = i;
      return;
    }
  }
  lua_Number value = lua_tonumber(L, -1);
  if (f->data) {
    mav_dtype_put(f->dtype, f->data, f->next, value);
  } else {
    mav_err err = mav_tensor_set(f->t, f->next, value);
    if (err) lmav_raise(L, mav_runtime_diag(f->rt));
  }
  f->next++;
}

/* The (nested) table or number on top of the stack, dimension by dimension. */
static void fill_level(lua_State *L, filler *f, int level) {
  if (level == f->dims) {
    fill_one(L, f);
    return;
  }
  if (!lua_istable(L, -1))
    luaL_error(L, "element %I: table expected at depth %d, got %s", (LUAI_UACINT)(f->next + 1), level + 1, luaL_typename(L, -1));
  lua_Integer n = (lua_Integer)lua_rawlen(L, -1);
  if (n != f->shape[level])
    luaL_error(L, "ragged table: %I elements expected at depth %d, got %I", (LUAI_UACINT)f->shape[level], level + 1, (LUAI_UACINT)n);
  luaL_checkstack(L, 3, NULL);
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, -1, i);
    fill_level(L, f, level + 1);
    lua_pop(L, 1);
  }
}

/* Any nesting, in order, for a shape that was given. */
static void fill_flat(lua_State *L, filler *f, int depth) {
  if (!lua_istable(L, -1)) {
    fill_one(L, f);
    return;
  }
  if (depth > MAV_DIMS_MAX) luaL_error(L, "data is nested more than %d deep", MAV_DIMS_MAX);
  luaL_checkstack(L, 3, NULL);
  lua_Integer n = (lua_Integer)lua_rawlen(L, -1);
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, -1, i);
    fill_flat(L, f, depth + 1);
    lua_pop(L, 1);
  }
}

/* Shape of the nested table at arg, from its first elements. */
static int infer_shape(lua_State *L, int arg, int64_t shape[MAV_DIMS_MAX]) {
  int dims = 0;
  lua_pushvalue(L, arg);
  while (lua_istable(L, -1)) {
    if (dims == MAV_DIMS_MAX) luaL_argerror(L, arg, lua_pushfstring(L, "data is nested more than %d deep", MAV_DIMS_MAX));
    shape[dims++] = (int64_t)lua_rawlen(L, -1);
    lua_rawgeti(L, -1, 1);
    lua_remove(L, -2);
  }
  lua_pop(L, 1);
  return dims;
}

static int64_t product(int dims, const int64_t *shape) {
  int64_t count = 1;
  for (int i = 0; i < dims; i++)
    if (__builtin_mul_overflow(count, shape[i], &count)) return -1;
  return count;
}

/*lua
---A new tensor from numbers: a number, a (nested) table of them, or a string of raw bytes in row-major order.
---Options may also stand in the table itself: `mav.tensor{ {1, 2}, {3, 4}, dtype = "bf16" }`.
---dtype is f32 unless it is given; with `shape` the elements are taken in order, whatever their nesting (one number: fills).
---@param data mav.Numbers|string
---@param options? {dtype?: mav.Dtype, shape?: integer[], runtime?: mav.Runtime}
---@return mav.Tensor
function mav.tensor(data, options) end
*/
static int tensor_new(lua_State *L) {
  static const char *const keys[] = {"dtype", "shape", "runtime", NULL};
  static const char *const no_keys[] = {NULL};
  int type = lua_type(L, 1), arg = 0;
  if (type != LUA_TTABLE && type != LUA_TNUMBER && type != LUA_TSTRING) return luaL_typeerror(L, 1, "number, table of numbers or string");
  lua_settop(L, 2);
  if (!lua_isnil(L, 2)) {
    lmav_check_options(L, 2, false, keys);
    arg = 2;
    if (type == LUA_TTABLE) lmav_check_keys(L, 1, no_keys);
  } else if (type == LUA_TTABLE) {
    lmav_check_keys(L, 1, keys);
    arg = 1;
  }
  mav_dtype dtype = lmav_opt_dtype(L, arg, "dtype", MAV_DTYPE_F32);
  mav_runtime *rt = lmav_push_runtime(L, arg);
  int64_t shape[MAV_DIMS_MAX] = {0};
  int dims = -1;
  if (arg && lua_getfield(L, arg, "shape") != LUA_TNIL) {
    if (!lua_istable(L, -1)) lmav_key_error(L, arg, "shape", "table expected, got %s", luaL_typename(L, -1));
    dims = lmav_check_shape(L, lua_gettop(L), shape);
  }
  bool shaped = dims >= 0;
  if (type == LUA_TSTRING) {
    size_t bytes;
    const char *raw = lua_tolstring(L, 1, &bytes);
    size_t width = mav_dtype_bytes(dtype);
    if (!shaped) {
      dims = 1;
      shape[0] = (int64_t)(bytes / width);
    }
    int64_t count = product(dims, shape);
    if (count < 0 || (size_t)count > SIZE_MAX / width || (size_t)count * width != bytes)
      return luaL_argerror(L, 1, lua_pushfstring(L, "%I bytes do not make the shape in %s", (LUAI_UACINT)bytes, mav_dtype_name(dtype)));
    mav_tensor *t = push_new(L, rt, dtype, dims, shape);
    if (bytes && mav_tensor_write(t, raw, bytes)) return lmav_raise(L, mav_runtime_diag(rt));
    return 1;
  }
  if (!shaped) dims = infer_shape(L, 1, shape);
  mav_tensor *t = push_new(L, rt, dtype, dims, shape);
  filler f = {.t = t, .rt = rt, .dtype = dtype, .count = mav_tensor_count(t), .shape = shape, .dims = dims};
  void *staged = NULL;
  const size_t bytes = (size_t)f.count * mav_dtype_bytes(dtype);
  if (mav_tensor_data(t, &f.data)) { /* a device's: filled here, then written */
    f.data = staged = lua_newuserdatauv(L, bytes + 1, 0);
    lua_insert(L, -2); /* below the tensor */
  }
  lua_pushvalue(L, 1);
  if (type == LUA_TNUMBER) {
    while (f.next < f.count) fill_one(L, &f);
  } else if (shaped) {
    fill_flat(L, &f, 0);
    if (f.next != f.count)
      return luaL_argerror(L, 1, lua_pushfstring(L, "%I elements expected, got %I", (LUAI_UACINT)f.count, (LUAI_UACINT)f.next));
  } else {
    fill_level(L, &f, 0);
  }
  lua_pop(L, 1);
  if (staged && mav_tensor_write(t, staged, bytes)) return lmav_raise(L, mav_runtime_diag(rt));
  return 1;
}

/*lua
---A new tensor of zeros: `mav.zeros{2, 3, dtype = "bf16"}`.
---@param shape {[integer]: integer, dtype?: mav.Dtype, runtime?: mav.Runtime}
---@return mav.Tensor
function mav.zeros(shape) end
*/
static int tensor_zeros(lua_State *L) {
  static const char *const keys[] = {"dtype", "runtime", NULL};
  lmav_check_keys(L, 1, keys);
  lua_settop(L, 1);
  int64_t shape[MAV_DIMS_MAX];
  int dims = lmav_check_shape(L, 1, shape);
  mav_dtype dtype = lmav_opt_dtype(L, 1, "dtype", MAV_DTYPE_F32);
  push_new(L, lmav_push_runtime(L, 1), dtype, dims, shape);
  return 1;
}

/* ---- elements --------------------------------------------------------------------------------------------------------- */

void lmav_push_shape_text(lua_State *L, const mav_tensor *t) {
  char text[MAV_DIMS_MAX * 24 + 4];
  int n = snprintf(text, sizeof text, "(");
  for (int i = 0; i < mav_tensor_dims(t); i++)
    n += snprintf(text + n, sizeof text - (size_t)n, "%s%lld", i ? ", " : "", (long long)mav_tensor_size(t, i));
  snprintf(text + n, sizeof text - (size_t)n, ")");
  lua_pushstring(L, text);
}

/* The row-major index of the n 1-based indices from stack index 2 on. None at all names the only element. */
static int64_t check_element(lua_State *L, const mav_tensor *t, int n) {
  int dims = mav_tensor_dims(t);
  if (n == 0 && mav_tensor_count(t) == 1) return 0;
  if (n != dims) {
    lmav_push_shape_text(L, t);
    luaL_error(L, "%d indices expected for shape %s, got %d", dims, lua_tostring(L, -1), n);
  }
  int64_t flat = 0;
  for (int i = 0; i < dims; i++) {
    lua_Integer at = luaL_checkinteger(L, 2 + i);
    int64_t size = mav_tensor_size(t, i);
    if (at < 1 || at > size) luaL_argerror(L, 2 + i, lua_pushfstring(L, "index %I is outside 1..%I", (LUAI_UACINT)at, (LUAI_UACINT)size));
    flat = flat * size + at - 1;
  }
  return flat;
}

static void push_value(lua_State *L, mav_dtype dtype, double value) {
  if (is_whole(dtype))
    lua_pushinteger(L, (lua_Integer)value);
  else
    lua_pushnumber(L, value);
}

/*lua
---One element; with no index, the only one.
---@param ... integer one index per dimension, from 1
---@return number
function Tensor:get(...) end
*/
static int tensor_get(lua_State *L) {
  lmav_object *u = check(L, 1);
  double value;
  if (mav_tensor_get(u->p, check_element(L, u->p, lua_gettop(L) - 1), &value)) return lmav_raise(L, mav_runtime_diag(u->rt));
  push_value(L, mav_tensor_dtype(u->p), value);
  return 1;
}

/*lua
---Sets one element: `t:set(i, j, value)`.
---@param ... number one index per dimension, from 1, then the value
function Tensor:set(...) end
*/
static int tensor_set(lua_State *L) {
  lmav_object *u = check(L, 1);
  int top = lua_gettop(L);
  lua_Number value = luaL_checknumber(L, top < 2 ? 2 : top);
  if (mav_tensor_set(u->p, check_element(L, u->p, top - 2), value)) return lmav_raise(L, mav_runtime_diag(u->rt));
  return 0;
}

/*lua
---@return integer count of all elements
function Tensor:count() end
*/
static int tensor_count(lua_State *L) {
  lua_pushinteger(L, mav_tensor_count(lmav_check_tensor(L, 1)));
  return 1;
}

typedef struct reader {
  mav_tensor *t;
  mav_runtime *rt;
  const void *data;
  mav_dtype dtype;
  int64_t next;
} reader;

static void push_element(lua_State *L, reader *r) {
  int64_t i = r->next++;
  if (r->data && r->dtype == MAV_DTYPE_I64) { /* a double would round it */
    lua_pushinteger(L, ((const int64_t *)r->data)[i]);
    return;
  }
  if (r->data) {
    push_value(L, r->dtype, mav_dtype_value(r->dtype, r->data, i));
    return;
  }
  double value;
  if (mav_tensor_get(r->t, i, &value)) lmav_raise(L, mav_runtime_diag(r->rt));
  push_value(L, r->dtype, value);
}

static void push_level(lua_State *L, reader *r, int level) {
  if (level == mav_tensor_dims(r->t)) {
    push_element(L, r);
    return;
  }
  int64_t n = mav_tensor_size(r->t, level);
  luaL_checkstack(L, 3, NULL);
  lua_createtable(L, n < INT32_MAX ? (int)n : 0, 0);
  for (int64_t i = 1; i <= n; i++) {
    push_level(L, r, level + 1);
    lua_rawseti(L, -2, i);
  }
}

/*lua
---All elements as nested tables; a number when there are no dimensions.
---@return mav.Numbers
function Tensor:totable() end
*/
static int tensor_totable(lua_State *L) {
  lmav_object *u = check(L, 1);
  reader r = {.t = u->p, .rt = u->rt, .dtype = mav_tensor_dtype(u->p)};
  void *data = NULL;
  if (!mav_tensor_is_planned(u->p) && mav_tensor_is_contiguous(u->p)) {
    if (mav_tensor_data(u->p, &data)) { /* a device's */
      const size_t bytes = (size_t)mav_tensor_count(u->p) * mav_dtype_bytes(r.dtype);
      data = lua_newuserdatauv(L, bytes + 1, 0);
      if (mav_tensor_read(u->p, data, bytes)) return lmav_raise(L, mav_runtime_diag(u->rt));
    }
    r.data = data;
  }
  push_level(L, &r, 0);
  return 1;
}

/*lua
---The raw bytes of a contiguous tensor.
---@return string
function Tensor:bytes() end
*/
static int tensor_bytes(lua_State *L) {
  lmav_object *u = check(L, 1);
  size_t bytes = (size_t)mav_tensor_count(u->p) * mav_dtype_bytes(mav_tensor_dtype(u->p));
  luaL_Buffer b;
  char *p = luaL_buffinitsize(L, &b, bytes);
  if (mav_tensor_read(u->p, p, bytes)) return lmav_raise(L, mav_runtime_diag(u->rt));
  luaL_pushresultsize(&b, bytes);
  return 1;
}

/* ---- views ------------------------------------------------------------------------------------------------------------ */

/* A 1-based dimension; negative ones count from the end. */
static int check_dim(lua_State *L, int arg, const mav_tensor *t) {
  lua_Integer dim = luaL_checkinteger(L, arg);
  int dims = mav_tensor_dims(t);
  if (dim < 0) dim += dims + 1;
  if (dim < 1 || dim > dims) luaL_argerror(L, arg, lua_pushfstring(L, "dimension is outside 1..%d", dims));
  return (int)dim - 1;
}

static int64_t check_place(lua_State *L, int arg, int64_t size, int64_t low) {
  lua_Integer at = luaL_checkinteger(L, arg);
  if (at < 0) at += size + 1;
  if (at < low || at > size + 1 - low)
    luaL_argerror(L, arg, lua_pushfstring(L, "%I is outside 1..%I", (LUAI_UACINT)luaL_checkinteger(L, arg), (LUAI_UACINT)size));
  return at;
}

/*lua
---Elements first to last (inclusive; negative ones count from the end) of one dimension, every step-th. Shares memory.
---@param dim integer
---@param first integer
---@param last integer
---@param step? integer
---@return mav.Tensor
function Tensor:slice(dim, first, last, step) end
*/
static int tensor_slice(lua_State *L) {
  lmav_object *u = check(L, 1);
  int dim = check_dim(L, 2, u->p);
  int64_t size = mav_tensor_size(u->p, dim);
  int64_t first = check_place(L, 3, size, 1), last = check_place(L, 4, size, 1);
  lua_Integer step = luaL_optinteger(L, 5, 1);
  luaL_argcheck(L, step >= 1, 5, "step must be at least 1");
  luaL_argcheck(L, last >= first, 4, "last comes before first");
  lmav_object *v = lmav_new(L, LMAV_TENSOR);
  mav_tensor *t = NULL;
  mav_err err = mav_tensor_slice(&t, u->p, dim, first - 1, (last - first) / step + 1, step);
  return finish(L, v, err, u->rt, t);
}

/*lua
---Element i of one dimension, which is dropped. Shares memory.
---@param dim integer
---@param i integer
---@return mav.Tensor
function Tensor:select(dim, i) end
*/
static int tensor_select(lua_State *L) {
  lmav_object *u = check(L, 1);
  int dim = check_dim(L, 2, u->p);
  int64_t at = check_place(L, 3, mav_tensor_size(u->p, dim), 1);
  lmav_object *v = lmav_new(L, LMAV_TENSOR);
  mav_tensor *t = NULL;
  mav_err err = mav_tensor_select(&t, u->p, dim, at - 1);
  return finish(L, v, err, u->rt, t);
}

/*lua
---The same elements in another shape. Of a contiguous tensor; shares memory. One size may be -1: what is left.
---@param shape integer[]
---@return mav.Tensor
function Tensor:reshape(shape) end
*/
static int tensor_reshape(lua_State *L) {
  lmav_object *u = check(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  int64_t shape[MAV_DIMS_MAX], rest = mav_tensor_count(u->p);
  int free = -1, dims = (int)lua_rawlen(L, 2);
  if (dims > MAV_DIMS_MAX) return luaL_argerror(L, 2, "too many dimensions");
  for (int i = 0; i < dims; i++) {
    lua_rawgeti(L, 2, i + 1);
    int exact;
    shape[i] = lua_tointegerx(L, -1, &exact);
    if (!exact || shape[i] < -1 || (shape[i] == -1 && free >= 0))
      return luaL_argerror(L, 2, lua_pushfstring(L, "dimension %d: size expected, got %s", i + 1, luaL_tolstring(L, -1, NULL)));
    lua_pop(L, 1);
    if (shape[i] == -1)
      free = i;
    else if (shape[i] > 0)
      rest /= shape[i];
  }
  if (free >= 0) shape[free] = rest;
  lmav_object *v = lmav_new(L, LMAV_TENSOR);
  mav_tensor *t = NULL;
  mav_err err = mav_tensor_reshape(&t, u->p, dims, shape);
  return finish(L, v, err, u->rt, t);
}

/*lua
---With two dimensions swapped. Shares memory.
---@param a integer
---@param b integer
---@return mav.Tensor
function Tensor:transpose(a, b) end
*/
static int tensor_transpose(lua_State *L) {
  lmav_object *u = check(L, 1);
  int a = check_dim(L, 2, u->p), b = check_dim(L, 3, u->p);
  lmav_object *v = lmav_new(L, LMAV_TENSOR);
  mav_tensor *t = NULL;
  mav_err err = mav_tensor_transpose(&t, u->p, a, b);
  return finish(L, v, err, u->rt, t);
}

/* ---- copies ----------------------------------------------------------------------------------------------------------- */

/* The tensor at index 1, cast. */
static int push_cast(lua_State *L, mav_dtype dtype) {
  static const int index[] = {1};
  return lmav_op_run(L, "cast", 1, index, &dtype);
}

/*lua
---Itself when it is contiguous, else a contiguous copy.
---@return mav.Tensor
function Tensor:contiguous() end
*/
static int tensor_contiguous(lua_State *L) {
  mav_tensor *t = lmav_check_tensor(L, 1);
  lua_settop(L, 1);
  return mav_tensor_is_contiguous(t) ? 1 : push_cast(L, mav_tensor_dtype(t));
}

/*lua
---Itself when it has this dtype, else a converted copy (op `cast`; recorded in a capture).
---@param dtype mav.Dtype
---@return mav.Tensor
function Tensor:to(dtype) end
*/
static int tensor_to(lua_State *L) {
  mav_tensor *t = lmav_check_tensor(L, 1);
  mav_dtype dtype = lmav_check_dtype(L, 2);
  lua_settop(L, 1);
  return mav_tensor_dtype(t) == dtype ? 1 : push_cast(L, dtype);
}

/*lua
---Copies src into this tensor, converting dtypes and following both sides' strides. Not in a capture. src may
---belong to another runtime, if both are contiguous and of one dtype: then the bytes go through the host.
---@param src mav.Tensor
---@return mav.Tensor self
function Tensor:copy_from(src) end
*/
static int tensor_copy_from(lua_State *L) {
  lmav_object *u = check(L, 1);
  if (mav_tensor_copy_into(u->p, lmav_check_tensor(L, 2))) return lmav_raise(L, mav_runtime_diag(u->rt));
  lua_settop(L, 1);
  return 1;
}

/*lua
---A new f8 tensor with a scale for every output row: (N, D) or (E, N, D).
---@return mav.Tensor
function Tensor:quantize() end
*/
static int tensor_quantize(lua_State *L) {
  lmav_object *u = check(L, 1);
  int dims = mav_tensor_dims(u->p);
  int64_t shape[MAV_DIMS_MAX];
  for (int i = 0; i < dims; i++) shape[i] = mav_tensor_size(u->p, i);
  lua_settop(L, 1);
  if (!mav_tensor_is_contiguous(u->p)) {
    push_cast(L, mav_tensor_dtype(u->p));
    lua_replace(L, 1);
    u = check(L, 1);
  }
  mav_tensor *t = push_new(L, u->rt, MAV_DTYPE_F8, dims, shape);
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_tensor_quantize_into(t, u->p));
  if (err) return lmav_raise(L, mav_runtime_diag(u->rt));
  return 1;
}

/*lua
---Attaches a scale: value = code * scale; shape (), (1), (N), (E) or (E, N). act: how activations that meet the weight are
---rounded (w8a8); in_scale: the calibrated scale of act = "static".
---@param scale mav.Tensor f32
---@param options? {act?: "none"|"static"|"dynamic", in_scale?: number}
---@return mav.Tensor self
function Tensor:set_scale(scale, options) end
*/
static int tensor_set_scale(lua_State *L) {
  static const char *const keys[] = {"act", "in_scale", NULL};
  static const char *const acts[] = {"none", "static", "dynamic", NULL};
  lmav_object *u = check(L, 1);
  mav_tensor *scale = lmav_check_tensor(L, 2);
  int arg = lmav_check_options(L, 3, true, keys) ? 3 : 0;
  lua_settop(L, 3);
  const char *name = lmav_opt_string(L, arg, "act");
  int act = 0;
  while (name && acts[act] && strcmp(acts[act], name) != 0) act++;
  if (!acts[act]) return lmav_key_error(L, arg, "act", "unknown '%s' (%s)", name, lmav_push_hint(L, name, acts));
  lua_Number in_scale = lmav_opt_number(L, arg, "in_scale", 1);
  if (mav_tensor_set_scale(u->p, scale, (mav_act)act, (float)in_scale)) return lmav_raise(L, mav_runtime_diag(u->rt));
  lua_settop(L, 1);
  return 1;
}

/*lua
---A weight as the device's products read it fastest, with its scale: on cuda a new tensor for f8, where the sizes allow it; itself
---everywhere else. Such a tensor can be a weight of ops, and be cut by experts or into blocks of 16 rows; nothing else.
---@return mav.Tensor
function Tensor:shuffle() end
*/
static int tensor_shuffle(lua_State *L) {
  lmav_object *u = check(L, 1);
  lua_settop(L, 1);
  lmav_object *v = lmav_new(L, LMAV_TENSOR);
  mav_tensor *t = NULL;
  mav_err err;
  LMAV_TRY_TWICE(L, err, mav_tensor_shuffle(&t, u->p));
  if (!err && t == u->p) {
    mav_tensor_release(t);
    lua_settop(L, 1);
    return 1;
  }
  finish(L, v, err, u->rt, t);
  lmav_charge(L, u->rt, mav_tensor_count(t) * (int64_t)mav_dtype_bytes(mav_tensor_dtype(t)));
  return 1;
}

/*lua
---Prints its values: `mav.show(t, options)`.
---@param options? table
function Tensor:print(options) end
*/
static int tensor_print(lua_State *L) {
  lmav_check_tensor(L, 1);
  lmav_push_lua(L, "mav.show", "show");
  lua_insert(L, 1);
  lua_call(L, lua_gettop(L) - 1, 0);
  return 0;
}

/* ---- metatable ------------------------------------------------------------------------------------------------------- */

static int tensor_index(lua_State *L) {
  if (lmav_push_method(L)) return 1;
  mav_tensor *t = lmav_check_tensor(L, 1);
  if (lua_type(L, 2) != LUA_TSTRING) return luaL_error(L, "use t:get(...) or t:select(dim, i) to index a tensor");
  const char *key = lua_tostring(L, 2);
  if (!strcmp(key, "dtype")) {
    lua_pushstring(L, mav_dtype_name(mav_tensor_dtype(t)));
  } else if (!strcmp(key, "dims")) {
    lua_pushinteger(L, mav_tensor_dims(t));
  } else if (!strcmp(key, "shape")) {
    int dims = mav_tensor_dims(t);
    lua_createtable(L, dims, 0);
    for (int i = 0; i < dims; i++) {
      lua_pushinteger(L, mav_tensor_size(t, i));
      lua_rawseti(L, -2, i + 1);
    }
  } else if (!strcmp(key, "scale")) {
    lmav_push_tensor(L, mav_tensor_scale(t));
  } else if (!strcmp(key, "is_contiguous")) {
    lua_pushboolean(L, mav_tensor_is_contiguous(t));
  } else if (!strcmp(key, "is_planned")) {
    lua_pushboolean(L, mav_tensor_is_planned(t));
  } else if (!strcmp(key, "is_shuffled")) {
    lua_pushboolean(L, mav_tensor_is_shuffled(t));
  } else {
    lua_pushnil(L);
  }
  return 1;
}

static int tensor_len(lua_State *L) {
  mav_tensor *t = lmav_check_tensor(L, 1);
  lua_pushinteger(L, mav_tensor_dims(t) ? mav_tensor_size(t, 0) : 0);
  return 1;
}

static int tensor_tostring(lua_State *L) {
  lmav_object *u = lmav_test(L, 1, LMAV_TENSOR);
  if (!u || !u->p) {
    lua_pushliteral(L, "mav.tensor (closed)");
    return 1;
  }
  lmav_push_shape_text(L, u->p);
  lua_pushfstring(L, "mav.tensor %s %s %s", mav_dtype_name(mav_tensor_dtype(u->p)), lua_tostring(L, -1), mav_runtime_device(u->rt));
  return 1;
}

/* Upvalue 1: the op. */
static int tensor_arithmetic(lua_State *L) {
  static const int index[] = {1, 2};
  const char *op = lua_tostring(L, lua_upvalueindex(1));
  lua_settop(L, 2);
  return lmav_op_run(L, op, 2, index, NULL);
}

static int tensor_unm(lua_State *L) {
  static const int index[] = {1};
  lua_settop(L, 1);
  return lmav_op_run(L, "neg", 1, index, NULL);
}

void lmav_open_tensor(lua_State *L) {
  static const luaL_Reg methods[] = {{"get", tensor_get},
                                     {"set", tensor_set},
                                     {"count", tensor_count},
                                     {"totable", tensor_totable},
                                     {"bytes", tensor_bytes},
                                     {"slice", tensor_slice},
                                     {"select", tensor_select},
                                     {"reshape", tensor_reshape},
                                     {"transpose", tensor_transpose},
                                     {"contiguous", tensor_contiguous},
                                     {"to", tensor_to},
                                     {"copy_from", tensor_copy_from},
                                     {"quantize", tensor_quantize},
                                     {"set_scale", tensor_set_scale},
                                     {"shuffle", tensor_shuffle},
                                     {"print", tensor_print},
                                     {NULL, NULL}};
  static const luaL_Reg meta[] = {{"__len", tensor_len}, {"__tostring", tensor_tostring}, {"__unm", tensor_unm}, {NULL, NULL}};
  static const char *const arithmetic[][2] = {{"__add", "add"}, {"__sub", "sub"}, {"__mul", "mul"}, {"__div", "div"}};
  static const luaL_Reg functions[] = {{"tensor", tensor_new}, {"zeros", tensor_zeros}, {NULL, NULL}};
  lmav_new_metatable(L, LMAV_TENSOR, methods, meta, tensor_index);
  luaL_getmetatable(L, lmav_kind_name(LMAV_TENSOR));
  for (int i = 0; i < 4; i++) {
    lua_pushstring(L, arithmetic[i][1]);
    lua_pushcclosure(L, tensor_arithmetic, 1);
    lua_setfield(L, -2, arithmetic[i][0]);
  }
  lua_pop(L, 1);
  luaL_setfuncs(L, functions, 0);
}
