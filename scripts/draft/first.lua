--- Several drafters, the first that has something to say drafts: host drafters in the order given, then at most one device drafter,
--- which always has.
---
---     local draft = require("mav.draft.first") { "ngram", eagle }
---
--- An object that only says so: kind "first", hosts, device; the loop asks them.
local first = {}

local HOSTS = { ngram = true, suffix = true }

local Drafter = { __name = "mav.draft.first", kind = "first" }
Drafter.__index = Drafter

function Drafter:__tostring()
  local names = {}
  for i, host in ipairs(self.hosts) do names[i] = tostring(host) end
  names[#names + 1] = self.device and tostring(self.device)
  return "first of " .. table.concat(names, ", ")
end

--- A plain function(ids, length, k, out) -> n as a host drafter. name: nil: "function"
---@return table drafter
function first.host(propose, name)
  local state = { propose = function(_, ids, length, k, out) return propose(ids, length, k, out) end }
  return setmetatable({ name = name or "function", kind = "host", start = function() return state end },
    { __tostring = function(drafter) return drafter.name end })
end

local function resolve(entry, i)
  local uncalled = require("mav.draft").uncalled(entry)
  if uncalled then error(("draft.first: entry %d: %s"):format(i, uncalled), 3) end
  if type(entry) == "function" then return first.host(entry) end
  if HOSTS[entry] then return require("mav.draft." .. entry)() end
  if type(entry) == "table" and (entry.kind == "host" or entry.kind == "device") then return entry end
  error(("draft.first: entry %d is %s; a drafter, a function, \"ngram\" or \"suffix\" is allowed"):format(i,
    type(entry) == "string" and ("%q"):format(entry) or "a " .. type(entry)), 3)
end

--- The drafters by priority.
---@param list table
---@return table drafter   hosts (list), device (or nil), name
function first.new(list)
  local self = setmetatable({ hosts = {} }, Drafter)
  local names = {}
  for i, entry in ipairs(list) do
    local drafter = resolve(entry, i)
    if self.device then
      error(("draft.first: %s can never draft: %s before it always does"):format(drafter.name, self.device.name), 2)
    end
    names[i] = drafter.name
    if drafter.kind == "device" then self.device = drafter else table.insert(self.hosts, drafter) end
  end
  if #names == 0 then error("draft.first: no drafters given", 2) end
  self.name = table.concat(names, "+")
  return self
end

return setmetatable(first, { __call = function(_, list) return first.new(list) end })
