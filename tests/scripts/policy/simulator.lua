--- Traces of drafters that do not exist: what they would have drafted follows a random process, what it costs is made up. They are
--- replayed like recorded ones, so a policy meets the loop's own statistics and order of things.
require "mav" -- finds the scripts

local simulator = {}

--- Costs in microseconds, by levels; rows = levels + 1.
local function costs(verify, draft, step)
  local t = { verify_us = {}, draft_us = {}, step_us = step }
  t.plain_us = verify(0)
  for k = 0, 8 do t.verify_us[k + 1], t.draft_us[k] = verify(k), k > 0 and draft(k) or 0.0 end
  return t
end

simulator.COSTS = {
  memory = costs(function(k) return 400 + 12 * k end, function(k) return 20 + 25 * k end, 3), -- bound by memory: rows are almost free
  experts = costs(function(k) return 400 + 105 * k end, function(k) return 10 + 30 * k end, 3), -- each row reads experts of its own
  host = costs(function(k) return 400 + 80 * k end, function() return 1 end, 3),
}

-- ---- processes: called for every output position; return offered, agree ---------------------------------------------------

--- Token j is drafted right from a distance d with probability p decay^(d - 1): one draw per token, whoever drafts it.
function simulator.geometric(random, n, p, decay)
  local draw = {}
  for j = 1, n + 9 do draw[j] = random() end
  return function(at)
    local agree = 0
    for d = 1, 8 do
      if draw[at + d] >= p * (decay or 1) ^ (d - 1) then break end
      agree = d
    end
    return 8, agree
  end
end

--- Stretches of easy and of hard text in turn.
function simulator.piecewise(random, n, easy, hard, length)
  local draw, p, is_easy, left = {}, {}, false, 0
  for j = 1, n + 9 do
    if left <= 0 then is_easy, left = not is_easy, length * (0.5 + random()) end
    draw[j], p[j], left = random(), is_easy and easy or hard, left - 1
  end
  return function(at)
    local agree = 0
    while agree < 8 and draw[at + agree + 1] < p[at + agree + 1] do agree = agree + 1 end
    return 8, agree
  end
end

--- Search in the text: nothing to propose most of the time, sometimes rubbish, and copies of some length that it finds after two
--- tokens. copied: share of the text that lies in copies.
function simulator.lookup(random, n, copied, length)
  local left_at, left = {}, 0
  for j = 1, n + 9 do
    if left <= 0 and random() < copied / length / math.max(1e-9, 1 - copied) then left = math.floor(length * (0.5 + random())) end
    left_at[j], left = left, math.max(left - 1, 0)
  end
  local junk = {}
  for j = 1, n + 9 do junk[j] = random() < 0.15 end
  return function(at)
    local inside = left_at[at] > 0 and (left_at[at - 2] or 0) > 0
    if inside then return 8, math.min(left_at[at], 8) end
    return junk[at] and 8 or 0, 0
  end
end

-- ---- traces -----------------------------------------------------------------------------------------------------------

--- Drafter's probabilities that are right on average: high before an accepted draft, low at the rejected one.
local function confidences(random, agree)
  local list = {}
  for d = 1, 8 do
    local p = random()
    list[d] = d <= agree and 1 - 0.35 * p * p or 0.05 + 0.6 * p
  end
  return list
end

--- options.kind      "device" (nil) or "host"           options.costs   a name of COSTS
--- options.seed, options.tokens (400), options.requests (6), options.confidence
--- options[i]        { process, parameters... }: request r runs process (r - 1) mod n + 1
function simulator.trace(options)
  local state = options.seed or 1
  local function random() -- the same numbers on every machine, and nobody else's are disturbed
    state = (state * 6364136223846793005 + 1442695040888963407)
    return (state >> 11) * 2.0 ^ -53
  end
  local trace = { header = { k_max = 8, kind = options.kind or "device", rows = { 1, 2, 3, 4, 5, 6, 7, 8, 9 },
    costs = simulator.COSTS[options.costs or "memory"] }, requests = {} }
  for r = 1, options.requests or 6 do
    local family, n = options[(r - 1) % #options + 1], options.tokens or 400
    local process = simulator[family[1]](random, n, table.unpack(family, 2))
    local request = { prompt_tokens = 100, family = tostring((r - 1) % #options + 1), points = {} }
    for at = 1, n do
      local offered, agree = process(at)
      request.points[at] = { offered = offered, agree = agree, confidence = options.confidence and confidences(random, agree) or nil }
    end
    trace.requests[r] = request
  end
  return trace
end

return simulator
