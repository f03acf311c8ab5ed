--- What the specs of speculation share: models and their prompts, drafters by name, texts with and without drafts.
local mav = require "mav"
local maverick = require "mav.maverick"
local draft = require "mav.draft"
local self_draft = require "mav.draft.self"

local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local golden = dofile(support.oracle .. "golden.lua")

local speculation = { support = support, golden = golden }

--- Whether the long variants run: MAV_FULL=1, which scripts/test.sh --full sets.
speculation.is_full = (os.getenv "MAV_FULL" or "") ~= ""

speculation.tiny = support.root .. "models/tiny-maverick"
speculation.head = support.root .. "models/tiny-maverick-eagle3"

function speculation.exists(path)
  local file = io.open(path, "rb")
  if file then file:close() end
  return file ~= nil
end

function speculation.load(dir, options)
  local o = { device = golden.device, threads = 1 }
  for key, value in pairs(options or {}) do o[key] = value end
  return assert(maverick.load(dir, o))
end

--- The held-out prompts of tiny-maverick, as ids.
function speculation.heldout(model)
  local list = {}
  for line in io.lines(speculation.tiny .. "/eval/heldout.jsonl") do
    list[#list + 1] = assert(model:encode(assert(mav.json.decode(line)).prompt))
  end
  return list
end

--- A plain function as drafter: what followed the same two tokens before, else the two last tokens again.
function speculation.echo(ids, length, k, out)
  local a, b, from = ids[length - 1], ids[length], math.max(1, length - 1)
  for i = length - 1, 2, -1 do
    if ids[i] == b and ids[i - 1] == a then
      from = i + 1
      break
    end
  end
  for j = 1, k do out[j] = ids[math.min(from + j - 1, length)] end
  return k
end

--- A drafter that proposes the ids `text` (the continuation of `prompt` tokens) but every `wrong`-th, of which it proposes 1 + id.
function speculation.prophet(text, prompt, wrong)
  return function(_, length, k, out)
    if length < prompt then return 0 end
    local n = math.max(0, math.min(k, #text - (length - prompt)))
    for j = 1, n do
      local at = length - prompt + j
      out[j] = wrong and at % wrong == 0 and (text[at] + 1) % 300 or text[at]
    end
    return n
  end
end

--- Drafters of a model by name: the specs of mav.draft, "stop=N" (early exit) and "echo".
function speculation.drafter(model, name)
  if name == "echo" then return speculation.echo end
  local stop = name:match "^stop=(%d+)$"
  if stop then return self_draft { stop_at = math.tointeger(stop) } end
  return assert(draft.parse(name, model))
end

speculation.chains = {}
for k = 1, 8 do speculation.chains[k] = { policy = k } end
speculation.trees = { { tree = { 2, 1 } }, { tree = { 2, 2, 1 } }, { tree = { 3, 2, 1, 1 } }, { tree = { 5 } } }

--- Whether a drafter can draft trees.
function speculation.makes_trees(drafter) return type(drafter) == "table" and drafter.kind == "device" end

function speculation.shape_text(shape)
  return shape.tree and "tree " .. table.concat(shape.tree, ",") or "k " .. tostring(shape.policy)
end

--- A shape as a strategy, with what is the same for all.
function speculation.strategy(drafter, shape, more)
  local s = { draft = drafter }
  for key, value in pairs(shape) do s[key] = value end
  for key, value in pairs(more or {}) do s[key] = value end
  return s
end

--- The tokens after the first n.
function speculation.after(s, n) return table.move(s.ids, n + 1, #s, 1, {}) end

--- What a session says to a prompt, from an empty timeline on.
function speculation.text(s, prompt, max_tokens, options)
  local o = { max_tokens = max_tokens, ignore_eos = true }
  for key, value in pairs(options or {}) do o[key] = value end
  s:reset()
  s:complete(prompt, o)
  return speculation.after(s, #prompt)
end

--- Where two lists differ first; nil: nowhere.
function speculation.difference(a, b)
  for i = 1, math.max(#a, #b) do
    if a[i] ~= b[i] then return i end
  end
  return nil
end

--- Fails unless two texts are the same; says where they part.
function speculation.same(expected, actual, ...)
  local at = speculation.difference(expected, actual)
  if at then
    error(("%s: token %d is %s, expected %s (%d and %d tokens)"):format(select("#", ...) > 0 and (...):format(select(2, ...)) or "text", at,
      tostring(actual[at]), tostring(expected[at]), #actual, #expected), 2)
  end
end

--- The error that fn raises, as text; fails when it raises none.
function speculation.failure(fn, ...)
  local ok, err = pcall(fn, ...)
  if ok then error("no error was raised", 2) end
  return tostring(err)
end

return speculation
