--- logits / t: below 1 sharper, above 1 flatter. Temperature 0 is greedy, which chain.lua takes care of.
local op = require("mav").op
local check = require "mav.sample.check"

return function(t)
  check.number("temperature", t, "a number from 0 to 1000", function(v) return v >= 0 and v <= 1000 end)
  if t == 1 or t == 0 then return nil end
  return { text = ("temperature %g"):format(t), apply = function(logits) return op.div { a = logits, b = t } end }
end
