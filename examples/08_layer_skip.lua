--- A drafter of your own, on the device: a changed forward pass of the same model guesses for the whole one.
---
---     mav examples/08_layer_skip.lua [MODEL_DIR]
---
--- A device drafter emits ops into the graph of a step, like the model and the sampler: no Lua runs between a draft and its
--- verification. This one leaves parts of the model out, as 03_forward.lua does, and needs neither training nor memory. Its keys and
--- values go to slots of the cache that are not part of the text yet, where the verification overwrites them.
local mav = require "mav"
local attention = require "mav.maverick.attention"
local moe = require "mav.maverick.moe"
local op = mav.op

local here = (arg and arg[0] or ""):match("^(.*)/[^/]*$") or "."
local model = assert(require("mav.maverick").load(arg and arg[1] or here .. "/../models/tiny-maverick"))

--- scripts/maverick/forward.lua without its options, leaving out what skips(i, L) says: attention, feed_forward.
local function forward(W, rows, kv, skips)
  local x = op.embed { rows = rows, table = W.embed }
  for i, L in ipairs(W.layers) do
    local no_attention, no_feed_forward = skips(i, L)
    if not no_attention then
      local cache = kv:layer(i)
      local q = attention.queries(L, x, rows, cache)
      x = attention.project(L, attention.attend(L, q, rows, cache), x)
    end
    if not no_feed_forward then
      local index, score
      if L.router then index, score = moe.route(L, x) end
      x = moe.feed_forward(L, x, index, score)
    end
  end
  return op.lm_head { x = x, norm = W.norm, w = W.head, eps = W.eps }
end

--- The drafter. layers: what it adds to the cache, nothing. bind is called once for a session and its forks; draft is called while a
--- step is captured, and for each level gives the logits that follow the nodes of the level before. step:choose picks their children
--- by the sampling chain and puts them into the tree.
local function skipping(name, skips)
  return { kind = "device", name = name, layers = function() return {} end, bind = function(_, loop)
    return { draft = function(_, step, k)
      for d = 1, k do
        local parents = loop:level(d - 1)
        step:choose(forward(loop.model.weights, parents, loop.kv, skips), parents, d)
      end
    end }
  end }
end

local PROMPT = "-- returns the number of words that are longer than n letters\nlocal function count_long_words(text, n)\n"
local TOKENS = 72
local COUNT = model.config.layers

local function run(strategy)
  local s <close> = model:session { strategy = strategy }
  return s:complete(PROMPT, { max_tokens = TOKENS, ignore_eos = true }), s.stats
end

local plain = run {}

local DRAFTERS = {
  { "whole", function() end }, -- for comparison: never wrong, and as slow as the model
  { "every second layer", function(i) return i % 2 == 0, i % 2 == 0 end },
  { "without experts", function(_, L) return false, L.router ~= nil end },
  { "early exit", function(i) return i > COUNT // 2, i > COUNT // 2 end }, -- the lower half, with the model's own head
  { "without attention", function() return true, false end },
}
local length = {}
for _, entry in ipairs(DRAFTERS) do
  local name, skips = table.unpack(entry)
  local text, stats = run { draft = skipping(name, skips), policy = 3 }
  assert(text == plain, name .. " changed the text")
  print(("%-20s %.2f tokens a step, %3.0f%% of its drafts accepted"):format(name, stats.acceptance_length, 100 * stats.accepted_share))
  length[name] = stats.acceptance_length
  assert(name ~= "whole" or stats.accepted_share == 1)
end
assert(length["every second layer"] > 1.5)

--- With a temperature drafts are drawn with the noise that the verification uses at the same place, so they still agree.
local hot = { temperature = 0.8, seed = 7 }
local text, stats = run { draft = skipping(table.unpack(DRAFTERS[2])), policy = 3, sample = hot }
assert(text == run { sample = hot })
print(("at temperature 0.8:  %.2f tokens a step"):format(stats.acceptance_length))

--- And it drafts trees: two guesses for the next token, two for the one after each.
text, stats = run { draft = skipping(table.unpack(DRAFTERS[2])), tree = { 2, 2, 1 } }
assert(text == plain)
print(("as a tree:           %.2f tokens a step"):format(stats.acceptance_length))
assert(stats.acceptance_length >= length["every second layer"])
