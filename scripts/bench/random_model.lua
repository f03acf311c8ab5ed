--- A model of random weights for a configuration: what weights.lua makes of a checkpoint, without one. Speed is that of a real model of
--- this shape; the text would be noise.
---
--- One block of random codes is uploaded and doubled up on the device; every weight is filled from places of its own in it. So a rank of
--- Maverick (50 GB) takes a second, not what a bus takes.
local mav = require "mav"
local maverick = require "mav.maverick"
local weights = require "mav.maverick.weights"

local random_model = {}

local SEED_BYTES = 1 << 20
local BLOCK = 64 << 20 -- elements
local RMS = 112       -- of e4m3 codes that are all equally likely

--- One block of n random elements that weights are copied from.
local function new_block(rt, dtype, n)
  local seed = {}
  for i = 1, SEED_BYTES // 8 do seed[i] = string.pack("<i8", math.random(0)) end
  local bytes = table.concat(seed):gsub("[\x7f\xff]", "\x3c") -- no NaN
  local have = math.min(n, SEED_BYTES)
  local first = mav.tensor(bytes:sub(1, have), { dtype = "f8", shape = { have }, runtime = rt })
  if dtype ~= "f8" then first = mav.op.cast { x = first:to "f32" * (1 / (64 * RMS)), dtype = dtype } end
  local block = mav.zeros { n, dtype = dtype, runtime = rt }
  block:slice(1, 1, have):copy_from(first)
  while have < n do
    local more = math.min(have, n - have)
    block:slice(1, have + 1, have + more):copy_from(block:slice(1, 1, more))
    have = have + more
  end
  return block
end

local Filler = {}
Filler.__index = Filler

function Filler:block(dtype)
  self.blocks[dtype] = self.blocks[dtype] or new_block(self.rt, dtype, self.size)
  return self.blocks[dtype]
end

--- A tensor of random elements.
function Filler:random(dtype, shape)
  local t, n = mav.zeros { dtype = dtype, runtime = self.rt, table.unpack(shape) }, weights.elements(shape)
  local flat, block = t:reshape { n }, self:block(dtype)
  local piece = math.max(1, self.size // 2)
  for first = 1, n, piece do
    local count = math.min(piece, n - first + 1)
    local from = math.random(0, (self.size - count) // 64) * 64
    flat:slice(1, first, first + count - 1):copy_from(block:slice(1, from + 1, from + count))
  end
  return t
end

function Filler:ones(n) return mav.tensor(1, { dtype = "bf16", shape = { n }, runtime = self.rt }) end

--- In the order in which the device reads it fastest. The memory of the other is free at once: together they might not fit.
local function shuffled(t)
  local new = t:shuffle()
  if new == t then return t end
  local _ <close> = t
  return new
end

--- A weight (N, D) or (E, N, D) of the linear layers.
function Filler:linear(...)
  local shape = { ... }
  if self.dtype ~= "f8" then return self:random(self.dtype, shape) end
  local t = self:random("f8", shape)
  local rows = { table.unpack(shape, 1, #shape - 1) }
  local scale = mav.tensor(1 / (RMS * math.sqrt(shape[#shape])), { dtype = "f32", shape = rows, runtime = self.rt })
  local act = self.activations
  t:set_scale(scale, { act = act, in_scale = act == "static" and 4 / 448 or nil })
  return self.by_rows and t or shuffled(t)
end

local function fill_layer(f, c, L, is_moe)
  local D, C = c.hidden, c.head_dim
  local heads, F = c.heads * C, is_moe and c.expert_size or c.dense_size
  L.attn_norm, L.ffn_norm = f:ones(D), f:ones(D)
  L.qkv, L.o = f:linear(heads + 2 * c.kv_heads * C, D), f:linear(D, heads)
  L.gate, L.up, L.down = f:linear(F, D), f:linear(F, D), f:linear(D, F)
  if not is_moe then return end
  L.router = f:random("bf16", { c.experts, D })
  L.expert_gate, L.expert_up, L.expert_down = f:linear(c.experts, F, D), f:linear(c.experts, F, D), f:linear(c.experts, D, F)
end

--- Elements of the largest weight.
local function largest(c)
  local most = math.max(c.vocab * c.hidden, c.dense_size * c.hidden)
  for i = 1, c.layers do
    if c.is_moe[i] then most = math.max(most, c.experts * c.expert_size * c.hidden) end
  end
  return most
end

--- options: name; runtime; dtype ("f8", "bf16", "f32") of the linear layers; activations ("none", "static", "dynamic"), of f8; by_rows:
--- true: not in the order in which a device reads weights fastest.
---@return table model   as of maverick.load
function random_model.new(c, options)
  local rt = options.runtime
  local f = setmetatable({ rt = rt, dtype = options.dtype, activations = options.activations, by_rows = options.by_rows, blocks = {},
    size = math.min(BLOCK, 2 * largest(c)) }, Filler)
  local W = { layers = {}, norm = f:ones(c.hidden), embed = f:random("bf16", { c.vocab, c.hidden }),
    head = f:random("bf16", { c.vocab, c.hidden }) }
  for i = 1, c.layers do
    W.layers[i] = {}
    fill_layer(f, c, W.layers[i], c.is_moe[i])
  end
  weights.add_constants(W, c, rt)
  return maverick.of { dir = options.name, config = c, weights = W, runtime = rt, dtype = options.dtype }
end

return random_model
