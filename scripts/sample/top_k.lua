--- Keeps the k largest logits and those equal to the k-th. 0: off.
local op = require("mav").op
local check = require "mav.sample.check"

return function(k)
  k = check.integer("top_k", k, 0, math.maxinteger)
  if k == 0 then return nil end
  return { text = "top_k " .. k, apply = function(logits) return op.top_k_mask { x = logits, k = k } end }
end
