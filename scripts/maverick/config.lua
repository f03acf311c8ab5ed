--- config.json of a Llama 4 text decoder (Scout, Maverick), checked and in plain names.
---
--- Reads text-only (`Llama4ForCausalLM`) and multimodal directories (`Llama4ForConditionalGeneration`: everything is in
--- `text_config`), the old spelling (`rope_theta` + `rope_scaling`) and the new one (`rope_parameters`). Refuses other
--- architectures, quantizations that are not implemented and every value outside the range of FIELDS, with one line that names file, key,
--- value and what is allowed: a config is a stranger's file, and a size taken from it must not reach an allocation
--- unchecked.
local mav = require "mav"
local fault = require "mav.maverick.fault"
local gguf = require "mav.maverick.gguf"
local reader_of = require "mav.maverick.reader"
local quantization = require "mav.maverick.quantization"
local is_null = reader_of.is_null

local config = {}

local ARCHITECTURES = { Llama4ForCausalLM = true, Llama4ForConditionalGeneration = true }
local MODEL_TYPES = { llama4 = true, llama4_text = true }

--- name: ours; key: in the file; kind; least and most allowed value; default (none: the key is required).
--- `null` counts as absent, except where `null` says otherwise.
local FIELDS = {
  { name = "vocab", key = "vocab_size", kind = "integer", least = 2, most = 1 << 24 },
  { name = "hidden", key = "hidden_size", kind = "integer", least = 2, most = 1 << 17 },
  { name = "layers", key = "num_hidden_layers", kind = "integer", least = 1, most = 1024 },
  { name = "heads", key = "num_attention_heads", kind = "integer", least = 1, most = 1024 },
  { name = "expert_size", key = "intermediate_size", kind = "integer", least = 1, most = 1 << 20 }, -- and the shared one
  { name = "dense_size", key = "intermediate_size_mlp", kind = "integer", least = 1, most = 1 << 20 },
  { name = "experts", key = "num_local_experts", kind = "integer", least = 1, most = 4096, default = 16 },
  { name = "top_k", key = "num_experts_per_tok", kind = "integer", least = 1, most = 64, default = 1 },
  { name = "chunk", key = "attention_chunk_size", kind = "integer", least = 1, most = 1 << 30, default = 8192, null = "refuse" },
  { name = "eps", key = "rms_norm_eps", kind = "number", least = 1e-12, most = 0.1, default = 1e-5 },
  { name = "qk_norm", key = "use_qk_norm", kind = "boolean", default = true },
  { name = "attn_scale", key = "attn_scale", kind = "number", least = 0, most = 1000, default = 0.1 },
  { name = "floor_scale", key = "floor_scale", kind = "number", least = 1, most = 1 << 30, default = 8192 },
  { name = "positions", key = "max_position_embeddings", kind = "integer", least = 1, most = 1 << 30, default = 131072 },
}

local function check_architecture(reader, raw, text)
  local list = raw.architectures
  if not is_null(list) then
    if type(list) ~= "table" or type(list[1]) ~= "string" then reader:fail("architectures", list, "a list of one name is allowed") end
    if not ARCHITECTURES[list[1]] then
      fault.raise("UNSUPPORTED", reader.file, "architecture %s is not supported; Llama4ForCausalLM and "
        .. "Llama4ForConditionalGeneration are", fault.show(list[1]))
    end
    return
  end
  local kind = raw.model_type
  if is_null(kind) then kind = text.model_type end
  if is_null(kind) then reader:fail("architectures", nil, "Llama4ForCausalLM or Llama4ForConditionalGeneration is allowed") end
  if not MODEL_TYPES[kind] then
    fault.raise("UNSUPPORTED", reader.file, "model_type %s is not supported; llama4 and llama4_text are", fault.show(kind))
  end
end

--- theta_default: RoPE's base where the file does not say.
local function read_rope(reader, text, theta_default)
  local new, old = reader:object(text, "rope_parameters"), reader:object(text, "rope_scaling")
  local theta = { key = "rope_theta", kind = "number", least = 1.5, most = 1e12, default = theta_default }
  local rope = {}
  if new and not is_null(new.rope_theta) then
    rope.theta = reader:within("rope_parameters."):value(new, theta)
  else
    rope.theta = reader:value(text, theta)
  end
  local scaling, key = old, "rope_scaling"
  if not scaling then scaling, key = new, "rope_parameters" end
  if not scaling then return rope end
  local kind = scaling.rope_type
  if is_null(kind) then kind = scaling.type end
  if is_null(kind) or kind == "default" then return rope end
  if kind ~= "llama3" then
    fault.raise("UNSUPPORTED", reader.file, "%s%s.rope_type %s is not supported; default and llama3 are",
      reader.prefix, key, fault.show(kind))
  end
  reader = reader:within(key .. ".")
  rope.factor = reader:value(scaling, { key = "factor", kind = "number", least = 1, most = 1e6 })
  rope.low = reader:value(scaling, { key = "low_freq_factor", kind = "number", least = 1e-6, most = 1e6 })
  rope.high = reader:value(scaling, { key = "high_freq_factor", kind = "number", least = 1e-6, most = 1e6 })
  rope.original = reader:value(scaling, { key = "original_max_position_embeddings", kind = "integer", least = 1, most = 1 << 30 })
  if rope.low > rope.high then reader:fail("low_freq_factor", rope.low, "at most high_freq_factor (%.14g) is allowed", rope.high) end
  return rope
end

--- The inverse frequencies of the head_dim / 2 rotated pairs, as doubles.
---@param head_dim integer
---@param rope table   theta; with llama3 scaling also factor, low, high, original
function config.inverse_frequencies(head_dim, rope)
  local list = {}
  for i = 0, head_dim // 2 - 1 do
    local f = rope.theta ^ (-2 * i / head_dim)
    if rope.factor then
      local wavelength = 2 * math.pi / f
      if wavelength > rope.original / rope.low then
        f = f / rope.factor
      elseif wavelength >= rope.original / rope.high and rope.high ~= rope.low then -- equal (Scout): no middle band
        local s = (rope.original / wavelength - rope.low) / (rope.high - rope.low)
        f = (1 - s) * f / rope.factor + s * f
      end
    end
    list[i + 1] = f
  end
  return list
end

--- Which layers rotate (RoPE), which see one chunk only, which route to experts.
local function read_layers(reader, c, text)
  local flags = reader:list(text, "no_rope_layers", 0, 1) -- 1 says RoPE, whatever the name says
  local interval = reader:value(text, { key = "no_rope_layer_interval", kind = "integer", least = 1, most = 1 << 20, default = 4 })
  if flags and #flags == 0 then flags = nil end
  if flags and #flags < c.layers then
    reader:fail("no_rope_layers", text.no_rope_layers, "an entry for each of the %d layers is needed", c.layers)
  end
  local types = text.layer_types
  if not is_null(types) and (type(types) ~= "table" or #types < c.layers) then
    reader:fail("layer_types", types, "a list with an entry for each of the %d layers is needed", c.layers)
  end
  c.is_rope, c.chunks, c.is_moe = {}, {}, {}
  for i = 1, c.layers do
    c.is_moe[i] = false
    if flags then c.is_rope[i] = flags[i] == 1 else c.is_rope[i] = i % interval ~= 0 end
    local chunked = c.is_rope[i]
    if not is_null(types) then
      if types[i] ~= "chunked_attention" and types[i] ~= "full_attention" then
        reader:fail(("layer_types[%d]"):format(i - 1), types[i], "chunked_attention or full_attention is allowed")
      end
      chunked = types[i] == "chunked_attention"
    end
    c.chunks[i] = chunked and c.chunk or 0
  end
  local moe = reader:list(text, "moe_layers", 0, c.layers - 1)
  if moe then
    for _, layer in ipairs(moe) do c.is_moe[layer + 1] = true end
  else
    local step = reader:value(text, { key = "interleave_moe_layer_step", kind = "integer", least = 1, most = 1 << 20, default = 1 })
    for i = step, c.layers, step do c.is_moe[i] = true end
  end
end

--- Ids that end a text: those of config.json and of generation_config.json.
local function read_stops(reader, c, text, dir)
  local seen = {}
  c.eos = {}
  local function add(r, object)
    local value = object.eos_token_id
    if is_null(value) then return end
    local list = type(value) == "table" and r:list(object, "eos_token_id", 0, c.vocab - 1)
      or { r:value(object, { key = "eos_token_id", kind = "integer", least = 0, most = c.vocab - 1 }) }
    for _, id in ipairs(list) do
      if not seen[id] then
        seen[id] = true
        c.eos[#c.eos + 1] = id
      end
    end
  end
  add(reader, text)
  local path = dir .. "/generation_config.json"
  if reader_of.exists(path) then add(reader_of.new(path), reader_of.read_json(path)) end
  local bos = { key = "bos_token_id", kind = "integer", least = 0, most = c.vocab - 1, default = false }
  c.bos = reader:value(text, bos) or nil
end

local function read(dir)
  local path, raw, reader, freqs = dir
  if gguf.is_path(dir) then
    raw, reader, freqs = gguf.config(dir)
  else
    path = dir .. "/config.json"
    raw, reader = reader_of.read_json(path), reader_of.new(path)
  end
  local text = reader:object(raw, "text_config")
  check_architecture(reader, raw, text or raw)
  local quant = quantization.read(reader, raw, text, dir)
  local tied = raw.tie_word_embeddings
  if text then reader.prefix = "text_config." else text = raw end
  if is_null(tied) then tied = text.tie_word_embeddings end
  if is_null(tied) then tied = false end
  if type(tied) ~= "boolean" then reader:fail("tie_word_embeddings", tied, "true or false is allowed") end

  local c = { dir = dir, file = path, tied = tied, quant = quant }
  -- The two levels may disagree: then lm_head is used when the file has one.
  if not tied and text.tie_word_embeddings == true then c.tied = "unless lm_head" end
  for _, field in ipairs(FIELDS) do c[field.name] = reader:value(text, field) end

  c.kv_heads = reader:value(text, { key = "num_key_value_heads", kind = "integer", least = 1, most = c.heads, default = c.heads })
  if c.heads % c.kv_heads ~= 0 then
    reader:fail("num_key_value_heads", c.kv_heads, "a divisor of num_attention_heads (%d) is allowed", c.heads)
  end
  local head_dim = { key = "head_dim", kind = "integer", least = 2, most = 1024, default = 128 }
  if text.head_dim == mav.json.null then head_dim.default = c.hidden // c.heads end -- explicit null
  c.head_dim = reader:value(text, head_dim)
  if c.head_dim < 2 or c.head_dim % 2 ~= 0 then reader:fail("head_dim", c.head_dim, "an even number is allowed (RoPE rotates pairs)") end
  if c.top_k > c.experts then reader:fail("num_experts_per_tok", c.top_k, "at most num_local_experts (%d) is allowed", c.experts) end

  local tuning = text.attn_temperature_tuning
  if is_null(tuning) then tuning = true end
  if type(tuning) == "number" and math.tointeger(tuning) then tuning = tuning ~= 0 end -- older repositories: 4
  if type(tuning) ~= "boolean" then reader:fail("attn_temperature_tuning", tuning, "true, false or an integer is allowed") end
  c.temperature = tuning

  if not is_null(text.hidden_act) and text.hidden_act ~= "silu" then reader:fail("hidden_act", text.hidden_act, "\"silu\" is allowed") end
  if not is_null(text.attention_bias) and text.attention_bias ~= false then
    reader:fail("attention_bias", text.attention_bias, "false is allowed")
  end

  c.rope = read_rope(reader, text, 500000)
  c.inv_freq = config.inverse_frequencies(c.head_dim, c.rope)
  gguf.scale_frequencies(path, c.inv_freq, freqs)
  read_layers(reader, c, text)
  read_stops(reader, c, text, dir)
  return c
end

--- Reads and checks `dir`/config.json (and the eos ids of generation_config.json).
---
--- Fields: vocab, hidden, layers, heads, kv_heads, head_dim, experts, top_k, expert_size, dense_size, chunk, eps, qk_norm,
--- temperature (is the attention temperature on), attn_scale, floor_scale, positions, tied, rope, inv_freq, eos (list), bos;
--- by layer, 1-based: is_rope, is_moe, chunks (0: full attention); quant (quantization.lua; nil: not quantized).
---@param dir string   a Hugging Face directory, or a GGUF file
---@return table|nil config
---@return table|nil err   code, op, where, and __tostring
function config.read(dir) return fault.catch(read, dir) end

--- Parts for readers of other configs (draft heads). They raise conditions of the world; their edge is fault.catch.
---@param path string
---@return table reader   its complaints name file, key and value: value, list, object, fail, within
---@return table raw      the JSON object
function config.open(path) return reader_of.new(path), reader_of.read_json(path) end

--- Where quantized files cannot be read: refuses them by name. Running their codes as if they were weights would give noise.
function config.check_quantization(reader, raw, text, dir)
  local quant = quantization.read(reader, raw, text, dir)
  if not quant then return end
  fault.raise("UNSUPPORTED", quant.file, "draft heads quantized with %s cannot be loaded; load the BF16 original, with dtype \"fp8\" to "
    .. "quantize it on the way", quant.name)
end

config.read_rope, config.is_null = read_rope, is_null

return config
