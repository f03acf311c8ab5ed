--- Parity of EAGLE-3 heads with an independent reference: fused features, the head's outputs, drafted ids and their logits; and that
--- speculation accepts what the reference accepts without changing a token.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local golden = dofile(here .. "/golden.lua")
local mav = require "mav"
local maverick = require "mav.maverick"
local eagle3 = require "mav.draft.eagle3"
local op = mav.op

local BOUND = 1e-4 -- largest difference over the largest magnitude
local HEADS = { "eagle3_full", "eagle3_d2t" }

--- As much of a session's loop as a drafter needs, run eagerly: one chain of k drafts.
local Loop = {}
Loop.__index = Loop

local function new_loop(model, drafter, k, tokens)
  local self = setmetatable({ model = model, runtime = model.runtime, vocab = model.config.vocab, k_max = k, widths = {},
    first_layer = model.config.layers + 1 }, Loop)
  for d = 1, k do self.widths[d] = 1 end
  self.kv = assert(model:kv { tokens = tokens, sequences = 2, extra = drafter:layers(model) })
  self.seq = assert(self.kv:sequence {})
  self.tree = mav.rows(k + 1, { runtime = model.runtime })
  self.bound = drafter:bind(self)
  self.bound:begin(self.seq)
  return self
end

function Loop:size(depth) return depth + 1 end

function Loop:level(depth) return self.tree:slice(depth + 1, depth + 1) end

--- Runs ids[first .. last] through the model; a table of their rows.
function Loop:feed(ids, first, last)
  local rows = mav.rows(last - first + 1, { runtime = self.runtime })
  assert(self.seq:reserve(last - first + 1))
  for i = first, last do rows:set(i - first + 1, ids[i], self.seq, i - 1, i - first) end
  local logits = self.model:forward(rows, self.kv, { tap = function(...) self.bound:tap(...) end })
  return rows, logits
end

--- The whole prompt but its last token, for the drafter too.
function Loop:prefill(ids)
  local n = #ids - 1
  local rows, following = self:feed(ids, 1, n), mav.rows(n, { runtime = self.runtime })
  for i = 1, n do following:set(i, ids[i + 1], self.seq, i - 1, i - 1) end
  self.bound:prompt(rows, following)
  assert(self.seq:commit(n))
end

--- Verifies the last token alone and drafts k levels greedily. Drafted ids, and the heads' outputs and logits as tables.
function Loop:step(ids)
  local rows, logits = self:feed(ids, #ids, #ids)
  local choice = op.argmax { x = logits }
  local loop = self
  local step = { rows = rows, accepted = mav.zeros { 1, dtype = "i32", runtime = self.runtime }, choice = choice }
  local drafted, scores = {}, {}
  function step.choose(_, x, nodes, d)
    assert.are.equal(1, #nodes)
    local best = op.argmax { x = x }
    op.rows_put { ids = best, next = loop:level(d), vocab = loop.vocab }
    drafted[d], scores[d] = best:get(1), golden.flat(x)
    return best
  end
  self.bound:observe(step)
  assert(self.seq:commit(1))
  assert(self.seq:reserve(self.k_max + 2))
  for i = 1, self.k_max + 1 do self.tree:set(i, 0, self.seq, #ids + i - 1, i - 1) end
  op.rows_advance { rows = rows, accepted = step.accepted, choice = choice, next = self.tree, vocab = self.vocab }
  self.bound:draft(step, self.k_max)
  return drafted, scores, choice:get(1)
end

--- Keeps what the head computes on its way: features of every pass, outputs of every level.
local function spy(bound)
  local seen = { features = {}, outputs = {} }
  local features, outputs = bound.features, bound.outputs
  function bound.features(self)
    local x = features(self)
    for _, row in ipairs(x:totable()) do table.insert(seen.features, row) end
    return x
  end
  function bound.outputs(...)
    local x = outputs(...)
    table.insert(seen.outputs, x:totable()[1])
    return x
  end
  return seen
end

--- The logits of the drafts' own vocabulary.
local function reduced(scores, targets)
  if not targets then return scores end
  local list = {}
  for i, id in ipairs(targets) do list[i] = scores[id + 1] end
  return list
end

local function close(actual, expected, what)
  local e = golden.error(actual, expected)
  assert.is_true(e < BOUND, ("%s: error %.3g"):format(what, e))
end

for _, device in ipairs(golden.devices) do
  describe("EAGLE-3 on " .. device, function()
    local model
    setup(function() model = assert(maverick.load(golden.model_dir "maverick", { device = device, threads = 2 })) end)
    teardown(function() model = nil end)

    for _, name in ipairs(HEADS) do
      describe(name, function()
        local drafter, g, k
        setup(function()
          drafter, g = assert(eagle3.load(golden.model_dir(name), model)), golden.open(name)
          k = golden.json("goldens/" .. name .. "/golden.json").num_draft_tokens
        end)
        teardown(function() drafter, g = nil, nil end)

        it("drafts the golden chains", function()
          local targets = drafter.head.targets and drafter.head.targets:totable()
          for _, p in ipairs { "short", "long", "mid" } do
            local prefix = g.get(p .. ".prefix_ids")
            local ids = { table.unpack(prefix, 1, #prefix - 1) }
            local loop = new_loop(model, drafter, k, #ids + 2 * k + 8)
            local seen = spy(loop.bound)
            loop:prefill(ids)
            local drafted, scores, first = loop:step(ids)
            assert.are.equal(prefix[#prefix], first)
            close(seen.features, g.get(p .. ".fused"), p .. ".fused")
            close(seen.outputs, g.get(p .. ".draft_hidden"), p .. ".draft_hidden")
            for d = 1, k do scores[d] = reduced(scores[d], targets) end
            close(scores, g.get(p .. ".draft_logits"), p .. ".draft_logits")
            assert.are.same(g.get(p .. ".draft_ids"), drafted)
          end
        end)

        it("computes the golden outputs at every position", function()
          for _, p in ipairs { "short", "long", "mid" } do
            local ids = g.get(p .. ".prefix_ids")
            local loop, out = new_loop(model, drafter, k, #ids + 8), nil
            local queries = loop.bound.queries
            function loop.bound.queries(bound, h, rows, tokens)
              local q = queries(bound, h, rows, tokens)
              out = bound:outputs(h, q, rows)
              return q
            end
            loop:prefill(ids)
            close(out, g.get(p .. ".prefix_hidden"), p .. ".prefix_hidden")
          end
        end)

        if device == "ref" then return end -- whole decodes are slow there; ops are compared with it one by one

        --- Tokens accepted by step, and the text, of a decode of as many tokens as the reference made.
        local function decode(p, strategy)
          local ids, count, accepted = g.get(p .. ".prefix_ids"), #g.get(p .. ".output_ids"), {}
          table.remove(ids)
          local n = #ids
          strategy.draft = drafter
          local s <close> = model:session { strategy = strategy }
          s:complete(ids, { max_tokens = count, ignore_eos = true, on_step = function() accepted[#accepted + 1] = s.live.accepted end })
          return { table.unpack(s.ids, n + 1, n + count) }, accepted
        end

        it("accepts what the reference accepts", function()
          for _, p in ipairs { "short", "long", "mid" } do
            local text, accepted = decode(p, { policy = k })
            assert.are.same(g.get(p .. ".output_ids"), text)
            assert.are.equal(0, table.remove(accepted, 1)) -- our first step verifies the prompt's last token alone
            assert.are.same(g.get(p .. ".step_accepted"), accepted)
          end
        end)

        it("does not change the text", function()
          for _, p in ipairs { "short", "mid" } do
            for depth = 1, 8 do assert.are.same(g.get(p .. ".output_ids"), (decode(p, { policy = depth }))) end
            for _, tree in ipairs { { 2, 2, 1 }, { 4, 2, 2, 1 }, { 7 } } do
              assert.are.same(g.get(p .. ".output_ids"), (decode(p, { tree = tree })))
            end
          end
        end)
      end)
    end
  end)
end
