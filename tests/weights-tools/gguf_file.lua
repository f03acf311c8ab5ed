--- Writes GGUF files, as specs want them: right ones, and others.
local mav = require "mav"

local gguf_file = {}

local TYPES = { u8 = 0, i8 = 1, u16 = 2, i16 = 3, u32 = 4, i32 = 5, f32 = 6, bool = 7, string = 8, array = 9, u64 = 10, i64 = 11, f64 = 12 }
local FORMATS = { u8 = "<I1", i8 = "<i1", u16 = "<I2", i16 = "<i2", u32 = "<I4", i32 = "<i4", f32 = "<f", bool = "<I1", string = "<s8",
  u64 = "<I8", i64 = "<i8", f64 = "<d" }
local GGML = { f32 = 0, f16 = 1, q4_k = 12, q8_0 = 8, bf16 = 30 }

local function value(kind, v)
  if kind == "bool" then v = v and 1 or 0 end
  return FORMATS[kind]:pack(v)
end

--- { key, type, value } or { key, "array", type of the values, values }
local function key_bytes(k)
  local head = ("<s8I4"):pack(k[1], TYPES[k[2]])
  if k[2] ~= "array" then return head .. value(k[2], k[3]) end
  local out = { head, ("<I4I8"):pack(TYPES[k[3]], #k[4]) }
  for i, v in ipairs(k[4]) do out[2 + i] = value(k[3], v) end
  return table.concat(out)
end

--- A row of numbers, a multiple of 32, in blocks of an f16 scale and 32 codes.
local function q8_0(t)
  local out, flat = {}, t:to("f32"):reshape { t:count() }
  local list = flat:totable()
  for first = 1, #list, 32 do
    local most = 0
    for i = first, first + 31 do most = math.max(most, math.abs(list[i])) end
    local scale = mav.tensor({ most / 127 }, { dtype = "f16" })
    local d = scale:get(1)
    out[#out + 1] = scale:bytes()
    for i = first, first + 31 do
      local q = d > 0 and math.floor(list[i] / d + 0.5) or 0
      out[#out + 1] = ("<i1"):pack(math.max(-127, math.min(127, q)))
    end
  end
  return table.concat(out)
end

--- The bytes of a file. keys as above; tensors: { name, type, tensor }, or { name, type, shape =, data = } (shape outermost first).
function gguf_file.bytes(keys, tensors, options)
  options = options or {}
  local alignment = options.alignment or 32
  local head, data, at = { "GGUF" .. ("<I4I8I8"):pack(options.version or 3, #tensors, #keys) }, {}, 0
  for _, k in ipairs(keys) do head[#head + 1] = key_bytes(k) end
  for _, t in ipairs(tensors) do
    local name, kind, tensor = t[1], t[2], t[3]
    local shape = t.shape or tensor.shape
    local bytes = t.data or (kind == "q8_0" and q8_0(tensor) or tensor:to(kind):contiguous():bytes())
    head[#head + 1] = ("<s8I4"):pack(name, #shape)
    for d = #shape, 1, -1 do head[#head + 1] = ("<I8"):pack(shape[d]) end
    head[#head + 1] = ("<I4I8"):pack(t.ggml or GGML[kind], t.offset or at)
    local padding = -#bytes % alignment
    data[#data + 1] = bytes .. ("\0"):rep(padding)
    at = at + #bytes + padding
  end
  local text = table.concat(head)
  return text .. ("\0"):rep(-#text % alignment) .. table.concat(data)
end

local NAMES = { ["model.embed_tokens.weight"] = "token_embd", ["model.norm.weight"] = "output_norm", ["lm_head.weight"] = "output" }
local IN_LAYER = { input_layernorm = "attn_norm", post_attention_layernorm = "ffn_norm", ["self_attn.q_proj"] = "attn_q",
  ["self_attn.k_proj"] = "attn_k", ["self_attn.v_proj"] = "attn_v", ["self_attn.o_proj"] = "attn_output",
  ["feed_forward.router"] = "ffn_gate_inp" }
for _, key in ipairs { "gate", "up", "down" } do
  IN_LAYER["feed_forward." .. key .. "_proj"] = "ffn_" .. key
  IN_LAYER["feed_forward.shared_expert." .. key .. "_proj"] = "ffn_" .. key .. "_shexp"
end

--- Tensors of a Hugging Face directory as llama.cpp's converter writes them: norms and routers in f32, the rest as `kind`.
local function tensors_of(w, kind)
  local list = {}
  for _, name in ipairs(w:names()) do
    local t = assert(w:get(name))
    local layer, rest = name:match "^model%.layers%.(%d+)%.(.*)$"
    local function add(own, tensor, own_kind) list[#list + 1] = { own .. ".weight", own_kind or kind, tensor:contiguous() } end
    if NAMES[name] then
      add(NAMES[name], t, #t.shape == 1 and "f32" or nil)
    elseif rest == "feed_forward.experts.gate_up_proj" then
      local F = t.shape[3] // 2
      add(("blk.%s.ffn_gate_exps"):format(layer), t:slice(3, 1, F):transpose(2, 3))
      add(("blk.%s.ffn_up_exps"):format(layer), t:slice(3, F + 1, 2 * F):transpose(2, 3))
    elseif rest == "feed_forward.experts.down_proj" then
      add(("blk.%s.ffn_down_exps"):format(layer), t:transpose(2, 3))
    else
      local own = IN_LAYER[rest:gsub("%.weight$", "")]
      add(("blk.%s.%s"):format(layer, own), t, (#t.shape == 1 or own == "ffn_gate_inp") and "f32" or nil)
    end
  end
  return list
end

--- Tokens, types and merges of a tokenizer.json.
local function tokenizer_keys(path, raw)
  local file = io.open(path, "rb")
  if not file then return {} end
  local json = assert(mav.json.decode(file:read "a"))
  file:close()
  local tokens, kinds, merges = {}, {}, {}
  for text, id in pairs(json.model.vocab) do tokens[id + 1], kinds[id + 1] = text, 1 end
  for _, t in ipairs(json.added_tokens) do
    tokens[t.id + 1], kinds[t.id + 1] = t.content, t.special and 3 or 4
  end
  for i, m in ipairs(json.model.merges) do merges[i] = type(m) == "table" and table.concat(m, " ") or m end
  return { { "tokenizer.ggml.model", "string", "gpt2" }, { "tokenizer.ggml.pre", "string", "llama4" },
    { "tokenizer.ggml.tokens", "array", "string", tokens }, { "tokenizer.ggml.token_type", "array", "i32", kinds },
    { "tokenizer.ggml.merges", "array", "string", merges }, { "tokenizer.ggml.bos_token_id", "u32", raw.bos_token_id },
    { "tokenizer.ggml.eos_token_id", "u32", raw.eos_token_id[1] } }
end

--- The bytes of a GGUF file of the model in `dir` (BF16, fused experts, what llama.cpp fixes as it fixes it).
function gguf_file.of_model(dir, kind, more)
  local file = assert(io.open(dir .. "/config.json", "rb"))
  local c = assert(mav.json.decode(file:read "a"))
  file:close()
  local keys = { { "general.architecture", "string", "llama4" }, { "llama4.block_count", "u32", c.num_hidden_layers },
    { "llama4.context_length", "u32", c.max_position_embeddings }, { "llama4.embedding_length", "u32", c.hidden_size },
    { "llama4.feed_forward_length", "u32", c.intermediate_size_mlp }, { "llama4.attention.head_count", "u32", c.num_attention_heads },
    { "llama4.attention.head_count_kv", "u32", c.num_key_value_heads }, { "llama4.attention.key_length", "u32", c.head_dim },
    { "llama4.rope.dimension_count", "u32", c.head_dim }, { "llama4.rope.freq_base", "f32", c.rope_theta },
    { "llama4.attention.layer_norm_rms_epsilon", "f32", c.rms_norm_eps }, { "llama4.expert_count", "u32", c.num_local_experts },
    { "llama4.expert_used_count", "u32", c.num_experts_per_tok }, { "llama4.expert_feed_forward_length", "u32", c.intermediate_size },
    { "llama4.interleave_moe_layer_step", "u32", c.interleave_moe_layer_step }, { "llama4.vocab_size", "u32", c.vocab_size } }
  table.move(tokenizer_keys(dir .. "/tokenizer.json", c), 1, 100, #keys + 1, keys)
  local w <close> = assert(mav.weights(dir))
  local tensors = tensors_of(w, kind)
  for _, t in ipairs(more or {}) do tensors[#tensors + 1] = t end
  return gguf_file.bytes(keys, tensors)
end

return gguf_file
