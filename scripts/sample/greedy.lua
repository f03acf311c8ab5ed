--- The most likely token; the lowest id on ties.
local op = require("mav").op

local step = { text = "greedy", apply = function(logits) return op.argmax { x = logits } end }

return function() return step end
