--- A sampler of your own: steps made of ops, inside the chain and inside the graph of a step.
---
---     mav examples/06_sampler.lua [MODEL_DIR]
---
--- A step is function(logits, rows, state) -> logits, or { apply = such a function, text = "its name" }. It is called when the graph of
--- a step is captured, and what it emits then runs for every token. It sees T rows at a time, one for every token that is verified;
--- ops along the last dimension are all it needs to be right under speculation. Noise is keyed by (seed, sequence, position): with
--- one seed the text is the same whoever drafts.
local mav = require "mav"
local op = mav.op

local here = (arg and arg[0] or ""):match("^(.*)/[^/]*$") or "."
local model = assert(require("mav.maverick").load(arg and arg[1] or here .. "/../models/tiny-maverick"))

--- Makes tokens impossible where `unwanted` is 1. Not with -inf: a step after this one may compute 0 * logit.
local function drop(logits, unwanted) return logits + unwanted * -1e30 end

--- Top-n-sigma (arXiv 2411.07641): keeps logits within n standard deviations of the best one.
local function top_n_sigma(n)
  local function apply(logits)
    local away = logits - op.mean { x = logits }
    local sigma = op.sqrt { x = op.mean { x = away * away } }
    return drop(logits, op.less { a = logits, b = op.max { x = logits } - sigma * n })
  end
  return { apply = apply, text = "top-n-sigma " .. n }
end

--- Locally typical sampling (arXiv 2202.00666): keeps tokens whose surprise is nearest to the expected one, up to a mass.
local function typical(mass, most)
  local function apply(logits)
    local logp = op.log_softmax { x = logits }
    local p = op.exp { x = logp }
    local entropy = -op.sum { x = p * logp }
    local far = op.abs { x = logp + entropy } -- |surprise - entropy|
    local near, index = op.topk { x = -far, k = most }
    local chance = op.take { x = p, index = index }
    local before = op.cumsum { x = chance } - chance -- the mass of nearer tokens
    local farthest = op.max { x = -near * op.less { a = before, b = mass } } -- of those that are kept
    return drop(logits, op.less { a = farthest, b = far })
  end
  return { apply = apply, text = "typical " .. mass }
end

-- ---- eagerly, on values that can be looked at -----------------------------------------------------------------------------

local function kept(step, logits)
  local p, list = op.softmax { x = step.apply(logits) }, {}
  for i = 1, logits.shape[2] do list[i] = p:get(1, i) > 0 and "1" or "0" end
  return table.concat(list)
end

local logits = mav.tensor { { 6.0, 5.5, 0.0, -1.0, 0.5, 0.0 } }
print("top_n_sigma(1):", kept(top_n_sigma(1), logits))
assert(kept(top_n_sigma(1), logits) == "110000")
assert(kept(top_n_sigma(100), logits) == "111111")
print("typical(0.5):  ", kept(typical(0.5, 6), logits))
assert(kept(typical(0.5, 6), logits) == "100000") -- p = 0.62: its surprise is nearest to the entropy
assert(kept(typical(0.9, 6), logits) == "110000")

-- ---- in a chain, under speculation ------------------------------------------------------------------------------------------

local PROMPT = "-- returns the longest word of the text\n"
local STRATEGIES = {
  { draft = require "mav.draft.ngram" {} },
  { draft = require "mav.draft.self"(2), policy = 3 },
  { draft = require "mav.draft.self"(2), tree = { 2, 2, 1 } },
}

local function say(strategy)
  local s <close> = model:session { strategy = strategy }
  return s:complete(PROMPT, { max_tokens = 40 })
end

local hot = { temperature = 2.5, seed = 3 }
print("-- " .. tostring(require "mav.sample.chain"(hot)))
print(say { sample = hot })
for _, options in ipairs {
  { top_n_sigma(1.5), temperature = 2.5, seed = 3 },
  { typical(0.6, 64), temperature = 2.5, seed = 3 },
  { top_n_sigma(2), typical(0.9, 64), temperature = 1.5, top_p = 0.9, seed = 3 },
} do
  local chain = require "mav.sample.chain"(options)
  local text = say { sample = chain }
  print("-- " .. tostring(chain))
  print(text)
  for _, strategy in ipairs(STRATEGIES) do
    strategy.sample = chain
    assert(say(strategy) == text, "a drafter changed the text")
  end
end
