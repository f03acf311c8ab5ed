--- mav weights verify: are these packs whole, of one conversion, what config.json asks for, and what the checkpoint holds?
---
---   hashes     every chunk of every pack is read by all threads; what is damaged is named with pack, tensor and bytes
---   ranks      all are there, of one conversion; what every rank has is the same in all
---   complete   tensors and shapes as config.json asks; a type that a model may have; every FP8 weight with its scale
---   scales     finite, not negative
---   source     with --source: every weight of the checkpoint beside that of the packs. Bit for bit where it was not quantized; else how
---              large the error is, and whether it is as small as FP8 allows
---
--- One problem does not hide the next: all are listed. The exit status is 1 when there is one.
local cli = require "mav.cli"
local config = require "mav.maverick.config"
local fault = require "mav.maverick.fault"
local logical = require "mav.weights_tools.logical"
local maverick_packs = require "mav.maverick.packs"
local mav = require "mav"
local reader = require "mav.maverick.reader"
local show = require "mav.weights_tools.show"
local sink = require "mav.weights_tools.sink"
local store = require "mav.weights_tools.store"
local values = require "mav.weights_tools.values"
local whole = require "mav.weights_tools.whole"

local verify = {}

local OPTIONS = { source = true, hashes = true, progress = true }
local FLOATS = { f32 = true, bf16 = true, f16 = true }
local WORST_FP8, WORST_CAST = 20.0, 35.0 -- dB: e4m3 with a scale per row has 31; bf16 has 50
local SHOWN_MAX = 20 -- problems in text

local Report = {}
Report.__index = Report

function Report:problem(kind, text, ...)
  text = select("#", ...) > 0 and text:format(...) or text
  local key = text:gsub("^pack_%l+: ", "")
  if self.told[key] then return end -- damage is met by several checks
  self.told[key] = true
  self.problems[#self.problems + 1] = { kind = kind, text = text }
end

--- Calls f; a condition of the world becomes a problem. Returns f's result, or nil.
function Report:try(kind, f, ...)
  local result, err = fault.catch(f, ...)
  if err then self:problem(kind, "%s", tostring(err)) end
  return result
end

-- ---- packs ----------------------------------------------------------------------------------------------------------------

--- The ranks that the names of a directory speak of.
local function ranks_of(dir)
  for ranks = 1, 1024 do
    for rank = 0, math.min(1, ranks - 1) do -- the first may be missing
      local path = sink.path(dir, rank, ranks)
      if reader.exists(path) or reader.exists(path .. ".part") then return ranks end
    end
  end
end

local function open_packs(report, dir)
  local ranks = ranks_of(dir)
  if not ranks then fault.raise("NOTFOUND", dir, "no pack (model-00000-of-NNNNN.mav) is there") end
  report.ranks = ranks
  local packs = {}
  for rank = 0, ranks - 1 do
    local path = sink.path(dir, rank, ranks)
    local pack, err = mav.pack(path)
    if pack then
      packs[#packs + 1] = pack
      report.packs[#report.packs + 1] = { path = path, rank = rank, bytes = pack.bytes, tensors = #pack }
    elseif reader.exists(path .. ".part") then
      report:problem("ranks", "%s: the conversion did not finish; the same `mav weights convert` goes on with it", path)
    else
      report:problem("ranks", "%s", tostring(err))
    end
  end
  return packs
end

local function check_hashes(report, packs, progress)
  local total, done, begun = 0, 0, mav.now()
  for _, pack in ipairs(packs) do total = total + pack.bytes end
  for _, pack in ipairs(packs) do
    for _, name in ipairs(pack:names()) do
      local ok, err = pack:verify(name)
      if not ok then report:problem("hashes", "%s", tostring(err)) end
      done = done + pack:info(name).stored
      progress(done, total, "hashes")
    end
  end
  report.hashes = { bytes = done, seconds = mav.now() - begun }
end

--- What every rank has must be the same in all.
local function check_copies_of(report, packs, item, progress)
  local bytes, step = item.bytes // #packs, 16 << 20
  for first = 0, bytes - 1, step do
    local count, expected = math.min(step, bytes - first), nil
    for _, pack in ipairs(packs) do
      local text = fault.check(pack:read(item.name, first, count)):bytes()
      expected = expected or text
      if text ~= expected then
        report:problem("ranks", "%s: tensor %s is not the same as in rank 0", pack.path, item.name)
        break
      end
    end
    progress(count * #packs)
    collectgarbage "step"
  end
end

local function check_copies(report, packs, items, progress)
  local total, done = 0, 0
  for _, item in ipairs(items) do
    if not item.cut then total = total + item.bytes end
  end
  for _, item in ipairs(items) do
    if not item.cut then
      report:try("ranks", check_copies_of, report, packs, item, function(bytes)
        done = done + bytes
        progress(done, total, "copies")
      end)
    end
  end
end

-- ---- what config.json asks for ----------------------------------------------------------------------------------------------

--- Name -> shape of every tensor that the model needs. has: is there a tensor of this name?
local function expected(c, has)
  local want, order = {}, {}
  local function add(name, ...) want[name], order[#order + 1] = { ... }, name end
  local D, F, E = c.hidden, c.expert_size, c.experts
  local q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
  add("embed", c.vocab, D)
  add("norm", D)
  if c.tied == false or (c.tied ~= true and has "head") then add("head", c.vocab, D) end
  for i = 1, c.layers do
    local p, size = ("layers.%d."):format(i - 1), c.is_moe[i] and F or c.dense_size
    add(p .. "attn_norm", D)
    add(p .. "ffn_norm", D)
    if has(p .. "q") then
      add(p .. "q", q, D)
      add(p .. "k", kv, D)
      add(p .. "v", kv, D)
    else
      add(p .. "qkv", q + 2 * kv, D)
    end
    add(p .. "o", D, q)
    add(p .. "gate", size, D)
    add(p .. "up", size, D)
    add(p .. "down", D, size)
    if c.is_moe[i] then
      add(p .. "router", E, D)
      add(p .. "expert_gate", E, F, D)
      add(p .. "expert_up", E, F, D)
      add(p .. "expert_down", E, D, F)
    end
  end
  return want, order
end

local function same_shape(a, b) return table.concat(a, " ") == table.concat(b, " ") end

--- Does a scale of this shape fit a weight (N, K) or (E, N, K)?
local function scale_fits(scale, shape)
  if #scale == 0 or (#scale == 1 and (scale[1] == 1 or scale[1] == shape[1])) then return true end
  return #shape == 3 and #scale == 2 and scale[1] == shape[1] and scale[2] == shape[2]
end

local function check_complete(report, dir, items)
  local c = report:try("complete", function() return fault.check(config.read(dir)) end)
  if not c then return end
  local by_name, used = {}, {}
  for _, item in ipairs(items) do by_name[item.name] = item end
  local want, order = expected(c, function(name) return by_name[name] ~= nil end)
  for _, name in ipairs(order) do
    local item = by_name[name]
    used[name] = true
    if not item then
      report:problem("complete", "%s: tensor %s, that config.json asks for, is missing", dir, name)
    else
      if item.scale then used[item.scale] = true end
      local scale = item.scale and by_name[item.scale]
      if not same_shape(item.shape, want[name]) then
        report:problem("complete", "%s: tensor %s has shape %s; config.json asks for %s", dir, name, fault.shape(item.shape),
          fault.shape(want[name]))
      elseif not FLOATS[item.dtype] and not (item.dtype == "f8" and scale) then
        report:problem("complete", "%s: tensor %s is %s%s", dir, name, item.dtype, item.dtype == "f8" and " without a scale" or "")
      elseif scale and not scale_fits(scale.shape, item.shape) then
        report:problem("complete", "%s: tensor %s has shape %s, its scale %s", dir, name, fault.shape(item.shape), fault.shape(scale.shape))
      end
    end
  end
  for _, item in ipairs(items) do
    if not used[item.name] then report:problem("complete", "%s: tensor %s has no place in this model", dir, item.name) end
  end
  report.complete = { tensors = #order }
end

local function check_scales(report, dir, items)
  local s, count = store.open(dir), 0
  for _, item in ipairs(items) do
    if item.is_scale then
      local stats = values.new()
      report:try("scales", function()
        s:each_block(item.name, function(group, first, last) stats:add(s:values(item.name, group, first, last)) end)
      end)
      local r = stats:result()
      count = count + 1
      if r.nan + r.inf > 0 then
        report:problem("scales", "%s: %s: %d of %d scales are infinite or not a number", dir, item.name, r.nan + r.inf, r.count)
      elseif r.min and r.min < 0 then
        report:problem("scales", "%s: %s: a scale is %.6g; none may be negative", dir, item.name, r.min)
      end
    end
  end
  report.scales = { tensors = count }
end

-- ---- against the checkpoint -----------------------------------------------------------------------------------------------


--- What a comparison must give: "exact", or the least SQNR in dB.
local function demand(a, b)
  if a.dtype == b.dtype and a.is_quantized == b.is_quantized then return "exact" end
  if b.dtype == "f32" and not a.is_quantized then return "equal" end
  return b.is_quantized and WORST_FP8 or WORST_CAST
end

local function compare_one(report, a, b, progress)
  if a.E ~= b.E or a.N ~= b.N or a.K ~= b.K then
    return report:problem("source", "%s is %s, in the source %s", a.name, b:shape_text(), a:shape_text())
  end
  local r = report:try("source", logical.compare, a, b, progress)
  if not r then return end
  r.name, r.from, r.to = a.name, a.dtype, b.dtype
  report.source.tensors[#report.source.tensors + 1] = r
  local need = demand(a, b)
  if need == "exact" and not r.exact then
    report:problem("source", "%s (%s): %d of %d values differ from the source, by at most %.4g", a.name, b.dtype, r.different, r.elements,
      r.max_abs)
  elseif need == "equal" and (r.different > 0 or not r.is_finite) then
    report:problem("source", "%s (%s, from %s): %d of %d values differ from the source", a.name, b.dtype, a.dtype, r.different, r.elements)
  elseif not r.is_finite then
    report:problem("source", "%s: values are infinite or not a number", a.name)
  elseif type(need) == "number" and r.sqnr_db and r.sqnr_db < need then
    report:problem("source", "%s (%s, from %s): SQNR is %.1f dB, below %.0f: these are other values than the source's", a.name, b.dtype,
      a.dtype, r.sqnr_db, need)
  end
  if a.in_scale and b.act == "static" and a.in_scale ~= b.in_scale then
    report:problem("source", "%s: the scale of its activations is %.9g, in the source %.9g", a.name, b.in_scale, a.in_scale)
  end
end

--- The scales of an FP8 cache, 1 where there are none.
local function compare_kv(report, a, b)
  for _, key in ipairs { "k_scale", "v_scale" } do
    local x, y = a.kv and a.kv[key] or {}, b.kv and b.kv[key] or {}
    local last = 0
    for layer in pairs(x) do last = math.max(last, layer) end
    for layer = 1, math.max(last, #y) do
      local one, other = ("%.9g"):format(x[layer] or 1), ("%.9g"):format(y[layer] or 1) -- f32
      if one ~= other then report:problem("source", "%s of layer %d is %s, in the source %s", key, layer - 1, other, one) end
    end
  end
end

local function check_source(report, dir, path, progress)
  local a = report:try("source", logical.open, path)
  local b = a and report:try("source", logical.open, dir)
  if not b then return end
  report.source = { path = path, tensors = mav.json.array {} }
  local total, done = 0, 0
  for _, t in ipairs(a.list) do
    if b.by_name[t.name] then total = total + t:bytes() end
  end
  for _, t in ipairs(a.list) do
    local other = b.by_name[t.name]
    if other then
      compare_one(report, t, other, function(elements)
        done = done + t:bytes(elements)
        progress(done, total, t.name)
      end)
    elseif not logical.is_beside(t.name) and not (t.name == "head" and config.read(dir) and config.read(dir).tied ~= false) then
      report:problem("source", "%s of the source is not in the packs", t.name)
    end
  end
  for _, t in ipairs(b.list) do
    if not a.by_name[t.name] then report:problem("source", "%s is not in the source", t.name) end
  end
  compare_kv(report, a, b)
  local meta = b.store.meta
  report.source.recipe = type(meta) == "table" and type(meta.recipe) == "table" and meta.recipe.name or nil
end

-- ---- the whole ---------------------------------------------------------------------------------------------------------------

local function do_verify(dir, options)
  local progress = options.progress or function() end
  maverick_packs.find(dir) -- refuses safetensors beside them
  local report = setmetatable({ path = dir, packs = mav.json.array {}, problems = mav.json.array {}, told = {} }, Report)
  local packs = open_packs(report, dir)
  if options.hashes ~= false and #packs > 0 then check_hashes(report, packs, progress) end
  local are_all = #packs == report.ranks
  if are_all then
    local items = report:try("ranks", function() return whole.items(whole.open(dir)) end)
    if items then
      if #packs > 1 then check_copies(report, packs, items, progress) end
      check_complete(report, dir, items)
      check_scales(report, dir, items)
      if options.source then check_source(report, dir, options.source, progress) end
    end
  end
  for _, pack in ipairs(packs) do pack:close() end
  report.ok = #report.problems == 0
  return report
end

--- Checks a directory of packs.
---
---   options.source     the Hugging Face directory that they were made of: compares values
---   options.hashes     false: does not read everything
---   options.progress   function(bytes done, bytes in all, what)
---@param dir string
---@param options table|nil
---@return table|nil report   ok, problems (kind, text), ranks, packs, hashes, complete, scales, source
---@return table|nil err
function verify.verify(dir, options)
  options = options or {}
  require "mav.options"(options, OPTIONS, "verify")
  return fault.catch(do_verify, dir, options)
end

-- ---- the command ---------------------------------------------------------------------------------------------------------------

local function source_line(source)
  local exact, low, high, count = 0, math.huge, -math.huge, 0
  for _, r in ipairs(source.tensors) do
    if r.exact or r.different == 0 then exact = exact + 1 end
    if r.different > 0 and r.sqnr_db then
      count, low, high = count + 1, math.min(low, r.sqnr_db), math.max(high, r.sqnr_db)
    end
  end
  return ("%d tensors are equal%s"):format(exact, count > 0 and ("; %d differ, SQNR %.1f to %.1f dB"):format(count, low, high) or "")
end

local function text_of(report)
  local bad, lines = {}, {}
  for _, p in ipairs(report.problems) do bad[p.kind] = (bad[p.kind] or 0) + 1 end
  local total = 0
  for _, pack in ipairs(report.packs) do total = total + pack.bytes end
  lines[1] = ("%s: %d of %d packs, %s"):format(report.path, #report.packs, report.ranks, show.bytes(total))
  local function line(kind, text)
    local verdict = bad[kind] and (": %d problem%s"):format(bad[kind], bad[kind] == 1 and "" or "s") or ", ok"
    lines[#lines + 1] = ("  %-9s %s%s"):format(kind, text, verdict)
  end
  if report.hashes then -- not where no pack could be opened
    line("hashes", ("%s in %.1f s, %.2f GB/s"):format(show.bytes(report.hashes.bytes), report.hashes.seconds,
      report.hashes.bytes / math.max(report.hashes.seconds, 1e-6) / 1e9))
  end
  line("ranks", ("%d"):format(report.ranks))
  if report.complete or bad.complete then
    line("complete", report.complete and ("%d tensors that config.json asks for"):format(report.complete.tensors) or "config.json")
  end
  if report.scales then line("scales", ("%d"):format(report.scales.tensors)) end
  if report.source or bad.source then line("source", report.source and source_line(report.source) or "not read") end
  for i, p in ipairs(report.problems) do
    if i > SHOWN_MAX then
      lines[#lines + 1] = ("  ... %d more (--json lists all)"):format(#report.problems - SHOWN_MAX)
      break
    end
    lines[#lines + 1] = "  - " .. p.text
  end
  if report.source and report.source.recipe and bad.source then
    lines[#lines + 1] = ("  The packs were made with the recipe %s, which may change names and values."):format(report.source.recipe)
  end
  return table.concat(lines, "\n") .. "\n"
end

--- JSON has no infinite numbers.
local function plain(report)
  for _, r in ipairs(report.source and report.source.tensors or {}) do
    for _, key in ipairs { "max_abs", "relative", "sqnr_db" } do
      if r[key] and math.abs(r[key]) == math.huge then r[key] = mav.json.null end
    end
  end
  return report
end

local EXAMPLE = [[
mav weights verify packs
mav weights verify packs --source Llama-4-Maverick --json > report.json]]

local function run(arg)
  local p = cli.parser("weights verify", "Checks packs: every hash, that all ranks are there and agree, that the tensors are those that "
    .. "config.json asks for, that scales are finite. With --source, every value against the checkpoint they were made of.", EXAMPLE)
  p:argument("out", "directory with packs and config.json"):argname("OUT")
  p:option("--source", "the Hugging Face directory that they were made of"):argname("HF_DIR")
  p:flag("--fast", "skip the hashes: headers, completeness and scales only")
  p:flag("--json", "print the result as JSON")
  local args = cli.parse(p, arg)
  local meter = show.meter(args.out)
  local report, err = verify.verify(args.out, { source = args.source, hashes = not args.fast, progress = meter.update })
  meter.finish()
  if not report then cli.fail("%s", tostring(err)) end
  io.write(args.json and mav.json.encode(plain(report), { indent = 2 }) .. "\n" or text_of(report))
  return report.ok and 0 or 1
end

verify.summary, verify.run = "are packs whole, and what the checkpoint holds?", run
return verify
