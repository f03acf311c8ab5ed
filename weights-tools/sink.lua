--- One pack a rank, fed in one pass over the source: whole rows come in, every rank's part of them goes to its writer.
---
---   1. Rows of a tensor come in order, tensors in the order of the items. What a writer has from an earlier run is skipped.
---   2. A pack that is there under its final name and is what would be written is done; another one is not touched, unless fresh.
---   3. Until finish, nothing is there under the final names.
local fault = require "mav.maverick.fault"
local layouts = require "mav.weights_tools.layouts"
local mav = require "mav"
local shard = require "mav.weights_tools.shard"

local sink = {}

local WIDTH = { f32 = 4, bf16 = 2, f16 = 2, f8 = 1, i32 = 4, i64 = 8, u8 = 1 }
sink.WIDTH = WIDTH

local Sink = {}
Sink.__index = Sink

function sink.path(dir, rank, ranks) return ("%s/model-%05d-of-%05d.mav"):format(dir, rank, ranks) end

--- What the ranks' packs hold. item: name, dtype, shape (whole), layout, scale, act, in_scale, compress, is_scale, cut (shard.lua).
--- Raises what cannot be cut or laid out so.
---@return table[]   of every rank: the list that a writer takes
function sink.tensors(items, ranks, where)
  local list = {}
  for rank = 0, ranks - 1 do
    local own = {}
    for i, item in ipairs(items) do
      shard.check(item.cut, ranks, item.name, where)
      local shape = shard.shape(item.cut, item.shape, ranks, item.is_scale)
      local wrong = layouts.wrong(item.layout, item.dtype, shape[math.max(#shape - 1, 1)], shape[#shape])
      if wrong then fault.raise("UNSUPPORTED", where, "%s: %s", item.name, wrong) end
      own[i] = { name = item.name, dtype = item.dtype, shape = shape, layout = item.layout, scale = item.scale, act = item.act,
        in_scale = item.in_scale, compress = item.compress }
    end
    list[rank + 1] = own
  end
  return list
end

--- Bytes of a list of tensors.
function sink.bytes(tensors)
  local total = 0
  for _, t in ipairs(tensors) do
    local n = WIDTH[t.dtype]
    for _, size in ipairs(t.shape) do n = n * size end
    total = total + n
  end
  return total
end

--- meta.shards of the items.
function sink.shards(items)
  local shards = {}
  for _, item in ipairs(items) do shards[item.name] = shard.describe(item.cut, item.shape, item.is_scale) end
  return shards
end

local function same(a, b) return mav.json.encode(a) == mav.json.encode(b) end

--- Is this finished pack the one that would be written?
local function is_same(pack, meta, tensors)
  if #pack ~= #tensors or not same(pack.meta, meta) then return false end
  for i, name in ipairs(pack:names()) do
    local info, t = pack:info(name), tensors[i]
    if name ~= t.name or info.dtype ~= t.dtype or info.layout ~= t.layout or info.scale ~= t.scale or not same(info.shape, t.shape) then
      return false
    end
  end
  return true
end

local function open_writer(path, meta, tensors, rank, ranks, options)
  if not options.fresh and require("mav.maverick.reader").exists(path) then
    local pack = fault.check(mav.pack(path))
    local done = is_same(pack, meta, tensors)
    pack:close()
    if not done then
      fault.raise("STATE", path, "is there already, and is of another conversion; give another directory, or --fresh to replace it")
    end
    return nil
  end
  return fault.check(mav.pack_writer(path, { meta = meta, tensors = tensors, rank = rank, ranks = ranks, fresh = options.fresh,
    chunk_bytes = options.chunk_bytes, sync_bytes = options.sync_bytes, progress = options.progress }))
end

--- Opens a writer for every rank. options: fresh, chunk_bytes, sync_bytes, progress(done, total) while what is there is read again.
function sink.open(dir, items, meta, ranks, options)
  local self = setmetatable({ items = items, ranks = ranks, parts = {}, written = 0, work = {} }, Sink)
  local tensors = sink.tensors(items, ranks, dir)
  for rank = 0, ranks - 1 do
    local path = sink.path(dir, rank, ranks)
    local part = { rank = rank, path = path, tensors = tensors[rank + 1], next = #items + 1, begin = 0 }
    self.parts[rank + 1] = part
    part.writer = open_writer(path, meta, part.tensors, rank, ranks, options)
    if part.writer then part.next, part.begin = part.writer:next() end
  end
  return self
end

--- Does a rank still want bytes of item i?
function Sink:needs(i)
  for _, part in ipairs(self.parts) do
    if part.next <= i then return true end
  end
  return false
end

--- Has anything been taken up from an earlier run?
function Sink:is_resumed()
  for _, part in ipairs(self.parts) do
    if part.next > 1 or part.begin > 0 then return true end
  end
  return false
end

--- Bytes [from, from + bytes) of t's memory are bytes [at, at + bytes) of item i of this rank.
local function put(self, part, i, at, t, from, bytes)
  if bytes == 0 or part.next > i or (part.next == i and at + bytes <= part.begin) then return end
  assert(part.next == i and at <= part.begin, "rows out of order")
  local skip = part.begin - at
  fault.check(part.writer:put(i, t, from + skip, bytes - skip))
  self.written = self.written + bytes - skip
  part.next, part.begin = part.writer:next()
end

--- Columns [from, to) of t in one piece, in memory that is used again.
local function columns(self, t, from, to)
  local n, key = #t, t.dtype .. (to - from)
  local work = self.work[key]
  if not work or #work < n then
    self.work = { [key] = mav.zeros { dtype = t.dtype, n, to - from } }
    work = self.work[key]
  end
  return work:slice(1, 1, n):copy_from(t:slice(2, from + 1, to))
end

--- Rows [first, first + n) of a group (from 1; rows from 0): t (n, K) in rows, contiguous. K and its dtype may be bytes instead.
function Sink:rows(i, group, first, t)
  local item = self.items[i]
  local _, N, _ = shard.geometry(item.shape, item.is_scale)
  local n, K = table.unpack(t.shape)
  local width = WIDTH[t.dtype]
  for _, part in ipairs(self.parts) do
    if part.next <= i then
      local from, to = shard.columns(item.cut, K, part.rank, self.ranks)
      local own = (from > 0 or to < K) and columns(self, t, from, to) or t
      local line, rows = (to - from) * width, shard.shape(item.cut, item.shape, self.ranks, item.is_scale)
      local own_rows = select(2, shard.geometry(rows, item.is_scale))
      for _, range in ipairs(shard.rows(item.cut, N, part.rank, self.ranks)) do
        local a, b = math.max(range.first, first), math.min(range.last, first + n)
        if a < b then
          local at = ((group - 1) * own_rows + range.at + a - range.first) * line
          if item.layout == "row" then
            put(self, part, i, at, own, (a - first) * line, (b - a) * line)
          elseif not (part.next == i and at + (b - a) * line <= part.begin) then
            local laid = layouts.pack(item.layout, own:slice(1, a - first + 1, b - first))
            put(self, part, i, at, laid, 0, (b - a) * line)
            laid:close()
          end
        end
      end
    end
  end
end

--- A whole small tensor, (E, N) or (N): a scale.
function Sink:whole(i, t)
  local E, N, K = shard.geometry(self.items[i].shape, self.items[i].is_scale)
  local flat = t:contiguous():reshape { E, N, K }
  for e = 1, E do self:rows(i, e, 0, flat:select(1, e)) end
end

--- Gives the packs their names.
function Sink:finish()
  for _, part in ipairs(self.parts) do
    if part.writer then
      fault.check(part.writer:finish())
      part.writer:close()
      part.writer = nil
    end
  end
end

--- Leaves what is unfinished for the next run.
function Sink:close()
  for _, part in ipairs(self.parts) do
    if part.writer then part.writer:close() end
    part.writer = nil
  end
end

Sink.__close = Sink.close

return sink
