--- Runs a sweep: every lane (a drafter with a depth or a policy) on every prompt, at every temperature, some times over.
---
--- A round is a prompt at a temperature. In a round plain decoding and the lanes take turns, so what the machine does meanwhile
--- happens to all of them; each cell carries the time per token of the plain run before it, and speed-ups are ratios of the two.
---
---     local run = require "mav.sweep.run"
---     local cells = run(run.settings { model = model, drafters = { { text = "ngram", drafter = draft } }, depths = { 1, 2, 4 } })
local mav = require "mav"
local costs = require "mav.sweep.costs"
local lanes = require "mav.sweep.lanes"

local PLAIN_EVERY = 8 -- lanes after which plain decoding is measured again

local run = {}

--- Rules with the text of plain decoding, so that it can be compared.
local LOSSLESS = { keyed = true, greedy = true }

--- One generation: its figures, and the ids. on_step: called after every step.
local function measure(s, prompt, settings, on_step)
  s:reset()
  s:complete(prompt.ids, { max_tokens = settings.max_tokens, ignore_eos = settings.ignore_eos, on_step = on_step })
  local stats = s.stats
  local cell = { tokens = s.generated, us = stats.tokens_per_s and 1e6 / stats.tokens_per_s }
  return cell, table.concat(s.ids, ",", #prompt.ids + 1, #s), stats
end

local Run = {}
Run.__index = Run

function Run:plain(temperature, prompt)
  local times, before = {}, nil
  local cell, text = measure(self.lanes:plain(temperature), prompt, self.settings, function()
    local now = mav.now()
    times[#times + 1] = before and (now - before) * 1e6
    before = now
  end)
  self.plain_us, self.plain_text, self.plain_step_us = cell.us, text, costs.typical(times) or cell.us
end

function Run:cell(lane, temperature, prompt, cell)
  local s = self.lanes:open(lane, temperature)
  local figures, text, stats = measure(s, prompt, self.settings)
  cell.family, cell.tokens, cell.us, cell.plain_us = prompt.family, figures.tokens, figures.us, self.plain_us
  cell.steps, cell.acceptance_length = #stats.steps, stats.acceptance_length
  cell.verify_us, cell.draft_us, cell.policy_us = stats.verify_us_median, stats.draft_us_median, stats.policy_us_per_step
  cell.predicted = self:costs_of(lane, temperature):predict(lane.k, stats.steps, self.plain_step_us)
  cell.is_same = self.settings.is_lossy or text == self.plain_text
  return cell
end

function Run:costs_of(lane, temperature)
  local name = ("%s|%g"):format(lane.drafter, temperature)
  self.costs[name] = self.costs[name] or costs.new()
  return self.costs[name]
end

--- One round; what was measured before is left out.
function Run:round(temperature, index, number)
  local settings, state = self.settings, self.settings.state
  local prompt, since = settings.prompts[index], PLAIN_EVERY
  local list = self.lanes:list()
  for i = 1, #list do
    local lane = list[(i + index + number - 3) % #list + 1] -- every round begins with another one
    local cell = { drafter = lane.drafter, k = lane.k, temperature = temperature, prompt = index, ["repeat"] = number }
    if not state:find(cell) then
      self:warm(lane, temperature, prompt)
      if since >= PLAIN_EVERY then
        self:warm(nil, temperature, prompt)
        self:plain(temperature, prompt)
        since = 0
      end
      state:add(self:cell(lane, temperature, prompt, cell))
      since = since + 1
      settings.on_cell(cell)
    end
  end
end

function Run:warm(lane, temperature, prompt)
  local name = ("%g|%s|%s"):format(temperature, lane and lane.drafter or "plain", lane and tostring(lane.k) or "")
  if self.warmed[name] then return end
  self.warmed[name] = true
  self.lanes:warm(lane, temperature, prompt.ids)
end

--- Settings with their defaults.
---
---   model, drafters, depths, policies, temperatures, prompts (with ids), max_tokens, repeats, ignore_eos, accept, tree, kv, context
---   chain     function(temperature) -> chain or its options
---   state     where cells go (mav.sweep.state)
---   on_cell   function(cell), after each
function run.settings(options)
  local settings = { depths = {}, policies = {}, temperatures = { 0 }, max_tokens = 128, repeats = 1, on_cell = function() end,
    chain = function(temperature) return { temperature = temperature } end }
  for key, value in pairs(options) do settings[key] = value end
  settings.is_lossy = settings.accept ~= nil and not LOSSLESS[settings.accept]
  settings.state = settings.state or require("mav.sweep.state").open(nil, {})
  if not settings.context then
    local longest = 0
    for _, prompt in ipairs(settings.prompts) do longest = math.max(longest, #prompt.ids) end
    settings.context = longest + math.max(settings.max_tokens, 32) + 1
  end
  return settings
end

--- f(cell, is_done, lane) for every cell of a sweep.
local function each_cell(settings, f)
  for _, lane in ipairs(lanes.new(settings):list()) do
    for _, temperature in ipairs(settings.temperatures) do
      for index = 1, #settings.prompts do
        for number = 1, settings.repeats do
          local cell = { drafter = lane.drafter, k = lane.k, temperature = temperature, prompt = index, ["repeat"] = number }
          f(cell, settings.state:find(cell) ~= nil, lane)
        end
      end
    end
  end
end

--- Cells that a sweep has in all, and those that are there already.
function run.count(settings)
  local total, done = 0, 0
  each_cell(settings, function(_, is_done)
    total, done = total + 1, done + (is_done and 1 or 0)
  end)
  return total, done
end

--- Makes the session of every lane that is to be measured: what is wrong with one is said before hours of measuring, not after.
function Run:open_all()
  each_cell(self.settings, function(cell, is_done, lane)
    if not is_done then self.lanes:open(lane, cell.temperature) end
  end)
end

--- Measures what is missing. Returns all cells.
function run.run(settings)
  local self = setmetatable({ settings = settings, lanes = lanes.new(settings), warmed = {}, costs = {} }, Run)
  local ok, err = xpcall(function()
    self:open_all()
    for _, temperature in ipairs(settings.temperatures) do
      for number = 1, settings.repeats do
        for index = 1, #settings.prompts do self:round(temperature, index, number) end
      end
    end
  end, function(e) return e end)
  self.lanes:close()
  if not ok then error(err, 0) end
  return settings.state.cells
end

return setmetatable(run, { __call = function(_, settings) return run.run(settings) end })
