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

-- ---- the entries ------------------------------------------------------------------------------------------------------

local Plan = {}
Plan.__index = Plan

local function add_entry(self, entry, layer)
  local key, parts = entry.key, entry.parts
  local source = parts[1].dtype
  for _, part in ipairs(parts) do
    if part.dtype ~= source then source = "f32" end
  end
  self[#self + 1] = { name = (layer and ("layers.%d."):format(layer) or "") .. key, key = key, layer = layer, linear = entry.linear,
    shape = entry.shape, parts = parts, source = source, dtype = source, layout = "row", compress = self.compress,
    act = parts[1].act or "none", in_scale = parts[1].in_scale }
end

--- A checked plan of the directory. Raises conditions of the world.
---@param dir string
---@param options table   names (a recipe's renaming of source tensors), compress
function plan.read(dir, options)
  local c = fault.check(config.read(dir))
  local files = open_files(dir, options.names)
  local p, W, is_skipped, has_cache_scales = weights.planned(dir, c, files)
  local self = setmetatable({ config = c, files = files, compress = options.compress or false, dir = dir,
    kv = has_cache_scales and { k_scale = W.k_scale, v_scale = W.v_scale } or nil }, Plan)
  local layers = {}
  for i, L in ipairs(W.layers) do layers[L] = i - 1 end
  for _, entry in ipairs((weights.check(p, files, dir, c.quant, is_skipped))) do add_entry(self, entry, layers[entry.target]) end
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
