--- Rows of a sweep as a table for the terminal and as CSV.
local report = {}

--- A drafter's text with directories shortened to their last part.
function report.short(text) return (text:gsub("[^+=]*/([^/+]+)/*", "%1")) end

--- title, field or function(row), format
local COLUMNS = {
  { "drafter", function(r) return report.short(r.drafter) end, "%s", left = true },
  { "k", function(r) return tostring(r.k) end, "%s", left = true },
  { "temp", "temperature", "%g" },
  { "family", "family", "%s", left = true },
  { "accepted", "acceptance_length", "%.2f" },
  { "draft us", "draft_us", "%.1f" },
  { "verify us", "verify_us", "%.1f" },
  { "tokens/s", "tokens_per_s", "%.1f" },
  { "speed-up", "speedup", "%.2f" },
  { "quartiles", function(r) return r.speedup_low and ("%.2f..%.2f"):format(r.speedup_low, r.speedup_high) end, "%s" },
  { "predicted", "predicted", "%.2f" },
}

local function text_of(column, r)
  local value = type(column[2]) == "function" and column[2](r) or r[column[2]]
  return value == nil and "-" or column[3]:format(value)
end

--- The table, a line per row.
function report.table(rows)
  local width, lines = {}, {}
  for c, column in ipairs(COLUMNS) do
    width[c] = #column[1]
    for _, r in ipairs(rows) do width[c] = math.max(width[c], #text_of(column, r)) end
  end
  local function line(text)
    local parts = {}
    for c, column in ipairs(COLUMNS) do parts[c] = ("%" .. (column.left and "-" or "") .. width[c] .. "s"):format(text(column)) end
    lines[#lines + 1] = (table.concat(parts, "  "):gsub("%s+$", ""))
  end
  line(function(column) return column[1] end)
  for i, r in ipairs(rows) do
    local before = rows[i - 1]
    if before and (before.drafter ~= r.drafter or before.temperature ~= r.temperature) then lines[#lines + 1] = "" end
    line(function(column) return text_of(column, r) end)
  end
  return table.concat(lines, "\n") .. "\n"
end

local CSV = { "drafter", "k", "temperature", "family", "cells", "acceptance_length", "acceptance_length_low", "acceptance_length_high",
  "draft_us", "verify_us", "policy_us", "tokens_per_s", "plain_tokens_per_s", "speedup", "speedup_low", "speedup_high", "predicted",
  "differing" }

local function csv_value(value)
  if value == nil then return "" end
  if math.type(value) == "float" then return ("%.6g"):format(value) end
  local text = tostring(value)
  return text:find '[",\n]' and '"' .. text:gsub('"', '""') .. '"' or text
end

--- The rows as CSV (RFC 4180), with a header.
function report.csv(rows)
  local lines = { table.concat(CSV, ",") }
  for _, r in ipairs(rows) do
    local parts = {}
    for i, name in ipairs(CSV) do parts[i] = csv_value(r[name]) end
    lines[#lines + 1] = table.concat(parts, ",")
  end
  return table.concat(lines, "\n") .. "\n"
end

return report
