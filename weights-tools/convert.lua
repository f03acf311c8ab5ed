--- mav weights convert: a Hugging Face directory -> packs, one a rank.
---
--- The source is read once, in blocks of a few million elements, whatever its size. What is written survives kill -9: the same command
--- goes on where the last one was, and the packs are the same to the byte. The work is in slices.lua (what the rows become), shard.lua
--- (which rank gets which) and sink.lua (the packs); what is to be done is a plan (plan.lua), which recipes change (recipe.lua).
local cli = require "mav.cli"
local default = require "mav.weights_tools.recipes.default"
local errors = require "mav.weights_tools.errors"
local fault = require "mav.maverick.fault"
local mav = require "mav"
local plan = require "mav.weights_tools.plan"
local reader = require "mav.maverick.reader"
local recipe = require "mav.weights_tools.recipe"
local shard = require "mav.weights_tools.shard"
local show = require "mav.weights_tools.show"
local sink = require "mav.weights_tools.sink"
local slices = require "mav.weights_tools.slices"
local source = require "mav.weights_tools.source"

local convert = {}

local OPTIONS = { dtype = true, ranks = true, recipe = true, compress = true, fresh = true, verify = true, progress = true,
  activations = true, errors = true, chunk_bytes = true, sync_bytes = true }
local STATE = "/conversion.part.json" -- beside unfinished packs: what was measured, and of which source

-- ---- what is to be done --------------------------------------------------------------------------------------------------

--- The items of the packs, and for every entry the numbers of its own: entry.item, entry.scale_item.
local function items_of(p)
  local items, seen = {}, {}
  local function add(item)
    if seen[item.name] then fault.raise("INVALID", p.dir, "two tensors are named %s", item.name) end
    seen[item.name], items[#items + 1] = true, item
    return #items
  end
  for _, entry in ipairs(p) do
    local scale, cut = slices.scale_shape(entry), shard.of(entry.key, entry.shape, p.config)
    if not scale and entry.act ~= "none" then fault.raise("INVALID", p.dir, "%s: act %s needs a scale", entry.name, entry.act) end
    entry.item = add { name = entry.name, dtype = entry.dtype, shape = entry.shape, layout = entry.layout, compress = entry.compress,
      cut = cut, scale = scale and entry.name .. ".scale" or nil, act = entry.act,
      in_scale = entry.act == "static" and entry.in_scale or nil }
    if scale then
      entry.scale_item = add { name = entry.name .. ".scale", dtype = "f32", shape = scale, layout = "row", act = "none", is_scale = true,
        cut = shard.of_scale(cut, scale) }
    end
  end
  return items
end

--- Names of the items whose chunks may be compressed, for meta; nil: none.
local function compressed(items)
  local names
  for _, item in ipairs(items) do
    if item.compress then
      names = names or {}
      names[#names + 1] = item.name
    end
  end
  return names
end
convert.compressed = compressed

local function describe_model(c)
  return { layers = c.layers, hidden = c.hidden, heads = c.heads, kv_heads = c.kv_heads, head_dim = c.head_dim, experts = c.experts,
    expert_size = c.expert_size, dense_size = c.dense_size, vocab = c.vocab }
end

--- The plan of a conversion: entries (plan.lua) after the recipes, items, meta and the packs' tensors.
local function prepare(src, options)
  local r = recipe.read(options.recipe)
  local p = plan.read(src, { names = r and r.value.names, compress = options.compress == "lz4" })
  p.dtype, p.ranks, p.all_errors = options.dtype or "keep", options.ranks or 1, options.errors == "all"
  default(p)
  if options.activations then require("mav.weights_tools.activations").apply(p, options.activations) end
  if r then recipe.apply(r, p) end
  local items = items_of(p)
  local meta = { source = source.describe(src), dtype = p.dtype, model = describe_model(p.config), kv = p.kv, shards = sink.shards(items),
    lz4 = compressed(items), recipe = r and { name = r.where, text = r.text } or nil,
    quantization = options.activations and { activations = options.activations } or nil }
  return p, items, meta
end

local function source_bytes(p)
  local total = 0
  for _, entry in ipairs(p) do total = total + slices.bytes(entry) end
  return total
end

--- Seconds that a whole conversion takes, from the first block of the largest entry; writing is not in it.
local function estimate(p)
  local function work(entry) return slices.bytes(entry) * (entry.dtype == "f8" and 2 or 1) end
  local largest = p[1]
  for _, entry in ipairs(p) do
    if work(entry) > work(largest) then largest = entry end
  end
  local STOP, share, t0, t1 = {}, 0, mav.now(), nil
  local ok, err = pcall(slices.run, largest, p.files, function(_, _, t)
    t1 = mav.now()
    share = t:count()
    error(STOP)
  end, largest.dtype == "f8" and errors.new(slices.elements(largest)) or nil)
  if not ok and err ~= STOP then error(err, 0) end
  return (t1 - t0) * (slices.elements(largest) / share) * source_bytes(p) / slices.bytes(largest), largest.name
end

--- What a conversion would do, as a table: tensors, packs, bytes, seconds. Nothing is written.
function convert.plan(src, options)
  return fault.catch(function()
    local p, items, _ = prepare(src, options)
    local ranks = sink.tensors(items, p.ranks, src)
    local report = { source = src, ranks = p.ranks, dtype = p.dtype, tensors = {}, packs = {}, source_bytes = source_bytes(p) }
    for i, entry in ipairs(p) do
      local own = ranks[1][entry.item]
      local bytes = sink.bytes { own, entry.scale_item and ranks[1][entry.scale_item] or nil }
      report.tensors[i] = { name = entry.name, from = entry.source, dtype = entry.dtype, layout = entry.layout, shape = entry.shape,
        rank_shape = own.shape, rank_bytes = bytes, scale = entry.scale_item and items[entry.scale_item].shape or nil,
        act = entry.act, in_scale = entry.in_scale, merged = entry.map ~= nil or nil, compress = entry.compress or nil,
        cut = items[entry.item].cut and items[entry.item].cut.by or nil }
    end
    for rank = 0, p.ranks - 1 do
      report.packs[rank + 1] = { file = sink.path("", rank, p.ranks):sub(2), bytes = sink.bytes(ranks[rank + 1]) }
    end
    report.seconds, report.measured_on = estimate(p)
    return report
  end)
end

-- ---- doing it ---------------------------------------------------------------------------------------------------------------

--- What an earlier run left: its errors by name; or nothing. Raises when it was of another source.
local function earlier(out, meta, fresh)
  if fresh or not reader.exists(out .. STATE) then return {} end
  local state = reader.read_json(out .. STATE)
  if type(state.source) ~= "table" or type(state.source.files) ~= "table" or type(state.errors) ~= "table" then return {} end
  if state.source.dir == meta.source.dir then
    source.check(state.source, "since the conversion in " .. out .. " began", "; --fresh starts it over")
  end
  return state.errors
end

local function convert_entry(p, entry, s, measured, save, progress)
  local wants_scale = entry.scale_item and s:needs(entry.scale_item)
  if not s:needs(entry.item) and not wants_scale then return end
  local stats = entry.dtype == "f8" and not slices.keeps_codes(entry) and not measured[entry.name]
    and errors.new(slices.elements(entry), p.all_errors) or nil
  local count, rows = slices.rows(entry), 0
  local scale = slices.run(entry, p.files, function(group, first, t)
    s:rows(entry.item, group, first, t)
    rows = rows + #t
    progress(slices.bytes(entry) * (rows / count))
  end, stats)
  if stats then
    measured[entry.name] = stats:result(entry.name, entry.source)
    save() -- before the scale, which is what makes the entry whole
  end
  if wants_scale then s:whole(entry.scale_item, scale) end
end

local function verify(paths, progress)
  for _, path in ipairs(paths) do
    local pack = fault.check(mav.pack(path))
    for i, name in ipairs(pack:names()) do
      fault.check(pack:verify(name))
      if progress then progress(i, #pack, path) end
    end
    pack:close()
  end
end
convert.verify = verify

local function do_convert(src, out, options)
  local p, items, meta = prepare(src, options)
  sink.tensors(items, p.ranks, src) -- refuses before anything is made
  source.make_packs_directory(src, out)
  local measured = earlier(out, meta, options.fresh)
  local function save() source.write(out .. STATE, mav.json.encode { source = meta.source, errors = measured }) end
  local progress = options.progress or function() end
  local s <close> = sink.open(out, items, meta, p.ranks, { fresh = options.fresh, chunk_bytes = options.chunk_bytes,
    sync_bytes = options.sync_bytes, progress = function(done, total) progress(done, total, "checking what is there") end })
  local is_resumed, total, done, begun = s:is_resumed(), source_bytes(p), 0, mav.now()
  if options.fresh or not reader.exists(out .. STATE) then
    if options.fresh then measured = {} end
    save()
  end
  for _, entry in ipairs(p) do
    progress(done, total, entry.name)
    convert_entry(p, entry, s, measured, save, function(bytes) progress(done + bytes, total, entry.name) end)
    done = done + slices.bytes(entry)
  end
  progress(total, total, "finishing")
  source.check(meta.source, "while it was converted", "; the packs in " .. out .. " were left unfinished, --fresh starts over")
  source.copy_side_files(src, out)
  s:finish()
  local list = {}
  for _, entry in ipairs(p) do list[#list + 1] = measured[entry.name] end
  local result = { source = src, out = out, ranks = p.ranks, dtype = p.dtype, errors = mav.json.array(list), packs = {},
    source_bytes = total, bytes_written = s.written, seconds = mav.now() - begun, resumed = is_resumed }
  for rank = 0, p.ranks - 1 do result.packs[rank + 1] = sink.path(out, rank, p.ranks) end
  os.remove(out .. STATE)
  if options.verify then verify(result.packs, options.progress) end
  return result
end

--- Converts a Hugging Face directory into packs in the directory `out`.
---
---   options.dtype      "keep" (the default), "fp8": linear layers; "bf16", "f16", "f32": all
---   options.ranks      tensor-parallel packs (1)
---   options.recipe     a file, or what such a file returns (recipe.lua)
---   options.compress   "lz4" or "none" (the default)
---   options.fresh      starts over, replaces what is there
---   options.verify     reads all packs again at the end
---   options.progress   function(bytes done, bytes in all, what)
---   options.errors     "all": measures every element of large weights too, not one in sixteen
---   options.activations   a file of `mav weights calibrate`
---@param src string
---@param out string
---@param options table|nil
---@return table|nil report   packs, errors (of every weight that was quantized), bytes and seconds
---@return table|nil err
function convert.convert(src, out, options)
  options = options or {}
  require "mav.options"(options, OPTIONS, "convert")
  return fault.catch(do_convert, src, out, options)
end

-- ---- the command ---------------------------------------------------------------------------------------------------------

local EXAMPLE = [[
mav weights convert models/tiny-maverick /tmp/tiny --dtype fp8
mav weights convert Llama-4-Maverick packs --dtype fp8 --ranks 8 --plan]]

local function options_parser()
  local p = cli.parser("weights convert", "Converts a Hugging Face directory into packs, one a rank. Needs little memory; when it is "
    .. "interrupted, the same command goes on.", EXAMPLE)
  p:argument("source", "directory with config.json and safetensors"):argname("SRC")
  p:argument("out", "directory for the packs"):argname("OUT")
  p:option("--dtype", "fp8: linear layers, with a scale per output channel; bf16, f32; keep: as stored (default)"):argname("TYPE")
    :convert(cli.choice("keep", "fp8", "bf16", "f32")):default("keep")
  p:option("--ranks", "tensor-parallel packs (default: 1)"):argname("R"):convert(cli.integer(1, 1024)):default("1")
  p:option("--recipe", "a Lua file that changes the plan, as examples/09_convert.lua does"):argname("FILE.lua")
  p:option("--compress", "lz4: chunks that become a tenth smaller (default: none)"):argname("HOW"):convert(cli.choice("none", "lz4"))
    :default("none")
  p:option("--activations", "static scales of activations, from mav weights calibrate"):argname("FILE.json")
  p:flag("--plan", "say what would be done, and write nothing")
  p:flag("--fresh", "start over, and replace what is there")
  p:flag("--verify", "read all packs again at the end")
  p:option("--errors", "all: measure every element of large weights, not one in sixteen"):argname("all"):convert(cli.choice("all"))
  p:option("--report", "write the error of every quantized tensor"):argname("FILE.json")
  p:option("--svg", "draw it"):argname("FILE.svg")
  p:flag("--json", "print the result as JSON")
  p:option("--sync", "MiB between syncs: what a crash may cost (default: 256)"):argname("MIB"):convert(cli.integer(1, 1 << 20))
  return p
end

local function run(arg)
  local args = cli.parse(options_parser(), arg)
  local options = { dtype = args.dtype, ranks = args.ranks, recipe = args.recipe, compress = args.compress, fresh = args.fresh,
    verify = args.verify, errors = args.errors, activations = args.activations, sync_bytes = args.sync and args.sync << 20 }
  if args.plan then
    local report, err = convert.plan(args.source, options)
    if not report then cli.fail("%s", tostring(err)) end
    io.write(args.json and mav.json.encode(report, { indent = 2 }) .. "\n" or show.plan(report))
    return 0
  end
  local meter = show.meter(args.source)
  options.progress = meter.update
  local report, err = show.resumable(convert.convert, args.source, args.out, options)
  meter.finish()
  if not report then cli.fail("%s", tostring(err)) end
  if args.report then source.write(args.report, mav.json.encode(report, { indent = 2 }) .. "\n") end
  if args.svg then source.write(args.svg, errors.svg(report.errors, ("%s in FP8, a scale per output channel"):format(args.source))) end
  io.write(args.json and mav.json.encode(report, { indent = 2 }) .. "\n" or show.result(report))
  return 0
end

convert.summary, convert.run = "packs of a Hugging Face directory", run
return convert
