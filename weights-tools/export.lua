--- mav weights export: packs -> a Hugging Face directory.
---
---   1. Tensors that are not quantized come back to the bit: ranks put together, q, k and v apart, experts fused and input-major.
---   2. FP8 weights become those of compressed-tensors: codes as they are, a weight_scale for every output row, experts one by one;
---      activations and the cache as the packs have them. A scale that BF16 holds exactly is written in BF16.
---   3. The result is the text decoder (Llama4ForCausalLM): packs have no vision tower.
---   4. Memory stays small: blocks of rows, whatever the size of a tensor.
local cli = require "mav.cli"
local fault = require "mav.maverick.fault"
local gguf = require "mav.maverick.gguf"
local hf = require "mav.weights_tools.hf"
local logical = require "mav.weights_tools.logical"
local mav = require "mav"
local reader = require "mav.maverick.reader"
local show = require "mav.weights_tools.show"
local source = require "mav.weights_tools.source"
local op = mav.op

local export = {}

local OPTIONS = { dtype = true, shards = true, shard_bytes = true, force = true, progress = true }
local BLOCK = 1 << 20 -- elements
local SHARD_BYTES = 5 << 30
local SIDE_FILES = { "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
  "added_tokens.json", "chat_template.jinja", "chat_template.json", "LICENSE", "LICENSE.txt", "USE_POLICY.md" }

-- ---- bytes of tensors -------------------------------------------------------------------------------------------------------

--- The rows of a logical tensor, one group of it or all.
local function put_rows(out, t, group, dtype, progress)
  local limit = t.raw and BLOCK or 8 * BLOCK
  limit = math.max(16, limit // t.K // 16 * 16)
  for e = group or 1, group or t.E do
    for first = 0, t.N - 1, limit do
      local last = math.min(t.N, first + limit)
      local x
      if t.is_quantized and dtype ~= "f8" then
        x = op.cast { x = t:values(e, first, last), dtype = dtype }
      else
        x = t:block(e, first, last):contiguous()
        if x.dtype ~= dtype then x = op.cast { x = x, dtype = dtype } end
      end
      out:write(x:bytes())
      progress((last - first) * t.K)
      collectgarbage "step"
    end
  end
end

--- Experts side by side, turned: (E, K, sum of N).
local function put_turned(out, parts, dtype, progress)
  local E, K, columns = parts[1].E, parts[1].K, 0
  for _, t in ipairs(parts) do columns = columns + t.N end
  local limit = math.max(1, BLOCK // columns)
  for e = 1, E do
    local whole = {}
    for i, t in ipairs(parts) do
      whole[i] = (t.is_quantized and t.dtype == "f8") and op.cast { x = t:values(e, 0, t.N), dtype = dtype } or t:block(e, 0, t.N)
    end
    for first = 0, K - 1, limit do
      local last, at = math.min(K, first + limit), 0
      local block = mav.zeros { dtype = dtype, last - first, columns }
      for i, t in ipairs(parts) do
        block:slice(2, at + 1, at + t.N):copy_from(whole[i]:slice(2, first + 1, last):transpose(1, 2))
        at = at + t.N
      end
      out:write(block:bytes())
      progress((last - first) * columns)
      collectgarbage "step"
    end
  end
end

--- All scales of a group's rows, (N) f32.
local function scales_of(t, group)
  local scale = mav.zeros { dtype = "f32", t.N }
  local step = math.max(16, BLOCK // 16)
  for first = 0, t.N - 1, step do
    local last = math.min(t.N, first + step)
    local own = t:scales(group, first, last)
    local place = scale:slice(1, first + 1, last)
    if own.shape[1] == 1 then
      place:copy_from(mav.tensor(own:get(1, 1), { dtype = "f32", shape = { last - first } }))
    else
      place:copy_from(own:reshape { last - first })
    end
  end
  return scale
end

--- Does bf16 hold all scales of a tensor exactly?
local function is_bf16(t)
  for e = 1, t.E do
    local scale = scales_of(t, e)
    if scale:to("bf16"):to("f32"):bytes() ~= scale:bytes() then return false end
  end
  return true
end

-- ---- which tensors ------------------------------------------------------------------------------------------------------------

local TOP = { embed = "model.embed_tokens", norm = "model.norm", head = "lm_head" }
local IN_LAYER = { attn_norm = "input_layernorm", ffn_norm = "post_attention_layernorm", q = "self_attn.q_proj", k = "self_attn.k_proj",
  v = "self_attn.v_proj", o = "self_attn.o_proj", router = "feed_forward.router" }
local SIZED = { gate = "gate_proj", up = "up_proj", down = "down_proj" }
local EXPERTS = { expert_gate = "gate_proj", expert_up = "up_proj", expert_down = "down_proj" }

--- list: what hf.write takes, with put(out, progress); plain and quantized: modules with a matrix, of the latter with their act.
local List = {}
List.__index = List

function List:add(name, dtype, shape, put)
  self[#self + 1] = hf.sized { name = name, dtype = hf.DTYPES[dtype], shape = shape, put = put }
end

--- What a weight becomes: its dtype in the files.
function List:dtype_of(t)
  if t.dtype ~= "f8" then
    if t.is_quantized and t.act ~= "none" then self.unrounded = self.unrounded + 1 end
    return self.dtype ~= "keep" and self.dtype or hf.DTYPES[t.dtype] and t.dtype or "f32" -- blocks of GGUF files
  end
  if not t.is_quantized then fault.raise("UNSUPPORTED", self.path, "tensor %s is f8 without a scale", t.name) end
  return self.dtype == "keep" and "f8" or self.dtype
end

--- A matrix of its own, or one expert of a stack.
function List:module(name, t, group)
  local dtype = self:dtype_of(t)
  self:add(name .. ".weight", dtype, { t.N, t.K }, function(out, progress) put_rows(out, t, group, dtype, progress) end)
  if dtype ~= "f8" then
    self.plain[#self.plain + 1] = name
    return
  end
  local short = self.scale_dtypes[t] or (is_bf16(t) and "bf16" or "f32")
  self.scale_dtypes[t] = short
  self:add(name .. ".weight_scale", short, { t.N, 1 }, function(out) out:write(scales_of(t, group or 1):to(short):bytes()) end)
  local act = t.act or "none"
  if act == "static" then
    self:add(name .. ".input_scale", "f32", { 1 }, function(out) out:write(("<f"):pack(t.in_scale)) end)
  end
  self.quantized[act] = self.quantized[act] or mav.json.array {}
  table.insert(self.quantized[act], name)
end

--- Vectors and tables, which are no linear layers.
function List:plain_tensor(name, t, shape)
  local dtype = self:dtype_of(t)
  self:add(name .. ".weight", dtype, shape, function(out, progress) put_rows(out, t, nil, dtype, progress) end)
end

function List:experts(base, gate, up, down)
  local kinds = { self:dtype_of(gate), self:dtype_of(up), self:dtype_of(down) }
  if kinds[1] == kinds[2] and kinds[1] ~= "f8" and kinds[3] ~= "f8" then
    self:add(base .. "gate_up_proj", kinds[1], { gate.E, gate.K, gate.N + up.N }, function(out, progress)
      put_turned(out, { gate, up }, kinds[1], progress)
    end)
    self:add(base .. "down_proj", kinds[3], { down.E, down.K, down.N }, function(out, progress)
      put_turned(out, { down }, kinds[3], progress)
    end)
    return
  end
  for e = 1, gate.E do
    for _, pair in ipairs { { "gate_proj", gate }, { "up_proj", up }, { "down_proj", down } } do
      self:module(("%s%d.%s"):format(base, e - 1, pair[1]), pair[2], e)
    end
  end
end

local function need(model, name)
  return model.by_name[name] or fault.raise("NOTFOUND", model.store.path, "tensor %s is missing", name)
end

--- The tensors of a model, in order of layers.
local function tensors_of(model, dtype)
  local list = setmetatable({ path = model.store.path, dtype = dtype, plain = mav.json.array {}, quantized = {}, scale_dtypes = {},
    unrounded = 0 }, List)
  local layers, head = 0, model.by_name.head
  for _, t in ipairs(model.list) do
    local layer, key = t.name:match "^layers%.(%d+)%.(.+)$"
    if not (TOP[t.name] or layer and (IN_LAYER[key] or SIZED[key] or EXPERTS[key])) then
      fault.raise("UNSUPPORTED", list.path, "tensor %s has no name in the Hugging Face layout", t.name)
    end
    if layer then layers = math.max(layers, tonumber(layer) + 1) end
  end
  local embed = need(model, "embed")
  list:plain_tensor(TOP.embed, embed, { embed.N, embed.K })
  for i = 0, layers - 1 do
    local own, base = ("layers.%d."):format(i), ("model.layers.%d."):format(i)
    for _, key in ipairs { "attn_norm", "q", "k", "v", "o", "ffn_norm" } do
      local t = need(model, own .. key)
      if key:find "norm" then list:plain_tensor(base .. IN_LAYER[key], t, { t.K }) else list:module(base .. IN_LAYER[key], t) end
    end
    local ffn, router = base .. "feed_forward.", model.by_name[own .. "router"]
    if router then
      list:module(base .. IN_LAYER.router, router)
      list:experts(ffn .. "experts.", need(model, own .. "expert_gate"), need(model, own .. "expert_up"), need(model, own .. "expert_down"))
      ffn = ffn .. "shared_expert."
    end
    for _, key in ipairs { "gate", "up", "down" } do list:module(ffn .. SIZED[key], need(model, own .. key)) end
    for _, kind in ipairs(model.kv and { "k", "v" } or {}) do
      local scale = model.kv[kind .. "_scale"][i + 1] or 1
      list:add(("%sself_attn.%s_scale"):format(base, kind), "f32", { 1 }, function(out) out:write(("<f"):pack(scale)) end)
    end
  end
  local norm = need(model, "norm")
  list:plain_tensor(TOP.norm, norm, { norm.K })
  if head then list:module(TOP.head, head) end
  return list
end

-- ---- config.json ----------------------------------------------------------------------------------------------------------------

local ACTS = {
  none = mav.json.null,
  static = { num_bits = 8, type = "float", symmetric = true, dynamic = false, strategy = "tensor" },
  dynamic = { num_bits = 8, type = "float", symmetric = true, dynamic = true, strategy = "token" },
}

--- quantization_config of a list; nil: nothing of it is quantized.
local function quantization_of(list, kv)
  local groups, names = {}, {}
  for act in pairs(list.quantized) do names[#names + 1] = act end
  table.sort(names)
  if #names == 0 then return nil end
  for i, act in ipairs(names) do
    groups["group_" .. i - 1] = { targets = #names == 1 and mav.json.array { "Linear" } or list.quantized[act],
      input_activations = ACTS[act], output_activations = mav.json.null,
      weights = { num_bits = 8, type = "float", symmetric = true, dynamic = false, strategy = "channel" } }
  end
  return { quant_method = "compressed-tensors", format = "float-quantized", quantization_status = "compressed", config_groups = groups,
    ignore = list.plain, kv_cache_scheme = kv and ACTS.static or mav.json.null }
end

--- The text decoder's config, at the top level.
local function config_of(raw, list, kv, has_head)
  local text = type(raw.text_config) == "table" and raw.text_config or raw
  local c = {}
  for key, value in pairs(text) do c[key] = value end
  c.architectures, c.model_type = mav.json.array { "Llama4ForCausalLM" }, "llama4_text"
  c.quantization_config = quantization_of(list, kv)
  c.tie_word_embeddings = not has_head
  if list.dtype ~= "keep" then c.torch_dtype = ({ bf16 = "bfloat16", f16 = "float16", f32 = "float32" })[list.dtype] end
  return c
end

--- The raw config of what is exported.
local function read_config(model)
  local path = model.store.path
  if model.store.kind == "gguf" then return (gguf.config(path)) end
  local dir = model.store.kind == "pack" and (path:match "^(.*)/[^/]*$" or ".") or path
  return reader.read_json(dir .. "/config.json"), dir
end

-- ---- the whole ------------------------------------------------------------------------------------------------------------------

local function copy_side_files(from, to)
  for _, name in ipairs(SIDE_FILES) do
    local file = from and io.open(from .. "/" .. name, "rb")
    if file then
      local text = file:read "a"
      file:close()
      if text then source.write(to .. "/" .. name, text) end
    end
  end
end

local function do_export(path, out, options)
  local begun, progress = mav.now(), options.progress or function() end
  local model = logical.open(path)
  local raw, dir = read_config(model)
  if dir and source.is_same(dir, out) then fault.raise("INVALID", out, "is the source itself; give another directory") end
  local list = tensors_of(model, options.dtype or "keep")
  local kv = list.dtype == "keep" and model.kv or nil
  if not kv then
    for i = #list, 1, -1 do
      if list[i].name:find "[kv]_scale$" then table.remove(list, i) end
    end
  end
  local shards = options.shards and hf.partition(list, options.shards) or hf.cut(list, options.shard_bytes or SHARD_BYTES)
  hf.prepare(out, options.force)
  copy_side_files(dir, out)
  local total, done = 0, 0
  for _, t in ipairs(list) do total = total + t.bytes end
  local files = hf.write(out, shards, function(file, t)
    t.put(file, function(elements)
      done = done + elements * hf.WIDTH[t.dtype]
      progress(done, total, t.name)
    end)
  end)
  local config = config_of(raw, list, kv and next(list.quantized) and kv, model.by_name.head ~= nil)
  source.write(out .. "/config.json", mav.json.encode(config, { indent = 2 }) .. "\n") -- last: it makes the directory a model
  local quantized = 0
  for _, modules in pairs(list.quantized) do quantized = quantized + #modules end
  return { source = path, out = out, files = mav.json.array(files), tensors = #list, quantized = quantized, bytes = total,
    unrounded = list.unrounded, seconds = mav.now() - begun }
end

--- Writes the model at `path` (packs, a pack of one rank, another checkpoint, a GGUF file) as a Hugging Face directory.
---
---   options.dtype        "keep" (the default), or "bf16", "f16", "f32": FP8 weights are multiplied out
---   options.shards       so many files; or shard_bytes: files of at most so many bytes, or of one tensor (5 GiB)
---   options.force        replaces a model that is there
---   options.progress     function(bytes done, bytes in all, tensor)
---@param path string
---@param out string
---@param options table|nil
---@return table|nil report
---@return table|nil err
function export.export(path, out, options)
  options = options or {}
  require "mav.options"(options, OPTIONS, "export")
  return fault.catch(do_export, path, out, options)
end

-- ---- the command ----------------------------------------------------------------------------------------------------------------

local EXAMPLE = [[
mav weights export packs Llama-4-Maverick-FP8
mav weights export packs model-bf16 --dtype bf16 --shards 50]]

local function run(arg)
  local p = cli.parser("weights export", "Writes packs as a Hugging Face directory (the text decoder). What is not quantized comes back "
    .. "to the bit; FP8 weights become compressed-tensors.", EXAMPLE)
  p:argument("source", "directory with packs and config.json"):argname("OUT")
  p:argument("dir", "directory to make"):argname("DIR")
  p:option("--dtype", "bf16, f16 or f32: multiply FP8 weights out (default: keep)"):argname("TYPE")
    :convert(cli.choice("keep", "bf16", "f16", "f32"))
  p:option("--shards", "number of safetensors files (default: of 5 GiB each)"):argname("N"):convert(cli.integer(1, 99999))
  p:flag("--force", "replace a model that is there")
  p:flag("--json", "print the result as JSON")
  local args = cli.parse(p, arg)
  local meter = show.meter(args.source)
  local report, err = export.export(args.source, args.dir, { dtype = args.dtype, shards = args.shards, force = args.force,
    progress = meter.update })
  meter.finish()
  if not report then cli.fail("%s", tostring(err)) end
  if args.json then
    io.write(mav.json.encode(report, { indent = 2 }), "\n")
  else
    io.write(("%s: %d tensors, %s in %d file%s, %.1f s%s\n"):format(report.out, report.tensors, show.bytes(report.bytes), #report.files,
      #report.files == 1 and "" or "s", report.seconds, report.quantized > 0 and (", %d FP8 weights"):format(report.quantized) or ""))
    if report.unrounded > 0 then
      io.write(("%d weights are not FP8, but activations before them are rounded in the packs; the layout cannot say so\n"):format(
        report.unrounded))
    end
  end
  return 0
end

export.summary, export.run = "packs as a Hugging Face directory", run
return export
