--- Sampling with drafts gives the text of the same seed without: every drafter and shape, every step that a chain may have.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local S = dofile(here .. "/speculation.lua")
local mav = require "mav"
local op = mav.op

local TOKENS = S.is_full and 80 or 28
local ROWS_MAX = 64

--- A step of a chain that the host prepares: a token must differ in parity from the one before it, but for every seventh id.
local function alternating(model)
  local V, masks = model.config.vocab, {}
  for parity = 0, 1 do
    local mask = {}
    for id = 0, V - 1 do mask[id + 1] = (id % 7 == 0 or id % 2 ~= parity) and 0 or -1e4 end
    masks[parity + 1] = mask
  end
  local both = mav.tensor(masks, { dtype = "f32", runtime = model.runtime })
  local which = mav.zeros { ROWS_MAX, dtype = "i32", runtime = model.runtime }
  local step = { text = "alternating", calls = 0, path = {} }
  function step.apply(logits) return op.add { a = logits, b = op.gather { x = both, index = which:slice(1, 1, #logits) } } end
  function step.prepare(session, count)
    step.calls = step.calls + 1
    for row = 1, count do
      local n = session:path(row, step.path)
      which:set(row, (n > 0 and step.path[n] or session.ids[#session]) % 2)
    end
  end
  return step
end

--- A step of the graph alone: flatter, and odd ids a little more likely.
local function tilted(model)
  local tilt = {}
  for id = 0, model.config.vocab - 1 do tilt[id + 1] = id % 2 * 0.5 end
  local t = mav.tensor(tilt, { dtype = "f32", runtime = model.runtime })
  return function(logits) return op.add { a = op.mul { a = logits, b = 0.8 }, b = t } end
end

local function chains(model)
  return {
    temperature = { temperature = 0.8, seed = 1 },
    filters = { temperature = 1.1, top_k = 40, top_p = 0.9, min_p = 0.02, seed = 2 },
    penalty = { temperature = 0.9, repetition_penalty = 1.3, logit_bias = { [10] = 2, [198] = -3, [220] = -math.huge }, seed = 3 },
    custom = { tilted(model), temperature = 0.9, top_p = 0.95, repetition_penalty = 1.1, seed = 4 },
    prepared = { alternating(model), temperature = 0.9, repetition_penalty = 1.1, seed = 5 },
    ["greedy, prepared"] = { alternating(model), repetition_penalty = 1.2 },
  }
end

local SPECS = { "ngram", "suffix", "echo", "self=2", "stop=4", "ngram,self=2" }

local function check(model, specs, prompt, tokens, every)
  local turn = 0
  for name, sample in pairs(chains(model)) do
    local p <close> = model:session { sample = sample, key = 9 }
    local expected = S.text(p, prompt, tokens)
    assert.are.equal(tokens, #expected)
    for _, spec in ipairs(specs) do
      local drafter = S.drafter(model, spec)
      for i = 1, #S.chains + #S.trees do
        local shape = S.chains[i] or S.trees[i - #S.chains]
        turn = turn + 1
        if turn % every == 0 and (not shape.tree or S.makes_trees(drafter)) then
          local s <close> = model:session { strategy = S.strategy(drafter, shape, { sample = sample }), key = 9 }
          S.same(expected, S.text(s, prompt, tokens), "%s: %s, %s", name, spec, S.shape_text(shape))
        end
      end
    end
  end
end

describe("sampling with a seed", function()
  it("gives the same text with every drafter: tiny-maverick", function()
    local model, specs = S.load(S.tiny), { table.unpack(SPECS) }
    specs[#specs + 1] = "model=" .. S.tiny
    if S.exists(S.head .. "/model.safetensors") then specs[#specs + 1] = "eagle3=" .. S.head end
    check(model, specs, S.heldout(model)[7], TOKENS, S.is_full and 2 or 17)
  end)

  it("gives the same text with every drafter: a model with small chunks", function()
    local model, specs = S.load(S.support.model_dir "maverick"), { table.unpack(SPECS) }
    specs[#specs + 1] = "eagle3=" .. S.support.model_dir "eagle3_d2t"
    specs[#specs + 1] = "ngram,eagle3=" .. S.support.model_dir "eagle3_full"
    check(model, specs, S.golden.open("maverick").get "mid.input_ids", TOKENS, S.is_full and 1 or 11)
  end)

  it("prepares steps before every verification", function()
    local model = S.load(S.support.model_dir "scout")
    local step = alternating(model)
    local s <close> = model:session { strategy = { draft = S.drafter(model, "self=2"), policy = 4, sample = { step, temperature = 1 } } }
    s:complete({ 1, 2, 3 }, { max_tokens = 60, ignore_eos = true })
    assert.are.equal(#s.stats.steps, step.calls)
    local text = S.after(s, 2)
    for i = 2, #text do assert.is_true(text[i] % 7 == 0 or text[i] % 2 ~= text[i - 1] % 2) end
  end)

  it("gives the same text of the rejection rule with the same seed, another with another", function()
    local model = S.load(S.support.model_dir "scout")
    local function text(seed, key)
      local s <close> = model:session { key = key, strategy = { draft = S.drafter(model, "self=2"), tree = { 2, 1 },
        accept = "rejection", sample = { temperature = 1, seed = seed } } }
      return S.text(s, { 5, 6, 7 }, 50)
    end
    assert.are.same(text(1), text(1))
    assert.are_not.same(text(1), text(2))
    assert.are_not.same(text(1), text(1, 1))
  end)

  it("is greedy where the chain is, whatever the rule", function()
    local model = S.load(S.support.model_dir "scout")
    local p <close> = model:session {}
    local expected = S.text(p, { 5, 6, 7 }, 60)
    for _, rule in ipairs { "greedy", "keyed", "rejection" } do
      for _, spec in ipairs { "ngram", "self=2", "ngram,self=2" } do
        local s <close> = model:session { strategy = { draft = S.drafter(model, spec), policy = 3, accept = rule } }
        S.same(expected, S.text(s, { 5, 6, 7 }, 60), "%s, %s", rule, spec)
      end
    end
  end)
end)
