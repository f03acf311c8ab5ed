--- A Hugging Face directory of a Llama 4 text decoder -> tables of tensors, as the ops want them.
---
---   1. Everything is checked against the config before the first byte is copied: missing, misshapen and unexpected tensors
---      are named with their file.
---   2. At most one tensor of the file is read at a time, so loading needs little more than the model's own memory.
---   3. Weights keep their storage type; dtype = "fp8" quantizes the linear layers (not embeddings, norms, router and
---      lm_head) to e4m3 with a scale per output channel. What a checkpoint has as e4m3 stays as it is, scales and the rounding
---      of activations included; another dtype multiplies codes and scales out.
---   4. Every matrix is (outputs, inputs). q, k and v are stacked into one; the experts' input-major (E, D, 2F) and
---      (E, F, D) become gate (E, F, D), up (E, F, D) and down (E, D, F).
---   5. Which weights are quantized their dtype says; what the config says (quantization.lua) must not contradict it.
---   6. A weight has one way to round activations. q, k and v that differ in it are not stacked; gate and up that differ are marked
---      (apart), for the unfused ops. So static scales stay exact.
local mav = require "mav"
local fault = require "mav.maverick.fault"
local gguf = require "mav.maverick.gguf"
local packs = require "mav.maverick.packs"

local weights = {}

local FLOATS = { f32 = true, bf16 = true, f16 = true }
local DTYPES = { fp8 = "f8", f8 = "f8", bf16 = "bf16", f32 = "f32", f16 = "f16" }
local SKIPPED = { "^vision_model%.", "^multi_modal_projector%.", "%.rotary_emb%.inv_freq$" }
local WIDTH = { f32 = 4, bf16 = 2, f16 = 2, f8 = 1, i32 = 4, i64 = 8, u8 = 1 } -- bytes of an element
local NAMED_MAX = 4 -- tensors named in one message

-- ---- the plan: what goes where, and the shapes it must have --------------------------------------------------------

--- An entry becomes target[key]; its parts are tensors of the file, each with the shape it must have, a view that turns
--- it into our orientation, and its place in the result.
local Plan = {}
Plan.__index = Plan

function Plan:add(target, key, linear, shape, parts)
  self[#self + 1] = { target = target, key = key, linear = linear, shape = shape, parts = parts }
end

function Plan:whole(target, key, linear, name, ...)
  self:add(target, key, linear, { ... }, { { name = name, shape = { ... } } })
end

function Plan:attention(c, L, prefix)
  local D, C = c.hidden, c.head_dim
  local q, kv = c.heads * C, c.kv_heads * C
  local function rows(name, count, first)
    return { name = prefix .. name, shape = { count, D }, place = function(t) return t:slice(1, first + 1, first + count) end }
  end
  self:add(L, "qkv", true, { q + 2 * kv, D },
    { rows("q_proj.weight", q, 0), rows("k_proj.weight", kv, q), rows("v_proj.weight", kv, q + kv) })
  self[#self].keys = { "q", "k", "v" } -- when they are not alike
  self:whole(L, "o", true, prefix .. "o_proj.weight", D, q)
end

function Plan:feed_forward(c, L, prefix, size)
  self:whole(L, "gate", true, prefix .. "gate_proj.weight", size, c.hidden)
  self:whole(L, "up", true, prefix .. "up_proj.weight", size, c.hidden)
  self:whole(L, "down", true, prefix .. "down_proj.weight", c.hidden, size)
end

--- Experts, fused and input-major: y = x W.
function Plan:experts_fused(c, L, prefix)
  local E, D, F = c.experts, c.hidden, c.expert_size
  local function half(first)
    return { { name = prefix .. "gate_up_proj", shape = { E, D, 2 * F }, first = first,
      view = function(t) return t:slice(3, first + 1, first + F):transpose(2, 3) end } }
  end
  self:add(L, "expert_gate", true, { E, F, D }, half(0))
  self:add(L, "expert_up", true, { E, F, D }, half(F))
  self:add(L, "expert_down", true, { E, D, F }, { { name = prefix .. "down_proj", shape = { E, F, D }, first = 0,
    view = function(t) return t:transpose(2, 3) end } })
end

--- Experts, a tensor each: already output-major. Their number comes from a stranger's config: when the last one is missing, it
--- alone is planned, and reported.
function Plan:experts_split(c, L, prefix, files)
  local last = ("%s%d.gate_proj.weight"):format(prefix, c.experts - 1)
  if not files:has(last) then return self:whole(L, "expert_gate", true, last, c.expert_size, c.hidden) end
  local function each(name, N, K)
    local parts = {}
    for e = 1, c.experts do
      parts[e] = { name = ("%s%d.%s.weight"):format(prefix, e - 1, name), shape = { N, K },
        place = function(t) return t:select(1, e) end }
    end
    return { c.experts, N, K }, parts
  end
  self:add(L, "expert_gate", true, each("gate_proj", c.expert_size, c.hidden))
  self:add(L, "expert_up", true, each("up_proj", c.expert_size, c.hidden))
  self:add(L, "expert_down", true, each("down_proj", c.hidden, c.expert_size))
end

local function plan_model(c, files, prefix)
  local plan, W = setmetatable({}, Plan), { layers = {} }
  local function named(name) return prefix .. name end
  plan:whole(W, "embed", false, named("model.embed_tokens.weight"), c.vocab, c.hidden)
  plan:whole(W, "norm", false, named("model.norm.weight"), c.hidden)
  local head = named("lm_head.weight")
  if c.tied == false or (c.tied == "unless lm_head" and files:has(head)) then
    plan:whole(W, "head", false, head, c.vocab, c.hidden)
  end
  for i = 1, c.layers do
    local L, base = {}, named(("model.layers.%d."):format(i - 1))
    W.layers[i] = L
    plan:whole(L, "attn_norm", false, base .. "input_layernorm.weight", c.hidden)
    plan:attention(c, L, base .. "self_attn.")
    plan:whole(L, "ffn_norm", false, base .. "post_attention_layernorm.weight", c.hidden)
    local ffn = base .. "feed_forward."
    if c.is_moe[i] then
      plan:whole(L, "router", false, ffn .. "router.weight", c.experts, c.hidden)
      plan:feed_forward(c, L, ffn .. "shared_expert.", c.expert_size)
      local split = not files:has(ffn .. "experts.gate_up_proj") and files:has(ffn .. "experts.0.gate_proj.weight")
      plan[split and "experts_split" or "experts_fused"](plan, c, L, ffn .. "experts.", files)
    else
      plan:feed_forward(c, L, ffn, c.dense_size)
    end
  end
  return plan, W
end

-- ---- checks ----------------------------------------------------------------------------------------------------------

local function join_some(list, separator)
  local text = table.concat(list, separator, 1, math.min(#list, NAMED_MAX))
  return #list > NAMED_MAX and text .. separator .. "..." or text
end

--- Are the weights of one result of one kind? Then they can be one weight.
local function alike(parts)
  local a = parts[1]
  for _, b in ipairs(parts) do
    if a.scale ~= nil ~= (b.scale ~= nil) or a.act ~= b.act or a.in_scale ~= b.in_scale then return false end
  end
  return true
end

local function same_shape(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return true
end

--- The file of a directory that holds a tensor, for a message; the directory when that cannot be told.
local function file_of(dir, name)
  local file = io.open(dir .. "/model.safetensors.index.json", "rb")
  if not file then return dir .. "/model.safetensors" end
  local ok, index = pcall(mav.json.decode, file:read("a"))
  file:close()
  local shard = ok and type(index) == "table" and type(index.weight_map) == "table" and index.weight_map[name]
  return type(shard) == "string" and dir .. "/" .. shard or dir
end

local function is_one(shape)
  for _, size in ipairs(shape) do
    if size ~= 1 then return false end
  end
  return #shape <= 2
end

--- What a scale counts: "one", "rows", or of a stack of experts also "experts" and "expert rows"; nil: it does not fit.
local function kind_of_scale(shape, part)
  if is_one(shape) then return "one" end
  local N = part.shape[1]
  if #part.shape == 2 then return (same_shape(shape, { N }) or same_shape(shape, { N, 1 })) and "rows" or nil end
  if same_shape(shape, { N }) or same_shape(shape, { N, 1 }) or same_shape(shape, { N, 1, 1 }) then return "experts" end
  return same_shape(shape, { N, 1, part.shape[3] }) and "expert rows" or nil
end

--- The one number of a tensor.
local function number(files, name) return fault.check(files:get(name)):to("f32"):reshape({ 1 }):get(1) end

local function companion(files, dir, part, name)
  local info = files:info(name)
  if not info then fault.raise("NOTFOUND", file_of(dir, part.name), "tensor %s is f8, and its %s is missing", part.name, name) end
  if not FLOATS[info.dtype] then
    fault.raise("DTYPE", file_of(dir, name), "tensor %s is %s; f32, bf16 or f16 is allowed", name, info.dtype)
  end
  return info
end

--- A weight of e4m3: its scale, how activations are rounded before it, and the scale of those.
local function check_quantized(part, act, files, dir, used)
  local stem = part.name:match "^(.*%.)weight$" or part.name .. "_"
  local scale, input = stem .. "weight_scale", stem .. "input_scale"
  local info = companion(files, dir, part, scale)
  part.scale, part.scale_kind, part.act, used[scale] = scale, kind_of_scale(info.shape, part), act, true
  if not part.scale_kind then
    fault.raise("UNSUPPORTED", file_of(dir, scale), "tensor %s has shape %s; one scale for all of %s or one for every output row "
      .. "is allowed (no scales of blocks or groups)", scale, fault.shape(info.shape), part.name)
  end
  if act ~= "static" then return end
  info = companion(files, dir, part, input)
  if not is_one(info.shape) then
    fault.raise("UNSUPPORTED", file_of(dir, input), "tensor %s has shape %s; one number is allowed", input, fault.shape(info.shape))
  end
  part.in_scale, used[input] = number(files, input), true
  if not (part.in_scale > 0 and part.in_scale < math.huge) then
    fault.raise("RANGE", file_of(dir, input), "tensor %s is %.9g; a number above 0 is allowed", input, part.in_scale)
  end
end

--- The dtype of a tensor against what the config says about its module.
local function check_scheme(entry, part, dtype, quant, files, dir, used)
  local module = part.name:gsub("^language_model%.", ""):gsub("%.weight$", "")
  local group
  if quant and entry.linear then group = quant:group(module, #part.shape == 2) end
  if dtype == "f8" and entry.linear then
    if not quant then
      fault.raise("UNSUPPORTED", file_of(dir, part.name), "tensor %s is f8, and neither quantization_config of config.json nor "
        .. "hf_quant_config.json says how it was quantized; add the one that belongs to the checkpoint", part.name)
    end
    if group == false then
      fault.raise("UNSUPPORTED", file_of(dir, part.name), "tensor %s is f8, but %s (%s) says that %s is not quantized; "
        .. "config and tensors must be of one checkpoint", part.name, quant.file, quant.name, module)
    end
    local act = group and group.act or quant:only_act()
    if not act then
      fault.raise("UNSUPPORTED", file_of(dir, part.name), "tensor %s is f8, and which of the groups in %s it belongs to cannot be told",
        part.name, quant.file)
    end
    return check_quantized(part, act, files, dir, used)
  end
  if not FLOATS[dtype] then
    fault.raise("DTYPE", file_of(dir, part.name), "tensor %s is %s; f32, bf16 or f16 is allowed", part.name, dtype)
  end
  if group then
    fault.raise("UNSUPPORTED", file_of(dir, part.name), "tensor %s is %s, but %s (%s) says that %s is quantized; list it there as "
      .. "ignored if it is meant to be %s", part.name, dtype, quant.file, quant.name, module, dtype)
  end
end

--- Names the tensors that are missing, then those of a wrong shape or type.
local function check_tensors(plan, files, dir, quant)
  local missing, used, bytes = {}, {}, 0
  for _, entry in ipairs(plan) do
    for _, part in ipairs(entry.parts) do
      if not used[part.name] then
        used[part.name] = true
        if not files:has(part.name) then missing[#missing + 1] = part.name end
      end
    end
  end
  if #missing > 0 then
    fault.raise("NOTFOUND", dir, "%d tensor%s that config.json asks for %s missing: %s", #missing, #missing == 1 and "" or "s",
      #missing == 1 and "is" or "are", join_some(missing, ", "))
  end
  for _, entry in ipairs(plan) do
    for _, part in ipairs(entry.parts) do
      local info = files:info(part.name)
      if not same_shape(info.shape, part.shape) then
        fault.raise("SHAPE", file_of(dir, part.name), "tensor %s has shape %s; config.json asks for %s", part.name,
          fault.shape(info.shape), fault.shape(part.shape))
      end
      check_scheme(entry, part, info.dtype, quant, files, dir, used)
      part.dtype = info.dtype
    end
    if not entry.keys and not alike(entry.parts) then
      fault.raise("UNSUPPORTED", dir, "%s to %s: the experts of a layer must be quantized alike, with one input_scale for all",
        entry.parts[1].name, entry.parts[#entry.parts].name)
    end
    bytes = bytes + WIDTH[entry.parts[1].dtype] * weights.elements(entry.shape)
  end
  return used, bytes
end

--- What is wrong about a scale that no weight asks for.
local function explain_scale(name, files, dir)
  local stem, which = name:match "^(.*[._])(%a+)_scale$"
  if which ~= "weight" and which ~= "input" then return end
  local weight = files:info(stem .. "weight") and stem .. "weight" or stem:sub(1, -2)
  local info = files:info(weight)
  if not info then return end
  fault.raise("UNSUPPORTED", file_of(dir, name), info.dtype == "f8" and "tensor %s: activations before %s are not rounded by a "
    .. "stored scale in the scheme that the config names" or "tensor %s belongs to %s, which is not f8", name, weight)
end

--- A tensor of the decoder that no op would read (a bias, a layer too many) means other mathematics than ours.
local function check_unexpected(used, files, dir, is_skipped)
  local extra = {}
  for _, name in ipairs(files:names()) do
    if not used[name] and not is_skipped(name) then extra[#extra + 1] = name end
  end
  if #extra > 0 then
    table.sort(extra)
    explain_scale(extra[1], files, dir)
    fault.raise("UNSUPPORTED", dir, "%d tensor%s with no place in this architecture: %s", #extra, #extra == 1 and "" or "s",
      join_some(extra, ", "))
  end
end

-- ---- copies ----------------------------------------------------------------------------------------------------------

function weights.elements(shape)
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  return n
end

local function storage_dtype(entry, asked)
  if asked and asked ~= "f8" then return asked end
  local dtype = entry.parts[1].dtype
  for _, part in ipairs(entry.parts) do
    if part.dtype ~= dtype then return "f32" end
  end
  return dtype
end

local function source(files, part)
  local t = fault.check(files:get(part.name))
  return part.view and part.view(t) or t
end

local function copy(entry, files, rt, dtype)
  local out = mav.zeros { dtype = dtype, runtime = rt, table.unpack(entry.shape) }
  for _, part in ipairs(entry.parts) do
    (part.place and part.place(out) or out):copy_from(source(files, part))
  end
  return out
end

--- Codes and scales piece by piece (a part, an expert), so that the wide copy of a stack of experts never exists.
local function quantize(entry, files, rt)
  local rows = { table.unpack(entry.shape, 1, #entry.shape - 1) }
  local out = mav.zeros { dtype = "f8", runtime = rt, table.unpack(entry.shape) }
  local scale = mav.zeros { dtype = "f32", runtime = rt, table.unpack(rows) }
  local function piece(t, codes_place, scale_place)
    local codes = t:contiguous():quantize()
    codes_place:copy_from(codes)
    scale_place:copy_from(codes.scale)
  end
  for _, part in ipairs(entry.parts) do
    local t = source(files, part)
    if part.place then
      piece(t, part.place(out), part.place(scale))
    elseif #entry.shape == 3 then
      for e = 1, entry.shape[1] do piece(t:select(1, e), out:select(1, e), scale:select(1, e)) end
    else
      piece(t, out, scale)
    end
  end
  out:set_scale(scale)
  return out
end

-- ---- weights that are quantized already ----------------------------------------------------------------------------------

local function filled(value, shape, rt) return mav.tensor(value, { dtype = "f32", shape = shape, runtime = rt }) end

--- The scales of a part's rows to their place, (N) or (E, N).
local function copy_scale(part, files, place, rt)
  local t, shape = fault.check(files:get(part.scale)), place.shape
  if part.scale_kind == "one" then
    place:copy_from(filled(number(files, part.scale), shape, rt))
  elseif part.scale_kind == "rows" then
    place:copy_from(t:reshape(shape))
  elseif part.scale_kind == "experts" then
    local values = t:to("f32"):reshape { shape[1] }
    for e = 1, shape[1] do place:select(1, e):copy_from(filled(values:get(e), { shape[2] }, rt)) end
  else
    place:copy_from(t:reshape({ part.shape[1], part.shape[3] }):slice(2, part.first + 1, part.first + shape[2]))
  end
end

--- All scales are finite and none is negative: 0 x is 0, and so is their sum.
local function check_scales(scale, entry, dir, rt)
  local flat = scale:reshape { 1, scale:count() }
  if mav.op.sum { x = flat * filled(0, { 1 }, rt) }:get(1, 1) == 0 and mav.op.min { x = flat }:get(1, 1) >= 0 then return end
  fault.raise("RANGE", file_of(dir, entry.parts[1].scale), "tensor %s%s: scales must be finite and not negative", entry.parts[1].scale,
    #entry.parts > 1 and " or one of those beside it" or "")
end

--- Scales of the result's rows; a single number where one is enough.
local function scales_of(entry, files, rt, dir, is_short)
  local rows, first = { table.unpack(entry.shape, 1, #entry.shape - 1) }, entry.parts[1]
  local scale
  if is_short and #entry.parts == 1 and first.scale_kind == "one" then
    scale = filled(number(files, first.scale), { 1 }, rt)
  else
    scale = mav.zeros { dtype = "f32", runtime = rt, table.unpack(rows) }
    for _, part in ipairs(entry.parts) do copy_scale(part, files, part.place and part.place(scale) or scale, rt) end
  end
  check_scales(scale, entry, dir, rt)
  return scale
end

--- Codes times scales, piece by piece.
local function widen(entry, files, rt, dtype, scale)
  local out = mav.zeros { dtype = dtype, runtime = rt, table.unpack(entry.shape) }
  local function piece(codes, place, rows)
    place:copy_from(mav.op.cast { x = codes:contiguous(), dtype = "f32" } * rows:reshape { rows:count(), 1 })
  end
  for _, part in ipairs(entry.parts) do
    local t = source(files, part)
    if part.place then
      piece(t, part.place(out), part.place(scale))
    elseif #entry.shape == 3 then
      for e = 1, entry.shape[1] do piece(t:select(1, e), out:select(1, e), scale:select(1, e)) end
    else
      piece(t, out, scale)
    end
  end
  return out
end

local function load_quantized(entry, files, dir, options, asked)
  local rt, act, stays = options.runtime, entry.parts[1].act, asked == nil or asked == "f8"
  if options.activations == "f32" then act = "none" end
  local scale = scales_of(entry, files, rt, dir, stays)
  local out = stays and copy(entry, files, rt, "f8") or widen(entry, files, rt, asked, scale)
  if stays or act ~= "none" then
    out:set_scale(stays and scale or filled(1, { 1 }, rt), { act = act, in_scale = entry.parts[1].in_scale })
  end
  return out
end

-- ---- the whole ---------------------------------------------------------------------------------------------------------

--- What the ops of a layer need beside its weights.
function weights.add_constants(W, c, rt)
  local rope = mav.tensor(c.inv_freq, { dtype = "f32", runtime = rt })
  for i, L in ipairs(W.layers) do
    L.eps, L.chunk, L.floor_scale = c.eps, c.chunks[i], c.floor_scale
    L.rope = c.is_rope[i] and rope or nil
    L.attn_scale = (c.temperature and not c.is_rope[i]) and c.attn_scale or 0
    L.qk_norm = (c.qk_norm and c.is_rope[i]) and 1 or 0
    L.top_k = c.top_k
  end
  W.eps = c.eps
end

local function load_entry(entry, files, dir, options, asked)
  if entry.parts[1].scale then return load_quantized(entry, files, dir, options, asked) end
  if asked == "f8" and entry.linear then return quantize(entry, files, options.runtime) end
  return copy(entry, files, options.runtime, storage_dtype(entry, asked))
end

--- An empty plan, for loaders of other layouts (draft heads): add, whole, feed_forward, and then weights.fill.
function weights.plan() return setmetatable({}, Plan) end

--- Checks a plan against the files of `dir`; its entries, each of one kind: q, k and v that are not alike become an entry each.
--- Raises conditions of the world.
---@param quant table|nil   the scheme of quantized files
---@param is_skipped function   (name): a tensor that may be there and is not read
---@return table[] entries, integer bytes
function weights.check(plan, files, dir, quant, is_skipped)
  local used, bytes = check_tensors(plan, files, dir, quant)
  check_unexpected(used, files, dir, is_skipped)
  local entries = {}
  for _, entry in ipairs(plan) do
    if alike(entry.parts) then
      entries[#entries + 1] = entry
    else
      for i, part in ipairs(entry.parts) do
        local own = { name = part.name, dtype = part.dtype, scale = part.scale, scale_kind = part.scale_kind, act = part.act,
          in_scale = part.in_scale, shape = part.shape }
        entries[#entries + 1] = { target = entry.target, key = entry.keys[i], linear = entry.linear, shape = part.shape, parts = { own } }
      end
    end
  end
  return entries, bytes
end

--- Checks a plan, then copies what it names into its targets. Raises conditions of the world.
---@param options table   as of weights.load; quant: the scheme of quantized files
---@param is_skipped function   (name): a tensor that may be there and is not read
function weights.fill(plan, files, dir, options, is_skipped)
  local asked = options.dtype
  if asked ~= nil then asked = DTYPES[asked] or error(("dtype %s: fp8, bf16, f16 or f32 is allowed"):format(fault.show(asked)), 0) end
  local entries, bytes = weights.check(plan, files, dir, options.quant, is_skipped)
  local done = 0
  for _, entry in ipairs(entries) do
    local t = load_entry(entry, files, dir, options, asked)
    entry.target[entry.key] = entry.linear and t:shuffle() or t
    done = done + WIDTH[entry.parts[1].dtype] * weights.elements(entry.shape)
    if options.progress then options.progress(done, bytes, entry.parts[1].name) end
  end
end

--- Marks layers whose gate and up need different activations: ffn_up packs them once for both.
local function mark_apart(plan)
  for _, entry in ipairs(plan) do
    local partner = entry.key == "gate" and "up" or entry.key == "expert_gate" and "expert_up"
    for _, other in ipairs(partner and plan or {}) do
      if other.target == entry.target and other.key == partner then
        local both = { entry.parts[1], other.parts[1] }
        if not alike(both) or entry.target[entry.key].dtype ~= entry.target[partner].dtype then entry.target.apart = true end
      end
    end
  end
end

--- The scales of an FP8 cache by layer, 1 without; and the names of the tensors that hold them.
local function read_kv_scales(W, c, files, dir, prefix)
  local names = {}
  W.k_scale, W.v_scale = {}, {}
  for i = 1, c.layers do
    local base = ("%smodel.layers.%d.self_attn."):format(prefix, i - 1)
    for key, own in pairs { k_scale = "k_proj.", v_scale = "v_proj." } do
      W[key][i] = 1.0
      for _, name in ipairs { base .. key, base .. own .. key } do
        local info = files:info(name)
        if info then
          if not is_one(info.shape) or not FLOATS[info.dtype] then
            fault.raise("SHAPE", file_of(dir, name), "tensor %s is %s %s; one number is allowed", name, info.dtype, fault.shape(info.shape))
          end
          W[key][i], names[name] = number(files, name), true
          if not (W[key][i] > 0 and W[key][i] < math.huge) then
            fault.raise("RANGE", file_of(dir, name), "tensor %s is %.9g; a number above 0 is allowed", name, W[key][i])
          end
        end
      end
    end
  end
  return names
end

--- What the text decoder of `dir` is made of, for c = config.read(dir): a plan, the tables that it fills (with k_scale and v_scale, lists
--- by layer, of quantized files), and the is_skipped that goes with it. Raises conditions of the world.
---@return table plan, table W, function is_skipped, boolean has_cache_scales
function weights.planned(dir, c, files)
  local prefix = files:has("language_model.model.embed_tokens.weight") and "language_model." or ""
  local plan, W = plan_model(c, files, prefix)
  local of_cache = c.quant and read_kv_scales(W, c, files, dir, prefix) or {}
  return plan, W, function(name)
    if of_cache[name] then return true end
    if c.tied ~= false and name == prefix .. "lm_head.weight" then return true end -- a tied copy
    for _, pattern in ipairs(SKIPPED) do
      if name:find(pattern) then return true end
    end
    return false
  end, next(of_cache) ~= nil
end

local function load(dir, c, options)
  local rt = options.runtime
  local pack, ranks = packs.find(dir)
  if pack then
    local W = fault.check(packs.load(pack, ranks, c, options))
    weights.add_constants(W, c, rt)
    return W
  end
  local files = gguf.is_path(dir) and gguf.files(dir, { runtime = rt }) or fault.check(mav.weights(dir, { runtime = rt }))
  local plan, W, is_skipped = weights.planned(dir, c, files)
  options.quant = c.quant
  weights.fill(plan, files, dir, options, is_skipped)
  mark_apart(plan)
  W.head = W.head or W.embed
  weights.add_constants(W, c, rt)
  return W
end

--- Loads the weights that `config` (config.read) asks for, from safetensors or from a pack (packs.lua).
---
--- Result: embed (V, D), norm (D), head (V, D) and layers: attn_norm (D), qkv (N, D), o (D, H C), ffn_norm (D), gate (F, D),
--- up (F, D), down (D, F); in MoE layers router (E, D), expert_gate (E, F, D), expert_up (E, F, D), expert_down (E, D, F);
--- and the constants its ops take: eps, rope, attn_scale, floor_scale, qk_norm, chunk, top_k. Where q, k and v round activations
--- differently, q, k and v instead of qkv; apart: gate and up do. Of quantized checkpoints k_scale and v_scale, lists by layer.
---@param dir string
---@param c table
---@param options table   runtime; dtype: nil keeps the storage type; activations: "f32" rounds none; progress(bytes done, bytes in
---all, tensor name); mapped: of packs
---@return table|nil weights
---@return table|nil err
function weights.load(dir, c, options) return fault.catch(load, dir, c, options) end

local function size(t) return t and t:count() * WIDTH[t.dtype] or 0 end

local EXPERTS = { expert_gate = true, expert_up = true, expert_down = true }

--- Bytes of weights that a step of n rows reads: everything once, of the experts as many as are said, or expected with random routing.
function weights.step_bytes(W, c, rows, distinct)
  distinct = distinct or c.experts * (1 - (1 - c.top_k / c.experts) ^ rows)
  local bytes = size(W.norm) + size(W.head) + rows * size(W.embed) / c.vocab
  for _, L in ipairs(W.layers) do
    for key, t in pairs(L) do
      if type(t) == "userdata" and key ~= "rope" then
        local all = size(t) + size(t.scale)
        bytes = bytes + (EXPERTS[key] and all * distinct / c.experts or all)
      end
    end
  end
  return bytes
end

return weights
