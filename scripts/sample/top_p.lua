--- The smallest set of tokens whose probabilities add up to p; the best always stays. 1: off.
local op = require("mav").op
local check = require "mav.sample.check"

local LEAST = 1e-30 -- p = 0 keeps the best only, and so does any p this small

return function(p)
  check.number("top_p", p, "a number from 0 to 1", function(v) return v >= 0 and v <= 1 end)
  if p == 1 then return nil end
  return { text = ("top_p %g"):format(p), apply = function(logits) return op.top_p_mask { x = logits, p = math.max(p, LEAST) } end }
end
