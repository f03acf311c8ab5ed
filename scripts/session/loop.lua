--- The decode loop of a model, a cache and a strategy: captured graphs and device memory, shared by a session and its forks.
---
--- A step: the drafts that wait (or what a host drafter proposes now) are verified, the accepted ones become text, and the next are
--- drafted. The policy is asked while the device works, or just before; its answer is how deep the next graph drafts, from
--- statistics one step old. The order of things, slots and commits are mav.spec's (core/spec.c).
---
---   1. Drafts that wait belong to the session that stepped last. Another one, or one whose text changed, starts from its root alone.
---   2. Nothing is allocated in a step once its graph is captured.
---   3. An error in a step leaves the cache as it was: begin starts over from there.
local mav = require "mav"
local capture = require "mav.session.capture"
local live = require "mav.session.live"
local lookup = require "mav.session.lookup"
local costs = require "mav.session.costs"
local policies = require "mav.policy"

local JOINT_AFTER = 4 -- uses of a pair (rows, levels) before it gets a graph of its own
local NOTHING = -1    -- what a look found: no id
local TURNS_MAX = 2   -- changes of session in a row after which nothing is drafted

local loop = {}
local Loop = {}
Loop.__index = Loop

function loop.new(model, kv, strategy, options)
  local self = setmetatable({ model = model, kv = kv, runtime = model.runtime, vocab = model.config.vocab, strategy = strategy,
    chain = strategy.chain, rule = strategy.rule, policy = strategy.policy, widths = strategy.widths, k_max = strategy.k_max,
    is_tree = strategy.is_tree, fused = options.fused, caller = options.caller,
    call_policy = options.caller(strategy.policy), who = ("policy '%s'"):format(strategy.policy.name),
    steps = {}, settles = {}, draft_graphs = {}, chunks = {}, -- graphs by what they hold; rows of full pieces of a prompt
    uses = {}, out = {},                                      -- how often pairs came up; proposals of a host drafter
    waiting = 0, turns = 0, capture_s = 0.0, drafter = "none",
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
  self.hosts, self.host_names = {}, {}
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
  for i, host in ipairs(self.hosts) do self.host_names[i] = ("drafter '%s'"):format(tostring(host.name)) end
  if self.device then
    if self.rule.draws == "independent" and not self.chain.is_greedy then self.q = self:zeros({ #self.tree, self.vocab }, "f32") end
    self.first_layer = self.model.config.layers + 1
    self.bound = self.device:bind(self)
    if type(self.bound) ~= "table" or not self.bound.draft then
      error(("drafter '%s': bind must return an object with draft(self, step, k)"):format(tostring(self.name)), 0)
    end
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

--- The graph of a step that verifies T rows and drafts k levels, and how many levels are left to a graph of their own. Where a policy
--- changes its mind there are many pairs (T, k): one gets a graph of its own when it has come up JOINT_AFTER times.
function Loop:step_graph(T, k)
  local key = T << 8 | k
  if self.q and self.certain then key = key | 1 << 16 end
  local entry = self.steps[key]
  if entry then return entry, 0 end
  if k > 0 and not self.policy.fixed and not self.rule.host then
    local count = (self.uses[key] or 0) + 1
    self.uses[key] = count
    if count < JOINT_AFTER then return self:step_graph(T, 0), k end
  end
  return self:joint_graph(T, k, key), 0
end

--- The graph of plain decoding.
function Loop:plain_graph()
  self.plain = self.plain or self:captured(capture.plain)
  return self.plain
end

--- The one graph of both; key: step_graph's name for it.
function Loop:joint_graph(T, k, key)
  key = key or T << 8 | k
  local entry = self.steps[key] or self:captured(capture.step, T, k)
  self.steps[key] = entry
  return entry
end

--- Captures, and notes how long it took.
function Loop:captured(make, ...)
  local started = mav.now()
  local entry = make(self, ...)
  self.capture_s = self.capture_s + (mav.now() - started)
  return entry
end

--- The draft of k levels by itself, launched; k levels wait.
function Loop:draft(k)
  local entry = self.draft_graphs[k]
  if not entry then
    entry = self:captured(capture.draft, k)
    self.draft_graphs[k] = entry
  end
  entry.graph:launch():wait()
  self.drafter = self.device.name
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

--- How deep to draft next for a session. Wrong answers raise; false turns speculation off for its request.
function Loop:ask(s)
  local k = self.policy.fixed
  if not k then
    local started = mav.now()
    live.follow(self.live, s)
    k = self.call_policy(self.who, self.policy.ask, self.policy, self.live)
    if k == false then
      s.off = true
      k = 0
    elseif math.type(k) ~= "integer" or k < 0 or k > self.k_max then
      k = policies.check_answer(k, self.k_max, self.policy.name)
    end
    s.policy_s = s.policy_s + (mav.now() - started)
  end
  s.next_k = k
end

--- Launches the step's graph and waits for it. The policy is asked while the device works; where a launch returns when the work is
--- done, before it, as long as the numbers of the last step are still in the caches. Returns when the launch was, and the seconds that
--- the policy took before and after it.
function Loop:run(s, graph)
  local asks, spent = self.strategy.drafter and not s.off and not self.policy.fixed, s.policy_s
  if asks and self.is_synchronous then self:ask(s) end
  local launched, before = mav.now(), s.policy_s - spent
  self.spec:verify(graph)
  if asks and not self.is_synchronous then
    local ok, err = pcall(self.ask, self, s)
    if not ok then
      graph:wait()
      error(err, 0)
    end
  end
  self.is_synchronous = graph:poll()
  graph:wait()
  return launched, before, s.policy_s - spent - before
end

function Loop:trimmed(k)
  local v = self.call_policy(self.who, self.policy.trim, self.policy, self.live, k)
  if math.type(v) ~= "integer" or v < 0 or v > k then v = policies.check_trim(v, k, self.policy.name) end
  return v
end

--- How many of the k levels that wait are worth verifying. Where drafts are drawn independently of the choice, a level must not be
--- dropped for what was drawn in it or after it, or the text would be biased: then the policy sees one level more at a time.
function Loop:trim(s, k)
  if k == 0 or not self.policy.trim then return k end
  local started, t, from = mav.now(), self.live, self.confidence
  live.follow(t, s)
  local v = k
  if self.q then
    for d = 1, k do t.confidence[d] = 0.0 end
    for d = 1, k do
      if from then t.confidence[d] = from:get(self.rows_of[d - 1] + 1) end
      if self:trimmed(d) < d then
        v = d - 1
        break
      end
    end
  else
    for d = 1, from and k or 0 do t.confidence[d] = from:get(self.rows_of[d - 1] + 1) end
    v = self:trimmed(k)
  end
  s.policy_s = s.policy_s + (mav.now() - started)
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
  s.off, s.policy_s, s.next_k = false, 0.0, 0
  self.capture_s = 0.0
  live.request(self.live)
  if self.policy.reset then self.call_policy(self.who, self.policy.reset, self.policy) end
  self:begin(s)
  if not self.strategy.drafter then return end
  if self.policy.needs.costs and not self.calibrated then
    costs.measure(self, s)
    self.calibrated = true
    self:begin(s)
  end
  s.times:captured(self.capture_s)
  self.live.length = s.length
  self:ask(s)
end

--- Asks the drafters on the host, in order, for up to k ids, into out; how many the first one gave that gave any.
function Loop:look_up(s, k)
  for i, state in ipairs(s.proposers) do
    local n = lookup.ask(state, self.host_names[i], s.ids, s.length, k, self.out, self.vocab, self.caller(state))
    if n > 0 then
      self.drafter = self.hosts[i].name
      return n
    end
  end
  return 0
end

--- Drafts of a host drafter, into the tree; how many levels. Where none are asked for, a policy may still want to know whether one
--- would have been right, which costs a look and no row.
function Loop:propose(s)
  local k = s.next_k
  if k == 0 then
    if self.policy.needs.lookups then self.looked = self:look_up(s, 1) == 1 and self.out[1] or NOTHING end
    return 0
  end
  local n = self:look_up(s, k)
  if n == 0 then return 0 end
  self.spec:draft(n, self.out)
  self.certain = true
  return n
end

--- What to verify in this step: how many levels. Host drafters go first; a device drafter's graph is launched only when they have
--- nothing.
function Loop:drafts(s)
  self.certain, self.looked = false, false
  if s.off then return 0, 0.0 end
  if #s.proposers > 0 then
    local started = mav.now()
    local v = self:propose(s)
    if v == 0 and self.device and s.next_k > 0 and self.observed then
      self:draft(s.next_k)
      v = self:trim(s, s.next_k)
      self.spec:drafted(v)
    end
    return v, mav.now() - started - self.capture_s
  end
  local v = self:trim(s, self.waiting)
  self.spec:drafted(v)
  return v, 0.0
end

--- The graph of this step, and the levels to draft: in it, in all, and in a graph of their own after it.
function Loop:choose_graph(s, v)
  if s.off or not self.strategy.drafter then return self:plain_graph(), 0, 0 end
  local k = self.device and #s.proposers == 0 and self.turns < TURNS_MAX and s.next_k or 0
  local entry, later = self:step_graph(self.rows_of[v], k)
  return entry, k, later
end

--- One step of a session. Emitted tokens are in s.emitted[1 .. count].
---@return integer count
function Loop:step(s)
  local entered = mav.now()
  self.turns = self.last == s and 0 or self.turns + 1 -- sessions that take turns lose what is drafted
  self.last = s
  if self.owner ~= s or self.length ~= s.length then self:begin(s) end
  self.owner = nil -- of nobody while a step is under way: after an error the next one begins anew
  self.capture_s = 0.0
  local spec, times, off = self.spec, s.times, s.off
  local v, drafted_s = self:drafts(s)
  local entry, k, later = self:choose_graph(s, v)
  if self.chain.prepared and #self.chain.prepared > 0 then self.chain:prepare(s, self.rows_of[v]) end
  local launched, before, meanwhile = self:run(s, entry.graph)
  times:launched(entered, launched, drafted_s + before, self.capture_s)
  local scores = entry.probs and self:decide(entry, v, k) or entry
  local waited = mav.now()
  local verified, advanced = waited - launched - meanwhile, self.bound ~= nil and not off
  local count = spec:commit(entry.accepted, entry.choice, advanced, s.emitted, 0)
  if later > 0 then
    self:draft(later)
    waited = mav.now()
  end
  times:waited(waited)
  self.owner, self.observed, self.waiting, self.length = s, advanced, k, s.length + count
  if scores.chosen then self:note_logprobs(s, entry, scores, count) end
  if self.strategy.drafter then self:account(s, entry, v, count - 1, k, later, verified, waited - launched - meanwhile, drafted_s) end
  times:finished(mav.now())
  return count
end

--- The host accepts; then what follows from it runs. Returns where the log probabilities are.
function Loop:decide(entry, v, k)
  self.rule:decide(self, self.rows_of[v], entry.accepted, entry.choice, entry.probs)
  local key = entry.rows << 8 | k
  local after = self.settles[key] or self:captured(capture.settle, entry, k)
  self.settles[key] = after
  after.graph:launch():wait()
  return after
end

--- Writes the step into the log of times; the table that policies see follows it when somebody looks. Times in seconds: of the
--- verification, of verification and drafts in later graphs, of host drafters.
function Loop:account(s, entry, v, m, k, later, verified, all, drafted_s)
  local verify_us, draft_us = verified * 1e6, (all - verified + drafted_s) * 1e6
  local drafter = v > 0 and self.drafter or "none"
  if k > 0 then
    if later == 0 and not entry.probs then
      verify_us = (self.times:get(2) - self.times:get(1)) * 1e-3
      draft_us = verified * 1e6 - verify_us
    end
    self.drafter = self.device.name
  end
  local entropy = entry.entropy and entry.entropy:get(self:last_row(entry, m), 1) or 0.0
  local experts = self.experts and self:count_experts() or 0
  local drafted = k
  if #s.proposers > 0 then drafted = self.device and self.certain and 0 or v end -- what a lookup costs is not what the device does
  local looked = not self.looked and live.UNKNOWN or self.looked == NOTHING and live.NOTHING
    or self.looked == s.emitted[1] and live.RIGHT or live.WRONG
  s.times:speculated(v, m, verify_us, draft_us, drafted, entropy, experts, drafter, looked)
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
