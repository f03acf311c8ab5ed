--- Log probabilities of the chosen token and of the n best, under the model's own distribution (before any sampling step).
local op = require("mav").op
local check = require "mav.sample.check"

local logprobs = {}

function logprobs.check(n) return check.integer("logprobs", n, 1, 1024) end

--- chosen (T, 1), best (T, n), their ids (T, n)
function logprobs.apply(n, logits, ids)
  local x = op.log_softmax { x = logits }
  local best, best_ids = op.topk { x = x, k = math.min(n, logits.shape[2]) }
  return op.take { x = x, index = ids:reshape { logits.shape[1], 1 } }, best, best_ids
end

return logprobs
