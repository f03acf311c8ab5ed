--- What drafts are worth, from runs: stretches of text that the drafter would have drafted right.
---
--- Counting tokens per step for every depth and dividing by time goes wrong where text is uneven: a deep draft takes an easy stretch
--- in one step, so most steps lie in hard text, and the same text seems harder the deeper one drafts. Runs belong to the text
--- alone. A run's age is the number of tokens since the last rejected draft;
---
---   h(a)     share of runs of age a - 1 that reach age a (a draft of a token at that age was accepted)
---   C(r)     least expected time until the end of a run that has reached age r:
---   Q(r, k)  = cost(k) + h(r+1) ... h(r+k+1) C(r+k+1)         k drafts and the token after them, if the run goes on
---   C(r)     = min over k of Q(r, k);      C(A) = min over k of cost(k) / (1 - h(A)^(k+1))      from age A on all is the same
---
--- Minimizing the time of every run minimizes that of the text. A drafter that may propose less than it was asked for (n-gram
--- search) is taken at the shares o(d) of drafts that have a level d when they have level d - 1; o(1) depends on whether a run
--- goes on. Then Q is the mean over what may be offered.
---
--- C is renewed every few steps, with the rates of that moment: what is chosen in between follows from rates and times that belong
--- together. Nothing is allocated after new.
local rates = require "mav.policy.parts.rates"

local runs = {}

local AGES = 8
local SURE = 0.985 -- a run ends some time
local RENEWED_EVERY = 4 -- steps
local UNLIKELY = 0.02 -- what follows from less is left out

local Runs = {}
Runs.__index = Runs

--- memory: observations of the moment; hope: share of accepted drafts to begin with; k_max: deepest draft.
function runs.new(memory, hope, k_max)
  local self = setmetatable({ k_max = k_max, C = {}, Q = {}, shares = {}, rates = rates.new(AGES, hope, SURE, memory),
    o = rates.new(k_max, 1.0, 1.0, memory), o_new = rates.new(1, 1.0, 1.0, memory), is_always_offered = true,
    count = 0, age = 0, alive = 1.0 }, Runs)
  for r = 0, AGES + k_max + 1 do self.C[r], self.shares[r] = 0.0, hope end
  for k = 0, k_max do self.Q[k] = 0.0 end
  return self
end

-- ---- learning -----------------------------------------------------------------------------------------------------------

--- A finished step: `asked` levels were asked for, `offered` came and were verified, `accepted` were accepted.
function Runs:learn(asked, offered, accepted)
  local age = self.age
  if offered < asked then self.is_always_offered = false end
  if asked > 0 and not self.is_always_offered then
    (age == 0 and self.o_new or self.o):add(1, offered > 0)
    for d = 2, math.min(asked, offered + 1, self.k_max) do self.o:add(d, d <= offered) end
  end
  for d = 1, math.min(offered, accepted + 1) do self.rates:add(math.min(age + d, AGES), d <= accepted) end
  self:grow(asked, offered, accepted)
end

--- The age after a step. Without a draft nothing was judged: the run may be over, and when that is more likely it is taken to be.
function Runs:grow(asked, offered, accepted)
  local alive = asked == 0 and self.alive * self.shares[self.age + 1] or 1.0
  if accepted < offered or asked > 0 and offered == 0 or alive < 0.5 then
    self.age, self.alive = 0, 1.0
  else
    self.age, self.alive = math.min(self.age + offered + 1, AGES), alive
  end
end

-- ---- time -----------------------------------------------------------------------------------------------------------------

--- Adds weight times Q(r, k) to self.Q for k = 0..n. cost[k]: time of drafting and verifying k levels.
local function add_time(self, r, weight, cost, n)
  local Q, C, h = self.Q, self.C, self.shares
  local through = weight
  for k = 0, n do
    r = r + 1
    through = through * h[r]
    Q[k] = Q[k] + weight * cost[k] + through * C[r]
  end
end

--- The same for a drafter that may offer less than it is asked for.
local function add_time_offered(self, r, weight, cost, n)
  local Q, C, h, o = self.Q, self.C, self.shares, self.o.mean
  local offered = r == 0 and self.o_new.mean[1] or o[1]
  local through, ended, reach = h[r + 1], 0.0, 1.0 -- ended: time of drafts that end before level d; reach: share of those that do not
  Q[0] = Q[0] + weight * (cost[0] + through * C[r + 1])
  local shorter = cost[0] -- nothing offered: whatever run there was is over
  for d = 1, n do
    ended, reach = ended + reach * (1.0 - offered) * shorter, reach * offered
    through = through * h[r + d + 1]
    shorter, offered = cost[d] + through * C[r + d + 1], o[d + 1]
    Q[d] = Q[d] + weight * (ended + reach * shorter)
  end
end

function Runs:clear()
  local Q = self.Q
  for k = 0, self.k_max do Q[k] = 0.0 end
end

function Runs:add(r, weight, cost, n)
  if weight < UNLIKELY then return end
  if self.is_always_offered then return add_time(self, r, weight, cost, n) end
  add_time_offered(self, r, weight, cost, n)
end

local function least(Q, n)
  local best = 0
  for k = 1, n do
    if Q[k] < Q[best] then best = k end
  end
  return best
end

--- From age A on: the least time until the end of a run in which one depth is kept.
local function oldest(cost, h, n)
  local best = math.huge
  for k = 0, n do
    local us = cost[k] / (1.0 - h ^ (k + 1))
    if us < best then best = us end
  end
  return best
end

--- Renews the rates that decisions go by, and C from the oldest age down.
function Runs:renew(cost, n)
  local C, Q, h, mean = self.C, self.Q, self.shares, self.rates.mean
  for a = 1, AGES do
    self.rates:renew(a)
    h[a] = mean[a]
  end
  local last = oldest(cost, h[AGES], n)
  for a = AGES, AGES + self.k_max + 1 do h[a], C[a] = h[AGES], last end
  for r = AGES - 1, 0, -1 do
    self:clear()
    self:add(r, 1.0, cost, n)
    C[r] = Q[least(Q, n)]
  end
end

--- Fills Q[0..n]: expected time until the end of the run, for the next decision. first, second: levels of steps that are under way
--- and will be over when it takes effect (second = nil: there is one). Returns the best k.
function Runs:choose(cost, n, first, second)
  if self.count % RENEWED_EVERY == 0 then self:renew(cost, n) end
  self.count = self.count + 1
  self:clear()
  local age = self.age
  local on, r = self.alive * self:survives(age, first), math.min(age + first + 1, AGES)
  if not second then
    self:add(r, on, cost, n)
    self:add(0, 1.0 - on, cost, n)
  else
    local on_on, anew = on * self:survives(r, second), (1.0 - on) * self:survives(0, second)
    self:add(math.min(r + second + 1, AGES), on_on, cost, n)
    self:add(math.min(second + 1, AGES), anew, cost, n)
    self:add(0, 1.0 - on_on - anew, cost, n)
  end
  return least(self.Q, n)
end

--- Probability that all of k levels are accepted at a root of age r; for k = 0, that one would be.
function Runs:survives(r, k)
  local p, h = 1.0, self.shares
  for a = r + 1, r + (k > 0 and k or 1) do p = p * h[a] end
  return p
end

function Runs:reset()
  self.age, self.alive, self.count = 0, 1.0, 0
  self.rates:reset()
  self.o:reset()
  self.o_new:reset()
end

return runs
