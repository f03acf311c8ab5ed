--- Is what speculation said what the model says? Decodes the same text without drafts and finds the first difference.
local mav = require "mav"

local check = {}

--- Logits of two tokens after the first n of ids.
local function logits_of(model, options, ids, n, a, b)
  local s <close> = model:session { context = n + 1, kv_dtype = options.kv_dtype }
  s:append(table.move(ids, 1, n, 1, {}))
  s:prefill()
  local rows = mav.rows(1, { runtime = model.runtime })
  rows:set(1, ids[n], s.seq, n - 1)
  assert(s.seq:reserve(1))
  local logits = model:forward(rows, s.kv, {})
  return logits:get(1, a + 1), logits:get(1, b + 1)
end

--- In which step of a speculative session its n-th token was emitted.
local function step_of(steps, n)
  local emitted = 0
  for i, step in ipairs(steps) do
    emitted = emitted + 1 + step.accepted
    if emitted >= n then return i end
  end
end

--- Compares a finished generation with plain decoding by the same sampler.
---@param s table          the speculative session, after generate
---@param options table    sample, kv_dtype, key as the session had; ignore_eos as generate had; prompt: its ids, nil: as the session
---                         has them, which a drafter may have changed
---@return table result    tokens (compared); nil, or token, step, id, plain_id, margin (raw logit of the plain token less the other's)
function check.against_plain(s, options)
  local model, n = s.model, s.generated
  local prompt = options.prompt or table.move(s.ids, 1, s.length - n, 1, {})
  local plain <close> = model:session { sample = options.sample, kv_dtype = options.kv_dtype, key = options.key, context = s.context }
  plain:complete(prompt, { max_tokens = n, ignore_eos = options.ignore_eos })
  for i = 1, n do
    local id, plain_id = s.ids[#prompt + i], plain.ids[#prompt + i]
    if id ~= plain_id then
      local steps = s.stats.steps
      local result = { tokens = i, rule = s.loop.rule.name, token = i, step = steps and step_of(steps, i) or i,
        id = id, plain_id = plain_id }
      if plain_id then
        local a, b = logits_of(model, options, plain.ids, #prompt + i - 1, plain_id, id)
        result.margin = a - b
      end
      return result
    end
  end
  return { tokens = n, rule = s.loop.rule.name }
end

--- Does the rule promise the text of plain decoding?
function check.is_promised(result) return result.rule == "keyed" end

--- One line for people.
function check.text(model, result)
  if not result.token then return ("check: all %d tokens equal those of plain decoding"):format(result.tokens) end
  local function name(id)
    if not id then return "nothing" end
    return ("%d %q"):format(id, model.tokenizer and model.tokenizer:piece(id) or "")
  end
  local margin = result.margin and (", by a logit margin of %.6g"):format(result.margin) or ""
  local why = check.is_promised(result) and "" or (" (the rule %s promises no equal text)"):format(result.rule)
  return ("check: token %d (step %d) differs: %s, plain decoding says %s%s%s"):format(result.token, result.step, name(result.id),
    name(result.plain_id), margin, why)
end

return check
