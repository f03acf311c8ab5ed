--- Scores policies on a trace without the model, and checks the prediction by running one for real.
local cli = require "mav.cli"
local lanes = require "mav.sweep.lanes"
local mav = require "mav"
local replay = require "mav.sweep.replay"
local trace = require "mav.sweep.trace"

local score = {}

--- Costs of another machine: a file with a trace's costs, or a trace.
function score.costs(path, header)
  local text = cli.read_file(path)
  local object, err = mav.json.decode(text)
  if object == nil then object = mav.json.decode(text:match "^[^\n]*") end -- a trace
  if object == nil then cli.fail("%s: %s", path, tostring(err)) end
  local costs = type(object) == "table" and object.costs or object
  local wrong = trace.check_costs(costs, header.rows)
  if wrong then cli.fail("%s: %s", path, wrong) end
  return costs
end

--- A replay of each policy: a list of results. model: for policies that are made for one.
function score.replay(t, policies, costs, model)
  local list = {}
  for i, policy in ipairs(policies) do
    list[i] = replay.run(t, { policy = policy.make(model), costs = costs, name = policy.name })
    list[i].name = policy.name
  end
  return list
end

--- Tokens and seconds after the first step of a generation.
local function generate(s, request, header)
  s:reset()
  for _ in s:generate(request.prompt, { max_tokens = header.max_tokens, ignore_eos = header.ignore_eos }) do end -- luacheck: ignore
  local stats = s.stats
  local tokens = stats.tokens_per_s and stats.output_tokens or 0
  local us = stats.tokens_per_s and 1e6 / stats.tokens_per_s or 0.0 -- per token
  return tokens, us, stats.steps and #stats.steps or s.generated
end

--- Runs a policy and plain decoding in turns on a trace's prompts, with the model. Returns what a replay returns, measured.
function score.measure(t, policy, model, drafter, chain)
  local h, longest = t.header, 0
  for _, request in ipairs(t.requests) do longest = math.max(longest, #request.prompt) end
  local setup = { model = model, drafters = { { text = h.drafter, drafter = drafter } }, depths = {}, policies = { policy }, chain = chain,
    kv = h.kv, tree = h.is_tree and h.widths or nil, k_max = h.k_max, context = longest + math.max(h.max_tokens, 32) + 1 }
  local all <close> = lanes.new(setup)
  local lane = { drafter = h.drafter, k = policy.name }
  all:warm(lane, h.temperature, t.requests[1].prompt)
  all:warm(nil, h.temperature, t.requests[1].prompt)
  local m = { tokens = 0, steps = 0, us = 0.0, plain_us = 0.0 }
  for _, request in ipairs(t.requests) do
    local plain_tokens, plain_us = generate(all:plain(h.temperature), request, h)
    local tokens, us, steps = generate(all:open(lane, h.temperature), request, h)
    m.tokens, m.steps, m.us, m.plain_us = m.tokens + tokens, m.steps + steps, m.us + tokens * us, m.plain_us + plain_tokens * plain_us
  end
  m.acceptance_length, m.speedup, m.tokens_per_s = m.tokens / m.steps, m.plain_us / m.us, m.tokens / m.us * 1e6
  return m
end

--- Results as rows of a sweep, for files and pictures. Where a policy was measured too, what the replay says is the prediction.
function score.rows(t, results)
  local rows, h = {}, t.header
  for i, r in ipairs(results) do
    local m = r.measured or r
    rows[i] = { drafter = h.drafter or "?", k = math.tointeger(tonumber(r.name)) or r.name, temperature = h.temperature or 0,
      family = "all", cells = #t.requests, acceptance_length = m.acceptance_length, policy_us = r.policy_us_per_step,
      tokens_per_s = m.tokens_per_s, plain_tokens_per_s = m.plain_us > 0 and m.tokens / m.plain_us * 1e6 or nil, speedup = m.speedup,
      predicted = r.measured and r.speedup or nil }
  end
  return rows
end

local COLUMNS = "%-26s %8s %8s %10s %10s %10s %10s"

local function line(name, r)
  return COLUMNS:format(name, r.tokens, r.steps, ("%.3f"):format(r.acceptance_length), ("%.1f"):format(r.tokens_per_s),
    ("%.3f"):format(r.speedup), r.policy_us_per_step and ("%.1f"):format(r.policy_us_per_step) or "")
end

local function percent(predicted, measured) return ("%+.1f%%"):format(100 * (predicted / measured - 1)) end

--- The table for the terminal; results with .measured show both, and the error of the prediction.
function score.table(t, results)
  local h, points = t.header, 0
  for _, request in ipairs(t.requests) do points = points + #request.points end
  local out = { ("%s, drafter %s, k_max %d, temperature %g: %d requests, %d positions"):format(h.model or "?", h.drafter or "?", h.k_max,
    h.temperature or 0, #t.requests, points), COLUMNS:format("policy", "tokens", "steps", "accepted", "tokens/s", "speed-up",
      "policy us") }
  for _, r in ipairs(results) do
    out[#out + 1] = line(r.name, r)
    local m = r.measured
    if m then
      out[#out + 1] = line("  measured", m)
      out[#out + 1] = COLUMNS:format("  error of the prediction", "", "", percent(r.acceptance_length, m.acceptance_length),
        percent(r.tokens_per_s, m.tokens_per_s), percent(r.speedup, m.speedup), "")
    end
  end
  return table.concat(out, "\n") .. "\n"
end

return score
