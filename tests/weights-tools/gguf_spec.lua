local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/printed.lua")(dofile(here .. "/support.lua"))
local gguf_file = dofile(here .. "/gguf_file.lua")
local mav = require "mav"
local maverick = require "mav.maverick"
local diff = require "mav.weights_tools.diff"
local export = require "mav.weights_tools.export"
local inspect = require "mav.weights_tools.inspect"
local synth = require "mav.weights_tools.synth"

--- A small model of random weights with what llama.cpp fixes.
local function make_model(dir, changes)
  local c = support.config "maverick"
  c.attention_chunk_size, c.floor_scale, c.use_qk_norm, c.rope_scaling, c.head_dim, c.hidden_size = 8192, 8192, true, nil, 16, 64
  c.num_local_experts, c.intermediate_size, c.intermediate_size_mlp, c.num_hidden_layers, c.vocab_size = 4, 32, 96, 8, 2080
  c.no_rope_layers, c.no_rope_layer_interval = nil, 4
  for key, value in pairs(changes or {}) do c[key] = value end
  support.write(dir .. "/shape.json", mav.json.encode(c))
  assert(synth.write(dir .. "/hf", { shape = dir .. "/shape.json", tokenizer = support.model_dir "maverick", seed = 5 }))
  return dir .. "/hf"
end

--- Logits of a few ids: the bytes of f32.
local function logits(path, dtype, ids)
  local model = assert(maverick.load(path, { device = "cpu", threads = 1, dtype = dtype }))
  local kv = assert(model:kv { tokens = 32, sequences = 1 })
  local seq <close> = assert(kv:sequence {})
  local n = ids or 12
  local rows = mav.rows(n, { runtime = model.runtime })
  for i = 1, n do rows:set(i, i * 17 % 300, seq, i - 1, i - 1) end
  assert(seq:reserve(n))
  return model:forward(rows, kv):bytes()
end

local function largest_difference(a, b)
  local x, y = mav.tensor(a, { dtype = "f32", shape = { 1, #a // 4 } }), mav.tensor(b, { dtype = "f32", shape = { 1, #b // 4 } })
  return mav.op.max { x = mav.op.abs { x = x - y } }:get(1, 1)
end

describe("mav.gguf", function()
  it("reads metadata of every type, and tensors", function()
    local dir <close> = support.directory()
    local path = dir.path .. "/x.gguf"
    local keys = { { "a.u8", "u8", 200 }, { "a.i8", "i8", -3 }, { "a.u16", "u16", 60000 }, { "a.i16", "i16", -30000 },
      { "a.u32", "u32", 4000000000 }, { "a.i32", "i32", -5 }, { "a.f32", "f32", 0.5 }, { "a.bool", "bool", true },
      { "a.string", "string", "h\xc3\xa9" }, { "a.u64", "u64", 1 << 60 }, { "a.i64", "i64", -7 }, { "a.f64", "f64", 1e-300 },
      { "l.strings", "array", "string", { "x", "", "yz" } },
      { "l.i32", "array", "i32", { -1, 2 } }, { "l.none", "array", "u64", {} }, { "l.bool", "array", "bool", { true, false } } }
    local x = mav.tensor { { 1, -2, 3 }, { 4, 5, 6.5 } }
    support.write(path, gguf_file.bytes(keys, { { "w", "f32", x }, { "h", "f16", x }, { "b", "bf16", x:reshape { 1, 2, 3 } },
      { "q", "q8_0",
        mav.tensor({ 127, -127, 1 }, { shape = { 3, 1 } }) * mav.tensor(0.5, { shape = { 1, 32 } }) },
      { "k", "q4_k", shape = { 1, 256 }, data = ("\0"):rep(144) } }))
    local g = assert(mav.gguf(path))
    assert.equal(5, #g)
    assert.same({ "w", "h", "b", "q", "k" }, g:names())
    for _, k in ipairs(keys) do
      local v, kind = g:value(k[1])
      assert.equal(k[2], kind)
      assert.same(k[2] == "array" and k[4] or k[3], v)
    end
    assert.equal(#keys, #g:keys())
    assert.is_nil((g:value "none"))
    assert.same({ type = "bf16", dtype = "bf16", shape = { 1, 2, 3 }, bytes = 12 }, g:info "b")
    assert.same(x:totable(), g:rows("w"):totable())
    assert.same({ { 4, 5, 6.5 } }, g:rows("h", 2, 2):to("f32"):totable())
    assert.same({ 2, 3 }, g:rows("b").shape)
    local q = g:rows("q", 1, 3)
    assert.equal("f32", q.dtype)
    assert.same({ 63.5, -63.5 }, { q:get(1, 1), q:get(2, 32) })
    assert.is_true(math.abs(q:get(3, 7) - 0.5) < 1e-4) -- 127 times 0.5 / 127 in f16
    local t, err = g:rows "k"
    assert.is_nil(t)
    assert(tostring(err):find("tensor \"k\" is q4_k; only f32", 1, true))
    t, err = g:rows "none"
    assert.is_nil(t)
    assert.equal("NOTFOUND", err.code)
    assert.has_error(function() g:rows("w", 3, 2) g:rows("w", 0) end)
    assert.has_error(function() g:rows("w", 1, 3) end)
    local w = g:rows "w"
    g:close()
    collectgarbage()
    assert.same(x:totable(), w:totable()) -- the mapping lives as long as the tensor
  end)

  it("refuses what is no such file", function()
    local dir <close> = support.directory()
    local path = dir.path .. "/x.gguf"
    local x = mav.tensor { { 1, 2, 3, 4 } }
    local function refused(text, bytes)
      support.write(path, bytes)
      local g, err = mav.gguf(path)
      assert.is_nil(g)
      assert(tostring(err):find(text, 1, true), tostring(err))
      assert(tostring(err):find("x.gguf", 1, true))
    end
    local right = gguf_file.bytes({ { "a", "u32", 1 } }, { { "x", "f32", x } })
    support.write(path, right)
    assert(mav.gguf(path))
    for cut = 1, #right - 17 do -- 16 bytes of padding may be missing
      support.write(path, right:sub(1, cut))
      assert.is_nil((mav.gguf(path)))
    end
    refused("no GGUF file", "GGML" .. right:sub(5))
    refused("version 1", gguf_file.bytes({}, {}, { version = 1 }))
    refused("do not fit", "GGUF" .. ("<I4I8I8"):pack(3, 1 << 60, 0) .. right:sub(25))
    refused("do not fit", "GGUF" .. ("<I4I8I8"):pack(3, 0, 1 << 60) .. right:sub(25))
    refused("twice", gguf_file.bytes({}, { { "x", "f32", x }, { "x", "f32", x } }))
    refused("twice", gguf_file.bytes({ { "a", "u8", 1 }, { "a", "u8", 2 } }, {}))
    refused("not aligned", gguf_file.bytes({}, { { "x", "f32", x, offset = 8 } }))
    refused("outside the file", gguf_file.bytes({}, { { "x", "f32", x, offset = 1 << 40 } }))
    refused("outside the file", gguf_file.bytes({}, { { "x", "f32", shape = { 1 << 30, 64 }, data = "" } }))
    refused("overflows", gguf_file.bytes({}, { { "x", "f32", shape = { 1 << 40, 1 << 40 }, data = "" } }))
    refused("is 0 or overflows", gguf_file.bytes({}, { { "x", "f32", shape = { 0, 4 }, data = "" } }))
    refused("unknown type", gguf_file.bytes({}, { { "x", "f32", x, ggml = 99 } }))
    refused("no whole blocks", gguf_file.bytes({}, { { "x", "q8_0", shape = { 1, 33 }, data = ("\0"):rep(68) } }))
    refused("no text", gguf_file.bytes({}, { { "\xff", "f32", x } }))
    refused("no text", gguf_file.bytes({}, { { "", "f32", x } }))
    refused("power of two", gguf_file.bytes({ { "general.alignment", "u32", 24 } }, {}))
    refused("is not a u32", gguf_file.bytes({ { "general.alignment", "string", "32" } }, {}))
    support.write(path, gguf_file.bytes({ { "general.alignment", "u32", 64 } }, { { "x", "f32", x }, { "y", "f32", x } },
      { alignment = 64 }))
    assert.same(x:totable(), assert(mav.gguf(path)):rows("y"):totable())
  end)
end)

describe("a GGUF model", function()
  it("computes what its Hugging Face directory computes", function()
    local dir <close> = support.directory()
    local hf, path = make_model(dir.path), dir.path .. "/m.gguf"
    support.write(path, gguf_file.of_model(hf, "bf16"))
    local model = assert(maverick.load(path, { device = "ref" }))
    assert.equal(4, model.config.experts)
    assert.equal("f32", model.weights.layers[2].router.dtype)
    assert.equal("bf16", model.weights.layers[2].expert_down.dtype)
    assert.equal(logits(hf, "bf16"), logits(path, "bf16"))
    assert.is_true(largest_difference(logits(hf), logits(path)) < 1e-4) -- norms and router are f32: sums in another order
    assert.is_true(largest_difference(logits(hf, "fp8"), logits(path, "fp8")) < 0.5)
    support.write(path, gguf_file.of_model(hf, "f32"))
    assert.equal(logits(hf, "f32"), logits(path))
  end)

  it("may be in F16 or Q8_0, which are read exactly", function()
    local dir <close> = support.directory()
    local hf = make_model(dir.path)
    for _, kind in ipairs { "f16", "q8_0" } do
      local path, back = dir.path .. "/" .. kind .. ".gguf", dir.path .. "/" .. kind
      support.write(path, gguf_file.of_model(hf, kind))
      assert(export.export(path, back))
      assert.is_true(assert(diff.diff(path, back)).same)
      assert.equal(logits(back, "f32"), logits(path, "f32"))
      local report = assert(diff.diff(hf, path))
      local worst = report.tensors[1]
      assert.is_true(worst.sqnr_db == nil or worst.sqnr_db > 40, worst.name .. " " .. tostring(worst.sqnr_db))
      assert.is_true(report.equal >= 18) -- norms, routers
    end
  end)

  it("has what llama.cpp fixes: qk norm unless there are 128 experts, a tied head, divided frequencies", function()
    local dir <close> = support.directory()
    local hf = make_model(dir.path, { num_hidden_layers = 2, num_local_experts = 128, use_qk_norm = false, tie_word_embeddings = true,
      intermediate_size = 32 })
    local path = dir.path .. "/m.gguf"
    support.write(path, gguf_file.of_model(hf, "bf16"))
    local c = assert(maverick.config.read(path))
    assert.is_false(c.qk_norm)
    assert.equal(true, c.tied)
    assert.same({ 8192, 8192 }, { c.chunk, c.floor_scale })
    assert.same({ true, true }, c.is_rope)
    assert.equal(1e-5, c.eps)
    assert.equal(logits(hf, "bf16"), logits(path, "bf16"))
    local freqs = mav.tensor { 1, 2, 4, 8, 8, 8, 8, 8 }
    support.write(path, gguf_file.of_model(hf, "bf16", { { "rope_freqs.weight", "f32", freqs } }))
    local divided = assert(maverick.config.read(path))
    for i = 1, 8 do assert.equal(c.inv_freq[i] / freqs:get(i), divided.inv_freq[i]) end
    assert(maverick.load(path, { device = "ref" }))
    support.write(path, gguf_file.of_model(hf, "bf16", { { "rope_freqs.weight", "f32", mav.tensor { 1, 2, 3 } } }))
    local ok, err = maverick.config.read(path)
    assert.is_nil(ok)
    assert(tostring(err):find("rope_freqs.weight has 3 elements; 8 are expected", 1, true))
  end)

  it("brings its tokenizer", function()
    local dir <close> = support.directory()
    local hf, path = make_model(dir.path, { num_hidden_layers = 2 }), dir.path .. "/m.gguf"
    support.write(path, gguf_file.of_model(hf, "bf16"))
    local a, b = assert(maverick.load(hf, { device = "ref" })), assert(maverick.load(path, { device = "ref" }))
    for _, text in ipairs { "local function f(x) return x + 1 end", "  \n\tÄäß 1234567 don't", "<|begin_of_text|>hi<|eot|>", "" } do
      local ids = assert(a:encode(text))
      assert.same(ids, assert(b:encode(text)))
      assert.equal(assert(a.tokenizer:decode(ids)), assert(b.tokenizer:decode(ids)))
    end
    os.remove(hf .. "/tokenizer.json")
    support.write(path, gguf_file.of_model(hf, "bf16"))
    local c = assert(maverick.load(path, { device = "ref" }))
    assert.is_nil(c.tokenizer)
    assert(tostring(c.tokenizer_error):find("no tokenizer of Llama 4's kind", 1, true))
  end)

  it("is inspected, compared and exported like any other", function()
    local dir <close> = support.directory()
    local hf, path = make_model(dir.path), dir.path .. "/m.gguf"
    support.write(path, gguf_file.of_model(hf, "bf16"))
    local report = assert(inspect.inspect(path))
    assert.equal("gguf", report.kind)
    assert.equal("llama4", report.meta["general.architecture"])
    local text = assert(support.printed(inspect, path))
    assert(text:find("8 layers, hidden 64", 1, true), text)
    assert(text:find("blk.1, 3, ..., 7 (4 alike)", 1, true), text)
    assert.equal(8192, assert(inspect.tensor(path, "blk.3.ffn_up_exps.weight")).stats.count)
    assert.is_true(assert(diff.diff(hf, path)).same)
    assert(export.export(path, dir.path .. "/back"))
    assert.is_true(assert(diff.diff(hf, dir.path .. "/back")).same)
    assert.equal(logits(path), logits(dir.path .. "/back"))
  end)

  it("that cannot be run is refused by name", function()
    local dir <close> = support.directory()
    local hf, path = make_model(dir.path, { num_hidden_layers = 2 }), dir.path .. "/m.gguf"
    local function refused(text, ...)
      support.write(path, gguf_file.of_model(hf, ...))
      local ok, err = maverick.load(path, { device = "ref" })
      assert.is_nil(ok)
      assert(tostring(err):find(text, 1, true), tostring(err))
    end
    refused("no place in this architecture: blk.0.attn_q.bias", "bf16", { { "blk.0.attn_q.bias", "f32", mav.tensor { 1 } } })
    support.write(path, gguf_file.bytes({ { "general.architecture", "string", "llama" } }, {}))
    local ok, err = maverick.load(path, { device = "ref" })
    assert.is_nil(ok)
    assert(tostring(err):find("general.architecture is \"llama\"; \"llama4\" is supported", 1, true), tostring(err))
    ok, err = maverick.load(dir.path .. "/none.gguf", { device = "ref" })
    assert.is_nil(ok)
    assert(tostring(err):find("none.gguf", 1, true))
    support.write(path, gguf_file.bytes({ { "general.architecture", "string", "llama4" } }, {}))
    ok, err = maverick.load(path, { device = "ref" })
    assert.is_nil(ok)
    assert(tostring(err):find("vocab_size is missing", 1, true), tostring(err))
  end)
end)
