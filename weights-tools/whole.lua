--- The packs of a directory as one model: the whole tensors that the ranks have parts of, and their rows put together again.
local fault = require "mav.maverick.fault"
local layouts = require "mav.weights_tools.layouts"
local mav = require "mav"
local reader = require "mav.maverick.reader"
local shard = require "mav.weights_tools.shard"
local sink = require "mav.weights_tools.sink"

local whole = {}

local RANKS_MAX = 1024

--- How many ranks' packs there are; nil: none. Two sets are refused.
function whole.ranks(dir)
  local found
  for ranks = 1, RANKS_MAX do
    if reader.exists(sink.path(dir, 0, ranks)) then
      if found then fault.raise("FORMAT", dir, "packs of %d and of %d ranks are there; keep those of one", found, ranks) end
      found = ranks
    end
  end
  return found
end

--- The packs of a directory, in order of rank, and of one conversion.
---@return table[] packs
function whole.open(dir)
  local ranks = whole.ranks(dir)
  if not ranks then fault.raise("NOTFOUND", dir, "no pack model-00000-of-NNNNN.mav is there") end
  local packs, meta = {}, nil
  for rank = 0, ranks - 1 do
    local path = sink.path(dir, rank, ranks)
    local pack = fault.check(mav.pack(path))
    if pack.rank ~= rank or pack.ranks ~= ranks then
      fault.raise("FORMAT", path, "is rank %d of %d by its header", pack.rank, pack.ranks)
    end
    packs[rank + 1] = pack
    local own = mav.json.encode(pack.meta)
    meta = meta or own
    if own ~= meta then fault.raise("FORMAT", path, "is of another conversion than rank 0") end
  end
  return packs
end

local function same_shape(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return true
end

--- The whole tensors that the packs are parts of: a list of name, dtype, shape, layout, scale, act, in_scale, compress (is any of it?),
--- is_scale, cut (shard.lua), bytes and stored (of all ranks), raw.
function whole.items(packs)
  local items, scales, names = {}, {}, packs[1]:names()
  local shards = packs[1].meta.shards
  if type(shards) ~= "table" and #packs > 1 then
    fault.raise("FORMAT", packs[1].path, "meta has no shards: how the tensors are cut is not known")
  end
  shards = type(shards) == "table" and shards or {}
  for _, name in ipairs(names) do
    local scale = packs[1]:info(name).scale
    if scale then scales[scale] = true end
  end
  for i, name in ipairs(names) do
    local info, cut = packs[1]:info(name), shard.parse(shards[name])
    local shape, is_scale = { table.unpack(info.shape) }, scales[name] or false
    if cut and cut.by == "columns" then
      shape[#shape] = shape[#shape] * #packs
    elseif cut then
      local rows = 0
      for _, part in ipairs(cut.parts) do rows = rows + part.rows end
      shape[shards[name].dim] = rows
    end
    local item = { name = name, dtype = info.dtype, shape = shape, layout = info.layout, scale = info.scale, act = info.act,
      in_scale = info.in_scale, compress = false, is_scale = is_scale, cut = cut, bytes = 0, stored = 0, raw = true }
    items[i] = item
    local expected = shard.shape(cut, shape, #packs, is_scale)
    for _, pack in ipairs(packs) do
      local own = pack:info(name)
      if not own or own.dtype ~= info.dtype or own.layout ~= info.layout or own.scale ~= info.scale
        or not same_shape(own.shape, expected) then
        fault.raise("FORMAT", pack.path, "tensor %s is not the part that meta.shards of rank 0 says", name)
      end
      item.bytes, item.stored, item.raw = item.bytes + own.bytes, item.stored + own.stored, item.raw and own.raw
      item.compress = item.compress or own.stored < own.bytes
    end
  end
  for _, pack in ipairs(packs) do
    if #pack ~= #names then fault.raise("FORMAT", pack.path, "has %d tensors, rank 0 has %d", #pack, #names) end
  end
  return items
end

--- Rows [first, last) of a rank's group, as bytes (n, line), in rows.
local function part_rows(pack, item, group, own_rows, first, last, line)
  local t = fault.check(pack:read(item.name, ((group - 1) * own_rows + first) * line, (last - first) * line))
  return layouts.unpack(item.layout, t:reshape { last - first, line })
end

--- Fills `block`, bytes, with rows [a, b) of a group (from 1) of the whole tensor. What several ranks have is taken from the first of
--- them. With a layout that is not "row", a and b are multiples of 16.
function whole.gather(packs, item, group, a, b, block)
  local _, N, K = shard.geometry(item.shape, item.is_scale)
  local width, before = sink.WIDTH[item.dtype], {}
  for rank = 0, item.cut and #packs - 1 or 0 do
    local pack = packs[rank + 1]
    local from, to = shard.columns(item.cut, K, rank, #packs)
    local own_rows = select(2, shard.geometry(pack:info(item.name).shape, item.is_scale))
    for i, range in ipairs(shard.rows(item.cut, N, rank, #packs)) do
      local first, last = math.max(range.first, a), math.min(range.last, b)
      if first < last and (item.cut == nil or item.cut.by == "columns" or before[i] ~= range.first) then
        local shift = range.at - range.first
        block:slice(1, first - a + 1, last - a):slice(2, from * width + 1, to * width)
          :copy_from(part_rows(pack, item, group, own_rows, first + shift, last + shift, (to - from) * width))
      end
      before[i] = range.first
    end
  end
end

return whole
