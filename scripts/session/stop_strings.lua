--- Ends a text at the first of some strings, though it arrives in pieces: holds back what may be the beginning of one.
local stop_strings = {}

local Stops = {}
Stops.__index = Stops

---@param stop string|string[]|nil
function stop_strings.new(stop)
  if type(stop) == "string" then stop = { stop } end
  local longest = 0
  for i, text in ipairs(stop or {}) do
    if type(text) ~= "string" or text == "" then error(("stop %d must be a string that is not empty"):format(i), 0) end
    longest = math.max(longest, #text)
  end
  return setmetatable({ list = stop or {}, longest = longest, held = "", found = false }, Stops)
end

--- Length of the longest tail of text that begins one of the strings.
local function open_tail(list, text, longest)
  for n = math.min(longest - 1, #text), 1, -1 do
    local tail = text:sub(-n)
    for _, stop in ipairs(list) do
      if stop:sub(1, n) == tail then return n end
    end
  end
  return 0
end

--- The text that is certain after this piece. Sets found when one of the strings is complete.
function Stops:push(piece)
  if self.longest == 0 then return piece end
  if self.found then return "" end
  local text = self.held .. piece
  local first
  for _, stop in ipairs(self.list) do
    local at = text:find(stop, 1, true)
    if at and (not first or at < first) then first = at end
  end
  if first then
    self.found, self.held = true, ""
    return text:sub(1, first - 1)
  end
  local n = open_tail(self.list, text, self.longest)
  self.held = n > 0 and text:sub(-n) or ""
  return text:sub(1, #text - n)
end

--- What was held back, when nothing more will come.
function Stops:rest()
  local text = self.held
  self.held = ""
  return text
end

return stop_strings
