--- mav bench: a model; and --shape, random weights of a shape through the same forward pass.
local mav = require "mav"
local ablate = require "mav.bench.ablate"
local layers = require "mav.bench.layers"
local random_model = require "mav.bench.random_model"
local shape = require "mav.bench.shape"

local BINARY = os.getenv "MAV"

local TINY = "--shape tiny --tp 8 --layers 2 --experts 2 --vocab 512 --context 20 --seconds 0.01 "

--- environment: nil or "NAME=value"
local function bench(arguments, environment)
  local pipe = assert(io.popen(("%s %s bench %s 2>&1"):format(environment or "", BINARY, arguments)))
  local text = pipe:read "a"
  return text, (select(3, pipe:close()))
end

--- What f(...) prints.
local function printed(f, ...)
  local lines, print_before = {}, print
  _G.print = function(text) lines[#lines + 1] = text or "" end
  local ok, err = pcall(f, ...)
  _G.print = print_before
  assert(ok, err)
  return table.concat(lines, "\n") .. "\n"
end

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read "a"
end

describe("mav bench", function()
  it("tells a model's ops in JSON too, and every column and limit in the help", function()
    local text, status = bench "--context 20 --seconds 0.01 --profile --json"
    assert.are.equal(0, status, text)
    local ops = {}
    for _, line in ipairs(mav.json.decode(text).profile) do ops[line.op] = line end
    assert.is_true(ops.argmax.count == 1 and ops.argmax.us > 0, text)
    text = bench "--help"
    for _, word in ipairs { "us ends", "us a layer", "experts a layer", "GB/s, share", "costs", "from 1 to 512", "of each of --rows" } do
      assert.is_truthy(text:find(word, 1, true), word)
    end
  end)
end)

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

  it("saves what it prints; a wrong path is told before measuring, a full disk after printing", function()
    local path = os.tmpname()
    local text, status = bench(TINY .. "--rows 1 --json --save " .. path)
    assert.are.same({ 0, text }, { status, read(path) })
    os.remove(path)
    text, status = bench(TINY .. "--rows 1 --save /nonexistent/x")
    assert.are.same({ 1, "mav bench: --save /nonexistent/x: No such file or directory\n" }, { status, text })
    text, status = bench(TINY .. "--rows 1 --save /dev/full")
    assert.are.equal(1, status)
    assert.is_truthy(text:find "us a step.*\nmav bench: %-%-save /dev/full: No space left on device\n$", text)
  end)

  it("goes on where a number of rows fails", function()
    local argmax, argument = mav.op.argmax, nil
    local failure = { code = "UNSUPPORTED", op = "argmax", message = "not of four" }
    local function failing(x)
      argument = x.x
      if argument.shape[1] == 4 then error(failure) end
      return argmax(x)
    end
    local args = { shape = "tiny", tp = 8, layers = 2, experts = 2, vocab = 512, context = 20, seconds = 0.01, rows = { 1, 4, 2 },
      rounding = "static", device = "cpu", profile = true }
    local before = mav.default_runtime()
    mav.op.argmax = failing
    local ok, r = pcall(layers.measure, args)
    failure.code = nil
    local mistake = { pcall(layers.measure, args) }
    mav.op.argmax = argmax
    mav.default_runtime(before)
    assert.is_true(ok, tostring(r))
    assert.are.same({ rows = 4, reason = "argmax: not of four (UNSUPPORTED)" }, r.steps[2])
    assert.is_true(r.steps[1].us_per_step > 0 and r.steps[3].rows == 2 and r.steps[3].us_per_step > 0)
    assert.are.equal("steps of 4 rows failed; the result says why", layers.failure(r))
    local text = printed(layers.print, r, args)
    assert.is_truthy(text:find "\n +1 +%d.*\n +4 failed: argmax: not of four %(UNSUPPORTED%)\n +2 +%d", text)
    assert.are.same({ false, failure }, mistake) -- what is no error of the core is not a step's
  end)

  it("switches one thing off at a time", function()
    local text, status = bench(TINY .. "--rows 1 --ablate --json")
    assert.are.equal(0, status, text)
    local list = mav.json.decode(text)
    assert.are.equal("nothing", list[1].off)
    for _, entry in ipairs(list) do assert.is_truthy(entry.result or entry.reason == "only on cuda", entry.off) end
    assert.is_false(list[2].result.fused)
    assert.are.equal("bf16", list[#list].result.dtype)
    list = mav.json.decode((bench(TINY .. "--rows 1 --ablate --json --dtype bf16", "MAV_CUDA_OFF=")))
    assert.are.same({ off = "fp8 (bf16 instead)", reason = "no fp8 weights" }, list[#list])
    assert.is_nil(list[2].failed)
  end)

  it("goes on where a variant fails: once said why, and no percentages without anything to compare with", function()
    local function steps(one, seventy)
      return { steps = { { rows = 1, us_per_step = one },
        { rows = 70, us_per_step = seventy, reason = not seventy and "too many" or nil } } }
    end
    local list = { { off = "nothing", result = steps(10.0) }, { off = "fusion", result = steps(15.0) },
      { off = "blas", result = steps(9.0, 80.0) }, { off = "graphs", failed = true, reason = "out of memory" },
      { off = "prefetch", reason = "only on cuda" } }
    local text = printed(ablate.print, list, { rows = { 1, 70 } })
    local body = text:gsub(" +", " ")
    assert.are.equal("nothing 10.0 0.0% - -\nfusion 15.0 50.0% - -\nblas 9.0 -10.0% 80.0 -\ngraphs failed: out of memory\n"
      .. "prefetch not run: only on cuda\nT=70 failed: too many\n", body:match "\n.-\n(.*)")
    assert.are.equal("failed, wholly or in part, without nothing, fusion, graphs; the result says why", ablate.failure(list))
    assert.is_nil(ablate.failure { list[3], list[5] })
    list[1] = { off = "nothing", failed = true, reason = "out of memory" }
    body = printed(ablate.print, list, { rows = { 1, 70 } }):gsub(" +", " ")
    assert.is_truthy(body:find("nothing failed: out of memory\nfusion 15.0 - - -\n", 1, true), body)
  end)

  it("begins no process where none could do it, and says what one said without its name", function()
    local text, status = bench(TINY .. "--ablate --tp 16")
    assert.are.same({ 1, "mav bench: heads of tiny is 8, which 16 ranks cannot share\n" }, { status, text })
    local function reason(line)
      local result, why = ablate.run(line)
      assert.is_nil(result)
      return why
    end
    assert.are.equal("no room (NOMEM)", reason "echo loading; echo 'mav bench: no room (NOMEM)'; echo 'stack traceback:'; exit 1")
    assert.are.equal("no such program", reason "echo no such program; exit 127")
    assert.are.equal("it ended with signal 9 and said nothing", reason "kill -9 $$")
    assert.are.same({ steps = {} }, ablate.run [[echo noise; echo '{"steps":[]}'; echo 'mav bench: no step'; exit 1]])
  end)

  it("refuses options that do not belong together", function()
    local function refused(arguments, why, environment)
      local text, status = bench(arguments, environment)
      assert.are.equal(1, status)
      assert.is_truthy(text:find(why, 1, true), text)
    end
    refused("--ablate", "--ablate needs a --shape")
    refused("--shape tiny --model x", "--model or --shape")
    refused("--shape tiny --rows 1,513", "from 1 to 512")
    for _, option in ipairs { "--tp 1", "--rounding static", "--no-shuffle", "--rows 1" } do
      refused(option, option:match "%S+" .. " needs a --shape")
    end
    refused("--shape tiny --activations f32", "--activations has no meaning with --shape")
    refused("--shape tiny --copy", "--copy has no meaning with --shape")
    refused("--shape tiny --dtype bf16 --rounding none", "--rounding is of fp8 weights")
    for _, option in ipairs { "--unfused", "--no-shuffle", "--profile" } do
      refused("--shape tiny --ablate " .. option, option .. " has no meaning with --ablate")
    end
    refused("--shape tiny --ablate", "MAV_CUDA_OFF is 'pdl': unset it", "MAV_CUDA_OFF=pdl")
    refused("--shape tiny --tp 16", "which 16 ranks cannot share")
  end)
end)
