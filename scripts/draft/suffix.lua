--- Suffix lookup: every sequence of up to `depth` tokens of the timeline is a path of a tree that counts how often it occurred. The
--- end of the text is matched as deep as it goes, and from there the most frequent continuation is followed (the most recent one
--- on ties). How much is proposed depends on how much is known: at most factor tokens per token matched, and only as long as the
--- counts make the whole draft likely. Host drafter.
---
---     local draft = require("mav.draft.suffix") { depth = 12, factor = 2, p_min = 0.1 }
---
--- A token of the timeline is added to the `depth` paths that end with it: O(depth) per token, and no allocation but that of
--- growing tables. A path that reaches the deepest level, or the end of the text, goes on from its suffix one token shorter. A long
--- prompt is added in pieces, one a proposal, and nothing is proposed until all of it is known.
---
--- Source: SuffixDecoding, arXiv 2411.04975 (there: a path-compressed tree over many requests, and draft trees).
local check_keys = require "mav.options"

local OPTIONS = { depth = true, factor = true, p_min = true, nodes_max = true }
local NODES_MAX = 1 << 21 -- then the tree starts over with the last tokens
local PATHS_MAX = 49152   -- that one proposal adds tokens to, at most
local ROOT <const> = 1

local Drafter = { __name = "mav.draft.suffix", name = "suffix", kind = "host" }
Drafter.__index = Drafter

function Drafter:__tostring()
  return ("suffix (matches of up to %d tokens, %g times as many drafts)"):format(self.depth, self.factor)
end

local State = { is_bounded = true } -- see mav.policy
State.__index = State

--- What a drafter knows of one session.
function Drafter:start()
  local state = setmetatable({ depth = self.depth, factor = self.factor, p_min = self.p_min, nodes_max = self.nodes_max }, State)
  state:clear()
  return state
end

--- Nodes are numbers; a node's token, level, count (how often it occurred), total (how often it was continued), best (its most
--- frequent child, 0: none) and link (the same tokens without the first) lie in a list each. child: node << 24 | token -> node.
--- active[d]: the node of the last d tokens, d <= reach. The tree holds the timeline's tokens up to `added`.
function State:clear(added)
  self.token, self.level, self.count, self.total = { 0 }, { 0 }, { 0 }, { 0 }
  self.best, self.link, self.child = { 0 }, { 0 }, {}
  self.active, self.reach, self.added = { [0] = ROOT }, 0, added or 0
end

local function new_node(self, key, id, level, link)
  local node = #self.count + 1
  self.token[node], self.level[node], self.count[node], self.total[node] = id, level, 0, 0
  self.best[node], self.link[node], self.child[key] = 0, link, node
  return node
end

--- The text goes on with a token.
local function add(self, id)
  local count, total, best, child, active = self.count, self.total, self.best, self.child, self.active
  local reach, node, shorter = math.min(self.reach, self.depth - 1), ROOT, ROOT
  for d = 0, reach do
    local key = node << 24 | id
    local next = child[key] or new_node(self, key, id, d + 1, shorter)
    count[next], total[node] = count[next] + 1, total[node] + 1
    local rival = best[node]
    if rival == 0 or count[next] >= count[rival] then best[node] = next end
    node, active[d + 1], shorter = active[d + 1], next, next
  end
  self.reach = reach + 1
end

--- The deepest node of the end of the text that occurred before and was continued; nil: not even the last token was.
local function match(self)
  for d = self.reach, 1, -1 do
    local node = self.active[d]
    if self.best[node] ~= 0 then return node, d end
  end
  return nil
end

--- Writes the ids that may follow ids[1..length] into out[1..n]; n <= k.
---@param ids integer[]
---@param length integer
---@param k integer
---@param out integer[]
---@return integer n
function State:propose(ids, length, k, out)
  if length < self.added then self:clear() end
  if #self.count > self.nodes_max then self:clear(math.max(0, length - self.nodes_max // (4 * self.depth))) end
  for i = self.added + 1, math.min(length, self.added + math.max(1, PATHS_MAX // self.depth)) do
    self.added = i -- first: no token counts twice, wherever a call is stopped
    add(self, ids[i])
  end
  if self.added < length then return 0 end

  local best, count, total, link = self.best, self.count, self.total, self.link
  local node, matched = match(self)
  if not node then return 0 end
  local n, p = 0, 1.0
  k = math.min(k, math.max(1, math.floor(self.factor * matched)))
  while n < k do
    while best[node] == 0 and node ~= ROOT do node = link[node] end
    if node == ROOT then break end
    local next = best[node]
    p = p * count[next] / total[node]
    if p < self.p_min then break end
    n = n + 1
    out[n], node = self.token[next], next
  end
  return n
end

--- The timeline was cut to `length`. Counts cannot be taken back: the tree grows again from what remains.
function State:truncate(length)
  if length < self.added then self:clear() end
end

local function number(name, value, least, most, math_type)
  if type(value) ~= "number" or (math_type and math.type(value) ~= math_type) or not (value >= least and value <= most) then
    error(("draft.suffix: %s is %s; %s from %g to %g is allowed"):format(name, tostring(value),
      math_type == "integer" and "an integer" or "a number", least, most), 3)
  end
  return value
end

--- options.depth: longest match plus continuation that is counted (12); options.factor: drafts per matched token (2);
--- options.p_min: least probability of the whole draft by the counts (0.1); options.nodes_max: where the tree starts over.
---@param options table|nil
---@return table drafter
return function(options)
  options = options or {}
  check_keys(options, OPTIONS, "draft.suffix")
  return setmetatable({
    depth = number("depth", options.depth or 12, 2, 256, "integer"),
    factor = number("factor", options.factor or 2, 0.01, 1000),
    p_min = number("p_min", options.p_min or 0.1, 0, 1),
    nodes_max = number("nodes_max", options.nodes_max or NODES_MAX, 1024, 1 << 36, "integer"),
  }, Drafter)
end
