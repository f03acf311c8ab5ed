--- What people see of a conversion: plans, results, how far it is.
local errors = require "mav.weights_tools.errors"
local fault = require "mav.maverick.fault"
local progress = require "mav.sweep.progress"

local show = {}

local MEGA = 1e6

--- "1.23 GB"
function show.bytes(n)
  for _, unit in ipairs { { 1e12, "TB" }, { 1e9, "GB" }, { 1e6, "MB" }, { 1e3, "kB" } } do
    if n >= unit[1] then return ("%.3g %s"):format(n / unit[1], unit[2]) end
  end
  return ("%d bytes"):format(n)
end

local function lines_of(rows)
  local widths = {}
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row) do widths[i] = math.max(widths[i] or 0, #cell) end
  end
  local out = {}
  for _, row in ipairs(rows) do
    local cells = {}
    for i, cell in ipairs(row) do cells[i] = i == #row and cell or cell .. (" "):rep(widths[i] - #cell) end
    out[#out + 1] = table.concat(cells, "  ")
  end
  return table.concat(out, "\n")
end

local function note(t)
  local words = {}
  if t.act ~= "none" then words[#words + 1] = "activations " .. t.act end
  if t.merged then words[#words + 1] = "merged" end
  if t.compress then words[#words + 1] = "lz4" end
  return table.concat(words, ", ")
end

--- A plan (convert.plan) as text.
function show.plan(report)
  local rows = { { "tensor", "shape", "from", "to", "layout", "a rank's part", "bytes a rank", "" } }
  for _, t in ipairs(report.tensors) do
    local part = t.cut and report.ranks > 1 and fault.shape(t.rank_shape) or "all"
    rows[#rows + 1] = { t.name, fault.shape(t.shape), t.from, t.dtype, t.layout, part,
      show.bytes(t.rank_bytes), note(t) }
  end
  local total = 0
  for _, pack in ipairs(report.packs) do total = total + pack.bytes end
  return ("%s\n\n%d tensors, %s to read, %d pack%s of %s each, %s in all\n"
    .. "about %s, measured on a block of %s, and what the disk takes to write\n")
    :format(lines_of(rows), #report.tensors, show.bytes(report.source_bytes), #report.packs, #report.packs == 1 and "" or "s",
      show.bytes(report.packs[1].bytes), show.bytes(total), progress.duration(math.max(report.seconds, 1)), report.measured_on)
end

local WORST = 12 -- tensors in the table of errors

--- A result (convert.convert, reshard) as text.
function show.result(report)
  local out = {}
  if report.errors and #report.errors > 0 then out[1] = errors.table(report.errors, WORST) .. "\n\n" end
  local speed = report.source_bytes / math.max(report.seconds, 1e-3) / MEGA
  out[#out + 1] = ("%s: %d pack%s, %s%s in %s (%.0f MB/s of the source)\n"):format(report.out, #report.packs,
    #report.packs == 1 and "" or "s", report.resumed and "the last " or "", show.bytes(report.bytes_written),
    progress.duration(report.seconds), speed)
  return table.concat(out)
end

--- A line on the terminal: update(bytes done, bytes in all, what), finish().
function show.meter(name)
  local line, what_before
  local function update(done, total, what)
    local phase = what == "checking what is there"
    if not line or line.total ~= total // MEGA | 0 or phase ~= what_before then
      line = progress.new(total // MEGA | 0, 0)
      line.done = done // MEGA | 0
      line.before, what_before = line.done, phase
    end
    line:step(("MB  %s: %s"):format(name, what), (done // MEGA | 0) - line.done)
  end
  return { update = update, finish = function() if line then line:finish() end end }
end

--- Calls f, whose work is taken up where it was: says so when it is interrupted.
function show.resumable(f, ...)
  local function finish(ok, ...)
    if ok then return ... end
    local err = ...
    if tostring(err):find("interrupted!", 1, true) then io.stderr:write "\nThe same command goes on where this one was.\n" end
    error(err, 0)
  end
  return finish(pcall(f, ...))
end

return show
