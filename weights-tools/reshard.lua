--- mav weights reshard: packs for another number of ranks, from the packs alone.
---
--- Rows are put together from the old ranks' parts as meta.shards says, block by block, and cut anew. Only bytes are moved, so the
--- result is what a conversion for that number of ranks would have written, to the byte.
local cli = require "mav.cli"
local convert = require "mav.weights_tools.convert"
local fault = require "mav.maverick.fault"
local mav = require "mav"
local shard = require "mav.weights_tools.shard"
local show = require "mav.weights_tools.show"
local sink = require "mav.weights_tools.sink"
local source = require "mav.weights_tools.source"
local whole = require "mav.weights_tools.whole"

local reshard = {}

local OPTIONS = { ranks = true, fresh = true, verify = true, compress = true, progress = true, chunk_bytes = true, sync_bytes = true }
local BLOCK = 16 << 20 -- bytes
local ROWS_MULTIPLE = 16 -- layouts want whole tiles

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
      whole.gather(packs, item, e, first, last, block)
      s:rows(i, e, first, block)
      progress((last - first) * K * width)
      collectgarbage() -- tensors are small to the collector, and large
    end
  end
end

local function do_reshard(dir, out, options)
  local packs = whole.open(dir)
  local items, ranks, total = whole.items(packs), options.ranks, 0
  local meta, lz4 = packs[1].meta, {}
  for _, name in ipairs(meta.lz4 or {}) do lz4[name] = true end
  for _, item in ipairs(items) do
    if options.compress then
      item.compress = options.compress == "lz4" and not item.is_scale
    else
      item.compress = lz4[item.name] or false -- also where no chunk of it became smaller
    end
  end
  meta.lz4 = convert.compressed(items)
  sink.tensors(items, ranks, dir)
  source.make_packs_directory(dir, out)
  for _, item in ipairs(items) do total = total + sink.bytes { item } end
  local progress, done, begun = options.progress or function() end, 0, mav.now()
  local s <close> = sink.open(out, items, meta, ranks, { fresh = options.fresh, chunk_bytes = options.chunk_bytes,
    sync_bytes = options.sync_bytes, progress = function(n, all) progress(n, all, "checking what is there") end })
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
  local result = { source = dir, out = out, ranks = ranks, packs = {}, source_bytes = total, bytes_written = s.written,
    resumed = is_resumed, seconds = mav.now() - begun }
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
  local report, err = show.resumable(reshard.reshard, args.source, args.out, { ranks = args.ranks, compress = args.compress,
    fresh = args.fresh, verify = args.verify, progress = meter.update })
  meter.finish()
  if not report then cli.fail("%s", tostring(err)) end
  io.write(args.json and mav.json.encode(report, { indent = 2 }) .. "\n" or show.result(report))
  return 0
end

reshard.summary, reshard.run = "packs for another number of ranks", run
return reshard
