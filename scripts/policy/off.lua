--- Ends speculation for the rest of a request when it does not pay: wraps another policy, compares the time per token of the
--- last steps with that of plain decoding, and answers false once plain is faster. What a plain step takes is measured where
--- the wrapped policy answers 0, and otherwise follows from the measured costs.
---
---     require("mav.policy.off") { policy = require("mav.policy.fixed") { k = 3 }, window = 48 }
local check_keys = require "mav.options"
local check = require "mav.policy.check"

local OUTLIER = 3 -- a step is counted with at most this many times its expected time: the system was elsewhere
local PLAIN_MIN = 8 -- plain steps that say more than the costs

local Off = { __name = "mav.policy" }
Off.__index = Off

function Off:__tostring() return ("off when it does not pay { %s }"):format(tostring(self.policy)) end

--- Time of a step of k levels by the measured costs; nil where there are none.
local function expected_us(stats, k)
  local verify = stats.cost_verify and stats.cost_verify[stats.rows(k)]
  local draft = stats.cost_draft and stats.cost_draft[k] or 0
  return verify and stats.cost_step + verify + draft
end

--- Adds a finished step to the window.
function Off:learn(stats)
  if stats.steps == self.steps then return end
  self.steps = stats.steps
  local expected, us = expected_us(stats, stats.k), stats.verify_us + stats.draft_us + (stats.cost_step or 0.0)
  if expected then us = math.min(us, OUTLIER * expected) end
  self.seen, self.tokens, self.us = self.seen + 1, self.tokens + stats.accepted + 1, self.us + us
  if stats.k == 0 then
    self.plain_steps = self.plain_steps + 1
    self.plain_us = self.plain_us + (us - self.plain_us) / math.min(self.plain_steps, 64)
  end
end

--- Time per token without speculation; nil: unknown. A step of no drafts may take longer: the drafter still follows the text.
function Off:plain(stats)
  local expected = stats.cost_plain and stats.cost_plain + stats.cost_step or expected_us(stats, 0)
  if self.plain_steps < PLAIN_MIN then return expected end
  return expected and math.min(expected, self.plain_us) or self.plain_us
end

function Off:ask(stats)
  if self.ended then return false end
  self:learn(stats)
  if self.seen >= self.window then
    local plain = self:plain(stats)
    if plain and self.us > self.tokens * plain * (1 - self.margin) then
      self.ended = true
      return false
    end
    self.seen = 0
  end
  return self.policy:ask(stats)
end

--- Defined on objects whose wrapped policy has it.
local function trim(self, stats, k) return self.policy:trim(stats, k) end

function Off:reset()
  self.ended, self.steps = false, 0
  self.seen, self.tokens, self.us = 0, 0, 0.0
  self.plain_steps, self.plain_us = 0, 0.0
  self.policy:reset()
end

--- options.policy   what to wrap, as for mav.policy.new ("cost_aware")
--- options.window   steps between two looks at whether it pays (48)
--- options.margin   share of the time that speculation must save to stay on (0: any)
return function(options)
  options = options or {}
  check_keys(options, { policy = true, window = true, margin = true }, "policy off")
  local inner = options.policy
  if inner == nil then inner = "cost_aware" end
  inner = require("mav.policy").new(inner)
  local needs = { costs = true }
  for key, value in pairs(inner.needs) do needs[key] = value end
  needs.costs = true
  local self = setmetatable({ name = "off", needs = needs, policy = inner, is_bounded = inner.is_bounded, deepest = inner.deepest,
    trim = inner.trim and trim or nil }, Off)
  self.window = check.integer("policy off: window", options.window, 1, 1 << 20, 48)
  self.margin = check.number("policy off: margin", options.margin, -1, 0.9, 0.0)
  self:reset()
  return self
end
