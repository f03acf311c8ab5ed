--- What quantization did to a weight: largest error, relative error, signal to noise; and tables and pictures of many weights.
---
---   max_abs    largest |x - y|
---   relative   sqrt(sum (x - y)^2 / sum x^2)
---   sqnr_db    10 log10(sum x^2 / sum (x - y)^2)
local fault = require "mav.maverick.fault"
local mav = require "mav"
local op = mav.op

local errors = {}

local PIECE = 128 << 10 -- elements that stay in the cache over the passes below

local Stats = {}
Stats.__index = Stats

function errors.new() return setmetatable({ max_abs = 0.0, noise = 0.0, signal = 0.0, count = 0 }, Stats) end

local function dot(x)
  local flat = x:reshape { 1, x:count() }
  return op.matmul { x = flat, w = flat }:get(1, 1)
end

--- A block x (n, K), its codes and their scales (n). Raises where x is not finite: no code stands for that.
function Stats:add(x, codes, scale, name)
  local n, K = table.unpack(x.shape)
  local rows = math.max(1, PIECE // K)
  for first = 1, n, rows do
    local last = math.min(n, first + rows - 1)
    local a = op.cast { x = x:slice(1, first, last), dtype = "f32" }
    local y = op.cast { x = codes:slice(1, first, last), dtype = "f32" }
    local z = op.mul { a = y, b = scale:slice(1, first, last):reshape { last - first + 1, 1 } }
    local d = op.sub { a = a, b = z }
    local signal, noise = dot(a), dot(d)
    if signal ~= signal or signal == math.huge or noise ~= noise then
      fault.raise("RANGE", name, "rows %d to %d hold a value that is infinite or not a number; FP8 has no code for it", first - 1, last - 1)
    end
    local flat = d:reshape { 1, d:count() }
    self.max_abs = math.max(self.max_abs, op.max { x = flat }:get(1, 1), -op.min { x = flat }:get(1, 1))
    self.signal, self.noise, self.count = self.signal + signal, self.noise + noise, self.count + d:count()
    for _, t in ipairs { a, y, z, d } do t:close() end
  end
end

--- The numbers as a table.
function Stats:result(name, dtype)
  return { name = name, from = dtype, max_abs = self.max_abs, relative = self.signal > 0 and math.sqrt(self.noise / self.signal) or 0.0,
    sqnr_db = self.noise > 0 and self.signal > 0 and 10 * math.log(self.signal / self.noise, 10) or mav.json.null }
end

-- ---- many ---------------------------------------------------------------------------------------------------------------------

local function db(r) return type(r.sqnr_db) == "number" and ("%.2f"):format(r.sqnr_db) or "exact" end

--- A table in text, worst last; limit: at most so many lines, the worst.
function errors.table(list, limit)
  local sorted = table.move(list, 1, #list, 1, {})
  table.sort(sorted, function(a, b)
    local x, y = tonumber(a.sqnr_db) or math.huge, tonumber(b.sqnr_db) or math.huge
    if x ~= y then return x > y end
    return a.name < b.name
  end)
  local width, lines = 6, {}
  for _, r in ipairs(sorted) do width = math.max(width, #r.name) end
  lines[1] = ("%-" .. width .. "s  %5s  %10s  %9s  %8s"):format("tensor", "from", "max abs", "relative", "SQNR dB")
  local first = limit and math.max(1, #sorted - limit + 1) or 1
  if first > 1 then lines[2] = ("... %d more, with less error"):format(first - 1) end
  for i = first, #sorted do
    local r = sorted[i]
    lines[#lines + 1] = ("%-" .. width .. "s  %5s  %10.3g  %8.3f%%  %8s"):format(r.name, r.from, r.max_abs, 100 * r.relative, db(r))
  end
  return table.concat(lines, "\n")
end

local COLORS = { "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444" } -- Okabe and Ito: told apart by all
local W, H, LEFT, TOP, LEGEND = 640, 300, 64, 40, 140

--- SQNR of every tensor over the layers, a color for each kind.
function errors.svg(list, title)
  local kinds, order, last, low, high = {}, {}, 0, math.huge, -math.huge
  for _, r in ipairs(list) do
    local layer, key = r.name:match "^layers%.(%d+)%.(.+)$"
    key, layer = key or r.name, tonumber(layer) or 0
    if type(r.sqnr_db) == "number" then
      if not kinds[key] then
        kinds[key], order[#order + 1] = {}, key
      end
      table.insert(kinds[key], { layer, r.sqnr_db })
      last, low, high = math.max(last, layer), math.min(low, r.sqnr_db), math.max(high, r.sqnr_db)
    end
  end
  if #order == 0 then low, high = 0, 1 end
  low, high = math.floor(low) - 1, math.ceil(high) + 1
  local out = {}
  local function add(text, ...) out[#out + 1] = text:format(...) end
  local function x_of(layer) return LEFT + 10 + layer / math.max(last, 1) * (W - 20) end
  local function y_of(value) return TOP + (high - value) / (high - low) * H end
  add('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">', LEFT + W + LEGEND, TOP + H + 50)
  add '<rect width="100%%" height="100%%" fill="white"/>'
  add('<text x="%d" y="22" font-size="15">%s</text>', LEFT, (title:gsub("[&<>]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;" })))
  local step = math.max(1, (high - low) // 6)
  for value = low, high, step do
    add('<path d="M%d %.1fh%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%d</text>', LEFT, y_of(value), W, LEFT - 6,
      y_of(value) + 4, value)
  end
  for layer = 0, last, math.max(1, (last + 1) // 12) do
    add('<text x="%.1f" y="%d" text-anchor="middle">%d</text>', x_of(layer), TOP + H + 16, layer)
  end
  add('<text x="%d" y="%d" text-anchor="middle">layer</text>', LEFT + W // 2, TOP + H + 36)
  add('<text transform="translate(16 %d) rotate(-90)" text-anchor="middle">SQNR in dB (higher is better)</text>', TOP + H // 2)
  for i, key in ipairs(order) do
    local color = COLORS[(i - 1) % #COLORS + 1]
    for _, point in ipairs(kinds[key]) do add('<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>', x_of(point[1]), y_of(point[2]), color) end
    add('<circle cx="%d" cy="%d" r="4" fill="%s"/><text x="%d" y="%d">%s</text>', LEFT + W + 14, TOP + 18 * i, color, LEFT + W + 24,
      TOP + 18 * i + 4, key)
  end
  add "</svg>"
  return table.concat(out, "\n") .. "\n"
end

return errors
