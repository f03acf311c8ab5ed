--- A model's weights under Mav's names, whatever the files call them and however they lay them out: what two models are compared by.
---
---   "embed", "norm", "head", "layers.0.attn_norm", "layers.0.q" (k, v, o), "layers.1.ffn_norm", "layers.1.gate" (up, down; of the shared
---   expert in MoE layers), "layers.1.router", "layers.1.expert_gate" (expert_up, expert_down): (E, N, K), rows are outputs
---
--- The mapping is written from the layouts' definitions and shares nothing with the conversion, so that one checks the other. Tensors
--- that are none of these keep their own names.
local fault = require "mav.maverick.fault"
local mav = require "mav"
local store = require "mav.weights_tools.store"
local op = mav.op

local logical = {}

local BLOCK, UNPACKED_BLOCK = 1 << 20, 8 << 20 -- elements; of compressed tensors, whose chunks are 16 MiB
local ROWS_MULTIPLE = 16

local BESIDE = { "^vision_model%.", "^multi_modal_projector%.", "%.rotary_emb%.inv_freq$" }

--- Is the tensor none of the text decoder's? Packs have no such.
function logical.is_beside(name)
  for _, pattern in ipairs(BESIDE) do
    if name:find(pattern) then return true end
  end
  return false
end

-- ---- one tensor -----------------------------------------------------------------------------------------------------------

--- name, dtype (of its first part), width (bytes of an element), E, N, K, is_quantized, act, in_scale, and block, scales, values of rows.
local Tensor = {}
Tensor.__index = Tensor

--- Rows [first, last) of a group, (n, K), as stored: perhaps a view with strides on the file.
function Tensor:block(group, first, last)
  if self.view then return self.view(group, first, last) end
  local part, base = self.parts and self.parts[group] or self.part, self.first or 0
  return self.store:block(part, self.parts and 1 or group, base + first, base + last)
end

--- f32, (n, 1) or (1, 1): what its rows are multiplied by; nil: nothing.
function Tensor:scales(group, first, last)
  if not self.is_quantized then return nil end
  if self.scale_view then return self.scale_view(group, first, last) end
  local part, base = self.parts and self.parts[group] or self.part, self.first or 0
  return self.store:scales(part, self.parts and 1 or group, base + first, base + last)
end

--- The same rows as f32, (n, K), scales applied. A new tensor.
function Tensor:values(group, first, last)
  local x = op.cast { x = self:block(group, first, last), dtype = "f32" }
  local scale = self:scales(group, first, last)
  return scale and op.mul { a = x, b = scale, out = x } or x
end

--- Calls f(group, first, last) for blocks of rows.
function Tensor:each_block(f)
  local limit = math.max(1, (self.raw and BLOCK or UNPACKED_BLOCK) // math.max(self.K, 1))
  limit = math.max(ROWS_MULTIPLE, limit // ROWS_MULTIPLE * ROWS_MULTIPLE)
  for group = 1, self.E do
    for first = 0, self.N - 1, limit do f(group, first, math.min(self.N, first + limit)) end
  end
end

function Tensor:elements() return self.E * self.N * self.K end

--- Of so many elements, or of all.
function Tensor:bytes(elements) return (elements or self:elements()) * self.width // 1 | 0 end

--- "(8, 128, 256)"
function Tensor:shape_text() return fault.shape(self.E > 1 and { self.E, self.N, self.K } or { self.N, self.K }) end

-- ---- models -----------------------------------------------------------------------------------------------------------------

--- list, by_name; store; kv: k_scale and v_scale by layer (from 1).
local Model = {}
Model.__index = Model

function Model:add(t)
  local entry = self.store.entries[t.part or t.parts and t.parts[1] or t.of]
  if not t.E then t.E, t.N, t.K = self.store:geometry(entry.name) end
  t.store, t.dtype, t.raw, t.is_quantized = self.store, entry.dtype, entry.raw, entry.scale ~= nil
  local E, N, K = self.store:geometry(entry.name)
  t.width = entry.bytes / math.max(1, E * N * K)
  t.act, t.in_scale = t.act or entry.act, t.in_scale or entry.in_scale
  if self.by_name[t.name] then fault.raise("FORMAT", self.store.path, "two tensors are %s", t.name) end
  self.by_name[t.name], self.list[#self.list + 1] = setmetatable(t, Tensor), t
end

local TOP = { ["model.embed_tokens.weight"] = "embed", ["model.norm.weight"] = "norm", ["lm_head.weight"] = "head" }
local IN_LAYER = { ["input_layernorm.weight"] = "attn_norm", ["post_attention_layernorm.weight"] = "ffn_norm",
  ["self_attn.q_proj.weight"] = "q", ["self_attn.k_proj.weight"] = "k", ["self_attn.v_proj.weight"] = "v",
  ["self_attn.o_proj.weight"] = "o", ["feed_forward.router.weight"] = "router" }
for _, key in ipairs { "gate", "up", "down" } do
  IN_LAYER["feed_forward." .. key .. "_proj.weight"] = key
  IN_LAYER["feed_forward.shared_expert." .. key .. "_proj.weight"] = key
end

--- The scale of activations before a weight of a Hugging Face directory.
local function input_scale(s, name)
  local companion = (name:match "^(.*%.)weight$" or name .. "_") .. "input_scale"
  if not s.entries[companion] then return nil end
  return s:values(companion, 1, 0, 1):get(1, 1)
end

--- Rows [offset, offset + N) of every expert's transpose: the files have (E, K, columns), y = x W.
local function add_turned(self, name, source, offset, N)
  local s = self.store
  local E, K = s:geometry(source)
  local function turned(group, first, last)
    local t = s:block(source, group, 0, K)
    return t:slice(2, offset + first + 1, offset + last):transpose(1, 2)
  end
  local function scales(group, first, last)
    local scale = s:scales(source, group, 0, K)
    if scale.shape[2] == 1 then return scale end
    return scale:slice(2, offset + first + 1, offset + last):reshape { last - first, 1 }
  end
  self:add { name = name, of = source, E = E, N = N, K = K, view = turned, scale_view = scales, in_scale = input_scale(s, source) }
end

local function hf_name(name) return (name:gsub("^language_model%.", "")) end

--- Is the tensor a number or a scale that belongs to another one?
local function is_companion(name) return name:find "weight_scale$" or name:find "input_scale$" or name:find "[kv]_scale$" end

local function open_hf(self)
  local s, experts, order = self.store, {}, {}
  for _, full in ipairs(s.names) do
    local name = hf_name(full)
    local layer, rest = name:match "^model%.layers%.(%d+)%.(.*)$"
    local prefix = layer and ("layers.%d."):format(layer)
    local expert, which = (rest or ""):match "^feed_forward%.experts%.(%d+)%.(%a+)_proj%.weight$"
    if rest == "feed_forward.experts.gate_up_proj" then
      local _, _, columns = s:geometry(full)
      add_turned(self, prefix .. "expert_gate", full, 0, columns // 2)
      add_turned(self, prefix .. "expert_up", full, columns // 2, columns // 2)
    elseif rest == "feed_forward.experts.down_proj" then
      local _, _, columns = s:geometry(full)
      add_turned(self, prefix .. "expert_down", full, 0, columns)
    elseif expert then
      local key = prefix .. "expert_" .. which
      if not experts[key] then
        experts[key], order[#order + 1] = {}, key
      end
      experts[key][tonumber(expert) + 1] = full
    elseif TOP[name] or IN_LAYER[rest or ""] then
      self:add { name = TOP[name] or prefix .. IN_LAYER[rest], part = full, in_scale = input_scale(s, full) }
    elseif is_companion(name) then
      local kind = name:match "([kv])_scale$"
      if layer and kind then
        self.kv = self.kv or { k_scale = {}, v_scale = {} }
        self.kv[kind .. "_scale"][tonumber(layer) + 1] = s:values(full, 1, 0, 1):get(1, 1)
      end
    else
      self:add { name = full, part = full }
    end
  end
  for _, key in ipairs(order) do
    local parts, count = experts[key], 0
    for _ in pairs(parts) do count = count + 1 end
    if count ~= #parts then fault.raise("NOTFOUND", s.path, "%s: experts are missing: there are %d, not in order from 0 on", key, count) end
    local _, N, K = s:geometry(parts[1])
    self:add { name = key, parts = parts, E = #parts, N = N, K = K, in_scale = input_scale(s, parts[1]) }
  end
end

local function open_packs(self)
  local s = self.store
  for _, name in ipairs(s.names) do
    local entry, prefix = s.entries[name], name:match "^(.*)qkv$"
    if prefix and not entry.is_scale and entry.cut and entry.cut.parts and #entry.cut.parts == 3 then
      local first = 0
      local _, _, K = s:geometry(name)
      for i, key in ipairs { "q", "k", "v" } do
        local N = entry.cut.parts[i].rows
        self:add { name = prefix .. key, part = name, E = 1, N = N, K = K, first = first }
        first = first + N
      end
    elseif not entry.is_scale then
      self:add { name = name, part = name }
    end
  end
  self.kv = type(s.meta.kv) == "table" and s.meta.kv or nil
end

local GGUF_TOP = { ["token_embd.weight"] = "embed", ["output_norm.weight"] = "norm", ["output.weight"] = "head" }
local GGUF_LAYER = { attn_norm = "attn_norm", ffn_norm = "ffn_norm", attn_q = "q", attn_k = "k", attn_v = "v", attn_output = "o",
  ffn_gate_inp = "router" }
for _, key in ipairs { "gate", "up", "down" } do
  GGUF_LAYER["ffn_" .. key], GGUF_LAYER["ffn_" .. key .. "_shexp"] = key, key
  GGUF_LAYER["ffn_" .. key .. "_exps"] = "expert_" .. key
end

local function open_gguf(self)
  for _, name in ipairs(self.store.names) do
    local layer, key = name:match "^blk%.(%d+)%.(.+)%.weight$"
    self:add { name = GGUF_TOP[name] or GGUF_LAYER[key or ""] and ("layers.%s.%s"):format(layer, GGUF_LAYER[key]) or name, part = name }
  end
end

--- Opens a model. Raises conditions of the world.
---@param path string   as of store.open
---@return table
function logical.open(path)
  local self = setmetatable({ store = store.open(path), list = {}, by_name = {} }, Model)
  if self.store.kind == "pack" and self.store.ranks > 1 then
    fault.raise("UNSUPPORTED", path, "is rank %d of %d: a part of a model. Name the directory with all of them", self.store.rank,
      self.store.ranks)
  end
  local kind = self.store.kind
  local open = (kind == "packs" or kind == "pack") and open_packs or kind == "gguf" and open_gguf or open_hf
  open(self)
  return self
end

-- ---- two tensors ---------------------------------------------------------------------------------------------------------------

local PIECE = 256 << 10 -- elements that stay in the cache over the passes below

local Difference = {}
Difference.__index = Difference

local function number(f, x, y)
  local t = f(x, y)
  local value = t:get(1, 1)
  t:close()
  return value
end

local function dot(x, y) return op.matmul { x = x, w = y } end
local function largest(x) return op.max { x = op.abs { x = x } } end
local function equal(x, y) return op.sum { x = op.equal { a = x, b = y } } end

local function add_piece(self, x, y)
  local d = op.sub { a = x, b = y }
  self.elements = self.elements + x:count()
  self.different = self.different + x:count() - math.tointeger(number(equal, x, y))
  local noise = number(dot, d, d)
  if noise - noise ~= 0 then
    self.is_finite = false
  else
    self.max_abs = math.max(self.max_abs, number(largest, d))
  end
  self.noise, self.signal, self.other = self.noise + noise, self.signal + number(dot, x, x), self.other + number(dot, y, y)
  d:close()
end

--- Bytes of two blocks of one type: are they the same?
local function same_bytes(x, y) return x:contiguous():bytes() == y:contiguous():bytes() end

local function same_scales(x, y, n)
  if x == nil or y == nil then return x == y end
  local function at(t, i) return t:get(t.shape[1] == 1 and 1 or i, 1) end
  if x.shape[1] == y.shape[1] then return same_bytes(x, y) end
  for i = 1, n do
    if at(x, i) ~= at(y, i) then return false end
  end
  return true
end

--- Compares two logical tensors of one shape.
---
---   exact       same type, and the same bits in every element and scale
---   elements, different   how many values there are and how many of them differ
---   max_abs     largest |x - y|
---   relative    sqrt(sum (x - y)^2 / sum x^2)
---   sqnr_db     10 log10(sum x^2 / sum (x - y)^2); nil: there is no error
---   cosine      of the two as vectors; nil when one is zero
---   is_finite   no value is infinite or not a number
---@param progress function   (bytes of a)
function logical.compare(a, b, progress)
  local self = setmetatable({ exact = a.dtype == b.dtype and a.is_quantized == b.is_quantized, elements = 0, different = 0, max_abs = 0.0,
    noise = 0.0, signal = 0.0, other = 0.0, is_finite = true }, Difference)
  a:each_block(function(group, first, last)
    local x, y = a:block(group, first, last), b:block(group, first, last)
    local sx, sy = a:scales(group, first, last), b:scales(group, first, last)
    if a.dtype == b.dtype and a.is_quantized == b.is_quantized and same_scales(sx, sy, last - first) and same_bytes(x, y) then
      self.elements = self.elements + x:count()
      self.pending = self.pending or {}
      table.insert(self.pending, { group, first, last })
    else
      self.exact = false
      self:values(a, b, group, first, last)
    end
    if progress then progress((last - first) * a.K) end
    collectgarbage "step"
  end)
  if not self.exact then -- the signal of all blocks counts
    for _, block in ipairs(self.pending or {}) do
      self.elements = self.elements - (block[3] - block[2]) * a.K
      self:values(a, b, table.unpack(block))
    end
  end
  return self:result()
end

function Difference:values(a, b, group, first, last)
  local x, y = a:values(group, first, last), b:values(group, first, last)
  x, y = x:reshape { 1, x:count() }, y:reshape { 1, y:count() }
  for at = 1, x.shape[2], PIECE do
    local to = math.min(x.shape[2], at + PIECE - 1)
    add_piece(self, x:slice(2, at, to), y:slice(2, at, to))
  end
end

--- The cosine of vectors with these squared lengths, from that of their difference; nil when one is zero. The sums are of f32 (an error
--- of 1e-7 or so), and sum(x y) over their root may come out above 1; this way the error is of what is missing to 1.
local function cosine(signal, other, noise)
  if signal == 0 or other == 0 then return nil end
  local apart = noise - (math.sqrt(signal) - math.sqrt(other)) ^ 2 -- 2 |x| |y| (1 - cosine)
  return math.max(-1, 1 - math.max(0, apart) / (2 * math.sqrt(signal * other)))
end

function Difference:result()
  local has_noise = self.noise > 0
  return { exact = self.exact, elements = self.elements, different = self.different, is_finite = self.is_finite,
    max_abs = self.is_finite and self.max_abs or math.huge,
    relative = self.is_finite and (has_noise and math.sqrt(self.noise / self.signal) or 0.0) or math.huge, -- x / 0 is infinite
    sqnr_db = self.is_finite and has_noise and 10 * math.log(self.signal / self.noise, 10) or nil,
    cosine = self.is_finite and cosine(self.signal, self.other, self.noise) or nil }
end

return logical
