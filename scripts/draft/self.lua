--- Self-drafting: some of the model's own layers propose for all of them. Nothing to train, nothing more to load. Device drafter.
---
---     require("mav.draft.self")(2)                      every 2nd layer: 1, 3, 5, ...
---     require("mav.draft.self") { layers = { 1, 2, 8 } }
---     require("mav.draft.self") { stop_at = 4 }         the first four, then the head: early exit
---
--- The cache is the model's: committed positions hold what all layers computed, and a draft's keys lie in slots that are not
--- committed, where verification overwrites them.
---
--- Sources: Draft & Verify (layer skipping): arXiv 2309.08168; LayerSkip (early exit): arXiv 2404.16710.
local check_keys = require "mav.options"

local OPTIONS = { every = true, layers = true, stop_at = true }

local Drafter = { __name = "mav.draft.self", name = "self", kind = "device" }
Drafter.__index = Drafter

function Drafter:__tostring() return "self (" .. self.text .. ")" end

--- The layers' numbers in a model with `count` of them.
function Drafter:choose(count)
  local list, o = {}, self.options
  for i = 1, count do
    local runs = o.every and (i - 1) % o.every == 0 or o.stop_at and i <= o.stop_at
    if runs then list[#list + 1] = i end
  end
  if o.layers then table.move(o.layers, 1, #o.layers, 1, list) end
  local last = list[#list]
  if last > count or (o.stop_at or 0) > count then
    error(("draft.self: layer %d of a model with %d"):format(math.max(last, o.stop_at or 0), count), 0)
  end
  return list
end

function Drafter:layers() return {} end

local Bound = {}
Bound.__index = Bound

function Drafter:bind(loop)
  return setmetatable({ loop = loop, options = { layers = self:choose(loop.model.config.layers), fused = loop.fused } }, Bound)
end

function Bound:draft(step, k)
  local loop = self.loop
  for d = 1, k do
    local rows = loop:level(d - 1)
    step:choose(loop.model:forward(rows, loop.kv, self.options), rows, d)
  end
end

local function positive(value) return math.type(value) == "integer" and value >= 1 end

local function check_layers(list)
  if type(list) ~= "table" or #list == 0 then error("draft.self: layers must be a list of layer numbers", 3) end
  for i, layer in ipairs(list) do
    if not positive(layer) or layer <= (list[i - 1] or 0) then
      error(("draft.self: layers[%d] is %s; ascending numbers from 1 on are allowed"):format(i, tostring(layer)), 3)
    end
  end
end

--- A number n is { every = n }. One of options.every, options.layers, options.stop_at.
---@param options integer|table
---@return table drafter
return function(options)
  if type(options) ~= "table" then options = { every = options } end
  check_keys(options, OPTIONS, "draft.self")
  local key = next(options)
  if not key or next(options, key) then error("draft.self: one of every, layers and stop_at is needed", 2) end
  if key == "layers" then
    check_layers(options.layers)
  elseif not positive(options[key]) then
    error(("draft.self: %s is %s; an integer from 1 on is allowed"):format(key, tostring(options[key])), 2)
  end
  local text = key == "every" and "one layer in " .. options.every or key == "stop_at" and "layers 1 to " .. options.stop_at
    or "layers " .. table.concat(options.layers, ", ")
  return setmetatable({ options = options, text = text }, Drafter)
end
