--- mav weights synth: checkpoints of any shape in the layouts of the real ones, with random weights, for tests and timings.
---
---   1. Memory stays small: what is drawn is one block of a prime number of values. A tensor is that block over and over, from a place of
---      its own, times a gain; no two rows of it are equal, as the row's length and a prime have no common divisor.
---   2. The same options give the same bytes.
---   3. A shard appears under its name when it is whole. --sparse leaves holes for the matrices: 1 TB takes a second, and no disk.
---   4. The shapes come from config.json, as the loader reads it.
local cli = require "mav.cli"
local config = require "mav.maverick.config"
local fault = require "mav.maverick.fault"
local hf = require "mav.weights_tools.hf"
local mav = require "mav"
local reader = require "mav.maverick.reader"
local show = require "mav.weights_tools.show"
local source = require "mav.weights_tools.source"

local synth = {}

local FORMATS = { ["hf-bf16"] = true, ["hf-ct-fp8"] = true, ["hf-modelopt-fp8"] = true }
local PERIOD = (1 << 20) - 3 -- a prime
local REPEATS = 8 -- periods written at once
local CODE_STD = 100.0 -- standard deviation of FP8 codes; 448 is the largest
local JITTER = 0.1 -- scales of rows differ by so much

local OPTIONS = { shape = true, layers = true, experts = true, vocab = true, format = true, shards = true, seed = true, sparse = true,
  fill = true, tokenizer = true, force = true, progress = true }

-- ---- shapes -------------------------------------------------------------------------------------------------------------

local SHAPES = {
  maverick = { hidden_size = 5120, num_hidden_layers = 48, num_attention_heads = 40, num_key_value_heads = 8, head_dim = 128,
    intermediate_size = 8192, intermediate_size_mlp = 16384, num_local_experts = 128, interleave_moe_layer_step = 2, vocab_size = 202048,
    use_qk_norm = false, max_position_embeddings = 1048576, attention_chunk_size = 8192, floor_scale = 8192 },
  scout = { hidden_size = 5120, num_hidden_layers = 48, num_attention_heads = 40, num_key_value_heads = 8, head_dim = 128,
    intermediate_size = 8192, intermediate_size_mlp = 16384, num_local_experts = 16, interleave_moe_layer_step = 1, vocab_size = 202048,
    use_qk_norm = true, max_position_embeddings = 10485760, attention_chunk_size = 8192, floor_scale = 8192,
    rope_scaling = { rope_type = "llama3", factor = 16.0, low_freq_factor = 1.0, high_freq_factor = 1.0,
      original_max_position_embeddings = 8192 } },
  tiny = { hidden_size = 256, num_hidden_layers = 8, num_attention_heads = 8, num_key_value_heads = 4, head_dim = 64,
    intermediate_size = 128, intermediate_size_mlp = 512, num_local_experts = 8, interleave_moe_layer_step = 2, vocab_size = 2048,
    use_qk_norm = false, max_position_embeddings = 4096, attention_chunk_size = 128, floor_scale = 128 },
}
--- The ids that a model of V tokens begins and ends with.
local function special_ids(V)
  local bos = math.max(0, V >= 8192 and V - 2048 or V - 32) -- as in the real ones: 200000 of 202048
  return bos, mav.json.array { math.min(bos + 1, V - 1), math.min(bos + 7, V - 1), math.min(bos + 8, V - 1) }
end

local function text_config(shape)
  local t = { architectures = nil, model_type = "llama4_text", attention_bias = false, attention_dropout = 0.0, attn_scale = 0.1,
    attn_temperature_tuning = true, hidden_act = "silu", num_experts_per_tok = 1, rms_norm_eps = 1e-5, rope_theta = 500000.0,
    rope_scaling = mav.json.null, tie_word_embeddings = false, torch_dtype = "bfloat16", use_cache = true }
  for key, value in pairs(shape) do t[key] = value end
  t.bos_token_id, t.eos_token_id = special_ids(t.vocab_size)
  return t
end

--- config.json of a shape's name or a file, before overrides.
local function base_config(name)
  local shape = SHAPES[name]
  if not shape then
    if not name:find "%.json$" then
      fault.raise("INVALID", "--shape " .. name, "maverick, scout, tiny, or the path of a config.json (its name ends in .json) is allowed")
    end
    return reader.read_json(name)
  end
  local text = text_config(shape)
  if name == "tiny" then
    text.architectures = mav.json.array { "Llama4ForCausalLM" }
    return text
  end
  return { architectures = mav.json.array { "Llama4ForConditionalGeneration" }, model_type = "llama4", text_config = text,
    tie_word_embeddings = false, torch_dtype = "bfloat16",
    vision_config = { model_type = "llama4_vision_model", hidden_size = 1408, vision_output_dim = 4096 } }
end

--- The first `layers` entries of lists by layer, or none where they are too short.
local function cut_lists(text, layers)
  for _, key in ipairs { "no_rope_layers", "layer_types" } do
    local list = text[key]
    if type(list) == "table" then
      text[key] = #list >= layers and mav.json.array(table.move(list, 1, layers, 1, {})) or nil
    end
  end
  if type(text.moe_layers) == "table" then
    local kept, last = {}, 0
    for _, layer in ipairs(text.moe_layers) do
      if layer < layers then kept[#kept + 1] = layer end
      last = math.max(last, layer)
    end
    text.moe_layers = last >= layers - 2 and mav.json.array(kept) or nil
  end
end

local function override(raw, options)
  local text = type(raw.text_config) == "table" and raw.text_config or raw
  if options.layers then
    text.num_hidden_layers = options.layers
    cut_lists(text, options.layers)
  end
  text.num_local_experts = options.experts or text.num_local_experts
  if options.vocab then
    text.vocab_size = options.vocab
    text.bos_token_id, text.eos_token_id = special_ids(options.vocab)
    text.pad_token_id = nil
  end
  raw.quantization_config, text.quantization_config = nil, nil
  return raw
end

-- ---- tensors --------------------------------------------------------------------------------------------------------------

--- A list of { name, dtype (as in safetensors), shape, fill, gain }: fill is "normal", "codes", "scales" or a number.
local List = {}
List.__index = List

function List:add(name, dtype, shape, fill, gain)
  self[#self + 1] = { name = name, dtype = dtype, shape = shape, fill = fill, gain = gain }
end

function List:norm(name, D) self:add(name, "BF16", { D }, 1.0) end

--- A linear layer `module` of N outputs and K inputs, quantized as the format has it. A stack of experts is (E, K, N).
function List:linear(module, N, K, gain, quantized, stack)
  local std = gain / math.sqrt(K)
  local shape = stack and { stack, K, N } or { N, K }
  local weight, own = stack and module or module .. ".weight", stack and "_" or "."
  if not quantized then return self:add(weight, "BF16", shape, "normal", std) end
  self:add(weight, "F8_E4M3", shape, "codes")
  if quantized == "channel" then
    self:add(module .. ".weight_scale", "BF16", { N, 1 }, "scales", std / CODE_STD)
  else
    self:add(module .. own .. "weight_scale", "F32", {}, std / CODE_STD)
    self:add(module .. own .. "input_scale", "F32", {}, 8.0 / 448)
  end
end

local function add_experts(list, c, base, format, residual)
  local E, D, F = c.experts, c.hidden, c.expert_size
  list:linear(base .. "router", E, D, 2.0)
  if format == "hf-ct-fp8" then
    for e = 0, E - 1 do
      local own = ("%sexperts.%d."):format(base, e)
      list:linear(own .. "gate_proj", F, D, 1.0, "channel")
      list:linear(own .. "up_proj", F, D, 1.0, "channel")
      list:linear(own .. "down_proj", D, F, 2 * residual, "channel")
    end
    return
  end
  local how = format == "hf-modelopt-fp8" and "tensor" or nil
  list:linear(base .. "experts.gate_up_proj", 2 * F, D, 1.0, how, E)
  list:linear(base .. "experts.down_proj", D, F, 2 * residual, how, E)
end

--- The tensors of a model, in order of layers. is_multimodal: as config.json is.
local function tensors_of(c, format, is_multimodal, vision)
  local list, residual = setmetatable({}, List), 1 / math.sqrt(2 * c.layers)
  local prefix = is_multimodal and format ~= "hf-modelopt-fp8" and "language_model." or "" -- ModelOpt exports the text model
  local how = format == "hf-modelopt-fp8" and "tensor" or nil
  if prefix ~= "" then
    list:add("vision_model.class_embedding", "BF16", { vision.hidden_size or 32 }, "normal", 0.02)
    list:add("multi_modal_projector.linear_1.weight", "BF16", { c.hidden, vision.vision_output_dim or 32 }, "normal", 0.02)
  end
  list:add(prefix .. "model.embed_tokens.weight", "BF16", { c.vocab, c.hidden }, "normal", 1.0)
  for i = 1, c.layers do
    local base = ("%smodel.layers.%d."):format(prefix, i - 1)
    local attn, ffn, size = base .. "self_attn.", base .. "feed_forward.", c.dense_size
    local q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    list:norm(base .. "input_layernorm.weight", c.hidden)
    list:linear(attn .. "q_proj", q, c.hidden, 1.0, how)
    list:linear(attn .. "k_proj", kv, c.hidden, 1.0, how)
    list:linear(attn .. "v_proj", kv, c.hidden, 1.0, how)
    list:linear(attn .. "o_proj", c.hidden, q, residual, how)
    if how then
      list:add(attn .. "k_proj.k_scale", "F32", {}, 1.0)
      list:add(attn .. "v_proj.v_scale", "F32", {}, 1.0)
    end
    list:norm(base .. "post_attention_layernorm.weight", c.hidden)
    if c.is_moe[i] then
      add_experts(list, c, ffn, format, residual)
      ffn, size = ffn .. "shared_expert.", c.expert_size
    end
    list:linear(ffn .. "gate_proj", size, c.hidden, 1.0, how)
    list:linear(ffn .. "up_proj", size, c.hidden, 1.0, how)
    list:linear(ffn .. "down_proj", c.hidden, size, 2 * residual, how)
  end
  list:norm(prefix .. "model.norm.weight", c.hidden)
  if c.tied == false then list:add(prefix .. "lm_head.weight", "BF16", { c.vocab, c.hidden }, "normal", 2 / math.sqrt(c.hidden)) end
  for _, t in ipairs(list) do hf.sized(t) end
  return list
end

-- ---- what the files say of their quantization -------------------------------------------------------------------------------

--- Modules with a matrix that is not quantized.
local function plain_modules(list)
  local plain = {}
  for _, t in ipairs(list) do
    if t.dtype == "BF16" and #t.shape == 2 and t.name:find "%.weight$" and not t.name:find "embed_tokens" then
      plain[#plain + 1] = t.name:sub(1, -8)
    end
  end
  return mav.json.array(plain)
end

local function fp8(strategy, dynamic) return { num_bits = 8, type = "float", symmetric = true, strategy = strategy, dynamic = dynamic } end

--- quantization_config, and the content of hf_quant_config.json.
local function quantization_of(format, list)
  local ignore = plain_modules(list)
  local targets = mav.json.array { "Linear" }
  if format == "hf-ct-fp8" then
    return { quant_method = "compressed-tensors", format = "float-quantized", quantization_status = "compressed", ignore = ignore,
      kv_cache_scheme = mav.json.null, config_groups = { group_0 = { targets = targets, weights = fp8("channel", false),
        input_activations = fp8("token", true), output_activations = mav.json.null } } }
  end
  local producer = { name = "modelopt", version = "0.29.0" }
  local kind = { num_bits = 8, type = "float", dynamic = false }
  return { quant_method = "modelopt", quant_algo = "FP8", producer = producer, ignore = ignore, kv_cache_scheme = kind,
    config_groups = { group_0 = { targets = targets, weights = kind, input_activations = kind } } },
    { producer = producer, quantization = { quant_algo = "FP8", kv_cache_quant_algo = "FP8", exclude_modules = ignore } }
end

-- ---- bytes ----------------------------------------------------------------------------------------------------------------

local drawn = {} -- of the last seed

--- PERIOD values of the normal distribution.
local function draw(seed)
  if drawn.seed == seed then return mav.tensor(drawn.list) end
  math.randomseed(seed)
  local list, random, log, sqrt, cos, sin, tau = {}, math.random, math.log, math.sqrt, math.cos, math.sin, 2 * math.pi
  for i = 1, PERIOD, 2 do
    local r, a = sqrt(-2 * log(1 - random())), tau * random()
    list[i], list[i + 1] = r * cos(a), r * sin(a)
  end
  list[PERIOD + 1] = nil
  drawn.seed, drawn.list = seed, list
  return mav.tensor(list)
end

local Fill = {}
Fill.__index = Fill

--- Several periods of what a tensor is made of.
function Fill:pattern(t)
  local key = t.fill .. (t.gain and (" %.17g"):format(t.gain) or "")
  if not self.patterns[key] then
    local normal = self.normal
    local x
    if t.fill == "normal" then
      x = mav.op.cast { x = normal * t.gain, dtype = "bf16" }
    elseif t.fill == "codes" then
      local wide = mav.op.maximum { a = mav.op.minimum { a = normal * CODE_STD, b = mav.tensor { 448.0 } }, b = mav.tensor { -448.0 } }
      x = mav.op.cast { x = wide, dtype = "f8" }
    else
      x = mav.op.cast { x = (mav.op.tanh { x = normal } * JITTER + 1.0) * t.gain, dtype = "bf16" }
    end
    self.patterns[key] = x:bytes():rep(REPEATS)
  end
  return self.patterns[key]
end

--- The bytes of a tensor.
function Fill:put(out, t)
  if type(t.fill) == "number" then
    local one = t.dtype == "F32" and ("<f"):pack(t.fill) or mav.tensor({ t.fill }, { dtype = "bf16" }):bytes()
    return out:write(one:rep(t.bytes // #one))
  end
  local start = math.random(0, PERIOD - 1)
  local is_matrix = t.fill ~= "scales"
  if is_matrix and self.sparse then return out:skip(t.bytes) end
  local long = is_matrix and self.fill == "zero" and self.zeros or self:pattern(t)
  local at, left = start * hf.WIDTH[t.dtype] % #long, t.bytes
  while left > 0 do
    local piece = at == 0 and left >= #long and long or long:sub(at + 1, math.min(#long, at + left))
    out:write(piece)
    left, at = left - #piece, 0
    self.done = self.done + #piece
    self.progress(self.done, self.total, t.name)
  end
end

-- ---- the directory ----------------------------------------------------------------------------------------------------------

local function encode(value) return mav.json.encode(value, { indent = 2 }) .. "\n" end

--- Copies the tokenizer's files where they fit, or from the directory that was asked for.
local function copy_tokenizer(out, asked, vocab)
  local from = asked or cli.default_model()
  if not from or asked == "none" then return nil end
  local tok, err = mav.tokenizer(from .. "/tokenizer.json")
  if not tok then
    if asked then error(err, 0) end
    return nil
  end
  if not asked and #tok ~= vocab then return nil end
  for _, name in ipairs { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja" } do
    local file = io.open(from .. "/" .. name, "rb")
    if file then
      source.write(out .. "/" .. name, file:read "a")
      file:close()
    end
  end
  return from
end

local function do_write(out, options)
  local begun, format = mav.now(), options.format or "hf-bf16"
  if not FORMATS[format] then error(("format %s: hf-bf16, hf-ct-fp8 or hf-modelopt-fp8 is allowed"):format(fault.show(format)), 0) end
  local raw = override(base_config(options.shape or "tiny"), options)
  hf.prepare(out, options.force)
  source.write(out .. "/config.json", encode(raw))
  local c = fault.check(config.read(out))
  local list = tensors_of(c, format, type(raw.text_config) == "table", type(raw.vision_config) == "table" and raw.vision_config or {})
  if format ~= "hf-bf16" then
    local quantization, own_file = quantization_of(format, list)
    raw.quantization_config = quantization
    source.write(out .. "/config.json", encode(raw))
    if own_file then source.write(out .. "/hf_quant_config.json", encode(own_file)) end
  end
  source.write(out .. "/generation_config.json", encode { bos_token_id = c.bos, eos_token_id = mav.json.array(c.eos) })
  local tokenizer = copy_tokenizer(out, options.tokenizer, c.vocab)

  local seed = options.seed or 0
  local normal = (not options.sparse or format == "hf-ct-fp8") and draw(seed) or nil -- scales are no holes
  math.randomseed(seed, 1)
  local shards, total = hf.partition(list, options.shards or 1), 0
  for _, t in ipairs(list) do total = total + t.bytes end
  local fill = setmetatable({ patterns = {}, normal = normal, sparse = options.sparse, fill = options.fill or "random",
    zeros = ("\0"):rep(8 << 20), done = 0, total = total, progress = options.progress or function() end }, Fill)
  local files = hf.write(out, shards, function(file, t) fill:put(file, t) end)
  return { out = out, format = format, files = mav.json.array(files), tensors = #list, bytes = total, layers = c.layers,
    experts = c.experts, tokenizer = tokenizer, sparse = options.sparse or false, seconds = mav.now() - begun }
end

--- Writes a checkpoint into the directory `out`.
---
---   options.shape      "maverick", "scout", "tiny" (the default), or the path of a config.json
---   options.layers, experts, vocab   instead of the shape's
---   options.format     "hf-bf16" (the default), "hf-ct-fp8": routed experts, as Meta's; "hf-modelopt-fp8": linear layers, as NVIDIA's
---   options.shards     safetensors files (1); a tensor is not divided
---   options.seed       of the values (0)
---   options.sparse     holes for the matrices, which read as zeros
---   options.fill       "random" (the default) or "zero": of the matrices; norms are 1, scales as in real ones
---   options.tokenizer  a directory to copy it from, or "none"; nil: models/tiny-maverick, where it has as many tokens as the vocabulary
---   options.force      replaces a model that is there
---   options.progress   function(bytes done, bytes in all, tensor)
---@param out string
---@param options table|nil
---@return table|nil report
---@return table|nil err
function synth.write(out, options)
  options = options or {}
  require "mav.options"(options, OPTIONS, "synth")
  return fault.catch(do_write, out, options)
end

-- ---- the command ------------------------------------------------------------------------------------------------------------

local EXAMPLE = [[
mav weights synth /tmp/m --shape tiny --format hf-ct-fp8
mav weights synth /tmp/big --shape maverick --layers 2 --experts 32 --vocab 32768 --shards 8   # one true MoE layer, a quarter of it
mav weights synth /tmp/whole --shape maverick --shards 50 --sparse      # 800 GB for ls, a few MB for df]]

local function options_parser()
  local p = cli.parser("weights synth", "Makes a checkpoint of any shape, in the layouts of the real ones, with random weights: to try "
    .. "conversion, loading and memory before the real files are there. Fast (a block of numbers is drawn once and repeated) and in little "
    .. "memory.", EXAMPLE)
  p:argument("out", "directory to make"):argname("OUT")
  p:option("--shape", "maverick, scout, tiny, or a config.json"):argname("SHAPE"):default("tiny")
  p:option("--layers", "layers, instead of the shape's"):argname("N"):convert(cli.integer(1, 1024))
  p:option("--experts", "experts in a layer, instead of the shape's"):argname("N"):convert(cli.integer(1, 4096))
  p:option("--vocab", "tokens of the vocabulary, instead of the shape's"):argname("N"):convert(cli.integer(64, 1 << 24))
  p:option("--format", "hf-bf16; hf-ct-fp8: compressed-tensors, the experts in FP8; hf-modelopt-fp8: all linear layers")
    :argname("FORMAT"):convert(cli.choice("hf-bf16", "hf-ct-fp8", "hf-modelopt-fp8")):default("hf-bf16")
  p:option("--shards", "safetensors files"):argname("N"):convert(cli.integer(1, 99999)):default("1")
  p:option("--seed", "the same seed gives the same bytes"):argname("S"):convert(cli.integer(0)):default("0")
  p:flag("--sparse", "holes instead of matrices: they read as zeros and take no disk")
  p:option("--fill", "random or zero matrices"):argname("HOW"):convert(cli.choice("random", "zero")):default("random")
  p:option("--tokenizer", "copy it from a directory, or none (default: that of models/tiny-maverick, where the vocabulary is as large)")
    :argname("DIR")
  p:flag("--force", "replace a model that is there")
  p:flag("--json", "print the result as JSON")
  return p
end

local function run(arg)
  local args = cli.parse(options_parser(), arg)
  local meter = show.meter(args.out)
  local report, err = synth.write(args.out, { shape = args.shape, layers = args.layers, experts = args.experts, vocab = args.vocab,
    format = args.format, shards = args.shards, seed = args.seed, sparse = args.sparse, fill = args.fill, tokenizer = args.tokenizer,
    force = args.force, progress = meter.update })
  meter.finish()
  if not report then cli.fail("%s", tostring(err)) end
  if args.json then
    io.write(encode(report))
  else
    io.write(("%s: %s, %d tensors, %s in %d file%s%s, %.1f s%s\n"):format(report.out, report.format, report.tensors,
      show.bytes(report.bytes), #report.files, #report.files == 1 and "" or "s", report.sparse and " with holes" or "", report.seconds,
      report.sparse and "" or (" (%.1f GB/s)"):format(report.bytes / report.seconds / 1e9)))
  end
  return 0
end

synth.summary, synth.run = "makes a checkpoint of any shape, with random weights", run
return synth
