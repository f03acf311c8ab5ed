--- Always the same depth; without one, the deepest that the strategy allows.
---
---     require("mav.policy.fixed") { k = 3 }
local check_keys = require "mav.options"
local check = require "mav.policy.check"

local Fixed = { is_bounded = true, __name = "mav.policy" }
Fixed.__index = Fixed

function Fixed:__tostring() return self.fixed and "fixed " .. self.fixed or "fixed" end

function Fixed:ask(stats) return self.fixed or stats.k_max end

function Fixed:reset() end

--- options.k   levels of every draft; nil: stats.k_max. The object's field `fixed` holds it: a loop need not ask.
return function(options)
  options = options or {}
  check_keys(options, { k = true }, "policy fixed")
  local k = options.k ~= nil and check.integer("policy fixed: k", options.k, 0, check.K_MAX) or nil
  return setmetatable({ name = "fixed", needs = {}, fixed = k, deepest = k }, Fixed)
end
