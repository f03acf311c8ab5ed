--- Checks of sampling parameters and of what functions of the user return: a bad one raises, naming itself and what is allowed.
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

local function is_tensor(value) return type(value) == "userdata" and (getmetatable(value) or {}).__name == "mav.tensor" end

--- What a function of the user returned must be a tensor of this shape. who: the function.
function check.result(who, value, shape)
  local fits = is_tensor(value) and #value.shape == #shape
  for i = 1, fits and #shape or 0 do fits = fits and value.shape[i] == shape[i] end
  if fits then return end
  local given = value == nil and "nil" or is_tensor(value) and tostring(value) or "a " .. type(value)
  error(("sample: %s returned %s; a tensor (%s) is expected"):format(who, given, table.concat(shape, ", ")), 0)
end

return check
