--- Checks of sampling parameters: a bad one raises, naming itself and what is allowed.
local check = {}

local LEVEL = 5 -- check -> step's maker -> chain -> its __call or user

function check.integer(name, value, least, most)
  local number = type(value) == "number" and math.tointeger(value)
  if not number or number < least or number > most then
    error(("%s is %s; an integer from %d%s is allowed"):format(name, tostring(value), least,
      most < math.maxinteger and (" to %d"):format(most) or " on"), LEVEL)
  end
  return number
end

--- text: the allowed range in words; inside: whether a number lies in it.
function check.number(name, value, text, inside)
  if type(value) ~= "number" or value ~= value or not inside(value) then
    error(("%s is %s; %s is allowed"):format(name, tostring(value), text), LEVEL)
  end
  return value
end

return check
