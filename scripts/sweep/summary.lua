--- From the cells of a sweep to the rows of its table: one for each drafter, depth or policy, temperature and family of prompts, and
--- one over all families where there are several.
local summary = {}

local function quantile(sorted, q)
  if #sorted == 0 then return nil end
  local at = 1 + q * (#sorted - 1)
  local low = math.floor(at)
  local a, b = sorted[low], sorted[math.min(low + 1, #sorted)]
  return a + (b - a) * (at - low)
end

--- Median and quartiles of a field over cells; f: function(cell) -> number or nil.
local function spread(cells, f)
  local list = {}
  for _, cell in ipairs(cells) do list[#list + 1] = f(cell) end
  table.sort(list)
  return quantile(list, 0.5), quantile(list, 0.25), quantile(list, 0.75)
end

local function speedup(cell) return cell.us and cell.plain_us and cell.plain_us / cell.us end

local function row(cells)
  local first, tokens, steps, differing = cells[1], 0, 0, 0
  for _, cell in ipairs(cells) do
    tokens, steps = tokens + cell.acceptance_length * cell.steps, steps + cell.steps
    if not cell.is_same then differing = differing + 1 end
  end
  local r = { drafter = first.drafter, k = first.k, temperature = first.temperature, family = first.family, cells = #cells,
    acceptance_length = steps > 0 and tokens / steps or nil, differing = differing }
  local _, low, high = spread(cells, function(cell) return cell.acceptance_length end)
  r.acceptance_length_low, r.acceptance_length_high = low, high
  r.draft_us = spread(cells, function(cell) return cell.draft_us end)
  r.verify_us = spread(cells, function(cell) return cell.verify_us end)
  r.policy_us = spread(cells, function(cell) return cell.policy_us end)
  r.tokens_per_s = spread(cells, function(cell) return cell.us and 1e6 / cell.us end)
  r.plain_tokens_per_s = spread(cells, function(cell) return cell.plain_us and 1e6 / cell.plain_us end)
  r.speedup, r.speedup_low, r.speedup_high = spread(cells, speedup)
  r.predicted = spread(cells, function(cell) return cell.predicted end)
  return r
end

--- Groups in order of appearance: a list of lists.
local function groups(cells, name)
  local by, order = {}, {}
  for _, cell in ipairs(cells) do
    local key = name(cell)
    if not by[key] then
      by[key] = {}
      order[#order + 1] = by[key]
    end
    table.insert(by[key], cell)
  end
  return order
end

--- Depths by number, then policies by name.
local function before(a, b)
  if a.drafter ~= b.drafter then return a.drafter < b.drafter end
  if a.temperature ~= b.temperature then return a.temperature < b.temperature end
  if a.k ~= b.k then
    local x, y = math.type(a.k) == "integer", math.type(b.k) == "integer"
    if x ~= y then return x end
    return a.k < b.k
  end
  if (a.family == "all") ~= (b.family == "all") then return b.family == "all" end
  return a.family < b.family
end

--- The rows, sorted. r.family of a row over several families is "all".
---@param cells table[]
function summary.rows(cells)
  local rows, families = {}, {}
  for _, cell in ipairs(cells) do families[cell.family] = true end
  local is_one = next(families) ~= nil and next(families, next(families)) == nil
  for _, lane in ipairs(groups(cells, function(c) return ("%s|%s|%g"):format(c.drafter, tostring(c.k), c.temperature) end)) do
    for _, list in ipairs(groups(lane, function(c) return c.family end)) do
      if not is_one and list[1].family ~= "all" then rows[#rows + 1] = row(list) end
    end
    local all = row(lane)
    all.family = "all"
    rows[#rows + 1] = all
  end
  table.sort(rows, before)
  return rows
end

--- Lanes with cells whose text was not that of plain decoding.
function summary.differing(rows)
  local list = {}
  for _, r in ipairs(rows) do
    if r.family == "all" and r.differing > 0 then
      list[#list + 1] = ("%s k %s: %d of %d"):format(r.drafter, tostring(r.k), r.differing, r.cells)
    end
  end
  return list
end

return summary
