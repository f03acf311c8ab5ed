--- What a verification costs when the text hits more or fewer experts than it did when the cost was measured.
---
--- Rows of one step share the experts that they both hit, so a mixture of experts reads more weights for rows that differ. The
--- distinct experts of T rows are taken as e(1) T^theta; theta belongs to the text, and follows from the last steps of any
--- number of rows. Then
---
---   correction(T) = us_per_expert (e(1) T^theta - experts_mean[T])
---
--- where experts_mean[T] belongs to the time when cost_verify[T] was measured. us_per_expert is the slope of time over experts
--- among steps of equal rows, between 0 and the slope between row counts, which contains everything else that rows cost.
local experts = {}

local FADE = 0.98
local THETA_RATE = 0.1
local OUTLIER = 0.5 -- a step further from its cost, as a share of it, says nothing about experts
local RIDGE = 30.0 -- experts squared: how much deviation a slope needs to be believed

local Experts = {}
Experts.__index = Experts

function experts.new() return setmetatable({ xx = 0.0, xy = 0.0, theta = nil }, Experts) end

local function known(stats, rows)
  local mean = stats.experts_mean and stats.experts_mean[rows]
  return mean and mean > 0 and mean or nil
end

function Experts:learn(stats)
  local rows, hit, us = stats.rows(stats.k), stats.experts, stats.verify_us
  local one, mean, cost = known(stats, 1), known(stats, rows), stats.cost_verify[rows]
  if not one or not mean or not cost or not hit or hit <= 0 or rows == 1 then return end
  local theta = math.log(math.max(hit / one, 1.0)) / math.log(rows)
  self.theta = self.theta and self.theta + THETA_RATE * (theta - self.theta) or theta
  local dx, dy = hit - mean, us - cost
  if math.abs(dy) > OUTLIER * cost then return end
  self.xx, self.xy = self.xx * FADE + dx * dx, self.xy * FADE + dx * dy
end

--- Microseconds per expert; 0 until there is something to tell it from.
function Experts:slope(stats)
  local one, rows = known(stats, 1), stats.rows(stats.k_max)
  local most, cost, base = known(stats, rows), stats.cost_verify[rows], stats.cost_verify[1]
  local border = one and most and cost and most > one and math.max(cost - base, 0.0) / (most - one) or math.huge
  return math.max(0.0, math.min(self.xy / (self.xx + RIDGE), border))
end

--- Microseconds to add to cost_verify[rows]; slope: that of this step.
function Experts:correction(stats, rows, slope)
  local one, mean = known(stats, 1), known(stats, rows)
  if not self.theta or not one or not mean or rows == 1 then return 0.0 end
  return slope * (one * rows ^ self.theta - mean)
end

return experts
