--- Sampling chains give the distributions of transformers' logits processors; draws follow them.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local golden = dofile(here .. "/golden.lua")
local mav = require "mav"
local new_chain = require "mav.sample.chain"

local TOLERANCE = 1e-5

for _, device in ipairs { "cpu", "ref" } do
  describe("sampling on " .. device, function()
    local rt, cases, file, kv, seq
    setup(function()
      rt = assert(mav.runtime { device = device, threads = 2 })
      cases = golden.json("sampling/sampling.json").cases
      file = assert(mav.safetensors.open(golden.dir .. "/sampling/sampling.safetensors"))
      kv = assert(mav.kv { layers = 1, kv_heads = 1, head_dim = 2, tokens = 4096, sequences = 2, runtime = rt })
      seq = assert(kv:sequence { key = 7 })
      assert(seq:reserve(4096))
    end)

    --- Logits as (1, V), with the chain's state: all but the last previous id seen, the last one is the row's own token.
    local function prepare(i)
      local values, prev = file:get(i .. ".logits"):totable(), file:get(i .. ".prev_ids"):totable()
      local V = #values
      local logits = mav.tensor(values, { dtype = "f32", shape = { 1, V }, runtime = rt })
      local seen = mav.zeros { 2, V, dtype = "u8", runtime = rt }
      for k = 1, #prev - 1 do seen:set(seq.id + 1, prev[k] + 1, 1) end
      local rows = mav.rows(1, { runtime = rt })
      rows:set(1, prev[#prev], seq, 0)
      return logits, rows, { kv = kv:layer(1), seen = seen, runtime = rt }
    end

    it("has the golden distributions", function()
      for i, params in ipairs(cases) do
        local options = { temperature = params.temperature or 1 }
        for key, value in pairs(params) do options[key] = math.tointeger(value) or value end
        if options.top_p then options.top_p = math.min(options.top_p, 1) end -- a few cases go beyond, where nothing is filtered
        local chain = new_chain(options)
        local logits, rows, state = prepare(i - 1)
        local expected = file:get((i - 1) .. ".probs"):totable()
        if options.temperature == 0 then
          local id = chain(logits, rows, state):get(1)
          assert.are.equal(1, expected[id + 1], ("case %d"):format(i - 1))
        else
          local probs = mav.op.softmax { x = chain:filter(logits, rows, state) }:totable()[1]
          for id = 1, #expected do
            assert.is_true(math.abs(probs[id] - expected[id]) < TOLERANCE,
              ("case %d, id %d: %.8f, expected %.8f"):format(i - 1, id - 1, probs[id], expected[id]))
          end
        end
      end
    end)

    it("draws from the distribution", function()
      local draws, V = 4096, 8
      local values = { 1.5, 0.5, -0.25, 0, -1, 0.75, -3, -math.huge }
      local chain = new_chain { temperature = 0.8, seed = 42 }
      local rows = mav.rows(draws, { runtime = rt })
      local flat = {}
      for i = 1, draws do
        rows:set(i, 0, seq, i - 1, i - 1)
        table.move(values, 1, V, #flat + 1, flat)
      end
      local logits = mav.tensor(flat, { dtype = "f32", shape = { draws, V }, runtime = rt })
      local state = { kv = kv:layer(1), runtime = rt }
      local probs = mav.op.softmax { x = chain:filter(logits, rows, state) }:totable()[1]
      local counts = {}
      local ids = chain(logits, rows, state):totable()
      for _, id in ipairs(ids) do counts[id + 1] = (counts[id + 1] or 0) + 1 end
      local chi2 = 0
      for id = 1, V - 1 do
        local expected = probs[id] * draws
        chi2 = chi2 + ((counts[id] or 0) - expected) ^ 2 / expected
      end
      assert.is_nil(counts[V])
      assert.is_true(chi2 < 22.5, "chi squared, 6 degrees of freedom: " .. chi2) -- p = 0.001
      assert.are.same(ids, chain(logits, rows, state):totable()) -- the same seed, the same draws
      assert.are_not.same(ids, new_chain { temperature = 0.8, seed = 43 }(logits, rows, state):totable())
    end)

    it("applies biases, user functions and log probabilities", function()
      local logits = mav.tensor({ 1, 2, 3, 4 }, { dtype = "f32", shape = { 1, 4 }, runtime = rt })
      local rows = mav.rows(1, { runtime = rt })
      rows:set(1, 0, seq, 0)
      local state = { kv = kv:layer(1), runtime = rt }
      assert.are.equal(3, new_chain {}(logits, rows, state):get(1))
      assert.are.equal(2, new_chain { logit_bias = { [3] = -math.huge } }(logits, rows, state):get(1))
      assert.are.equal(0, new_chain { function(x) return mav.op.neg { x = x } end }(logits, rows, state):get(1))
      local ids, chosen, best, best_ids = new_chain { logit_bias = { [0] = 10 }, logprobs = 2 }(logits, rows, state)
      assert.are.equal(0, ids:get(1))
      local norm = math.log(math.exp(1) + math.exp(2) + math.exp(3) + math.exp(4))
      assert.is_true(math.abs(chosen:get(1, 1) - (1 - norm)) < 1e-5)
      assert.is_true(math.abs(best:get(1, 2) - (3 - norm)) < 1e-5)
      assert.are.same({ { 3, 2 } }, best_ids:totable())
    end)
  end)
end

describe("sampling parameters", function()
  local BAD = {
    { { temperature = -1 }, "temperature" }, { { temperature = 0 / 0 }, "temperature" }, { { temperature = "1" }, "temperature" },
    { { top_k = -1 }, "top_k" }, { { top_k = 1.5 }, "top_k" }, { { top_p = 1.01 }, "top_p" }, { { top_p = -0.1 }, "top_p" },
    { { min_p = 2 }, "min_p" }, { { repetition_penalty = 0 }, "repetition_penalty" }, { { seed = -1, temperature = 1 }, "seed" },
    { { logit_bias = { x = 1 } }, "logit_bias" }, { { logit_bias = { [3] = math.huge } }, "logit_bias" }, { { logprobs = 0 }, "logprobs" },
    { { topp = 0.9 }, "unknown option 'topp'" }, { { "top_p" }, "step 1" },
  }
  it("are checked by name", function()
    for _, case in ipairs(BAD) do
      local ok, err = pcall(new_chain, case[1])
      assert.is_false(ok, case[2])
      assert.is_truthy(tostring(err):find(case[2], 1, true), ("%s not named in: %s"):format(case[2], tostring(err)))
    end
  end)
end)
