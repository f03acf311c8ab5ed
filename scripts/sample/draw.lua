--- A draw from softmax(logits), by Gumbel noise keyed with (seed, the sequence's key, position): the same seed gives the
--- same text however rows are batched or drafted.
local op = require("mav").op
local check = require "mav.sample.check"

return function(seed)
  check.integer("seed", seed, 0, math.maxinteger)
  return {
    text = "draw, seed " .. seed,
    apply = function(logits, rows, state)
      return op.sample { x = logits, rows = rows, kv = state.kv, seed = seed, ahead = state.ahead or 0 }
    end,
  }
end
