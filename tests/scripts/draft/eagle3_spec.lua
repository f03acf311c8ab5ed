--- Files of EAGLE-3 heads: the variants that are read, and what is refused with its name.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/../support.lua")
local mav = require "mav"
local maverick = require "mav.maverick"
local eagle3 = require "mav.draft.eagle3"

describe("an EAGLE-3 head", function()
  local model
  setup(function() model = assert(maverick.load(support.model_dir "maverick", { device = "cpu", threads = 1 })) end)

  --- Loads a head whose config and tensors `change` has changed.
  local function load(name, change, options)
    local dir <close> = support.directory()
    local config, tensors = support.config(name), support.tensors(name)
    if change then change(config, tensors, dir.path) end
    support.checkpoint(dir.path, config, tensors)
    return eagle3.load(dir.path, model, options)
  end

  local function refuses(name, code, text, change)
    local drafter, err = load(name, change)
    assert.is_nil(drafter)
    assert.is_truthy(tostring(err):find(text, 1, true), tostring(err))
    assert.are.equal(code, err.code)
  end

  --- Drafts of the head after a text.
  local function drafts(drafter)
    local s <close> = model:session { strategy = { draft = drafter, policy = 4 } }
    local out = {}
    s:complete({ 5, 6, 7, 8, 9, 10, 11, 12 }, { max_tokens = 1, ignore_eos = true })
    return { table.unpack(out, 1, s:drafts(out)) }
  end

  it("is read as NVIDIA and as others store it", function()
    local full = assert(load "eagle3_full").head
    assert.are.same({ 2, 4, 5 }, full.config.aux) -- layers 1, n/2 - 1, n - 4 from 0
    assert.are.same({ 160, 32, 500000 }, { full.config.size, full.config.head_dim, full.config.rope.theta })
    assert.is_nil(full.targets)
    local d2t = assert(load "eagle3_d2t").head
    assert.are.same({ 3, 5, 7 }, d2t.config.aux)
    assert.are.same({ 128, 16, 10000, 640 }, { d2t.config.size, d2t.config.head_dim, d2t.config.rope.theta, d2t.config.draft_vocab })
    assert.are.equal(640, d2t.targets:count())
    assert.are.equal(model.weights.embed, d2t.embed) -- the file's is a copy
  end)

  it("has the defaults of its architecture", function()
    local c = assert(load("eagle3_d2t", function(raw)
      raw.rope_theta, raw.head_dim, raw.num_hidden_layers, raw.torch_dtype, raw.architectures = nil, mav.json.null, nil, nil, nil
      raw.eagle_aux_hidden_state_layer_ids = { 0, 1, 7 }
    end)).head.config
    assert.are.same({ 10000, 16 }, { c.rope.theta, c.head_dim })
    assert.are.same({ 1, 2, 8 }, c.aux) -- before those of eagle_config
    c = assert(load("eagle3_full", function(raw) raw.draft_vocab_size = nil end)).head.config
    assert.are.equal(2080, c.draft_vocab)
  end)

  it("drafts the same in every spelling", function()
    local expected = drafts(assert(load "eagle3_d2t"))
    assert.are.equal(4, #expected)
    assert.are.same(expected, drafts(assert(load("eagle3_d2t", function(_, t)
      for _, name in ipairs { "input_layernorm", "hidden_norm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
        "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj" } do
        local from = "layers.0." .. name .. ".weight"
        t["midlayer." .. name .. ".weight"], t[from] = t[from], nil
      end
    end))))
    assert.are.same(expected, drafts(assert(load("eagle3_d2t", function(_, t) t.t2d, t["embed_tokens.weight"] = nil, nil end))))
    assert.are.same(expected, drafts(assert(load("eagle3_d2t", function(_, t) t.d2t = t.d2t:to "i32" end))))
    assert.are.same(expected, drafts(assert(load("eagle3_d2t", function(c)
      local layer = {}
      for key, value in pairs(c) do layer[key] = value end
      for key in pairs(c) do c[key] = nil end
      c.draft_vocab_size, c.transformer_layer_config = 640, layer
      c.eagle_aux_hidden_state_layer_ids, layer.eagle_config = layer.eagle_config.eagle_aux_hidden_state_layer_ids, nil
    end))))
  end)

  it("may use the model's output embedding, or an embedding of its own", function()
    local head = assert(load("eagle3_full", function(_, t) t["lm_head.weight"] = nil end)).head
    assert.are.equal(model.weights.head, head.head)
    head = assert(load("eagle3_d2t", function(_, t) t["embed_tokens.weight"]:select(1, 1):set(3, 7) end)).head
    assert.are.equal(7, head.embed:get(1, 3))
  end)

  it("can be quantized on the way", function()
    local head = assert(load("eagle3_full", nil, { dtype = "fp8" })).head
    assert.are.same({ "f8", "f8", "f8", "f8", "bf16" },
      { head.qkv.dtype, head.fc.dtype, head.o.dtype, head.down.dtype, head.head.dtype })
    assert.are.equal("f32", assert(load("eagle3_full", nil, { dtype = "f32" })).head.fc.dtype)
    assert.has_error(function() load("eagle3_full", nil, { type = "fp8" }) end, "draft.eagle3: unknown option 'type'")
  end)

  it("must fit the model", function()
    refuses("eagle3_full", "RANGE", "config.json: hidden_size is 96; that of the model, 80, is allowed", function(c) c.hidden_size = 96 end)
    refuses("eagle3_full", "RANGE", "vocab_size is 2081; that of the model, 2080, is allowed", function(c) c.vocab_size = 2081 end)
    refuses("eagle3_d2t", "RANGE", "eagle_config.eagle_aux_hidden_state_layer_ids[2] is 8; an integer from 0 to 7 is allowed",
      function(c) c.eagle_config.eagle_aux_hidden_state_layer_ids[3] = 8 end)
    refuses("eagle3_d2t", "RANGE", "eagle_config.eagle_aux_hidden_state_layer_ids[1] is 2; ascending numbers are allowed",
      function(c) c.eagle_config.eagle_aux_hidden_state_layer_ids[2] = 2 end)
    refuses("eagle3_full", "RANGE", "draft_vocab_size is 2081; an integer from 1 to 2080 is allowed",
      function(c) c.draft_vocab_size = 2081 end)
  end)

  it("is refused by name when its mathematics are others", function()
    for key, value in pairs { norm_before_fc = true, fc_norm = true, norm_before_residual = true, mlp_bias = true, hidden_act = "gelu" } do
      refuses("eagle3_full", "UNSUPPORTED", ("config.json: %s = "):format(key), function(c) c[key] = value end)
    end
    refuses("eagle3_full", "UNSUPPORTED", "eagle_config.use_mtp_layernorm = true is not supported",
      function(c) c.eagle_config.use_mtp_layernorm = true end)
    refuses("eagle3_full", "UNSUPPORTED", "eagle_config.use_aux_hidden_state = false is not supported",
      function(c) c.eagle_config.use_aux_hidden_state = false end)
    refuses("eagle3_full", "UNSUPPORTED", "rope_scaling.rope_type \"yarn\" is not supported",
      function(c) c.rope_scaling.rope_type = "yarn" end)
    refuses("eagle3_full", "UNSUPPORTED", "modelopt FP8", function(_, _, path)
      support.write(path .. "/hf_quant_config.json", '{"quantization": {"quant_algo": "FP8"}}')
    end)
    assert.is_truthy(load("eagle3_full", function(_, _, path)
      support.write(path .. "/hf_quant_config.json", '{"quantization": {"quant_algo": null}}')
    end))
    refuses("eagle3_full", "RANGE", "num_hidden_layers is 2", function(c) c.num_hidden_layers = 2 end)
    refuses("eagle3_full", "UNSUPPORTED", "no place in this architecture: midlayer.self_attn.q_proj.bias",
      function(_, t) t["midlayer.self_attn.q_proj.bias"] = mav.zeros { 128 } end)
  end)

  it("is checked before anything is copied", function()
    refuses("eagle3_full", "NOTFOUND", "intermediate_size_mlp is missing", function(c) c.intermediate_size_mlp = nil end)
    refuses("eagle3_full", "NOTFOUND", "1 tensor that config.json asks for is missing: fc.weight", function(_, t) t["fc.weight"] = nil end)
    refuses("eagle3_d2t", "NOTFOUND", "missing: lm_head.weight", function(_, t) t["lm_head.weight"] = nil end)
    refuses("eagle3_full", "SHAPE", "tensor fc.weight has shape (80, 160); config.json asks for (80, 240)",
      function(_, t) t["fc.weight"] = mav.zeros { 80, 160 } end)
    refuses("eagle3_d2t", "NOTFOUND", "tensor d2t is missing; draft_vocab_size 640 is less than vocab_size 2080",
      function(_, t) t.d2t = nil end)
    refuses("eagle3_d2t", "RANGE", "d2t[639] is 2000: target id 2639 is outside the vocabulary of 2080",
      function(_, t) t.d2t:set(640, 2000) end)
    refuses("eagle3_d2t", "RANGE", "d2t[0] is -1: target id -1 is outside the vocabulary of 2080", function(_, t) t.d2t:set(1, -1) end)
    refuses("eagle3_d2t", "RANGE", "occurs twice", function(_, t) t.d2t:set(2, t.d2t:get(1) - 1) end)
    refuses("eagle3_d2t", "SHAPE", "tensor d2t has shape (10); draft_vocab_size asks for (640)",
      function(_, t) t.d2t = mav.zeros { 10, dtype = "i64" } end)
    refuses("eagle3_d2t", "DTYPE", "tensor d2t is f32; i64 or i32 is allowed", function(_, t) t.d2t = mav.zeros { 640 } end)
    local drafter, err = eagle3.load("/nonexistent", model)
    assert.is_nil(drafter)
    assert.is_truthy(tostring(err):find "/nonexistent")
  end)
end)
