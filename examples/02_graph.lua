-- examples/02_graph.lua - capture once, replay: a small made-up decoder layer with a KV cache.
-- After the capture a step is: fill the rows, launch, wait. No Lua runs in it and nothing is allocated.
local mav = require "mav"
local op = mav.op

local D, C, H, K, F, V = 16, 4, 4, 2, 32, 11

-- Weights that are made up, but always the same.
local state = 1
local function random(...)
  local shape, n = { ... }, 1
  for _, size in ipairs(shape) do n = n * size end
  local data = { shape = shape }
  for i = 1, n do
    state = (state * 1103515245 + 12345) % (1 << 31)
    data[i] = (state / (1 << 31) - 0.5) * 0.5
  end
  return mav.tensor(data)
end

local W = {
  embed = random(V, D),
  attn_norm = mav.tensor(1, { shape = { D } }),
  qkv = random((H + 2 * K) * C, D),
  o = random(D, H * C),
  ffn_norm = mav.tensor(1, { shape = { D } }),
  gate = random(F, D):quantize(), -- FP8: the script does not change
  up = random(F, D):quantize(),
  down = random(D, F),
  norm = mav.tensor(1, { shape = { D } }),
  head = random(V, D),
}
local rope = mav.tensor { 1, 0.01 } -- inverse frequencies, C / 2

local kv = assert(mav.kv { layers = 1, kv_heads = K, head_dim = C, tokens = 256, dtype = "f32" })

-- The forward pass is a script. It runs once for every number of rows.
local function forward(rows)
  local x = op.embed { rows = rows, table = W.embed }
  local q = op.norm_qkv { x = x, norm = W.attn_norm, w = W.qkv, rows = rows, kv = kv:layer(1), rope = rope }
  local a = op.attention { q = q, rows = rows, kv = kv:layer(1) }
  x = op.proj_residual { a = a, w = W.o, x = x }
  local h = op.ffn_up { x = x, norm = W.ffn_norm, gate = W.gate, up = W.up }
  x = op.ffn_down { h = h, down = W.down, x = x }
  local logits = op.lm_head { x = x, norm = W.norm, w = W.head }
  return op.argmax { x = logits }, logits
end

local step = mav.graph({ rows = 1 }, forward)
local many = mav.graph({ rows = 4 }, forward)
print(step, step[1], step[2])

-- Token ids and positions count from 0; rows count from 1.
local function decode(seq, first, count)
  local ids, id = {}, first
  for i = 1, count do
    assert(seq:reserve(1))
    step.rows:set(1, id, seq, #seq)
    step:launch():wait()
    assert(seq:commit(1))
    id = step[1]:get(1)
    ids[i] = id
  end
  return ids
end

local ids
do
  local seq <close> = assert(kv:sequence())
  ids = decode(seq, 3, 8)
  print("one row a step:  ", table.concat(ids, " "))
end
assert(kv.pages_live == 0)

-- The same tokens, four rows at once: every row names the row before it as its parent. The choices are the same, bit for bit.
do
  local seq <close> = assert(kv:sequence())
  assert(seq:reserve(4))
  for i = 1, 4 do many.rows:set(i, i == 1 and 3 or ids[i - 1], seq, i - 1, i - 1) end
  many:launch():wait()
  local profile = many:profile() -- runs it once more; before the commit, since committed positions are never written
  assert(seq:commit(4))
  print("four rows a step:", table.concat(many[1]:totable(), " "))
  for i = 1, 4 do assert(many[1]:get(i) == ids[i]) end
  assert(seq:truncate(2)) -- what a verified draft does when its tail is refused
  assert(#seq == 2)

  local stats = many:stats()
  print(("%d ops in %d bytes of planned memory; without reuse %d"):format(stats.ops, stats.planned_bytes, stats.unplanned_bytes))
  table.sort(profile, function(a, b) return a.us > b.us end)
  print(("slowest op: %s, %.1f us"):format(profile[1].op, profile[1].us))
end
