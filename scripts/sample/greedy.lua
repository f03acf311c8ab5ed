--- The most likely token; the lowest id on ties. The end of a chain, or a sampler by itself:
---
---     model:session { sample = require "mav.sample.greedy" }
local op = require("mav").op

local function best(logits) return op.argmax { x = logits } end

return setmetatable({ text = "greedy", needs = {}, apply = best, observe = function() end }, {
  __call = function(_, logits) return best(logits) end,
  __tostring = function() return "greedy" end,
})
