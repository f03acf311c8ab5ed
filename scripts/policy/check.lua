--- Checks of policy parameters: a bad one raises, naming itself and what is allowed.
local check = {}

local LEVEL = 3 -- check -> constructor -> its caller

--- A field of options as an integer in a range; `default` when it is nil.
function check.integer(what, value, least, most, default)
  if value == nil and default ~= nil then return default end
  local number = type(value) == "number" and math.tointeger(value)
  if not number or number < least or number > most then
    error(("%s is %s; an integer from %d to %d is allowed"):format(what, tostring(value), least, most), LEVEL)
  end
  return number
end

--- The same for a number.
function check.number(what, value, least, most, default)
  if value == nil then return default end
  if type(value) ~= "number" or not (value >= least and value <= most) then
    error(("%s is %s; a number from %g to %g is allowed"):format(what, tostring(value), least, most), LEVEL)
  end
  return value
end

--- The same for true or false.
function check.boolean(what, value, default)
  if value == nil then return default end
  if type(value) ~= "boolean" then error(("%s is %s; true or false is allowed"):format(what, tostring(value)), LEVEL) end
  return value
end

check.K_MAX = 64 -- no draft is deeper

return check
