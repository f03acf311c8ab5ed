--- The same picture by gnuplot, which must be installed.
local cli = require "mav.cli"
local short = require("mav.sweep.report").short

local png = {}

local function is_installed() return os.execute "command -v gnuplot >/dev/null 2>&1" == true end

local function quoted(text) return '"' .. text:gsub('[\\"]', "\\%0") .. '"' end

--- A named block of data: k, value, low, high, predicted.
local function block(out, name, rows, field)
  out[#out + 1] = ("$%s << EOD"):format(name)
  for _, r in ipairs(rows) do
    local value = r[field]
    if value and math.type(r.k) == "integer" then
      out[#out + 1] = ("%d %.6g %.6g %.6g %s"):format(r.k, value, r[field .. "_low"] or value, r[field .. "_high"] or value,
        r.predicted and ("%.6g"):format(r.predicted) or "NaN")
    end
  end
  out[#out + 1] = "EOD"
end

--- The commands for gnuplot; path nil: without an output.
function png.script(rows, title, path)
  local groups, order, out = {}, {}, {}
  for _, r in ipairs(rows) do
    if r.family == "all" then
      local name = ("%s, temperature %g"):format(short(r.drafter), r.temperature)
      if not groups[name] then
        groups[name] = {}
        order[#order + 1] = name
      end
      table.insert(groups[name], r)
    end
  end
  for i, name in ipairs(order) do
    block(out, "a" .. i, groups[name], "acceptance_length")
    block(out, "s" .. i, groups[name], "speedup")
  end
  out[#out + 1] = "set terminal pngcairo size 1200,560 font 'sans,10'"
  if path then out[#out + 1] = "set output " .. quoted(path) end
  out[#out + 1] = ("set multiplot layout 1,2 title %s"):format(quoted(title))
  out[#out + 1] = "set grid ytics lt 1 lc rgb '#e0e0e0'\nset xlabel 'k, drafts a step'\nset key below maxcols 2"
  for p, what in ipairs { "acceptance length, tokens a step", "speed-up over plain decoding" } do
    local plots = {}
    for i, name in ipairs(order) do
      local data = (p == 1 and "$a" or "$s") .. i
      plots[#plots + 1] = ("%s using 1:2:3:4 with yerrorlines lc %d lw 1.5 pt 7 title %s"):format(data, i, quoted(name))
      if p == 2 then plots[#plots + 1] = ("%s using 1:5 with lines lc %d dt 2 notitle"):format(data, i) end
    end
    out[#out + 1] = ("set title '%s'\nplot %s"):format(what, table.concat(plots, ", "))
  end
  return table.concat(out, "\n") .. "\nunset multiplot\n"
end

--- Draws rows into a file.
function png.write(rows, title, path)
  if not is_installed() then cli.fail("--png needs gnuplot, which is not installed; --svg needs nothing") end
  local pipe = assert(io.popen("gnuplot", "w"))
  pipe:write(png.script(rows, title, path))
  if not pipe:close() then cli.fail("gnuplot failed on %s", path) end
end

return png
