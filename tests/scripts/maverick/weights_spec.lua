local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/../support.lua")
local golden = dofile(support.oracle .. "golden.lua")
local mav = require "mav"
local maverick = require "mav.maverick"

local NAME = "notemp"

--- Loads a checkpoint whose config and tensors `change` has changed.
local function load(change, options)
  local dir <close> = support.directory()
  local config, tensors = support.config(NAME), support.tensors(NAME)
  if change then change(tensors, config) end
  support.checkpoint(dir.path, config, tensors)
  return maverick.load(dir.path, options)
end

local function logits(model)
  local ids = { 1, 5, 9, 2, 7, 30 }
  local kv, seq = golden.sequence(model, #ids)
  return golden.flat(golden.feed(model, kv, seq, ids))
end

local function zeros(...) return mav.zeros { dtype = "bf16", ... } end

describe("weights", function()
  local expected
  setup(function() expected = logits(assert(load())) end)

  it("name missing tensors: how many, and the first", function()
    local model, err = load(function(t) t["model.layers.1.self_attn.k_proj.weight"] = nil end)
    assert.is_nil(model)
    assert.are.equal("NOTFOUND", err.code)
    local text = tostring(err)
    assert.is_truthy(text:find("1 tensor that config.json asks for is missing: model.layers.1.self_attn.k_proj.weight", 1, true), text)
    model, err = load(function(t)
      for name in pairs(t) do
        if name:find("mlp") or name:find("layers%.[23]%.") then t[name] = nil end
      end
    end)
    assert.is_nil(model)
    assert.is_truthy(tostring(err):find("%d+ tensors .* are missing: .*%.%.%."), tostring(err))
  end)

  it("name a tensor of a wrong shape, and both shapes", function()
    local model, err = load(function(t) t["model.layers.0.self_attn.o_proj.weight"] = zeros(64, 32) end)
    assert.is_nil(model)
    assert.are.equal("SHAPE", err.code)
    local text = tostring(err)
    assert.is_truthy(text:find("/model.safetensors: tensor", 1, true), text)
    assert.is_truthy(text:find("model.layers.0.self_attn.o_proj.weight has shape (64, 32); config.json asks for (64, 64)", 1, true), text)
    model, err = load(function(_, config) config.hidden_size = 128 end)
    assert.is_nil(model)
    text = tostring(err)
    assert.is_truthy(text:find("model.embed_tokens.weight has shape (352, 64); config.json asks for (352, 128)", 1, true), text)
  end)

  it("refuse tensors with no place, and types that are no numbers to compute with", function()
    local model, err = load(function(t) t["model.layers.0.self_attn.q_proj.bias"] = zeros(64) end)
    assert.is_nil(model)
    assert.is_truthy(tostring(err):find("q_proj.bias", 1, true), tostring(err))
    model, err = load(function(t) t["model.norm.weight"] = mav.zeros { 64, dtype = "i32" } end)
    assert.is_nil(model)
    assert.is_truthy(tostring(err):find("model.norm.weight is i32", 1, true), tostring(err))
  end)

  it("report a directory without safetensors", function()
    local dir <close> = support.directory()
    support.checkpoint(dir.path, support.config(NAME))
    local model, err = maverick.load(dir.path)
    assert.is_nil(model)
    assert.is_truthy(tostring(err):find(dir.path, 1, true), tostring(err))
  end)

  it("are found under language_model., with vision tensors beside them", function()
    local model = assert(load(function(t)
      local names = {}
      for name in pairs(t) do names[#names + 1] = name end
      for _, name in ipairs(names) do t["language_model." .. name], t[name] = t[name], nil end
      t["vision_model.patch.weight"], t["multi_modal_projector.linear_1.weight"] = zeros(2, 2), zeros(2, 2)
    end))
    assert.are.same(expected, logits(model))
  end)

  it("may be split by expert", function()
    local model = assert(load(function(t)
      local fused = {}
      for name in pairs(t) do
        if name:find("experts%.gate_up_proj$") then fused[#fused + 1] = name end
      end
      for _, name in ipairs(fused) do
        local base = name:match("^(.*)gate_up_proj$")
        local gate_up, down = t[name], t[base .. "down_proj"]
        local F = gate_up.shape[3] // 2
        for e = 1, gate_up.shape[1] do
          local one = gate_up:select(1, e)
          local prefix = ("%s%d."):format(base, e - 1)
          t[prefix .. "gate_proj.weight"] = one:slice(2, 1, F):transpose(1, 2):contiguous()
          t[prefix .. "up_proj.weight"] = one:slice(2, F + 1, 2 * F):transpose(1, 2):contiguous()
          t[prefix .. "down_proj.weight"] = down:select(1, e):transpose(1, 2):contiguous()
        end
        t[name], t[base .. "down_proj"] = nil, nil
      end
    end))
    assert.are.same(expected, logits(model))
  end)

  it("are not planned beyond what the files can hold", function()
    local before = collectgarbage "count"
    local model, err = load(function(t, config)
      for layer = 0, 4 do t[("model.layers.%d.feed_forward.experts.0.gate_proj.weight"):format(layer)] = zeros(32, 64) end
      for name in pairs(t) do
        if name:find "gate_up_proj$" then t[name] = nil end
      end
      config.num_local_experts, config.num_hidden_layers = 4096, 1024
      config.moe_layers, config.no_rope_layers = nil, nil
    end)
    assert.is_nil(model)
    assert.is_truthy(tostring(err):find("missing", 1, true), tostring(err))
    assert.is_true(collectgarbage "count" - before < 64 * 1024)
  end)

  it("keep their storage type, and may be of several", function()
    local model = assert(load())
    assert.are.equal("bf16", model.weights.layers[1].qkv.dtype)
    model = assert(load(function(t) t["model.layers.0.self_attn.q_proj.weight"] = t["model.layers.0.self_attn.q_proj.weight"]:to "f32" end))
    assert.are.equal("f32", model.weights.layers[1].qkv.dtype)
    assert.is_true(golden.error(logits(model), expected) < 1e-5)
    model = assert(load(nil, { dtype = "f32" }))
    assert.are.equal("f32", model.weights.layers[1].gate.dtype)
    assert.is_true(golden.error(logits(model), expected) < 1e-5)
  end)

  it("become fp8 while loading: linear layers only, near the original", function()
    local model = assert(load(nil, { dtype = "fp8" }))
    local W = model.weights
    local dense, moe = W.layers[2], W.layers[1]
    for _, t in ipairs { dense.qkv, dense.o, dense.gate, dense.up, dense.down, moe.expert_gate, moe.expert_up, moe.expert_down } do
      assert.are.equal("f8", t.dtype)
      assert.is_truthy(t.scale)
    end
    for _, t in ipairs { W.embed, W.head, W.norm, dense.attn_norm, moe.router } do assert.are.equal("bf16", t.dtype) end
    assert.are.same({ 4, 32 }, moe.expert_gate.scale.shape)
    assert.is_true(golden.error(logits(model), expected) > 1e-4)
  end)

  --- What a matrix (N, D) is worth after quantization.
  local function rounded(t)
    local q = t:contiguous():quantize()
    return (mav.op.cast { x = q, dtype = "f32" } * q.scale:reshape { t.shape[1], 1 })
  end

  it("as fp8 compute with code times scale", function()
    local model = assert(load(function(t)
      for name, tensor in pairs(t) do
        if name:find "_proj.weight$" then
          t[name] = rounded(tensor)
        elseif name:find "experts%." then -- input-major
          local wide = tensor:to "f32"
          for e = 1, wide.shape[1] do wide:select(1, e):copy_from(rounded(tensor:select(1, e):transpose(1, 2)):transpose(1, 2)) end
          t[name] = wide
        end
      end
    end))
    assert.are.equal("f32", model.weights.layers[1].expert_gate.dtype)
    local e = golden.error(logits(assert(load(nil, { dtype = "fp8" }))), logits(model))
    assert.is_true(e < 1e-5, "error " .. e)
  end)

  it("report progress up to the end", function()
    local calls, done, bytes = 0, 0, 0
    assert(load(nil, { progress = function(d, b)
      assert.is_true(d >= done)
      calls, done, bytes = calls + 1, d, b
    end }))
    assert.is_true(calls > 10)
    assert.are.equal(bytes, done)
  end)
end)
