-- lua/mav/show.lua - prints a tensor's values as NumPy lays them out: nested brackets, aligned columns, large ones summarized.
-- Reads element by element only what it prints.
local show = {}

local defaults = { precision = 4, edge = 3, threshold = 1000, width = 100, write = io.write }

local function check(options)
  for key in pairs(options) do
    if defaults[key] == nil then
      error(("show: unknown key '%s' (valid: edge, precision, threshold, width, write)"):format(key), 3)
    end
  end
  return setmetatable(options, { __index = defaults })
end

--- The indices to print of a dimension; 0 stands for "...".
local function places(size, edge, summarize)
  local list = {}
  if summarize and size > 2 * edge then
    for i = 1, edge do list[#list + 1] = i end
    list[#list + 1] = 0
    for i = size - edge + 1, size do list[#list + 1] = i end
  else
    for i = 1, size do list[i] = i end
  end
  return list
end

--- A function that formats a number, from the numbers that are printed.
local function formatter(values, precision)
  local whole, largest, smallest = true, 0, math.huge
  for _, v in ipairs(values) do
    if v ~= v or v == math.huge or v == -math.huge then
      whole = whole and true
    else
      whole = whole and v == math.floor(v)
      local size = math.abs(v)
      if size > largest then largest = size end
      if size > 0 and size < smallest then smallest = size end
    end
  end
  local exponent = largest >= 1e8 or (not whole and (smallest < 1e-4 or largest / smallest > 1e6))
  return function(v)
    if v ~= v then return "nan" end
    if v == math.huge then return "inf" end
    if v == -math.huge then return "-inf" end
    if math.type(v) == "integer" then return ("%d"):format(v) end
    if exponent then return ("%." .. precision .. "e"):format(v) end
    if whole then return ("%.0f."):format(v) end
    return ("%." .. precision .. "f"):format(v)
  end
end

--- The text of a tensor; `show.text(t, options)`.
function show.text(t, options)
  options = check(options or {})
  if t.is_planned then return tostring(t) .. " (planned: no values)" end
  local shape, dims = t.shape, t.dims
  if t:count() == 0 then return "[] " .. tostring(t) end
  local summarize = t:count() > options.threshold
  local lists, values, index = {}, {}, {}
  for d = 1, dims do lists[d] = places(shape[d], options.edge, summarize) end

  local function collect(d)
    if d > dims then
      values[#values + 1] = t:get(table.unpack(index))
      return
    end
    for _, i in ipairs(lists[d]) do
      if i ~= 0 then
        index[d] = i
        collect(d + 1)
      end
    end
  end
  collect(1)

  local format, texts, column, next_text = formatter(values, options.precision), {}, 0, 0
  for i, v in ipairs(values) do
    texts[i] = format(v)
    column = math.max(column, #texts[i])
  end

  local function row(indent)
    local lines, line = {}, "["
    for n, i in ipairs(lists[dims]) do
      local cell
      if i == 0 then
        cell = "..."
      else
        next_text = next_text + 1
        cell = (" "):rep(column - #texts[next_text]) .. texts[next_text]
      end
      if n > 1 then
        if indent + #line + 2 + #cell > options.width then
          lines[#lines + 1] = line
          line = (" "):rep(indent)
        end
        line = line .. " "
      end
      line = line .. cell
    end
    lines[#lines + 1] = line .. "]"
    return table.concat(lines, "\n")
  end

  local function block(d)
    if d > dims then
      next_text = next_text + 1
      return texts[next_text]
    end
    if d == dims then return row(d) end
    local parts = {}
    for _, i in ipairs(lists[d]) do parts[#parts + 1] = i == 0 and "..." or block(d + 1) end
    return "[" .. table.concat(parts, ("\n"):rep(dims - d) .. (" "):rep(d)) .. "]"
  end
  return block(1) .. "\n" .. tostring(t)
end

--- Prints a tensor.
function show.show(t, options)
  options = options or {}
  local text = show.text(t, options)
  options.write(text, "\n")
end

return show
