local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/printed.lua")(dofile(here .. "/support.lua"))
local mav = require "mav"
local convert = require "mav.weights_tools.convert"
local inspect = require "mav.weights_tools.inspect"
local synth = require "mav.weights_tools.synth"
local values = require "mav.weights_tools.values"

local function close_to(expected, got)
  assert(math.abs(expected - got) <= 1e-5 * math.max(1, math.abs(expected)), expected .. " " .. got)
end

--- What `mav weights inspect` prints.
local function printed(...) return support.printed(inspect, ...) end

describe("values", function()
  it("have statistics that leave out what is not a number", function()
    local x = mav.tensor { { 1, -2, 0, 1 / 0, 0 / 0, 4 }, { -1 / 0, 0, 3, 0 / 0, 0 / 0, 0 } }
    local s = values.new()
    s:add(x)
    s:add(mav.tensor { { 2, 2 } })
    local r = s:result()
    assert.same({ 14, 3, 2, 3, -2, 4 }, { r.count, r.nan, r.inf, r.zeros, r.min, r.max })
    close_to(10 / 9, r.mean)
    close_to(math.sqrt((1 + 4 + 16 + 9 + 4 + 4) / 9 - (10 / 9) ^ 2), r.std)
    local h = values.histogram(r, 3)
    h:add(x)
    local got = h:result()
    assert.same({ 1, 4, 2 }, { table.unpack(got.counts) })
    assert.same({ 1, 1 }, { got.below, got.above })
    assert(h:text():find("#", 1, true))
  end)

  it("may all be the same, or not there", function()
    local s = values.new()
    assert.is_nil(s:result().mean)
    s:add(mav.tensor { { 0 / 0 } })
    assert.is_nil(s:result().min)
    s = values.new()
    s:add(mav.tensor { { 5, 5, 5 } })
    local h = values.histogram(s:result(), 1)
    h:add(mav.tensor { { 5, 5, 5 } })
    assert.same({ 3 }, { table.unpack(h:result().counts) })
  end)

  it("of many pieces are counted once", function()
    local list, sum = {}, 0
    for i = 1, 300000 do
      list[i] = (i * 7919) % 1001 - 500
      sum = sum + list[i]
    end
    local x, s = mav.tensor(list), values.new()
    s:add(x)
    local r = s:result()
    assert.equal(300000, r.count)
    close_to(sum / 300000, r.mean)
    local h, all = values.histogram(r, 10), 0
    h:add(x)
    for _, n in ipairs(h:result().counts) do all = all + n end
    assert.equal(300000, all)
  end)
end)

describe("mav weights inspect", function()
  it("lists a checkpoint, layers and experts that are alike once", function()
    local text = assert(printed(support.model_dir "maverick_ct_fp8"))
    assert(text:find("compressed-tensors", 1, true))
    assert(text:find("language_model.model.layers.1, 3", 1, true))
    assert(text:find("feed_forward.experts.*.gate_proj.weight ", 1, true))
    assert(text:find(" x 4", 1, true))
    assert(text:find("in 7 files", 1, true))
    local report = assert(inspect.inspect(support.model_dir "maverick_ct_fp8"))
    local names, bytes = {}, 0
    for _, t in ipairs(report.tensors) do
      names[t.name], bytes = t, bytes + t.bytes
    end
    assert.equal(bytes, report.totals.bytes)
    local t = names["language_model.model.layers.1.feed_forward.experts.0.gate_proj.weight"]
    assert.equal("language_model.model.layers.1.feed_forward.experts.0.gate_proj.weight_scale", t.scale)
    assert.equal("model-00003-of-00007.safetensors", t.file)
  end)

  it("lists packs, whole or one by one, and single files", function()
    local dir <close> = support.directory()
    assert(convert.convert(support.tiny, dir.path, { dtype = "fp8", ranks = 4, compress = "lz4" }))
    local report = assert(inspect.inspect(dir.path))
    assert.equal("packs", report.kind)
    assert.equal(4, report.ranks)
    local one = assert(inspect.inspect(support.pack_path(dir.path, 2, 4)))
    assert.equal(2, one.rank)
    local function find(r, name)
      for _, t in ipairs(r.tensors) do
        if t.name == name then return t end
      end
    end
    assert.same({ 8, 128, 256 }, { table.unpack(find(report, "layers.1.expert_gate").shape) })
    assert.same({ 8, 32, 256 }, { table.unpack(find(one, "layers.1.expert_gate").shape) })
    assert.equal("rows", find(report, "layers.1.expert_gate").cut)
    assert.equal(4, find(report, "norm").copies)
    local text = assert(printed(dir.path))
    assert(text:find("packs of 4 ranks", 1, true))
    assert(text:find("converted from " .. support.tiny, 1, true))
    assert(assert(printed(support.pack_path(dir.path, 2, 4))):find("rank 2 of 4", 1, true))
    text = assert(printed(support.model_dir "eagle3_d2t" .. "/model.safetensors"))
    assert(text:find("d2t", 1, true))
    assert.equal("safetensors", assert(inspect.inspect(support.model_dir "eagle3_d2t" .. "/model.safetensors")).kind)
  end)

  it("tells the same values of a tensor, however it is cut, packed and stored", function()
    local dir <close> = support.directory()
    assert(convert.convert(support.tiny, dir.path .. "/1", { dtype = "fp8" }))
    assert(convert.convert(support.tiny, dir.path .. "/4", { dtype = "fp8", ranks = 4, compress = "lz4" }))
    for _, name in ipairs { "layers.1.expert_gate", "layers.1.expert_down", "layers.0.qkv", "layers.0.o", "layers.0.o.scale", "norm",
      "layers.3.expert_up.scale", "head" } do
      local a, b = assert(inspect.tensor(dir.path .. "/1", name)), assert(inspect.tensor(dir.path .. "/4", name))
      assert.same(a.stats.count, b.stats.count)
      for _, key in ipairs { "min", "max", "mean", "std" } do close_to(a.stats[key], b.stats[key]) end
      assert.same({ table.unpack(a.histogram.counts) }, { table.unpack(b.histogram.counts) })
    end
    local w = assert(mav.weights(support.tiny)):get("model.norm.weight"):to "f32"
    close_to(mav.op.max { x = w:reshape { 1, 256 } }:get(1, 1), assert(inspect.tensor(dir.path .. "/4", "norm")).stats.max)
  end)

  it("applies every kind of scale", function()
    for _, case in ipairs {
      { "maverick_ct_fp8", "language_model.model.layers.1.feed_forward.experts.2.up_proj.weight",
        "language_model.model.layers.1.feed_forward.experts.2.up_proj.weight_scale" },
      { "maverick_modelopt_fp8", "model.layers.1.feed_forward.experts.gate_up_proj",
        "model.layers.1.feed_forward.experts.gate_up_proj_weight_scale" },
      { "maverick_modelopt_fp8", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight_scale" },
    } do
      local w, largest = assert(mav.weights(support.model_dir(case[1]))), 0
      local codes, scale = w:get(case[2]):to "f32", w:get(case[3]):to "f32"
      local K = codes.shape[#codes.shape]
      codes, scale = codes:reshape { -1, K }, scale:reshape { -1, 1 }
      for i = 1, #codes do
        local row = codes:slice(1, i, i)
        largest = math.max(largest, mav.op.max { x = row }:get(1, 1) * scale:get(math.min(i, #scale), 1))
      end
      local r = assert(inspect.tensor(support.model_dir(case[1]), case[2]))
      close_to(largest, r.stats.max)
      assert.equal(case[3], r.scale)
      assert.equal(scale:count(), r.scales.count)
    end
  end)

  it("reads no values of a terabyte", function()
    local dir <close> = support.directory()
    assert(synth.write(dir.path .. "/m", { shape = "maverick", sparse = true, shards = 20 }))
    local begun = mav.now()
    assert(assert(printed(dir.path .. "/m")):find("801 GB", 1, true))
    assert.is_true(mav.now() - begun < 2)
  end)

  it("prints a tensor, in text and in JSON", function()
    local text = assert(printed(support.tiny, "--tensor", "model.layers.1.feed_forward.experts.gate_up_proj", "--bins", "5"))
    assert(text:find("bf16 (8, 256, 256)", 1, true))
    assert(text:find("524288 values", 1, true))
    local json = assert(mav.json.decode((assert(printed(support.tiny, "--tensor", "model.norm.weight", "--json")))))
    assert.equal(256, json.stats.count)
    json = assert(mav.json.decode((assert(printed(support.tiny, "--json")))))
    assert.equal("hf", json.kind)
  end)

  it("says what is wrong", function()
    local function refused(text, ...)
      local out, err = printed(...)
      assert.is_nil(out)
      assert(tostring(err):find(text, 1, true), tostring(err))
    end
    local dir <close> = support.directory()
    refused("no such file or directory", "/nowhere")
    refused("neither packs", dir.path)
    refused("no tensor norm; there are model.layers.0.input_layernorm.weight, ", support.tiny, "--tensor", "norm")
    support.write(dir.path .. "/x.mav", "MAVPACK\n and no more")
    refused("x.mav", dir.path .. "/x.mav")
    support.write(dir.path .. "/x", "what is this")
    refused("/x: ", dir.path .. "/x")
  end)
end)
