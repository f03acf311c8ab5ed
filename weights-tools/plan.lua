--- The tensors of a conversion: what a Hugging Face directory holds, checked as the loader checks it, under Mav's own names.
---
--- An entry is a weight as the ops want it. Recipes change what is marked with *.
---
---   name *            "embed", "norm", "head", "layers.0.qkv", "layers.1.expert_gate", ...
---   key, layer        "qkv", and the layer's number from 0 on (nil: embed, norm, head)
---   shape             (N, K), of experts (E, N, K), of norms (N)
---   linear            a linear layer: what dtype fp8 quantizes
---   source            dtype in the files ("f32" where parts differ)
---   dtype *           dtype in the pack
---   layout *          "row" or another of layouts.lua
---   compress *        chunks that LZ4 makes a tenth smaller are stored so
---   act, in_scale *   how activations that meet it are rounded
---   map *             function(slice, at) -> slice, on f32 rows
---   parts             the tensors of the files, each with shape, view, scale (of quantized ones): scripts/maverick/weights.lua
local config = require "mav.maverick.config"
local fault = require "mav.maverick.fault"
local mav = require "mav"
local weights = require "mav.maverick.weights"

local plan = {}

local SKIPPED = { "^vision_model%.", "^multi_modal_projector%.", "%.rotary_emb%.inv_freq$" }
local ACTS = { none = true, static = true, dynamic = true }

-- ---- the files, under the names that the recipe gives them -------------------------------------------------------------

local Files = {}
Files.__index = Files

function Files:has(name) return self.own[name] ~= nil end
function Files:names() return self.list end
function Files:info(name) return self.own[name] and self.weights:info(self.own[name]) end

function Files:get(name)
  if not self.own[name] then return nil, ("no tensor %s"):format(name) end
  return self.weights:get(self.own[name])
end

--- rename: function(name in the files) -> the name that config.json asks for; nil: not read.
local function open_files(dir, rename)
  local self = setmetatable({ weights = fault.check(mav.weights(dir)), own = {}, list = {} }, Files)
  for _, name in ipairs(self.weights:names()) do
    local as = name
    if rename then as = rename(name) end
    if as ~= nil and as ~= false then
      if type(as) ~= "string" then
        error(("names: %s became a %s; a string, or nil to leave it out, is expected"):format(name, type(as)), 0)
      end
      if self.own[as] then error(("names: %s and %s both became %s"):format(self.own[as], name, as), 0) end
      self.own[as], self.list[#self.list + 1] = name, as
    end
  end
  return self
end

-- ---- what goes where -----------------------------------------------------------------------------------------------------

--- Fills `p`, a plan of the loader's, for the config c.
local function add_model(p, c, files, prefix)
  local top = {}
  p:whole(top, "embed", false, prefix .. "model.embed_tokens.weight", c.vocab, c.hidden)
  p:whole(top, "norm", false, prefix .. "model.norm.weight", c.hidden)
  local head = prefix .. "lm_head.weight"
  if c.tied == false or (c.tied == "unless lm_head" and files:has(head)) then
    p:whole(top, "head", false, head, c.vocab, c.hidden)
  end
  for i = 1, c.layers do
    local L, base = { layer = i - 1 }, ("%smodel.layers.%d."):format(prefix, i - 1)
    p:whole(L, "attn_norm", false, base .. "input_layernorm.weight", c.hidden)
    p:attention(c, L, base .. "self_attn.")
    p:whole(L, "ffn_norm", false, base .. "post_attention_layernorm.weight", c.hidden)
    local ffn = base .. "feed_forward."
    if c.is_moe[i] then
      p:whole(L, "router", false, ffn .. "router.weight", c.experts, c.hidden)
      p:feed_forward(c, L, ffn .. "shared_expert.", c.expert_size)
      local split = not files:has(ffn .. "experts.gate_up_proj") and files:has(ffn .. "experts.0.gate_proj.weight")
      p[split and "experts_split" or "experts_fused"](p, c, L, ffn .. "experts.", files)
    else
      p:feed_forward(c, L, ffn, c.dense_size)
    end
  end
end

--- Scales of an FP8 cache by layer, and the names that hold them; nil when there are none.
local function cache_scales(c, files, prefix)
  local names, scales, found = {}, { k_scale = {}, v_scale = {} }, false
  for i = 1, c.layers do
    local base = ("%smodel.layers.%d.self_attn."):format(prefix, i - 1)
    for key, own in pairs { k_scale = "k_proj.", v_scale = "v_proj." } do
      scales[key][i] = 1.0
      for _, name in ipairs { base .. key, base .. own .. key } do
        if c.quant and files:has(name) then
          local value = fault.check(files:get(name)):to "f32"
          if value:count() ~= 1 then
            fault.raise("SHAPE", c.dir, "tensor %s has %d elements; one number is allowed", name, value:count())
          end
          value = value:reshape({ 1 }):get(1)
          if not (value > 0 and value < math.huge) then
            fault.raise("RANGE", c.dir, "tensor %s is %.9g; a number above 0 is allowed", name, value)
          end
          scales[key][i], names[name], found = value, true, true
        end
      end
    end
  end
  return found and scales or nil, names
end

--- The entries of a filled plan, after the loader's checks. weights.fill checks, lists the files' names once, then copies what the
--- plan holds: nothing, as the entries are taken out before.
local function checked(p, c, files, is_skipped)
  local entries = {}
  local guarded = setmetatable({ names = function()
    entries, p = table.move(p, 1, #p, 1, {}), p
    for i = #p, 1, -1 do p[i] = nil end
    return files:names()
  end, has = function(_, name) return files:has(name) end, info = function(_, name) return files:info(name) end,
    get = function(_, name) return files:get(name) end }, nil)
  weights.fill(p, guarded, c.dir, { quant = c.quant }, is_skipped)
  return entries
end

local function alike(parts)
  local a = parts[1]
  for _, b in ipairs(parts) do
    if (a.scale == nil) ~= (b.scale == nil) or a.act ~= b.act or a.in_scale ~= b.in_scale then return false end
  end
  return true
end

local Plan = {}
Plan.__index = Plan

local function add_entry(self, target, key, linear, shape, parts)
  local source = parts[1].dtype
  for _, part in ipairs(parts) do
    if part.dtype ~= source then source = "f32" end
  end
  self[#self + 1] = { name = (target.layer and ("layers.%d."):format(target.layer) or "") .. key, key = key, layer = target.layer,
    linear = linear, shape = shape, parts = parts, source = source, dtype = source, layout = "row", compress = self.compress,
    act = parts[1].act or "none", in_scale = parts[1].in_scale }
end

--- A checked plan of the directory. Raises conditions of the world.
---@param dir string
---@param options table   names (a recipe's renaming of source tensors), compress
function plan.read(dir, options)
  local c = fault.check(config.read(dir))
  local files = open_files(dir, options.names)
  local prefix = files:has "language_model.model.embed_tokens.weight" and "language_model." or ""
  local p = weights.plan()
  add_model(p, c, files, prefix)
  local kv, of_cache = cache_scales(c, files, prefix)
  local entries = checked(p, c, files, function(name)
    if of_cache[name] or (c.tied ~= false and name == prefix .. "lm_head.weight") then return true end
    for _, pattern in ipairs(SKIPPED) do
      if name:find(pattern) then return true end
    end
    return false
  end)
  local self = setmetatable({ config = c, files = files, kv = kv, compress = options.compress or false, dir = dir }, Plan)
  for _, entry in ipairs(entries) do
    if alike(entry.parts) then
      add_entry(self, entry.target, entry.key, entry.linear, entry.shape, entry.parts)
    else -- q, k and v that round activations differently
      for i, part in ipairs(entry.parts) do
        part.place = nil
        add_entry(self, entry.target, entry.keys[i], entry.linear, part.shape, { part })
      end
    end
  end
  return self
end

-- ---- rules -----------------------------------------------------------------------------------------------------------------

local DTYPES = { fp8 = "f8", f8 = "f8", bf16 = "bf16", f16 = "f16", f32 = "f32", keep = "keep" }
local RULE = { match = true, linear = true, dtype = true, layout = true, compress = true, rename = true, map = true, act = true,
  in_scale = true }

local function expect(rule, key, kinds)
  local kind = type(rule[key])
  if kind ~= "nil" and not kinds:find(kind, 1, true) then return ("%s is a %s; a %s is expected"):format(key, kind, kinds) end
end

--- What is wrong with a rule, or nil.
local function fault_of(rule)
  if type(rule) ~= "table" then return ("a rule is a table, not a %s"):format(type(rule)) end
  local keys = {}
  for key in pairs(RULE) do keys[#keys + 1] = key end
  table.sort(keys)
  for key in pairs(rule) do
    if not RULE[key] then return ("unknown key '%s'; %s are allowed"):format(tostring(key), table.concat(keys, ", ")) end
  end
  local wrong = expect(rule, "match", "string or function") or expect(rule, "linear", "boolean") or expect(rule, "dtype", "string")
    or expect(rule, "layout", "string") or expect(rule, "compress", "boolean") or expect(rule, "rename", "string or function")
    or expect(rule, "map", "function") or expect(rule, "act", "string") or expect(rule, "in_scale", "number")
  if wrong then return wrong end
  if rule.dtype and not DTYPES[rule.dtype] then return ("dtype \"%s\": fp8, bf16, f16, f32 or keep is allowed"):format(rule.dtype) end
  if rule.layout and not require("mav.weights_tools.layouts").known[rule.layout] then
    return ("layout \"%s\": row or m16n8k16 is allowed"):format(rule.layout)
  end
  if rule.act and not ACTS[rule.act] then return ("act \"%s\": none, static or dynamic is allowed"):format(rule.act) end
  if type(rule.match) == "string" then
    local ok, err = pcall(string.find, "", rule.match)
    if not ok then return ("match \"%s\": %s"):format(rule.match, (err:gsub("^.-:%d+: ", ""))) end
  end
end

local function matches(rule, entry)
  if rule.linear ~= nil and rule.linear ~= entry.linear then return false end
  if type(rule.match) == "function" then return rule.match(entry) end
  return not rule.match or entry.name:find(rule.match) ~= nil
end

local function change(entry, rule)
  if rule.dtype then
    entry.dtype = rule.dtype == "keep" and entry.source or DTYPES[rule.dtype]
    if entry.dtype == "f8" and #entry.shape < 2 then return ("%s cannot be fp8: it is no matrix"):format(entry.name) end
  end
  entry.layout = rule.layout or entry.layout
  if rule.compress ~= nil then entry.compress = rule.compress end
  if rule.act then entry.act, entry.in_scale = rule.act, rule.in_scale end
  if rule.rename then
    local old = entry.name
    entry.name = type(rule.rename) == "string" and old:gsub(rule.match, rule.rename) or rule.rename(entry)
    if type(entry.name) ~= "string" or entry.name == "" then return ("rename of %s: a name is expected"):format(old) end
  end
  if rule.map then
    local before, map = entry.map, rule.map
    entry.map = before and function(slice, at) return map(before(slice, at), at) end or map
  end
end

--- Changes the entries that a rule matches: all of match (a Lua pattern of names, or function(entry)) and linear. Then dtype, layout,
--- compress, act with in_scale, rename (a replacement of match, or function(entry) -> name), map. Returns how many there were;
--- raises what is wrong, and a rule that matches nothing.
---@param rule table
---@return integer
function Plan:rule(rule)
  local wrong = fault_of(rule)
  if not wrong and type(rule.rename) == "string" and type(rule.match) ~= "string" then
    wrong = "rename needs match, a pattern to replace"
  end
  if not wrong and rule.act == "static" and not rule.in_scale then wrong = "act \"static\" needs an in_scale" end
  if wrong then error(wrong, 2) end
  local count = 0
  for _, entry in ipairs(self) do
    if matches(rule, entry) then
      count = count + 1
      wrong = change(entry, rule)
      if wrong then error(wrong, 2) end
    end
  end
  if count == 0 then
    error(("rule %smatches no tensor"):format(type(rule.match) == "string" and ("\"%s\" "):format(rule.match) or ""), 2)
  end
  return count
end

--- The entry of this name, or nil.
function Plan:find(name)
  for _, entry in ipairs(self) do
    if entry.name == name then return entry end
  end
end

return plan
