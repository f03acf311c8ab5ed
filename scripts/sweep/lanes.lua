--- Lanes of a sweep: sessions of one drafter that are measured beside plain decoding. A lane is a depth or a policy of a drafter.
---
--- All depths of a drafter share a session: its policy is a number that changes between generations. A policy has a session of its
--- own, as it may need other measurements. Sessions stay open, with what their graphs and their policy have learnt.
local policies = require "mav.policy"
local user_file = require "mav.session.file"

local lanes = {}

local WARM_TOKENS = 24

local Lanes = {}
Lanes.__index = Lanes

--- setup: model, drafters (list of { text =, drafter = }), depths, policies (list of { name =, make = function() }), chain =
--- function(temperature), accept, tree, kv, context
function lanes.new(setup) return setmetatable({ setup = setup, sessions = {} }, Lanes) end

--- Names of the lanes: a list of { drafter =, k = }.
function Lanes:list()
  local list = {}
  for _, entry in ipairs(self.setup.drafters) do
    for _, k in ipairs(self.setup.depths) do list[#list + 1] = { drafter = entry.text, k = k } end
    for _, policy in ipairs(self.setup.policies) do list[#list + 1] = { drafter = entry.text, k = policy.name } end
  end
  return list
end

local function named(list, field, name)
  for _, entry in ipairs(list) do
    if entry[field] == name then return entry end
  end
end

--- The deepest level for a strategy; nil: that of its tree, or its own default.
local function deepest(setup)
  if setup.tree then return nil end
  if setup.k_max or #setup.depths == 0 then return setup.k_max end
  return math.max(table.unpack(setup.depths))
end

local function open(setup, strategy) return setup.model:session { strategy = strategy, kv_dtype = setup.kv, context = setup.context } end

function Lanes:session(name, make)
  local s = self.sessions[name]
  if not s then
    s = make()
    self.sessions[name] = s
  end
  return s
end

--- The plain session of a temperature.
function Lanes:plain(temperature)
  return self:session(("plain|%g"):format(temperature), function()
    return open(self.setup, { sample = self.setup.chain(temperature) })
  end)
end

local Depth = { name = "depth", needs = {} }
Depth.__index = Depth

function Depth:ask() return self.fixed end

function Depth:reset() end

--- The session of a lane, set to its depth. What is wrong with its strategy is said with the lane's name.
function Lanes:open(lane, temperature)
  local setup, is_depth = self.setup, math.type(lane.k) == "integer"
  local name = ("%s|%g|%s"):format(lane.drafter, temperature, is_depth and "depths" or lane.k)
  local s = self:session(name, function()
    local policy = is_depth and setmetatable({ fixed = lane.k }, Depth) or named(setup.policies, "name", lane.k).make(setup.model)
    local ok, made = pcall(open, setup, { draft = named(setup.drafters, "text", lane.drafter).drafter, policy = policy,
      sample = setup.chain(temperature), accept = setup.accept, tree = setup.tree, k_max = deepest(setup) })
    if not ok then error(type(made) == "string" and ("%s, k %s: %s"):format(lane.drafter, lane.k, made) or made, 0) end
    return made
  end)
  if is_depth then
    if lane.k > s.loop.k_max then
      error(("%s, k %d: the strategy's deepest level is %d"):format(lane.drafter, lane.k, s.loop.k_max), 0)
    end
    s.loop.policy.fixed = lane.k
  end
  return s
end

--- Captures what the lane will replay, so that few measured steps wait for it.
function Lanes:warm(lane, temperature, ids)
  local s = lane and self:open(lane, temperature) or self:plain(temperature)
  s:reset()
  s:complete(ids, { max_tokens = WARM_TOKENS, ignore_eos = true })
  if not lane or math.type(lane.k) == "integer" then return end
  for v = 0, s.loop.k_max do s.loop:step_graph(s.loop:size(v), 0) end
end

Lanes.__close = function(self) self:close() end

function Lanes:close()
  for _, s in pairs(self.sessions) do s:close() end
  self.sessions = {}
end

local STRATEGY = { "draft", "policy", "sample", "accept", "tree", "k_max" }

--- The policy that a file returned, or that of the strategy that it returned.
local function of_file(path, value)
  if value == nil then error(user_file.described(path, value) .. "; a policy, or a strategy that has one, is expected", 0) end
  if type(value) ~= "table" or value.ask ~= nil then return policies.new(value) end
  if value.policy ~= nil then return policies.new(value.policy) end
  for _, key in ipairs(STRATEGY) do
    if value[key] ~= nil then error(path .. " returned a strategy without a policy: there is nothing to measure", 0) end
  end
  return policies.new(value)
end

--- A policy by name, number or file, for a command line: { name =, make = function(model) -> policy }. A file returns a policy, a
--- strategy, whose policy is taken, or function(model) that returns either; without a model that function is not called.
function lanes.policy(text)
  if not text:find "%.lua$" then
    local spec = math.tointeger(tonumber(text)) or text
    policies.new(spec) -- unknown names fail here
    return { name = text, make = function() return policies.new(spec) end }
  end
  local function make(model)
    local value = user_file.read(text, model, function(f) return model ~= nil and user_file.takes_model(f) end)
    if type(value) == "function" and user_file.takes_model(value) then
      error(text .. " returns function(model), and there is no model here: --check loads it, or return the policy itself", 0)
    end
    return of_file(text, value)
  end
  local value = user_file.read(text, nil, function() return false end)
  if type(value) ~= "function" or not user_file.takes_model(value) then of_file(text, value) end -- what is wrong is said at once
  return { name = text:match "([^/]*)%.lua$", make = make }
end

return lanes
