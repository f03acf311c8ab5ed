--- What quantization did to a weight: largest error, relative error, signal to noise; and tables and pictures of many weights.
---
---   max_abs    largest |x - y|
---   relative   sqrt(sum (x - y)^2 / sum x^2)
---   sqnr_db    10 log10(sum x^2 / sum (x - y)^2)
---   measured   share of the elements that was looked at; all of them unless the weight is large
local fault = require "mav.maverick.fault"
local mav = require "mav"
local op = mav.op

local errors = {}

local PIECE = 128 << 10 -- elements that stay in the cache over the passes below
local WHOLE = 16 << 20 -- larger tensors are measured in part: one piece of EVERY
local EVERY = 16
local CODES = 512 << 10 -- looked through at once

local Stats = {}
Stats.__index = Stats

--- For a weight of so many elements. all: measures every one of them.
function errors.new(elements, all)
  return setmetatable({ max_abs = 0.0, noise = 0.0, signal = 0.0, seen = 0, count = 0, pieces = 0,
    every = (all or elements <= WHOLE) and 1 or EVERY }, Stats)
end

--- Calls an op on x as one row and takes its only number.
local function number(f, x)
  local flat = x:reshape { 1, x:count() }
  local t = f(flat)
  local value = t:get(1, 1)
  t:close()
  flat:close()
  return value
end

local function dot(x) return op.matmul { x = x, w = x } end
local function max(x) return op.max { x = x } end
local function min(x) return op.min { x = x } end

--- The error of a piece: a, y, d are its work space.
local function measure(self, a, y, d, codes, scale)
  local rows = scale:reshape { #scale, 1 }
  op.cast { x = codes, dtype = "f32", out = y }
  op.mul { a = y, b = rows, out = d }
  op.sub { a = a, b = d, out = d }
  self.signal, self.noise = self.signal + number(dot, a), self.noise + number(dot, d)
  self.max_abs = math.max(self.max_abs, number(max, d), -number(min, d))
  self.seen = self.seen + d:count()
  rows:close()
end

--- Raises where a row has a value that is no number. Two signs of it are left: an infinite scale, and codes that are not a number, as
--- quantize makes no other of such values. memchr looks for those, several times faster than a pass over the values.
local function check(codes, scale, name, row)
  local n, K = table.unpack(codes.shape)
  local rows, wrong = math.max(1, CODES // K), nil
  local flat = scale:reshape { 1, n }
  if number(max, flat) == math.huge then
    wrong = 1
    while scale:get(wrong) ~= math.huge do wrong = wrong + 1 end
  end
  for first = 1, n, rows do
    local view = codes:slice(1, first, math.min(n, first + rows - 1))
    local bytes = view:bytes()
    local at = bytes:find("\x7f", 1, true) or bytes:find("\xff", 1, true)
    wrong = wrong or at and first + (at - 1) // K
    view:close()
  end
  flat:close()
  if wrong then
    fault.raise("RANGE", name, "a value in row %d is infinite or not a number; FP8 has no code for it", row + wrong - 1)
  end
end

--- A block x (n, K), its codes and their scales (n). Raises where x is not finite: no code stands for that; name and row, of the block's
--- first one, are for the message.
function Stats:add(x, codes, scale, name, row)
  local n, K = table.unpack(x.shape)
  local rows = math.max(1, PIECE // K)
  check(codes, scale, name, row or 0)
  if not self.work then
    self.work = {}
    for i = 1, 3 do self.work[i] = mav.zeros { dtype = "f32", rows, K } end
  end
  for first = 1, n, rows do
    local last = math.min(n, first + rows - 1)
    if self.pieces % self.every == 0 then
      local views = { x:slice(1, first, last), codes:slice(1, first, last), scale:slice(1, first, last) }
      for i = 1, 3 do views[3 + i] = self.work[i]:slice(1, 1, last - first + 1) end
      op.cast { x = views[1], dtype = "f32", out = views[4] }
      measure(self, views[4], views[5], views[6], views[2], views[3])
      for _, t in ipairs(views) do t:close() end
    end
    self.pieces, self.count = self.pieces + 1, self.count + (last - first + 1) * K
  end
end

--- The numbers as a table.
function Stats:result(name, dtype)
  return { name = name, from = dtype, measured = self.seen / math.max(self.count, 1), max_abs = self.max_abs,
    relative = self.signal > 0 and math.sqrt(self.noise / self.signal) or 0.0,
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
  add('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">', LEFT + W + LEGEND,
    TOP + H + 50)
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
