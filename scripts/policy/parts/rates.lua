--- A list of rates, each the share of yes among the observations of its place, with two memories: the slow one knows the drafter,
--- the fast one the text of the moment. Little data leans on more:
---
---   slow(i) = (yes + w mean(i - 1)) / (n + w)       the place before suggests; before the first, a constant
---   mean(i) = (yes + m slow(i)) / (n + m)           of the fast memory
---
--- Nothing is allocated after new.
local rates = {}

local BEFORE_WEIGHT, SLOW_WEIGHT = 8.0, 8.0 -- w and m
local SLOW_MEMORY = 20 -- times the fast one
local RESET_MAX = 60.0 -- observations of a place that go into a new request

local Rates = {}
Rates.__index = Rates

--- count places; first: the rate to begin with; most: no rate is higher; memory: observations that the fast memory holds.
function rates.new(count, first, most, memory)
  local self = setmetatable({ count = count, first = first, most = most, mean = {}, fast = 1.0 - 1.0 / memory,
    slow = 1.0 - 1.0 / (SLOW_MEMORY * memory), fast_n = {}, fast_yes = {},
    slow_n = {}, slow_yes = {} }, Rates)
  for i = 1, count do
    self.fast_n[i], self.fast_yes[i], self.slow_n[i], self.slow_yes[i], self.mean[i] = 0.0, 0.0, 0.0, 0.0, first
    self:renew(i)
  end
  return self
end

--- Renews mean[i] from what was counted.
function Rates:renew(i)
  local before = i > 1 and self.mean[i - 1] or self.first
  local slow = (self.slow_yes[i] + BEFORE_WEIGHT * before) / (self.slow_n[i] + BEFORE_WEIGHT)
  local mean = (self.fast_yes[i] + SLOW_WEIGHT * slow) / (self.fast_n[i] + SLOW_WEIGHT)
  self.mean[i] = mean < self.most and mean or self.most
end

function Rates:add(i, is_yes)
  local fast, slow, one = self.fast, self.slow, is_yes and 1.0 or 0.0
  self.fast_n[i], self.fast_yes[i] = self.fast_n[i] * fast + 1.0, self.fast_yes[i] * fast + one
  self.slow_n[i], self.slow_yes[i] = self.slow_n[i] * slow + 1.0, self.slow_yes[i] * slow + one
  self:renew(i)
end

--- A new text: the fast memory is empty, the slow one easier to convince.
function Rates:reset()
  for i = 1, self.count do
    local scale = math.min(1.0, RESET_MAX / math.max(self.slow_n[i], 1.0))
    self.fast_n[i], self.fast_yes[i] = 0.0, 0.0
    self.slow_n[i], self.slow_yes[i] = self.slow_n[i] * scale, self.slow_yes[i] * scale
    self:renew(i)
  end
end

return rates
