--- The forward pass is a script: copy it and change the model.
---
---     mav examples/03_forward.lua [MODEL_DIR]
---
--- This copy skips layers, so that a part of the model can draft for the whole. It prints how often the part guesses the whole's
--- next token. Both are captured once and replayed; neither needs another line of C.
local mav = require "mav"
local maverick = require "mav.maverick"
local attention = require "mav.maverick.attention"
local moe = require "mav.maverick.moe"
local op = mav.op

local here = (arg and arg[0] or ""):match("^(.*)/[^/]*$") or "."
local dir = arg and arg[1] or here .. "/../tests/oracle/models/maverick"

--- scripts/maverick/forward.lua without its options, and with one line more.
local function forward(W, rows, kv, skips)
  local x = op.embed { rows = rows, table = W.embed }
  for i, L in ipairs(W.layers) do
    if not skips[i] then -- the change
      local cache = kv:layer(i)
      local q = attention.queries(L, x, rows, cache)
      local a = attention.attend(L, q, rows, cache)
      x = attention.project(L, a, x)
      local index, score
      if L.router then index, score = moe.route(L, x) end
      x = moe.feed_forward(L, x, index, score)
    end
  end
  return op.lm_head { x = x, norm = W.norm, w = W.head, eps = W.eps }
end

local model = assert(maverick.load(dir))
local ids = assert(model:encode("Cache lines are sixty-four bytes"))

--- A step of one token, captured: what it would say next.
local function stepper(skips)
  local kv = assert(model:kv { tokens = 512, sequences = 1 })
  local seq = assert(kv:sequence {})
  local graph = mav.graph({ rows = 1, runtime = model.runtime }, function(rows)
    return op.argmax { x = forward(model.weights, rows, kv, skips) }
  end)
  return function(id)
    assert(seq:reserve(1))
    graph.rows:set(1, id, seq, #seq)
    graph:launch():wait()
    assert(seq:commit(1))
    return graph[1]:get(1)
  end
end

local skips = {} -- every second layer of the upper half
for i = model.config.layers // 2 + 1, model.config.layers, 2 do skips[i] = true end

local whole, part = stepper {}, stepper(skips)
local text, guessed, steps = {}, 0, 32
local next_whole, next_part
for _, id in ipairs(ids) do next_whole, next_part = whole(id), part(id) end
for i = 1, steps do
  text[i] = next_whole
  if next_part == next_whole then guessed = guessed + 1 end
  next_whole, next_part = whole(text[i]), part(text[i])
end

print("the whole model says: " .. assert(model.tokenizer:decode(text)))
print(("without every second layer of the upper half it guesses %d of %d tokens"):format(guessed, steps))

-- the copy without a change is the model itself
local s <close> = model:session {}
s:complete(ids, { max_tokens = steps, ignore_eos = true })
for i = 1, steps do assert(s.ids[#ids + i] == text[i], "the copied forward pass differs from the model") end
