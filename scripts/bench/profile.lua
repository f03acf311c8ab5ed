--- Where the time of a captured graph goes: its ops run one by one, and are added up by name.
local profile = {}

--- A list of { op, count, us }, the longest first.
function profile.of(graph)
  local list, by = {}, {}
  for _, entry in ipairs(graph:profile()) do
    local line = by[entry.op]
    if not line then
      line = { op = entry.op, count = 0, us = 0.0 }
      by[entry.op], list[#list + 1] = line, line
    end
    line.count, line.us = line.count + 1, line.us + entry.us
  end
  table.sort(list, function(a, b) return a.us > b.us end)
  return list
end

--- The list of a step of so many rows.
function profile.print(list, rows)
  local total = 0
  for _, line in ipairs(list) do total = total + line.us end
  print(("ops of a step of %d row%s, one by one, with what starting each takes:"):format(rows, rows == 1 and "" or "s"))
  print(("%-16s %6s %10s %8s %7s"):format("op", "count", "us", "us each", "share"))
  for _, line in ipairs(list) do
    print(("%-16s %6d %10.1f %8.2f %6.1f%%"):format(line.op, line.count, line.us, line.us / line.count, 100 * line.us / total))
  end
  print()
end

return profile
