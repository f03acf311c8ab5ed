--- Measures what verifying T rows and drafting k levels costs here, before the first step of a strategy that wants to know. Graphs
--- are launched on the text as it stands, nothing is committed. A few sizes are measured, the others lie on lines between them;
--- the steps to come refine all of them (live.lua).
local mav = require "mav"

local costs = {}

local REPEATS, SLOW = 5, 0.02 -- launches a size; one that takes longer than this (seconds) is launched once

--- Levels whose rows are measured: dense at the beginning, where the curve bends.
local function levels(k_max)
  local list = {}
  for _, k in ipairs { 0, 1, 3, 5, 8, 12, 16, 24, 32, 48 } do
    if k < k_max then list[#list + 1] = k end
  end
  list[#list + 1] = k_max
  return list
end

local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2]
end

--- Drafts as likely as real ones: tokens that follow in the text.
local function guesses(loop, s, k)
  for i = 1, loop:size(k) - 1 do loop.out[i] = s.ids[1 + (s.length * 7 + i * 13) % s.length] end
  return loop.out
end

--- Microseconds of a graph of a step (nil: that of v levels verified and k drafted), and the part of it before the drafts.
local function time(loop, s, v, k, entry)
  entry = entry or loop:joint_graph(loop:size(v), k)
  local all, verify = {}, {}
  repeat
    loop:begin(s)
    loop.spec:draft(v, guesses(loop, s, v))
    local start = mav.now()
    loop.spec:verify(entry.graph)
    entry.graph:wait()
    all[#all + 1] = (mav.now() - start) * 1e6
    if k > 0 then verify[#verify + 1] = (loop.times:get(2) - loop.times:get(1)) * 1e-3 end
  until #all >= REPEATS or all[1] > SLOW * 1e6
  return median(all), k > 0 and median(verify) or nil
end

--- Fills in what lies between measured points.
local function interpolate(points, at)
  for i = 1, #at - 1 do
    local a, b = at[i], at[i + 1]
    for x = a + 1, b - 1 do points[x] = points[a] + (points[b] - points[a]) * (x - a) / (b - a) end
  end
end

function costs.measure(loop, s)
  local t, at = loop.live, levels(loop.k_max)
  local verify, draft = {}, { [0] = 0.0 }
  t.cost_plain = time(loop, s, 0, 0, loop:plain_graph())
  for _, k in ipairs(at) do verify[k] = time(loop, s, k, 0) end
  interpolate(verify, at)
  for k, us in pairs(verify) do t.cost_verify[loop:size(k)] = us end
  if loop.device then
    for _, k in ipairs(at) do
      if k > 0 and not loop.rule.host then
        local all, before = time(loop, s, 0, k)
        draft[k] = all - before
      end
    end
    if draft[loop.k_max] then interpolate(draft, at) end
  end
  for k, us in pairs(draft) do t.cost_draft[k] = us end
  if loop.chain.needs.seen then s:forget_seen(#s.seq) end
end

return costs
