--- A session: a model, a sequence and a way to choose - the one mutable timeline of inference.
---
---   1. `ids` is everything said so far. The cache holds a prefix of it, and never the last id: that one is fed by the next
---      step. So prompts, turns and (later) rejected drafts need no case of their own.
---   2. A step replays one captured graph: it sets a row, launches, waits, reads an id. It allocates nothing, neither in Lua
---      nor below. Graphs are captured when first needed and kept by their number of rows.
---   3. The sampling chain is part of the graph. It runs for every token, the first one included.
---   4. An error or an interrupt leaves a consistent session: what was chosen stays, the rest is trimmed.
local mav = require "mav"
local check_keys = require "mav.options"
local chain = require "mav.sample.chain"
local stats = require "mav.session.stats"
local stop_strings = require "mav.session.stop_strings"

local PREFILL_ROWS = 512
local SEQUENCES = 4 -- of our own cache: one and its forks
local CONTEXT_DEFAULT = 4096
local IDS_RESERVED_MAX = 1 << 16
local MAX_TOKENS_DEFAULT = 256

local session = {}
local Session = { __name = "mav.session" }

local OPTIONS = { sample = true, strategy = true, kv = true, kv_dtype = true, context = true, key = true, fused = true }
local GENERATE_OPTIONS = { max_tokens = true, ignore_eos = true, stop = true, on_token = true }

function Session.__index(self, key)
  if key == "stats" then return self.times:summary(self) end
  return Session[key]
end

function Session:__len() return self.length end

function Session:__tostring()
  return ("mav.session (%d tokens, %s)"):format(self.length, tostring(self.chain))
end

--- A table whose array part already has room for n values: appending up to there allocates nothing.
local function reserved(n)
  local t = {}
  for i = 1, n do t[i] = 0 end
  for i = n, 1, -1 do t[i] = nil end
  return t
end

--- A plain function in the place of a chain.
local function chooser(f)
  return setmetatable({ needs = {}, observe = function() end }, {
    __call = function(_, ...) return f(...) end,
    __tostring = function() return "function" end,
  })
end

--- A new session of a model.
---
---   options.sample     a chain (mav.sample.chain), its options, or your own function(logits, rows, state) that emits ops and
---                      returns ids (T), i32; nil: greedy. Also as options.strategy.sample
---   options.context    most tokens of prompt and output together; nil: what the model allows, at most 4096
---   options.kv_dtype   "f32" (nil) or "bf16"; or options.kv: a cache to share with other sessions
---   options.key        keys the sampling noise of this session's sequence; nil: 0
---   options.fused      false: unfused ops
function session.new(model, options)
  options = options or {}
  check_keys(options, OPTIONS, "model:session")
  local strategy = options.strategy or {}
  check_keys(strategy, { sample = true }, "model:session: strategy")
  local sample = options.sample or strategy.sample or {}
  if type(sample) == "function" then sample = chooser(sample) end
  if getmetatable(sample) == nil then sample = chain(sample) end

  local context = options.context or math.min(model.config.positions, CONTEXT_DEFAULT)
  if math.type(context) ~= "integer" or context < 1 then error("model:session: context must be a positive integer", 2) end
  local self = setmetatable({ model = model, chain = sample, context = context, length = 0, graphs = {},
    ids = reserved(math.min(context, IDS_RESERVED_MAX)), times = stats.new(), fused = options.fused, key = options.key or 0 }, Session)
  if options.kv and options.kv_dtype then error("model:session: give kv or kv_dtype, not both", 2) end
  self.kv = options.kv or assert(model:kv { tokens = context, context_max = context, sequences = SEQUENCES, dtype = options.kv_dtype })
  self.kv_dtype = self.kv.dtype
  self.seq = assert(self.kv:sequence { key = self.key })
  self.state = { kv = self.kv:layer(1), runtime = model.runtime }
  if sample.needs.seen then
    self.state.seen = mav.zeros { self.kv.sequences, model.config.vocab, dtype = "u8", runtime = model.runtime }
  end
  return self
end

-- ---- the timeline -------------------------------------------------------------------------------------------------------

--- Adds a text (the first one gets the begin-of-text id) or ids to the timeline. Returns how many ids that were.
---@param prompt string|integer[]
function Session:append(prompt)
  local ids = prompt
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
  for _, id in ipairs(ids) do self:push(id) end
  return #ids
end

function Session:push(id)
  self.length = self.length + 1
  self.ids[self.length] = id
end

--- Forgets everything after the first n tokens.
function Session:truncate(n)
  if math.type(n) ~= "integer" or n < 0 or n > self.length then
    error("truncate: a length from 0 to " .. self.length .. " is allowed", 2)
  end
  local keep = math.max(math.min(n - 1, #self.seq), 0)
  if keep < self.seq.floor then keep = 0 end -- chunked layers dropped what lies there: start over
  if keep == 0 then
    self.seq:close()
    self.seq = assert(self.kv:sequence { key = self.key })
  else
    assert(self.seq:truncate(keep))
  end
  for i = self.length, n + 1, -1 do self.ids[i] = nil end
  self.length = n
  self:forget_seen(keep)
end

function Session:reset() self:truncate(0) end

--- The marks of repetition cannot be taken back one by one: clears them and marks the first n tokens again.
function Session:forget_seen(n)
  local seen = self.state.seen
  if not seen then return end
  seen:select(1, self.seq.id + 1):copy_from(mav.zeros { seen.shape[2], dtype = "u8", runtime = self.model.runtime })
  for first = 1, n, PREFILL_ROWS do
    self.chain:observe(self:fill_rows(first, math.min(PREFILL_ROWS, n - first + 1)), self.state)
  end
end

-- ---- prefill, in chunks: full ones replay a graph, the rest runs eagerly --------------------------------------------

--- Rows for the tokens first .. first + count - 1 of the timeline. Those of a full chunk are kept.
function Session:fill_rows(first, count)
  local rows = count == PREFILL_ROWS and self.chunk_rows or mav.rows(count, { runtime = self.model.runtime })
  if count == PREFILL_ROWS then self.chunk_rows = rows end
  local seq = self.seq.id
  for i = 1, count do
    rows:set(i, self.ids[first + i - 1], seq, first + i - 2, i - 1) -- its parent: the row before
  end
  return rows
end

--- Runs rows for what they leave in the cache, and marks them as seen.
function Session:run_rows(rows)
  local options = { head = "none", fused = self.fused }
  if rows ~= self.chunk_rows then
    self.model:forward(rows, self.kv, options)
  else
    self.chunk_graph = self.chunk_graph or mav.graph({ rows = rows, runtime = self.model.runtime }, function(r)
      return self.model:forward(r, self.kv, options)
    end)
    self.chunk_graph:launch():wait()
  end
  self.chain:observe(rows, self.state)
end

--- Brings the cache up to the last token but one.
function Session:prefill()
  local seq, target = self.seq, self.length - 1
  if target < 0 then error("nothing to continue: the session is empty", 0) end
  if #seq > target then assert(seq:truncate(target)) end -- an interrupt fell between commit and push
  if #seq == target then return end
  local before, start = #seq, mav.now()
  while #seq < target do
    local count = math.min(PREFILL_ROWS, target - #seq)
    assert(seq:reserve(count))
    self:run_rows(self:fill_rows(#seq + 1, count))
    assert(seq:commit(count))
  end
  self.times:prompt(target - before, mav.now() - start)
end

-- ---- decode: one captured graph ---------------------------------------------------------------------------------------

--- The step graph for n rows: logits, chain, and the marks of repetition. Results: ids, and what the chain adds.
function Session:graph(n)
  local g = self.graphs[n]
  if g then return g end
  local model, choose, state = self.model, self.chain, self.state
  g = assert(mav.graph({ rows = n, runtime = model.runtime }, function(rows)
    local logits = model:forward(rows, self.kv, { fused = self.fused })
    local results = table.pack(choose(logits, rows, state))
    choose:observe(rows, state)
    return table.unpack(results, 1, results.n)
  end))
  self.graphs[n] = g
  return g
end

--- Feeds the last token and chooses the next, which becomes the last. The cache must be filled up to it (prefill).
---@return integer id
function Session:step()
  local g, seq, length, times = self.step_graph, self.seq, self.length, self.times
  if not g then
    g = self:graph(1)
    self.step_graph, self.step_ids, self.step_rows = g, g[1], g.rows
  end
  assert(seq:reserve(1))
  self.step_rows:set(1, self.ids[length], seq.id, length - 1)
  times:launched(mav.now())
  g:launch()
  g:wait()
  times:waited(mav.now())
  local id = self.step_ids:get(1)
  assert(seq:commit(1))
  self.length = length + 1
  self.ids[length + 1] = id
  return id
end

--- The chain's log probabilities of the last step: { id =, logprob =, top = { { id, logprob }, ... } }
function Session:last_logprobs()
  local g, top = self.step_graph, {}
  local chosen, best, best_ids = g[2], g[3], g[4]
  for i = 1, best.shape[2] do top[i] = { best_ids:get(1, i), best:get(1, i) } end
  return { id = self.ids[self.length], logprob = chosen:get(1, 1), top = top }
end

-- ---- generate --------------------------------------------------------------------------------------------------------

local function check_generate(options)
  check_keys(options, GENERATE_OPTIONS, "generate")
  local max = options.max_tokens
  if max ~= nil and (math.type(max) ~= "integer" or max < 0) then error("generate: max_tokens must be an integer from 0 on", 3) end
  return max or MAX_TOKENS_DEFAULT
end

--- Continues the timeline; an iterator over pieces of text. An error in a step is raised from the loop.
---
---   options.max_tokens   most tokens to add (256)
---   options.ignore_eos   do not stop at an end-of-text token
---   options.stop         a string or a list of strings that end the text; they are not part of it
---   options.on_token     function(id, logprobs or nil), called for every token
---
--- Afterwards self.stopped says why: "eos", "length" (max_tokens), "stop", "context" (no room left). The ids that were added are
--- the tail of self.ids, an end-of-text id included; self.generated counts them.
---@param prompt string|integer[]|nil
function Session:generate(prompt, options)
  options = options or {}
  local max_tokens = check_generate(options)
  local model, ended = self.model, false
  local is_eos = {}
  for _, id in ipairs(model.config.eos) do is_eos[id] = not options.ignore_eos end
  local detokenizer = model.tokenizer and model.tokenizer:stream { skip_special = true }
  local stops = stop_strings.new(options.stop)
  if prompt then self:append(prompt) end
  self.stopped, self.generated = nil, 0
  self.times:begin()

  local function one()
    if self.generated >= max_tokens then return nil, "length" end
    if self.length >= self.context then return nil, "context" end
    local id = self:step()
    self.generated = self.generated + 1
    if options.on_token then options.on_token(id, self.chain.logprobs and self:last_logprobs() or nil) end
    if is_eos[id] then return "", "eos" end
    return detokenizer and detokenizer:push(id) or ""
  end

  local function finish(why)
    ended, self.stopped = true, why
    return stops:push(detokenizer and detokenizer:finish() or "") .. stops:rest()
  end

  local function next_piece()
    if self.generated == 0 and not ended and max_tokens > 0 then self:prefill() end
    while not ended do
      local piece, why = one()
      local text = piece and stops:push(piece) or ""
      if stops.found then
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
  if self.seq then self.seq:close() end
  self.seq, self.graphs, self.step_graph, self.step_ids, self.step_rows = nil, {}, nil, nil, nil
  self.chunk_graph, self.chunk_rows = nil, nil
end
Session.__close = Session.close

return session
