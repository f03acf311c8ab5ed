--- Models from packs: the same bits as from what they were made of, and clear words about packs that do not fit.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/../support.lua")
local golden = dofile(support.oracle .. "golden.lua")
local convert = require "mav.weights_tools.convert"
local mav = require "mav"
local maverick = require "mav.maverick"

local FILE = "/model-00000-of-00001.mav"

local function logits(model, options)
  local ids = { 1, 5, 9, 2, 7, 30, 11, 12 }
  local kv, seq = golden.sequence(model, #ids, { dtype = model:kv_dtype() })
  return golden.feed(model, kv, seq, ids, options):bytes()
end

--- Bytes of the logits of every way to run a directory.
local function results(dir, options)
  local model = assert(maverick.load(dir, options))
  return { logits(model), logits(model, { fused = false }) }
end

local function same(source, dir, options, source_options)
  assert.same(results(source, source_options or options), results(dir, options))
end

--- Converts an oracle model, changes what the pack holds, and loads that. change(items by name, options of the writer, config).
local function load(name, change, options)
  local dir <close> = support.directory()
  assert(convert.convert(support.model_dir(name), dir.path, {}))
  local old = assert(mav.pack(dir.path .. FILE))
  local items, names = {}, old:names()
  for _, key in ipairs(names) do
    items[key] = old:info(key)
    items[key].t = assert(old:tensor(key))
  end
  local writer = { meta = old.meta, tensors = {}, fresh = true }
  local config = support.config(name)
  change(items, writer, config)
  support.write(dir.path .. "/config.json", mav.json.encode(config))
  for key in pairs(items) do
    if not old:has(key) then names[#names + 1] = key end
  end
  local data = {}
  for _, key in ipairs(names) do
    local item = items[key]
    if item then
      data[#data + 1] = item.t
      writer.tensors[#data] = { name = key, dtype = item.t.dtype, shape = item.t.shape, scale = item.scale, layout = item.layout,
        act = item.act, in_scale = item.in_scale }
    end
  end
  old:close()
  os.remove(dir.path .. FILE)
  local w <close> = assert(mav.pack_writer(dir.path .. (writer.file or FILE), { meta = writer.meta, tensors = writer.tensors,
    rank = writer.rank, ranks = writer.ranks }))
  for i, t in ipairs(data) do assert(w:put(i, t)) end
  assert(w:finish())
  return maverick.load(dir.path, options)
end

local function refused(code, text, name, change)
  local model, err = load(name, change)
  assert.is_nil(model)
  assert.equal(code, err.code, tostring(err))
  assert.truthy(tostring(err):find(text, 1, true), tostring(err))
end

describe("packs", function()
  it("give the bits of their source", function()
    for _, name in ipairs { "maverick", "maverick_mm", "tied", "scout", "maverick_ct_fp8", "maverick_modelopt_fp8" } do
      local source, dir <close> = support.model_dir(name), support.directory()
      assert(convert.convert(source, dir.path, {}))
      same(source, dir.path)
      same(source, dir.path, { mapped = false }, {})
      same(source, dir.path, { activations = "f32" })
    end
  end)

  it("give the bits of their source when they are compressed", function()
    local source, dir <close> = support.model_dir "maverick", support.directory()
    assert(convert.convert(source, dir.path, { compress = "lz4" }))
    local pack <close> = assert(mav.pack(dir.path .. FILE))
    local compressed = 0
    for _, name in ipairs(pack:names()) do compressed = compressed + (pack:info(name).raw and 0 or 1) end
    assert.is_true(compressed > 0)
    same(source, dir.path)
    same(source, dir.path, { mapped = false }, {})
  end)

  it("are converted like their source", function()
    for _, name in ipairs { "maverick", "maverick_ct_fp8", "maverick_modelopt_fp8" } do
      local source, dir <close> = support.model_dir(name), support.directory()
      assert(convert.convert(source, dir.path, {}))
      for _, dtype in ipairs { "fp8", "f32", "bf16" } do same(source, dir.path, { dtype = dtype }) end
    end
    local source, dir <close> = support.model_dir "maverick", support.directory()
    assert(convert.convert(source, dir.path, { dtype = "fp8" }))
    same(source, dir.path, nil, { dtype = "fp8" })
  end)

  it("report progress", function()
    local done, total, last
    local dir <close> = support.directory()
    assert(convert.convert(support.model_dir "maverick", dir.path, {}))
    assert(maverick.load(dir.path, { progress = function(a, b, name)
      assert(not done or a > done)
      done, total, last = a, b, name
    end }))
    assert.equal(total, done)
    assert.is_string(last)
  end)

  it("have scales of a cache", function()
    local model = assert(load("maverick_modelopt_fp8", function() end))
    local source = assert(maverick.load(support.model_dir "maverick_modelopt_fp8"))
    assert.same(source.weights.k_scale, model.weights.k_scale)
    assert.same(source.weights.v_scale, model.weights.v_scale)
    refused("RANGE", "meta.kv.k_scale, layer 1, is -1", "maverick_modelopt_fp8", function(_, writer)
      writer.meta.kv = { k_scale = { 1, -1 } }
    end)
    refused("RANGE", "meta.kv.v_scale, layer 0, is null", "maverick_modelopt_fp8", function(_, writer) writer.meta.kv = { v_scale = 3 } end)
  end)

  it("say what is missing, misshapen or too much", function()
    refused("NOTFOUND", "2 tensors that config.json asks for are missing: norm, layers.0.o", "maverick", function(items)
      items.norm, items["layers.0.o"] = nil, nil
    end)
    refused("SHAPE", "tensor layers.0.attn_norm has shape (65); config.json asks for (80)", "maverick", function(items)
      items["layers.0.attn_norm"].t = mav.zeros { 65 }
    end)
    refused("UNSUPPORTED", "1 tensor with no place in this architecture: layers.0.bias", "maverick", function(items)
      items["layers.0.bias"] = { t = mav.zeros { 65 } }
    end)
    refused("DTYPE", "tensor norm is i32; f32, bf16 or f16 is allowed", "maverick", function(items)
      items.norm.t = mav.zeros { 80, dtype = "i32" }
    end)
    refused("DTYPE", "tensor layers.1.expert_up is f8 without a scale", "maverick_ct_fp8", function(items)
      items["layers.1.expert_up"].scale, items["layers.1.expert_up"].act, items["layers.1.expert_up.scale"] = nil, nil, nil
    end)
    refused("UNSUPPORTED", "its layout is \"other\"", "maverick", function(items) items["layers.0.o"].layout = "other" end)
  end)

  it("say that they are of another model", function()
    refused("SHAPE", "was made of a model with layers = ", "maverick", function(_, _, config) config.num_hidden_layers = 1 end)
    refused("SHAPE", "config.json asks for", "maverick", function(_, writer, config)
      writer.meta, config.num_attention_heads = {}, 2 * config.num_attention_heads
    end)
  end)

  it("of several ranks need as many, or another shape", function()
    refused("UNSUPPORTED", " OUT --ranks 1", "maverick", function(_, writer) writer.rank, writer.ranks = 1, 2 end)
    local text = "is rank 0 of 4; this version runs packs of one rank. Make them: mav weights reshard /"
    refused("UNSUPPORTED", text, "maverick", function(_, writer)
      writer.rank, writer.ranks, writer.file = 0, 4, "/model-00000-of-00004.mav"
    end)
  end)

  it("that are damaged are not copied or converted; mapped, nobody looks", function()
    for _, name in ipairs { "layers.1.expert_up", "layers.1.expert_up.scale" } do
      local dir <close> = support.directory()
      assert(convert.convert(support.model_dir "maverick", dir.path, { dtype = "fp8" }))
      local path = dir.path .. FILE
      local pack = assert(mav.pack(path))
      local bytes, text = assert(pack:read(name, 0, 100)):bytes(), support.read(path)
      pack:close()
      local at = assert(text:find(bytes, 1, true))
      support.write(path, text:sub(1, at - 1) .. string.char(text:byte(at) ~ 1) .. text:sub(at + 1))
      assert(maverick.load(dir.path))
      for _, options in ipairs { { mapped = false }, { dtype = "bf16" }, { dtype = "f32" } } do
        local model, err = maverick.load(dir.path, options)
        assert.is_nil(model)
        assert.truthy(tostring(err):find(('tensor "%s": chunk'):format(name), 1, true), tostring(err))
        assert.truthy(tostring(err):find("is damaged", 1, true), tostring(err))
      end
    end
  end)

  it("mark layers whose gate and up differ", function()
    local model = assert(load("maverick_modelopt_fp8", function(items)
      local gate = items["layers.0.gate"]
      gate.act, gate.in_scale = "static", 0.25
    end))
    assert.is_true(model.weights.layers[1].apart)
    assert.is_nil(model.weights.layers[2].apart)
  end)
end)
