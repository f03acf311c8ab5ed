--- The files of an EAGLE-3 draft head: config.json and safetensors, checked against the model it drafts for.
---
--- Reads heads as SafeAILab, NVIDIA (ModelOpt), SGLang's SpecForge and vLLM's speculators store them: one layer named `midlayer.`
--- or `layers.0.`; own or the model's output embedding; a vocabulary of its own (d2t: offset from a draft id to the target's) or
--- the model's; the layers whose states it reads by name or by default. Everything comes from strangers: every value has a range,
--- every tensor a shape, and what would change the mathematics and is not implemented is refused by name.
local mav = require "mav"
local fault = require "mav.maverick.fault"
local config = require "mav.maverick.config"
local weights = require "mav.maverick.weights"

local eagle3_head = {}

local AUX_MAX = 16 -- states read
local SAMPLED_ROWS = 16 -- of an embedding, to tell whether it is the model's

--- As in maverick/config.lua. The keys of newer heads that must not be true, or must not be false.
local FIELDS = {
  { name = "hidden", key = "hidden_size", kind = "integer", least = 2, most = 1 << 17 },
  { name = "heads", key = "num_attention_heads", kind = "integer", least = 1, most = 1024 },
  { name = "eps", key = "rms_norm_eps", kind = "number", least = 1e-12, most = 0.1 },
  { name = "vocab", key = "vocab_size", kind = "integer", least = 2, most = 1 << 24 },
}
local NOT_TRUE = { "attention_bias", "mlp_bias", "norm_before_fc", "fc_norm", "norm_output", "norm_before_residual",
  "eh_proj_before_attn", "use_mtp_layernorm" }
local NOT_FALSE = { "use_aux_hidden_state", "use_input_layernorm_in_first_layer", "use_last_layernorm" }

local function refuse(reader, key, value)
  fault.raise("UNSUPPORTED", reader.file, "%s%s = %s is not supported", reader.prefix, key, fault.show(value))
end

--- One object of the file: nothing in it may ask for what is not implemented.
local function check_variants(reader, object)
  for _, key in ipairs(NOT_TRUE) do
    local value = object[key]
    if not config.is_null(value) and value ~= false then refuse(reader, key, value) end
  end
  for _, key in ipairs(NOT_FALSE) do
    local value = object[key]
    if not config.is_null(value) and value ~= true then refuse(reader, key, value) end
  end
  local act = object.hidden_act
  if not config.is_null(act) and act ~= "silu" then refuse(reader, "hidden_act", act) end
end

--- Numbers (1-based) of the layers whose outputs the head reads, ascending. In the file 0-based: k is the output of layer k.
local function read_aux(reader, raw, eagle, layers)
  local key = "eagle_aux_hidden_state_layer_ids"
  local list = reader:list(raw, key, 0, layers - 1)
  local from = reader
  if eagle and (not list or #list == 0) then
    from = reader:within "eagle_config."
    list = from:list(eagle, key, 0, layers - 1)
  end
  if not list or #list == 0 then
    list = { 1, layers // 2 - 1, layers - 4 }
    if layers < 6 then from:fail(key, nil, "a list is needed: the default is for models of 6 layers or more") end
  end
  if #list > AUX_MAX then from:fail(key, list, "at most %d layers are allowed", AUX_MAX) end
  for i, layer in ipairs(list) do
    if layer <= (list[i - 1] or -1) then from:fail(("%s[%d]"):format(key, i - 1), layer, "ascending numbers are allowed") end
  end
  for i = 1, #list do list[i] = list[i] + 1 end
  return list
end

local function read_attention(reader, text, c)
  c.kv_heads = reader:value(text, { key = "num_key_value_heads", kind = "integer", least = 1, most = c.heads, default = c.heads })
  if c.heads % c.kv_heads ~= 0 then
    reader:fail("num_key_value_heads", c.kv_heads, "a divisor of num_attention_heads (%d) is allowed", c.heads)
  end
  c.head_dim = reader:value(text, { key = "head_dim", kind = "integer", least = 2, most = 1024, default = c.hidden // c.heads })
  if c.head_dim < 2 or c.head_dim % 2 ~= 0 or c.head_dim > 1024 then
    reader:fail("head_dim", c.head_dim, "an even number from 2 to 1024 is allowed (RoPE rotates halves)")
  end
  c.rope = config.read_rope(reader, text, 10000)
  c.inv_freq = config.inverse_frequencies(c.head_dim, c.rope)
end

--- The head's config in plain names; target: the config of the model it drafts for.
local function read_config(dir, target)
  local reader, raw = config.open(dir .. "/config.json")
  config.check_quantization(reader, raw, raw, dir)
  local eagle = reader:object(raw, "eagle_config")
  local text = reader:object(raw, "transformer_layer_config") or raw -- speculators
  check_variants(reader, raw)
  if eagle then check_variants(reader:within "eagle_config.", eagle) end
  if text ~= raw then check_variants(reader:within "transformer_layer_config.", text) end
  local c = { dir = dir, file = reader.file, aux = read_aux(reader, raw, eagle, target.layers) }
  local whole = reader
  if text ~= raw then reader = reader:within "transformer_layer_config." end

  for _, field in ipairs(FIELDS) do c[field.name] = reader:value(text, field) end
  if c.hidden ~= target.hidden then reader:fail("hidden_size", c.hidden, "that of the model, %d, is allowed", target.hidden) end
  if c.vocab ~= target.vocab then reader:fail("vocab_size", c.vocab, "that of the model, %d, is allowed", target.vocab) end
  reader:value(text, { key = "num_hidden_layers", kind = "integer", least = 1, most = 1, default = 1 })
  local size = text.model_type == "llama4_text" and "intermediate_size_mlp" or "intermediate_size"
  c.size = reader:value(text, { key = size, kind = "integer", least = 1, most = 1 << 20 })
  c.draft_vocab = whole:value(raw, { key = "draft_vocab_size", kind = "integer", least = 1, most = c.vocab, default = c.vocab })
  read_attention(reader, text, c)
  return c
end

-- ---- tensors ----------------------------------------------------------------------------------------------------------

local function plan_head(c, files, H)
  local plan, D = weights.plan(), c.hidden
  local base = files:has "layers.0.hidden_norm.weight" and "layers.0." or "midlayer."
  local q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
  local function rows(name, count, first)
    return { name = base .. "self_attn." .. name, shape = { count, 2 * D },
      place = function(t) return t:slice(1, first + 1, first + count) end }
  end
  plan:whole(H, "fc", true, "fc.weight", D, #c.aux * D)
  plan:whole(H, "embed_norm", false, base .. "input_layernorm.weight", D)
  plan:whole(H, "state_norm", false, base .. "hidden_norm.weight", D)
  plan:add(H, "qkv", true, { q + 2 * kv, 2 * D },
    { rows("q_proj.weight", q, 0), rows("k_proj.weight", kv, q), rows("v_proj.weight", kv, q + kv) })
  plan:whole(H, "o", true, base .. "self_attn.o_proj.weight", D, q)
  plan:whole(H, "ffn_norm", false, base .. "post_attention_layernorm.weight", D)
  plan:feed_forward(c, H, base .. "mlp.", c.size)
  plan:whole(H, "norm", false, "norm.weight", D)
  if files:has "lm_head.weight" or c.draft_vocab < c.vocab then
    plan:whole(H, "head", false, "lm_head.weight", c.draft_vocab, D)
  end
  return plan
end

--- Target ids of the draft ids, i + d2t[i]: a list, or nil when the vocabularies are the same.
local function read_targets(c, files, dir)
  if not files:has "d2t" then
    if c.draft_vocab < c.vocab then
      fault.raise("NOTFOUND", dir, "tensor d2t is missing; draft_vocab_size %d is less than vocab_size %d", c.draft_vocab, c.vocab)
    end
    return nil
  end
  local info = files:info "d2t"
  if #info.shape ~= 1 or info.shape[1] ~= c.draft_vocab then
    fault.raise("SHAPE", dir, "tensor d2t has shape %s; draft_vocab_size asks for (%d)", fault.shape(info.shape), c.draft_vocab)
  end
  if info.dtype ~= "i64" and info.dtype ~= "i32" then
    fault.raise("DTYPE", dir, "tensor d2t is %s; i64 or i32 is allowed", info.dtype)
  end
  local list, used, is_identity = fault.check(files:get "d2t"):totable(), {}, c.draft_vocab == c.vocab
  for i, offset in ipairs(list) do
    local id = i - 1 + math.tointeger(offset)
    if id < 0 or id >= c.vocab then
      fault.raise("RANGE", dir, "d2t[%d] is %d: target id %d is outside the vocabulary of %d", i - 1, offset, id, c.vocab)
    end
    if used[id] then fault.raise("RANGE", dir, "d2t[%d] is %d: target id %d occurs twice", i - 1, offset, id) end
    used[id], list[i] = true, id
    is_identity = is_identity and id == i - 1
  end
  return not is_identity and list or nil
end

--- Whether two (V, D) embeddings have the same values, by some of their rows.
local function is_same(a, b, V)
  for n = 0, SAMPLED_ROWS - 1 do
    local i = n * (V - 1) // (SAMPLED_ROWS - 1) + 1
    local x, y = a:select(1, i):totable(), b:select(1, i):totable()
    for j = 1, #x do
      if x[j] ~= y[j] then return false end
    end
  end
  return true
end

--- A head may carry a copy of the model's embedding: it is read only when it is not one.
local function plan_embedding(plan, c, files, model, H)
  local name = "embed_tokens.weight"
  local info = files:has(name) and files:info(name)
  if not info then return end
  local same_shape = #info.shape == 2 and info.shape[1] == c.vocab and info.shape[2] == c.hidden
  if same_shape and is_same(fault.check(files:get(name)), model.weights.embed, c.vocab) then return end
  plan:whole(H, "embed", false, name, c.vocab, c.hidden)
end

local IGNORED = { t2d = true, d2t = true, ["embed_tokens.weight"] = true } -- t2d is of use in training only

local function load(dir, model, options)
  local c, rt = read_config(dir, model.config), model.runtime
  local files = fault.check(mav.weights(dir, { runtime = rt }))
  local H = { config = c, eps = c.eps }
  local targets = read_targets(c, files, dir)
  local plan = plan_head(c, files, H)
  plan_embedding(plan, c, files, model, H)
  weights.fill(plan, files, dir, { runtime = rt, dtype = options.dtype, progress = options.progress },
    function(name) return IGNORED[name] or name:find "rotary_emb%.inv_freq$" ~= nil end)
  H.embed, H.head = H.embed or model.weights.embed, H.head or model.weights.head
  H.rope = mav.tensor(c.inv_freq, { dtype = "f32", runtime = rt })
  if targets then H.targets = mav.tensor(targets, { dtype = "i32", runtime = rt }) end
  return H
end

--- Loads a head for `model`.
---
--- Result: fc (D, n D), embed_norm, state_norm (D), qkv (N, 2 D), o (D, H C), ffn_norm (D), gate, up (F, D), down (D, F),
--- norm (D), head (draft vocabulary, D), embed (V, D), rope, eps; targets: i32 (draft vocabulary), nil when it is the model's;
--- config: hidden, heads, kv_heads, head_dim, size, vocab, draft_vocab, aux (numbers of the layers read, from 1).
---@param dir string
---@param model table   config, weights, runtime
---@param options table   dtype, progress: as of the model's loader
---@return table|nil head
---@return any err
function eagle3_head.load(dir, model, options) return fault.catch(load, dir, model, options) end

return eagle3_head
