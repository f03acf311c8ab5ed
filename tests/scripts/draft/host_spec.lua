--- Host drafters: prompt lookup and suffix lookup, against slow searches that say what they should find.
require "mav" -- its modules are found after it
local ngram = require "mav.draft.ngram"
local suffix = require "mav.draft.suffix"

--- Proposals for a text as a list; the state is new, or the one given.
local function propose(drafter, ids, k, state)
  local out = {}
  state = state or drafter:start {}
  local n = state:propose(ids, #ids, k or 4, out)
  assert.is_true(n <= (k or 4))
  return { table.unpack(out, 1, n) }
end

--- Where the last n tokens occurred before, most recently; nil: nowhere.
local function last_occurrence(ids, length, n)
  for last = length - 1, n, -1 do
    local i = 0
    while i < n and ids[last - i] == ids[length - i] do i = i + 1 end
    if i == n then return last end
  end
  return nil
end

local function slow_ngram(ids, length, k, n_min, n_max)
  for n = n_max, n_min, -1 do
    local last = last_occurrence(ids, length, n)
    if last then
      local out = {}
      for j = 1, k do out[j] = ids[last + j] or out[last + j - length] end
      return out
    end
  end
  return {}
end

--- A text with repetitions: random, with copies of earlier pieces.
local function text(length, vocab, seed)
  math.randomseed(seed)
  local ids = {}
  while #ids < length do
    if #ids > 10 and math.random() < 0.3 then
      local from = math.random(1, #ids)
      for i = from, math.min(from + math.random(1, 12), #ids) do ids[#ids + 1] = ids[i] end
    else
      ids[#ids + 1] = math.random(0, vocab - 1)
    end
  end
  return ids
end

local function prefix(ids, length) return table.move(ids, 1, length, 1, {}) end

--- What `f` leaves on the heap when it is called again and again.
local function growth(f)
  collectgarbage()
  collectgarbage "stop"
  local before = collectgarbage "count"
  for _ = 1, 100 do f() end
  local after = collectgarbage "count"
  collectgarbage "restart"
  return after - before
end

describe("ngram", function()
  it("proposes what followed the longest match", function()
    assert.are.same({ 9, 8, 7, 6 }, propose(ngram(), { 1, 2, 3, 9, 8, 7, 6, 5, 1, 2, 3 }))
    assert.are.same({ 7, 7 }, propose(ngram { n_max = 3 }, { 1, 2, 3, 7, 7, 4, 2, 3, 8, 1, 2, 3 }, 2)) -- not the later "2 3"
    assert.are.same({ 8, 1 }, propose(ngram { n_max = 2 }, { 1, 2, 3, 7, 7, 4, 2, 3, 8, 1, 2, 3 }, 2)) -- the most recent
  end)

  it("proposes nothing without a match", function()
    assert.are.same({}, propose(ngram(), { 1, 2, 3, 4, 5 }))
    assert.are.same({}, propose(ngram(), { 1, 2, 3, 1 })) -- one token is too short
    assert.are.same({ 2 }, propose(ngram { n_max = 1 }, { 1, 2, 3, 1 }, 1))
    assert.are.same({}, propose(ngram(), { 1 }))
    assert.are.same({}, propose(ngram(), { 1, 2, 1, 2 }, 0))
  end)

  it("continues a repetition beyond the end", function()
    assert.are.same({ 1, 2, 3, 1, 2, 3, 1 }, propose(ngram(), { 1, 2, 3, 1, 2, 3 }, 7))
    assert.are.same({ 5, 5, 5 }, propose(ngram(), { 1, 5, 5, 5 }, 3))
  end)

  it("finds what a slow search finds, however the text grows", function()
    for seed = 1, 20 do
      local ids = text(200, 6 + seed, seed)
      local n_min, n_max = 1 + seed % 2, 2 + seed % 4
      local drafter = ngram { n_min = n_min, n_max = n_max }
      local state, out, length = drafter:start {}, {}, 1
      while length < #ids do
        local n = state:propose(ids, length, 5, out)
        assert.are.same(slow_ngram(prefix(ids, length), length, 5, n_min, n_max), { table.unpack(out, 1, n) })
        length = length + math.random(1, 4)
      end
    end
  end)

  it("forgets what was cut off", function()
    local drafter = ngram()
    local state, ids = drafter:start {}, { 1, 2, 3, 4, 1, 2, 7, 8, 1, 2 }
    assert.are.same({ 7, 8 }, propose(drafter, ids, 2, state))
    state:truncate(4)
    assert.are.same({ 3, 4 }, propose(drafter, { 1, 2, 3, 4, 1, 2 }, 2, state))
    assert.are.same({ 3, 4 }, propose(drafter, { 1, 2, 3, 4, 9, 9, 9, 1, 2 }, 2, state)) -- another continuation, nobody said so
    assert.are.same({}, propose(drafter, { 5, 6 }, 2, state))
  end)

  it("allocates nothing in a proposal", function()
    local ids = text(500, 20, 1)
    local state, out = ngram():start {}, {}
    local length = 1
    for _ = 1, 300 do
      state:propose(ids, length, 5, out)
      length = length + 1
    end
    assert.are.equal(0, growth(function() state:propose(ids, length, 5, out) end))
  end)

  it("checks its options", function()
    assert.has_error(function() ngram { n = 3 } end, "draft.ngram: unknown option 'n'")
    assert.has_error(function() ngram { n_max = 0 } end, "draft.ngram: n_max is 0; an integer from 1 to 64 is allowed")
    assert.has_error(function() ngram { n_min = 5 } end, "draft.ngram: n_min 5 is more than n_max 4")
    assert.are.equal("ngram (2 to 4 tokens)", tostring(ngram()))
  end)
end)

local LONG = 100000

--- A long text of its own tokens for every position but the last ones, which repeat the beginning.
local function long_text()
  local ids = {}
  for i = 1, LONG do ids[i] = i <= LONG - 6 and (i * 7919) % 200003 or ids[i - (LONG - 6)] end
  return ids
end

--- Proposes until the drafter knows the text: how often, the longest call in seconds, what it says first, and last.
local function catch_up(state, ids, known)
  local out, calls, slowest, first = {}, 0, 0.0, nil
  repeat
    local started = os.clock()
    local n = state:propose(ids, #ids, 3, out)
    calls, slowest = calls + 1, math.max(slowest, os.clock() - started)
    first = first or { table.unpack(out, 1, n) }
    assert.is_true(calls < 1000)
    if state[known] >= #ids - 1 then return calls, slowest, first, { table.unpack(out, 1, n) } end
  until false
end

describe("a long prompt", function()
  it("is indexed in pieces by ngram, which finds what it knows", function()
    local ids = long_text()
    local calls, slowest, first, last = catch_up(ngram():start {}, ids, "indexed")
    assert.is_true(calls >= 20 and calls < 50, calls)
    assert.is_true(slowest < 0.5, slowest) -- of the second that a call may take
    assert.are.same({ ids[7], ids[8], ids[9] }, first)
    assert.are.same(first, last)
    assert.are.equal(8, (catch_up(ngram { n_max = 64 }:start {}, prefix(ids, 2000), "indexed")))
  end)

  it("is added in pieces by suffix, every token once", function()
    local ids = long_text()
    local state = suffix():start {}
    local calls, slowest, first, last = catch_up(state, ids, "added")
    assert.is_true(calls >= 20 and calls < 50, calls)
    assert.is_true(slowest < 0.5, slowest)
    assert.are.same({}, first)
    assert.are.same({ ids[7], ids[8], ids[9] }, last)
    assert.are.equal(LONG, state.total[1])
  end)

  it("may be cut while it is read", function()
    local ids = long_text()
    for name, drafter in pairs { indexed = ngram(), added = suffix() } do
      local state = drafter:start {}
      for _ = 1, 2 do state:propose(ids, #ids, 3, {}) end
      state:truncate(50)
      assert.are.same({ ids[31], ids[32], ids[33] }, propose(drafter, table.move(ids, 27, 30, 51, prefix(ids, 50)), 3, state), name)
    end
  end)
end)

--- How often pattern .. token occurs in ids, by token; and where each did last.
local function continuations(ids, pattern)
  local count, last = {}, {}
  for i = 1, #ids - #pattern do
    local j = 1
    while j <= #pattern and ids[i + j - 1] == pattern[j] do j = j + 1 end
    if j > #pattern then
      local id = ids[i + #pattern]
      count[id], last[id] = (count[id] or 0) + 1, i
    end
  end
  return count, last
end

--- The definition: match as deep as possible, follow the most frequent token (the most recent on ties), shorten when stuck.
local function slow_suffix(ids, k, o)
  local pattern, matched
  for d = math.min(o.depth - 1, #ids), 1, -1 do
    local try = { table.unpack(ids, #ids - d + 1) }
    if next((continuations(ids, try))) then
      pattern, matched = try, d
      break
    end
  end
  if not pattern then return {} end
  local out, p = {}, 1.0
  k = math.min(k, math.max(1, math.floor(o.factor * matched)))
  while #out < k and #pattern > 0 do
    local count, last = continuations(ids, pattern)
    local best, total = nil, 0
    for id, n in pairs(count) do
      total = total + n
      if not best or n > count[best] or (n == count[best] and last[id] > last[best]) then best = id end
    end
    if #pattern == o.depth or not best then
      table.remove(pattern, 1)
    else
      p = p * count[best] / total
      if p < o.p_min then break end
      out[#out + 1] = best
      pattern[#pattern + 1] = best
    end
  end
  return out
end

describe("suffix", function()
  it("follows the most frequent continuation of the longest match", function()
    local d = suffix { p_min = 0 }
    assert.are.same({ 4, 1 }, propose(d, { 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3 }, 2))
    assert.are.same({ 5, 1 }, propose(d, { 1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3 }, 2)) -- a tie: the most recent
    assert.are.same({ 9, 2 }, propose(d, { 7, 3, 9, 2, 3, 5, 1, 3, 5, 7, 3 }, 2)) -- "7 3" before the frequent "3 5"
    assert.are.same({}, propose(d, { 1, 2, 3, 4 }))
  end)

  it("proposes no more than the match supports", function()
    local ids = { 1, 2, 3, 4, 5, 6, 7, 8, 0, 1 }
    assert.are.equal(2, #propose(suffix(), ids, 8))
    assert.are.equal(6, #propose(suffix { factor = 6 }, ids, 8))
    ids[#ids + 1], ids[#ids + 2] = 2, 3
    assert.are.equal(6, #propose(suffix(), ids, 8))
    assert.are.equal(1, #propose(suffix { factor = 0.1 }, ids, 8))
    local uncertain = { 1, 2, 1, 3, 1, 4, 1, 5, 1 }
    assert.are.equal(1, #propose(suffix { p_min = 0.25 }, uncertain, 1))
    assert.are.equal(0, #propose(suffix { p_min = 0.26 }, uncertain, 1))
  end)

  it("proposes what its definition says, however the text grows", function()
    for seed = 1, 12 do
      local ids, o = text(150, 4 + seed, seed), { depth = 2 + seed % 5, factor = 1 + seed % 3, p_min = 0.05 * (seed % 4) }
      local state, out, length = suffix(o):start {}, {}, 1
      while length < #ids do
        local n = state:propose(ids, length, 6, out)
        assert.are.same(slow_suffix(prefix(ids, length), 6, o), { table.unpack(out, 1, n) }, ("seed %d, length %d"):format(seed, length))
        length = length + math.random(1, 4)
      end
    end
  end)

  it("forgets what was cut off", function()
    local d = suffix()
    local state = d:start {}
    assert.are.same({ 7, 8 }, propose(d, { 1, 2, 3, 4, 1, 2, 7, 8, 1, 2 }, 2, state))
    state:truncate(4)
    assert.are.same({ 3, 4 }, propose(d, { 1, 2, 3, 4, 1, 2 }, 2, state))
    assert.are.same({}, propose(d, { 5 }, 2, state))
  end)

  it("starts over with the last tokens when the tree is full", function()
    local d = suffix { nodes_max = 1024, depth = 4 }
    local state, ids = d:start {}, {}
    for i = 1, 3000 do
      ids[i] = i % 700
      assert.is_true(#propose(d, ids, 3, state) <= 3)
      assert.is_true(#state.count <= 1024 + 4)
    end
  end)

  it("allocates nothing in a proposal", function()
    local ids, state, out = text(500, 20, 1), suffix():start {}, {}
    for length = 1, 300 do state:propose(ids, length, 5, out) end
    assert.are.equal(0, growth(function() state:propose(ids, 300, 5, out) end))
  end)

  it("checks its options", function()
    assert.has_error(function() suffix { n = 3 } end, "draft.suffix: unknown option 'n'")
    assert.has_error(function() suffix { depth = 1 } end, "draft.suffix: depth is 1; an integer from 2 to 256 is allowed")
    assert.has_error(function() suffix { p_min = 2 } end, "draft.suffix: p_min is 2; a number from 0 to 1 is allowed")
  end)
end)
