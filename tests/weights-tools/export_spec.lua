local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/printed.lua")(dofile(here .. "/support.lua"))
local mav = require "mav"
local maverick = require "mav.maverick"
local convert = require "mav.weights_tools.convert"
local export = require "mav.weights_tools.export"

--- Bytes of a tensor, and its dtype and shape as text.
local function told(w, name)
  local t = assert(w:get(name))
  return t:bytes(), t.dtype .. " " .. table.concat(t.shape, ",")
end

--- Fails unless the tensors that `prefix` and the decoder have are the same in both, to the byte.
local function assert_same_tensors(a_dir, b_dir)
  local a, b, seen = assert(mav.weights(a_dir)), assert(mav.weights(b_dir)), 0
  for _, name in ipairs(a:names()) do
    local bare = name:gsub("^language_model%.", "")
    if not (name:find "^vision" or name:find "^multi_modal") then
      assert(b:has(bare), bare)
      local x, x_kind = told(a, name)
      local y, y_kind = told(b, bare)
      assert.equal(x_kind, y_kind)
      assert(x == y, bare)
      seen = seen + 1
    end
  end
  assert.equal(#b, seen)
end

--- Logits of a few ids, as bytes.
local function logits(dir)
  local model = assert(maverick.load(dir, { device = "cpu", threads = 1 }))
  local kv = assert(model:kv { tokens = 32, sequences = 1 })
  local seq <close> = assert(kv:sequence {})
  local rows = mav.rows(12, { runtime = model.runtime })
  for i = 1, 12 do rows:set(i, i * 17 % 300, seq, i - 1, i - 1) end
  assert(seq:reserve(12))
  return model:forward(rows, kv):bytes()
end

describe("mav weights export", function()
  it("gives back what was converted, whatever the ranks", function()
    for _, name in ipairs { "tiny-maverick", "maverick", "maverick_mm", "maverick_ct_fp8", "scout_ct_fp8", "tied", "hd128", "top2" } do
      for _, m in ipairs(support.models) do
        if m.name == name then
          for _, ranks in ipairs { 1, m.ranks[#m.ranks] } do
            local dir <close> = support.directory()
            assert(convert.convert(m.dir, dir.path .. "/p", { ranks = ranks, compress = ranks > 1 and "lz4" or "none" }))
            assert(export.export(dir.path .. "/p", dir.path .. "/hf", { shards = ranks > 1 and 3 or nil }))
            assert_same_tensors(m.dir, dir.path .. "/hf")
          end
        end
      end
    end
  end)

  it("computes what the packs compute", function()
    for _, case in ipairs { { "maverick_modelopt_fp8" }, { "maverick_ct_fp8" }, { "maverick", "fp8" }, { "tied", "fp8" } } do
      local dir <close> = support.directory()
      assert(convert.convert(support.model_dir(case[1]), dir.path .. "/p", { dtype = case[2] }))
      local report = assert(export.export(dir.path .. "/p", dir.path .. "/hf", { shard_bytes = 100000 }))
      assert.is_true(#report.files > 1 and report.quantized > 0)
      assert.equal(logits(dir.path .. "/p"), logits(dir.path .. "/hf"))
      assert.equal("compressed-tensors float-quantized", assert(maverick.config.read(dir.path .. "/hf")).quant.name)
    end
  end)

  it("mixes what a recipe mixed", function()
    local dir <close> = support.directory()
    support.write(dir.path .. "/r.lua", [[return {
      { match = "expert_down$", dtype = "fp8" }, { match = "^layers%.0%.qkv$", dtype = "fp8", act = "dynamic" },
      { match = "^layers%.2%.o$", dtype = "fp8", act = "static", in_scale = 0.125 }, { match = "^layers%.4%.up$", dtype = "f32" } }]])
    assert(convert.convert(support.tiny, dir.path .. "/p", { recipe = dir.path .. "/r.lua", ranks = 1 }))
    assert(export.export(dir.path .. "/p", dir.path .. "/hf", {}))
    local w = assert(mav.weights(dir.path .. "/hf"))
    assert.equal("f8", w:info("model.layers.1.feed_forward.experts.7.down_proj.weight").dtype)
    assert.equal("bf16", w:info("model.layers.1.feed_forward.experts.7.up_proj.weight").dtype)
    assert.equal("f32", w:info("model.layers.4.feed_forward.up_proj.weight").dtype)
    assert.equal(0.125, assert(w:get "model.layers.2.self_attn.o_proj.input_scale"):reshape({ 1 }):get(1))
    assert.equal(logits(dir.path .. "/p"), logits(dir.path .. "/hf"))
  end)

  it("multiplies FP8 weights out when asked", function()
    local dir <close> = support.directory()
    assert(convert.convert(support.model_dir "maverick_modelopt_fp8", dir.path .. "/p", { ranks = 2 }))
    assert(export.export(dir.path .. "/p", dir.path .. "/hf", { dtype = "f32" }))
    local w = assert(mav.weights(dir.path .. "/hf"))
    for _, name in ipairs(w:names()) do assert.equal("f32", w:info(name).dtype, name) end
    local c = assert(maverick.config.read(dir.path .. "/hf"))
    assert.is_nil(c.quant)
    local from = assert(mav.weights(support.model_dir "maverick_modelopt_fp8"))
    local scale = assert(from:get "model.layers.1.feed_forward.experts.gate_up_proj_weight_scale"):reshape({ 1 }):get(1)
    local code = assert(from:get "model.layers.1.feed_forward.experts.gate_up_proj"):get(3, 40, 77)
    local value = assert(w:get "model.layers.1.feed_forward.experts.gate_up_proj"):get(3, 40, 77)
    assert(math.abs(value - code * scale) <= 1e-6 * math.abs(value) and value ~= 0)
  end)

  it("copies the tokenizer, not what no longer holds", function()
    local dir <close> = support.directory()
    assert(convert.convert(support.model_dir "maverick_modelopt_fp8", dir.path .. "/p", {}))
    assert.is_true(support.exists(dir.path .. "/p/hf_quant_config.json"))
    assert(export.export(dir.path .. "/p", dir.path .. "/hf", {}))
    assert.is_true(support.exists(dir.path .. "/hf/tokenizer.json"))
    assert.is_false(support.exists(dir.path .. "/hf/hf_quant_config.json"))
  end)

  it("is refused where it would lose something", function()
    local dir <close> = support.directory()
    local function refused(text, ...)
      local ok, err = export.export(...)
      assert.is_nil(ok)
      assert(tostring(err):find(text, 1, true), tostring(err))
    end
    assert(convert.convert(support.tiny, dir.path .. "/p", { ranks = 2 }))
    refused("is the source itself", dir.path .. "/p", dir.path .. "/p")
    refused("is the source itself", dir.path .. "/p", dir.path .. "/./p/")
    assert(convert.convert(support.tiny, dir.path .. "/other", {}))
    refused("a model is there already", dir.path .. "/p", dir.path .. "/other")
    refused("a part of a model", support.pack_path(dir.path .. "/p", 0, 2), dir.path .. "/x")
    refused("no such file", "/nowhere", dir.path .. "/x")
    assert(export.export(dir.path .. "/p", dir.path .. "/x"))
    refused("a model is there already", dir.path .. "/p", dir.path .. "/x")
    assert(export.export(dir.path .. "/p", dir.path .. "/x", { force = true }))
    assert(export.export(dir.path .. "/p", dir.path .. "/other", { force = true }))
    assert.is_false(support.exists(support.pack_path(dir.path .. "/other", 0, 1)))
    assert(maverick.load(dir.path .. "/other"))
    support.write(dir.path .. "/r.lua", [[return { { match = "^norm$", rename = "nrm" } }]])
    if convert.convert(support.tiny, dir.path .. "/q", { recipe = dir.path .. "/r.lua" }) then
      refused("nrm has no name in the Hugging Face layout", dir.path .. "/q", dir.path .. "/y")
    end
    assert.is_false(support.exists(dir.path .. "/y/config.json"))
  end)

  it("prints what it wrote", function()
    local dir <close> = support.directory()
    assert(convert.convert(support.tiny, dir.path .. "/p", { dtype = "fp8" }))
    local text = assert(support.printed(export, dir.path .. "/p", dir.path .. "/x", "--shards", "4"))
    assert(text:find("in 4 files", 1, true), text)
    local json = assert(mav.json.decode((support.printed(export, dir.path .. "/p", dir.path .. "/y", "--json"))))
    assert.equal(1, #json.files)
  end)
end)
