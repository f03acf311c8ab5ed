--- Constrained decoding, under speculation: the text begins with a space, a Lua identifier and "(", whatever the model would rather say.
---
---     mav examples/07_constraint.lua [MODEL_DIR]
---
--- A DFA over bytes says what may follow. Run over the bytes of every token it gives a table of masks, (states, V): 0 where a token
--- may come, -inf where not. Before every verification the host writes the state of each row into an index (prepare); the graph adds
--- the mask of that state to the logits (apply). Drafters know nothing of it: a draft that the mask forbids is not what the chain
--- chooses, so it is not accepted.
local mav = require "mav"
local op = mav.op

local here = (arg and arg[0] or ""):match("^(.*)/[^/]*$") or "."
local model = assert(require("mav.maverick").load(arg and arg[1] or here .. "/../models/tiny-maverick"))

-- ---- the DFA ------------------------------------------------------------------------------------------------------------------

local KEYWORDS = "and break do else elseif end false for function goto if in local nil not or repeat return then true until while"
local keyword, begins = {}, {} -- begins: what a keyword may begin with
for word in KEYWORDS:gmatch "%a+" do
  keyword[word] = true
  for i = 1, #word do begins[word:sub(1, i)] = true end
end

local START <const>, END <const> = "^", "("

--- The state after one more byte, nil when it may not come. Between START and END a state is what there is of a word that may become
--- a keyword, or "*" when it cannot. After END anything may come.
local function after_byte(state, byte)
  if state == START then return byte == " " and "" or nil end
  if state == END then return END end
  if byte == "(" then return state ~= "" and not keyword[state] and END or nil end
  if not byte:find(state == "" and "^[%a_]" or "^[%w_]") then return nil end
  return begins[state .. byte] and state .. byte or "*"
end

--- The same for a whole token.
local function after_piece(state, piece)
  if piece == "" then return nil end
  for byte in piece:gmatch "." do
    state = after_byte(state, byte)
    if not state then return nil end
  end
  return state
end

-- ---- the step of the chain ----------------------------------------------------------------------------------------------------

local ROWS_MAX <const> = 64 -- that a step may verify

--- States as numbers, 1 is START: moves[n][id] is the state after a token in state n, masks[n][id + 1] what is added to its logit.
local function tables(vocab, pieces)
  local number, states, moves, masks = { [START] = 1 }, { START }, {}, {}
  while #moves < #states do
    local n = #moves + 1
    moves[n], masks[n] = {}, {}
    for id = 0, vocab - 1 do
      local state = after_piece(states[n], pieces[id])
      if state and not number[state] then
        states[#states + 1] = state
        number[state] = #states
      end
      moves[n][id], masks[n][id + 1] = number[state or 0], state and 0.0 or -math.huge
    end
  end
  return moves, mav.tensor(masks), number[END]
end

--- A step { apply =, prepare = } of the sampling chain.
local function constraint(vocab, pieces)
  local moves, masks, free = tables(vocab, pieces)
  local index, path = mav.zeros { ROWS_MAX, dtype = "i32" }, {}

  local function walk(state, ids, first, last)
    for i = first, last do state = moves[state][ids[i]] or free end -- a draft that the mask forbids: its row does not matter
    return state
  end

  return {
    text = "identifier",
    apply = function(logits, rows) return logits + op.gather { x = masks, index = index:slice(1, 1, #rows) } end,
    prepare = function(session, rows)
      local prompt = session.length - session.generated
      local root = walk(1, session.ids, prompt + 1, session.length)
      for row = 1, rows do
        local depth = session:path(row, path) -- the drafted tokens between the text and the row
        index:set(row, walk(root, path, 1, depth) - 1)
      end
    end,
  }
end

local pieces = {}
for id = 0, model.config.vocab - 1 do pieces[id] = model.tokenizer:piece(id) end
local identifier = constraint(model.config.vocab, pieces)

-- ---- the same text whoever drafts, and always Lua -------------------------------------------------------------------------------

local PROMPT = "-- returns the larger of a and b\nlocal function"
local TEMPERATURE <const> = 3 -- what is said then is seldom Lua

local function name(strategy)
  local s <close> = model:session { strategy = strategy }
  return s:complete(PROMPT, { max_tokens = 32, stop = "(" }), s.stopped
end

local function is_lua(text) return load(("local function %s() end"):format(text)) ~= nil end

local STRATEGIES = {
  { draft = require "mav.draft.ngram" {} },
  { draft = require "mav.draft.self"(2) },
  { draft = require "mav.draft.self"(2), tree = { 3, 2, 1 } },
}
local greedy, stopped = name { sample = { identifier } }
print("greedy:", greedy)
assert(stopped == "stop" and is_lua(greedy))

local free_lua, seeds = 0, 6
for seed = 1, seeds do
  local free = name { sample = { temperature = TEMPERATURE, seed = seed } }
  if is_lua(free) then free_lua = free_lua + 1 end
  local sample = { identifier, temperature = TEMPERATURE, seed = seed }
  local text = name { sample = sample }
  print(("seed %d:"):format(seed), text)
  assert(is_lua(text), text)
  for _, strategy in ipairs(STRATEGIES) do
    strategy.sample = sample
    assert(name(strategy) == text, "a drafter changed the text")
  end
end
print(("all of them are Lua; without the constraint %d of %d are"):format(free_lua, seeds))
assert(free_lua < seeds)
