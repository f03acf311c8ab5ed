--- Recipes: conversions as Lua files. A recipe returns
---
---   a table                 of rules (plan.lua), in order, or with rules = { ... }; with names = function(name in the files) -> the name
---                           that the model's config asks for, or nil (not read); and plan = function(plan), called after the rules
---   function(plan)          changes the plan: plan:rule{...}, plan:find(name), or the entries themselves (plan.lua); or returns a
---                           table of rules, which are then applied
---
--- What is wrong is said with the file and, where Lua knows it, the line.
local fault = require "mav.maverick.fault"

local recipe = {}

local ALLOWED = "a recipe returns a table of rules (with names and plan, where needed), or function(plan)"
local KINDS = { rules = "table", names = "function", plan = "function" }
local OF_A_STRATEGY = { draft = true, policy = true, accept = true, tree = true, sample = true, k_max = true }

--- The fields of a table; rules: all that may be there.
local function check_table(value, where, only_rules)
  local rules = {}
  for key, field in pairs(value) do
    if math.type(key) == "integer" then
      rules[key] = field
    elseif OF_A_STRATEGY[key] then
      fault.raise("INVALID", where, "'%s' belongs to a decoding strategy, for --strategy; %s", key, ALLOWED)
    elseif not KINDS[key] then
      fault.raise("INVALID", where, "unknown key '%s'; rules, names and plan are allowed", tostring(key))
    elseif only_rules and key ~= "rules" then
      fault.raise("INVALID", where, "a function(plan) returned '%s'; only rules may come from it: return a table from the file", key)
    elseif type(field) ~= KINDS[key] then
      fault.raise("INVALID", where, "%s is a %s; a %s is expected", key, type(field), KINDS[key])
    end
  end
  if value.rules and next(rules) ~= nil then fault.raise("INVALID", where, "rules are in the table and under 'rules'; keep one") end
  return { rules = value.rules or rules, names = value.names, plan = value.plan }
end

local function check(value, where)
  if type(value) == "function" then return { rules = {}, plan = value } end
  if type(value) ~= "table" then fault.raise("INVALID", where, "returns a %s; %s", type(value), ALLOWED) end
  return check_table(value, where)
end

--- A recipe of a file's path, a table or a function; nil: none. Raises what is wrong.
---@return table|nil recipe   where: its name in messages; text: of the file
function recipe.read(from)
  if from == nil then return nil end
  if type(from) ~= "string" then return { where = "recipe", value = check(from, "recipe") } end
  local file, err = io.open(from, "rb")
  local text = file and file:read "a"
  if file then file:close() end
  if not text then fault.raise("IO", from, "%s", err and err:gsub("^.-: ", "") or "cannot be read") end
  local chunk, wrong = load(text, "@" .. from, "t")
  if not chunk then error(wrong, 0) end
  return { where = from, text = text, value = check(chunk(), from) }
end

--- Rules that are wrong are named by their number.
local function apply_rules(rules, where, plan)
  for i, rule in ipairs(rules) do
    local ok, err = pcall(plan.rule, plan, rule)
    if not ok then fault.raise("INVALID", where, "rule %d: %s", i, (tostring(err):gsub("^[^:]*:%d+: ", ""))) end
  end
end

--- Does the text load drafters or policies?
local function is_strategy(text) return text and (text:find "mav%.draft" or text:find "mav%.policy") ~= nil end

local function call_plan(r, plan)
  if not is_strategy(r.text) then return r.value.plan(plan) end
  local ok, result = pcall(r.value.plan, plan)
  if ok then return result end
  fault.raise("INVALID", r.where, "a decoding strategy, for --strategy? %s; this one failed: %s", ALLOWED, tostring(result))
end

--- Applies it to a plan.
function recipe.apply(r, plan)
  apply_rules(r.value.rules, r.where, plan)
  local result = r.value.plan and call_plan(r, plan)
  if result == nil then return end
  if type(result) ~= "table" or result == plan then
    fault.raise("INVALID", r.where, "the function of the plan returned %s; nothing, or a table of rules, is expected",
      result == plan and "the plan" or "a " .. type(result))
  end
  apply_rules(check_table(result, r.where, true).rules, r.where, plan)
end

return recipe
