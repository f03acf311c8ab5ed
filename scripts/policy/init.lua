--- Policies: how deep to draft next, asked once a step while the device works.
---
--- A policy is an object:
---
---   name, needs       needs = { confidence =, experts =, costs =, entropy =, lookups = }: what the loop shall find out for it
---   ask(self, stats)  levels to draft next, 0 to stats.k_max; false: no speculation for the rest of this request
---   trim(self, stats, k)   optional: how many of the k levels drafted to verify, once they are known; whether to keep
---                          level d must follow from stats.confidence[1..d], and k may grow level by level
---   reset(self)       a new request begins
---   deepest           optional: the most it will ever ask for
---   is_bounded        optional: its functions come to an end whatever happens; others are called under a guard, which stops them
---                     after a second, and doubles what they cost
---
--- stats is one live table, the same every time, to read only. docs/strategies.md lists its fields.
local policy = {}

policy.NAMES = { "auto", "confidence", "cost_aware", "ema", "fixed", "off", "schedule" }

local K_MAX = require("mav.policy.check").K_MAX
local NEEDS = { confidence = true, experts = true, costs = true, entropy = true, lookups = true }

-- ---- functions as policies ----------------------------------------------------------------------------------------------

local Function = { __name = "mav.policy" }
Function.__index = Function

function Function:__tostring() return "function" end

function Function:ask(stats) return self.f(stats) end

function Function:reset() end

--- A function sees what needs no measuring; an object can name what it needs.
local function of_function(f) return setmetatable({ name = "function", needs = {}, f = f }, Function) end

-- ---- objects of the user ------------------------------------------------------------------------------------------------

local function nothing() end

local function whole_name(whole) return whole.name end

local function fail(...) error(("policy: " .. ...):format(select(2, ...)), 0) end

local function check_methods(object, name)
  if type(object.ask) ~= "function" then fail("'%s' has no function ask(self, stats) (ask is a %s)", name, type(object.ask)) end
  for _, method in ipairs { "trim", "reset" } do
    local f = object[method]
    if f ~= nil and type(f) ~= "function" then fail("'%s': %s is a %s; a function is allowed", name, method, type(f)) end
  end
end

local function check_needs(needs, name)
  if type(needs) ~= "table" then fail("'%s': needs is a %s; a table is allowed", name, type(needs)) end
  for key in pairs(needs) do
    if not NEEDS[key] then
      fail("'%s': unknown need '%s'; confidence, costs, entropy, experts, lookups are allowed", name, tostring(key))
    end
  end
end

--- The object itself when nothing is missing, else one around it with the defaults.
local function of_object(object)
  local name = object.name
  if name ~= nil and type(name) ~= "string" then fail("name is %s; a string is allowed", tostring(name)) end
  check_methods(object, name or "table")
  check_needs(object.needs or {}, name or "table")
  if name and object.needs and object.reset then return object end
  local whole = { name = name or "table", needs = object.needs or {}, reset = object.reset or nothing }
  return setmetatable(whole, { __index = object, __newindex = object, __name = "mav.policy", __tostring = whole_name })
end

-- ---- names and numbers --------------------------------------------------------------------------------------------------

local function constructor(name)
  local ok, module = pcall(require, "mav.policy." .. name)
  if ok and type(module) == "function" then return module end
  if not ok and not module:find("module 'mav.policy." .. name .. "' not found", 1, true) then error(module, 0) end
  return fail("unknown policy '%s'; %s, a number or a module mav.policy.<name> is allowed", name, table.concat(policy.NAMES, ", "))
end

local function of_name(name)
  if name == "auto" then return require "mav.policy.off" { policy = require "mav.policy.cost_aware" {}, window = 96, margin = -0.05 } end
  return constructor(name) {}
end

local function of_number(k)
  local whole = math.tointeger(k)
  if not whole or whole < 0 or whole > K_MAX then fail("k is %s; an integer from 0 to %d is allowed", tostring(k), K_MAX) end
  return require "mav.policy.fixed" { k = whole }
end

local function of(spec)
  local kind = type(spec)
  if kind == "nil" then return require "mav.policy.fixed" {} end
  if kind == "number" then return of_number(spec) end
  if kind == "function" then return of_function(spec) end
  if kind == "string" then return of_name(spec) end
  if kind == "table" then return of_object(spec) end
  return fail("a %s; an integer, a function, a name or a policy object is allowed", kind)
end

--- A policy object from what a user may give:
---
---   nil        the deepest draft every time          an integer   that many levels every time
---   function   function(stats) -> k or false         a string     a name: "auto" (cost_aware, off when it does not pay), ...
---   table      a policy object
---
--- k_max: the deepest level of the strategy that the policy is for, if it is for one.
---@return table policy
function policy.new(spec, k_max)
  local ok, object = pcall(of, spec)
  if not ok then error((tostring(object):gsub("^[^\n]-:%d+: policy", "policy")), 0) end
  if k_max and object.fixed and object.fixed > k_max then
    fail("k is %d; the strategy's deepest level is %d", object.fixed, k_max)
  end
  return object
end

-- ---- answers ------------------------------------------------------------------------------------------------------------

local function described(value)
  if type(value) == "string" then return ("%q"):format(value) end
  return type(value) == "table" and "a table" or tostring(value)
end

--- What ask returned, as an integer, or false. Anything but an integer from 0 to k_max raises. Allocates only to complain.
function policy.check_answer(answer, k_max, name)
  if answer == false then return false end
  local k = type(answer) == "number" and math.tointeger(answer)
  if not k or k < 0 or k > k_max then
    error(("policy%s: ask returned %s; an integer from 0 to %d, or false, is allowed"):format(name and " '" .. name .. "'" or "",
      described(answer), k_max), 0)
  end
  return k
end

--- The same for what trim returned of k levels.
function policy.check_trim(answer, k, name)
  local v = type(answer) == "number" and math.tointeger(answer)
  if not v or v < 0 or v > k then
    error(("policy%s: trim returned %s; an integer from 0 to %d is allowed"):format(name and " '" .. name .. "'" or "",
      described(answer), k), 0)
  end
  return v
end

return policy
