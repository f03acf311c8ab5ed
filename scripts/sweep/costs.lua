--- Times of a drafter's steps in a sweep, and the speed-up that follows from them, by the levels verified and drafted, over all
--- lanes of the drafter. Beside the measured speed-up it says whether the cost model holds.
local costs = {}

local KEPT = 512 -- times of a depth

local Costs = {}
Costs.__index = Costs

function costs.new() return setmetatable({ verify = {}, draft = {} }, Costs) end

local function push(t, k, us)
  local list = t[k]
  if not list then
    list = { count = 0 }
    t[k] = list
  end
  list.count = list.count + 1
  list[(list.count - 1) % KEPT + 1] = us
end

--- Time of a step that nobody interrupted: low, but not the lowest. A busy machine adds more to long steps than to short ones.
--- nil of no times.
function costs.typical(list)
  local sorted = table.move(list, 1, #list, 1, {})
  table.sort(sorted)
  return sorted[(#sorted + 4) // 5]
end

--- Notes the steps of a generation (session.stats.steps) at depth k, or of the policy of that name, and returns the predicted
--- speed-up: as many plain steps as there were tokens, over the time that these levels usually take.
function Costs:predict(k, steps, plain_step_us)
  local is_depth = math.type(k) == "integer"
  for i = 2, #steps do -- the first one has no drafts yet
    push(self.verify, steps[i].k, steps[i].verify_us)
    if is_depth then push(self.draft, k, steps[i].draft_us) end
  end
  local verify, draft, us, tokens = {}, {}, 0.0, 0
  for d, list in pairs(self.verify) do verify[d] = costs.typical(list) end
  for d, list in pairs(self.draft) do draft[d] = costs.typical(list) end
  for _, step in ipairs(steps) do
    us = us + (verify[step.k] or step.verify_us) + (draft[is_depth and k or step.k] or step.draft_us)
    tokens = tokens + step.accepted + 1
  end
  return us > 0 and plain_step_us and tokens * plain_step_us / us or nil
end

return costs
