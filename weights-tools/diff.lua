--- mav weights diff: two models, tensor by tensor, in whatever layouts they are.
---
--- Weights are compared under Mav's names (logical.lua), FP8 codes times their scales; so a checkpoint can be held against its packs, FP8
--- against BF16, a GGUF file against the directory it was made of. Tensors that only one side has are named.
local cli = require "mav.cli"
local fault = require "mav.maverick.fault"
local logical = require "mav.weights_tools.logical"
local mav = require "mav"
local show = require "mav.weights_tools.show"
local source = require "mav.weights_tools.source"

local diff = {}

local OPTIONS = { match = true, progress = true }
local ROWS, ONLY_MAX = 40, 8 -- shown in text

-- ---- comparing --------------------------------------------------------------------------------------------------------------

--- Worst first: what cannot be compared, then by SQNR, then by name.
local function worse(a, b)
  local x = a.why and -math.huge or a.sqnr_db or math.huge
  local y = b.why and -math.huge or b.sqnr_db or math.huge
  if x ~= y then return x < y end
  if (a.why == nil) ~= (b.why == nil) then return a.why ~= nil end
  if a.exact ~= b.exact then return b.exact end
  return a.name < b.name
end

local function do_diff(a_path, b_path, options)
  local a, b = logical.open(a_path), logical.open(b_path)
  local function wanted(name) return not options.match or name:find(options.match) ~= nil end
  local pairs_of, only_a, only_b, beside, total, done = {}, {}, {}, {}, 0, 0
  for _, t in ipairs(a.list) do
    local other = b.by_name[t.name]
    if other and wanted(t.name) then
      pairs_of[#pairs_of + 1] = { t, other }
      total = total + t:bytes()
    elseif wanted(t.name) then
      table.insert(logical.is_beside(t.name) and beside or only_a, t.name)
    end
  end
  for _, t in ipairs(b.list) do
    if wanted(t.name) and not a.by_name[t.name] then table.insert(logical.is_beside(t.name) and beside or only_b, t.name) end
  end
  if #pairs_of == 0 and #only_a + #only_b == 0 then
    fault.raise("NOTFOUND", a_path, "no tensor%s is there to compare", options.match and " whose name matches " .. options.match or "")
  end
  local report = { a = a_path, b = b_path, tensors = {}, only_a = mav.json.array(only_a), only_b = mav.json.array(only_b),
    beside = mav.json.array(beside), equal = 0, unread = 0 }
  for _, two in ipairs(pairs_of) do
    local x, y = two[1], two[2]
    local r
    if x.E ~= y.E or x.N ~= y.N or x.K ~= y.K then
      r = { why = ("%s and %s"):format(x:shape_text(), y:shape_text()) }
    else
      local err
      r, err = fault.catch(logical.compare, x, y, function(elements)
        done = done + x:bytes(elements)
        if options.progress then options.progress(done, total, x.name) end
      end)
      if err then report.unread = report.unread + 1 end
      r = r or { why = tostring(err) }
      if r.is_finite == false then r.why = "values that are infinite or not a number" end
    end
    r.name, r.from, r.to = x.name, x.dtype, y.dtype
    if r.exact or r.different == 0 then report.equal = report.equal + 1 end
    report.tensors[#report.tensors + 1] = r
  end
  table.sort(report.tensors, worse)
  report.same = report.equal == #report.tensors and #only_a + #only_b == 0
  return report
end

--- Compares two models.
---
---   options.match      a Lua pattern: only tensors whose name it matches
---   options.progress   function(bytes done, bytes in all, tensor)
---@param a string   as of store.open
---@param b string
---@param options table|nil
---@return table|nil report   tensors, worst first (logical.compare; why: what kept them from being compared), only_a, only_b,
---beside (of the vision tower, only on one side), equal and unread (how many), same
---@return table|nil err
function diff.diff(a, b, options)
  options = options or {}
  require "mav.options"(options, OPTIONS, "diff")
  if options.match then
    local ok, err = pcall(string.find, "", options.match)
    if not ok then error(("match \"%s\": %s"):format(options.match, (err:gsub("^.-:%d+: ", ""))), 2) end
  end
  return fault.catch(do_diff, a, b, options)
end

-- ---- text ---------------------------------------------------------------------------------------------------------------------

local function number(format, value) return value and format:format(value) or "-" end

local function table_text(report)
  local rows, widths, lines = { { "tensor", "from", "to", "max abs", "relative", "SQNR dB", "cosine", "differ" } }, {}, {}
  local hidden = 0
  for _, r in ipairs(report.tensors) do
    if r.exact or r.different == 0 then
      hidden = hidden + 1
    elseif #rows <= ROWS then
      rows[#rows + 1] = r.why and { r.name, r.from, r.to, r.why }
        or { r.name, r.from, r.to, number("%.3g", r.max_abs), r.relative < math.huge and ("%.4f%%"):format(100 * r.relative) or "-",
          number("%.2f", r.sqnr_db), number("%.7f", r.cosine), ("%.2f%%"):format(100 * r.different / r.elements) }
    end
  end
  for _, row in ipairs(rows) do
    for i = 1, #row do
      if #row == 8 or i < 4 then widths[i] = math.max(widths[i] or 0, #row[i]) end
    end
  end
  for _, row in ipairs(rows) do
    for i = 1, #row do
      local space = (i < 4 or #row == 8) and (" "):rep(widths[i] - #row[i]) or ""
      row[i] = i < 4 and row[i] .. space or space .. row[i]
    end
    lines[#lines + 1] = table.concat(row, "  ")
  end
  if #rows == 1 then lines = {} end
  local left = #report.tensors - hidden - (#rows - 1)
  if left > 0 then lines[#lines + 1] = ("... %d more that differ less (--json lists all)"):format(left) end
  return lines
end

local function names(list)
  return table.concat(list, ", ", 1, math.min(#list, ONLY_MAX)) .. (#list > ONLY_MAX and (", ... (%d)"):format(#list) or "")
end

local function text_of(report)
  local lines = table_text(report)
  if #lines > 0 then lines[#lines + 1] = "" end
  lines[#lines + 1] = ("%d of %d tensors are equal"):format(report.equal, #report.tensors)
  if #report.only_a > 0 then lines[#lines + 1] = ("only in %s: %s"):format(report.a, names(report.only_a)) end
  if #report.only_b > 0 then lines[#lines + 1] = ("only in %s: %s"):format(report.b, names(report.only_b)) end
  if #report.beside > 0 then lines[#lines + 1] = ("%d tensors of the vision tower are on one side only"):format(#report.beside) end
  return table.concat(lines, "\n") .. "\n"
end

--- JSON has no infinite numbers.
local function plain(report)
  for _, r in ipairs(report.tensors) do
    for _, key in ipairs { "max_abs", "relative", "sqnr_db" } do
      if r[key] and math.abs(r[key]) == math.huge then r[key] = mav.json.null end
    end
  end
  report.tensors = mav.json.array(report.tensors)
  return report
end

-- ---- the command ----------------------------------------------------------------------------------------------------------------

local EXAMPLE = [[
mav weights diff Llama-4-Maverick packs-fp8 --svg error.svg
mav weights diff packs-2-ranks packs-8-ranks --match "^layers%.0%."]]

local function run(arg)
  local p = cli.parser("weights diff", "Compares two models, each a Hugging Face directory, a safetensors file, packs or a GGUF file. Per "
    .. "tensor: the largest difference, relative error, signal to noise (SQNR), cosine, and how many values differ; worst first. The exit "
    .. "status is 0 when all are equal, 2 when some are not, 1 when one cannot be read (a damaged pack).", EXAMPLE)
  p:argument("a", "the one that is taken as right"):argname("A")
  p:argument("b", "the other"):argname("B")
  p:option("--match", "a Lua pattern of names, as layers.1.expert_gate: compare only these"):argname("PATTERN")
  p:option("--svg", "draw SQNR over the layers"):argname("FILE.svg")
  p:flag("--json", "print everything as JSON")
  local args = cli.parse(p, arg)
  local meter = show.meter(args.a)
  local report, err = diff.diff(args.a, args.b, { match = args.match, progress = meter.update })
  meter.finish()
  if not report then cli.fail("%s", tostring(err)) end
  if args.svg then
    local drawn = require("mav.weights_tools.errors").svg(plain(report).tensors, ("%s beside %s"):format(args.b, args.a))
    local ok, wrong = fault.catch(function()
      source.write(args.svg, drawn)
      return true
    end)
    if not ok then cli.fail("%s", tostring(wrong)) end
  end
  io.write(args.json and mav.json.encode(plain(report), { indent = 2 }) .. "\n" or text_of(report))
  if report.unread > 0 then return 1 end
  return report.same and 0 or 2
end

diff.summary, diff.run = "two models, tensor by tensor", run
return diff
