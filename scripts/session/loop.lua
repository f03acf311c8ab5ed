--- The decode loop of a model, a cache and a strategy: captured graphs and device memory, shared by a session and its forks.
---
--- A step: the drafts that wait (or what a host drafter proposes now) are verified, the accepted ones become text, and the next are
--- drafted. The policy is asked between launch and wait, while the device works; its answer is how deep the next graph drafts, from
--- statistics one step old. The order of things, slots and commits are mav.spec's (core/spec.c).
---
---   1. Drafts that wait belong to the session that stepped last. Another one, or one whose text changed, starts from its root alone.
---   2. Nothing is allocated in a step once its graph is captured.
---   3. An error in a step leaves the cache as it was: begin starts over from there.
local mav = require "mav"
local capture = require "mav.session.capture"
local live = require "mav.session.live"
local costs = require "mav.session.costs"
local policies = require "mav.policy"

local loop = {}
local Loop = {}
Loop.__index = Loop

function loop.new(model, kv, strategy, options)
  local self = setmetatable({ model = model, kv = kv, runtime = model.runtime, vocab = model.config.vocab, strategy = strategy,
    chain = strategy.chain, rule = strategy.rule, policy = strategy.policy, widths = strategy.widths, k_max = strategy.k_max,
    is_tree = strategy.is_tree, fused = options.fused, call = options.call,
    steps = {}, settles = {}, draft_graphs = {}, chunks = {}, -- graphs by what they hold; rows of full pieces of a prompt
    out = {},                                                 -- proposals of a host drafter
    waiting = 0, next_k = 0, policy_s = 0.0,
    certain = false }, Loop)                                  -- a host drafter made the drafts to verify: they have no probabilities
  self.spec = mav.spec { kv = kv, widths = self.widths }
  self.tree = self.spec.tree
  self.rows_of = { [0] = 1 }
  for d = 1, self.k_max do self.rows_of[d] = self.spec:size(d) end
  for i = 1, #self.tree do self.out[i] = 0 end
  self.state = { kv = kv:layer(1), runtime = self.runtime }
  if self.chain.needs.seen then self.state.seen = self:zeros({ kv.sequences, self.vocab }, "u8") end
  self:make_memory(options)
  self:bind(strategy.drafter)
  self.live = live.new(self)
  return self
end

function Loop:zeros(shape, dtype)
  shape.dtype, shape.runtime = dtype, self.runtime
  return mav.zeros(shape)
end

--- Memory that outlives a graph: what the host reads, and what one graph leaves to the next.
function Loop:make_memory(options)
  local rows, needs = #self.tree, self.policy.needs
  self.root_accepted, self.times = self:zeros({ 1 }, "i32"), self:zeros({ 2 }, "i64")
  if needs.experts then self.experts = self:zeros({ self.model.config.layers }, "i32") end
  if needs.confidence or options.confidence then self.confidence = self:zeros({ rows }, "f32") end
  self.entropy = needs.entropy or options.entropy
end

--- Who drafts: hosts are asked in order, the device's drafts are used when none of them has any.
function Loop:bind(drafter)
  self.hosts = {}
  if not drafter then return end
  self.name = drafter.name
  if drafter.kind == "host" then
    self.hosts[1] = drafter
  elseif drafter.kind == "first" then
    for i, host in ipairs(drafter.hosts) do self.hosts[i] = host end
    self.device = drafter.device
  else
    self.device = drafter
  end
  if self.device then
    if self.rule.draws == "independent" and not self.chain.is_greedy then self.q = self:zeros({ #self.tree, self.vocab }, "f32") end
    self.first_layer = self.model.config.layers + 1
    self.bound = self.device:bind(self)
  end
end

--- Rows of levels 0 to d.
function Loop:size(d) return self.rows_of[d] end

--- The rows of level d.
function Loop:level(d) return self.tree:slice(d == 0 and 1 or self.rows_of[d - 1] + 1, self.rows_of[d]) end

--- The children of a row are rows first_child to last_child; none when the first is greater.
function Loop:first_child(row)
  local d, first = 0, 1
  while self.rows_of[d] < row do d, first = d + 1, self.rows_of[d] + 1 end
  if d == self.k_max then return 1 end
  return self.rows_of[d] + (row - first) * self.widths[d + 1] + 1, self.widths[d + 1]
end

function Loop:last_child(row)
  local first, width = self:first_child(row)
  return width and first + width - 1 or 0
end

--- The choice after every row, by the chain.
function Loop:choose(logits, rows) return (self.chain(logits, rows, self.state)) end

-- ---- graphs -----------------------------------------------------------------------------------------------------------

--- The graph of a step that verifies T rows and drafts k levels.
function Loop:step_graph(T, k)
  if self.off or not self.strategy.drafter then
    self.plain = self.plain or capture.plain(self)
    return self.plain
  end
  local key = T << 8 | k
  if self.q and self.certain then key = key | 1 << 16 end
  local entry = self.steps[key]
  if not entry then
    entry = capture.step(self, T, k)
    self.steps[key] = entry
  end
  return entry
end

local function cached(list, key, make, ...)
  local entry = list[key]
  if not entry then
    entry = make(...)
    list[key] = entry
  end
  return entry
end

--- Rows of a prompt: through the model for what they leave in the cache, and through the drafter. following: the tokens after them.
function Loop:prompt(rows, following)
  local taps = {}
  local tap = following and function(name, layer, t)
    if name == "hidden" then taps[#taps + 1] = { name, layer, t } end
  end
  local x = self.model:forward(rows, self.kv, { head = "none", fused = self.fused, tap = tap })
  if following then
    capture.feed(self, taps)
    self.bound:prompt(rows, following)
  end
  return x
end

-- ---- the policy ---------------------------------------------------------------------------------------------------------

--- How deep to draft next. Wrong answers raise; false turns speculation off for this request.
function Loop:ask()
  local started = mav.now()
  local k = self.policy.fixed
  if not k then
    k = self.call(self.policy.ask, self.policy, self.live)
    if k == false then
      self.off = true
      k = 0
    elseif math.type(k) ~= "integer" or k < 0 or k > self.k_max then
      k = policies.check_answer(k, self.k_max, self.policy.name)
    end
  end
  self.next_k = k
  self.policy_s = self.policy_s + (mav.now() - started)
end

--- How many of the k levels that wait are worth verifying.
function Loop:trim(k)
  if k == 0 or not self.policy.trim then return k end
  local started = mav.now()
  if self.confidence then
    local t, from = self.live.confidence, self.confidence
    for d = 1, k do t[d] = from:get(self.rows_of[d - 1] + 1) end
  end
  local v = self.call(self.policy.trim, self.policy, self.live, k)
  if math.type(v) ~= "integer" or v < 0 or v > k then v = policies.check_trim(v, k, self.policy.name) end
  self.policy_s = self.policy_s + (mav.now() - started)
  return v
end

-- ---- a step ---------------------------------------------------------------------------------------------------------------

--- The session's next step starts from its root alone, whatever waited.
function Loop:begin(s)
  self.spec:begin(s.seq, s.ids[s.length])
  if self.bound and self.bound.begin then self.bound:begin(s.seq) end -- a drafter's own tables carry the sequence too
  self.owner, self.length, self.waiting, self.observed = s, s.length, 0, false
end

--- A request of this session starts.
function Loop:request(s)
  self.off = false
  self.policy_s = 0.0
  live.request(self.live)
  if self.policy.reset then self.policy:reset() end
  self:begin(s)
  if self.policy.needs.costs and self.strategy.drafter and not self.calibrated then
    self.calibrated = true
    costs.measure(self, s)
    self:begin(s)
  end
  self.live.length = s.length
  if self.strategy.drafter then self:ask() end
end

--- Drafts of a host drafter, into the tree; how many levels.
function Loop:propose(s)
  local k = self.next_k
  if k == 0 then return 0 end
  for i, state in ipairs(s.proposers) do
    local n = self.call(state.propose, state, s.ids, s.length, k, self.out)
    if n and n ~= 0 then
      if math.type(n) ~= "integer" or n < 0 or n > k then
        error(("drafter '%s' proposed %s tokens; at most %d were asked for"):format(self.hosts[i].name, tostring(n), k), 0)
      end
      for j = 1, n do
        local id = self.out[j]
        if math.type(id) ~= "integer" or id < 0 or id >= self.vocab then
          error(("drafter '%s': proposal %d is %s; a token id from 0 to %d is allowed"):format(self.hosts[i].name, j, tostring(id),
            self.vocab - 1), 0)
        end
      end
      self.live.drafter = self.hosts[i].name
      self.spec:draft(n, self.out)
      self.certain = true
      return n
    end
  end
  return 0
end

--- What to verify in this step: how many levels. Host drafters go first; a device drafter's graph is launched only when they have
--- nothing.
function Loop:drafts(s)
  self.certain = false
  if self.off then return 0, 0.0 end
  if #s.proposers > 0 then
    local started = mav.now()
    local v = self:propose(s)
    if v == 0 and self.device and self.next_k > 0 and self.observed then
      local entry = cached(self.draft_graphs, self.next_k, capture.draft, self, self.next_k)
      entry.graph:launch():wait()
      self.live.drafter = self.device.name
      v = self:trim(self.next_k)
      self.spec:drafted(v)
    end
    return v, mav.now() - started
  end
  local v = self:trim(self.waiting)
  self.spec:drafted(v)
  return v, 0.0
end

--- One step of a session. Emitted tokens are in s.emitted[1 .. count].
---@return integer count
function Loop:step(s)
  if self.owner ~= s or self.length ~= s.length then self:begin(s) end
  self.owner = nil -- of nobody while a step is under way: after an error the next one begins anew
  local spec, times, off = self.spec, s.times, self.off
  local v, drafted_s = self:drafts(s)
  local k = (self.device and #s.proposers == 0 and not off) and self.next_k or 0 -- drafted in the same graph
  local entry = self:step_graph(self.rows_of[v], k)
  if self.chain.prepared and #self.chain.prepared > 0 then self.chain:prepare(s, self.rows_of[v]) end
  local launched = mav.now()
  local share = times:launched(launched, drafted_s)
  spec:verify(entry.graph)
  local asked = self.policy_s
  if self.strategy.drafter and not off then self:ask() end
  entry.graph:wait()
  asked = self.policy_s - asked
  local scores = entry.probs and self:decide(entry, v, k) or entry
  local waited = mav.now()
  times:waited(waited)
  local advanced = self.bound ~= nil and not off
  local count = spec:commit(entry.accepted, entry.choice, advanced, s.emitted, 0)
  self.owner, self.observed, self.waiting, self.length = s, advanced, k, s.length + count
  if scores.chosen then self:note_logprobs(s, entry, scores, count) end
  if share > 0.0 then live.mean(self.live, "cost_step", share * 1e6, live.COST) end
  if self.strategy.drafter then self:account(s, entry, v, count - 1, k, waited - launched - asked, drafted_s) end
  return count
end

--- The host accepts; then what follows from it runs. Returns where the log probabilities are.
function Loop:decide(entry, v, k)
  self.rule:decide(self, self.rows_of[v], entry.accepted, entry.choice, entry.probs)
  local after = cached(self.settles, entry.rows << 8 | k, capture.settle, self, entry, k)
  after.graph:launch():wait()
  return after
end

function Loop:account(s, entry, v, m, k, seconds, drafted_s)
  local t, us = self.live, seconds * 1e6
  local draft_us = drafted_s * 1e6
  local verify_us = us
  if k > 0 and not entry.probs then
    verify_us = (self.times:get(2) - self.times:get(1)) * 1e-3
    draft_us = us - verify_us
    t.drafter = self.device.name
  end
  live.update(t, entry.rows, v, m, k > 0 and k or v, us + drafted_s * 1e6, verify_us, draft_us)
  t.length = self.length
  if entry.entropy then t.entropy = entry.entropy:get(self:last_row(entry, m), 1) end
  if self.experts then live.experts(t, entry.rows, self:count_experts()) end
  s.times:speculated(v, m, verify_us, draft_us, t.entropy, v > 0 and t.drafter or "none")
end

function Loop:count_experts()
  local total, sum = self.experts, 0
  for i = 1, total.shape[1] do sum = sum + total:get(i) end
  return sum
end

--- The row at the end of the accepted path, which is m levels deep.
function Loop:last_row(entry, m)
  if m == 0 then return 1 end
  for r = self.rows_of[m - 1] + 1, self.rows_of[m] do
    if entry.accepted:get(r) == m then return r end
  end
end

--- Keeps the log probabilities of a step's tokens for their session; another one may step before they are taken.
function Loop:note_logprobs(s, entry, scores, count)
  local top, n, kept = math.min(self.chain.logprobs, self.vocab), 0, s.scores
  for place = 1, count do
    local row = self:last_row(entry, place - 1)
    kept.chosen[place] = scores.chosen:get(row, 1)
    for i = 1, top do
      n = n + 1
      kept.best[n], kept.ids[n] = scores.best:get(row, i), scores.best_ids:get(row, i)
    end
  end
end

--- Tokens below the root down to a row.
function Loop:path(row, out)
  local ids, n = self.tree.ids, 0
  local at = row
  while at > 1 do at, n = self:parent(at), n + 1 end
  at = row
  for i = n, 1, -1 do
    out[i] = ids:get(at)
    at = self:parent(at)
  end
  return n
end

function Loop:parent(row)
  local d, first = 1, 2
  while self.rows_of[d] < row do d, first = d + 1, self.rows_of[d] + 1 end
  return (d == 1 and 1 or self.rows_of[d - 2] + 1) + (row - first) // self.widths[d]
end

--- Ids of the drafts that wait, level by level.
function Loop:waiting_ids(out)
  local n = self.rows_of[self.waiting] - 1
  local ids = self.tree.ids
  for i = 1, n do out[i] = ids:get(i + 1) end
  return n
end

return loop
