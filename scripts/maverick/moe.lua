--- The feed-forward half of a layer: dense, or one shared expert and the router's choice of the routed ones.
---
--- The router's score is the sigmoid of a chosen expert's logit, and it scales the expert's input, not its output; the
--- shared expert takes the input as it is.
local op = require("mav").op

local moe = {}

--- Chosen experts (T, top_k), i32, and their scores (T, top_k).
function moe.route(L, x)
  return op.router { x = x, norm = L.ffn_norm, w = L.router, top_k = L.top_k, eps = L.eps }
end

--- x + feed_forward(norm(x)). index and score come from moe.route; nil in a dense layer.
function moe.feed_forward(L, x, index, score, comm)
  if L.apart then return moe.feed_forward_unfused(L, x, index, score, comm) end -- gate and up round the input differently
  local h = op.ffn_up { x = x, norm = L.ffn_norm, gate = L.gate, up = L.up, expert_gate = L.expert_gate, expert_up = L.expert_up,
    index = index, score = score, eps = L.eps }
  return op.ffn_down { h = h, down = L.down, expert_down = L.expert_down, index = index, x = x, comm = comm }
end

-- ---- the same from its parts -----------------------------------------------------------------------------------------

function moe.route_unfused(L, x)
  local h = op.rmsnorm { x = x, w = L.ffn_norm, eps = L.eps }
  local logits = op.matmul { x = h, w = L.router }
  local best, index = op.topk { x = logits, k = L.top_k }
  return index, op.sigmoid { x = best }
end

local function swiglu(gate, up) return op.swiglu { gate = gate, up = up } end

function moe.feed_forward_unfused(L, x, index, score, comm)
  local h = op.rmsnorm { x = x, w = L.ffn_norm, eps = L.eps }
  local y = op.matmul { x = swiglu(op.matmul { x = h, w = L.gate }, op.matmul { x = h, w = L.up }), w = L.down }
  if index then
    local T, D = table.unpack(h.shape)
    local each = h:reshape { T, 1, D } -- the same input for every expert of a token
    local g = op.expert_matmul { x = each, w = L.expert_gate, index = index, score = score }
    local u = op.expert_matmul { x = each, w = L.expert_up, index = index, score = score }
    local z = op.expert_matmul { x = swiglu(g, u), w = L.expert_down, index = index } -- (T, top_k, D)
    for a = 1, L.top_k do y = op.add { a = y, b = z:select(2, a) } end
  end
  if comm then y = op.all_reduce { x = y, comm = comm } end
  return op.add { a = x, b = y }
end

return moe
