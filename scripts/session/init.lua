--- A session: a model, a sequence and a way to choose - the one mutable timeline of inference.
---
---   1. `ids` is everything said so far. The cache holds a prefix of it, and never the last id: that one is fed by the next
---      step. So prompts, turns and (later) rejected drafts need no case of their own.
---   2. A step (loop.lua) replays a captured graph and gives one token or more. It allocates nothing, neither in Lua nor below.
---      Tokens that a step gave and nobody took yet are not part of the timeline; when the text ends before them, they are dropped.
---   3. The sampling chain is part of the graph. It runs for every token, the first one included.
---   4. An error or an interrupt leaves a consistent session: what was chosen stays, the rest is trimmed.
local mav = require "mav"
local check_keys = require "mav.options"
local strategy = require "mav.session.strategy"
local loop = require "mav.session.loop"
local live = require "mav.session.live"
local stats = require "mav.session.stats"
local stop_strings = require "mav.session.stop_strings"

local PREFILL_ROWS = 512
local SEQUENCES = 4 -- of our own cache: one and its forks
local CONTEXT_DEFAULT = 4096
local IDS_RESERVED_MAX = 1 << 16
local MAX_TOKENS_DEFAULT = 256

local session = {}
local Session = { __name = "mav.session" }

local OPTIONS = { sample = true, strategy = true, kv = true, kv_dtype = true, context = true, key = true, fused = true, entropy = true,
  confidence = true }
local GENERATE_OPTIONS = { max_tokens = true, ignore_eos = true, stop = true, on_token = true, on_step = true }

function Session.__index(self, key)
  if key == "stats" then return self.times:summary(self) end
  if key == "live" then
    local shared = self.loop
    if shared.strategy.drafter then live.follow(shared.live, self) end
    return shared.live
  end
  return Session[key]
end

function Session:__len() return self.length end

function Session:__tostring()
  return ("mav.session (%d tokens, %s)"):format(self.length, tostring(self.loop.chain))
end

--- A table whose array part already has room for n values: appending up to there allocates nothing.
local function reserved(n)
  local t = {}
  for i = 1, n do t[i] = 0 end
  for i = n, 1, -1 do t[i] = nil end
  return t
end

--- A new session of a model.
---
---   options.strategy   who drafts, how many, how to choose, what to keep: session/strategy.lua
---   options.sample     short for strategy = { sample = }: a chain (mav.sample.chain), its options, or a function; nil: greedy
---   options.context    most tokens of prompt and output together; nil: what the model allows, at most 4096
---   options.kv_dtype   "f32", "bf16" or "fp8", nil: as the checkpoint asks; or options.kv: a cache to share with other sessions
---   options.key        keys the sampling noise of this session's sequence; nil: 0
---   options.fused      false: unfused ops
---   options.entropy, confidence   true: s.live has the target's entropy, the drafts' probabilities, though the policy needs none
function session.new(model, options)
  options = options or {}
  check_keys(options, OPTIONS, "model:session")
  local plan = strategy.new(options)
  local context = options.context or math.min(model.config.positions, CONTEXT_DEFAULT)
  if math.type(context) ~= "integer" or context < 1 then error("model:session: context must be a positive integer", 2) end
  if options.kv and options.kv_dtype then error("model:session: give kv or kv_dtype, not both", 2) end
  local device = plan.drafter and (plan.drafter.kind == "device" and plan.drafter or plan.drafter.device)
  local extra = device and device:layers(model) or {}
  local kv = options.kv
  if kv and kv.layers ~= model.config.layers + #extra then
    error(("model:session: the cache has %d layers; the model has %d and the drafter %d"):format(kv.layers, model.config.layers, #extra), 2)
  end
  local room = context + strategy.slack(plan)
  kv = kv or assert(model:kv { tokens = room, context_max = room, sequences = SEQUENCES, dtype = options.kv_dtype, extra = extra })
  local shared = loop.new(model, kv, plan,
    { fused = options.fused, entropy = options.entropy, confidence = options.confidence, caller = strategy.caller })
  return session.on(shared, kv:sequence { key = options.key or 0 }, context, options.key or 0)
end

--- A session of its own on a loop: a new one, or a fork.
function session.on(shared, seq, context, key)
  local most, top = #shared.tree, shared.chain.logprobs or 0
  local self = setmetatable({ model = shared.model, loop = shared, kv = shared.kv, kv_dtype = shared.kv.dtype, context = context, key = key,
    seq = assert(seq), length = 0, ids = reserved(math.min(context, IDS_RESERVED_MAX)),
    times = stats.new(shared.strategy.drafter ~= nil, context),
    given = 0, taken = 0, -- tokens of the last step: given by it, and taken from it
    emitted = reserved(most), -- these tokens, and their log probabilities
    scores = { chosen = reserved(most), best = reserved(most * top), ids = reserved(most * top) },
    settled = 0,          -- tokens that the cache holds for the drafter too
    stepping = false,     -- still true after a step that failed
    next_k = 0, off = false, policy_s = 0.0, -- of the request: what the policy answered last, and how long it took in all
    proposers = {} }, Session)
  for i, host in ipairs(shared.hosts) do
    local state = host:start(self)
    if type(state) ~= "table" or not state.propose then
      error(("drafter '%s': start must return an object with propose(self, ids, length, k, out)"):format(tostring(host.name)), 0)
    end
    self.proposers[i] = state
  end
  shared.live.sequences = shared.live.sequences + 1
  return self
end

local function check_open(self, method)
  if not self.seq then error(("session:%s: the session is closed"):format(method), 0) end
end

--- A session with the same text, cache pages shared until one side writes; both go on by themselves. key: of its sampling noise.
---@param options {key: integer}|nil
function Session:fork(options)
  options = options or {}
  check_keys(options, { key = true }, "session:fork")
  check_open(self, "fork")
  self:drop()
  local key = options.key or self.key
  local other = session.on(self.loop, self.seq:fork { key = key }, self.context, key)
  table.move(self.ids, 1, self.length, 1, other.ids)
  other.length, other.settled, other.stepping = self.length, self.settled, self.stepping
  other.next_k, other.off = self.next_k, self.off
  local seen = self.loop.state.seen
  if seen then seen:select(1, other.seq.id + 1):copy_from(seen:select(1, self.seq.id + 1)) end
  return other
end

-- ---- the timeline -------------------------------------------------------------------------------------------------------

--- Adds a text (the first one gets the begin-of-text id) or ids to the timeline. Returns how many ids that were.
---@param prompt string|integer[]
function Session:append(prompt)
  local ids = prompt
  check_open(self, "append")
  if type(prompt) ~= "string" and type(prompt) ~= "table" then
    error(("the prompt is a %s; a text or a list of ids is allowed"):format(type(prompt)), 0)
  end
  if type(prompt) == "string" then
    if self.length == 0 then
      ids = assert(self.model:encode(prompt))
    else
      ids = assert(assert(self.model.tokenizer, self.model.tokenizer_error):encode(prompt, { bos = false, special = true }))
    end
  end
  local vocab = self.model.config.vocab
  for i, id in ipairs(ids) do
    if math.type(id) ~= "integer" or id < 0 or id >= vocab then
      error(("id %d of the prompt is %s; an integer from 0 to %d is allowed"):format(i, tostring(id), vocab - 1), 0)
    end
  end
  if self.length + #ids > self.context then
    error(("%d tokens more than the context of %d"):format(self.length + #ids - self.context, self.context), 0)
  end
  self:drop()
  for _, id in ipairs(ids) do self:push(id) end
  return #ids
end

function Session:push(id)
  self.length = self.length + 1
  self.ids[self.length] = id
end

--- Forgets everything after the first n tokens.
function Session:truncate(n)
  check_open(self, "truncate")
  if math.type(n) ~= "integer" or n < 0 or n > self.length then
    error("truncate: a length from 0 to " .. self.length .. " is allowed", 2)
  end
  self:drop()
  local keep = math.max(math.min(n - 1, #self.seq, self.settled), 0)
  if keep < self.seq.floor then keep = 0 end -- chunked layers dropped what lies there: start over
  if keep == 0 then
    self.seq:close()
    self.seq = assert(self.kv:sequence { key = self.key })
  else
    assert(self.seq:truncate(keep))
  end
  for i = self.length, n + 1, -1 do self.ids[i] = nil end
  self.length, self.settled, self.loop.owner = n, math.min(self.settled, keep), nil
  for _, state in ipairs(self.proposers) do
    if state.truncate then state:truncate(n) end
  end
  self:forget_seen(keep)
end

function Session:reset()
  check_open(self, "reset")
  self:truncate(0)
end

--- The marks of repetition cannot be taken back one by one: clears them and marks the first n tokens again.
function Session:forget_seen(n)
  local seen = self.loop.state.seen
  if not seen then return end
  seen:select(1, self.seq.id + 1):copy_from(mav.zeros { seen.shape[2], dtype = "u8", runtime = self.model.runtime })
  for first = 1, n, PREFILL_ROWS do
    self.loop.chain:observe(self:fill_rows(first, math.min(PREFILL_ROWS, n - first + 1)), self.loop.state)
  end
end

-- ---- prefill, in chunks: full ones replay a graph, the rest runs eagerly --------------------------------------------

--- Rows for the tokens first .. first + count - 1 of the timeline; ahead = 1: with the ids of the tokens after them. Those of a full
--- chunk are kept.
function Session:fill_rows(first, count, ahead)
  ahead = ahead or 0
  local chunks = self.loop.chunks
  local rows = count == PREFILL_ROWS and chunks[ahead] or mav.rows(count, { runtime = self.model.runtime })
  if count == PREFILL_ROWS then chunks[ahead] = rows end
  local seq = self.seq.id
  for i = 1, count do
    rows:set(i, self.ids[first + i - 1 + ahead], seq, first + i - 2, i - 1) -- its parent: the row before
  end
  return rows
end

--- Runs the tokens first .. first + count - 1 for what they leave in the cache, the drafter's included, and marks them as seen.
function Session:run_rows(first, count)
  local shared = self.loop
  local wants = shared.bound and shared.bound.prompt
  local rows, following = self:fill_rows(first, count), wants and self:fill_rows(first, count, 1)
  if count < PREFILL_ROWS then
    shared:prompt(rows, following)
  else
    shared.chunk_graph = shared.chunk_graph or mav.graph({ rows = rows, runtime = self.model.runtime }, function(r)
      return shared:prompt(r, following)
    end)
    shared.chunk_graph:launch():wait()
  end
  shared.chain:observe(rows, shared.state)
end

--- Brings the cache up to the last token but one.
function Session:prefill()
  check_open(self, "prefill")
  local seq, target = self.seq, self.length - 1
  if target < 0 then error("nothing to continue: the session is empty", 0) end
  if self.stepping then -- a step failed: it may have marked tokens that are not part of the text
    self:forget_seen(math.min(#self.seq, target))
    self.stepping = false
  end
  if self.loop.bound and self.settled < #seq then self:rewind(self.settled) end -- tokens that the drafter has not seen
  if #self.seq > target then self:rewind(target) end -- an interrupt fell between commit and push, or the text ended before them
  seq = self.seq
  if #seq < target then
    local before, start = #seq, mav.now()
    while #seq < target do
      local count = math.min(PREFILL_ROWS, target - #seq)
      assert(seq:reserve(count))
      self:run_rows(#seq + 1, count)
      assert(seq:commit(count))
    end
    self.model.runtime:wait() -- what ran at once is only on its way
    self.times:prompt(target - before, mav.now() - start)
  end
  self.settled = target
end

--- Takes the cache back to `keep` tokens, or to none where chunked layers dropped what lies there.
function Session:rewind(keep)
  if keep >= self.seq.floor then
    assert(self.seq:truncate(keep))
  else
    self.seq:close()
    self.seq, self.settled = assert(self.kv:sequence { key = self.key }), 0
    self:forget_seen(0)
  end
end

-- ---- decode ------------------------------------------------------------------------------------------------------------

--- The next token, which becomes the last one: of those that the last step gave, else of a new step.
---@return integer id
function Session:step()
  local shared = self.loop
  if self.taken == self.given then
    check_open(self, "step")
    local drafts = shared.bound and not self.off
    if self.stepping or #self.seq ~= self.length - 1 or (drafts and self.settled < #self.seq) then self:prefill() end
    self.stepping = true
    self.given, self.taken = shared:step(self), 0
    self.stepping = false
    if drafts or not shared.bound then self.settled = #self.seq end
    if self.on_step then self.on_step(self) end
  end
  local taken, length = self.taken + 1, self.length + 1
  local id = self.emitted[taken]
  self.taken, self.length = taken, length
  self.ids[length] = id
  self.times:token()
  return id
end

--- Forgets tokens that a step gave and nobody took.
function Session:drop()
  if self.taken < self.given then
    self.given, self.taken, self.loop.owner = 0, 0, nil
    if #self.seq > self.length - 1 then self:rewind(self.length - 1) end
    self.settled = math.min(self.settled, #self.seq)
    self:forget_seen(#self.seq)
  end
end

--- The chain's log probabilities of the last token: { id =, logprob =, top = { { id, logprob }, ... } }
function Session:last_logprobs()
  local scores, top = self.scores, {}
  local count = math.min(self.loop.chain.logprobs, self.loop.vocab)
  for i = 1, count do
    local at = (self.taken - 1) * count + i
    top[i] = { scores.ids[at], scores.best[at] }
  end
  return { id = self.ids[self.length], logprob = scores.chosen[self.taken], top = top }
end

--- Ids of the drafts that wait for verification, level by level, into out; how many.
function Session:drafts(out) return self.loop.owner == self and self.loop:waiting_ids(out) or 0 end

--- Tokens of the tree from below the root to a row, into out; how many. For steps of a chain that the host prepares.
function Session:path(row, out) return self.loop:path(row, out) end

-- ---- generate --------------------------------------------------------------------------------------------------------

--- Errors have no position: generate may have been called by complete.
local function check_generate(options)
  if type(options) ~= "table" then error(("generate: options are %s; a table is allowed"):format(tostring(options)), 0) end
  for key in pairs(options) do
    if not GENERATE_OPTIONS[key] then error(("generate: unknown option '%s'"):format(tostring(key)), 0) end
  end
  local max = options.max_tokens
  if max ~= nil and (math.type(max) ~= "integer" or max < 0) then
    error(("generate: max_tokens is %s; an integer from 0 on is allowed"):format(tostring(max)), 0)
  end
  for _, name in ipairs { "on_token", "on_step" } do
    local f = options[name]
    if f ~= nil and type(f) ~= "function" and not (getmetatable(f) or {}).__call then
      error(("generate: %s is a %s; a function is allowed"):format(name, type(f)), 0)
    end
  end
  return max or MAX_TOKENS_DEFAULT
end

--- Continues the timeline; an iterator over pieces of text. An error in a step is raised from the loop.
---
---   options.max_tokens   most tokens to add (256)
---   options.ignore_eos   do not stop at an end-of-text token
---   options.stop         a string or a list of strings that end the text; they are not part of it
---   options.on_token     function(id, logprobs or nil), called for every token
---   options.on_step      function(session), called after every step, before its tokens are taken
---
--- Afterwards self.stopped says why: "eos", "length" (max_tokens), "stop", "context" (no room left). The ids that were added are
--- the tail of self.ids, an end-of-text id included; self.generated counts them.
---@param prompt string|integer[]|nil
function Session:generate(prompt, options)
  options = options or {}
  check_open(self, "generate")
  local max_tokens = check_generate(options)
  local model, ended = self.model, false
  local is_eos = {}
  for _, id in ipairs(model.config.eos) do is_eos[id] = not options.ignore_eos end
  local detokenizer = model.tokenizer and model.tokenizer:stream { skip_special = true }
  local stops = stop_strings.new(options.stop)
  self:drop()
  if prompt then self:append(prompt) end
  self.stopped, self.generated, self.on_step = nil, 0, options.on_step
  self.times:begin()

  local function one()
    if self.generated >= max_tokens then return nil, "length" end
    if self.length >= self.context then return nil, "context" end
    local id = self:step()
    self.generated = self.generated + 1
    if options.on_token then options.on_token(id, self.loop.chain.logprobs and self:last_logprobs() or nil) end
    if is_eos[id] then return "", "eos" end
    return detokenizer and detokenizer:push(id) or ""
  end

  local function finish(why)
    ended, self.stopped = true, why
    self:drop()
    return stops:push(detokenizer and detokenizer:finish() or "") .. stops:rest()
  end

  local function next_piece()
    if self.generated == 0 and not ended and max_tokens > 0 then
      self:prefill()
      self.loop:request(self)
    end
    while not ended do
      local piece, why = one()
      local text = piece and stops:push(piece) or ""
      if stops.found then
        self:drop()
        ended, self.stopped = true, "stop"
      elseif why then
        text = text .. finish(why)
        if stops.found then self.stopped = "stop" end
      end
      if text ~= "" then return text end
    end
    return nil
  end

  return function()
    self.times:resume(mav.now())
    local text = next_piece()
    self.times:suspend(mav.now())
    return text
  end
end

--- The whole continuation as one string.
function Session:complete(prompt, options)
  local pieces = {}
  for piece in self:generate(prompt, options) do pieces[#pieces + 1] = piece end
  return table.concat(pieces)
end

function Session:close()
  if not self.seq then return end
  self.seq:close()
  self.seq, self.proposers = nil, {}
  self.loop.live.sequences = self.loop.live.sequences - 1
end
Session.__close = Session.close

return session
