--- Acceptance rules: which drafts become text. A rule is called while a step is captured; it gets the logits of the verified rows
--- and emits the ops that choose and accept.
---
---   "keyed"      (the default; "greedy" is its name with a greedy chain) a draft is accepted when it equals what the chain itself
---                chooses at its parent. The text is that of plain decoding with the same seed, whatever the drafter
---   "rejection"  speculative sampling (arXiv 2211.17192; trees: arXiv 2402.14160): the distribution of the chain exactly, though
---                another text than without drafts
---   "typical"    Medusa's typical acceptance (arXiv 2401.10774, section 3.3.2), { "typical", epsilon = 0.09, delta = 0.3 }. Lossy:
---                drafts that are likely enough are accepted though the chain would have chosen otherwise
---   function(probs, id, info) -> boolean   your own, called on the host for every draft that follows an accepted row: probs is the
---                chain's distribution there (f32 tensor (V)), id the draft, info.row its row, info.level its level. When it accepts
---                nothing more, the chain's own choice follows. Lossy unless it is your aim not to be
---
--- A rule has: name, lossy, host (the acceptance happens between two launches), draws (how drafters pick: "chain", as the chain
--- would with the same noise, or "independent", recording their probabilities), and
---   rule:verify(loop, logits, rows) -> choice (T), accepted (T) or nil with one row, probs (T, V) or nil
local op = require("mav").op

local accept = {}

local function has_drafts(rows) return #rows > 1 end

local function probabilities(loop, logits, rows) return op.softmax { x = loop.chain:filter(logits, rows, loop.state) } end

local keyed = { name = "keyed", draws = "chain" }

function keyed.verify(_, loop, logits, rows)
  local choice = loop:choose(logits, rows)
  return choice, has_drafts(rows) and op.accept { rows = rows, choice = choice } or nil
end

local rejection = { name = "rejection", draws = "independent" }

function rejection.verify(_, loop, logits, rows)
  local p = probabilities(loop, logits, rows)
  local q = loop.q and not loop.certain and has_drafts(rows) and loop.q:slice(1, 1, #rows) or nil
  local accepted, choice = op.accept_rejection { rows = rows, p = p, q = q, kv = loop.state.kv, seed = loop.chain.seed }
  return choice, accepted, p
end

local Typical = { name = "typical", draws = "chain", lossy = true }
Typical.__index = Typical

function Typical:verify(loop, logits, rows)
  local choice = loop:choose(logits, rows)
  if not has_drafts(rows) then return choice end
  local p = probabilities(loop, logits, rows)
  local accepted, following = op.accept_typical { rows = rows, p = p, choice = choice, epsilon = self.epsilon, delta = self.delta }
  return following, accepted, p
end

local Host = { name = "function", draws = "chain", lossy = true, host = true }
Host.__index = Host

function Host:verify(loop, logits, rows)
  local choice = loop:choose(logits, rows)
  if not has_drafts(rows) then return choice end
  return choice, op.accept { rows = rows, choice = choice }, probabilities(loop, logits, rows)
end

--- Walks the tree of `count` rows with the function; rewrites accepted and choice. probs: by row.
function Host:decide(loop, count, accepted, choice, probs)
  local ids, info, row, place = loop.tree.ids, self.info, 1, 0
  for r = 1, count do accepted:set(r, -1) end
  accepted:set(1, 0)
  repeat
    local found
    for child = loop:first_child(row), loop:last_child(row) do
      if child > count then break end
      info.row, info.level, info.parent = child, place + 1, row
      local id = ids:get(child)
      if self.call("the acceptance function", self.f, probs[row], id, info) then
        place = place + 1
        accepted:set(child, place)
        choice:set(row, id)
        found = child
        break
      end
    end
    row = found
  until not row
end

local function typical(options)
  for key in pairs(options) do
    if key ~= 1 and key ~= "epsilon" and key ~= "delta" then error(("strategy.accept: unknown option '%s'"):format(tostring(key)), 0) end
  end
  local epsilon, delta = options.epsilon or 0.09, options.delta or 0.3
  for name, value in pairs { epsilon = epsilon, delta = delta } do
    local is_above = type(value) == "number" and value > 0 -- false for NaN
    if not is_above then error(("strategy.accept: %s is %s; a number above 0 is allowed"):format(name, tostring(value)), 0) end
  end
  return setmetatable({ epsilon = epsilon, delta = delta }, Typical)
end

--- The rule of a strategy. call(who, f, ...): how functions of the user are called.
function accept.new(spec, call)
  if type(spec) == "function" then return setmetatable({ f = spec, call = call, info = {} }, Host) end
  local name, options = spec or "keyed", {}
  if type(spec) == "table" then name, options = spec[1], spec end
  if name == "keyed" or name == "greedy" then return keyed end
  if name == "rejection" then return rejection end
  if name == "typical" then return typical(options) end
  error(("strategy.accept: '%s'; keyed, greedy, rejection, typical or a function is allowed"):format(tostring(name)), 0)
end

return accept
