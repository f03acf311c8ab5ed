--- What a step's graphs hold. A step has three parts, each a function that emits ops:
---
---   verify   the forward pass over the tree's rows, the choice after every row, the acceptance rule
---   settle   what follows from the acceptance: keys of accepted side branches move to their positions, tokens are marked as seen,
---            the drafter observes, the tree moves on to its next root
---   draft    the drafter writes the next tree
---
--- Neighbouring parts share a graph as far as nothing on the host comes between them. With a drafter and a rule made of ops that is
--- one graph a step (the device loop); a rule that is a Lua function splits it after verify, a host drafter before draft.
--- Graphs are captured when first needed and kept by (rows verified, levels drafted).
local mav = require "mav"
local op = mav.op
local logprobs = require "mav.sample.logprobs"

local capture = {}

local DRAFT_STREAM = 1 -- of the noise with which drafters draw when the rule wants drafts independent of the choice

--- Taps of the forward pass, kept in order until the drafter takes them.
local function collect(loop, keep, plain)
  local list, needs = {}, loop.policy.needs
  local wanted = not plain and loop.bound and loop.bound.tap
  if not wanted and not needs.experts then return nil, list end
  return function(name, layer, t)
    if name == "router_index" and needs.experts then
      op.count_distinct { index = t, total = loop.experts, at = layer - 1 }
    elseif wanted and name == "hidden" then
      list[#list + 1] = { name, layer, keep and mav.keep(t) or t }
    end
  end, list
end

--- Gives the drafter what the forward pass left.
function capture.feed(loop, taps)
  if not loop.bound.tap then return end
  for _, tap in ipairs(taps) do loop.bound:tap(table.unpack(tap)) end
end

--- Log probabilities of the choices, where the chain wants them.
local function score(loop, out, logits, choice)
  if loop.chain.logprobs then out.chosen, out.best, out.best_ids = logprobs.apply(loop.chain.logprobs, logits, choice) end
end

--- A table of what the host reads: choice, accepted, probs, entropy, chosen, best, best_ids; and the taps.
local function verify(loop, rows, plain)
  local tap, taps = collect(loop, loop.rule.host, plain)
  local logits = loop.model:forward(rows, loop.kv, { fused = loop.fused, tap = tap })
  local choice, accepted, probs = loop.rule:verify(loop, logits, rows)
  local out = { choice = choice, accepted = accepted, probs = loop.rule.host and probs or nil, taps = taps }
  if out.probs and loop.chain.logprobs then -- what they are is decided on the host
    out.logits = logits
  else
    score(loop, out, logits, choice)
  end
  if loop.entropy then out.entropy = op.entropy { x = logits } end
  return out
end

local Step = {}
Step.__index = Step

--- Picks the children of level d from the logits of their parents, in row order, and writes them into the tree. Returns their ids.
---@param logits userdata  (parents, V)
---@param rows userdata    the parents' rows, or what stands for them in the drafter's cache
---@param ahead integer|nil   1 when those rows lie one position behind
function Step:choose(logits, rows, d, ahead)
  local loop = self.loop
  local chain, width, n = loop.chain, loop.widths[d], #rows
  local state = { kv = loop.state.kv, seen = loop.state.seen, runtime = loop.runtime, ahead = ahead or 0, drafting = true }
  local x = chain.filter and chain:filter(logits, rows, state) or logits
  local independent = loop.rule.draws == "independent" and not chain.is_greedy
  local first = loop:size(d - 1) - n + 1 -- the first parent's row
  local probs
  if independent or loop.confidence then probs = op.softmax { x = x } end
  if independent then op.softmax { x = x, out = loop.q:slice(1, first, first + n - 1) } end
  if chain.filter and not chain.is_greedy then
    x = op.perturb { x = x, rows = rows, kv = state.kv, seed = chain.seed, ahead = state.ahead, stream = independent and DRAFT_STREAM or 0 }
  end
  local ids
  if width == 1 then
    ids = op.argmax { x = x }
  else
    local _
    _, ids = op.topk { x = x, k = width }
  end
  if loop.confidence then
    local to, of, _ = loop.confidence:slice(1, loop:size(d - 1) + 1, loop:size(d)):reshape { n, width }, ids, nil
    -- independent draws: of the likeliest ids. What is verified must not depend on what was drawn, or the distribution changes
    if independent then _, of = op.topk { x = probs, k = width } end
    op.take { x = probs, index = of:reshape { n, width }, out = to }
  end
  ids = ids:reshape { n * width }
  op.rows_put { ids = ids, next = loop:level(d), vocab = loop.vocab }
  return ids
end

--- accepted of a step that verified the root alone: it is always accepted.
local function accepted_of(loop, out) return out.accepted or loop.root_accepted end

local function settle(loop, rows, out)
  local step = setmetatable({ loop = loop, rows = rows, choice = out.choice, accepted = accepted_of(loop, out) }, Step)
  if loop.is_tree and #rows > 1 then
    for i = 1, loop.model.config.layers do op.kv_move { rows = rows, accepted = step.accepted, kv = loop.kv:layer(i) } end
  end
  loop.chain:observe(rows, loop.state, #rows > 1 and step.accepted or nil)
  if loop.bound then
    capture.feed(loop, out.taps)
    if loop.bound.observe then loop.bound:observe(step) end
    op.rows_advance { rows = rows, accepted = step.accepted, choice = step.choice, next = loop.tree, vocab = loop.vocab }
  end
  return step
end

local function draft(loop, step, k)
  loop.bound:draft(step or setmetatable({ loop = loop }, Step), k)
end

--- A graph and the names of what it returns.
local function record(loop, rows, fn)
  local names, values = {}, nil
  local g = mav.graph({ rows = rows, runtime = loop.runtime }, function(r)
    local out = fn(r)
    values = {}
    for name, t in pairs(out) do
      if name ~= "taps" then names[#names + 1], values[#values + 1] = name, t end
    end
    names.taps = out.taps
    return table.unpack(values)
  end)
  local entry = { graph = g, taps = names.taps, rows = #rows }
  for i, name in ipairs(names) do entry[name] = g[i] end
  if entry.probs then -- by row: views, made once
    local list = {}
    for r = 1, entry.rows do list[r] = entry.probs:select(1, r) end
    entry.probs = list
  end
  return entry
end

--- verify of the first T rows, and unless the host decides in between settle and the draft of k levels.
function capture.step(loop, T, k)
  return record(loop, loop.tree:slice(1, T), function(rows)
    if k > 0 then op.stamp { time = loop.times, at = 0 } end
    local out = verify(loop, rows)
    if loop.rule.host and T > 1 then return out end
    local step = settle(loop, rows, out)
    if k > 0 then
      op.stamp { time = loop.times, at = 1 }
      draft(loop, step, k)
    end
    return out
  end)
end

--- settle and draft by themselves, after the host decided on what entry verified.
function capture.settle(loop, entry, k)
  return record(loop, loop.tree:slice(1, entry.rows), function(rows)
    local step = settle(loop, rows, entry)
    if k > 0 then draft(loop, step, k) end
    local out = {}
    if entry.logits then score(loop, out, entry.logits, entry.choice) end
    return out
  end)
end

--- The draft of k levels by itself.
function capture.draft(loop, k)
  return record(loop, loop.tree:slice(1, 1), function()
    draft(loop, nil, k)
    return {}
  end)
end

--- Plain decoding of one row: nothing that belongs to drafts.
function capture.plain(loop)
  return record(loop, loop.tree:slice(1, 1), function(rows)
    local out = verify(loop, rows, true)
    loop.chain:observe(rows, loop.state)
    return out
  end)
end

return capture
