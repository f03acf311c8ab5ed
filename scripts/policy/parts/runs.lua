--- What drafts are worth, from runs: stretches of text that the drafter would have drafted right.
---
--- Counting tokens per step for every depth and dividing by time goes wrong where text is uneven: a deep draft takes an easy stretch
--- in one step, so most steps lie in hard text, and the same text seems harder the deeper one drafts. Runs belong to the text
--- alone. A run's age is the number of tokens since the last rejected draft;
---
---   h(a)     share of runs of age a - 1 that reach age a (a draft of a token at that age was accepted)
---   P(a)     = h(1) ... h(a), share of runs that reach age a
---   C(r)     least expected time until the end of a run that has reached age r:
---   Q(r, k)  = cost(k) + P(r+k+1) C(r+k+1) / P(r)         k drafts and the token after them, if the run goes on
---   C(r)     = min over k of Q(r, k);      C(A) = min over k of cost(k) / (1 - h(A)^(k+1))      from age A on all is the same
---
--- Minimizing the time of every run minimizes that of the text. A drafter that may propose less than it was asked for (n-gram
--- search) is taken at the shares o(d) of drafts that have a level d when they have level d - 1; o(1) depends on whether a run
--- goes on. Then Q is the mean over what may be offered.
---
--- A step only counts. Rates, Q and C are renewed every few steps, when the owner says so: what is chosen in between follows from rates
--- and times of one moment, and is a look at two or three rows of Q. Nothing is allocated after new.
local rates = require "mav.policy.parts.rates"

local runs = {}

local AGES = 8
local SURE, RARE = 0.985, 0.001 -- a run ends some time, and may go on: h lies in between

local Runs = {}
Runs.__index = Runs

--- Zeros from index 0 on.
local function zeros(last)
  local list = {}
  for i = 0, last do list[i] = 0.0 end
  return list
end

--- memory: observations of the moment; hope: share of accepted drafts to begin with; k_max: deepest draft.
function runs.new(memory, hope, k_max)
  local self = setmetatable({ k_max = k_max, rates = rates.new(AGES, hope, SURE, memory), P = zeros(AGES + k_max + 1),
    PC = zeros(AGES + k_max + 1), Q = {}, best = zeros(AGES),
    is_always_offered = true, o_new = rates.new(1, 1.0, 1.0, memory),
    o = rates.new(math.max(k_max, 1), 1.0, 1.0, memory), -- a lookup counts as level 1 even where no draft has one
    base = zeros(k_max), reach = zeros(k_max), ended = zeros(k_max), -- of a drafter that offers less
    age = 0, alive = 1.0, row = 0, row_new = 0, on = 0.0, on_new = 0.0 }, Runs)
  for r = 0, AGES do self.Q[r] = zeros(k_max) end
  self:renew_rates()
  return self
end

-- ---- learning -----------------------------------------------------------------------------------------------------------

function Runs:learn_offer(asked, offered)
  local is_short = offered < asked
  if self.age > 0 then
    self.o:add(1, offered, is_short)
  else
    self.o_new:add(1, offered > 0 and 1 or 0, offered == 0)
    if offered > 0 then self.o:add(2, offered - 1, is_short) end
  end
end

--- A finished step: `asked` levels were asked for, `offered` came and were verified, `accepted` were accepted. Where nothing was asked
--- for, nothing was judged: the run may be over, and when that is more likely it is taken to be.
function Runs:learn(asked, offered, accepted)
  local age, alive = self.age, 1.0
  if asked == 0 then
    alive = self.alive * self.P[age + 1] / self.P[age]
  else
    if offered < asked then self.is_always_offered = false end
    if not self.is_always_offered then self:learn_offer(asked, offered) end
    if offered > 0 then self.rates:add(age + 1, accepted, accepted < offered) end
  end
  if accepted < offered or asked > 0 and offered == 0 or alive < 0.5 then
    self.age, self.alive = 0, 1.0
  else
    age = age + offered + 1
    self.age, self.alive = age < AGES and age or AGES, alive
  end
end

-- ---- time -----------------------------------------------------------------------------------------------------------------

--- Renews h, as P(1..A); returns h(A).
function Runs:renew_rates()
  local P, mean, through, h = self.P, self.rates:renew(), 1.0, RARE
  P[0] = through
  for a = 1, AGES do
    h = mean[a]
    if h < RARE then h = RARE end
    through = through * h
    P[a] = through
  end
  return h
end

--- From age A on: the least time until the end of a run in which one depth is kept.
local function oldest(cost, h, n)
  local best, through = math.huge, 1.0
  for k = 0, n do
    through = through * h
    local us = cost[k] / (1.0 - through)
    if us < best then best = us end
  end
  return best
end

--- Fills Q(r, 0..n); returns the least of them. cost[k]: time of drafting and verifying k levels.
local function fill(self, r, cost, n)
  local Q, PC, through, a = self.Q[r], self.PC, 1.0 / self.P[r], r
  local least, best = math.huge, 0
  for k = 0, n do
    a = a + 1
    local us = cost[k] + through * PC[a]
    Q[k] = us
    if us < least then least, best = us, k end
  end
  self.best[r] = best
  return least
end

--- The same for a drafter that may offer less than it is asked for, after fill_offers. Where it offers nothing, whatever run there was
--- is over.
local function fill_offered(self, r, cost, n)
  local Q, PC, through, a = self.Q[r], self.PC, 1.0 / self.P[r], r + 1
  local base, reach, ended = self.base, self.reach, self.ended
  local least, best, shorter = cost[0] + through * PC[a], 0, 0.0 -- shorter: what follows drafts that end before level k
  Q[0] = least
  for k = 1, n do
    a = a + 1
    local later = PC[a]
    local us = base[k] + through * (shorter + reach[k] * later)
    shorter = shorter + ended[k] * later
    Q[k] = us
    if us < least then least, best = us, k end
  end
  self.best[r] = best
  return least
end

--- Of drafts for which k levels are asked: base[k], what they cost; reach[k], the share that has all; ended[k], that ends with level k.
local function fill_offers(self, cost, n)
  local o, base, reach, ended = self.o:renew(), self.base, self.reach, self.ended
  local before, through = 0.0, 1.0
  for k = 0, n do
    local us, on = cost[k], k < n and o[k + 1] or 1.0
    local ends = through * (1.0 - on)
    base[k], reach[k], ended[k] = before + through * us, through, ends
    before, through = before + ends * us, through * on
  end
end

--- A new run has its own share of drafts with a level 1; what follows such a level is the same. nothing: time of a step without drafts.
local function correct_new(self, nothing, n)
  local Q, ratio = self.Q[0], self.o_new:renew()[1] / self.o.mean[1]
  local least, best = Q[0], 0
  for k = 1, n do
    local us = nothing + ratio * (Q[k] - nothing)
    Q[k] = us
    if us < least then least, best = us, k end
  end
  self.best[0] = best
end

--- Renews the rates that decisions go by, and Q and C from the oldest age down.
function Runs:renew(cost, n)
  local P, PC, h, fill_row = self.P, self.PC, self:renew_rates(), fill
  local through, C = P[AGES], oldest(cost, h, n)
  PC[AGES] = through * C
  for a = AGES + 1, AGES + n + 1 do
    through = through * h
    P[a], PC[a] = through, through * C
  end
  if not self.is_always_offered then
    fill_offers(self, cost, n)
    fill_row = fill_offered
  end
  fill_row(self, AGES, cost, n)
  for r = AGES - 1, 0, -1 do PC[r] = P[r] * fill_row(self, r, cost, n) end
  if not self.is_always_offered then correct_new(self, cost[0], n) end
end

--- The best k for the next decision. first, second: levels of steps that are under way and will be over when it takes effect (second =
--- nil: there is one). The run may then have three ages: it went on through both steps, a new one through the second, or neither. What
--- is best for all three together lies between what is best for each.
function Runs:choose(first, second)
  local P, all, bests, age = self.P, self.Q, self.best, self.age
  local on, row = self.alive * P[age + (first > 0 and first or 1)] / P[age], age + first + 1 -- a step without drafts is one token long
  local on_new, row_new = 0.0, 0
  if row > AGES then row = AGES end
  if second then
    local levels = second > 0 and second or 1
    on, on_new = on * P[row + levels] / P[row], (1.0 - on) * P[levels]
    row, row_new = row + second + 1, second + 1
    if row > AGES then row = AGES end
    if row_new > AGES then row_new = AGES end
  end
  self.row, self.row_new, self.on, self.on_new = row, row_new, on, on_new
  local low, high, new = bests[row], bests[0], bests[row_new]
  if low > high then low, high = high, low end
  if new < low then low = new elseif new > high then high = new end
  if low == high then return low end
  local Q, Q_new, Q_over, over = all[row], all[row_new], all[0], 1.0 - on - on_new
  local least, best = math.huge, low
  for k = low, high do
    local us = on * Q[k] + on_new * Q_new[k] + over * Q_over[k]
    if us < least then least, best = us, k end
  end
  return best
end

--- Expected time until the end of the run with k levels in the decision that was chosen last.
function Runs:time(k)
  local Q, on, on_new = self.Q, self.on, self.on_new
  return on * Q[self.row][k] + on_new * Q[self.row_new][k] + (1.0 - on - on_new) * Q[0][k]
end

function Runs:reset()
  self.age, self.alive = 0, 1.0
  self.rates:reset()
  self.o:reset()
  self.o_new:reset()
end

return runs
