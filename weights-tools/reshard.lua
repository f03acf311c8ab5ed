--- mav weights reshard: packs for another number of ranks, from the packs alone.
---
--- Rows are put together from the old ranks' parts as meta.shards says, block by block, and cut anew. Only bytes are moved, so the result is
--- what a conversion for that number of ranks would have written, to the byte.
local cli = require "mav.cli"
local convert = require "mav.weights_tools.convert"
local fault = require "mav.maverick.fault"
local layouts = require "mav.weights_tools.layouts"
local mav = require "mav"
local reader = require "mav.maverick.reader"
local shard = require "mav.weights_tools.shard"
local show = require "mav.weights_tools.show"
local sink = require "mav.weights_tools.sink"
local source = require "mav.weights_tools.source"

local reshard = {}

local OPTIONS = { ranks = true, fresh = true, verify = true, compress = true, progress = true, chunk_bytes = true, sync_bytes = true }
local BLOCK = 16 << 20 -- bytes
local ROWS_MULTIPLE = 16 -- layouts want whole tiles

--- The packs of a directory, in order of rank.
local function open_packs(dir)
  local first
  for ranks = 1, 1024 do
    if reader.exists(sink.path(dir, 0, ranks)) then
      if first then fault.raise("FORMAT", dir, "packs of %d and of %d ranks are there; keep those of one", first, ranks) end
      first = ranks
    end
  end
  if not first then fault.raise("NOTFOUND", dir, "no pack model-00000-of-NNNNN.mav is there") end
  local packs = {}
  for rank = 0, first - 1 do
    local path = sink.path(dir, rank, first)
    local pack = fault.check(mav.pack(path))
    if pack.rank ~= rank or pack.ranks ~= first then
      fault.raise("FORMAT", path, "is rank %d of %d by its header", pack.rank, pack.ranks)
    end
    packs[rank + 1] = pack
    if mav.json.encode(pack.meta) ~= mav.json.encode(packs[1].meta) then
      fault.raise("FORMAT", path, "is of another conversion than rank 0")
    end
  end
  return packs
end

--- The whole tensors that the packs are parts of, as items of a sink.
local function items_of(packs, compress)
  local items, scales, names = {}, {}, packs[1]:names()
  local shards = packs[1].meta.shards
  if type(shards) ~= "table" then fault.raise("FORMAT", packs[1].path, "meta has no shards: how the tensors are cut is not known") end
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
    items[i] = { name = name, dtype = info.dtype, shape = shape, layout = info.layout, scale = info.scale, act = info.act, in_scale = info.in_scale,
      compress = compress == nil and info.stored < info.bytes or compress == "lz4", is_scale = is_scale, cut = cut }
    local expected = shard.shape(cut, shape, #packs, is_scale)
    for _, pack in ipairs(packs) do
      local own = pack:info(name)
      if not own or own.dtype ~= info.dtype or own.layout ~= info.layout or mav.json.encode(own.shape) ~= mav.json.encode(expected) then
        fault.raise("FORMAT", pack.path, "tensor %s is not the part that meta.shards of rank 0 says", name)
      end
    end
  end
  return items
end

--- Rows [first, last) of a rank's group, as bytes (n, line), in rows.
local function part_rows(pack, item, group, own_rows, first, last, line)
  local t = fault.check(pack:read(item.name, ((group - 1) * own_rows + first) * line, (last - first) * line)):reshape { last - first, line }
  return layouts.unpack(item.layout, t)
end

--- Fills `block`, bytes, with rows [a, b) of a group of the whole tensor. What several ranks have is taken from the first of them.
local function gather(packs, item, group, a, b, block, width)
  local _, N, K = shard.geometry(item.shape, item.is_scale)
  local before = {}
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

local function move_item(packs, s, i, item, progress)
  if not s:needs(i) then return end
  local E, N, K = shard.geometry(item.shape, item.is_scale)
  local width = sink.WIDTH[item.dtype]
  local limit = math.max(ROWS_MULTIPLE, BLOCK // math.max(K * width, 1) // ROWS_MULTIPLE * ROWS_MULTIPLE)
  local work = mav.zeros { dtype = "u8", math.min(N, limit), K * width }
  for e = 1, E do
    for first = 0, N - 1, limit do
      local last = math.min(N, first + limit)
      local block = work:slice(1, 1, last - first)
      gather(packs, item, e, first, last, block, width)
      s:rows(i, e, first, block)
      progress((last - first) * K * width)
      collectgarbage() -- tensors are small to the collector, and large
    end
  end
end

local function do_reshard(dir, out, options)
  local packs = open_packs(dir)
  local items, ranks, total = items_of(packs, options.compress), options.ranks, 0
  local meta = packs[1].meta
  sink.tensors(items, ranks, dir)
  convert.make_directory(out)
  for _, item in ipairs(items) do total = total + sink.bytes { item } end
  local progress, done, begun = options.progress or function() end, 0, mav.now()
  local s <close> = sink.open(out, items, meta, ranks, { fresh = options.fresh, chunk_bytes = options.chunk_bytes, sync_bytes = options.sync_bytes,
    progress = function(n, all) progress(n, all, "checking what is there") end })
  local is_resumed = s:is_resumed()
  for i, item in ipairs(items) do
    local before = done
    move_item(packs, s, i, item, function(bytes)
      done = done + bytes
      progress(done, total, item.name)
    end)
    done = before + sink.bytes { item }
  end
  source.copy_side_files(dir, out)
  s:finish()
  local result = { source = dir, out = out, ranks = ranks, packs = {}, source_bytes = total, bytes_written = s.written, resumed = is_resumed,
    seconds = mav.now() - begun }
  for rank = 0, ranks - 1 do result.packs[rank + 1] = sink.path(out, rank, ranks) end
  if options.verify then convert.verify(result.packs, options.progress) end
  return result
end

--- Cuts the packs of a directory anew. options: ranks; compress ("lz4", "none"; nil: as they are), fresh, verify, progress as of convert.
---@return table|nil report
---@return table|nil err
function reshard.reshard(dir, out, options)
  require "mav.options"(options, OPTIONS, "reshard")
  return fault.catch(do_reshard, dir, out, options)
end

-- ---- the command ---------------------------------------------------------------------------------------------------------

local function run(arg)
  local p = cli.parser("weights reshard", "Cuts packs for another number of ranks, without the checkpoint they came from.",
    "mav weights reshard packs packs4 --ranks 4")
  p:argument("source", "directory with packs"):argname("IN")
  p:argument("out", "directory for the new ones"):argname("OUT")
  p:option("--ranks", "tensor-parallel packs"):argname("R"):convert(cli.integer(1, 1024)):count(1)
  p:option("--compress", "lz4 or none (default: as they are)"):argname("HOW"):convert(cli.choice("none", "lz4"))
  p:flag("--fresh", "start over, and replace what is there")
  p:flag("--verify", "read all new packs again at the end")
  p:flag("--json", "print the result as JSON")
  local args = cli.parse(p, arg)
  local meter = show.meter(args.source)
  local report, err = reshard.reshard(args.source, args.out, { ranks = args.ranks, compress = args.compress, fresh = args.fresh,
    verify = args.verify, progress = meter.update })
  meter.finish()
  if not report then cli.fail("%s", tostring(err)) end
  io.write(args.json and mav.json.encode(report, { indent = 2 }) .. "\n" or show.result(report))
  return 0
end

reshard.summary, reshard.run = "packs for another number of ranks", run
return reshard
