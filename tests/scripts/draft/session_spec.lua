--- Drafters in sessions: whoever drafts, in whatever shape, the text is that of plain decoding. A drafter that knows the model's
--- choices (the model itself) sees all its drafts accepted.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/../support.lua")
local golden = dofile(support.oracle .. "golden.lua")
local maverick = require "mav.maverick"
local draft = require "mav.draft"
local first = require "mav.draft.first"
local self_draft = require "mav.draft.self"

local TOKENS = 40
local SAMPLES = { greedy = {}, drawn = { temperature = 1.2, top_k = 50, top_p = 0.95, repetition_penalty = 1.1, seed = 3 } }
local SHAPES = { { policy = 1 }, { policy = 4 }, { tree = { 3, 2, 1 } }, { k_max = 5, policy = function(t) return t.steps % 4 end } }

describe("drafters", function()
  local model, prompt
  setup(function()
    model = assert(maverick.load(support.model_dir "maverick", { device = "cpu", threads = 2 }))
    prompt = golden.open("maverick").get "long.input_ids"
  end)

  local function strategy(drafter, shape, sample)
    return { draft = drafter, policy = shape.policy, tree = shape.tree, k_max = shape.k_max, sample = sample }
  end

  --- The text with a strategy, and tokens a step.
  local function text(options)
    local s <close> = model:session { strategy = options }
    s:complete(prompt, { max_tokens = TOKENS, ignore_eos = true })
    return { table.unpack(s.ids, #prompt + 1, #s) }, s.stats.acceptance_length
  end

  --- The drafter leaves the text alone, in every shape it can draft and with every way to choose.
  local function check(drafter)
    for name, sample in pairs(SAMPLES) do
      local expected = text { sample = sample }
      for i, shape in ipairs(SHAPES) do
        if not shape.tree or drafter.kind == "device" then
          assert.are.same(expected, (text(strategy(drafter, shape, sample))), ("%s, shape %d, %s"):format(drafter.name, i, name))
        end
      end
    end
  end

  local function eagle3(name) return assert(draft.parse("eagle3=" .. support.model_dir(name), model)) end

  it("leave the text alone", function()
    for _, spec in ipairs { "ngram", "suffix", "self=2", "ngram,suffix,self=3" } do check(assert(draft.parse(spec, model))) end
    check(self_draft { stop_at = 5 })
    check(self_draft { layers = { 1, 2, 8 } })
  end)

  it("that are loaded leave the text alone", function()
    local full, small = eagle3 "eagle3_full", assert(draft.parse("model=" .. support.model_dir "maverick", model))
    check(full)
    check(eagle3 "eagle3_d2t")
    check(first { "suffix", full })
    check(small)
    check(first { "ngram", small })
  end)

  it("that are the model itself are always right", function()
    for _, spec in ipairs { "self=1", "model=" .. support.model_dir "maverick" } do
      for _, sample in pairs(SAMPLES) do
        for _, shape in ipairs { { policy = 3 }, { tree = { 2, 1, 2 } } } do
          local _, length = text(strategy(assert(draft.parse(spec, model)), shape, sample))
          assert.is_true(length > 3.5, ("%s: %g"):format(spec, length)) -- 4 but for the first step and the last
        end
      end
    end
  end)

  it("that use text find repetitions", function()
    local again = table.move(prompt, 1, #prompt, #prompt + 1, { table.unpack(prompt) })
    for _, spec in ipairs { "ngram", "suffix" } do
      local s <close> = model:session { strategy = { draft = draft.parse(spec, model), policy = 4 } }
      s:complete(again, { max_tokens = 4, ignore_eos = true })
      local out = {}
      local n = s.proposers[1]:propose(again, 2 * #prompt - 10, 4, out)
      assert.are.same({ table.unpack(prompt, #prompt - 9, #prompt - 6) }, { table.unpack(out, 1, n) })
    end
  end)

  it("serve forks and sessions that go on in turns", function()
    for _, drafter in ipairs { eagle3 "eagle3_full", self_draft(2), first { "ngram", eagle3 "eagle3_d2t" } } do
      local expected = text {}
      local s <close> = model:session { strategy = { draft = drafter, policy = 3 } }
      s:complete(prompt, { max_tokens = 8, ignore_eos = true })
      local other <close> = s:fork {}
      for _ = 1, 3 do
        s:complete(nil, { max_tokens = 5, ignore_eos = true })
        other:complete(nil, { max_tokens = 6, ignore_eos = true })
      end
      assert.are.same({ table.unpack(expected, 1, 23) }, { table.unpack(s.ids, #prompt + 1, #s) })
      assert.are.same({ table.unpack(expected, 1, 26) }, { table.unpack(other.ids, #prompt + 1, #other) })
      other:truncate(#prompt + 3)
      other:complete(nil, { max_tokens = 9, ignore_eos = true })
      assert.are.same({ table.unpack(expected, 1, 12) }, { table.unpack(other.ids, #prompt + 1, #other) })
    end
  end)
end)
