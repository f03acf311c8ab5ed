--- Looks at the drafts before they are verified: verifies the levels that bring more tokens than their time is worth, and drafts
--- as deep as that looking has paid.
---
---   worth(v) = product sums of the calibrated probabilities up to level v - rate (cost(v) - cost(0))
---   trim     = the v with the highest worth; of drafts that are shown level by level, the last before one that does not raise it
---   gain(d)  = how much the highest worth rose, on average, by having level d to choose from
---   ask      = the k with the highest sum over d <= k of gain(d) - rate cost_draft(k)
---
--- rate, in tokens per microsecond, is what time has been worth lately: tokens over time of the last steps. A level that was not
--- drafted for a while is drafted again when the budget for probes pays its time.
---
--- The n-th step of a request is trimmed after n asks; what came of it is known later, maybe after the next one was trimmed. So what
--- was seen is kept for two steps.
local calibration = require "mav.policy.parts.calibration"

local trimmer = {}

local FADE = 0.98 -- of the rate, per step
local GAIN_RATE = 0.06 -- weight of the newest step in a gain
local HOPE = 0.3 -- tokens of level 1 before there is data
local DEEPER = 0.8 -- gain of a level never drafted, over that of the level above
local STALE = 16 -- steps until a level is worth a probe

local Trimmer = {}
Trimmer.__index = Trimmer

function trimmer.new()
  return setmetatable({ calibration = calibration.new(), tokens = 0.0, us = 0.0, gain = {}, count = {}, age = {},
    seen = { [0] = { step = 0, k = 0 }, { step = 0, k = 0 } } }, Trimmer)
end

--- Probability that the draft of level d is accepted, if the one above is.
local function probability(self, stats, seen, d)
  local p = stats.confidence and stats.confidence[d]
  seen[d] = p or -1.0
  return p and self.calibration:map(p) or stats.acceptance[d]
end

--- A finished step that took so long.
function Trimmer:learn(stats, us)
  self.tokens, self.us = self.tokens * FADE + stats.accepted + 1, self.us * FADE + us
  local seen = self.seen[stats.steps % 2]
  if seen.step ~= stats.steps then return end -- it was not trimmed
  seen.step = 0
  for d = 1, math.min(stats.k, stats.accepted + 1) do
    if seen[d] >= 0.0 then self.calibration:learn(seen[d], d <= stats.accepted) end
  end
end

local function learn_gain(self, d, gain)
  local count = self.count[d] + 1
  self.count[d], self.age[d] = count, 0
  self.gain[d] = self.gain[d] + math.max(GAIN_RATE, 1.0 / (count + 1)) * (gain - self.gain[d])
end

--- How many of the k levels to verify in a step; cost[v]: time of a step that verifies v levels. The loop may show a step's levels
--- one by one, with k = 1, 2, ... as long as the answer is k: each call goes on from the one before. drafted: levels there are; those
--- not shown for the answer that was given bring nothing.
function Trimmer:trim(stats, cost, k, step, drafted)
  local rate = self.us > 0.0 and self.tokens / self.us or 1.0 / cost[0]
  local seen = self.seen[step % 2]
  if seen.step ~= step or k ~= seen.k + 1 then
    seen.step, seen.k, seen.best, seen.worth, seen.tokens, seen.alive = step, 0, 0, 0.0, 0.0, 1.0
  end
  for d = seen.k + 1, k do
    local before = seen.worth
    seen.alive = seen.alive * probability(self, stats, seen, d)
    seen.tokens = seen.tokens + seen.alive
    local worth = seen.tokens - rate * (cost[d] - cost[0])
    if worth > before then seen.best, seen.worth = d, worth end
    learn_gain(self, d, seen.worth - before)
  end
  seen.k = k
  if seen.best < k then
    for d = k + 1, drafted do learn_gain(self, d, 0.0) end
  end
  return seen.best
end

function Trimmer:reset()
  self.seen[0].step, self.seen[1].step = 0, 0
end

function Trimmer:resize(n)
  for d = #self.gain + 1, n do
    self.gain[d], self.count[d], self.age[d], self.seen[0][d], self.seen[1][d] = HOPE, 0, STALE, -1.0, -1.0
  end
end

--- Levels to draft, 0..n, and what is left of the budget for probes (us).
function Trimmer:ask(stats, cost, n, budget)
  local rate = self.us > 0.0 and self.tokens / self.us or 1.0 / cost[0]
  local draft = stats.cost_draft
  local best, best_worth, sum, above = 0, 0.0, 0.0, HOPE
  for d = 1, n do
    local gain = self.count[d] > 0 and self.gain[d] or above * DEEPER
    self.age[d] = self.age[d] + 1
    sum, above = sum + gain, gain
    local worth = sum - rate * (draft[d] or 0.0)
    if worth > best_worth then best, best_worth = d, worth end
  end
  local next_up = best + 1
  if next_up <= n and self.age[next_up] > STALE then
    local price = (draft[next_up] or 0.0) - (draft[best] or 0.0)
    if price <= budget then
      self.age[next_up] = 0
      return next_up, budget - math.max(price, 0.0)
    end
  end
  return best, budget
end

return trimmer
