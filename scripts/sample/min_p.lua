--- Drops tokens less likely than p times the best. 0: off.
local op = require("mav").op
local check = require "mav.sample.check"

return function(p)
  check.number("min_p", p, "a number from 0 to 1", function(v) return v >= 0 and v <= 1 end)
  if p == 0 then return nil end
  return { text = ("min_p %g"):format(p), apply = function(logits) return op.min_p_mask { x = logits, p = p } end }
end
