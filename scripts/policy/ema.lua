--- One level more when drafts are mostly accepted whole, one less when they are mostly not: follows the exponential moving
--- average of the accepted share of a draft. Between the two borders nothing changes, and after a change some steps pass
--- before the next, so that the depth does not swing.
---
---     require("mav.policy.ema") { k = 3, low = 0.4, high = 0.8 }
local check_keys = require "mav.options"
local check = require "mav.policy.check"

local OPTIONS = { k = true, least = true, low = true, high = true, rate = true, hold = true }

local Ema = { is_bounded = true, __name = "mav.policy" }
Ema.__index = Ema

function Ema:__tostring() return ("ema from %d, %g to %g"):format(self.first, self.low, self.high) end

--- A finished step. Steps without a draft say nothing.
function Ema:learn(stats)
  if stats.steps == self.steps then return end
  self.steps = stats.steps
  if stats.k == 0 then return end
  self.share = self.share + self.rate * (stats.accepted / stats.k - self.share)
  self.wait = self.wait - 1
  if self.wait > 0 then return end
  if self.share > self.high then
    self:move(1, stats.k_max)
  elseif self.share < self.low then
    self:move(-1, stats.k_max)
  end
end

function Ema:move(by, k_max)
  local k = math.max(self.least, math.min(self.k + by, k_max))
  if k == self.k then return end
  self.k, self.wait, self.share = k, self.hold, (self.low + self.high) / 2
end

function Ema:ask(stats)
  self:learn(stats)
  return math.min(self.k, stats.k_max)
end

function Ema:reset()
  self.k, self.wait, self.steps, self.share = self.first, self.hold, 0, (self.low + self.high) / 2
end

--- options.k       levels to begin with (2)
--- options.least   never fewer (1; with 0 a policy that came down to 0 stays there)
--- options.low     go down below this share of accepted drafts (0.4)
--- options.high    go up above it (0.8)
--- options.rate    weight of the newest step (0.15)
--- options.hold    steps between two changes (6)
return function(options)
  options = options or {}
  check_keys(options, OPTIONS, "policy ema")
  local self = setmetatable({ name = "ema", needs = {} }, Ema)
  self.least = check.integer("policy ema: least", options.least, 0, check.K_MAX, 1)
  self.first = check.integer("policy ema: k", options.k, self.least, check.K_MAX, math.max(2, self.least))
  self.low = check.number("policy ema: low", options.low, 0, 1, 0.4)
  self.high = check.number("policy ema: high", options.high, self.low, 1, math.max(0.8, self.low))
  self.rate = check.number("policy ema: rate", options.rate, 0.001, 1, 0.15)
  self.hold = check.integer("policy ema: hold", options.hold, 1, 1 << 20, 6)
  self:reset()
  return self
end
