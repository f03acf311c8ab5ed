--- A device in its own memory does what the processor does: the same texts, drafted and not, of weights of every kind, from files and from
--- packs; and its memory is given back. Runs on MAV_TEST_DEVICE (cuda, or its emulation); without it there is nothing to compare.
local mav = require "mav"
local maverick = require "mav.maverick"
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local S = dofile(here .. "/speculation.lua")
local support = S.support

local device = os.getenv "MAV_TEST_DEVICE"
local TOKENS = 10

local function load(where, dir, options)
  local o = { device = where, threads = 1 }
  for key, value in pairs(options or {}) do o[key] = value end
  return assert(maverick.load(dir, o))
end

if device then
  describe("speculation on " .. device, function()
    local model, prompt, expected
    setup(function()
      local host = load("cpu", support.model_dir "maverick")
      prompt = S.golden.open("maverick").get "mid.input_ids"
      expected = S.text(host:session {}, prompt, TOKENS)
      model = load(device, support.model_dir "maverick")
    end)
    teardown(function() model = nil end)

    it("says what plain decoding says", function()
      assert.equal(device, model.runtime.device)
      S.same(expected, S.text(model:session {}, prompt, TOKENS), "plain")
      for _, case in ipairs { { "suffix", S.chains[3] }, { "self=2", S.trees[1] },
        { "eagle3=" .. support.model_dir "eagle3_full", S.chains[3] },
        { "suffix,eagle3=" .. support.model_dir "eagle3_d2t", S.chains[2] } } do
        local s <close> = model:session { strategy = S.strategy(S.drafter(model, case[1]), case[2]) }
        S.same(expected, S.text(s, prompt, TOKENS), "%s, %s", case[1], S.shape_text(case[2]))
      end
    end)

    it("draws the same, whoever drafts, and forks", function()
      local sample = { temperature = 0.8, top_k = 20, top_p = 0.95, seed = 5 }
      local plain = S.text(model:session { sample = sample }, prompt, TOKENS)
      local head = S.drafter(model, "eagle3=" .. support.model_dir "eagle3_full")
      local s <close> = model:session { sample = sample, strategy = S.strategy(head, S.trees[1]) }
      S.same(plain, S.text(s, prompt, TOKENS), "a seed")
      local r <close> = model:session { sample = sample, strategy = { draft = head, tree = { 2, 1 }, accept = "rejection" } }
      assert.equal(TOKENS, #S.text(r, prompt, TOKENS))
    end)

    it("reads prompts of many rows like the processor", function() -- whose products go to cuBLASLt
      local ids = {}
      for i = 1, 150 do ids[i] = i * i * 37 % 300 end
      local host = load("cpu", support.model_dir "maverick")
      S.same(S.text(host:session {}, ids, 4), S.text(model:session {}, ids, 4), "a long prompt")
      local fp8 = load(device, support.model_dir "maverick_ct_fp8")
      S.same(S.text(load("cpu", support.model_dir "maverick_ct_fp8"):session {}, ids, 2), S.text(fp8:session {}, ids, 2), "w8a8")
    end)

    it("says what plain decoding says, as a trained model", function()
      local tiny = load(device, S.tiny)
      local ids = tiny:encode "-- returns the sum of the list t\nlocal function"
      local plain = S.text(tiny:session {}, ids, 8)
      for _, drafter in ipairs { "self=2", "eagle3=" .. S.head } do
        local s <close> = tiny:session { strategy = S.strategy(S.drafter(tiny, drafter), S.chains[2]) }
        S.same(plain, S.text(s, ids, 8), "tiny-maverick, %s", drafter)
        assert.is_true(s.stats.drafted_per_step > 0)
      end
    end)
  end)

  describe("weights on " .. device, function()
    --- The greedy text of a model on the processor and on the device.
    local function same(dir, options, what)
      local prompt = { 5, 17, 3, 44, 9, 28 }
      local texts = {}
      for i, where in ipairs { "cpu", device } do
        local model = load(where, dir, options)
        local s <close> = model:session {}
        texts[i] = S.text(s, prompt, 4)
        if i == 2 and what == "fp8" then
          local shuffled = 0
          for _, L in ipairs(model.weights.layers) do
            for _, t in pairs(L) do
              if type(t) == "userdata" and t.is_shuffled then shuffled = shuffled + 1 end
            end
          end
          assert.is_true(shuffled > 0)
        end
      end
      S.same(texts[1], texts[2], what)
    end

    it("are what they are on the processor", function()
      same(support.model_dir "top2", { dtype = "fp8" }, "fp8")
      same(support.model_dir "maverick_ct_fp8", nil, "w8a8")
      same(support.model_dir "tied", { dtype = "bf16" }, "bf16")
    end)

    it("come from packs", function()
      local dir <close> = support.directory()
      local program = os.getenv "MAV" or arg[-1]
      for _, layout in ipairs { "row", "m16n8k16" } do
        local recipe = ("%s/%s.lua"):format(dir.path, layout)
        local file = assert(io.open(recipe, "w"))
        file:write(([[return { { linear = true, dtype = "fp8" }, { layout = "%s", match = function(e)
          return e.linear and e.shape[#e.shape - 1] %% 16 == 0 and e.shape[#e.shape] %% 32 == 0
        end } }]]):format(layout))
        file:close()
        local out = dir.path .. "/" .. layout
        local ok = os.execute(("%s weights convert %s %s --recipe %s >/dev/null 2>&1"):format(program, support.model_dir "top2", out,
          recipe))
        assert.is_true(ok == true, layout)
        same(out, nil, "pack of " .. layout)
      end
    end)
  end)

  describe("what was written a moment ago on " .. device, function()
    local op, rt, x = mav.op, nil, nil
    setup(function()
      rt = assert(mav.runtime { device = device })
      x = mav.tensor(1, { shape = { 2, 64 }, runtime = rt })
    end)

    --- Kernels overlap, and ask for weights before those before them are done.
    it("is there when it is a weight", function()
      local function ones() return mav.tensor(1, { shape = { 32, 64 }, runtime = rt }) end
      local function f8()
        local w = ones():to "f8"
        w:set_scale(mav.tensor(0.5, { runtime = rt }) * 1)
        return w
      end
      local old, bf16, src = f8(), ones():to "bf16", ones()
      local replayed = mav.graph({ rows = 1, runtime = rt }, function() return op.matmul { x = x, w = bf16 } end)
      local cases = {
        { 32, function() return f8():shuffle() end },
        { 32, function() return old:shuffle() end },
        { 64, function() return ones():quantize():shuffle() end },
        { 64, function() return ones():to "bf16" end },
        { 128, function() return ones() + 1 end },
        { 128, function()
          local w = mav.zeros { 32, 64, dtype = "bf16", runtime = rt }
          return w:copy_from(mav.tensor(2, { shape = { 32, 64 }, runtime = rt }))
        end },
      }
      for round = 1, 8 do
        for i, case in ipairs(cases) do
          local w = case[2]()
          assert.equal(case[1], op.matmul({ x = x, w = w }):get(1, 1), "case " .. i)
        end
        local g = mav.graph({ rows = 1, runtime = rt }, function() return op.matmul { x = x, w = (src + 1):to "bf16" } end)
        assert.equal(128, g:launch():wait()[1]:get(1, 1))
        bf16:copy_from(mav.tensor(round, { shape = { 32, 64 }, runtime = rt }))
        assert.equal(64 * round, replayed:launch():wait()[1]:get(1, 1))
      end
    end)

    it("crosses to another runtime, and is not taken for its own", function()
      local cpu = assert(mav.runtime { device = "cpu", threads = 1 })
      local there = mav.zeros { 2, 64, runtime = cpu }
      there:copy_from(x + 1)
      assert.equal(2, there:get(2, 64))
      local back = mav.zeros { 2, 64, runtime = rt }
      back:copy_from(there)
      assert.equal(3, (back + 1):get(1, 1))
      local function fails(what, f)
        local ok, err = pcall(f)
        assert.is_false(ok)
        assert.is_truthy(tostring(err):find(what, 1, true), tostring(err))
      end
      fails("another runtime", function() there:copy_from(x:to "bf16") end)
      fails("another runtime", function() x:to("f8"):set_scale(mav.tensor(1, { runtime = cpu })) end)
      fails("another runtime", function() mav.graph({ rows = 1, runtime = cpu }, function() return x + 1 end) end)
      fails("shuffled", function() there:copy_from(mav.zeros({ 16, 64, dtype = "f8", runtime = rt }):shuffle()) end)
      assert.equal(2, (x + 1):get(1, 1))
    end)
  end)

  describe("memory of " .. device, function()
    it("is given back, and garbage does not fill it", function()
      local rt = assert(mav.runtime { device = device })
      for _ = 1, 40 do mav.zeros { 4 << 20, runtime = rt } end
      collectgarbage()
      assert.equal(0, rt:memory().device_bytes_live)
      local kept = {} -- luacheck: ignore
      local ok, err = pcall(function()
        for i = 1, 1 << 20 do kept[i] = mav.zeros { 64 << 20, dtype = "u8", runtime = rt } end
      end)
      assert.is_false(ok)
      assert.equal("NOMEM", err.code)
      kept = nil -- luacheck: ignore
      local t = mav.zeros { 64 << 20, dtype = "u8", runtime = rt } -- collects, and tries again
      assert.equal(0, t:get(1))
    end)
  end)
end
