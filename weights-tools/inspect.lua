--- mav weights inspect: what is in a checkpoint, a pack or a GGUF file; and the values of one tensor.
---
--- Without --tensor headers alone are read, so it takes milliseconds whatever the size.
local cli = require "mav.cli"
local config = require "mav.maverick.config"
local fault = require "mav.maverick.fault"
local mav = require "mav"
local reader = require "mav.maverick.reader"
local show = require "mav.weights_tools.show"
local store = require "mav.weights_tools.store"
local values = require "mav.weights_tools.values"

local inspect = {}

local BINS = 24
local NAMED_MAX = 6

-- ---- the tree ----------------------------------------------------------------------------------------------------------

--- "model.layers.3.mlp.x" -> "model.layers.", 3, "mlp.x"
local function split(name)
  local prefix, layer, rest = name:match "^(.-layers%.)(%d+)%.(.*)$"
  if not prefix then prefix, layer, rest = name:match "^(.-blk%.)(%d+)%.(.*)$" end
  if not prefix then return nil, nil, name end
  return prefix, math.tointeger(tonumber(layer)), rest
end

--- Lines of a layer, or of what belongs to none: experts that are alike are one line.
local function add_line(group, label, entry)
  local label_of_all = label:gsub("experts%.%d+%.", "experts.*.")
  local key = table.concat({ label_of_all, entry.dtype, fault.shape(entry.shape), entry.layout, entry.act or "", entry.unreadable or "" },
    "|")
  local line = group.by_key[key]
  if not line then
    line = { label = label_of_all, entry = entry, count = 0, bytes = 0, stored = 0, key = key }
    group.by_key[key], group[#group + 1] = line, line
  end
  line.count, line.bytes, line.stored = line.count + 1, line.bytes + entry.bytes, line.stored + entry.stored
  group.bytes, group.stored = group.bytes + entry.bytes, group.stored + entry.stored
end

--- Groups in the order of the files: of a layer (prefix, layer), or without. Layers that are alike are one group, with all their numbers.
local function groups_of(s)
  local groups, by_name = {}, {}
  for _, name in ipairs(s.names) do
    local prefix, layer, rest = split(name)
    local key = prefix and prefix .. layer or ""
    local group = by_name[key]
    if not group then
      group = { prefix = prefix, layers = layer and { layer }, by_key = {}, bytes = 0, stored = 0 }
      by_name[key], groups[#groups + 1] = group, group
    end
    add_line(group, rest, s.entries[name])
  end
  local merged, by_content = {}, {}
  for _, group in ipairs(groups) do
    local keys = {}
    for i, line in ipairs(group) do keys[i] = line.key .. line.count end
    table.sort(keys)
    local content = (group.prefix or "") .. "\n" .. table.concat(keys, "\n")
    local other = group.layers and by_content[content]
    if other then
      table.insert(other.layers, group.layers[1])
      other.bytes, other.stored = other.bytes + group.bytes, other.stored + group.stored
    else
      by_content[content], merged[#merged + 1] = group, group
    end
  end
  for _, group in ipairs(merged) do
    if group.layers then table.sort(group.layers) end
  end
  return merged
end

--- "0-2, 4", "1, 3, ..., 47"
local function ranges(list)
  local step = #list > 2 and list[2] - list[1]
  for i = 3, #list do
    if list[i] - list[i - 1] ~= step then step = nil break end
  end
  if step == 1 then return ("%d-%d"):format(list[1], list[#list]) end
  if step and #list > 3 then return ("%d, %d, ..., %d"):format(list[1], list[2], list[#list]) end
  local words = {}
  for i, n in ipairs(list) do words[i] = i <= NAMED_MAX and tostring(n) or nil end
  if #list > NAMED_MAX then words[#words + 1] = "..." end
  return table.concat(words, ", ")
end

local function note_of(entry)
  local words = {}
  if entry.layout ~= "row" then words[#words + 1] = entry.layout end
  if entry.cut then words[#words + 1] = "cut by " .. entry.cut.by end
  if entry.copies > 1 then words[#words + 1] = ("%d copies"):format(entry.copies) end
  if entry.act and entry.act ~= "none" then words[#words + 1] = "activations " .. entry.act end
  if entry.stored < entry.bytes then words[#words + 1] = ("lz4, %.0f%%"):format(100 * entry.stored / entry.bytes) end
  if entry.unreadable then words[#words + 1] = entry.unreadable end
  return table.concat(words, ", ")
end

local function tree_text(s)
  local rows = {}
  for _, group in ipairs(groups_of(s)) do
    local count = group.layers and #group.layers or 1
    if group.layers then
      rows[#rows + 1] = { ("%s%s%s"):format(group.prefix, ranges(group.layers), count > 1 and (" (%d alike)"):format(count) or ""), "", "",
        show.bytes(group.bytes) .. (count > 1 and (", %s each"):format(show.bytes(group.bytes / count)) or ""), "" }
    end
    for _, line in ipairs(group) do
      rows[#rows + 1] = { (group.layers and "  " or "") .. line.label, line.entry.dtype, fault.shape(line.entry.shape),
        show.bytes(line.bytes / line.count) .. (line.count > 1 and (" x %d"):format(line.count) or ""), note_of(line.entry) }
    end
  end
  local widths, out = { 0, 0, 0, 0 }, {}
  for _, row in ipairs(rows) do
    for i = 1, 4 do widths[i] = math.max(widths[i], #row[i]) end
  end
  for _, row in ipairs(rows) do
    for i = 1, 4 do row[i] = row[i] .. (" "):rep(widths[i] - #row[i]) end
    out[#out + 1] = table.concat(row, "  "):gsub("%s+$", "")
  end
  return table.concat(out, "\n")
end

-- ---- totals and what is said of the whole -----------------------------------------------------------------------------------

local function totals_of(s)
  local totals = { tensors = #s.names, bytes = 0, stored = 0, elements = 0, dtypes = {} }
  for _, name in ipairs(s.names) do
    local entry = s.entries[name]
    local E, N, K = s:geometry(name)
    totals.bytes, totals.stored, totals.elements = totals.bytes + entry.bytes, totals.stored + entry.stored, totals.elements + E * N * K
    local of = totals.dtypes[entry.dtype] or { tensors = 0, bytes = 0 }
    totals.dtypes[entry.dtype] = of
    of.tensors, of.bytes = of.tensors + 1, of.bytes + entry.bytes
  end
  return totals
end

local KINDS = { hf = "Hugging Face directory", safetensors = "safetensors file", pack = "pack", packs = "packs", gguf = "GGUF file" }

local function kind_text(s)
  if s.kind == "pack" then return ("pack, rank %d of %d"):format(s.rank, s.ranks) end
  if s.kind == "packs" then return s.ranks == 1 and "pack of one rank" or ("packs of %d ranks"):format(s.ranks) end
  return KINDS[s.kind]
end

--- The model of a directory's config.json, or of a GGUF file, in a line; nil: none that is understood.
local function model_text(s)
  if s.kind ~= "gguf" and not reader.exists(s.path .. "/config.json") then return nil end
  local c = config.read(s.path)
  if not c then return nil end
  local moe = 0
  for i = 1, c.layers do moe = moe + (c.is_moe[i] and 1 or 0) end
  return ("%d layers, hidden %d, heads %d/%d of %d, %d experts in %d layers, vocabulary %d%s"):format(c.layers, c.hidden, c.heads,
    c.kv_heads, c.head_dim, c.experts, moe, c.vocab, c.quant and ", " .. c.quant.name or "")
end

local function origin_text(meta)
  if type(meta) ~= "table" or type(meta.source) ~= "table" then return nil end
  return ("converted from %s%s%s"):format(tostring(meta.source.dir), meta.dtype and ", dtype " .. tostring(meta.dtype) or "",
    type(meta.recipe) == "table" and ", recipe " .. tostring(meta.recipe.name) or "")
end

local function summary_text(s)
  local totals, words = totals_of(s), {}
  for dtype, of in pairs(totals.dtypes) do words[#words + 1] = ("%s %s in %d"):format(dtype, show.bytes(of.bytes), of.tensors) end
  table.sort(words)
  local packed = totals.stored < totals.bytes and (", stored in %s"):format(show.bytes(totals.stored)) or ""
  local unit = totals.elements < 1e9 and 1e6 or 1e9
  return ("%d tensors, %.4g %s elements, %s%s (%s), in %d file%s of %s"):format(totals.tensors, totals.elements / unit,
    unit == 1e6 and "million" or "billion", show.bytes(totals.bytes), packed, table.concat(words, "; "), #s.files,
    #s.files == 1 and "" or "s", show.bytes(s.bytes))
end

local function describe(s)
  local lines = { ("%s: %s"):format(s.path, kind_text(s)) }
  lines[#lines + 1] = model_text(s)
  lines[#lines + 1] = origin_text(s.meta)
  lines[#lines + 1] = ""
  lines[#lines + 1] = tree_text(s)
  lines[#lines + 1] = ""
  lines[#lines + 1] = summary_text(s)
  return table.concat(lines, "\n") .. "\n"
end

local function entry_table(entry)
  return { name = entry.name, dtype = entry.dtype, shape = mav.json.array(entry.shape), layout = entry.layout, bytes = entry.bytes,
    stored = entry.stored, scale = entry.scale, act = entry.act ~= "none" and entry.act or nil, in_scale = entry.in_scale,
    file = entry.file, cut = entry.cut and entry.cut.by, copies = entry.copies > 1 and entry.copies or nil, unreadable = entry.unreadable }
end

--- All that is known without reading a value: path, kind, ranks, files, tensors, totals, meta.
---@param path string
---@return table|nil report
---@return table|nil err
function inspect.inspect(path)
  return fault.catch(function()
    local s = store.open(path)
    local tensors = {}
    for i, name in ipairs(s.names) do tensors[i] = entry_table(s.entries[name]) end
    return { path = s.path, kind = s.kind, rank = s.rank, ranks = s.ranks, bytes = s.bytes, files = mav.json.array(s.files),
      tensors = mav.json.array(tensors), totals = totals_of(s), meta = s.meta }
  end)
end

-- ---- a tensor -----------------------------------------------------------------------------------------------------------------

local function not_there(s, name)
  local near = {}
  for _, other in ipairs(s.names) do
    if other:find(name, 1, true) then near[#near + 1] = other end
  end
  local some = table.concat(near, ", ", 1, math.min(#near, NAMED_MAX)) .. (#near > NAMED_MAX and (", ... (%d)"):format(#near) or "")
  fault.raise("NOTFOUND", s.path, "no tensor %s%s", name, #near > 0 and "; there are " .. some or "; `mav weights inspect` lists the names")
end

local function pass(s, name, into, label, progress)
  local done, entry = 0, s.entries[name]
  local E, N, K = s:geometry(name)
  s:each_block(name, function(group, first, last)
    local x = s:values(name, group, first, last)
    into:add(x)
    x:close()
    done = done + (last - first) * K
    progress(entry.bytes * done // (E * N * K), entry.bytes, label)
    collectgarbage "step"
  end)
end

--- Statistics of a tensor's values, scale applied: entry, stats (values.lua) and histogram; and of its scale, where there is one.
---@param path string
---@param name string
---@param options table|nil   bins (24), progress
---@return table|nil report
---@return table|nil err
function inspect.tensor(path, name, options)
  options = options or {}
  local progress = options.progress or function() end
  return fault.catch(function()
    local s = store.open(path)
    local entry = s.entries[name] or not_there(s, name)
    local report = entry_table(entry)
    local stats = values.new()
    pass(s, name, stats, "reading", progress)
    report.stats = stats:result()
    if report.stats.min then
      local h = values.histogram(report.stats, report.stats.min < report.stats.max and (options.bins or BINS) or 1)
      pass(s, name, h, "counting", progress)
      report.histogram, report.bars = h:result(), h:text()
    end
    if entry.scale then
      local of = values.new()
      pass(s, entry.scale, of, "scales", progress)
      report.scales = of:result()
      report.scales.shape = s.entries[entry.scale].shape
    end
    return report
  end)
end

local function stats_text(r)
  local words = { ("%d values"):format(r.count) }
  if r.mean then words[#words + 1] = ("min %.6g, max %.6g, mean %.6g, std %.6g"):format(r.min, r.max, r.mean, r.std) end
  words[#words + 1] = ("%d zero (%.2f%%)"):format(r.zeros, 100 * r.zeros / math.max(r.count, 1))
  if r.nan > 0 then words[#words + 1] = ("%d NaN"):format(r.nan) end
  if r.inf > 0 then words[#words + 1] = ("%d infinite"):format(r.inf) end
  return table.concat(words, ", ")
end

local function tensor_text(r)
  local lines = { ("%s: %s %s, layout %s, %s%s%s%s"):format(r.name, r.dtype, fault.shape(r.shape), r.layout, show.bytes(r.bytes),
    r.stored < r.bytes and (", stored in %s"):format(show.bytes(r.stored)) or "", r.file and ", in " .. r.file or "",
    r.cut and ", cut by " .. r.cut or "") }
  if r.scales then
    lines[#lines + 1] = ("scale %s %s: %s"):format(r.scale, fault.shape(r.scales.shape), stats_text(r.scales))
  end
  if r.act then
    lines[#lines + 1] = ("activations are rounded: %s%s"):format(r.act, r.in_scale and (", scale %.6g"):format(r.in_scale) or "")
  end
  lines[#lines + 1] = stats_text(r.stats) .. (r.scales and " (codes times scale)" or "")
  lines[#lines + 1] = r.bars
  return table.concat(lines, "\n") .. "\n"
end

-- ---- the command --------------------------------------------------------------------------------------------------------------

local EXAMPLE = [[
mav weights inspect models/tiny-maverick
mav weights inspect packs --tensor layers.1.expert_gate
mav weights inspect packs/model-00000-of-00008.mav --json | python3 -m json.tool]]

local function run(arg)
  local p = cli.parser("weights inspect", "Lists what a Hugging Face directory, a safetensors file, a pack, a directory of packs or a GGUF "
    .. "file holds: names, types, shapes, layouts, sizes. Layers and experts that are alike are shown once. With --tensor, the values of "
    .. "one.", EXAMPLE)
  p:argument("path", "a directory or a file"):argname("PATH")
  p:option("--tensor", "range, mean, spread and a histogram of one tensor's values"):argname("NAME")
  p:option("--bins", "of the histogram (default: 24)"):argname("N"):convert(cli.integer(1, 1000))
  p:flag("--json", "all tensors, one by one, as JSON")
  local args = cli.parse(p, arg)
  local report, err
  if args.tensor then
    local meter = show.meter(args.tensor)
    report, err = inspect.tensor(args.path, args.tensor, { bins = args.bins, progress = meter.update })
    meter.finish()
    if not report then cli.fail("%s", tostring(err)) end
    if args.json then report.bars = nil else io.write(tensor_text(report)) end
  elseif args.json then
    report, err = inspect.inspect(args.path)
    if not report then cli.fail("%s", tostring(err)) end
  else
    local text
    text, err = fault.catch(function() return describe(store.open(args.path)) end)
    if not text then cli.fail("%s", tostring(err)) end
    io.write(text)
  end
  if args.json then io.write(mav.json.encode(report, { indent = 2 }), "\n") end
  return 0
end

inspect.summary, inspect.run = "what a checkpoint, a pack or a GGUF file holds", run
return inspect
