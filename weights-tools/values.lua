--- Statistics of a tensor's values, block by block: how many, which are no numbers, range, mean, spread, and a histogram.
local mav = require "mav"
local op = mav.op

local values = {}

local PIECE = 128 << 10 -- elements that stay in the cache over the passes below
local SPREAD = 4 -- the histogram spans so many standard deviations at most
local BAR = 40

local Stats = {}
Stats.__index = Stats

function values.new()
  return setmetatable({ count = 0, nan = 0, inf = 0, zeros = 0, min = math.huge, max = -math.huge, sum = 0.0, squares = 0.0 }, Stats)
end

--- Calls an op on one row and takes its only number.
local function number(f, ...)
  local t = f(...)
  local value = t:get(1, 1)
  t:close()
  return value
end

local function sum(x) return op.sum { x = x } end
local function dot(x) return op.matmul { x = x, w = x } end
local function max(x) return op.max { x = x } end
local function min(x) return op.min { x = x } end

--- Sum of a comparison's ones: exact, as a piece has fewer than 2^24 elements.
local function count(t)
  local n = number(sum, t)
  t:close()
  return math.tointeger(n)
end

--- Calls f with pieces of an f32 tensor, as (1, n).
local function each_piece(x, f)
  local flat = x:reshape { 1, x:count() }
  for first = 1, flat.shape[2], PIECE do
    local piece = flat:slice(2, first, math.min(flat.shape[2], first + PIECE - 1))
    f(piece)
    piece:close()
  end
end

function Stats:piece(x)
  local n, total = x:count(), number(sum, x)
  self.count = self.count + n
  if total - total ~= 0 then -- some are not finite (or the sum overflows)
    local finite = op.less { a = op.abs { x = x }, b = mav.tensor { { math.huge } } }
    local zero = finite * 0
    local numbers, finite_count = count(op.equal { a = x, b = x }), number(sum, finite)
    self.nan, self.inf = self.nan + n - numbers, self.inf + numbers - math.tointeger(finite_count)
    if finite_count > 0 then
      self.max = math.max(self.max, number(max, op.where { cond = finite, a = x, b = zero - math.huge }))
      self.min = math.min(self.min, number(min, op.where { cond = finite, a = x, b = zero + math.huge }))
    end
    x = op.where { cond = finite, a = x, b = zero }
    self.zeros = self.zeros - (n - math.tointeger(finite_count))
    total = number(sum, x)
  else
    self.max, self.min = math.max(self.max, number(max, x)), math.min(self.min, number(min, x))
  end
  self.zeros = self.zeros + count(op.equal { a = x, b = mav.tensor { { 0.0 } } })
  self.sum, self.squares = self.sum + total, self.squares + number(dot, x)
end

--- Adds an f32 tensor.
function Stats:add(x) each_piece(x, function(piece) self:piece(piece) end) end

--- count, nan, inf, zeros, and of the finite ones min, max, mean, std (nil when there are none).
function Stats:result()
  local n = self.count - self.nan - self.inf
  local mean = n > 0 and self.sum / n or nil
  return { count = self.count, nan = self.nan, inf = self.inf, zeros = self.zeros, min = n > 0 and self.min or nil,
    max = n > 0 and self.max or nil, mean = mean, std = n > 0 and math.sqrt(math.max(0, self.squares / n - mean * mean)) or nil }
end

-- ---- histograms -----------------------------------------------------------------------------------------------------------

local Histogram = {}
Histogram.__index = Histogram

--- For the values of a result: `bins` bins over their range, or over four standard deviations around the mean where that is less.
--- below and above count what lies outside.
function values.histogram(result, bins)
  local low, high = result.min, result.max
  if result.std and result.std > 0 then
    low, high = math.max(low, result.mean - SPREAD * result.std), math.min(high, result.mean + SPREAD * result.std)
  end
  local self = setmetatable({ low = low, high = high, counts = {}, below = 0, above = 0, edges = {} }, Histogram)
  for i = 1, bins do self.counts[i] = 0 end
  for i = 0, bins do self.edges[i + 1] = mav.tensor { { low + (high - low) * i / bins } } end
  return self
end

function Histogram:add(x)
  local bins = #self.counts
  each_piece(x, function(piece)
    local before = count(op.less { a = piece, b = self.edges[1] })
    self.below = self.below + before
    for i = 1, bins do
      local upto = i < bins and count(op.less { a = piece, b = self.edges[i + 1] })
        or count(op.equal { a = piece, b = piece }) - count(op.less { a = self.edges[bins + 1], b = piece })
      self.counts[i], before = self.counts[i] + upto - before, upto
    end
    self.above = self.above + count(op.less { a = self.edges[bins + 1], b = piece })
  end)
end

--- As a table: low, high, counts, below, above.
function Histogram:result()
  return { low = self.low, high = self.high, counts = mav.json.array(self.counts), below = self.below, above = self.above }
end

--- As lines of text with bars.
function Histogram:text()
  local most, lines = 1, {}
  for _, n in ipairs(self.counts) do most = math.max(most, n) end
  local function line(label, n)
    lines[#lines + 1] = ("%22s  %-" .. BAR .. "s %d"):format(label, ("#"):rep(math.min(BAR, (n * BAR + most - 1) // most)), n)
  end
  if self.below > 0 then line(("below %.4g"):format(self.low), self.below) end
  local width = (self.high - self.low) / #self.counts
  for i, n in ipairs(self.counts) do line(("%.4g .. %.4g"):format(self.low + width * (i - 1), self.low + width * i), n) end
  if self.above > 0 then line(("above %.4g"):format(self.high), self.above) end
  return table.concat(lines, "\n")
end

return values
