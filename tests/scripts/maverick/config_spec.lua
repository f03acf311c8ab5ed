local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/../support.lua")
local mav = require "mav"
local config = require "mav.maverick.config"

--- Reads a config that `change` made from the one of an oracle model.
local function read(name, change)
  local dir <close> = support.directory()
  local raw = support.config(name)
  if change then change(raw, raw.text_config or raw) end
  support.write(dir.path .. "/config.json", mav.json.encode(raw))
  return config.read(dir.path)
end

describe("config", function()
  it("reads text-only configs of the old spelling", function()
    local c = assert(read "maverick")
    assert.are.equal(80, c.hidden)
    assert.are.equal(10, c.heads)
    assert.are.equal(2, c.kv_heads)
    assert.are.same({ false, true, false, true, false, true, false, true }, c.is_moe)
    assert.are.same({ 16, 16, 16, 0, 16, 16, 16, 0 }, c.chunks)
    assert.are.equal(8, c.rope.factor)
    assert.is_false(c.qk_norm)
    assert.is_true(c.temperature)
    assert.are.same({ 2049, 2055, 2056 }, c.eos)
    assert.are.equal(2048, c.bos)
  end)

  it("reads multimodal configs", function()
    local c = assert(read "maverick_mm")
    assert.are.equal(64, c.hidden)
    assert.is_true(c.temperature) -- 4
    assert.is_nil(c.rope.factor) -- null
    assert.are.same({ true, true, true, false }, c.is_rope) -- an empty no_rope_layers
  end)

  it("reads the new spelling", function()
    local c = assert(read "tied")
    assert.is_true(c.tied)
    assert.are.equal(500000, c.rope.theta)
    assert.are.equal(32, c.rope.original)
  end)

  it("has the defaults of the architecture", function()
    local c = assert(read("maverick", function(raw)
      for _, key in ipairs { "head_dim", "use_qk_norm", "attn_temperature_tuning", "floor_scale", "attn_scale", "attention_chunk_size",
        "rope_theta", "rms_norm_eps", "interleave_moe_layer_step", "no_rope_layers", "num_experts_per_tok", "num_local_experts",
        "tie_word_embeddings", "rope_scaling", "hidden_act", "attention_bias" } do raw[key] = nil end
    end))
    assert.are.equal(128, c.head_dim)
    assert.is_true(c.qk_norm)
    assert.is_true(c.temperature)
    assert.are.equal(8192, c.floor_scale)
    assert.are.equal(0.1, c.attn_scale)
    assert.are.equal(8192, c.chunk)
    assert.are.equal(500000, c.rope.theta)
    assert.are.equal(1e-5, c.eps)
    assert.are.equal(16, c.experts)
    assert.are.equal(1, c.top_k)
    assert.is_false(c.tied)
    for i = 1, c.layers do
      assert.is_true(c.is_moe[i])
      assert.are.equal(i % 4 ~= 0, c.is_rope[i])
    end
  end)

  it("follows null, both levels and lists", function()
    assert.are.equal(8, assert(read("maverick", function(raw) raw.head_dim = mav.json.null end)).head_dim) -- 80 / 10
    assert.is_true(assert(read("maverick_mm", function(raw) raw.tie_word_embeddings = true end)).tied)
    assert.is_true(assert(read("maverick_mm", function(raw, text) raw.tie_word_embeddings, text.tie_word_embeddings = nil, true end)).tied)
    assert.is_false(assert(read("maverick", function(raw) raw.attn_temperature_tuning = 0 end)).temperature)
    assert.are.same({ true, false, false, true, false, false, false, false },
      assert(read("maverick", function(raw) raw.moe_layers = { 0, 3 } end)).is_moe)
    assert.are.same({ 7 }, assert(read("maverick", function(raw) raw.eos_token_id = 7 end)).eos)
    assert.are.equal(10, assert(read("maverick", function(raw) raw.num_key_value_heads = mav.json.null end)).kv_heads)
    assert.is_nil(assert(read("maverick", function(raw) raw.rope_scaling = { rope_type = "default" } end)).rope.factor)
    assert.are.equal(8, assert(read("maverick", function(raw)
      raw.rope_scaling.type, raw.rope_scaling.rope_type = "llama3", nil
    end)).rope.factor)
  end)

  it("computes the frequencies of llama3 scaling", function()
    local plain = config.inverse_frequencies(128, { theta = 500000 })
    local scout = config.inverse_frequencies(128, { theta = 500000, factor = 16, low = 1, high = 1, original = 8192 })
    for i = 1, 64 do -- low == high: one border, no middle band
      assert.are.equal(2 * math.pi / plain[i] > 8192 and plain[i] / 16 or plain[i], scout[i])
    end
    local banded = config.inverse_frequencies(128, { theta = 500000, factor = 8, low = 1, high = 4, original = 8192 })
    assert.are.equal(plain[1], banded[1])
    assert.are.equal(plain[64] / 8, banded[64])
    for i = 1, 64 do assert.is_true(banded[i] <= plain[i] and banded[i] >= plain[i] / 8) end
  end)

  local ABSURD = {
    { "hidden_size", -5 }, { "hidden_size", 1e18 }, { "hidden_size", "80" }, { "hidden_size", 80.5 }, { "hidden_size", mav.json.null },
    { "vocab_size", 0 }, { "vocab_size", 1 << 40 }, { "num_hidden_layers", 0 }, { "num_hidden_layers", 1000000 },
    { "num_attention_heads", 0 }, { "num_key_value_heads", 3 }, { "num_key_value_heads", 0 }, { "num_key_value_heads", 20 },
    { "head_dim", 15 }, { "head_dim", 0 }, { "head_dim", 1 << 30 }, { "intermediate_size", -1 }, { "intermediate_size_mlp", 0 },
    { "num_local_experts", 0 }, { "num_local_experts", 1 << 31 }, { "num_experts_per_tok", 9 }, { "num_experts_per_tok", 0 },
    { "attention_chunk_size", 0 }, { "attention_chunk_size", mav.json.null }, { "rms_norm_eps", 0 }, { "rms_norm_eps", 5 },
    { "rms_norm_eps", true }, { "use_qk_norm", 1 }, { "attn_temperature_tuning", "on" }, { "floor_scale", 0 }, { "attn_scale", -1 },
    { "rope_theta", 0 }, { "rope_theta", -10000 }, { "no_rope_layers", { 1, 0 } }, { "no_rope_layers", { 1, 1, 1, 2, 1, 1, 1, 0 } },
    { "no_rope_layers", "none" }, { "moe_layers", { 8 } }, { "moe_layers", { -1 } }, { "moe_layers", { 1.5 } },
    { "layer_types", { "chunked_attention" } }, { "hidden_act", "gelu" }, { "attention_bias", true }, { "tie_word_embeddings", "yes" },
    { "eos_token_id", 5000 }, { "eos_token_id", { 1, -1 } }, { "bos_token_id", -1 }, { "rope_scaling", { 1, 2 } },
    { "max_position_embeddings", 0 },
  }
  it("refuses absurd values by file, key, value and what is allowed", function()
    for _, case in ipairs(ABSURD) do
      local key, value = case[1], case[2]
      local c, err = read("maverick", function(raw)
        raw[key] = value
        if key == "moe_layers" then raw.interleave_moe_layer_step = nil end
      end)
      assert.is_nil(c, key .. " = " .. tostring(value))
      local text = tostring(err)
      assert.is_truthy(text:find("config.json: " .. key, 1, true), text)
      assert.is_truthy(text:find("allowed", 1, true) or text:find("needed", 1, true), text)
      assert.is_nil(text:find("\n", 1, true), text)
      assert.is_truthy(err.code == "RANGE" or err.code == "NOTFOUND", err.code)
    end
  end)

  it("checks the parameters of scaling", function()
    for key, value in pairs { factor = 0, low_freq_factor = -1, high_freq_factor = 0.5, original_max_position_embeddings = 0 } do
      local c, err = read("maverick", function(raw) raw.rope_scaling[key] = value end)
      assert.is_nil(c, key)
      assert.is_truthy(tostring(err):find("rope_scaling", 1, true), tostring(err))
    end
  end)

  it("names a missing key, and its place", function()
    local _, err = read("maverick_mm", function(_, text) text.hidden_size = nil end)
    assert.is_truthy(tostring(err):find("text_config.hidden_size is missing", 1, true), tostring(err))
  end)

  it("refuses what it cannot run, by name", function()
    local cases = {
      { "Llama5ForCausalLM", function(raw) raw.architectures = { "Llama5ForCausalLM" } end },
      { "mixtral", function(raw) raw.architectures, raw.model_type = nil, "mixtral" end },
      { "yarn", function(raw) raw.rope_scaling = { rope_type = "yarn", factor = 2 } end },
      { "gptq", function(raw) raw.quantization_config = { quant_method = "gptq", bits = 4 } end },
    }
    for _, case in ipairs(cases) do
      local c, err = read("maverick", case[2])
      assert.is_nil(c)
      assert.are.equal("UNSUPPORTED", err.code)
      assert.is_truthy(tostring(err):find(case[1], 1, true), tostring(err))
    end
  end)

  it("looks at hf_quant_config.json", function()
    local dir <close> = support.directory()
    support.checkpoint(dir.path, support.config "maverick")
    support.write(dir.path .. "/hf_quant_config.json", '{"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}')
    assert.are.equal("modelopt FP8", assert(config.read(dir.path)).quant.name)
    support.write(dir.path .. "/hf_quant_config.json", '{"quantization": {"quant_algo": null}}') -- not quantized
    assert.is_nil(assert(config.read(dir.path)).quant)
  end)

  it("reports files that are missing, no JSON or no object", function()
    local dir <close> = support.directory()
    local _, err = config.read(dir.path)
    assert.are.equal("IO", err.code)
    for _, text in ipairs { "", "{", "[1, 2]", "7", '{"a": }', "\0\1\2" } do
      support.write(dir.path .. "/config.json", text)
      local c
      c, err = config.read(dir.path)
      assert.is_nil(c)
      assert.is_truthy(tostring(err):find("config.json", 1, true), tostring(err))
    end
  end)
end)
