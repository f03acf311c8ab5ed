--- Any policy on a recorded trace, without the model: what would have been drafted and accepted is in the trace, and a virtual
--- clock advances by its costs.
---
--- The steps are those of the decode loop, in its order (scripts/session/loop.lua), with its statistics (session/live.lua):
---
---   a request starts     reset, ask                                 stats.steps = 0
---   a step               drafts that wait: trim -> verify -> ask (statistics one step old) -> accept -> statistics
---
--- A drafter on the device drafts in the graph that verifies: what the answer of step i asks for is drafted in step i + 1 and
--- verified in step i + 2. One on the host proposes right before the step. Drafts of a smaller k are the first levels of the
--- recorded ones, and what is accepted does not depend on what else was verified: rows are independent.
local mav = require "mav"
local live = require "mav.session.live"
local policies = require "mav.policy"
local strategy = require "mav.session.strategy"

local replay = {}

--- The costs of a trace, or of options, as the statistics have them.
local function set_costs(stats, costs, k_max)
  for rows, us in pairs(costs.verify_us) do stats.cost_verify[math.tointeger(tonumber(rows))] = us end
  for k, us in pairs(costs.draft_us) do stats.cost_draft[math.tointeger(tonumber(k))] = us end
  stats.cost_step, stats.cost_plain = costs.step_us, costs.plain_us
  for k = 0, k_max do
    if not stats.cost_verify[stats.rows(k)] then
      error(("costs: no verify_us of %d rows"):format(stats.rows(k)), 0)
    end
  end
end

local Run = {}
Run.__index = Run

--- What live.follow reads of a session: its log of steps, of which only the last one is needed.
local Log = { size = 1 << 30 }
Log.__index = Log

function Log:step() return table.unpack(self.last) end

local function fail(text, ...) error(text:format(...), 0) end

local function has_entropy(trace)
  for _, request in ipairs(trace.requests) do
    for _, point in ipairs(request.points) do
      if point.entropy then return true end
    end
  end
  return false
end

--- A trace must hold what the policy wants to know.
local function check(trace, policy, name)
  local k_max = trace.header.k_max
  if policy.fixed and policy.fixed > k_max then fail("policy %s: the trace has %d levels", name, k_max) end
  if policy.needs.experts then
    fail("policy %s needs experts, which are not in a trace: measure it with the model (mav sweep without --replay)", name)
  end
  if policy.needs.entropy and not has_entropy(trace) then
    fail("policy %s needs entropy, which is not in this trace: drafters on the host leave none", name)
  end
end

local function new_run(header, policy, costs)
  local rows_of = header.rows
  local fake = { k_max = header.k_max, size = function(_, k) return rows_of[k + 1] end }
  local times = setmetatable({ steps = 0, followed = 0, seen = 0 }, Log)
  local self = setmetatable({ policy = policy, kind = header.kind, k_max = header.k_max, stats = live.new(fake), next_k = 0, waiting = 0,
    session = { times = times, length = 0, given = 0, taken = 0 }, steps = 0, tokens = 0, us = 0.0, later_tokens = 0, later_us = 0.0,
    plain_us = 0.0, policy_s = 0.0, histogram = {} }, Run)
  self.call, self.who = strategy.caller(policy), ("policy '%s'"):format(policy.name)
  set_costs(self.stats, costs, header.k_max)
  self.verify, self.draft, self.step_us, self.plain_step_us = {}, {}, costs.step_us, costs.plain_us
  for rows, us in pairs(self.stats.cost_verify) do self.verify[rows] = us end
  for k = 0, header.k_max do self.draft[k] = self.stats.cost_draft[k] or 0.0 end
  for k = 0, header.k_max do self.histogram[k] = 0 end
  return self
end

function Run:ask()
  local answer = self.policy.fixed
  if not answer then
    live.follow(self.stats, self.session)
    local started = mav.now()
    answer = policies.check_answer(self.call(self.who, self.policy.ask, self.policy, self.stats), self.k_max, self.policy.name)
    self.policy_s = self.policy_s + (mav.now() - started)
  end
  if not answer then self.off = true end
  self.next_k = answer or 0
end

function Run:trim(point, k)
  if k == 0 or not self.policy.trim then return k end
  live.follow(self.stats, self.session)
  for d = 1, self.k_max do self.stats.confidence[d] = point.confidence and point.confidence[d] or nil end
  return policies.check_trim(self.call(self.who, self.policy.trim, self.policy, self.stats, k), k, self.policy.name)
end

--- Levels to verify at a point, and the time of drafting them now.
function Run:drafts(point)
  if self.off then return 0, 0.0 end
  if self.kind == "device" then return self:trim(point, math.min(self.waiting, point.offered)), 0.0 end
  local k = math.min(self.next_k, point.offered)
  if point.device then k = self:trim(point, k) end
  return k, self.draft[self.next_k]
end

--- Notes a step. The statistics follow before the policy is called next; where it never is, at once.
function Run:log(step)
  local times = self.session.times
  if self.off or self.policy.fixed then live.follow(self.stats, self.session) end
  times.last, times.steps = step, times.steps + 1
end

--- What a drafter on the host would have had, where it was not asked.
function Run:lookup(point, v)
  if self.kind == "device" or point.device or v > 0 or self.off or not self.policy.needs.lookups then return live.UNKNOWN end
  return point.offered == 0 and live.NOTHING or point.agree > 0 and live.RIGHT or live.WRONG
end

--- One step from a point; returns how many tokens it emits.
function Run:step(point, left)
  local stats, off = self.stats, self.off
  local v, draft_us = self:drafts(point)
  local k = self.kind == "device" and not off and self.next_k or 0
  if not off then self:ask() end
  local rows, m = stats.rows(v), math.min(v, point.agree)
  local verify_us = self.verify[rows]
  if k > 0 then draft_us = self.draft[k] end
  self.waiting = k
  self:log { v, m, verify_us + draft_us, verify_us, draft_us, k > 0 and k or v, self.step_us, point.entropy or 0.0, 0,
    v > 0 and point.by or "none", self:lookup(point, v) }
  local count = math.min(m + 1, left)
  self.session.length = self.session.length + count
  self.histogram[v] = self.histogram[v] + 1
  return count, self.step_us + (off and self.plain_step_us or verify_us + draft_us)
end

function Run:request(request)
  self.off, self.waiting = false, 0
  live.request(self.stats)
  if self.policy.reset then self.call(self.who, self.policy.reset, self.policy) end
  local times = self.session.times
  times.steps, times.followed, times.seen, self.session.length = 0, 0, 0, request.prompt_tokens
  self:ask()
  local at, first = 1, true
  while at <= #request.points do
    local count, us = self:step(request.points[at], #request.points - at + 1)
    at = at + count
    self.steps, self.tokens, self.us = self.steps + 1, self.tokens + count, self.us + us
    if not first then self.later_tokens, self.later_us = self.later_tokens + count, self.later_us + us end
    first = false
    if self.on_step then
      live.follow(self.stats, self.session)
      self.on_step(self.stats, self.stats.k, count, us)
    end
  end
  self.plain_us = self.plain_us + (self.step_us + self.plain_step_us) * #request.points
end

--- Runs a policy over a trace (mav.sweep.trace).
---
---   options.policy     what mav.policy.new takes; options.name: what it is called in errors
---   options.costs      { verify_us = { [rows] = }, draft_us = { [k] = }, plain_us =, step_us = }; nil: the trace's
---   options.on_step    function(stats, k, count, us) after every step: levels verified, tokens emitted, time
---
--- Returns tokens, steps, us, acceptance_length, tokens_per_s (of the tokens after the first step), speedup over plain decoding,
--- levels[k] = steps that verified k levels; policy_us_per_step, the only figure that was measured: it is no part of the others.
function replay.run(trace, options)
  local policy = policies.new(options.policy)
  check(trace, policy, options.name or policy.fixed or policy.name)
  local run = new_run(trace.header, policy, options.costs or trace.header.costs)
  run.on_step = options.on_step
  for _, request in ipairs(trace.requests) do run:request(request) end
  return {
    policy = tostring(run.policy), tokens = run.tokens, steps = run.steps, us = run.us,
    acceptance_length = run.tokens / math.max(run.steps, 1),
    tokens_per_s = run.later_us > 0 and run.later_tokens / run.later_us * 1e6 or 0.0, plain_us = run.plain_us,
    speedup = run.us > 0 and run.plain_us / run.us or 0.0, levels = run.histogram,
    policy_us_per_step = run.policy_s * 1e6 / math.max(run.steps, 1),
  }
end

return replay
