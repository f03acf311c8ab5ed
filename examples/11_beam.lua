--- Beam search: the B likeliest texts so far, each a sequence of the cache, all of them one token further in one launch.
---
---     mav examples/11_beam.lua [MODEL_DIR]
---
--- Below the session: a cache, forked sequences, a captured graph of B rows, each of another sequence. The graph gives the B best
--- next tokens of every row; which of the B * B texts go on is decided here, and is a matter of forking.
local mav = require "mav"
local op = mav.op

local here = (arg and arg[0] or ""):match("^(.*)/[^/]*$") or "."
local model = assert(require("mav.maverick").load(arg and arg[1] or here .. "/../models/tiny-maverick"))

local PROMPT = "-- counts"
local B, TOKENS = 4, 32

--- Runs ids[1 .. #ids - 1] into a new sequence: the last one is fed by the first step.
local function prefill(kv, ids)
  local seq = assert(kv:sequence {})
  local n = #ids - 1
  local rows = mav.rows(n, { runtime = model.runtime })
  assert(seq:reserve(n))
  for i = 1, n do rows:set(i, ids[i], seq, i - 1, i - 1) end -- its parent: the row before
  model:forward(rows, kv, { head = "none" })
  assert(seq:commit(n))
  return seq
end

--- Beams, best first: { ids =, score = }, score being the log probability of the ids after the prompt.
local function search(prompt, width, tokens)
  local kv = assert(model:kv { tokens = 2 * width * (#prompt + tokens + 32), sequences = 2 * width })
  local graph = mav.graph({ rows = width, runtime = model.runtime }, function(rows)
    return op.topk { x = op.log_softmax { x = model:forward(rows, kv) }, k = width }
  end)
  local logp, ids = graph[1], graph[2]

  -- width times the same text; only the first counts, or all would choose the same
  local beams = { { seq = prefill(kv, prompt), ids = { prompt[#prompt] }, score = 0.0 } }
  for b = 2, width do beams[b] = { seq = beams[1].seq:fork {}, ids = { prompt[#prompt] }, score = -math.huge } end

  for _ = 1, tokens do
    for b, beam in ipairs(beams) do
      assert(beam.seq:reserve(1))
      graph.rows:set(b, beam.ids[#beam.ids], beam.seq, #beam.seq)
    end
    graph:launch():wait()
    local candidates = {}
    for b, beam in ipairs(beams) do
      assert(beam.seq:commit(1))
      for i = 1, width do
        candidates[#candidates + 1] = { from = beam, id = ids:get(b, i), score = beam.score + logp:get(b, i) }
      end
    end
    table.sort(candidates, function(a, b) return a.score > b.score end)
    local following = {}
    for b = 1, width do
      local c = candidates[b]
      local list = table.move(c.from.ids, 1, #c.from.ids, 1, {})
      list[#list + 1] = c.id
      following[b] = { seq = c.from.seq:fork {}, ids = list, score = c.score } -- shares all pages
    end
    for _, beam in ipairs(beams) do beam.seq:close() end
    beams = following
  end
  for _, beam in ipairs(beams) do
    beam.seq:close()
    table.remove(beam.ids, 1)
  end
  return beams
end

local prompt = assert(model:encode(PROMPT))
local beams = search(prompt, B, TOKENS)
local one = search(prompt, 1, TOKENS)[1]
local function show(name, beam) print(("%s, %.3f:\n%s%s"):format(name, beam.score, PROMPT, model.tokenizer:decode(beam.ids))) end
show("greedy", one)
for b, beam in ipairs(beams) do show("beam " .. b, beam) end

--- A beam of one is greedy decoding.
local s <close> = model:session {}
s:complete(prompt, { max_tokens = TOKENS, ignore_eos = true })
for i = 1, TOKENS do assert(s.ids[#prompt + i] == one.ids[i]) end

--- The scores are those of the texts: each computed again, all its rows at once.
for _, beam in ipairs(beams) do
  local kv = assert(model:kv { tokens = #prompt + TOKENS + 32, sequences = 1 })
  local seq <close> = assert(kv:sequence {})
  local rows = mav.rows(#prompt + TOKENS, { runtime = model.runtime })
  assert(seq:reserve(#rows))
  for i = 1, #rows do rows:set(i, prompt[i] or beam.ids[i - #prompt], seq, i - 1, i - 1) end
  local logp, score = op.log_softmax { x = model:forward(rows, kv) }, 0.0
  for i = 1, TOKENS do score = score + logp:get(#prompt + i - 1, beam.ids[i] + 1) end
  assert(math.abs(score - beam.score) < 1e-3)
end
for b = 2, B do assert(beams[b - 1].score >= beams[b].score) end
assert(beams[1].score > one.score, "here greedy decoding misses a likelier text")
