--- A step with drafts allocates nothing once its graphs are captured: neither in Lua nor below, whoever drafts and decides.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local S = dofile(here .. "/speculation.lua")

local WARM, STEPS = 80, S.is_full and 400 or 120

describe("a step with drafts allocates nothing:", function()
  local model, prompt, repeating
  setup(function()
    model, prompt = S.load(S.support.model_dir "maverick"), S.golden.open("maverick").get "short.input_ids"
    repeating = { logit_bias = { [77] = 50 } } -- a text that says nothing new: tables of lookups do not grow
  end)
  teardown(function() model = nil end)

  local PENALTY = { temperature = 1.1, repetition_penalty = 1.2, top_p = 0.95, seed = 5 }
  local function turning(t) return t.steps % 4 end
  local function likely(probs, id) return probs:get(id + 1) > 0.2 end
  local HEAD = "eagle3=" .. S.support.model_dir "eagle3_d2t"

  local CASES = {
    ["device, chain"] = { "self=2", { policy = 3 } },
    ["device, tree"] = { "self=2", { tree = { 2, 2, 1 } } },
    ["device, sampling"] = { "stop=4", { policy = 4, sample = PENALTY } },
    ["EAGLE-3, chain"] = { HEAD, { policy = 4 } },
    ["EAGLE-3, tree, sampling"] = { HEAD, { tree = { 3, 2 }, sample = PENALTY } },
    ["device, rejection, tree"] = { HEAD, { tree = { 2, 2 }, accept = "rejection", sample = PENALTY } },
    ["device, typical"] = { "self=2", { policy = 3, accept = "typical", sample = PENALTY } },
    ["device, changing depth"] = { "self=2", { policy = turning, k_max = 3 } },
    ["device, trimmed"] = { "stop=4", { policy = "confidence", k_max = 3 } },
    ["device, ema"] = { "self=1", { policy = "ema", k_max = 3 } },
    ["device, decided by a function"] = { "self=2", { policy = 3, accept = likely } },
    ["device, tree, decided by a function"] = { HEAD, { tree = { 2, 2 }, accept = likely } },
    ["device, log probabilities"] = { "self=1", { policy = 3, sample = { logprobs = 3, temperature = 1 } } },
    ["device, off"] = { HEAD, { policy = function(t) return t.steps < 20 and 2 end, k_max = 2 } },
    ["host"] = { "echo", { policy = 4 } },
    ["host, sampling"] = { "echo", { policy = 4, sample = PENALTY } },
    ["host, changing depth"] = { "echo", { policy = turning, k_max = 3, sample = PENALTY } },
    ["host, decided by a function"] = { "echo", { policy = 3, accept = likely } },
    ["ngram"] = { "ngram", { policy = 4 }, true },
    ["suffix"] = { "suffix", { policy = 4 }, true },
    ["host before device"] = { "ngram,self=2", { policy = 3 }, true },
    ["host before EAGLE-3"] = { "suffix," .. HEAD, { policy = 3 }, true },
  }

  for name, case in pairs(CASES) do
    it(name, function()
      local drafter, more = table.unpack(case)
      if case[3] then more.sample = repeating end
      drafter = S.drafter(model, drafter)
      local s <close> = model:session { strategy = S.strategy(drafter, more), context = 4000 }
      s:append(prompt)
      s:prefill()
      s.loop:request(s)
      local function step()
        repeat s:step() until s.taken == s.given -- all tokens of a step
      end
      for v = 0, S.makes_trees(drafter) and s.loop.k_max or -1 do -- rare pairs too
        for k = 0, s.loop.k_max do s.loop:joint_graph(s.loop:size(v), k) end
      end
      for _ = 1, WARM do step() end
      collectgarbage()
      collectgarbage "stop"
      for _ = 1, WARM do step() end -- a full collection takes spare call frames away
      local host, arena = model.runtime:memory().host_allocs, model.runtime:memory().arena_bytes
      local before, length = collectgarbage "count", #s
      for _ = 1, STEPS do step() end
      local after = collectgarbage "count"
      local now = model.runtime:memory()
      collectgarbage "restart"
      assert.is_true(#s >= length + STEPS)
      assert.are.equal(before, after)
      assert.are.equal(host, now.host_allocs)
      assert.are.equal(arena, now.arena_bytes)
    end)
  end
end)
