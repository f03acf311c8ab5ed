--- What policies see: one table of numbers, the same in every step, kept up to date without allocation.
---
---   steps, length, k_max, sequences (open sessions of the loop)            k, accepted of the last step
---   accepted_mean: tokens a step (acceptance length)
---   acceptance[d]                       how often level d is accepted when level d - 1 was
---   confidence[d], entropy, experts, experts_mean[T]                       when the policy needs them
---   lookup                              a step without drafts: what one id of the drafter on the host would have been (live.RIGHT,
---                                       WRONG, NOTHING: it had none), when the policy needs lookups; else live.UNKNOWN
---   us, verify_us, draft_us             of the last step
---   cost_verify[T], cost_draft[k], cost_step    microseconds of verifying T rows, of drafting k levels, of the rest
---   cost_plain                          of a step of plain decoding, when the policy needs costs
---   rows(k)                             rows of a tree of k levels          drafter: who drafted last
local live = { UNKNOWN = 0, NOTHING = 1, WRONG = 2, RIGHT = 3 }

local MEAN, COST, LEVEL = 0.1, 0.1, 0.05 -- weights of the newest value
local PRIOR = 0.6                        -- acceptance of a level nothing is known of
local OUTLIER = 3                        -- times of an interrupted step count as this many times the mean

function live.new(loop)
  local t = { steps = 0, length = 0, k_max = loop.k_max, sequences = 0, drafter = "none", k = 0, accepted = 0, accepted_mean = 1.0,
    of = false, -- whose steps these are
    acceptance = {}, confidence = {}, entropy = 0.0, experts = 0, lookup = live.UNKNOWN, experts_mean = {},
    us = 0.0, verify_us = 0.0, draft_us = 0.0, cost_verify = {}, cost_draft = { [0] = 0.0 }, cost_step = 0.0 }
  function t.rows(k) return loop:size(k) end
  for d = 1, loop.k_max do t.acceptance[d], t.confidence[d] = PRIOR, 0.0 end
  return t
end

local function mean(table_, key, value, weight)
  local old = table_[key]
  if not old then
    table_[key] = value
  else
    if value > OUTLIER * old then value = OUTLIER * old end
    table_[key] = old + weight * (value - old)
  end
end

--- A request starts: what belongs to the text is forgotten, what belongs to the machine stays.
function live.request(t)
  t.steps, t.k, t.accepted, t.accepted_mean = 0, 0, 0, 1.0
  for d = 1, t.k_max do t.acceptance[d] = PRIOR end
end

--- A step that verified v levels and accepted m of them; then k levels were drafted. Times in microseconds.
local function update(t, v, m, us, verify_us, draft_us, k, share, entropy, experts, drafter, lookup)
  local T = t.rows(v)
  t.steps = t.steps + 1
  t.k, t.accepted, t.us, t.verify_us, t.draft_us = v, m, us, verify_us, draft_us
  t.entropy, t.drafter, t.lookup = entropy, drafter, lookup
  if t.steps == 1 then t.accepted_mean = m + 1.0 else mean(t, "accepted_mean", m + 1.0, MEAN) end
  local acceptance = t.acceptance
  for d = 1, v do
    if d > m + 1 then break end
    acceptance[d] = acceptance[d] + LEVEL * ((d <= m and 1.0 or 0.0) - acceptance[d])
  end
  mean(t.cost_verify, T, verify_us, COST)
  if k > 0 and draft_us > 0 then mean(t.cost_draft, k, draft_us, COST) end
  if share > 0.0 then mean(t, "cost_step", share, COST) end
  if experts > 0 then
    t.experts = experts
    mean(t.experts_mean, T, experts, MEAN)
  end
end

--- Takes in the steps of a session that it has not seen: before a policy is asked, or somebody looks.
function live.follow(t, s)
  local times = s.times
  if t.of ~= times then t.of, t.steps = times, times.seen or 0 end -- another session of the loop
  local first = math.max(t.steps, times.steps - times.size) + 1
  for n = first, times.steps do update(t, times:step(n)) end
  times.seen = t.steps
  t.length = s.length + s.given - s.taken
end

return live
