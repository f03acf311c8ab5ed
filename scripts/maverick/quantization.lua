--- What the files of a checkpoint say about its quantization.
---
---   compressed-tensors   quantization_config of config.json: FP8 weights with a scale per output channel or tensor; activations
---                        rounded per token (dynamic), with a stored scale (static), or not at all
---   ModelOpt             quantization_config of config.json, hf_quant_config.json, or both: FP8 weights and static scales of
---                        activations per tensor, an FP8 cache
---
--- Every other scheme is refused by file, key and value: codes that are read by another rule than the one that wrote them give noise.
--- Which tensors are quantized is told by the tensors themselves (weights.lua); here is what the config says about a module, so
--- that the two can be compared.
local fault = require "mav.maverick.fault"
local pattern = require "mav.maverick.pattern"
local reader_of = require "mav.maverick.reader"
local is_null = reader_of.is_null

local quantization = {}

local HELP = "convert the BF16 original, or load it with dtype \"fp8\""

local function refuse(reader, key, value, allowed)
  fault.raise("UNSUPPORTED", reader.file, "%s%s is %s; only %s is supported (or %s)", reader.prefix, key,
    is_null(value) and "missing" or fault.show(value), allowed, HELP)
end

--- A value that must be one of those given, or absent where `absent` is true.
local function expect(reader, object, key, values, absent)
  local value = object[key]
  if is_null(value) then
    if not absent then refuse(reader, key, value, fault.show(values[1])) end
    return
  end
  local names = {}
  for i, allowed in ipairs(values) do
    if value == allowed then return end
    names[i] = fault.show(allowed)
  end
  refuse(reader, key, value, table.concat(names, " or "))
end

--- Numbers of e4m3, with one scale where strategies says so.
local function expect_fp8(reader, object, strategies)
  expect(reader, object, "num_bits", { 8 })
  expect(reader, object, "type", { "float" })
  expect(reader, object, "symmetric", { true }, true)
  expect(reader, object, "strategy", strategies, true)
  for _, key in ipairs { "group_size", "block_structure", "actorder" } do
    if not is_null(object[key]) then refuse(reader, key, object[key], "null") end
  end
end

-- ---- which modules -----------------------------------------------------------------------------------------------------

--- A list of names and patterns. In ModelOpt's all are globs; in compressed-tensors those that begin with "re:" are regular
--- expressions.
local Names = {}
Names.__index = Names

local function new_names(lists, is_glob)
  local self = setmetatable({ exact = {}, patterns = {} }, Names)
  for _, list in ipairs(lists) do
    for _, text in ipairs(list) do
      if text:sub(1, 3) == "re:" then
        self.patterns[#self.patterns + 1] = pattern.regex(text:sub(4))
      elseif is_glob and text:find "[*?%[]" then
        self.patterns[#self.patterns + 1] = pattern.glob(text)
      else
        self.exact[text] = true
      end
    end
  end
  return self
end

--- The names a module goes by in text-only and multimodal checkpoints; `bare` begins with "model." or is "lm_head".
local function spellings(bare)
  return { bare, "language_model." .. bare, (bare:gsub("^model%.", "model.language_model.")) }
end

--- Is the module meant? nil: a pattern that is not understood, or the name of one of its parents, may mean it.
function Names:has(bare)
  local sure, parents = true, {}
  for _, name in ipairs(spellings(bare)) do
    if self.exact[name] then return true end
    for _, matches in ipairs(self.patterns) do
      local found = matches(name)
      if found then return true end
      if found == nil then sure = false end
    end
    local parent = name:match "^(.*)%.[^.]*$"
    while parent do
      parents[#parents + 1] = parent
      parent = parent:match "^(.*)%.[^.]*$"
    end
  end
  for _, parent in ipairs(parents) do
    if self.exact[parent] then return nil end
  end
  if sure then return false end
  return nil
end

--- What the files say about the quantization of a checkpoint.
local Scheme = {}
Scheme.__index = Scheme

--- How the weight of a module is quantized, as the config has it: a group (act: "none", "static" or "dynamic"); false: it is not;
--- nil: that cannot be told.
---@param bare string   name without "language_model." and ".weight"
---@param is_linear boolean   a linear layer of its own, which targets call "Linear"; not a stack of experts
function Scheme:group(bare, is_linear)
  local ignored = self.ignore:has(bare)
  if ignored then return false end
  is_linear = is_linear or self.is_fused
  local found
  for _, group in ipairs(self.groups) do
    local is_target = group.targets:has(bare)
    if is_target == nil then ignored = nil end
    if is_target then found = found or group end
  end
  for _, group in ipairs(self.groups) do
    if is_linear and group.targets.exact.Linear then found = found or group end
  end
  if ignored == nil or (not found and not is_linear) then return nil end
  return found or false
end

--- The only way in which activations are rounded, for tensors of which group says nothing.
function Scheme:only_act()
  local act = self.groups[1].act
  for _, group in ipairs(self.groups) do
    if group.act ~= act then return nil end
  end
  return act
end

-- ---- compressed-tensors --------------------------------------------------------------------------------------------------

local FORMATS = { "float-quantized", "naive-quantized" }

--- How a group rounds activations.
local function read_act(reader, group)
  local input = reader:object(group, "input_activations")
  if not input then return "none" end
  reader = reader:within "input_activations."
  if input.dynamic == true then
    expect_fp8(reader, input, { "token" })
    if is_null(input.strategy) then refuse(reader, "strategy", input.strategy, "\"token\"") end
    return "dynamic"
  end
  expect(reader, input, "dynamic", { false }, true)
  expect_fp8(reader, input, { "tensor" })
  return "static"
end

local function read_group(reader, name, group)
  local inside = reader:within(name .. ".")
  expect(inside, group, "format", FORMATS, true)
  local w = reader:within(name .. "."):object(group, "weights")
  if not w then refuse(inside, "weights", group.weights, "an object") end
  local of_weights = inside:within "weights."
  expect_fp8(of_weights, w, { "channel", "tensor" })
  expect(of_weights, w, "dynamic", { false }, true)
  if not is_null(group.output_activations) then refuse(inside, "output_activations", group.output_activations, "null") end
  local targets = inside:strings(group, "targets")
  if #targets == 0 then inside:fail("targets", nil, "a list of modules is needed") end
  return { name = name, act = read_act(inside, group), targets = new_names { targets } }
end

local function read_compressed(reader, q)
  expect(reader, q, "format", FORMATS, true)
  local sparsity = reader:object(q, "sparsity_config")
  if sparsity then expect(reader:within "sparsity_config.", sparsity, "format", { "dense" }, true) end
  local transform = reader:object(q, "transform_config")
  if transform and next(transform) ~= nil then refuse(reader, "transform_config", transform, "null") end
  local object = reader:object(q, "config_groups")
  if not object or next(object) == nil then reader:fail("config_groups", nil, "an object of groups is needed") end
  local names, groups = {}, {}
  for name in pairs(object) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do
    local inside = reader:within "config_groups."
    groups[i] = read_group(inside, name, inside:object(object, name) or inside:fail(name, nil, "an object is allowed"))
  end
  local kv = reader:object(q, "kv_cache_scheme")
  if kv then
    local inside = reader:within "kv_cache_scheme."
    expect_fp8(inside, kv, { "tensor" })
    expect(inside, kv, "dynamic", { false }, true)
  end
  return { name = ("compressed-tensors %s"):format(is_null(q.format) and "float-quantized" or q.format), groups = groups,
    ignore = new_names { reader:strings(q, "ignore") }, kv = kv and "f8" or nil }
end

-- ---- ModelOpt --------------------------------------------------------------------------------------------------------------

--- quantization_config of ModelOpt, beyond what it has in common with hf_quant_config.json.
local function check_modelopt_config(reader, q)
  for name, group in pairs(reader:object(q, "config_groups") or {}) do
    local inside = reader:within(("config_groups.%s."):format(name))
    if type(group) ~= "table" then inside:fail("weights", nil, "an object is allowed") end
    for _, key in ipairs { "weights", "input_activations" } do
      local args = inside:object(group, key)
      if not args then refuse(inside, key, group[key], "an object") end
      expect_fp8(inside:within(key .. "."), args, { "tensor" })
      expect(inside:within(key .. "."), args, "dynamic", { false }, true)
    end
  end
  local kv = reader:object(q, "kv_cache_scheme")
  if kv then
    expect_fp8(reader:within "kv_cache_scheme.", kv, { "tensor" })
    expect(reader:within "kv_cache_scheme.", kv, "dynamic", { false }, true)
  end
  return kv and "f8" or nil
end

--- What both files may have: quant_algo, kv_cache_quant_algo and others.
local function check_modelopt(reader, object)
  expect(reader, object, "quant_algo", { "FP8" })
  expect(reader, object, "kv_cache_quant_algo", { "FP8" }, true)
  expect(reader, object, "has_zero_point", { false }, true)
  expect(reader, object, "pre_quant_scale", { false }, true)
  expect(reader, object, "group_size", { 0 }, true)
  return not is_null(object.kv_cache_quant_algo) and "f8" or nil
end

--- q: quantization_config; hf: "quantization" of hf_quant_config.json; one of them may be nil.
local function read_modelopt(reader, q, hf_reader, hf)
  local kv, lists = nil, {}
  if hf then
    kv = check_modelopt(hf_reader, hf)
    lists[#lists + 1] = hf_reader:strings(hf, "exclude_modules")
  end
  if q then
    if is_null(q.quant_algo) and not hf then reader:fail("quant_algo", nil, "\"FP8\" is allowed") end
    local own = is_null(q.quant_algo) and {} or q
    if own == q then kv = check_modelopt(reader, q) or kv end
    kv = check_modelopt_config(reader, q) or kv
    lists[#lists + 1] = reader:strings(q, "ignore")
    lists[#lists + 1] = reader:strings(q, "exclude_modules")
  end
  return { name = "modelopt FP8", ignore = new_names(lists, true), kv = kv,
    is_fused = true, -- it quantizes stacks of experts too
    groups = { { name = "quant_algo FP8", act = "static", targets = new_names { { "Linear" } } } } }
end

-- ---- the files ---------------------------------------------------------------------------------------------------------------

--- The object "quantization" of hf_quant_config.json and its reader; nil when there is none. quant_algo null: "not quantized".
local function read_hf(dir)
  local path = dir .. "/hf_quant_config.json"
  if not reader_of.exists(path) then return nil end
  local reader = reader_of.new(path)
  return reader:object(reader_of.read_json(path), "quantization"), reader:within "quantization."
end

--- The quantization of the checkpoint in `dir`; nil: there is none. Raises conditions of the world.
---
---   name, file     of the scheme and of the file that states it, for messages
---   group, only_act   above
---   kv             "f8": the cache is meant to be FP8; nil: nothing is said
---@param reader table   of config.json
---@param raw table      its object
---@param text table|nil   its text_config
---@param dir string
---@return table|nil
function quantization.read(reader, raw, text, dir)
  local q, at = reader:object(raw, "quantization_config"), reader:within "quantization_config."
  if not q and text and text ~= raw then
    q, at = reader:within("text_config."):object(text, "quantization_config"), reader:within "text_config.quantization_config."
  end
  local hf, hf_reader = read_hf(dir)
  local is_hf = hf ~= nil and not is_null(hf.quant_algo)
  if not q and not is_hf then return nil end
  local method, scheme = q and q.quant_method, nil
  if q and method == "compressed-tensors" then
    if is_hf then
      fault.raise("UNSUPPORTED", hf_reader.file, "quantization.quant_algo is %s, but quant_method of %s is \"compressed-tensors\"; "
        .. "remove the file that does not belong to the tensors", fault.show(hf.quant_algo), reader.file)
    end
    scheme = read_compressed(at, q)
  elseif not q or method == "modelopt" then
    if q and hf and not is_hf then
      fault.raise("UNSUPPORTED", hf_reader.file, "quantization.quant_algo is null (not quantized), but quant_method of %s is \"modelopt\"; "
        .. "remove the file that does not belong to the tensors", reader.file)
    end
    scheme = read_modelopt(at, q, hf_reader, is_hf and hf or nil)
  else
    refuse(at, "quant_method", method, "\"compressed-tensors\" or \"modelopt\"")
  end
  scheme.file = q and reader.file or hf_reader.file
  return setmetatable(scheme, Scheme)
end

return quantization
