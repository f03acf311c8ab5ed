--- The Llama 4 forward pass. Copy this file and change it: examples/03_forward.lua does.
---
--- The same function runs eagerly and inside mav.graph. It only composes ops: nothing here looks at values, so what is
--- captured once can be replayed for any tokens.
local op = require("mav").op
local attention = require "mav.maverick.attention"
local moe = require "mav.maverick.moe"

local FUSED = { queries = attention.queries, project = attention.project, route = moe.route, feed_forward = moe.feed_forward }
local UNFUSED = { queries = attention.queries_unfused, project = attention.project_unfused, route = moe.route_unfused,
  feed_forward = moe.feed_forward_unfused }
local NONE = {}

--- Logits of every row.
---
---   options.head     "all" (the default), "last": of the last row only, "none": the residual stream instead of logits
---   options.tap      function(name, layer, tensor), called while composing with "embed" (layer 0), "q", "attention",
---                    "router_index" and "hidden" (the residual stream after a layer): to keep or return what lies inside
---   options.layers   numbers of the layers to run, in their order (all): fewer are a draft of the model, out of its own weights
---   options.fused    false: from the unfused ops, for teaching, for tests, to see what fusion is worth
---   options.comm     the ranks that share heads and intermediate width
---@param W table     weights.load
---@param rows userdata
---@param kv userdata  the cache; the rows' keys and values are appended to it
---@param options table|nil
---@return userdata logits  (T, V); with head = "none" x (T, D)
local function forward(W, rows, kv, options)
  options = options or NONE
  local part = options.fused == false and UNFUSED or FUSED
  local tap, comm, head, layers = options.tap, options.comm, options.head or "all", options.layers

  local x = op.embed { rows = rows, table = W.embed }
  if tap then tap("embed", 0, x) end
  for n = 1, #(layers or W.layers) do
    local i = layers and layers[n] or n
    local L, cache = W.layers[i], kv:layer(i)
    local q = part.queries(L, x, rows, cache)
    local a = attention.attend(L, q, rows, cache)
    x = part.project(L, a, x, comm)
    local index, score
    if L.router then index, score = part.route(L, x) end
    x = part.feed_forward(L, x, index, score, comm)
    if tap then
      tap("q", i, q)
      tap("attention", i, a)
      if index then tap("router_index", i, index) end
      tap("hidden", i, x)
    end
  end

  if head == "none" then return x end
  if head == "last" then x = x:slice(1, #rows, #rows) end
  if options.fused == false then return op.matmul { x = op.rmsnorm { x = x, w = W.norm, eps = W.eps }, w = W.head } end
  return op.lm_head { x = x, norm = W.norm, w = W.head, eps = W.eps }
end

return forward
