--- A list of rates, each the share of yes among the observations of its place, with two memories: the slow one knows the drafter,
--- the fast one the text of the moment. Little data leans on more:
---
---   slow(i) = (yes + w mean(i - 1)) / (n + w)       the place before suggests; before the first, a constant
---   mean(i) = (yes + m slow(i)) / (n + m)           of the fast memory
---
--- Counting is done in every step, the means are renewed when somebody wants them. Nothing is allocated after new.
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
  end
  return self
end

--- Counts a stretch: a yes at each of `yes` places from i on, then a no if it was stopped. What lies beyond the last place is counted
--- there.
function Rates:add(i, yes, is_stopped)
  local last, fast, slow = self.count, self.fast, self.slow
  local fast_n, fast_yes, slow_n, slow_yes = self.fast_n, self.fast_yes, self.slow_n, self.slow_yes
  for place = i, i + yes - 1 do
    if place > last then place = last end
    fast_n[place], fast_yes[place] = fast_n[place] * fast + 1.0, fast_yes[place] * fast + 1.0
    slow_n[place], slow_yes[place] = slow_n[place] * slow + 1.0, slow_yes[place] * slow + 1.0
  end
  if not is_stopped then return end
  local place = i + yes
  if place > last then place = last end
  fast_n[place], fast_yes[place] = fast_n[place] * fast + 1.0, fast_yes[place] * fast
  slow_n[place], slow_yes[place] = slow_n[place] * slow + 1.0, slow_yes[place] * slow
end

--- Renews the means from what was counted, and returns them.
function Rates:renew()
  local before, most, mean = self.first, self.most, self.mean
  local fast_n, fast_yes, slow_n, slow_yes = self.fast_n, self.fast_yes, self.slow_n, self.slow_yes
  for i = 1, self.count do
    local slow = (slow_yes[i] + BEFORE_WEIGHT * before) / (slow_n[i] + BEFORE_WEIGHT)
    before = (fast_yes[i] + SLOW_WEIGHT * slow) / (fast_n[i] + SLOW_WEIGHT)
    if before > most then before = most end
    mean[i] = before
  end
  return mean
end

--- A new text: the fast memory is empty, the slow one easier to convince.
function Rates:reset()
  for i = 1, self.count do
    local scale = math.min(1.0, RESET_MAX / math.max(self.slow_n[i], 1.0))
    self.fast_n[i], self.fast_yes[i] = 0.0, 0.0
    self.slow_n[i], self.slow_yes[i] = self.slow_n[i] * scale, self.slow_yes[i] * scale
  end
end

return rates
