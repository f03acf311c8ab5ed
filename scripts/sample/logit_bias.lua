--- Adds to the logits of single tokens: { [id] = value }, ids from 0. A value of -math.huge forbids a token.
local mav = require "mav"
local check = require "mav.sample.check"
local op = mav.op

return function(bias)
  if type(bias) ~= "table" then error("logit_bias: a table of { [id] = value } is allowed", 4) end
  local values, count = {}, 0
  for id, value in pairs(bias) do
    id = check.integer("logit_bias: an id", id, 0, 1 << 24)
    values[id] = check.number(("logit_bias[%d]"):format(id), value, "a number that is not +inf", function(v) return v < math.huge end)
    count = count + 1
  end
  if count == 0 then return nil end
  local by_width = {} -- the tensor, made once per vocabulary and runtime
  return {
    text = ("logit_bias of %d"):format(count),
    apply = function(logits, _, state)
      local V = logits.shape[#logits.shape]
      if not (by_width[V] and by_width.runtime == state.runtime) then
        local t = mav.zeros { V, dtype = "f32", runtime = state.runtime }
        for id, value in pairs(values) do
          if id >= V then error(("logit_bias: id %d is not below the vocabulary's %d"):format(id, V), 0) end
          t:set(id + 1, value)
        end
        by_width[V], by_width.runtime = t, state.runtime
      end
      return op.add { a = logits, b = by_width[V] }
    end,
  }
end
