--- How to choose the next token: a chain of steps from logits to ids, in a fixed order:
---
---   logit bias -> repetition penalty -> your own functions -> temperature -> top-k -> top-p -> min-p -> draw
---
---     local chain = require("mav.sample.chain") { temperature = 0.7, top_p = 0.95, seed = 1 }
---     local chain = require("mav.sample.chain") { function(logits, rows, state) return ... end, temperature = 1 }
---
--- A chain is called once, at capture, and emits ops; what it emits runs in every step, with any drafter and any number of
--- rows: no step is ever skipped silently. Options are checked when the chain is made, unknown ones raise. An option that
--- changes nothing (temperature 1, top_p 1, penalty 1) emits nothing. Without a temperature, or with temperature 0, the
--- choice is greedy: bias, penalty and your functions still apply; filters do not, as they never remove the best token.
---
--- A step of your own may also be a table { apply = function(logits, rows, state), prepare = function(session, count), text = }:
--- prepare is called on the host before every verification of `count` rows, when their tokens are known, to fill what apply reads
--- (the mask of a grammar, say; session:path(row) gives a row's tokens).
---
--- state: what a chain needs from its session, see chain.needs:
---   state.kv        any layer of the cache: it holds the sequences' keys, which key the noise
---   state.seen      u8 (sequences, V): ids that occurred, for the repetition penalty
---   state.ahead     rows of a drafter that lie behind the token they predict; nil: 0
---   state.drafting  a drafter's logits are filtered
local op = require("mav").op
local greedy = require "mav.sample.greedy"
local draw = require "mav.sample.draw"
local logprobs = require "mav.sample.logprobs"
local check = require "mav.sample.check"

--- Steps in their order, each made from the option of its name; nil: this value changes nothing.
local ORDER = { "logit_bias", "repetition_penalty", "custom", "temperature", "top_k", "top_p", "min_p" }
local FILTERS = { temperature = true, top_k = true, top_p = true, min_p = true }
local OPTIONS = { seed = true, logprobs = true, logit_bias = true, repetition_penalty = true, temperature = true, top_k = true,
  top_p = true, min_p = true }

local Chain = { __name = "mav.sample.chain" }
Chain.__index = Chain

function Chain:__tostring()
  local names = {}
  for i, step in ipairs(self.steps) do names[i] = step.text end
  names[#names + 1] = self.choose.text
  return table.concat(names, " -> ")
end

--- The filtered logits: what the last step chooses from. Drafters leave out steps that the host prepares for the verified rows.
function Chain:filter(logits, rows, state)
  for _, step in ipairs(self.steps) do
    if not (step.prepare and state.drafting) then
      local given = logits
      logits = step.apply(given, rows, state)
      if step.number then check.result("step " .. step.number, logits, given.shape) end
    end
  end
  return logits
end

--- Calls the steps that the host prepares before every verification: prepare(session, count), count being the rows to come.
function Chain:prepare(session, count)
  for _, step in ipairs(self.prepared) do step.prepare(session, count) end
end

--- ids (T), i32. With logprobs = n also, of the model's own distribution before any step: the chosen ids' log
--- probabilities (T, 1), the n best (T, n) and their ids (T, n).
function Chain:__call(logits, rows, state)
  local ids = self.choose.apply(self:filter(logits, rows, state), rows, state)
  if not self.logprobs then return ids end
  return ids, logprobs.apply(self.logprobs, logits, ids)
end

--- Remembers the rows' tokens as seen; after a step for the rows that were accepted.
function Chain:observe(rows, state, accepted)
  if self.needs.seen then op.mark_seen { seen = state.seen, rows = rows, accepted = accepted } end
end

local function check_options(options)
  for key in pairs(options) do
    if math.type(key) ~= "integer" and not OPTIONS[key] then error(("chain: unknown option '%s'"):format(tostring(key)), 3) end
  end
  for i, f in ipairs(options) do
    local is_step = type(f) == "table" and type(f.apply) == "function"
    if type(f) ~= "function" and not is_step and not (getmetatable(f) or {}).__call then
      error(("chain: step %d is a %s; function(logits, rows, state) or { apply =, prepare = } is allowed"):format(i, type(f)), 3)
    end
  end
end

---@param options table|nil
---@return table chain   callable; steps, needs
local function new(options)
  options = options or {}
  check_options(options)
  local chain = { steps = {}, prepared = {}, needs = { seen = false, keys = false }, options = options }
  local is_greedy = options.temperature == nil or options.temperature == 0
  for _, name in ipairs(ORDER) do
    if name == "custom" then
      for i, f in ipairs(options) do
        local step = type(f) == "table" and f.apply and f or { apply = f }
        chain.steps[#chain.steps + 1] = { text = step.text or "function " .. i, apply = step.apply, prepare = step.prepare, number = i }
        if step.prepare then table.insert(chain.prepared, chain.steps[#chain.steps]) end
      end
    elseif options[name] ~= nil then
      local step = require("mav.sample." .. name)(options[name])
      if step and not (is_greedy and FILTERS[name]) then
        chain.steps[#chain.steps + 1] = step
        if step.needs then chain.needs[step.needs] = true end
      end
    end
  end
  chain.is_greedy, chain.seed = is_greedy, options.seed or 0
  chain.choose = is_greedy and greedy or draw(chain.seed)
  chain.needs.keys = not is_greedy
  if options.logprobs ~= nil then chain.logprobs = logprobs.check(options.logprobs) end
  return setmetatable(chain, Chain)
end

return new
