--- The depth that takes the least time for the text: weighs measured costs against how far drafts have been right.
---
---   time of a step of k levels = cost_step + cost_verify[rows(k)] + cost_draft[k]         (the loop's measurements)
---   what it brings             = mav.policy.parts.runs: own counts, not stats.acceptance, because they must tell a draft that was
---                                rejected from one that was never offered, and easy stretches of text from hard ones
---
--- What is not asked for is not learnt, so now and then the depth is a level more, or twice as deep. Such a probe is expected to
--- cost time, and a budget pays for it: it grows by `explore` of the time that passes. So exploring costs no more than that share,
--- and a policy that came down to k = 0 finds its way back. A drafter on the host is looked at for nothing in steps without drafts:
--- whether its next id would have been right counts like a draft of one level.
---
--- What that weighing finds is kept for some steps, in which nothing but the run's age changes: most steps count and look up.
---
--- With `confidence` the drafts are looked at before they are verified (mav.policy.parts.trimmer); with `experts` the costs of
--- verification follow the number of distinct experts that the text hits (mav.policy.parts.experts).
local check_keys = require "mav.options"
local check = require "mav.policy.check"
local experts = require "mav.policy.parts.experts"
local live = require "mav.session.live"
local runs = require "mav.policy.parts.runs"
local trimmer = require "mav.policy.parts.trimmer"

local OPTIONS = { explore = true, memory = true, hope = true, confidence = true, experts = true, k = true }
local BUDGET_STEPS = 6 -- most probing saved up, in plain steps
local PROBE_EVERY = 4 -- steps between probes, at least
local RENEWED_MIN, RENEWED_MAX = 4, 24 -- steps that go by the same costs and rates,
local RENEWED_SHARE = 4 -- a quarter of those that were made: a text's first tell most

local CostAware = { is_bounded = true, __name = "mav.policy" }
CostAware.__index = CostAware

function CostAware:__tostring()
  return ("cost_aware%s%s"):format(self.needs.confidence and " with confidence" or "", self.needs.experts and " and experts" or "")
end

-- ---- learning from finished steps -----------------------------------------------------------------------------------------

--- Which answer asked for the drafts of the last step: two answers ago with a drafter on the host, three with one on the device,
--- whose drafts wait a step. More drafts than an answer asked for say that it was the other.
function CostAware:find_delay(k, two, three)
  if k > three and k <= two then
    self.delay = 2
  elseif k > two and k <= three then
    self.delay = 3
  end
end

function CostAware:learn(stats)
  local asked, k, us = self.asked, stats.k, stats.verify_us + stats.draft_us + stats.cost_step
  self.steps, self.quiet = stats.steps, self.quiet + 1
  if asked[2] ~= asked[3] then self:find_delay(k, asked[2], asked[3]) end
  if self.trimmer then
    self.trimmer:learn(stats, us)
  elseif k == 0 and (stats.lookup or live.UNKNOWN) ~= live.UNKNOWN then -- as good as a draft, and free
    self.runs:learn(1, stats.lookup == live.NOTHING and 0 or 1, stats.lookup == live.RIGHT and 1 or 0)
  else
    local levels = asked[self.delay]
    self.runs:learn(k > levels and k or levels, k, stats.accepted)
  end
  if self.experts then self.experts:learn(stats) end
  local plain = self.cost[0] or us
  local counted, most = us < 8 * plain and us or 8 * plain, BUDGET_STEPS * plain
  local budget = self.budget + self.explore * counted
  self.budget = budget < most and budget or most
end

-- ---- choosing ---------------------------------------------------------------------------------------------------------------

--- Fills cost[0..n] and verify[0..n], the times of a step with and without drafting; returns n, the deepest with a known cost.
function CostAware:fill_costs(stats, n)
  local rows, costs, draft, rest, verify, cost = self.rows, stats.cost_verify, stats.cost_draft, stats.cost_step, self.verify, self.cost
  local slope = self.experts and self.experts:slope(stats)
  for d = 0, n do
    local T = rows[d]
    local us = costs[T]
    if not us then return d - 1 end
    if slope then us = math.max(us + self.experts:correction(stats, T, slope), 0.5 * us) end
    us = us + rest
    verify[d], cost[d] = us, us + (draft[d] or 0.0)
  end
  return n
end

--- Looks at the costs again, and at what drafts are worth by what was learnt; returns the deepest draft of known cost, -1 for none.
function CostAware:renew(stats)
  local n = self:fill_costs(stats, math.min(stats.k_max, self.deepest or stats.k_max))
  if n >= 0 then
    self.left = math.max(RENEWED_MIN, math.min(stats.steps // RENEWED_SHARE, RENEWED_MAX))
    if not self.trimmer then self.runs:renew(self.cost, n) end
  end
  self.n = n
  return n
end

--- Another depth than k, when the budget pays for what it is expected to cost more; k otherwise.
function CostAware:probe(k, n)
  local deeper = k + 1
  if self.probes % 3 == 2 then deeper = math.min(2 * k + 2, n) end
  local price = math.max(self.runs:time(deeper) - self.runs:time(k), 0.0)
  if price > self.budget then return k end
  self.budget, self.quiet, self.probes = self.budget - price, 0, self.probes + 1
  return deeper
end

function CostAware:resize(stats)
  local k_max = stats.k_max
  self.k_max, self.left = k_max, 0
  self.runs = runs.new(self.memory, self.hope, k_max)
  for k = 0, k_max do self.rows[k] = stats.rows(k) end
  for i = 1, 3 do self.asked[i] = 0 end
  if self.trimmer then self.trimmer:resize(k_max) end
end

function CostAware:ask(stats)
  self.asks = self.asks + 1
  if stats.k_max ~= self.k_max then self:resize(stats) end
  if stats.steps ~= self.steps then self:learn(stats) end
  if self.left <= 0 and self:renew(stats) < 0 then return math.min(1, stats.k_max) end -- no costs: nothing to weigh
  self.left = self.left - 1
  local asked, n = self.asked, self.n
  local k
  if self.trimmer then
    k, self.budget = self.trimmer:ask(stats, self.verify, n, self.budget)
  else
    if self.delay == 2 then k = self.runs:choose(asked[1]) else k = self.runs:choose(asked[2], asked[1]) end
    if k < n and self.quiet >= PROBE_EVERY then k = self:probe(k, n) end
  end
  asked[3], asked[2], asked[1] = asked[2], asked[1], k
  return k
end

local function trim(self, stats, k)
  if not self.verify[k] then return k end -- of unknown cost
  return self.trimmer:trim(stats, self.verify, k, self.asks, self.asked[self.delay - 1])
end

function CostAware:reset()
  self.steps, self.asks, self.budget, self.quiet, self.probes, self.left = 0, 0, 0.0, 0, 0, 0
  for i = 1, 3 do self.asked[i] = 0 end
  if self.runs then self.runs:reset() end
  if self.trimmer then self.trimmer:reset() end
end

--- options.explore      share of the time for probing (0.015)
--- options.memory       drafts that the short memory holds (40)
--- options.hope         share of accepted drafts believed before there is data (0.7)
--- options.confidence   true: trims drafts by the probabilities that the drafter gave them
--- options.experts      true: corrects costs by the distinct experts that rows hit
--- options.k            never ask for more
return function(options)
  options = options or {}
  check_keys(options, OPTIONS, "policy cost_aware")
  local self = setmetatable({ name = "cost_aware", cost = {}, verify = {}, rows = {}, asked = {}, delay = 3 }, CostAware)
  self.explore = check.number("policy cost_aware: explore", options.explore, 0, 1, 0.015)
  self.memory = check.number("policy cost_aware: memory", options.memory, 2, 1e6, 40)
  self.hope = check.number("policy cost_aware: hope", options.hope, 0, 1, 0.7)
  if options.k ~= nil then self.deepest = check.integer("policy cost_aware: k", options.k, 0, check.K_MAX) end
  self.needs = { costs = true, lookups = true, confidence = check.boolean("policy cost_aware: confidence", options.confidence, false),
    experts = check.boolean("policy cost_aware: experts", options.experts, false) }
  if self.needs.experts then self.experts = experts.new() end
  if self.needs.confidence then self.trimmer, self.trim = trimmer.new(), trim end
  self:reset()
  return self
end
