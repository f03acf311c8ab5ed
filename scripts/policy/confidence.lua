--- Drafts deep and verifies only what is likely: up to the level where the product of the drafts' probabilities, as the
--- drafter gave them, falls below a threshold. Drafters without probabilities are verified whole.
---
---     require("mav.policy.confidence") { threshold = 0.3 }
local check_keys = require "mav.options"
local check = require "mav.policy.check"

local Confidence = { is_bounded = true, __name = "mav.policy" }
Confidence.__index = Confidence

function Confidence:__tostring() return ("confidence %g"):format(self.threshold) end

function Confidence:ask(stats) return math.min(self.deepest or stats.k_max, stats.k_max) end

function Confidence:trim(stats, k)
  local confidence, product = stats.confidence, 1.0
  for d = 1, k do
    local p = confidence[d]
    if not p then return k end
    product = product * p
    if product < self.threshold then return d - 1 end
  end
  return k
end

function Confidence:reset() end

--- options.threshold   verify while the product of the probabilities is at least this (0.3)
--- options.k           levels to draft; nil: stats.k_max
return function(options)
  options = options or {}
  check_keys(options, { threshold = true, k = true }, "policy confidence")
  local self = setmetatable({ name = "confidence", needs = { confidence = true } }, Confidence)
  self.threshold = check.number("policy confidence: threshold", options.threshold, 0, 1, 0.3)
  if options.k ~= nil then self.deepest = check.integer("policy confidence: k", options.k, 1, check.K_MAX) end
  return self
end
