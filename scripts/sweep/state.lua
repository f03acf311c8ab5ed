--- What a sweep has measured so far, in a file of JSON lines: the settings first, then a line per finished cell. A sweep that was
--- stopped - between two lines or in the middle of one - goes on where it was; with other settings it refuses.
local cli = require "mav.cli"
local mav = require "mav"

local state = {}

local VERSION = 1

local State = {}
State.__index = State

local function key(cell)
  return ("%s|%s|%g|%d|%d"):format(cell.drafter, tostring(cell.k), cell.temperature, cell.prompt, cell["repeat"])
end

--- The first setting that differs, as a text; nil: none.
local function difference(old, new)
  local names = {}
  for name in pairs(new) do names[#names + 1] = name end
  for name in pairs(old) do
    if new[name] == nil then names[#names + 1] = name end
  end
  table.sort(names)
  for _, name in ipairs(names) do
    if old[name] ~= new[name] then return ("%s was %s and is %s"):format(name, tostring(old[name]), tostring(new[name])) end
  end
end

local function check_header(path, line, settings)
  local header, err = mav.json.decode(line)
  if not header then cli.fail("%s: line 1: %s", path, tostring(err)) end
  if type(header) ~= "table" or header.mav_sweep ~= VERSION or type(header.settings) ~= "table" then
    cli.fail("%s: no state of a sweep", path)
  end
  local differs = difference(header.settings, settings)
  if differs then cli.fail("%s is of another sweep: %s; give the same settings or another file", path, differs) end
end

local function check_cell(path, number, cell)
  local is_cell = type(cell) == "table" and type(cell.drafter) == "string" and type(cell.temperature) == "number"
    and math.type(cell.prompt) == "integer" and math.type(cell["repeat"]) == "integer" and cell.k ~= nil
  if not is_cell then cli.fail("%s: line %d is no cell of a sweep", path, number) end
end

--- Reads what is there. Returns how many bytes of it are whole lines.
local function read(self, text)
  local at, number = 1, 0
  while true do
    local stop = text:find("\n", at, true)
    if not stop then return at - 1 end -- a line that was being written when the sweep ended
    local line = text:sub(at, stop - 1)
    number = number + 1
    if number == 1 then
      check_header(self.path, line, self.settings)
    else
      local cell, err = mav.json.decode(line)
      if not cell then cli.fail("%s: line %d: %s", self.path, number, tostring(err)) end
      check_cell(self.path, number, cell)
      self:put(cell)
    end
    at = stop + 1
  end
end

--- Writes a file anew, all or nothing.
local function replace(path, text)
  local file, err = io.open(path .. ".new", "wb")
  if not file then cli.fail("%s", err) end
  if not file:write(text) or not file:close() then cli.fail("%s.new cannot be written", path) end
  local ok, reason = os.rename(path .. ".new", path)
  if not ok then cli.fail("%s", reason) end
end

--- Opens a state; path nil: one that is only kept in memory. settings: a flat table; all of them must stay the same.
function state.open(path, settings)
  local self = setmetatable({ path = path, settings = settings, cells = {}, by_key = {} }, State)
  if not path then return self end
  local file, text = io.open(path, "rb"), ""
  if file then
    text = file:read "a" or cli.fail("%s cannot be read", path)
    file:close()
  end
  local whole = read(self, text)
  if whole < #text then replace(path, text:sub(1, whole)) end
  local out, err = io.open(path, "ab")
  if not out then cli.fail("%s", err) end
  self.file = out
  if whole == 0 then self:write { mav_sweep = VERSION, settings = settings } end
  return self
end

function State:write(object)
  if not self.file then return end
  local ok, err = self.file:write(mav.json.encode(object) .. "\n")
  if not ok then cli.fail("%s: %s", self.path, err) end
  self.file:flush()
end

function State:put(cell)
  local name = key(cell)
  if not self.by_key[name] then self.cells[#self.cells + 1] = cell end
  self.by_key[name] = cell
end

--- A cell that was measured already, or nil. Only the fields that name it matter.
function State:find(cell) return self.by_key[key(cell)] end

--- A cell was measured.
function State:add(cell)
  self:put(cell)
  self:write(cell)
end

function State:close()
  if self.file then self.file:close() end
  self.file = nil
end

State.__close = State.close

return state
