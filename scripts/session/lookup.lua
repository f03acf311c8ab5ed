--- Asks a drafter on the host for ids that may follow a text, and checks what it says and what it left alone.
local lookup = {}

local STRIDE = 7919 -- between the places of the text that are compared from call to call

local function fail(text, ...) error(text:format(...), 0) end

--- The text is read only: puts back what is known of it.
local function complain(who, ids, length, first, last, at, seen)
  local extra = length + 1
  while ids[extra] ~= nil do
    ids[extra] = nil
    extra = extra + 1
  end
  ids[at], ids[1], ids[length] = seen, first, last
  fail("%s wrote to ids; they are read only, a copy may be changed", who)
end

local turn = 0

--- How many ids a drafter's state proposes after ids[1 .. length], at most k, into out. call(who, f, ...): how functions of the user
--- are called; who: the drafter, for errors. Written to ids is what differs in length, at the ends, or at a place that changes from
--- call to call.
---@return integer n
function lookup.ask(state, who, ids, length, k, out, vocab, call)
  turn = turn + STRIDE
  local at = turn % length + 1
  local first, last, seen = ids[1], ids[length], ids[at]
  local n = call(who, state.propose, state, ids, length, k, out) or 0
  if ids[length + 1] ~= nil or ids[length] ~= last or ids[1] ~= first or ids[at] ~= seen then
    complain(who, ids, length, first, last, at, seen)
  end
  if n == 0 then return 0 end
  if math.type(n) ~= "integer" or n < 0 or n > k then fail("%s proposed %s tokens; at most %d were asked for", who, tostring(n), k) end
  for j = 1, n do
    local id = out[j]
    if math.type(id) ~= "integer" or id < 0 or id >= vocab then
      fail("%s: proposal %d is %s; a token id from 0 to %d is allowed", who, j, tostring(id), vocab - 1)
    end
  end
  return n
end

return lookup
