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
local chain = require "mav.sample.chain"
local check_sample = require "mav.sample.check"
local accept = require "mav.session.accept"
local drafters = require "mav.draft"
local first = require "mav.draft.first"
local policies = require "mav.policy"

local strategy = {}

local OPTIONS = { draft = true, policy = true, sample = true, accept = true, tree = true, k_max = true }
local K_MAX, K_DEFAULT = 8, 3
local ROWS_MAX = 64
local SECONDS_MAX = 1.0 -- a function of the user's may take for one call

local function fail(text, ...) error(text:format(...), 0) end

--- What a guarded call gave, or its error, which names who was stopped.
local function result(who, ok, ...)
  if ok then return ... end
  local err = ...
  local where = type(err) == "string" and err:match "^(.*): stopped: the function ran longer than it may$"
  if where then fail("%s took longer than %g s (at %s)", who, SECONDS_MAX, where) end
  error(err, 0)
end

--- How functions of the user are called: one that does not come back is stopped. who: whose they are, for that error.
function strategy.call(who, f, ...) return result(who, pcall(mav.guard, SECONDS_MAX, f, ...)) end

local function direct(_, f, ...) return f(...) end

--- How the functions of a policy, or of a drafter's state, are called: those that are known to come to an end without a guard.
function strategy.caller(object) return object.is_bounded and direct or strategy.call end

--- A plain function in the place of a chain.
local function chooser(f)
  return setmetatable({ needs = {}, observe = function() end }, {
    __call = function(_, logits, ...)
      local ids = f(logits, ...)
      check_sample.result("the function", ids, { logits.shape[1] })
      return ids
    end,
    __tostring = function() return "function" end,
  })
end

local function sampler(sample)
  sample = sample or {}
  if type(sample) == "function" then return chooser(sample) end
  if type(sample) ~= "table" then fail("strategy.sample is a %s; a chain, its options or a function is allowed", type(sample)) end
  if getmetatable(sample) then return sample end
  local ok, made = pcall(chain, sample)
  if not ok then fail("strategy.sample: %s", (tostring(made):gsub("^[^\n]-:%d+: ", ""))) end
  return made
end

local METHODS = { host = { "start" }, device = { "layers", "bind" }, first = {} }

local function drafter(draft)
  if draft == nil then return nil end
  local uncalled = drafters.uncalled(draft)
  if uncalled then fail("strategy.draft: %s", uncalled) end
  if type(draft) == "function" then return first.host(draft) end
  if type(draft) ~= "table" or not (draft.kind == "host" or draft.kind == "device" or draft.kind == "first") then
    fail("strategy.draft: a drafter (mav.draft.*) or a function is allowed, not %s", tostring(draft))
  end
  for _, method in ipairs(METHODS[draft.kind]) do
    if type(draft[method]) ~= "function" then
      fail("strategy.draft: drafter '%s' (kind %s) has no function %s", tostring(draft.name), draft.kind, method)
    end
  end
  return draft
end

local function widths(options, fixed)
  local tree, k_max = options.tree, options.k_max
  if tree ~= nil and type(tree) ~= "table" then
    fail("strategy.tree is a %s; a list of widths by level, as { 3, 2, 1 }, is allowed", type(tree))
  end
  if tree and k_max and k_max ~= #tree then fail("strategy: give tree or k_max, not both") end
  if tree then
    local rows, level = 1, 1
    for d, w in ipairs(tree) do
      if math.type(w) ~= "integer" or w < 1 then fail("strategy.tree: level %d has width %s", d, tostring(w)) end
      level = level * w
      rows = rows + level
    end
    if #tree == 0 or rows > ROWS_MAX then fail("strategy.tree: %d rows; 2 to %d are allowed", rows, ROWS_MAX) end
    return table.move(tree, 1, #tree, 1, {})
  end
  k_max = k_max or fixed or K_MAX
  if math.type(k_max) ~= "integer" or k_max < 0 or k_max >= ROWS_MAX then
    fail("strategy.k_max is %s; an integer from 0 to %d is allowed", tostring(k_max), ROWS_MAX - 1)
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

local function check_keys(given)
  for key in pairs(given) do
    if not OPTIONS[key] then
      fail("strategy: unknown option '%s'; draft, policy, sample, accept, tree, k_max are allowed", tostring(key))
    end
  end
  if given.draft ~= nil then return end
  for _, key in ipairs { "policy", "accept", "tree", "k_max" } do
    if given[key] ~= nil then
      fail("strategy: %s without draft has no effect (draft is nil: what loads one returns nil and an error; put assert() around it)", key)
    end
  end
end

--- Of what a session was given: options.strategy, or options.sample alone. Errors have no position: the strategy is at fault, wherever
--- it was made.
---@param options table
---@return table strategy   chain, drafter, policy, rule, widths, k_max, is_tree
function strategy.new(options)
  local given = options.strategy or {}
  if type(given) ~= "table" then fail("model:session: strategy must be a table, not a %s", type(given)) end
  check_keys(given)
  if options.sample and given.sample then fail("model:session: give sample or strategy.sample, not both") end
  local s = { chain = sampler(options.sample or given.sample), drafter = drafter(given.draft) }
  local policy = given.policy
  if policy == nil and not given.tree then policy = given.k_max or K_DEFAULT end
  policy = type(policy) == "number" and math.tointeger(policy) or policy
  s.widths = s.drafter and widths(given, math.type(policy) == "integer" and policy or nil) or {}
  s.k_max, s.is_tree = #s.widths, not is_chain(s.widths)
  s.policy = policies.new(not s.drafter and 0 or policy == nil and s.k_max or policy, s.k_max)
  s.rule = accept.new(given.accept, strategy.call)
  if s.rule.draws == "independent" and s.chain.is_greedy then s.rule = accept.new() end -- all the probability is on one token
  if s.rule ~= accept.new() and not s.chain.filter then
    fail("strategy.accept: a sampler that is a plain function chooses by itself; use a chain with functions in it")
  end
  if s.is_tree and s.drafter.kind ~= "device" then fail("strategy.tree: only drafters on the device make trees") end
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
