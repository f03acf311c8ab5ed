--- mav bench --shape: random weights of a shape through the same forward pass.
local mav = require "mav"
local random_model = require "mav.bench.random_model"
local shape = require "mav.bench.shape"

local BINARY = os.getenv "MAV"

local function bench(arguments)
  local pipe = assert(io.popen(("%s bench %s 2>&1"):format(BINARY, arguments)))
  local text = pipe:read "a"
  return text, (select(3, pipe:close()))
end

describe("mav bench --shape", function()
  it("shares a model between ranks", function()
    local c = shape.config("maverick", { tp = 8 })
    assert.are.same({ 48, 5120, 5, 1, 128, 1024, 2048, 25256 },
      { c.layers, c.hidden, c.heads, c.kv_heads, c.experts, c.expert_size, c.dense_size, c.vocab })
    assert.are.same({ false, true, false, true }, { table.unpack(c.is_moe, 1, 4) })
    assert.are.same({ 8192, 8192, 8192, 0 }, { table.unpack(c.chunks, 1, 4) })
    assert.is_true(shape.config("scout", {}).is_moe[1])
    assert.is_false(pcall(shape.config, "maverick", { tp = 16 })) -- 8 kv heads
  end)

  it("makes weights of every kind, finite and different", function()
    local rt = assert(mav.default_runtime())
    for _, dtype in ipairs { "f8", "bf16", "f32" } do
      local model = random_model.new(shape.config("tiny", { tp = 2 }), { name = "tiny", runtime = rt, dtype = dtype, activations = "none" })
      local W = model.weights
      assert.are.equal(4, #W.layers)
      assert.are.equal(dtype, W.layers[2].expert_up.dtype)
      assert.are.same({ 4, 128, 128 }, W.layers[2].expert_gate.shape)
      assert.is_nil(W.layers[1].router)
      local kv = assert(model:kv { tokens = 32, context_max = 32, sequences = 1 })
      local seq, rows = assert(kv:sequence()), mav.rows(2)
      assert(seq:reserve(2))
      for i = 1, 2 do rows:set(i, i, seq, i - 1, i - 1) end
      local logits = model:forward(rows, kv)
      local largest = mav.op.max { x = mav.op.abs { x = logits } }
      for i = 1, 2 do assert.is_true(largest:get(i, 1) > 0 and largest:get(i, 1) < 1000) end
      assert.are_not.equal(logits:get(1, 1), logits:get(2, 1))
    end
  end)

  it("measures steps, and prints one object", function()
    local text, status = bench "--shape tiny --tp 8 --context 40 --seconds 0.01 --rows 1,4 --json"
    assert.are.equal(0, status, text)
    local r = mav.json.decode(text)
    assert.are.same({ "tiny", 8, 4, 40 }, { r.shape, r.tp, r.layers, r.context })
    for i, n in ipairs { 1, 4 } do
      local s = r.steps[i]
      assert.are.equal(n, s.rows)
      assert.is_true(s.us_per_step > 0 and s.bytes_per_step > 0 and s.experts_per_layer >= 1 and s.experts_per_layer <= n)
      assert.is_true(#s.profile >= 8)
    end
    assert.are.equal(5.5, r.steps[1].kernels_per_layer) -- 5 ops in a dense layer, 6 in one with experts
    text = bench "--shape tiny --tp 8 --layers 2 --experts 2 --vocab 512 --context 20 --seconds 0.01 --rows 2 --unfused --profile"
    assert.is_truthy(text:find("2 layers, 2 experts", 1, true) and text:find("unfused", 1, true) and text:find "expert_matmul", text)
  end)

  it("switches one thing off at a time", function()
    local text, status = bench "--shape tiny --tp 8 --context 20 --seconds 0.01 --rows 1 --ablate --json"
    assert.are.equal(0, status, text)
    local list = mav.json.decode(text)
    assert.are.equal("nothing", list[1].off)
    for _, entry in ipairs(list) do assert.is_truthy(entry.result or entry.reason == "only on cuda", entry.off) end
    assert.is_false(list[2].result.fused)
    assert.are.equal("bf16", list[#list].result.dtype)
  end)

  it("refuses options that do not belong together", function()
    local function refused(arguments, why)
      local text, status = bench(arguments)
      assert.are.equal(1, status)
      assert.is_truthy(text:find(why, 1, true), text)
    end
    refused("--ablate", "--ablate needs a --shape")
    refused("--shape tiny --model x", "--model or --shape")
    refused("--shape tiny --rows 1,513", "from 1 to 512")
    refused("--shape tiny --tp 16", "which 16 ranks cannot share")
  end)
end)
