--- Prompt lookup: the last few tokens occurred before, so what followed them then is proposed now. No model, no training; strong
--- where output repeats its prompt (code, edits, quotations). Host drafter.
---
---     local draft = require("mav.draft.ngram") { n_max = 4, n_min = 2 }
---
--- Longest match first, most recent occurrence of it. An index maps every n-gram to the place where it ended last; it grows with
--- the timeline, so a proposal costs O(n_max) and only growing tables allocate. A long prompt is indexed in pieces, one a proposal;
--- until then matches are found in what is. Where the match overlaps the end, what it says goes on with itself: a repetition is
--- continued.
---
--- Sources: prompt lookup decoding (A. Saxena, 2023); LLMA: arXiv 2304.04487.
local check_keys = require "mav.options"

local OPTIONS = { n_max = true, n_min = true }
local N_LARGEST = 64
local GRAMS_MAX = 1 << 14 -- entered in the index by one proposal, at most
local MULTIPLIER <const> = 0x9E3779B97F4A7C15 -- odd: a token's hash is unique, those of longer grams nearly so

local Drafter = { __name = "mav.draft.ngram", name = "ngram", kind = "host" }
Drafter.__index = Drafter

function Drafter:__tostring() return ("ngram (%d to %d tokens)"):format(self.n_min, self.n_max) end

local State = { is_bounded = true } -- see mav.policy
State.__index = State

--- What a drafter knows of one session.
function Drafter:start()
  local state = setmetatable({ n_min = self.n_min, n_max = self.n_max }, State)
  state:clear()
  return state
end

--- ends[n]: hash of n tokens -> position where they ended last; indexed: positions that are in it.
function State:clear()
  self.ends, self.indexed = {}, 0
  for n = self.n_min, self.n_max do self.ends[n] = {} end
end

local function extend(hash, id)
  hash = (hash + id + 1) * MULTIPLIER
  return hash ~ hash >> 32
end

--- Enters the n-grams that end at the positions up to `last`, or a piece of them.
local function index(self, ids, last)
  local n_min, ends = self.n_min, self.ends
  for i = self.indexed + 1, math.min(last, self.indexed + GRAMS_MAX // self.n_max) do
    local hash = 0
    for n = 1, math.min(self.n_max, i) do
      hash = extend(hash, ids[i - n + 1])
      if n >= n_min then ends[n][hash] = i end
    end
    self.indexed = i
  end
end

--- Whether the n tokens that end at a are those that end at b. Hashes may collide.
local function same(ids, a, b, n)
  for i = 0, n - 1 do
    if ids[a - i] ~= ids[b - i] then return false end
  end
  return true
end

--- Where the longest match ended, or nil.
local function find(self, ids, length)
  local n_min, hash, found, size = self.n_min, 0, nil, 0
  for n = 1, math.min(self.n_max, length - 1) do
    hash = extend(hash, ids[length - n + 1])
    if n >= n_min then
      local last = self.ends[n][hash]
      if not last then break end -- then longer ones are new too
      found, size = last, n
    end
  end
  return found and same(ids, found, length, size) and found or nil
end

--- Writes the ids that may follow ids[1..length] into out[1..n]; n <= k.
---@param ids integer[]
---@param length integer
---@param k integer
---@param out integer[]
---@return integer n
function State:propose(ids, length, k, out)
  if self.indexed >= length then self:clear() end
  index(self, ids, length - 1)
  local last = k > 0 and find(self, ids, length)
  if not last then return 0 end
  for j = 1, k do
    local at = last + j
    out[j] = at <= length and ids[at] or out[at - length]
  end
  return k
end

--- The timeline was cut to `length`: what was indexed behind it is gone, and with it what it covered.
function State:truncate(length)
  if length < self.indexed then self:clear() end
end

local function integer(name, value, least)
  if math.type(value) ~= "integer" or value < least or value > N_LARGEST then
    error(("draft.ngram: %s is %s; an integer from %d to %d is allowed"):format(name, tostring(value), least, N_LARGEST), 3)
  end
  return value
end

--- options.n_max: longest match looked for (4); options.n_min: shortest one that counts (2, or n_max if that is less).
---@param options table|nil
---@return table drafter
return function(options)
  options = options or {}
  check_keys(options, OPTIONS, "draft.ngram")
  local n_max = integer("n_max", options.n_max or 4, 1)
  local n_min = integer("n_min", options.n_min or math.min(2, n_max), 1)
  if n_min > n_max then error(("draft.ngram: n_min %d is more than n_max %d"):format(n_min, n_max), 2) end
  return setmetatable({ n_max = n_max, n_min = n_min }, Drafter)
end
