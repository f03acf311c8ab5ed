--- Conditions of the world (a file that is missing or malformed) as values: raised inside the loaders, returned as
--- `nil, err` at their edge. A programmer's mistake is an ordinary Lua error and passes through.
local fault = {}

local Fault = { __name = "mav.fault" }
Fault.__index = Fault
function Fault:__tostring() return self.message end

--- Raises a condition. `where` is the file or directory it is about; the text names it first.
---@param code string   one of mav_err's names: "IO", "FORMAT", "SHAPE", "DTYPE", "RANGE", "NOTFOUND", "UNSUPPORTED"
---@param where string
---@param text string   format string: what is wrong and what is allowed, in one line
function fault.raise(code, where, text, ...)
  text = select("#", ...) > 0 and text:format(...) or text
  error(setmetatable({ code = code, op = "load", where = where, message = where .. ": " .. text }, Fault), 0)
end

--- Passes `value` on; with nil, raises the library's error that came beside it.
function fault.check(value, err)
  if value == nil then error(err == nil and "no value" or err, 0) end
  return value
end

--- Calls f: its results, or `nil, err` when it raised a condition of the world.
function fault.catch(f, ...)
  local function finish(ok, ...)
    if ok then return ... end
    local err = ...
    if type(err) == "table" and err.code then return nil, err end
    error(err, 0)
  end
  return finish(pcall(f, ...))
end

--- A value as it may be shown inside a message: short, on one line.
function fault.show(value)
  local kind = type(value)
  if kind == "string" then
    if #value > 40 then value = value:sub(1, 37) .. "..." end
    return ("%q"):format(value):gsub("\\\n", "\\n")
  elseif kind == "table" then
    return #value > 0 and ("a list of %d"):format(#value) or "an object"
  elseif kind == "userdata" then
    return "null"
  end
  return tostring(value)
end

--- "(2, 80)"
function fault.shape(shape) return "(" .. table.concat(shape, ", ") .. ")" end

return fault
