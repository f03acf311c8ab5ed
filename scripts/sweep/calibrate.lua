--- What steps cost here: short generations at every depth, times by rows and by levels drafted. For traces; a session's own
--- statistics refine the same figures while it runs.
local mav = require "mav"
local costs = require "mav.sweep.costs"

local calibrate = {}

local TOKENS <const>, ROUNDS <const> = 24, 8 -- short pieces in turns: what else the machine does happens to all depths

local function push(t, key, value)
  t[key] = t[key] or {}
  table.insert(t[key], value)
end

--- Calls each(us) after every step but the first, which has no drafts yet: time since the step before.
local function generate(s, ids, each)
  local before
  s:reset()
  s:complete(ids, { max_tokens = TOKENS, ignore_eos = true, on_step = function()
    local now = mav.now()
    if before then each((now - before) * 1e6) end
    before = mav.now()
  end })
end

--- Depths that no step had (a drafter that proposes less): from the session's own measurements, or from the depth below.
local function fill(known, of_session, k_max)
  for k = 0, k_max do known[k] = known[k] and costs.typical(known[k]) or of_session(k) or known[k - 1] end
end

--- Tokens that costs generates, for who shows how far it is.
function calibrate.tokens(k_max) return ROUNDS * (k_max + 2) * TOKENS end

--- lanes: mav.sweep.lanes of one drafter; prompts with ids. on_piece: function(what, tokens) after each piece. Returns costs as in a
--- trace.
function calibrate.costs(lanes, drafter, temperature, prompts, k_max, on_piece)
  local verify, draft, rest, plain, t = {}, {}, {}, {}, nil
  for round = 1, ROUNDS do
    local ids = prompts[(round - 1) % #prompts + 1].ids
    if round == 1 then lanes:warm(nil, temperature, ids) end
    generate(lanes:plain(temperature), ids, function(us) plain[#plain + 1] = us end)
    on_piece("costs of plain decoding", TOKENS)
    for k = 0, k_max do
      local lane = { drafter = drafter, k = k }
      if round == 1 then lanes:warm(lane, temperature, ids) end
      local s = lanes:open(lane, temperature)
      t = s.live
      generate(s, ids, function(us)
        push(verify, t.k, t.verify_us)
        push(draft, k, t.draft_us)
        rest[#rest + 1] = math.max(us - t.verify_us - t.draft_us, 0.0)
      end)
      on_piece(("costs of k %d"):format(k), TOKENS)
    end
  end
  fill(verify, function(k) return t.cost_verify[t.rows(k)] end, k_max)
  fill(draft, function(k) return t.cost_draft[k] end, k_max)
  local step_us = costs.typical(rest)
  local result = { verify_us = {}, draft_us = {}, plain_us = costs.typical(plain) - step_us, step_us = step_us }
  for k = 0, k_max do
    result.verify_us[tostring(t.rows(k))], result.draft_us[tostring(k)] = verify[k], k > 0 and draft[k] or 0.0
  end
  return result
end

return calibrate
