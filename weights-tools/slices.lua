--- The rows of an entry (plan.lua), block by block, as they go into a pack: read from the mapped files, merged by the recipe, cast or
--- quantized. A block is a few million elements, so that memory stays small however large the tensor is.
local fault = require "mav.maverick.fault"
local mav = require "mav"
local op = mav.op

local slices = {}

slices.ELEMENTS = 8 << 20 -- of a block
local ROWS_MULTIPLE = 16 -- layouts want whole tiles

local function source(files, part)
  local t = fault.check(files:get(part.name))
  return part.view and part.view(t) or t
end

--- Segments of rows: { group (from 1), first (row within the group, from 0), rows, open = function() -> (rows, K), part }.
local function segments(entry, files)
  local list, shape = {}, entry.shape
  if #shape == 3 then
    for e = 1, shape[1] do
      local part = #entry.parts > 1 and entry.parts[e] or entry.parts[1]
      list[e] = { group = e, first = 0, rows = shape[2], part = part, open = function()
        local t = source(files, part)
        return #entry.parts > 1 and t or t:select(1, e)
      end }
    end
    return list
  end
  local first = 0
  for i, part in ipairs(entry.parts) do
    list[i] = { group = 1, first = first, rows = part.shape[1], part = part, open = function()
      local t = source(files, part)
      return #part.shape == 1 and t:reshape { part.shape[1], 1 } or t
    end }
    first = first + part.shape[1]
  end
  return list
end

-- ---- scales of what is quantized already -----------------------------------------------------------------------------------

local function filled(value, shape) return mav.tensor(value, { dtype = "f32", shape = shape }) end
local function number(files, name) return fault.check(files:get(name)):to("f32"):reshape({ 1 }):get(1) end

local function copy_scale(part, files, place)
  local t, shape = fault.check(files:get(part.scale)), place.shape
  if part.scale_kind == "one" then
    place:copy_from(filled(number(files, part.scale), shape))
  elseif part.scale_kind == "rows" then
    place:copy_from(t:reshape(shape))
  elseif part.scale_kind == "experts" then
    local values = t:to("f32"):reshape { shape[1] }
    for e = 1, shape[1] do place:select(1, e):copy_from(filled(values:get(e), { shape[2] })) end
  else
    place:copy_from(t:reshape({ part.shape[1], part.shape[3] }):slice(2, part.first + 1, part.first + shape[2]))
  end
end

--- (N) or (E, N) f32.
local function stored_scales(entry, files)
  local rows = { table.unpack(entry.shape, 1, #entry.shape - 1) }
  local scale = mav.zeros { dtype = "f32", table.unpack(rows) }
  if #entry.parts == 1 then
    copy_scale(entry.parts[1], files, scale)
  elseif #entry.shape == 3 then
    for e, part in ipairs(entry.parts) do copy_scale(part, files, scale:select(1, e)) end
  else
    local first = 0
    for _, part in ipairs(entry.parts) do
      copy_scale(part, files, scale:slice(1, first + 1, first + part.shape[1]))
      first = first + part.shape[1]
    end
  end
  local flat = scale:reshape { 1, scale:count() }
  local sum, least = op.sum { x = flat * filled(0, { 1 }) }:get(1, 1), op.min { x = flat }:get(1, 1)
  if sum ~= 0 or least < 0 then
    fault.raise("RANGE", entry.parts[1].scale, "%s: scales must be finite and not negative", entry.name)
  end
  return scale
end

-- ---- blocks --------------------------------------------------------------------------------------------------------------------

local function is_quantized(entry) return entry.parts[1].scale ~= nil end

--- Do the codes of the files stay as they are?
function slices.keeps_codes(entry) return is_quantized(entry) and entry.dtype == "f8" and not entry.map end

--- Shape of the scale in the pack; nil: none. One number where the files have one, else one for every row.
function slices.scale_shape(entry)
  if slices.keeps_codes(entry) and #entry.parts == 1 and entry.parts[1].scale_kind == "one" then return { 1 } end
  if entry.dtype == "f8" then return { table.unpack(entry.shape, 1, #entry.shape - 1) } end
  return entry.act ~= "none" and { 1 } or nil -- activations are rounded, the weight is not
end

local function merge(entry, x, at)
  local shape = x.shape
  local y = entry.map(x, at)
  local mt = getmetatable(y)
  if not mt or mt.__name ~= "mav.tensor" then error(("map of %s returned a %s; a tensor is expected"):format(entry.name, type(y)), 0) end
  if #y.shape ~= 2 or y.shape[1] ~= shape[1] or y.shape[2] ~= shape[2] then
    error(("map of %s returned %s; %s is expected"):format(entry.name, fault.shape(y.shape), fault.shape(shape)), 0)
  end
  return y:to("f32"):contiguous()
end

--- Memory that the blocks of an entry share: buffers by name, for at most `rows` rows.
local Work = {}
Work.__index = Work

function Work:get(name, dtype, count)
  self.buffers[name] = self.buffers[name] or mav.zeros { dtype = dtype, self.rows, self.K }
  return self.buffers[name]:slice(1, 1, count)
end

--- The block in one piece; itself where it is in one.
function Work:dense(t) return t.is_contiguous and t or self:get("dense", t.dtype, #t):copy_from(t) end

--- The block as f32, or in the type of the files where that is enough. rows: scales of f8 sources.
local function values(entry, t, rows, at, work)
  local x
  if rows then
    x = work:get("wide", "f32", #t):copy_from(t)
    op.mul { a = x, b = rows, out = x }
  elseif entry.map then
    x = work:get("wide", "f32", #t):copy_from(t)
  else
    return work:dense(t)
  end
  return entry.map and merge(entry, x, at) or x
end

local function quantize(x, work, scale)
  local codes = work:get("codes", "f8", #x)
  op.quantize { x = x, y = codes, scale = scale }
  return codes
end

--- Runs over the blocks of an entry in the order of the pack: sink(group, first row, codes (n, K), scales (n) or nil). The tensors are the
--- block's; they are gone when sink returns. stats: an errors.new(), for weights that are quantized here.
---@return userdata|nil scale   whole, (N), (E, N) or (1), as the pack has it
function slices.run(entry, files, sink, stats)
  local K = #entry.shape == 1 and 1 or entry.shape[#entry.shape]
  local limit = math.max(ROWS_MULTIPLE, slices.ELEMENTS // K // ROWS_MULTIPLE * ROWS_MULTIPLE)
  local stored = is_quantized(entry) and stored_scales(entry, files)
  local keeps, quantizes = slices.keeps_codes(entry), entry.dtype == "f8"
  local N = #entry.shape == 3 and entry.shape[2] or entry.shape[1]
  local scale, work = nil, setmetatable({ rows = math.min(limit, N), K = K, buffers = {} }, Work)
  if quantizes and not keeps then scale = mav.zeros { dtype = "f32", (#entry.shape == 3 and entry.shape[1] or 1) * N } end
  for _, segment in ipairs(segments(entry, files)) do
    local whole = segment.open()
    for begin = 0, segment.rows - 1, limit do
      local count = math.min(limit, segment.rows - begin)
      local t, first = whole:slice(1, begin + 1, begin + count), segment.first + begin
      local row = (segment.group - 1) * N + first -- of all rows
      if keeps then
        sink(segment.group, first, work:dense(t))
      else
        local rows = stored and stored:reshape({ stored:count() }):slice(1, row + 1, row + count):reshape { count, 1 }
        local x = values(entry, t, rows, { name = entry.name, key = entry.key, layer = entry.layer, part = segment.part.name,
          expert = #entry.shape == 3 and segment.group or nil, first = first + 1, last = first + count }, work)
        if quantizes then
          local own = scale:slice(1, row + 1, row + count)
          local codes = quantize(x, work, own)
          if stats then stats:add(x, codes, own, segment.part.name, begin) end
          sink(segment.group, first, codes)
        else
          sink(segment.group, first, x.dtype == entry.dtype and x or work:get("cast", entry.dtype, count):copy_from(x))
        end
      end
      collectgarbage() -- tensors are small to the collector, and large
    end
  end
  if keeps then
    local part = entry.parts[1]
    return slices.scale_shape(entry)[1] == 1 and #entry.shape > 1 and #entry.parts == 1 and part.scale_kind == "one"
      and filled(number(files, part.scale), { 1 }) or stored
  end
  if quantizes then return scale:reshape(slices.scale_shape(entry)) end
  return entry.act ~= "none" and filled(1.0, { 1 }) or nil
end

--- Rows of all groups.
function slices.rows(entry)
  return #entry.shape == 3 and entry.shape[1] * entry.shape[2] or entry.shape[1]
end

function slices.elements(entry)
  local n = 1
  for _, size in ipairs(entry.shape) do n = n * size end
  return n
end

local WIDTH = { f32 = 4, bf16 = 2, f16 = 2, f8 = 1 }

--- Bytes of the files that an entry reads.
function slices.bytes(entry) return slices.elements(entry) * WIDTH[entry.parts[1].dtype] end

return slices
