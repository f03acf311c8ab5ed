--- One JSON file of a stranger: its values with their place, so that every complaint can name file, key, value and what is
--- allowed. `null` counts as absent, except where a field says otherwise.
---
--- A field: key; kind ("integer", "number", "boolean"); least and most allowed value; default (none: the key is required).
local mav = require "mav"
local fault = require "mav.maverick.fault"

local FILE_BYTES_MAX, STRINGS_MAX = 16 << 20, 1 << 20

local Reader = {}
Reader.__index = Reader

local function is_null(value) return value == nil or value == mav.json.null end

local function allowed(field)
  if field.kind == "boolean" then return "true or false is allowed" end
  return ("%s %s from %.14g to %.14g is allowed"):format(field.kind == "integer" and "an" or "a", field.kind, field.least, field.most)
end

function Reader:fail(key, value, text, ...)
  if select("#", ...) > 0 then text = text:format(...) end
  fault.raise(value == nil and "NOTFOUND" or "RANGE", self.file, "%s%s %s; %s", self.prefix, key,
    value == nil and "is missing" or "is " .. fault.show(value), text)
end

--- The same file, one object further in.
function Reader:within(prefix) return setmetatable({ file = self.file, prefix = self.prefix .. prefix }, Reader) end

--- A value of the kind and in the range that `field` states.
function Reader:value(object, field)
  local value, key = object[field.key], field.key
  if is_null(value) then
    if value ~= nil and field.null == "refuse" then self:fail(key, value, allowed(field)) end
    if field.default == nil then self:fail(key, nil, allowed(field)) end
    return field.default
  end
  if field.kind == "boolean" then
    if type(value) ~= "boolean" then self:fail(key, value, allowed(field)) end
    return value
  end
  local number = type(value) == "number" and (field.kind == "integer" and math.tointeger(value) or field.kind == "number" and value)
  if not number or not (number >= field.least and number <= field.most) then self:fail(key, value, allowed(field)) end
  return number
end

function Reader:object(object, key)
  local value = object[key]
  if is_null(value) then return nil end
  if type(value) ~= "table" or #value > 0 then self:fail(key, value, "an object is allowed") end
  return value
end

--- A list of integers, or nil when it is absent or null.
function Reader:list(object, key, least, most)
  local value = object[key]
  if is_null(value) then return nil end
  if type(value) ~= "table" or (#value == 0 and next(value) ~= nil) then self:fail(key, value, "a list is allowed") end
  if #value > 65536 then self:fail(key, value, "at most 65536 entries are allowed") end
  local list = {}
  for i, entry in ipairs(value) do
    local number = type(entry) == "number" and math.tointeger(entry)
    if not number or number < least or number > most then
      self:fail(("%s[%d]"):format(key, i - 1), entry, "an integer from %d to %d is allowed", least, most)
    end
    list[i] = number
  end
  return list
end

--- A list of strings; an empty one when it is absent or null.
function Reader:strings(object, key)
  local value = object[key]
  if is_null(value) then return {} end
  if type(value) ~= "table" or (#value == 0 and next(value) ~= nil) then self:fail(key, value, "a list of strings is allowed") end
  if #value > STRINGS_MAX then self:fail(key, value, "at most %d entries are allowed", STRINGS_MAX) end
  for i, entry in ipairs(value) do
    if type(entry) ~= "string" then self:fail(("%s[%d]"):format(key, i - 1), entry, "a string is allowed") end
  end
  return value
end

local reader = {}

--- The JSON object of a file. Raises what is wrong with it.
function reader.read_json(path)
  local file, err = io.open(path, "rb")
  if not file then fault.raise("IO", path, "%s", (err:gsub("^.-: ", ""))) end
  local text = file:read(FILE_BYTES_MAX + 1)
  file:close()
  if not text then fault.raise("FORMAT", path, "is empty or cannot be read") end
  if #text > FILE_BYTES_MAX then fault.raise("FORMAT", path, "has more than %d bytes", FILE_BYTES_MAX) end
  local ok, value, why = pcall(mav.json.decode, text)
  if not ok or value == nil then fault.raise("FORMAT", path, "not JSON: %s", tostring(ok and why or value)) end
  if type(value) ~= "table" then fault.raise("FORMAT", path, "an object is expected, not %s", fault.show(value)) end
  return value
end

function reader.exists(path)
  local file = io.open(path, "rb")
  if file then file:close() end
  return file ~= nil
end

--- The values of an object that was read from `file`.
function reader.new(file) return setmetatable({ file = file, prefix = "" }, Reader) end

reader.is_null = is_null

return reader
