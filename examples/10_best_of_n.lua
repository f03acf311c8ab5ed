--- Best of n: the same prompt continued n times, and the continuation that the model itself finds likeliest.
---
---     mav examples/10_best_of_n.lua [MODEL_DIR]
---
--- The prompt is computed once. A fork shares the pages of the cache until one side writes, the captured graphs, the drafter; what
--- differs is its key, which keys the noise: same seed, another text.
require "mav"

local here = (arg and arg[0] or ""):match("^(.*)/[^/]*$") or "."
local model = assert(require("mav.maverick").load(arg and arg[1] or here .. "/../models/tiny-maverick"))

local PROMPT = "-- counts"
local N, TOKENS = 6, 64

--- n continuations of a session, each { text =, score =, key = }, best first. score: mean log probability of its tokens.
local function best_of(session, n, options)
  session:prefill()
  local list = {}
  for key = 1, n do
    local fork <close> = session:fork { key = key }
    local sum, count = 0.0, 0
    local text = fork:complete(nil, { max_tokens = options.max_tokens, stop = options.stop, on_token = function(_, entry)
      sum, count = sum + entry.logprob, count + 1
    end })
    list[key] = { text = text, score = sum / count, key = key, steps = fork.stats.steps and #fork.stats.steps or count }
  end
  table.sort(list, function(a, b) return a.score > b.score end)
  return list
end

local function sessions(draft)
  local s = model:session { strategy = { draft = draft, sample = { temperature = 0.9, seed = 1, logprobs = 1 } } }
  s:append(PROMPT)
  return s
end

local s <close> = sessions(require "mav.draft.self"(2))
local list = best_of(s, N, { max_tokens = TOKENS, stop = "\n\n" })
for _, entry in ipairs(list) do
  print(("fork %d: %6.3f in %2d steps: %s%s"):format(entry.key, entry.score, entry.steps, PROMPT, entry.text:match "[^\n]*"))
end
print(PROMPT .. list[1].text)

assert(#s == #model:encode(PROMPT), "the session itself has not moved")
assert(list[1].score > list[N].score)

--- The same without drafts: a drafter changes neither the texts nor their order.
local plain <close> = sessions(nil)
for i, entry in ipairs(best_of(plain, N, { max_tokens = TOKENS, stop = "\n\n" })) do
  assert(entry.text == list[i].text and entry.key == list[i].key)
  assert(math.abs(entry.score - list[i].score) < 1e-4)
end
