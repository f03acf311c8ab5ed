--- Recipes: conversions as Lua files. A recipe returns
---
---   function(plan)          changes the plan: plan:rule{...}, plan:find(name), or the entries themselves (plan.lua); or
---   a table                 of rules, in order; with names = function(name in the files) -> the name that the model's config asks
---                           for, or nil (not read); and plan = function(plan), called after the rules
---
--- What is wrong is said with the file and, where Lua knows it, the line.
local fault = require "mav.maverick.fault"

local recipe = {}

local function check(value, where)
  if type(value) == "function" then return { plan = value } end
  if type(value) ~= "table" then
    fault.raise("INVALID", where, "returns a %s; function(plan) or a table of rules is expected", type(value))
  end
  for key, field in pairs(value) do
    if math.type(key) ~= "integer" then
      if key ~= "names" and key ~= "plan" then
        fault.raise("INVALID", where, "unknown key '%s'; rules, names and plan are allowed", tostring(key))
      elseif type(field) ~= "function" then
        fault.raise("INVALID", where, "%s is a %s; a function is expected", key, type(field))
      end
    end
  end
  return value
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

--- Applies it to a plan. Rules of a table that are wrong are named by their number.
function recipe.apply(r, plan)
  for i, rule in ipairs(r.value) do
    local ok, err = pcall(plan.rule, plan, rule)
    if not ok then fault.raise("INVALID", r.where, "rule %d: %s", i, (tostring(err):gsub("^[^:]*:%d+: ", ""))) end
  end
  if r.value.plan then r.value.plan(plan) end
end

return recipe
