--- A GGUF file (llama.cpp) of a Llama 4 text decoder, read like a Hugging Face directory: its metadata as a config.json, its tensors under
--- Hugging Face names, its tokenizer as a tokenizer.json.
---
---   1. What llama.cpp fixes for this architecture, and does not write into the file, is fixed here too: chunks of 8192 tokens, every 4th
---      layer without RoPE and with the attention temperature (floor 8192, scale 0.1), qk norm unless there are 128 experts.
---   2. Rows of q and k are in the order of Hugging Face's files: llama.cpp rotates neighbouring pairs, as Llama 4 does.
---   3. Experts are one tensor (E, N, K), outputs first; here they go by their names in checkpoints that have them one by one.
---   4. f32, f16 and bf16 are mapped as they are. q8_0 becomes f32, which holds its values exactly.
local mav = require "mav"
local fault = require "mav.maverick.fault"
local reader_of = require "mav.maverick.reader"

local gguf = {}

local ARCHITECTURE = "llama4"

function gguf.is_path(path) return path:find "%.gguf$" ~= nil end

local function open(path)
  local file = fault.check(mav.gguf(path))
  local architecture = file:value "general.architecture"
  if architecture ~= ARCHITECTURE then
    fault.raise("UNSUPPORTED", path, "general.architecture is %s; \"llama4\" is supported", fault.show(architecture))
  end
  return file
end

-- ---- metadata -----------------------------------------------------------------------------------------------------------

--- Ours by the key in the file, after "llama4.".
local KEYS = {
  hidden_size = "embedding_length", num_hidden_layers = "block_count", num_attention_heads = "attention.head_count",
  num_key_value_heads = "attention.head_count_kv", head_dim = "attention.key_length", intermediate_size = "expert_feed_forward_length",
  intermediate_size_mlp = "feed_forward_length", num_local_experts = "expert_count", num_experts_per_tok = "expert_used_count",
  rms_norm_eps = "attention.layer_norm_rms_epsilon", rope_theta = "rope.freq_base", max_position_embeddings = "context_length",
  interleave_moe_layer_step = "interleave_moe_layer_step", vocab_size = "vocab_size",
}
local FIXED = { attention_chunk_size = 8192, floor_scale = 8192, attn_scale = 0.1, no_rope_layer_interval = 4,
  attn_temperature_tuning = true }
local KV_EXPERTS = 128 -- without qk norm

local function token(file, name)
  local id = file:value("tokenizer.ggml." .. name .. "_token_id")
  return math.type(id) == "integer" and id or nil
end

--- The ids that end a text.
local function stops(file)
  local list = {}
  for _, name in ipairs { "eos", "eot", "eom" } do
    local id = token(file, name)
    if id then list[#list + 1] = id end
  end
  return #list > 0 and mav.json.array(list) or nil
end

local function refuse(path, key, value, allowed)
  fault.raise("UNSUPPORTED", path, "%s.%s is %s; %s is supported", ARCHITECTURE, key, fault.show(value), allowed)
end

--- What a config.json would say, and a reader for messages about it. freqs: what the inverse frequencies are divided by; nil: nothing.
---@param path string
---@return table raw
---@return table reader
---@return table|nil freqs
function gguf.config(path)
  local file = open(path)
  local raw = { architectures = mav.json.array { "Llama4ForCausalLM" }, model_type = "llama4_text", hidden_act = "silu",
    rope_scaling = mav.json.null, tie_word_embeddings = not file:has "output.weight", bos_token_id = token(file, "bos"),
    eos_token_id = stops(file) }
  for key, name in pairs(KEYS) do
    local value, kind = file:value(ARCHITECTURE .. "." .. name)
    if kind == "array" then refuse(path, name, value, "one number for all layers") end
    raw[key] = kind == "f32" and tonumber(("%.7g"):format(value)) or value -- 1e-5, not the f32 beside it
  end
  for key, value in pairs(FIXED) do raw[key] = value end
  if raw.head_dim == nil then raw.head_dim = mav.json.null end -- hidden / heads
  raw.use_qk_norm = raw.num_local_experts ~= KV_EXPERTS
  if not raw.vocab_size then
    local info = file:info "token_embd.weight"
    raw.vocab_size = info and info.shape[1]
  end
  local scaling, window = file:value "llama4.rope.scaling.type", file:value "llama4.attention.sliding_window"
  if scaling ~= nil and scaling ~= "none" then refuse(path, "rope.scaling.type", scaling, "\"none\", or a tensor rope_freqs,") end
  if window == 0 then refuse(path, "attention.sliding_window", window, "8192") end
  local rotated, width = file:value "llama4.rope.dimension_count", raw.head_dim
  if rotated and math.type(width) == "integer" and rotated ~= width then
    refuse(path, "rope.dimension_count", rotated, ("attention.key_length (%d)"):format(width))
  end
  local freqs
  if file:has "rope_freqs.weight" then freqs = fault.check(file:rows "rope_freqs.weight"):to("f32"):reshape({ -1 }):totable() end
  return raw, reader_of.new(path), freqs
end

--- Divides inverse frequencies by those of the file.
function gguf.scale_frequencies(path, inverse, freqs)
  if not freqs then return end
  if #freqs ~= #inverse then
    fault.raise("SHAPE", path, "tensor rope_freqs.weight has %d elements; %d are expected", #freqs, #inverse)
  end
  for i, f in ipairs(freqs) do
    if not (f > 0 and f < math.huge) then
      fault.raise("RANGE", path, "rope_freqs.weight[%d] is %.9g; a number above 0 is allowed", i - 1, f)
    end
    inverse[i] = inverse[i] / f
  end
end

-- ---- tensors ------------------------------------------------------------------------------------------------------------

local TOP = { ["token_embd.weight"] = "model.embed_tokens.weight", ["output_norm.weight"] = "model.norm.weight",
  ["output.weight"] = "lm_head.weight" }
local IN_LAYER = { attn_norm = "input_layernorm", ffn_norm = "post_attention_layernorm", attn_q = "self_attn.q_proj",
  attn_k = "self_attn.k_proj", attn_v = "self_attn.v_proj", attn_output = "self_attn.o_proj", ffn_gate_inp = "feed_forward.router" }
for _, key in ipairs { "gate", "up", "down" } do
  IN_LAYER["ffn_" .. key] = "feed_forward." .. key .. "_proj"
  IN_LAYER["ffn_" .. key .. "_shexp"] = "feed_forward.shared_expert." .. key .. "_proj"
end
local UNUSED = { ["rope_freqs.weight"] = true } -- read with the config

--- The tensors of a file by Hugging Face names: what weights.load asks of mav.weights.
local Files = {}
Files.__index = Files

function Files:names() return self.list end
function Files:has(name) return self.entries[name] ~= nil end

function Files:info(name)
  local e = self.entries[name]
  return e and { dtype = e.info.unreadable and e.info.type or e.info.dtype, shape = e.shape, bytes = e.info.bytes }
end

function Files:get(name)
  local e = self.entries[name]
  if not e then return nil, ("no tensor %s"):format(name) end
  local t, err = self.file:rows(e.name, e.first, e.last, { runtime = self.runtime })
  if not t then return nil, err end
  return t:reshape(e.shape)
end

local function add(self, as, name, info, shape, first, last)
  self.entries[as] = { name = name, info = info, shape = shape, first = first, last = last }
  self.list[#self.list + 1] = as
end

---@param path string
---@param options table|nil   runtime
---@return table
function gguf.files(path, options)
  local self = setmetatable({ file = open(path), entries = {}, list = {}, runtime = options and options.runtime }, Files)
  for _, name in ipairs(self.file:names()) do
    local info = self.file:info(name)
    local layer, key = name:match "^blk%.(%d+)%.(.+)%.weight$"
    local stack = key and key:match "^ffn_(%a+)_exps$"
    if TOP[name] then
      add(self, TOP[name], name, info, info.shape)
    elseif stack and #info.shape == 3 then
      local E, N, K = table.unpack(info.shape)
      for e = 0, E - 1 do
        local as = ("model.layers.%s.feed_forward.experts.%d.%s_proj.weight"):format(layer, e, stack)
        add(self, as, name, info, { N, K }, e * N + 1, (e + 1) * N)
      end
    elseif key and IN_LAYER[key] then
      add(self, ("model.layers.%s.%s.weight"):format(layer, IN_LAYER[key]), name, info, info.shape)
    elseif not UNUSED[name] then
      add(self, name, name, info, info.shape)
    end
  end
  return self
end

-- ---- tokenizer ------------------------------------------------------------------------------------------------------------

local SPLIT = [=[[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|]=]
  .. [=[[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|]=]
  .. [=[\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+]=]
local NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

--- What tokenizer.json would be; nil: the file has no tokenizer of Llama 4's kind.
local function tokenizer_json(file)
  local function value(name) return (file:value("tokenizer.ggml." .. name)) end
  local tokens, kinds, merges = value "tokens", value "token_type", value "merges"
  if value "model" ~= "gpt2" or value "pre" ~= "llama4" then return nil end
  if type(tokens) ~= "table" or type(merges) ~= "table" then return nil end
  local vocab, added = {}, {}
  for i, text in ipairs(tokens) do
    local kind = type(kinds) == "table" and kinds[i] or NORMAL
    if kind == CONTROL or kind == USER_DEFINED then
      added[#added + 1] = { id = i - 1, content = text, single_word = false, lstrip = false, rstrip = false, normalized = false,
        special = kind == CONTROL }
    else
      vocab[text] = i - 1
    end
  end
  local bos = token(file, "bos")
  local begin = bos and tokens[bos + 1]
  local level = { type = "ByteLevel", add_prefix_space = false, trim_offsets = true, use_regex = false }
  return { version = "1.0", added_tokens = mav.json.array(added), normalizer = mav.json.null, decoder = level,
    pre_tokenizer = { type = "Sequence", pretokenizers = { { type = "Split", pattern = { Regex = SPLIT }, behavior = "Isolated",
      invert = false }, level } },
    post_processor = begin and { type = "TemplateProcessing", single = { { SpecialToken = { id = begin, type_id = 0 } },
      { Sequence = { id = "A", type_id = 0 } } }, pair = mav.json.array {},
      special_tokens = { [begin] = { id = begin, ids = { bos }, tokens = { begin } } } } or mav.json.null,
    model = { type = "BPE", ignore_merges = true, vocab = vocab, merges = mav.json.array(merges) } }
end

--- The tokenizer in a file.
---@param path string
---@return table|nil tokenizer
---@return any err
function gguf.tokenizer(path)
  local ok, tok, err = pcall(function()
    local json = tokenizer_json(open(path))
    if not json then return nil, path .. ": no tokenizer of Llama 4's kind is in the file (tokenizer.ggml.model gpt2, pre llama4)" end
    local name = os.tmpname()
    local out <close> = assert(io.open(name, "wb"))
    out:write(mav.json.encode(json))
    out:close()
    local made, wrong = mav.tokenizer(name)
    os.remove(name)
    return made, wrong
  end)
  if not ok then return nil, tok end
  return tok, err
end

return gguf
