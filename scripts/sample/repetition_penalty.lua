--- Every id of prompt and output counts once: positive logits are divided by the penalty, others multiplied. 1: off.
local op = require("mav").op
local check = require "mav.sample.check"

return function(penalty)
  check.number("repetition_penalty", penalty, "a number above 0, at most 1000", function(v) return v > 0 and v <= 1000 end)
  if penalty == 1 then return nil end
  return {
    text = ("repetition_penalty %g"):format(penalty), needs = "seen",
    apply = function(logits, rows, state) return op.penalize { x = logits, seen = state.seen, rows = rows, penalty = penalty } end,
  }
end
