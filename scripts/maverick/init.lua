--- Llama 4 Scout and Maverick from a Hugging Face directory, packs or a GGUF file.
---
---     local model = assert(require("mav.maverick").load("models/tiny-maverick", { dtype = "fp8" }))
---     local s <close> = model:session { sample = { temperature = 0.7, top_p = 0.95, seed = 1 } }
---     for piece in s:generate("-- returns the sum of the list t\n", { max_tokens = 64 }) do io.write(piece) end
local mav = require "mav"
local check_keys = require "mav.options"
local config = require "mav.maverick.config"
local gguf = require "mav.maverick.gguf"
local weights = require "mav.maverick.weights"
local forward = require "mav.maverick.forward"
local chat_template = require "mav.maverick.chat_template"

local maverick = {}

local Model = { __name = "mav.maverick" }
Model.__index = Model

local LOAD_OPTIONS = { device = true, threads = true, isa = true, runtime = true, dtype = true, activations = true, progress = true,
  mapped = true }
local KV_BYTES = { f32 = 4, bf16 = 2, f8 = 1 }
local KV_DTYPES = { f32 = "f32", bf16 = "bf16", f8 = "f8", fp8 = "f8" }
local KV_OPTIONS = { tokens = true, dtype = true, sequences = true, context_max = true, page = true, extra = true }

--- The runtime that was asked for. One that is made here becomes the default, so that scripts need not pass it on.
local function runtime_for(options)
  if options.runtime then return options.runtime end
  if not (options.device or options.threads or options.isa) then return mav.default_runtime() end
  local rt, err = mav.runtime { device = options.device, threads = options.threads, isa = options.isa }
  if not rt then return nil, err end
  mav.default_runtime(rt)
  return rt
end

--- Loads config.json, the safetensors or the pack (`mav weights convert`), and tokenizer.json of `dir`; or a GGUF file (a path that ends
--- in .gguf), which holds all of them.
---
---   options.device, threads, isa   as of mav.runtime; or options.runtime
---   options.dtype                  nil: as stored; "fp8": linear layers to e4m3 per output channel; "bf16", "f32". A quantized
---                                  checkpoint needs none
---   options.activations            "f32": do not round the activations of quantized checkpoints; nil: as the checkpoint asks
---   options.mapped                 of packs: true: weights stay in the file (the default); false: they are copied to memory
---   options.progress               function(bytes done, bytes in all, tensor name)
---@param dir string
---@param options table|nil
---@return table|nil model   config, weights, tokenizer (nil without a tokenizer.json: see tokenizer_error), runtime, dir
---@return table|nil err
function maverick.load(dir, options)
  options = options or {}
  check_keys(options, LOAD_OPTIONS, "maverick.load")
  if options.activations ~= nil and options.activations ~= "f32" then error("maverick.load: activations: \"f32\" is allowed", 2) end
  local c, rt, W, err
  c, err = config.read(dir)
  if not c then return nil, err end
  rt, err = runtime_for(options)
  if not rt then return nil, err end
  W, err = weights.load(dir, c, { runtime = rt, dtype = options.dtype, activations = options.activations, progress = options.progress,
    mapped = options.mapped })
  if not W then return nil, err end
  local model = { dir = dir, config = c, weights = W, runtime = rt, dtype = options.dtype }
  if gguf.is_path(dir) then
    model.tokenizer, model.tokenizer_error = gguf.tokenizer(dir)
  else
    model.tokenizer, model.tokenizer_error = mav.tokenizer(dir .. "/tokenizer.json")
  end
  return setmetatable(model, Model)
end

--- A model from its parts, made otherwise: config, weights, runtime, dir (its name); dtype, tokenizer.
function maverick.of(parts) return setmetatable(parts, Model) end

function Model:__tostring()
  local c = self.config
  return ("mav.maverick %s (%d layers, hidden %d, %d experts)"):format(self.dir, c.layers, c.hidden, c.experts)
end

--- Logits of rows (forward.lua), eagerly or inside mav.graph.
function Model:forward(rows, kv, options) return forward(self.weights, rows, kv, options) end

--- The type of cache that the checkpoint asks for.
function Model:kv_dtype() return self.config.quant and self.config.quant.kv or "f32" end

--- A paged cache of this model's layers: tokens (capacity over all sequences), dtype ("f32", "bf16", "fp8"; nil: what the
--- checkpoint asks for, else "f32"), sequences, context_max, page; extra: layers of a drafter after the model's, a list of
--- { kv_heads =, head_dim =, chunk = }. An FP8 cache has the checkpoint's scales, and 1 where it has none.
function Model:kv(options)
  check_keys(options, KV_OPTIONS, "model:kv")
  local c, W = self.config, self.weights
  local chunk, heads, dim, k_scale, v_scale = {}, {}, {}, {}, {}
  for i = 1, c.layers do
    chunk[i], heads[i], dim[i] = c.chunks[i], c.kv_heads, c.head_dim
    k_scale[i], v_scale[i] = W.k_scale and W.k_scale[i] or 1, W.v_scale and W.v_scale[i] or 1
  end
  for i, layer in ipairs(options.extra or {}) do
    i = c.layers + i
    chunk[i], heads[i], dim[i], k_scale[i], v_scale[i] = layer.chunk or 0, layer.kv_heads, layer.head_dim, 1, 1
  end
  local dtype = options.dtype or self:kv_dtype()
  return mav.kv { layers = #chunk, chunk = chunk, kv_heads = heads, head_dim = dim, dtype = KV_DTYPES[dtype] or dtype,
    k_scale = k_scale, v_scale = v_scale,
    tokens = options.tokens, sequences = options.sequences, context_max = options.context_max, page = options.page, runtime = self.runtime }
end

--- A conversation with the model: session/init.lua.
function Model:session(options) return require("mav.session").new(self, options) end

--- Ids of a prompt, with the begin-of-text id once in front. Special tokens in the text count as such.
---@return integer[]|nil ids
---@return any err
function Model:encode(text)
  if not self.tokenizer then return nil, self.tokenizer_error end
  local ids, err = self.tokenizer:encode(text, { bos = false, special = true })
  if not ids then return nil, err end
  if self.config.bos and ids[1] ~= self.config.bos then table.insert(ids, 1, self.config.bos) end
  return ids
end

--- Bytes that a step of n rows reads: weights and, once, the cache at `context`. experts: how many different ones the rows hit in a
--- layer; nil: as expected with random routing.
function Model:step_bytes(rows, context, kv_dtype, experts)
  local c = self.config
  local per_token = 2 * c.kv_heads * c.head_dim * KV_BYTES[kv_dtype or "f32"]
  local bytes = weights.step_bytes(self.weights, c, rows, experts)
  for _, chunk in ipairs(c.chunks) do
    local seen = chunk > 0 and (context > 0 and (context - 1) % chunk + 1 or 0) or context
    bytes = bytes + seen * per_token -- the rows share what they read
  end
  return bytes
end

--- Measures what the memory gives (GB/s), once; s.stats then shows the share of it that a step reads.
function Model:measure_bandwidth()
  self.bandwidth_gb_per_s = self.bandwidth_gb_per_s or assert(self.runtime:bandwidth { bytes = 256 << 20, repeats = 3 })
  return self.bandwidth_gb_per_s
end

maverick.config, maverick.forward, maverick.chat_template = config, forward, chat_template
return maverick
