--- Quantized checkpoints as others write them: what is read, and what is refused by file, key and value.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/../support.lua")
local golden = dofile(support.oracle .. "golden.lua")
local mav = require "mav"
local maverick = require "mav.maverick"
local op = mav.op

local MODELOPT, COMPRESSED = "maverick_modelopt_fp8", "scout_ct_fp8"
local IDS = { 320, 5, 9, 2, 7, 30, 44, 8, 61, 12 }
local NULL = mav.json.null

local tensors_of = {}

--- Loads a checkpoint whose files `change` has changed: function(tensors, config, hf), config of quantization_config; hf is the object
--- of hf_quant_config.json, and no file when it returns "no hf".
local function load(name, change, options)
  local dir <close> = support.directory()
  tensors_of[name] = tensors_of[name] or support.tensors(name)
  local raw, tensors, hf = support.config(name), {}, nil
  for key, t in pairs(tensors_of[name]) do tensors[key] = t end
  if name == MODELOPT then hf = assert(mav.json.decode(support.read(support.model_dir(name) .. "/hf_quant_config.json"))) end
  local result = change and change(tensors, raw, hf)
  support.checkpoint(dir.path, raw, tensors)
  if hf and result ~= "no hf" then support.write(dir.path .. "/hf_quant_config.json", mav.json.encode(hf)) end
  return maverick.load(dir.path, options)
end

local function logits(model, options)
  local kv, seq = golden.sequence(model, #IDS)
  return golden.flat(golden.feed(model, kv, seq, IDS, options))
end

local function equal(a, b)
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return #a == #b
end

local function refuses(name, code, text, change, options)
  local model, err = load(name, change, options)
  assert.is_nil(model, text)
  assert.is_truthy(tostring(err):find(text, 1, true), ("'%s' expected in: %s"):format(text, tostring(err)))
  assert.are.equal(code, err.code)
  assert.is_nil(tostring(err):find("\n", 1, true))
end

local function scalar(x, ...) return mav.tensor(x, { dtype = "f32", shape = { ... } }) end

--- Calls f(name, tensor) for tensors whose name matches.
local function each(tensors, what, f)
  local names = {}
  for name in pairs(tensors) do
    if name:find(what) then names[#names + 1] = name end
  end
  assert.is_true(#names > 0, what)
  table.sort(names)
  for _, name in ipairs(names) do f(name, tensors[name]) end
end

describe("ModelOpt checkpoints", function()
  local expected
  setup(function() expected = logits(assert(load(MODELOPT))) end)

  local function same(change, options)
    local model = assert(load(MODELOPT, change, options))
    assert.is_true(equal(expected, logits(model)))
    return model
  end

  it("are told by either file", function()
    same(function() return "no hf" end)
    same(function(_, raw) raw.quantization_config = nil end)
    same(function(_, raw) raw.quantization_config = NULL end)
    same(function(_, raw) raw.quantization_config, raw.text_config.quantization_config = nil, raw.quantization_config return "no hf" end)
    same(function(_, raw) raw.quantization_config.config_groups = nil end)
  end)

  it("have scales of any shape of one number", function()
    for _, shape in ipairs { { 1 }, { 1, 1 } } do
      same(function(tensors) each(tensors, "_scale$", function(name, t) tensors[name] = t:reshape(shape) end) end)
    end
    local model = assert(load(MODELOPT, function(tensors) -- a scale for every row, or for every expert
      each(tensors, "proj%.weight_scale$", function(name, t)
        local rows = tensors[name:gsub("_scale$", "")].shape[1]
        tensors[name] = scalar(t:reshape({ 1 }):get(1), rows, 1)
      end)
      each(tensors, "experts.*_weight_scale$", function(name, t) tensors[name] = scalar(t:reshape({ 1 }):get(1), 4, 1, 1) end)
    end))
    assert.are.same({ 4, 48 }, model.weights.layers[2].expert_up.scale.shape)
    assert.is_true(equal(expected, logits(model)))
    model = assert(load(MODELOPT, function(tensors) -- for every column of every expert
      each(tensors, "experts.*gate_up_proj_weight_scale$", function(name, t) tensors[name] = scalar(t:reshape({ 1 }):get(1), 4, 1, 96) end)
    end))
    assert.is_true(equal(expected, logits(model)))
  end)

  it("are named with and without language_model., exclude by name and by glob", function()
    local lists = { { "language_model.lm_head", "language_model.model.layers.*.feed_forward.router", "vision_model*" },
      { "lm_head", "*router*", "*vision*" }, {} }
    for _, list in ipairs(lists) do
      same(function(tensors, raw, hf)
        raw.quantization_config.ignore, hf.quantization.exclude_modules = mav.json.array(list), mav.json.array(list)
        each(tensors, "", function(name, t) tensors[name], tensors["language_model." .. name] = nil, t end)
        tensors["vision_model.x.weight"] = mav.zeros { 2, 2, dtype = "bf16" }
      end)
    end
  end)

  it("may leave modules as they were, if they say so", function()
    local module = "model.layers.0.self_attn.o_proj"
    local function change(tensors)
      tensors[module .. ".weight"] = tensors[module .. ".weight"]:to "bf16"
      tensors[module .. ".weight_scale"], tensors[module .. ".input_scale"] = nil, nil
    end
    refuses(MODELOPT, "UNSUPPORTED", module .. ".weight is bf16, but", change)
    for _, entry in ipairs { module, "*.o_proj", "model.layers.0.self_attn", "model.layers.0.self_attn.*",
      "model.layers.[0-1].*.o_proj" } do
      local model = load(MODELOPT, function(tensors, _, hf)
        change(tensors)
        table.insert(hf.quantization.exclude_modules, entry)
        if entry:find "%*" then -- the other modules that it means
          each(tensors, entry:gsub("%.", "%%."):gsub("%*", ".*"):gsub("%[0%-1%]", "[01]") .. "%.weight$", function(name, t)
            if t.dtype ~= "f8" then return end
            tensors[name] = t:to "bf16"
            tensors[name .. "_scale"], tensors[name:gsub("weight$", "input_scale")] = nil, nil
          end)
        end
      end)
      assert.is_truthy(model, entry)
      assert.are.equal("bf16", model.weights.layers[1].o.dtype)
    end
    refuses(MODELOPT, "UNSUPPORTED", module .. ".weight is f8, but", function(_, _, hf)
      table.insert(hf.quantization.exclude_modules, "*.o_proj")
    end)
  end)

  --- y of a matrix with static scales, by other ops than matmul's own rounding.
  local function rounded(x, w, scale, input)
    local codes = op.cast { x = op.cast { x = x * scalar(1 / input, 1), dtype = "f8" }, dtype = "f32" }
    return op.matmul { x = codes, w = op.cast { x = w, dtype = "f32" } } * scalar(input, 1) * scalar(scale, 1)
  end

  it("keep different scales of q, k and v, gate and up exact", function()
    local inputs, scales, codes = {}, {}, {}
    local function change(tensors)
      for _, layer in ipairs { 0, 1 } do
        local ffn = layer == 0 and "feed_forward." or "feed_forward.shared_expert."
        for i, name in ipairs { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", ffn .. "gate_proj", ffn .. "up_proj" } do
          local module = ("model.layers.%d.%s"):format(layer, name)
          local key = module:match "([^.]*)_proj$" .. layer
          inputs[key] = 2.0 ^ -(4 + i % 3) -- powers of two: dividing by them is exact
          tensors[module .. ".input_scale"] = scalar(inputs[key], 1)
          scales[key], codes[key] = tensors[module .. ".weight_scale"]:reshape({ 1 }):get(1), tensors[module .. ".weight"]
        end
      end
    end
    local model = assert(load(MODELOPT, change))
    local x = mav.tensor((function()
      local values = {}
      for i = 1, 3 * 64 do values[i] = math.sin(i) * 20 end
      return values
    end)(), { dtype = "f32", shape = { 3, 64 } })
    for layer = 0, 1 do
      local L = model.weights.layers[layer + 1]
      assert.is_nil(L.qkv)
      assert.is_true(L.apart)
      for _, key in ipairs { "q", "k", "v", "gate", "up" } do
        local name = key .. layer
        local e = golden.error(op.matmul { x = x, w = L[key] }, rounded(x, codes[name], scales[name], inputs[name]))
        assert.is_true(e < 1e-6, name .. ": " .. e)
      end
    end
    assert.is_truthy(model.weights.layers[3].qkv)
    assert.is_nil(model.weights.layers[3].apart)
    local on_ref = assert(load(MODELOPT, change, { runtime = assert(mav.runtime { device = "ref" }) }))
    local values = logits(model)
    assert.is_false(equal(expected, values))
    local cpu_unfused = logits(model, { fused = false })
    assert.is_true(golden.error(cpu_unfused, values) < 0.05)
    assert.is_true(golden.error(logits(on_ref), values) < 0.05)
    for _, mode in ipairs { { activations = "f32" }, { activations = "f32", dtype = "f32" } } do -- scales of inputs play no part
      local plain = logits(assert(load(MODELOPT, nil, mode)))
      assert.is_true(golden.error(logits(assert(load(MODELOPT, change, mode))), plain) < 1e-5)
    end
    local s <close> = model:session { context = 64 } -- captured graphs
    s:complete({ table.unpack(IDS) }, { max_tokens = 4, ignore_eos = true })
    assert.are.equal(#IDS + 4, s.length)
  end)

  it("ask for an FP8 cache, with scales or without", function()
    local model = assert(load(MODELOPT))
    assert.are.equal("f8", model:kv_dtype())
    assert.is_true(model.weights.k_scale[1] ~= 1)
    model = assert(load(MODELOPT, function(tensors) each(tensors, "[kv]_scale$", function(name) tensors[name] = nil end) end))
    assert.are.same({ 1, 1, 1, 1 }, model.weights.k_scale)
    assert.are.equal("f8", model:kv({ tokens = 16 }).dtype)
    same(function(tensors) -- by other names
      each(tensors, "[kv]_scale$", function(name, t) tensors[name], tensors[name:gsub("[kv]_proj%.", "")] = nil, t end)
    end)
    model = assert(load(MODELOPT, function(_, raw, hf)
      raw.quantization_config.kv_cache_scheme, hf.quantization.kv_cache_quant_algo = nil, nil
    end))
    assert.are.equal("f32", model:kv_dtype())
    refuses(MODELOPT, "RANGE", "model.layers.2.self_attn.v_proj.v_scale is 0",
      function(t) t["model.layers.2.self_attn.v_proj.v_scale"] = scalar(0) end)
    refuses(MODELOPT, "SHAPE", "self_attn.k_proj.k_scale is f32 (2)",
      function(t) t["model.layers.2.self_attn.k_proj.k_scale"] = scalar(1, 2) end)
  end)

  it("are refused when files contradict each other or the tensors", function()
    refuses(MODELOPT, "UNSUPPORTED", "quantization.quant_algo is null (not quantized)",
      function(_, _, hf) hf.quantization.quant_algo = NULL end)
    refuses(MODELOPT, "UNSUPPORTED", "quantization.quant_algo is \"FP8\", but quant_method of", function(_, raw)
      raw.quantization_config = support.config(COMPRESSED).quantization_config
    end)
    refuses(MODELOPT, "UNSUPPORTED", "tensor model.layers.0.self_attn.q_proj.weight is f8, and neither", function(_, raw)
      raw.quantization_config = nil
      return "no hf"
    end)
    refuses(MODELOPT, "NOTFOUND", "experts.down_proj is f8, and its model.layers.1.feed_forward.experts.down_proj_input_scale is missing",
      function(t) t["model.layers.1.feed_forward.experts.down_proj_input_scale"] = nil end)
    refuses(MODELOPT, "NOTFOUND", "its model.layers.0.self_attn.o_proj.weight_scale is missing",
      function(t) t["model.layers.0.self_attn.o_proj.weight_scale"] = nil end)
    refuses(MODELOPT, "DTYPE", "model.norm.weight is f8", function(t) t["model.norm.weight"] = t["model.norm.weight"]:to "f8" end)
    refuses(MODELOPT, "DTYPE", "feed_forward.router.weight is f8",
      function(t) t["model.layers.1.feed_forward.router.weight"] = t["model.layers.1.feed_forward.router.weight"]:to "f8" end)
    refuses(MODELOPT, "UNSUPPORTED", "lm_head.weight_scale belongs to lm_head.weight, which is not f8",
      function(t) t["lm_head.weight_scale"] = scalar(1) end)
  end)

  it("are refused when a scale is no scale", function()
    local name = "model.layers.0.self_attn.o_proj."
    for _, x in ipairs { 0, -1, math.huge, 0 / 0 } do
      refuses(MODELOPT, "RANGE", name .. "input_scale is", function(t) t[name .. "input_scale"] = scalar(x) end)
    end
    for _, x in ipairs { -1, math.huge, 0 / 0 } do
      refuses(MODELOPT, "RANGE", name .. "weight_scale: scales must be finite", function(t) t[name .. "weight_scale"] = scalar(x) end)
    end
    refuses(MODELOPT, "UNSUPPORTED", name .. "input_scale has shape (64)", function(t) t[name .. "input_scale"] = scalar(1, 64) end)
    refuses(MODELOPT, "UNSUPPORTED", name .. "weight_scale has shape (2, 3); one scale",
      function(t) t[name .. "weight_scale"] = scalar(1, 2, 3) end)
    refuses(MODELOPT, "DTYPE", name .. "weight_scale is i32", function(t) t[name .. "weight_scale"] = mav.zeros { 1, dtype = "i32" } end)
  end)

  it("of other algorithms are refused by name", function()
    for key, value in pairs { quant_algo = "NVFP4", kv_cache_quant_algo = "INT8", group_size = 16, has_zero_point = true } do
      refuses(MODELOPT, "UNSUPPORTED", ("hf_quant_config.json: quantization.%s is"):format(key),
        function(_, _, hf) hf.quantization[key] = value end)
    end
    for _, algo in ipairs { "W4A8_AWQ", "INT4_AWQ", "W8A8_SQ_PER_CHANNEL", "FP8_PB_WO", "MIXED_PRECISION" } do
      refuses(MODELOPT, "UNSUPPORTED", ("config.json: quantization_config.quant_algo is %q; only \"FP8\" is supported"):format(algo),
        function(_, raw) raw.quantization_config.quant_algo = algo return "no hf" end)
    end
    refuses(MODELOPT, "UNSUPPORTED", "config_groups.group_0.weights.num_bits is 4", function(_, raw)
      raw.quantization_config.config_groups.group_0.weights.num_bits = 4
    end)
    refuses(MODELOPT, "UNSUPPORTED", "quantization_config.quant_method is \"fbgemm_fp8\"", function(_, raw)
      raw.quantization_config.quant_method = "fbgemm_fp8"
    end)
  end)
end)

describe("compressed-tensors checkpoints", function()
  local expected
  setup(function() expected = logits(assert(load(COMPRESSED))) end)

  local function group(raw) return raw.quantization_config.config_groups.group_0 end

  it("have scales by channel or by tensor, in f32 or bf16", function()
    local model = assert(load(COMPRESSED, function(t) each(t, "weight_scale$", function(name, s) t[name] = s:to "f32" end) end))
    assert.is_true(equal(expected, logits(model)))
    model = assert(load(COMPRESSED, function(t) each(t, "weight_scale$", function(name, s) t[name] = s:reshape { s.shape[1] } end) end))
    assert.is_true(equal(expected, logits(model)))
    local function by_tensor(...)
      local shape = { ... }
      return function(t, raw)
        group(raw).weights.strategy = "tensor"
        each(t, "weight_scale$", function(name) t[name] = scalar(0.01, table.unpack(shape)) end)
      end
    end
    local values = logits(assert(load(COMPRESSED, by_tensor(1))))
    assert.is_true(equal(values, logits(assert(load(COMPRESSED, by_tensor(1, 1))))))
    assert.is_true(equal(values, logits(assert(load(COMPRESSED, by_tensor())))))
    model = assert(load(COMPRESSED, by_tensor(1)))
    assert.are.equal(1, model.weights.layers[1].gate.scale:count())
    assert.are.same({ 16, 32 }, model.weights.layers[1].expert_gate.scale.shape)
  end)

  it("round activations per token, with a stored scale, or not at all", function()
    local plain = logits(assert(load(COMPRESSED, nil, { activations = "f32" })))
    assert.is_true(golden.error(expected, plain) > 1e-3)
    for _, nothing in ipairs { NULL, false } do
      local model = assert(load(COMPRESSED, function(_, raw) group(raw).input_activations = nothing or nil end))
      assert.is_true(equal(plain, logits(model)))
    end
    local function static(tensors, raw)
      group(raw).input_activations = { num_bits = 8, type = "float", strategy = "tensor", dynamic = false, symmetric = true }
      each(tensors, "weight_scale$", function(name) tensors[name:gsub("weight_scale", "input_scale")] = scalar(0.02, 1) end)
    end
    local model = assert(load(COMPRESSED, static))
    assert.is_false(equal(plain, logits(model)))
    assert.is_true(equal(plain, logits(assert(load(COMPRESSED, static, { activations = "f32" })))))
    refuses(COMPRESSED, "UNSUPPORTED", "feed_forward.experts.15.gate_proj.weight: the experts of a layer",
      function(tensors, raw)
        static(tensors, raw)
        tensors["model.layers.1.feed_forward.experts.3.gate_proj.input_scale"] = scalar(0.03, 1)
      end)
    refuses(COMPRESSED, "UNSUPPORTED", "gate_proj.input_scale: activations before", function(tensors)
      tensors["model.layers.0.feed_forward.shared_expert.gate_proj.input_scale"] = scalar(0.03, 1)
    end)
  end)

  it("ignore by name, regular expression, and what cannot be told", function()
    for _, list in ipairs { { "re:^(?!.*feed_forward).*", "re:.*router$", "lm_head" }, { "re:(?x)strange", "model.layers" },
      { "re:(language_model\\.)?lm_head", "re:.*\\.self_attn\\.[qkvo]_proj$", "re:.*router.*" } } do
      local model = assert(load(COMPRESSED, function(_, raw) raw.quantization_config.ignore = list end))
      assert.is_true(equal(expected, logits(model)))
    end
    refuses(COMPRESSED, "UNSUPPORTED", "model.layers.0.self_attn.q_proj.weight is bf16, but", function(_, raw)
      raw.quantization_config.ignore = { "lm_head" }
    end)
    refuses(COMPRESSED, "UNSUPPORTED", "shared_expert.gate_proj.weight is f8, but", function(_, raw)
      table.insert(raw.quantization_config.ignore, "re:.*shared_expert.*")
    end)
    local model = assert(load(COMPRESSED, function(_, raw)
      group(raw).targets, raw.quantization_config.ignore = { "re:.*feed_forward\\.(experts|shared_expert)\\..*" }, {}
    end))
    assert.is_true(equal(expected, logits(model)))
  end)

  it("may have groups of their own for some modules", function()
    local model = assert(load(COMPRESSED, function(_, raw)
      local groups = raw.quantization_config.config_groups
      groups.group_0.targets = { "re:.*shared_expert.*" }
      groups.group_1 = { targets = { "re:.*experts\\.\\d+\\..*" }, weights = groups.group_0.weights }
    end))
    local values = logits(model)
    assert.is_false(equal(expected, values))
    assert.is_true(golden.error(values, expected) > 1e-4)
  end)

  it("may ask for an FP8 cache", function()
    local model = assert(load(COMPRESSED, function(tensors, raw)
      raw.quantization_config.kv_cache_scheme = { num_bits = 8, type = "float", strategy = "tensor", dynamic = false, symmetric = true }
      tensors["model.layers.1.self_attn.k_scale"] = scalar(0.5, 1)
    end))
    assert.are.equal("f8", model:kv_dtype())
    assert.are.same({ 1, 0.5, 1, 1 }, model.weights.k_scale)
  end)

  it("of other schemes are refused by key and value", function()
    local cases = {
      { "format is \"pack-quantized\"", function(_, raw) raw.quantization_config.format = "pack-quantized" end },
      { "format is \"nvfp4-pack-quantized\"", function(_, raw) raw.quantization_config.format = "nvfp4-pack-quantized" end },
      { "group_0.format is \"int-quantized\"", function(_, raw) group(raw).format = "int-quantized" end },
      { "weights.type is \"int\"", function(_, raw) group(raw).weights.type = "int" end },
      { "weights.num_bits is 4", function(_, raw) group(raw).weights.num_bits = 4 end },
      { "weights.strategy is \"block\"", function(_, raw) group(raw).weights.strategy = "block" end },
      { "weights.strategy is \"group\"", function(_, raw) group(raw).weights.strategy = "group" end },
      { "weights.group_size is 128", function(_, raw) group(raw).weights.group_size = 128 end },
      { "weights.symmetric is false", function(_, raw) group(raw).weights.symmetric = false end },
      { "weights is missing", function(_, raw) group(raw).weights = nil end },
      { "input_activations.strategy is \"tensor\"", function(_, raw) group(raw).input_activations.strategy = "tensor" end },
      { "input_activations.strategy is \"group\"", function(_, raw) group(raw).input_activations.strategy = "group" end },
      { "input_activations.type is \"int\"", function(_, raw) group(raw).input_activations.type = "int" end },
      { "output_activations is an object", function(_, raw) group(raw).output_activations = group(raw).input_activations end },
      { "kv_cache_scheme.num_bits is 4", function(_, raw)
        raw.quantization_config.kv_cache_scheme = { num_bits = 4, type = "float" }
      end },
      { "sparsity_config.format is \"sparse-24-bitmask\"", function(_, raw)
        raw.quantization_config.sparsity_config = { format = "sparse-24-bitmask" }
      end },
      { "quant_method is missing", function(_, raw) raw.quantization_config.quant_method = nil end },
    }
    for _, case in ipairs(cases) do
      refuses(COMPRESSED, "UNSUPPORTED", case[1], case[2])
      local _, err = load(COMPRESSED, case[2])
      assert.is_truthy(tostring(err):find("config.json: quantization_config.", 1, true), tostring(err))
    end
    refuses(COMPRESSED, "NOTFOUND", "config_groups is missing", function(_, raw) raw.quantization_config.config_groups = {} end)
    refuses(COMPRESSED, "RANGE", "quantization_config.ignore[1] is 7", function(_, raw) raw.quantization_config.ignore = { "a", 7 } end)
    refuses(COMPRESSED, "UNSUPPORTED", "weight_scale has shape (2, 1)", function(t)
      t["model.layers.0.feed_forward.experts.3.up_proj.weight_scale"] = scalar(1, 2, 1)
    end)
    refuses(COMPRESSED, "UNSUPPORTED", "no place in this architecture: model.layers.0.feed_forward.experts.0.up_proj.weight_z", function(t)
      t["model.layers.0.feed_forward.experts.0.up_proj.weight_zero_point"] = scalar(0, 1)
    end)
  end)

  it("take dtype and activations as options", function()
    local f32 = assert(load(COMPRESSED, nil, { dtype = "f32" }))
    assert.are.equal("f32", f32.weights.layers[1].expert_down.dtype)
    assert.is_true(golden.error(logits(f32), expected) < 1e-2)
    local fp8 = assert(load(COMPRESSED, nil, { dtype = "fp8" })) -- the rest as well
    assert.are.equal("f8", fp8.weights.layers[1].qkv.dtype)
    assert.has_error(function() load(COMPRESSED, nil, { activations = "f8" }) end, "maverick.load: activations: \"f32\" is allowed")
  end)
end)
