--- A sweep as a picture: acceptance length and speed-up against the depth, a line per drafter, quartiles as a band, the cost model's
--- prediction dashed, policies as diamonds on the right. Temperatures lie below each other.
local short = require("mav.sweep.report").short

local svg = {}

local COLORS = { "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444" } -- Okabe and Ito: told apart by all
local PLOT_W, PLOT_H, LEFT, TOP, GAP, BELOW = 380, 240, 64, 78, 84, 62
local POLICY_STEP = 74 -- between two policies on the right

local Page = {}
Page.__index = Page

function Page:add(...) self.out[#self.out + 1] = (...):format(select(2, ...)) end

local function escape(text) return (text:gsub("[&<>\"]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;" })) end

function Page:text(x, y, text, more) self:add('<text x="%.1f" y="%.1f"%s>%s</text>', x, y, more and " " .. more or "", escape(text)) end

--- A step of 1, 2 or 5 times a power of ten that gives about five marks.
local function tick_step(range)
  local power = 10 ^ math.floor(math.log(range / 5, 10))
  for _, m in ipairs { 1, 2, 5, 10 } do
    if m * power >= range / 5 then return m * power end
  end
  return 10 * power
end

-- ---- scales ---------------------------------------------------------------------------------------------------------------

--- Depths and policies that occur, and where they lie.
local function x_axis(rows)
  local depths, names, seen = {}, {}, {}
  for _, r in ipairs(rows) do
    if not seen[r.k] then table.insert(math.type(r.k) == "integer" and depths or names, r.k) end
    seen[r.k] = true
  end
  table.sort(depths)
  table.sort(names)
  local axis = { depths = depths, names = names, at = {}, width = #depths > 0 and PLOT_W or 30 }
  local low, high = depths[1] or 0, depths[#depths] or 0
  for _, k in ipairs(depths) do axis.at[k] = 20 + (high > low and (k - low) / (high - low) or 0.5) * (PLOT_W - 40) end
  for i, name in ipairs(names) do axis.at[name] = axis.width + POLICY_STEP * (i - 0.5) end
  axis.width = axis.width + POLICY_STEP * #names
  return axis
end

local function y_axis(rows, fields, floor)
  local low, high = floor, floor + 0.2
  for _, r in ipairs(rows) do
    for _, field in ipairs(fields) do
      local y = r[field]
      if y then low, high = math.min(low, y), math.max(high, y) end
    end
  end
  local step = tick_step(high - low)
  return { low = math.floor(low / step) * step, high = math.ceil(high / step) * step, step = step }
end

-- ---- one plot -------------------------------------------------------------------------------------------------------------

local Plot = {}
Plot.__index = Plot

function Plot:x(k) return self.left + self.axis.at[k] end

function Plot:y(value) return self.top + PLOT_H * (1 - (value - self.scale.low) / (self.scale.high - self.scale.low)) end

function Plot:frame(title)
  local page, axis, scale = self.page, self.axis, self.scale
  local right, bottom = self.left + axis.width, self.top + PLOT_H
  page:text(self.left, self.top - 12, title, 'class="title"')
  local marks = math.floor((scale.high - scale.low) / scale.step + 0.5)
  for i = 0, marks do
    local value = scale.low + i * scale.step
    page:add('<line class="grid" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>', self.left, self:y(value), right, self:y(value))
    page:text(self.left - 8, self:y(value) + 4, ("%g"):format(value), 'text-anchor="end"')
  end
  page:add('<line class="one" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>', self.left, self:y(1), right, self:y(1))
  page:add('<line class="axis" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>', self.left, bottom, right, bottom)
  for _, k in ipairs(axis.depths) do page:text(self:x(k), bottom + 18, tostring(k), 'text-anchor="middle"') end
  for _, name in ipairs(axis.names) do page:text(self:x(name), bottom + 18, name, 'text-anchor="middle" class="small"') end
  if #axis.depths > 0 then page:text(self.left + PLOT_W / 2, bottom + 38, "k, drafts a step", 'text-anchor="middle" class="small"') end
end

function Plot:points(rows, field)
  local list = {}
  for _, r in ipairs(rows) do
    if r[field] and math.type(r.k) == "integer" then list[#list + 1] = ("%.1f,%.1f"):format(self:x(r.k), self:y(r[field])) end
  end
  return list
end

function Plot:band(rows, low, high, color)
  local points, back = self:points(rows, high), self:points(rows, low)
  if #points < 2 or #points ~= #back then return end
  for i = #back, 1, -1 do points[#points + 1] = back[i] end
  self.page:add('<polygon fill="%s" fill-opacity="0.13" points="%s"/>', color, table.concat(points, " "))
end

--- A drafter's figures; offset keeps the diamonds of several drafters apart.
function Plot:series(rows, color, field, predicted, offset)
  local page = self.page
  self:band(rows, field .. "_low", field .. "_high", color)
  if predicted then
    local points = self:points(rows, predicted)
    if #points > 1 then
      page:add('<polyline fill="none" stroke="%s" stroke-width="1.2" stroke-dasharray="4 3" points="%s"/>', color,
        table.concat(points, " "))
    end
  end
  local points = self:points(rows, field)
  if #points > 1 then page:add('<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/>', color, table.concat(points, " ")) end
  for _, r in ipairs(rows) do
    local value = r[field]
    if value and math.type(r.k) == "integer" then
      page:add('<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>', self:x(r.k), self:y(value), color)
    elseif value then
      local x, y, low, high = self:x(r.k) + offset, self:y(value), r[field .. "_low"] or value, r[field .. "_high"] or value
      page:add('<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="1.2"/>', x, self:y(low), x, self:y(high), color)
      page:add('<path d="M%.1f %.1fl5 5l-5 5l-5 -5z" fill="%s"/>', x, y - 5, color)
    end
  end
end

-- ---- the page ---------------------------------------------------------------------------------------------------------------

local STYLE = [[<style>
text { font: 12px sans-serif; fill: #333 } .title { font-size: 13px; font-weight: bold } .head { font-size: 16px; font-weight: bold }
.small { font-size: 11px; fill: #555 } .grid { stroke: #e4e4e4 } .axis { stroke: #888 } .one { stroke: #888; stroke-dasharray: 2 3 }
</style>]]

local function distinct(rows, field)
  local seen, list = {}, {}
  for _, r in ipairs(rows) do
    if not seen[r[field]] then list[#list + 1] = r[field] end
    seen[r[field]] = true
  end
  table.sort(list)
  return list
end

local function where(rows, field, value)
  local list = {}
  for _, r in ipairs(rows) do
    if r[field] == value then list[#list + 1] = r end
  end
  return list
end

local function legend(page, drafters)
  local x = LEFT
  for i, name in ipairs(drafters) do
    local color = COLORS[(i - 1) % #COLORS + 1]
    page:add('<line x1="%.1f" y1="44" x2="%.1f" y2="44" stroke="%s" stroke-width="3"/>', x, x + 22, color)
    local label = short(name)
    page:text(x + 28, 48, label)
    x = x + 28 + 7.2 * #label + 26
  end
  page:text(x, 48, "band: quartiles   dashed: predicted from costs", 'class="small"')
end

--- The picture of summary rows; title: what was measured.
---@return string
function svg.render(rows, title)
  rows = where(rows, "family", "all")
  local drafters, temperatures = distinct(rows, "drafter"), distinct(rows, "temperature")
  local page = setmetatable({ out = {} }, Page)
  local axis = x_axis(rows)
  local width, height = LEFT + 2 * axis.width + GAP + 24, TOP + #temperatures * (PLOT_H + BELOW + 24)
  page:add('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d">', width, height, width, height)
  page.out[#page.out + 1] = STYLE
  page:add('<rect width="%d" height="%d" fill="white"/>', width, height)
  page:text(LEFT, 24, title, 'class="head"')
  legend(page, drafters)
  local scales = { y_axis(rows, { "acceptance_length", "acceptance_length_low", "acceptance_length_high" }, 1),
    y_axis(rows, { "speedup", "speedup_low", "speedup_high", "predicted" }, 1) }
  for t, temperature in ipairs(temperatures) do
    local top = TOP + 14 + (t - 1) * (PLOT_H + BELOW + 24)
    local note = #temperatures > 1 and (", temperature %g"):format(temperature) or ""
    for p, name in ipairs { "acceptance length, tokens a step", "speed-up over plain decoding" } do
      local left = LEFT + (p - 1) * (axis.width + GAP)
      local plot = setmetatable({ page = page, axis = axis, scale = scales[p], left = left, top = top }, Plot)
      plot:frame(name .. note)
      for i, drafter in ipairs(drafters) do
        local own = where(where(rows, "drafter", drafter), "temperature", temperature)
        plot:series(own, COLORS[(i - 1) % #COLORS + 1], p == 1 and "acceptance_length" or "speedup", p == 2 and "predicted" or nil,
          (i - (#drafters + 1) / 2) * 12)
      end
    end
  end
  page.out[#page.out + 1] = "</svg>\n"
  return table.concat(page.out, "\n")
end

return svg
