--- Weights of a directory that `mav weights convert` made (model-00000-of-00001.mav) -> the same tables as weights.load makes.
---
---   1. Everything is checked against the config before a byte is read: missing, misshapen and unexpected tensors, other dtypes.
---   2. mapped (the default): weights without compressed chunks stay in the file, and loading reads headers only (milliseconds, also
---      of a pack of 400 GB). The first step reads the file; the system keeps it while it has room, and processes share it.
---      mapped = false copies everything into huge pages, by all threads. Decoding from those is 3 to 7 percent faster than from a
---      file in pages of 4 KiB; where the file system has large folios (ext4 from Linux 6.16, xfs), there is no such difference.
---   3. Weights are what the pack says: dtype, scale, the rounding of activations. Another dtype is a conversion into memory.
---      Mapped tensors are what the file holds, unchecked (`mav weights verify` checks it); copies and conversions read every byte, and
---      stop at the first chunk whose hash is wrong.
---   4. One pack of one rank holds the whole model. A rank of several is refused: the ops would compute with a part of the weights.
local mav = require "mav"
local fault = require "mav.maverick.fault"

local packs = {}

local FLOATS = { f32 = true, bf16 = true, f16 = true }
local DTYPES = { fp8 = "f8", f8 = "f8", bf16 = "bf16", f32 = "f32", f16 = "f16" }
local RANKS_MAX, NAMED_MAX = 1024, 4
local PARTNERS = { gate = "up", expert_gate = "expert_up" }

local function path_of(dir, rank, ranks) return ("%s/model-%05d-of-%05d.mav"):format(dir, rank, ranks) end

local function exists(path)
  local file = io.open(path, "rb")
  if file then file:close() end
  return file ~= nil
end

--- The name of a safetensors file that makes a directory a checkpoint; nil: there is none.
function packs.safetensors(dir)
  for _, name in ipairs { "model.safetensors", "model.safetensors.index.json" } do
    if exists(dir .. "/" .. name) then return name end
  end
end

--- The pack of a directory: its path, and of how many ranks it is the first; nil: there is none. Raises when safetensors are there too:
--- which of them are the model is not for a loader to guess.
function packs.find(dir)
  for ranks = 1, RANKS_MAX do
    local path = path_of(dir, 0, ranks)
    if exists(path) then
      local other = packs.safetensors(dir)
      if other then
        fault.raise("STATE", dir, "packs (%s) and safetensors (%s) are both there; keep one of them in a directory of its own",
          path:match "[^/]*$", other)
      end
      return path, ranks
    end
  end
end

-- ---- what must be there ------------------------------------------------------------------------------------------------

--- A list of { target, key, name, shape, linear }.
local function plan_model(c, pack)
  local list, W = {}, { layers = {} }
  local function add(target, prefix, key, linear, ...)
    list[#list + 1] = { target = target, key = key, name = prefix .. key, shape = { ... }, linear = linear }
  end
  add(W, "", "embed", false, c.vocab, c.hidden)
  add(W, "", "norm", false, c.hidden)
  if c.tied == false or (c.tied == "unless lm_head" and pack:has "head") then add(W, "", "head", false, c.vocab, c.hidden) end
  local D, E, C = c.hidden, c.experts, c.head_dim
  local q, kv = c.heads * C, c.kv_heads * C
  for i = 1, c.layers do
    local L, prefix = {}, ("layers.%d."):format(i - 1)
    W.layers[i] = L
    local F = c.is_moe[i] and c.expert_size or c.dense_size
    add(L, prefix, "attn_norm", false, D)
    if pack:has(prefix .. "q") then -- they round activations differently
      add(L, prefix, "q", true, q, D)
      add(L, prefix, "k", true, kv, D)
      add(L, prefix, "v", true, kv, D)
    else
      add(L, prefix, "qkv", true, q + 2 * kv, D)
    end
    add(L, prefix, "o", true, D, q)
    add(L, prefix, "ffn_norm", false, D)
    add(L, prefix, "gate", true, F, D)
    add(L, prefix, "up", true, F, D)
    add(L, prefix, "down", true, D, F)
    if c.is_moe[i] then
      add(L, prefix, "router", false, E, D)
      add(L, prefix, "expert_gate", true, E, F, D)
      add(L, prefix, "expert_up", true, E, F, D)
      add(L, prefix, "expert_down", true, E, D, F)
    end
  end
  return list, W
end

-- ---- checks --------------------------------------------------------------------------------------------------------------

local function same_shape(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return true
end

local function join_some(list)
  local text = table.concat(list, ", ", 1, math.min(#list, NAMED_MAX))
  return #list > NAMED_MAX and text .. ", ..." or text
end

local function open(path, ranks)
  local pack = fault.check(mav.pack(path))
  if pack.ranks > 1 or ranks > 1 then
    fault.raise("UNSUPPORTED", path, "is rank %d of %d; this version runs packs of one rank. Make them: "
      .. "mav weights reshard %s OUT --ranks 1", pack.rank, pack.ranks, path:match "^(.*)/[^/]*$")
  end
  return pack
end

--- What the pack was made of, against config.json: a clearer text than that of the first shape that differs.
local function check_model(pack, c)
  local model = pack.meta.model
  local keys = {}
  for key in pairs(type(model) == "table" and model or {}) do keys[#keys + 1] = tostring(key) end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local theirs, ours = model[key], c[key]
    if math.type(ours) == "integer" and math.type(theirs) == "integer" and ours ~= theirs then
      fault.raise("SHAPE", pack.path, "was made of a model with %s = %d, config.json says %d; both must be of one conversion", key, theirs,
        ours)
    end
  end
end

local function check_tensors(list, pack)
  local missing, used = {}, {}
  for _, entry in ipairs(list) do
    entry.info, used[entry.name] = pack:info(entry.name), true
    if not entry.info then missing[#missing + 1] = entry.name end
  end
  if #missing > 0 then
    fault.raise("NOTFOUND", pack.path, "%d tensor%s that config.json asks for %s missing: %s", #missing, #missing == 1 and "" or "s",
      #missing == 1 and "is" or "are", join_some(missing))
  end
  for _, entry in ipairs(list) do
    local info = entry.info
    if not same_shape(info.shape, entry.shape) then
      fault.raise("SHAPE", pack.path, "tensor %s has shape %s; config.json asks for %s", entry.name, fault.shape(info.shape),
        fault.shape(entry.shape))
    end
    local is_weight = #entry.shape > 1 and entry.key ~= "embed"
    if not (FLOATS[info.dtype] or (is_weight and info.dtype == "f8" and info.scale)) then
      fault.raise("DTYPE", pack.path, "tensor %s is %s%s; f32, bf16%s is allowed", entry.name, info.dtype,
        info.dtype == "f8" and is_weight and " without a scale" or "", is_weight and ", f16, or f8 with a scale" or " or f16")
    end
    if info.scale then used[info.scale] = true end
  end
  local extra = {}
  for _, name in ipairs(pack:names()) do
    if not used[name] then extra[#extra + 1] = name end
  end
  if #extra > 0 then
    fault.raise("UNSUPPORTED", pack.path, "%d tensor%s with no place in this architecture: %s", #extra, #extra == 1 and "" or "s",
      join_some(extra))
  end
end

--- The scales of an FP8 cache by layer, 1 where there are none.
local function cache_scales(pack, c)
  local kv, lists = pack.meta.kv, {}
  for _, key in ipairs { "k_scale", "v_scale" } do
    local list = type(kv) == "table" and kv[key]
    lists[key] = {}
    for i = 1, c.layers do
      local value = list and (type(list) ~= "table" and mav.json.null or list[i]) or 1
      if type(value) ~= "number" or not (value > 0 and value < math.huge) then
        fault.raise("RANGE", pack.path, "meta.kv.%s, layer %d, is %s; a number above 0 is allowed", key, i - 1, fault.show(value))
      end
      lists[key][i] = string.unpack("f", string.pack("f", value)) -- they are f32; JSON may have 15 digits of them
    end
  end
  return lists.k_scale, lists.v_scale
end

-- ---- tensors -------------------------------------------------------------------------------------------------------------

--- Calls f(matrix of `from`, of `to`, rows of `scale`) for every expert, or once: so that no wide copy of a stack of experts exists.
local function each_matrix(from, to, scale, f)
  if #from.shape < 3 then return f(from, to, scale) end
  for e = 1, from.shape[1] do f(from:select(1, e), to:select(1, e), scale:select(1, e)) end
end

local function zeros(dtype, shape, rt) return mav.zeros { dtype = dtype, runtime = rt, table.unpack(shape) } end

local function rows_of(t) return { table.unpack(t.shape, 1, #t.shape - 1) } end

local function quantize(t, rt)
  local out, scale = zeros("f8", t.shape, rt), zeros("f32", rows_of(t), rt)
  each_matrix(t, out, scale, function(matrix, codes_place, scale_place)
    local codes = matrix:quantize()
    codes_place:copy_from(codes)
    scale_place:copy_from(codes.scale)
  end)
  return out:set_scale(scale)
end

--- One scale for every row.
local function scale_of_rows(t, rt)
  local scale, rows = t.scale, rows_of(t)
  if same_shape(scale.shape, rows) then return scale end
  local wide = zeros("f32", rows, rt)
  if #scale.shape == 1 and #rows == 2 and scale:count() == rows[1] then -- per expert
    for e = 1, rows[1] do wide:select(1, e):copy_from(mav.tensor(scale:get(e), { dtype = "f32", shape = { rows[2] }, runtime = rt })) end
  else
    wide:copy_from(mav.tensor(scale:reshape({ 1 }):get(1), { dtype = "f32", shape = rows, runtime = rt }))
  end
  return wide
end

--- Codes times scales. Activations are rounded as before.
local function widen(t, dtype, info, rt)
  local out = zeros(dtype, t.shape, rt)
  each_matrix(t, out, scale_of_rows(t, rt), function(codes, place, rows)
    place:copy_from(mav.op.cast { x = codes, dtype = "f32" } * rows:reshape { rows:count(), 1 })
  end)
  if info.act ~= "none" then
    out:set_scale(mav.tensor(1, { dtype = "f32", shape = { 1 }, runtime = rt }), { act = info.act, in_scale = info.in_scale })
  end
  return out
end

local function load_entry(entry, pack, options, asked)
  local rt, info = options.runtime, entry.info
  if options.activations == "f32" then info.act = "none" end
  if asked == "f8" and not entry.linear then asked = nil end
  local converts = asked and asked ~= info.dtype
  if converts or options.mapped == false then -- all of it is read, but not all by way of a copy
    if converts then fault.check(pack:check(entry.name)) end
    if info.scale then fault.check(pack:check(info.scale)) end
  end
  local t = fault.check(pack:tensor(entry.name, { runtime = rt, copy = not converts and options.mapped == false }))
  if not converts then
    if info.scale and info.act == "none" then t:set_scale(t.scale) end
    return t
  end
  if info.dtype == "f8" then return widen(t, asked, info, rt) end
  if asked == "f8" then return quantize(t, rt) end
  local out = zeros(asked, t.shape, rt)
  out:copy_from(t)
  return out
end

-- ---- the whole -----------------------------------------------------------------------------------------------------------

--- Marks layers whose gate and up need different activations: ffn_up packs them once for both. They are neighbours in the list.
local function mark_apart(list)
  for i, entry in ipairs(list) do
    local other = list[i + 1]
    if PARTNERS[entry.key] and other.key == PARTNERS[entry.key] then
      local a, b, L = entry.info, other.info, entry.target
      if a.act ~= b.act or a.in_scale ~= b.in_scale or L[entry.key].dtype ~= L[other.key].dtype then L.apart = true end
    end
  end
end

local function load(path, ranks, c, options)
  local asked = options.dtype
  if asked ~= nil then asked = DTYPES[asked] or error(("dtype %s: fp8, bf16, f16 or f32 is allowed"):format(fault.show(asked)), 0) end
  local pack = open(path, ranks)
  check_model(pack, c)
  local list, W = plan_model(c, pack)
  check_tensors(list, pack)
  if c.quant then W.k_scale, W.v_scale = cache_scales(pack, c) end
  local done, total = 0, 0
  for _, entry in ipairs(list) do total = total + entry.info.bytes end
  for _, entry in ipairs(list) do
    local t = load_entry(entry, pack, options, asked)
    entry.target[entry.key] = entry.linear and t:shuffle() or t
    done = done + entry.info.bytes
    if options.progress then options.progress(done, total, entry.name) end
  end
  mark_apart(list)
  W.head = W.head or W.embed
  pack:close()
  return W
end

--- Loads the weights that `config` asks for from the pack that packs.find found. The result is that of weights.load, without the
--- constants of ops.
---@param path string
---@param ranks integer
---@param c table
---@param options table   as of weights.load, and mapped (true)
---@return table|nil weights
---@return table|nil err
function packs.load(path, ranks, c, options) return fault.catch(load, path, ranks, c, options) end

return packs
