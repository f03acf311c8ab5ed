--- Sessions with random strategies do random things: generate, break off, append, cut, fork, fail, close. Whatever happens, what they say
--- is what plain decoding says, and no page is left when all are closed. MAV_SOAK_SEED repeats a run.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local S = dofile(here .. "/speculation.lua")

local STEPS = math.tointeger(tonumber(os.getenv "MAV_SOAK_STEPS")) or S.is_full and 20000 or 2000
local SEED = math.tointeger(tonumber(os.getenv "MAV_SOAK_SEED")) or 1
local KEYS, SESSIONS, CONTEXT = 2, 4, 300

local MODELS = { "maverick", "scout", "top2" }
local DRAFTERS = { "ngram", "suffix", "echo", "self=1", "self=2", "stop=3", "ngram,self=2", "eagle3", "suffix,eagle3" }
local POLICIES = { "ema", "confidence", "cost_aware", "auto", "off" }
local SAMPLES = { {}, { temperature = 1, seed = 3 }, { temperature = 0.9, repetition_penalty = 1.4, top_p = 0.95, seed = 4 },
  { repetition_penalty = 1.3 } }

local random = math.random
local function pick(list) return list[random(#list)] end

--- What is played with: models, one plain session per sampler and key to compare with.
local function new_world()
  local world = { steps = 0, checks = 0, failures = 0 }
  for i, name in ipairs(MODELS) do
    local model = S.load(S.support.model_dir(name))
    world[i] = { model = model, plain = {}, eagle3 = name == "maverick" and S.support.model_dir "eagle3_full" }
  end
  return world
end

local function plain_of(w, sample, key)
  local name = tostring(sample) .. key
  w.plain[name] = w.plain[name] or w.model:session { sample = sample, key = key }
  return w.plain[name]
end

--- A strategy of everything that must not change the text. state.fails: its functions raise while that is true.
local function strategy(w, state)
  local name = pick(DRAFTERS)
  if name:find "eagle3" then name = w.eagle3 and name:gsub("eagle3", "eagle3=" .. w.eagle3) or "self=2" end
  local drafter = S.drafter(w.model, name)
  local o = { draft = drafter, sample = pick(SAMPLES), accept = pick { "keyed", "keyed", "greedy" } }
  if S.makes_trees(drafter) and random() < 0.4 then
    o.tree = pick { { 2 }, { 2, 2 }, { 3, 1, 2 }, { 1, 2, 1 } }
  else
    o.k_max = random(0, 8)
  end
  local most, which = o.tree and #o.tree or o.k_max, random(4)
  if which == 1 then
    o.policy = random(0, most)
  elseif which == 2 then
    o.policy = pick(POLICIES)
  else
    o.policy = function()
      if state.fails and random() < 0.3 then error "at random" end
      if random() < 0.02 then return false end
      return random(0, most)
    end
  end
  if o.sample.temperature == nil and random() < 0.3 then -- greedy by hand
    o.accept = function(probs, id)
      if state.fails and random() < 0.3 then error "at random" end
      return require("mav").op.argmax { x = probs:reshape { 1, probs.shape[1] } }:get(1) == id
    end
  end
  return o
end

--- What the timeline of s should be from the n-th token on, if everything after was generated.
local function check(world, it, n)
  local s = it.session
  if #s <= n then return end
  local p = plain_of(it.world, it.sample, s.key)
  local common = 0
  while common < math.min(#p, n) and p.ids[common + 1] == s.ids[common + 1] do common = common + 1 end
  p:truncate(common)
  p:append(table.move(s.ids, common + 1, n, 1, {}))
  p:complete(nil, { max_tokens = #s - n, ignore_eos = true })
  S.same(S.after(p, n), S.after(s, n), "%s, %s, key %d, after %d tokens", it.text, tostring(s), s.key, n)
  world.checks = world.checks + 1
end

local function ids(it, n)
  local list = {}
  for i = 1, n do list[i] = random(0, it.world.model.config.vocab - 1) end
  return list
end

local ACTIONS = {}

function ACTIONS.generate(world, it)
  local s, n = it.session, #it.session
  s:complete(nil, { max_tokens = random(1, 14), ignore_eos = true, on_step = world.on_step })
  check(world, it, n)
end

function ACTIONS.break_off(world, it)
  local s, n, rest = it.session, #it.session, random(1, 9)
  for _ in s:generate(nil, { max_tokens = 20, ignore_eos = true, on_step = world.on_step, on_token = function() rest = rest - 1 end }) do
    if rest <= 0 then break end
  end
  check(world, it, n)
end

function ACTIONS.fail(world, it)
  local s, n = it.session, #it.session
  it.state.fails = true
  local ok, err = pcall(s.complete, s, nil, { max_tokens = random(1, 10), ignore_eos = true, on_step = world.on_step })
  it.state.fails = false
  if not ok then
    world.failures = world.failures + 1
    assert(tostring(err):find("at random", 1, true), err)
  end
  check(world, it, n)
end

function ACTIONS.append(_, it)
  if #it.session < CONTEXT - 40 then it.session:append(ids(it, random(0, 6))) end
end

function ACTIONS.append_long(_, it)
  if #it.session < CONTEXT - 120 then it.session:append(ids(it, random(20, 90))) end
end

function ACTIONS.truncate(_, it)
  if #it.session > 1 then it.session:truncate(#it.session - random(0, math.min(12, #it.session - 1))) end
end

function ACTIONS.cut(_, it) it.session:truncate(random(1, #it.session)) end

function ACTIONS.restart(_, it)
  it.session:reset()
  it.session:append(ids(it, random(1, 40)))
end

function ACTIONS.fork(world, it)
  if #world.sessions >= SESSIONS then return end
  local other = {}
  for key, value in pairs(it) do other[key] = value end
  other.session = it.session:fork { key = random(KEYS) }
  table.insert(world.sessions, other)
end

--- Two sessions in turns, token by token; sometimes one is cut in between.
function ACTIONS.in_turns(world, it)
  local other = pick(world.sessions)
  if other == it then return end
  local a, b, n, m = it.session, other.session, #it.session, #other.session
  local o = { max_tokens = 8, ignore_eos = true, on_step = world.on_step }
  local f, g = a:generate(nil, o), b:generate(nil, o)
  for _ = 1, random(2, 10) do
    if random(2) == 1 then f() else g() end
  end
  check(world, it, n)
  check(world, other, m)
end

local WEIGHTS = { generate = 10, break_off = 4, fail = 2, append = 2, append_long = 1, truncate = 4, cut = 1, restart = 1, fork = 3,
  in_turns = 4 }

local function open(world)
  local w, state = pick(world), { fails = false }
  local o = strategy(w, state)
  local it = { world = w, state = state, sample = o.sample, text = tostring(o.draft) .. " " .. (o.tree and S.shape_text(o) or "chain") }
  local device = type(o.draft) == "table" and (o.draft.kind == "device" and o.draft or o.draft.device) -- room for all to be full
  local kv = assert(w.model:kv { tokens = SESSIONS * (CONTEXT + 64), context_max = CONTEXT + 64, sequences = SESSIONS,
    extra = device and device:layers(w.model) or {} })
  it.session = w.model:session { strategy = o, kv = kv, context = CONTEXT, key = random(KEYS), entropy = random(4) == 1,
    confidence = random(4) == 1 }
  it.session:append(ids(it, random(1, 60)))
  world.kvs[it.session.kv] = true
  table.insert(world.sessions, it)
end

local function close(world, i)
  table.remove(world.sessions, i).session:close()
end

describe("sessions with drafts", function()
  it("withstand random use", function()
    math.randomseed(SEED)
    local world, actions = new_world(), {}
    for name, weight in pairs(WEIGHTS) do
      for _ = 1, weight do actions[#actions + 1] = name end
    end
    table.sort(actions)
    world.sessions, world.kvs = {}, {}
    function world.on_step() world.steps = world.steps + 1 end
    while world.steps < STEPS do
      if #world.sessions == 0 then open(world) end
      local i = random(#world.sessions)
      local name, chance = pick(actions), random()
      local ok, err = pcall(ACTIONS[name], world, world.sessions[i])
      if not ok then error(("seed %d, step %d, %s: %s"):format(SEED, world.steps, name, tostring(err)), 0) end
      if chance < 0.03 then
        close(world, i)
      elseif chance < 0.06 and #world.sessions < SESSIONS then
        open(world)
      elseif chance < 0.07 then -- another loop
        while #world.sessions > 0 do close(world, 1) end
      end
    end
    while #world.sessions > 0 do close(world, 1) end
    local caches = 0
    for kv in pairs(world.kvs) do
      caches = caches + 1
      assert.are.equal(0, kv.pages_live)
    end
    assert.is_true(caches > 2 and world.checks > STEPS // 20 and world.failures > 0)
  end)
end)
