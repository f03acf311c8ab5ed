--- The attention half of a layer: from the residual stream to the heads' outputs side by side, (T, H C).
local op = require("mav").op

local attention = {}

--- Queries of the rows; their keys and values are appended to the cache.
---@param L table      a layer of weights.lua
---@param x userdata   (T, D) residual stream
---@param cache userdata   kv:layer(i)
---@return userdata    (T, H, C)
function attention.queries(L, x, rows, cache)
  if L.qk_norm == 0 and L.qkv then
    return op.norm_qkv { x = x, norm = L.attn_norm, w = L.qkv, rows = rows, kv = cache, rope = L.rope, eps = L.eps,
      attn_scale = L.attn_scale, floor_scale = L.floor_scale }
  end
  return attention.queries_unfused(L, x, rows, cache) -- Scout: the norm of q and k sits between RoPE and the cache; or no qkv
end

--- q, k and v side by side.
local function project(L, h)
  if L.qkv then return op.matmul { x = h, w = L.qkv } end
  local q, k, v = op.matmul { x = h, w = L.q }, op.matmul { x = h, w = L.k }, op.matmul { x = h, w = L.v }
  return op.concat { a = op.concat { a = q, b = k }, b = v }
end

--- The same from its parts.
function attention.queries_unfused(L, x, rows, cache)
  local h = op.rmsnorm { x = x, w = L.attn_norm, eps = L.eps }
  return op.rope_append { qkv = project(L, h), rows = rows, kv = cache, rope = L.rope, qk_norm = L.qk_norm, eps = L.eps,
    attn_scale = L.attn_scale, floor_scale = L.floor_scale }
end

--- Softmax over the cache, or over the row's own chunk of it.
function attention.attend(L, q, rows, cache) return op.attention { q = q, rows = rows, kv = cache, chunk = L.chunk } end

--- The output projection onto the residual stream.
function attention.project(L, a, x, comm) return op.proj_residual { a = a, w = L.o, x = x, comm = comm } end

function attention.project_unfused(L, a, x, comm)
  local y = op.matmul { x = a, w = L.o }
  if comm then y = op.all_reduce { x = y, comm = comm } end
  return op.add { a = x, b = y }
end

return attention
