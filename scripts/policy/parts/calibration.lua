--- From the probability that a drafter gave its draft to the one with which such drafts were accepted: a share per bin of
--- probabilities, and between the middles of the bins a line. Before there is data a drafter is believed.
local calibration = {}

local BINS = 10
local BELIEF = 6.0 -- drafts that the drafter's own word counts for
local FADE = 0.998 -- of a bin, per draft counted in it

local Calibration = {}
Calibration.__index = Calibration

function calibration.new()
  local self = setmetatable({ n = {}, yes = {} }, Calibration)
  for b = 1, BINS do
    self.n[b], self.yes[b] = BELIEF, BELIEF * (b - 0.5) / BINS
  end
  return self
end

function Calibration:learn(p, yes)
  local b = math.min(p * BINS // 1 + 1, BINS)
  b = b >= 1 and math.tointeger(b) or 1
  self.n[b], self.yes[b] = self.n[b] * FADE + 1.0, self.yes[b] * FADE + (yes and 1.0 or 0.0)
end

function Calibration:map(p)
  local x = p * BINS + 0.5 -- 1 at the middle of the first bin
  local low = math.tointeger(math.max(1, math.min(x // 1, BINS - 1))) or 1
  local a, b = self.yes[low] / self.n[low], self.yes[low + 1] / self.n[low + 1]
  return math.max(0.0, math.min(a + (x - low) * (b - a), 1.0))
end

return calibration
