--- EAGLE-3: a trained head of one layer drafts from the model's own states. Device drafter.
---
---     local draft = assert(require("mav.draft.eagle3").load("models/eagle3", model))
---     local s <close> = model:session { strategy = { draft = draft, policy = 4 } }
---
--- At position j the head sees g[j] = fc(states of some layers at j) and the embedding of the token after it, x[j+1]; from its
--- layer's output it predicts x[j+2]. Deeper levels take the head's own output, un-normed, in the place of g.
---
---   * The head's keys and values are one more layer of the model's cache, at the same positions.
---   * After every verification the accepted positions are computed again from the model's states (observe), so drafted keys never
---     outlive a step. Only the last accepted row needs more than keys: it drafts the first level.
---   * A draft tree of the head's own has the shape of the loop's and lies one position before it. Tokens are read from the loop's.
---
--- Source: arXiv 2503.01840.
local mav = require "mav"
local check_keys = require "mav.options"
local eagle3_head = require "mav.draft.eagle3_head"
local op = mav.op

local eagle3 = {}

local OPTIONS = { dtype = true, progress = true }

local Drafter = { __name = "mav.draft.eagle3", name = "eagle3", kind = "device" }
Drafter.__index = Drafter

function Drafter:__tostring()
  local c = self.head.config
  return ("eagle3 %s (hidden %d, %d of %d tokens)"):format(c.dir, c.hidden, c.draft_vocab, c.vocab)
end

function Drafter:layers()
  local c = self.head.config
  return { { kv_heads = c.kv_heads, head_dim = c.head_dim, chunk = 0 } }
end

local Bound = {}
Bound.__index = Bound

function Drafter:bind(loop)
  local head, rt = self.head, loop.runtime
  local D, V = head.config.hidden, head.config.vocab
  local bound = setmetatable({ loop = loop, head = head, runtime = rt, taps = {}, place = {} }, Bound)
  for i, layer in ipairs(head.config.aux) do bound.place[layer] = i end
  bound.cache = loop.kv:layer(loop.first_layer)
  bound.last = mav.zeros { 1, D, runtime = rt }     -- the head's output at the last accepted row
  bound.pair = mav.zeros { 1, 2 * D, runtime = rt } -- the input of one row
  if head.targets then bound.nothing = mav.tensor(-math.huge, { shape = { V }, runtime = rt }) end
  bound.tree = mav.rows(loop:size(loop.k_max), { runtime = rt })
  bound:begin(0)
  return bound
end

--- The rows that a launch will move belong to this sequence. Called by the loop when it begins another one.
---@param seq userdata|integer
function Bound:begin(seq)
  local loop, parents = self.loop, 1 -- where the level before begins
  self.tree:set(1, 0, seq, 0)
  for d = 1, loop.k_max do
    local first = loop:size(d - 1) + 1
    for i = first, loop:size(d) do self.tree:set(i, 0, seq, d, parents + (i - first) // loop.widths[d]) end
    parents = first
  end
end

--- Takes the states that the head reads.
function Bound:tap(name, layer, tensor)
  local place = name == "hidden" and self.place[layer]
  if place then self.taps[place] = tensor end
end

--- fc of the states of the pass just made, from low to high.
function Bound:features()
  local x, taps = self.taps[1], self.taps
  for i = 2, #self.head.config.aux do x = op.concat { a = x, b = taps[i] } end
  self.taps = {}
  return op.matmul { x = x, w = self.head.fc }
end

--- The norms of embedding and state side by side, (n, 2 D). Of one row both halves are contiguous and are written in place.
function Bound:inputs(e, h)
  local head, n, D = self.head, #h, self.head.config.hidden
  local left, right
  if n == 1 then left, right = self.pair:slice(2, 1, D), self.pair:slice(2, D + 1, 2 * D) end
  left = op.rmsnorm { x = e, w = head.embed_norm, eps = head.eps, out = left }
  right = op.rmsnorm { x = h, w = head.state_norm, eps = head.eps, out = right }
  return n == 1 and self.pair or op.concat { a = left, b = right }
end

--- The first half of the layer: queries (n, H, C); keys and values go to the cache.
---@param h userdata   (n, D) features, or the head's outputs
---@param rows userdata   where the rows lie in the head's cache
---@param tokens userdata   rows whose ids are those of the next tokens
function Bound:queries(h, rows, tokens)
  local e = op.embed { rows = tokens, table = self.head.embed }
  local qkv = op.matmul { x = self:inputs(e, h), w = self.head.qkv }
  return op.rope_append { qkv = qkv, rows = rows, kv = self.cache, rope = self.head.rope, half = 1 }
end

--- The second half: the layer's output (n, D). The residual is the un-normed h.
function Bound:outputs(h, q, rows, out)
  local H = self.head
  local a = op.attention { q = q, rows = rows, kv = self.cache }
  local r = op.proj_residual { a = a, w = H.o, x = h }
  local up = op.ffn_up { x = r, norm = H.ffn_norm, gate = H.gate, up = H.up, eps = H.eps }
  return op.ffn_down { h = up, down = H.down, x = r, out = out }
end

--- Logits of the model's vocabulary.
function Bound:logits(h)
  local H = self.head
  local logits = op.lm_head { x = h, norm = H.norm, w = H.head, eps = H.eps }
  if not H.targets then return logits end
  return op.scatter { x = logits, index = H.targets, base = self.nothing }
end

--- Prompt rows: keys and values are all that is needed.
function Bound:prompt(_, following) self:queries(self:features(), following, following) end

--- After acceptance: the accepted positions from their true states, and the output that drafts first.
function Bound:observe(step)
  local rows, T, c = step.rows, #step.rows, self.head.config
  local follow = mav.rows(T, { runtime = self.runtime })
  op.rows_follow { rows = rows, accepted = step.accepted, choice = step.choice, next = follow, vocab = c.vocab }
  op.rows_advance { rows = rows, accepted = step.accepted, choice = step.choice, next = self.tree, vocab = c.vocab, shift = -1 }
  local h = self:features()
  local q = self:queries(h, follow, follow)
  if T > 1 then
    local last = op.last_accepted { rows = rows, accepted = step.accepted }
    h = op.gather { x = h, index = last }
    q = op.gather { x = q:reshape { T, c.heads * c.head_dim }, index = last }:reshape { 1, c.heads, c.head_dim }
  end
  self:outputs(h, q, self.tree:slice(1, 1), self.last)
end

--- h once for each of `width` children of every row.
local function repeated(h, width, runtime)
  if width == 1 then return h end
  local index = {}
  for i = 0, #h * width - 1 do index[i + 1] = i // width end
  return op.gather { x = h, index = mav.tensor(index, { dtype = "i32", runtime = runtime }) }
end

function Bound:draft(step, k)
  local loop, h = self.loop, self.last
  for d = 1, k do
    local nodes = loop:level(d - 1)
    if d > 1 then
      local rows = self.tree:slice(loop:size(d - 2) + 1, loop:size(d - 1))
      h = repeated(h, loop.widths[d - 1], self.runtime)
      h = self:outputs(h, self:queries(h, rows, nodes), rows)
    end
    step:choose(self:logits(h), nodes, d)
  end
end

--- Loads a head for `model`, on its device.
---
---   options.dtype, progress   as of the model's loader
---@param dir string   config.json and safetensors of the head
---@param model table
---@param options table|nil
---@return table|nil drafter
---@return any err
function eagle3.load(dir, model, options)
  options = options or {}
  check_keys(options, OPTIONS, "draft.eagle3")
  if type(model) ~= "table" or not model.config then error("draft.eagle3: load(dir, model): the model is missing", 2) end
  local head, err = eagle3_head.load(dir, model, options)
  if not head then return nil, err end
  return setmetatable({ head = head }, Drafter)
end

return eagle3
