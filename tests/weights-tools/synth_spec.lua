local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/../scripts/support.lua")
local convert = require "mav.weights_tools.convert"
local mav = require "mav"
local maverick = require "mav.maverick"
local synth = require "mav.weights_tools.synth"

local function size_of(path)
  local file = assert(io.open(path, "rb"))
  local size = file:seek "end"
  file:close()
  return size
end

describe("mav weights synth", function()
  for _, format in ipairs { "hf-bf16", "hf-ct-fp8", "hf-modelopt-fp8" } do
    it("makes a model that loads and runs: " .. format, function()
      local dir <close> = support.directory()
      local report = assert(synth.write(dir.path .. "/m", { format = format, layers = 4, shards = 3,
        tokenizer = support.root .. "models/tiny-maverick" }))
      assert.equal(3, #report.files)
      local model = assert(maverick.load(dir.path .. "/m", { device = "cpu", threads = 1 }))
      assert.equal(4, model.config.layers)
      assert.equal(format ~= "hf-bf16", model.config.quant ~= nil)
      assert.equal(format == "hf-bf16" and "bf16" or "f8", model.weights.layers[2].expert_gate.dtype)
      assert.equal(format == "hf-modelopt-fp8" and "f8" or "bf16", model.weights.layers[1].gate.dtype)
      local s <close> = model:session {}
      s:append { 1, 2, 3 }
      local id = s:step()
      assert.is_true(id >= 0 and id < 2048)
    end)
  end
end)

describe("a synthetic checkpoint", function()
  it("depends on the options alone", function()
    local dir <close> = support.directory()
    for _, name in ipairs { "a", "b" } do assert(synth.write(dir.path .. "/" .. name, { layers = 2, seed = 7, shards = 2 })) end
    assert(synth.write(dir.path .. "/c", { layers = 2, seed = 8, shards = 2 }))
    for i = 1, 2 do
      local name = ("/model-%05d-of-00002.safetensors"):format(i)
      assert.equal(support.read(dir.path .. "/a" .. name), support.read(dir.path .. "/b" .. name))
      assert.not_equal(support.read(dir.path .. "/a" .. name), support.read(dir.path .. "/c" .. name))
    end
  end)

  it("has rows of its own in every tensor", function()
    local dir <close> = support.directory()
    assert(synth.write(dir.path .. "/m", { layers = 2 }))
    local w, seen = assert(mav.weights(dir.path .. "/m")), {}
    for _, name in ipairs(w:names()) do
      local t = assert(w:get(name))
      if #t.shape > 1 then
        t = t:reshape { -1, t.shape[#t.shape] }
        for i = 1, #t do
          local row = t:select(1, i):bytes()
          assert.is_nil(seen[row])
          seen[row] = true
        end
      end
    end
  end)

  it("is as large as asked for, with holes that take no room", function()
    local dir <close> = support.directory()
    local report = assert(synth.write(dir.path .. "/m", { shape = "maverick", sparse = true, shards = 50 }))
    assert.equal(50, #report.files)
    local D, E, F = 5120, 128, 8192
    assert.equal(2 * (2 * 202048 * D + 48 * (2 * D * D + 2 * 1024 * D) + 24 * 3 * 2 * F * D + 24 * ((E + 1) * 3 * D * F + E * D) + 97 * D
      + 1408 + 4096 * D), report.bytes)
    local total = 0
    for _, name in ipairs(report.files) do total = total + size_of(dir.path .. "/m/" .. name) end
    assert.is_true(total > report.bytes and total < report.bytes + (1 << 20))
    local pipe = io.popen("du -sk '" .. dir.path .. "'")
    local used = tonumber(pipe:read("a"):match "^%d+")
    pipe:close()
    assert.is_true(used < 16 << 10)
    local w = assert(mav.weights(dir.path .. "/m"))
    assert.same({ 128, 5120, 16384 }, w:info("language_model.model.layers.47.feed_forward.experts.gate_up_proj").shape)
    assert.equal(1.0, assert(w:get "language_model.model.norm.weight"):get(5120))
    assert.equal(0.0, assert(w:get "language_model.lm_head.weight"):get(202048, 5120))
  end)

  it("has the layouts of the real ones", function()
    local dir <close> = support.directory()
    assert(synth.write(dir.path .. "/ct", { shape = "scout", layers = 2, experts = 4, vocab = 4096, sparse = true, format = "hf-ct-fp8",
      shards = 4 }))
    local w = assert(mav.weights(dir.path .. "/ct"))
    assert.same({ 8192, 5120 }, w:info("language_model.model.layers.1.feed_forward.experts.3.gate_proj.weight").shape)
    assert.same({ 5120, 1 }, w:info("language_model.model.layers.1.feed_forward.experts.3.down_proj.weight_scale").shape)
    assert.is_true(w:has "vision_model.class_embedding")
    assert(synth.write(dir.path .. "/mo", { shape = "maverick", layers = 2, experts = 4, vocab = 4096, sparse = true,
      format = "hf-modelopt-fp8" }))
    w = assert(mav.weights(dir.path .. "/mo"))
    assert.equal("f8", w:info("model.layers.1.feed_forward.experts.gate_up_proj").dtype)
    assert.same({}, w:info("model.layers.1.feed_forward.experts.gate_up_proj_weight_scale").shape)
    assert.same({}, w:info("model.layers.0.self_attn.k_proj.k_scale").shape)
    assert.is_false(w:has "vision_model.class_embedding")
    local c = assert(maverick.config.read(dir.path .. "/mo"))
    assert.equal("f8", c.quant.kv)
  end)

  it("takes its shape from a config.json, with other numbers of layers and experts", function()
    local dir <close> = support.directory()
    for _, name in ipairs { "maverick_mm", "scout", "notemp", "tied", "hd128", "maverick_ct_fp8" } do
      local out = dir.path .. "/" .. name
      assert(synth.write(out, { shape = support.model_dir(name) .. "/config.json", experts = 3, layers = 2 }))
      local model = assert(maverick.load(out, { device = "ref" }))
      assert.equal(2, model.config.layers)
      assert.equal(3, model.config.experts)
    end
    assert.is_nil(assert(mav.safetensors.open(dir.path .. "/tied/model.safetensors")):info "lm_head.weight")
  end)

  it("can be of zeros", function()
    local dir <close> = support.directory()
    assert(synth.write(dir.path .. "/m", { layers = 2, fill = "zero" }))
    local w = assert(mav.weights(dir.path .. "/m"))
    local t = assert(w:get "lm_head.weight")
    assert.equal(("\0"):rep(t:count() * 2), t:bytes())
    assert.equal(1.0, assert(w:get "model.norm.weight"):get(1))
  end)

  it("is refused where it cannot be", function()
    local dir <close> = support.directory()
    local function refused(text, options)
      local ok, err = synth.write(dir.path .. "/m", options)
      assert.is_nil(ok)
      assert(tostring(err):find(text, 1, true), tostring(err))
    end
    refused("maverick, scout, tiny, or the path of a config.json", { shape = "huge" })
    refused("none.json: ", { shape = dir.path .. "/none.json" })
    refused("a tensor is not divided", { layers = 2, shards = 1000 })
    os.execute("rm -r '" .. dir.path .. "/m'")
    assert(synth.write(dir.path .. "/m", { layers = 2, shards = 3 }))
    refused("a model is there already", { layers = 2 })
    assert(synth.write(dir.path .. "/m", { layers = 2, force = true }))
    assert.equal(24, #assert(mav.weights(dir.path .. "/m")))
    assert(convert.convert(dir.path .. "/m", dir.path .. "/p"))
    os.remove(dir.path .. "/p/config.json")
    local ok, wrong = synth.write(dir.path .. "/p", { layers = 2 })
    assert(not ok and tostring(wrong):find("a model is there already", 1, true), tostring(wrong))
    assert(synth.write(dir.path .. "/p", { layers = 2, force = true }))
    assert.is_nil((io.open(dir.path .. "/p/model-00000-of-00001.mav")))
    assert(maverick.load(dir.path .. "/p"))
    local raised, err = pcall(synth.write, dir.path .. "/n", { layer = 2 })
    assert.is_false(raised)
    assert(tostring(err):find("unknown option 'layer'", 1, true), tostring(err))
  end)
end)
