--- Shapes of models, without their weights: what one of `tp` ranks holds of Maverick or Scout, as a configuration (maverick/config.lua).
---
--- A rank has its share of heads, of intermediate width and of vocabulary, and every expert; there is no communication here. tiny is for
--- tests: as Maverick, and small.
local config = require "mav.maverick.config"

local shape = {}

local SHAPES = {
  maverick = { hidden = 5120, layers = 48, heads = 40, kv_heads = 8, head_dim = 128, experts = 128, expert_size = 8192, dense_size = 16384,
    vocab = 202048, moe_every = 2, qk_norm = false, chunk = 8192 },
  scout = { hidden = 5120, layers = 48, heads = 40, kv_heads = 8, head_dim = 128, experts = 16, expert_size = 8192, dense_size = 16384,
    vocab = 202048, moe_every = 1, qk_norm = true, chunk = 8192 },
  tiny = { hidden = 128, layers = 4, heads = 8, kv_heads = 8, head_dim = 32, experts = 4, expert_size = 256, dense_size = 512, vocab = 2048,
    moe_every = 2, qk_norm = false, chunk = 64 },
}

shape.names = { "maverick", "scout", "tiny" }

local SHARED = { "heads", "kv_heads", "expert_size", "dense_size", "vocab" } -- by the ranks

local ROPE_EVERY = 4 -- every fourth layer has none
local POSITIONS = 1 << 20

--- The configuration of a rank. options: tp, and of what is not given as the model has it: layers, experts, vocab (of the whole model).
--- Raises where the shape cannot be shared by so many.
function shape.config(name, options)
  local s, tp = SHAPES[name], options.tp or 1
  local c = { hidden = s.hidden, layers = options.layers or s.layers, experts = options.experts or s.experts, top_k = 1, eps = 1e-5,
    head_dim = s.head_dim, qk_norm = s.qk_norm, temperature = true, attn_scale = 0.1, floor_scale = 8192, positions = POSITIONS,
    chunk = s.chunk, tied = false, rope = { theta = 500000 }, eos = {}, is_rope = {}, is_moe = {}, chunks = {} }
  local shared = { heads = s.heads, kv_heads = s.kv_heads, expert_size = s.expert_size, dense_size = s.dense_size,
    vocab = options.vocab or s.vocab }
  for _, key in ipairs(SHARED) do
    local size = shared[key]
    if size % tp ~= 0 then error(("%s of %s is %d, which %d ranks cannot share"):format(key, name, size, tp), 0) end
    c[key] = size // tp
  end
  for i = 1, c.layers do
    c.is_rope[i], c.is_moe[i] = i % ROPE_EVERY ~= 0, i % s.moe_every == 0
    c.chunks[i] = c.is_rope[i] and c.chunk or 0
  end
  c.inv_freq = config.inverse_frequencies(c.head_dim, c.rope)
  return c
end

return shape
