--- A strategy, checked and with its defaults: who proposes, how many, how to choose, what to keep.
---
---     { draft = drafter, policy = 3, sample = { temperature = 0.7 }, accept = "keyed", tree = { 2, 2, 1 }, k_max = 8 }
---
---   draft    a drafter (mav.draft.*), or function(ids, length, k, out) -> n: writes at most k proposals to out[1..n]; nil: none
---   policy   how deep to draft: k, a function(stats) -> k, an object of mav.policy.*, or a name ("auto"); nil: k_max
---   sample   how to choose: a chain (mav.sample.chain), its options, or function(logits, rows, state) that emits ops; nil: greedy
---   accept   which drafts to keep (session/accept.lua); nil: those that equal the chain's own choice
---   tree     children of every node, level by level; nil: a chain
---   k_max    the deepest level (chains); nil: the policy's number, else 8
local mav = require "mav"
local check_keys = require "mav.options"
local chain = require "mav.sample.chain"
local accept = require "mav.session.accept"
local policies = require "mav.policy"

local strategy = {}

local OPTIONS = { draft = true, policy = true, sample = true, accept = true, tree = true, k_max = true }
local K_MAX, K_DEFAULT = 8, 3
local ROWS_MAX = 64
local SECONDS_MAX = 1.0 -- a function of the user's may take for one call

--- How functions of the user are called: one that does not come back is stopped.
local function call(f, ...) return mav.guard(SECONDS_MAX, f, ...) end
strategy.call = call

--- A plain function in the place of a chain.
local function chooser(f)
  return setmetatable({ needs = {}, observe = function() end }, {
    __call = function(_, ...) return f(...) end,
    __tostring = function() return "function" end,
  })
end

local function sampler(sample)
  sample = sample or {}
  if type(sample) == "function" then return chooser(sample) end
  return getmetatable(sample) == nil and chain(sample) or sample
end

local METHODS = { host = { "start" }, device = { "layers", "bind" }, first = {} }

local function drafter(draft)
  if draft == nil then return nil end
  if type(draft) == "function" then
    local state = { propose = function(_, ...) return draft(...) end }
    return { name = "function", kind = "host", start = function() return state end }
  end
  if type(draft) ~= "table" or not (draft.kind == "host" or draft.kind == "device" or draft.kind == "first") then
    error("strategy.draft: a drafter (mav.draft.*) or a function is allowed, not " .. tostring(draft), 4)
  end
  for _, method in ipairs(METHODS[draft.kind]) do
    if type(draft[method]) ~= "function" then
      error(("strategy.draft: drafter '%s' (kind %s) has no function %s"):format(tostring(draft.name), draft.kind, method), 4)
    end
  end
  return draft
end

local function widths(options, fixed)
  local tree, k_max = options.tree, options.k_max
  if tree and k_max and k_max ~= #tree then error("strategy: give tree or k_max, not both", 4) end
  if tree then
    local rows, level = 1, 1
    for d, w in ipairs(tree) do
      if math.type(w) ~= "integer" or w < 1 then error(("strategy.tree: level %d has width %s"):format(d, tostring(w)), 4) end
      level = level * w
      rows = rows + level
    end
    if #tree == 0 or rows > ROWS_MAX then error(("strategy.tree: %d rows; 2 to %d are allowed"):format(rows, ROWS_MAX), 4) end
    return table.move(tree, 1, #tree, 1, {})
  end
  k_max = k_max or fixed or K_MAX
  if math.type(k_max) ~= "integer" or k_max < 0 or k_max >= ROWS_MAX then
    error(("strategy.k_max is %s; an integer from 0 to %d is allowed"):format(tostring(k_max), ROWS_MAX - 1), 4)
  end
  local list = {}
  for d = 1, k_max do list[d] = 1 end
  return list
end

local function is_chain(list)
  for _, w in ipairs(list) do
    if w > 1 then return false end
  end
  return true
end

--- Of what a session was given: options.strategy, or options.sample alone.
---@param options table
---@return table strategy   chain, drafter, policy, rule, widths, k_max, is_tree
function strategy.new(options)
  local given = options.strategy or {}
  if type(given) ~= "table" then error("model:session: strategy must be a table", 3) end
  check_keys(given, OPTIONS, "model:session: strategy")
  if options.sample and given.sample then error("model:session: give sample or strategy.sample, not both", 3) end
  local s = { chain = sampler(options.sample or given.sample), drafter = drafter(given.draft) }
  local policy = given.policy
  if policy == nil and not given.tree then policy = given.k_max or K_DEFAULT end
  policy = type(policy) == "number" and math.tointeger(policy) or policy
  s.widths = s.drafter and widths(given, math.type(policy) == "integer" and policy or nil) or {}
  s.k_max, s.is_tree = #s.widths, not is_chain(s.widths)
  s.policy = policies.new(not s.drafter and 0 or policy == nil and s.k_max or policy, s.k_max)
  s.rule = accept.new(given.accept, call)
  if s.rule.draws == "independent" and s.chain.is_greedy then s.rule = accept.new() end -- all the probability is on one token
  if s.rule ~= accept.new() and not s.chain.filter then
    error("strategy.accept: a sampler that is a plain function chooses by itself; use a chain with functions in it", 3)
  end
  if s.is_tree and s.drafter.kind ~= "device" then error("strategy.tree: only drafters on the device make trees", 3) end
  return s
end

--- Slots of the cache beyond the context: of the trees that are verified and drafted at its end.
function strategy.slack(plan)
  local rows, level = 1, 1
  for _, w in ipairs(plan.widths) do
    level = level * w
    rows = rows + level
  end
  return 2 * rows + 2
end

return strategy
