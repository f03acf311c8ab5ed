--- A drafter of your own, on the host: it sees the text so far, as ids, and writes what may come next.
---
---     mav examples/05_drafter.lua [MODEL_DIR]
---
--- A drafter may be wrong as often as it likes: a wrong draft costs a little time and never changes the text. So anything that knows
--- the text in advance will do: the file that is being edited, a dictionary, an answer to a similar question.
require "mav"

local here = (arg and arg[0] or ""):match("^(.*)/[^/]*$") or "."
local model = assert(require("mav.maverick").load(arg and arg[1] or here .. "/../models/tiny-maverick"))
local tokenizer = model.tokenizer

local PROMPT = [[
-- returns the sum of the numbers in the list
local function sum(list)
  local total = 0
  for _, v in ipairs(list) do
    total = total + v
  end
  return total
end

-- returns the product of the numbers in the list
]]

local function run(name, strategy)
  local s <close> = model:session { strategy = strategy }
  local text = s:complete(PROMPT, { max_tokens = 72, ignore_eos = true })
  local stats = s.stats
  print(("%-12s %2d steps, %.2f tokens a step"):format(name, stats.steps and #stats.steps or stats.output_tokens,
    stats.acceptance_length or 1))
  return text, stats.acceptance_length
end

local plain = run("plain", {})

--- A function(ids, length, k, out) is enough: ids[1 .. length] is the text, at most k proposals go to out, their number is returned.
--- This one looks for an earlier line that begins like the line being written, and proposes the rest of it.
local ends_line = {}
for id = 0, #tokenizer - 1 do ends_line[id] = tokenizer:piece(id):sub(-1) == "\n" end

local function copy_line(ids, length, k, out)
  local start = length
  while start > 1 and not ends_line[ids[start - 1]] do start = start - 1 end -- the line being written is start .. length
  for at = start - 1, 2, -1 do
    if ends_line[ids[at - 1]] then
      local same = 0
      while start + same <= length and ids[at + same] == ids[start + same] do same = same + 1 end
      if start + same > length then
        local n = math.min(k, start - at - same)
        for i = 1, n do out[i] = ids[at + same + i - 1] end
        return n
      end
    end
  end
  return 0
end

local text, per_step = run("copy_line", { draft = copy_line, policy = 6 })
assert(text == plain)
assert(per_step > 1.2)

--- An object keeps what it knows of a session: start(session) makes a state, whose propose is called every step. This one knows
--- phrases by heart. `after` tells what follows two tokens: in which phrase, and where. Calls allocate nothing.
local Snippets = {}
Snippets.__index = Snippets

function Snippets:propose(ids, length, k, out)
  if length < 2 then return 0 end
  local place = self.after[ids[length - 1] << 32 | ids[length]]
  if not place then return 0 end
  local phrase, at = self.phrases[place >> 32], place & 0xffffffff
  local n = math.min(k, #phrase - at + 1)
  for i = 1, n do out[i] = phrase[at + i - 1] end
  return n
end

local function snippets(texts)
  return { kind = "host", name = "snippets", start = function(_, session)
    local state = setmetatable({ phrases = {}, after = {} }, Snippets)
    for p, phrase in ipairs(texts) do
      local ids = assert(session.model.tokenizer:encode(phrase, { bos = false }))
      state.phrases[p] = ids
      for at = 3, #ids do state.after[ids[at - 2] << 32 | ids[at - 1]] = p << 32 | at end
    end
    return state
  end }
end

local idioms = snippets {
  "  local total = 1\n",
  "  for _, v in ipairs(list) do\n    total = total * v\n  end\n  return total\nend\n\n-- returns the",
}
text, per_step = run("snippets", { draft = idioms, policy = 6 })
assert(text == plain)
assert(per_step > 1.2)

--- Several: the first that has something to say drafts.
local both
text, both = run("both", { draft = require "mav.draft.first" { idioms, copy_line }, policy = 6 })
assert(text == plain and both >= per_step)

--- A drafter that fails says who and what.
local ok, err = pcall(run, "wrong", { draft = function(_, _, _, out) out[1] = -1 return 1 end })
assert(not ok and tostring(err):find("proposal 1 is -1; a token id from 0 to", 1, true))
print(err)
