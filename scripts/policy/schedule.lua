--- Depth by context length or by the number of sequences, in stages.
---
---     require("mav.policy.schedule") { by = "length", { 0, 4 }, { 2048, 2 } } -- 4 levels, from 2048 tokens on 2
local check_keys = require "mav.options"
local check = require "mav.policy.check"

local FIELDS = { length = true, sequences = true }

local Schedule = { is_bounded = true, __name = "mav.policy" }
Schedule.__index = Schedule

function Schedule:__tostring()
  local out = {}
  for i, from in ipairs(self.from) do out[i] = ("%d: %d"):format(from, self.k[i]) end
  return ("schedule by %s { %s }"):format(self.by, table.concat(out, ", "))
end

function Schedule:ask(stats)
  local at, from, i = stats[self.by], self.from, 1
  while from[i + 1] and at >= from[i + 1] do i = i + 1 end
  return math.min(self.k[i], stats.k_max)
end

function Schedule:reset() end

--- options.by   "length" (tokens of the timeline, the default) or "sequences"
--- options[i]   { from, k }: k levels from there on; ascending, the first from 0
return function(options)
  local known = { by = true }
  for i = 1, type(options) == "table" and #options or 0 do known[i] = true end
  check_keys(options, known, "policy schedule")
  local by = options.by or "length"
  if not FIELDS[by] then error(("policy schedule: by is %s; \"length\" or \"sequences\" is allowed"):format(tostring(by)), 2) end
  if #options == 0 then error("policy schedule: no stages; { 0, 4 }, { 2048, 2 } for example", 2) end
  local self = setmetatable({ name = "schedule", needs = {}, by = by, from = {}, k = {}, deepest = 0 }, Schedule)
  for i, stage in ipairs(options) do
    if type(stage) ~= "table" or #stage ~= 2 then error(("policy schedule: stage %d is no { from, k }"):format(i), 2) end
    local least = i == 1 and 0 or self.from[i - 1] + 1
    self.from[i] = check.integer(("policy schedule: stage %d: from"):format(i), stage[1], least, i == 1 and 0 or math.maxinteger)
    self.k[i] = check.integer(("policy schedule: stage %d: k"):format(i), stage[2], 0, check.K_MAX)
    self.deepest = math.max(self.deepest, self.k[i])
  end
  return self
end
