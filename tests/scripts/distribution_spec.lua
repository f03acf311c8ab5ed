--- Sampling with drafts keeps the distribution: a prompt is continued under many keys, and what was said is compared with the
--- probabilities that an eager forward pass and the chain's filter give, token by token and given the tokens before (chi-square).
--- A rule that accepts too much must fail the same test. With MAV_FULL=1 on ten times as many tokens, and with an EAGLE-3 head.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local S = dofile(here .. "/speculation.lua")
local mav = require "mav"
local new_chain = require "mav.sample.chain"
local first = require "mav.draft.first"

local KEYS = tonumber(os.getenv "MAV_KEYS") or S.is_full and 23000 or 560 -- continuations of DEPTH tokens
local DEPTH = 3
local LEAST = 5          -- expected count of a bin; smaller ones are merged
local PREFIX_LEAST = 40  -- a prefix that occurred less is not looked at
local P_MIN = 1e-5       -- keys are fixed, so what passes once passes always
local VERBOSE = os.getenv "MAV_VERBOSE"

local CHAINS = {
  temperature = { temperature = 0.6, seed = 21 },
  filters = { temperature = 1.1, top_p = 0.9, min_p = 0.03, seed = 22 },
  penalty = { temperature = 0.7, repetition_penalty = 1.6, top_k = 20, logit_bias = { [64] = 1.5, [226] = -2, [3] = 4 }, seed = 23 },
}

--- P(a chi-square variable with n degrees of freedom is larger than x); Wilson and Hilferty's approximation, fine in the tails used.
local function p_value(x, n)
  local z = ((x / n) ^ (1 / 3) - (1 - 2 / (9 * n))) / math.sqrt(2 / (9 * n))
  if z > 30 then return 0.0 end
  local t = 1 / (1 + 0.2316419 * math.abs(z)) -- Abramowitz and Stegun 26.2.17
  local tail = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    * t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
  return z > 0 and tail or 1 - tail
end

--- Adds one conditional distribution to a test: counts by id, how many in all, probabilities by id + 1.
local function add(test, counts, n, probs)
  local rest, rest_count, bins = 0.0, 0, 0
  for i, p in ipairs(probs) do
    local count, e = counts[i - 1] or 0, p * n
    if p == 0 and count > 0 then test.impossible = test.impossible + count end
    if e >= LEAST then
      test.chi2, bins = test.chi2 + (count - e) ^ 2 / e, bins + 1
    else
      rest, rest_count = rest + e, rest_count + count
    end
  end
  if rest >= LEAST then
    test.chi2, bins = test.chi2 + (rest_count - rest) ^ 2 / rest, bins + 1
  elseif rest_count > 4 * LEAST then
    test.impossible = test.impossible + rest_count
  end
  if bins > 1 then test.freedom, test.tokens = test.freedom + bins - 1, test.tokens + n end
end

--- Exact probabilities of the token after prompt and prefix.
local function oracle(model, prompt, options)
  local chain = new_chain(options)
  local kv = assert(model:kv { tokens = 4 * (#prompt + DEPTH + 64), sequences = 2 })
  return function(prefix)
    local ids = table.move(prefix, 1, #prefix, #prompt + 1, { table.unpack(prompt) })
    local seq <close> = assert(kv:sequence {})
    local rows = mav.rows(#ids, { runtime = model.runtime })
    assert(seq:reserve(#ids))
    for i, id in ipairs(ids) do rows:set(i, id, seq, i - 1, i - 1) end
    local logits = model:forward(rows, kv, { head = "last" })
    local seen = mav.zeros { kv.sequences, model.config.vocab, dtype = "u8", runtime = model.runtime }
    local state = { kv = kv:layer(1), seen = seen, runtime = model.runtime }
    chain:observe(rows, state)
    return mav.op.softmax { x = chain:filter(logits, rows:slice(#ids, #ids), state) }:totable()[1]
  end
end

--- The tokens said under many keys, as a tree of counts: node = { n =, counts =, children = }.
local function sample(model, prompt, strategy, keys)
  local s <close> = model:session { strategy = strategy, context = #prompt + 64 }
  s:append(prompt)
  s:prefill()
  local root = { n = 0, counts = {}, children = {} }
  local accepted, drafted, started = 0, 0, mav.now()
  for key = 1, keys do
    local f <close> = s:fork { key = key }
    f:complete(nil, { max_tokens = DEPTH, ignore_eos = true })
    local node = root
    for d = 1, DEPTH do
      local id = f.ids[#prompt + d]
      node.n, node.counts[id] = node.n + 1, (node.counts[id] or 0) + 1
      if d < DEPTH then
        local child = node.children[id] or { n = 0, counts = {}, children = {} }
        node.children[id], node = child, child
      end
    end
    accepted, drafted = accepted + f.live.accepted, drafted + f.live.k
  end
  return root, { accepted = accepted / math.max(drafted, 1), tokens_per_s = keys * DEPTH / (mav.now() - started) }
end

local function compare(test, exact, node, prefix)
  if node.n < PREFIX_LEAST then return end
  add(test, node.counts, node.n, exact(prefix))
  for id, child in pairs(node.children) do
    prefix[#prefix + 1] = id
    compare(test, exact, child, prefix)
    prefix[#prefix] = nil
  end
end

--- The test of a strategy: p, chi2, freedom, tokens looked at, impossible tokens said.
local function run(model, prompt, strategy, keys, exact)
  local root, figures = sample(model, prompt, strategy, keys)
  local test = { chi2 = 0.0, freedom = 0, tokens = 0, impossible = 0 }
  compare(test, exact or oracle(model, prompt, strategy.sample), root, {})
  test.p = test.impossible > 0 and 0.0 or p_value(test.chi2, test.freedom)
  test.accepted, test.tokens_per_s = figures.accepted, figures.tokens_per_s
  return test
end

local function text(name, t)
  return ("%s: chi2 %.1f, %d degrees of freedom, p %.3g; %d tokens looked at, %.0f tokens/s, %.0f%% accepted, %d impossible"):format(name,
    t.chi2, t.freedom, t.p, t.tokens, t.tokens_per_s, 100 * t.accepted, t.impossible)
end

local function show(name, t)
  if VERBOSE then print(text(name, t)) end
end

describe("the distribution of sampling with drafts", function()
  local model, prompt, exact
  setup(function()
    model, prompt, exact = S.load(S.support.model_dir "scout"), { 1, 9, 30, 64, 302, 53, 64, 17, 200, 9, 30 }, {}
    for name, options in pairs(CHAINS) do
      local f, known = oracle(model, prompt, options), {}
      exact[name] = function(prefix) -- each distribution once
        local key = table.concat(prefix, " ")
        known[key] = known[key] or f(prefix)
        return known[key]
      end
    end
  end)
  teardown(function() model, exact = nil, nil end)

  local function strategy(chain, shape, more)
    return S.strategy(S.drafter(model, "stop=3"), shape, { accept = more.accept, sample = CHAINS[chain] })
  end

  local function kept(chain, shape, more, keys)
    local name = ("%s, %s, %s"):format(more.accept, S.shape_text(shape), chain)
    local t = run(model, prompt, strategy(chain, shape, more), keys or KEYS, exact[chain])
    show(name, t)
    assert.is_true(t.freedom > 20 and t.tokens > t.freedom)
    assert.is_true(t.p > P_MIN, text(name, t))
    return t
  end

  for _, rule in ipairs { "keyed", "rejection" } do
    for _, shape in ipairs { { policy = 2 }, { tree = { 3, 2 } } } do
      it(("is kept: %s, %s"):format(rule, S.shape_text(shape)), function()
        local accepted = 0
        local again = rule == "keyed" and shape.tree -- the very texts of the chain of drafts
        for chain in pairs(CHAINS) do
          if S.is_full or not again or chain == "filters" then
            accepted = math.max(accepted, kept(chain, shape, { accept = rule }).accepted)
          end
        end
        assert.is_true(accepted > 0.1) -- else nothing would be tested
      end)
    end
  end

  --- A host drafter that proposes the likeliest token, and after it the next likeliest of the same distribution; or every second time
  --- nothing.
  local function guesser(chain, sometimes)
    return function(ids, length, k, out)
      if sometimes and ids[length] % 2 == 1 then return 0 end
      local probs, best, second = exact[chain](table.move(ids, #prompt + 1, length, 1, {})), 1, 1
      for i, p in ipairs(probs) do
        if p > probs[best] then
          best, second = i, best
        elseif i == 2 or p > probs[second] then
          second = i
        end
      end
      out[1], out[2] = best - 1, second - 1
      return math.min(k, 2)
    end
  end

  it("is kept by rejection with drafts of a host, alone and before a device", function()
    for _, chain in ipairs { "temperature", "penalty" } do
      local drafters = { guesser(chain), first { guesser(chain, true), S.drafter(model, "self=2") } }
      for i, drafter in ipairs(drafters) do
        local t = kept(chain, { policy = 2, draft = drafter }, { accept = "rejection" }, S.is_full and KEYS // 2 or KEYS)
        assert.is_true(t.accepted > 0.2, i)
      end
    end
  end)

  it("is kept by rejection where unlikely drafts are not verified", function()
    for _, shape in ipairs { { k_max = 2 }, { tree = { 3, 2 } } } do
      shape.policy = require "mav.policy.confidence" { threshold = 0.25 }
      kept("filters", shape, { accept = "rejection" }, S.is_full and KEYS or 2 * KEYS)
    end
  end)

  --- Weighs as on a machine where a row costs a third of a step, whatever this one does; what trim answered is counted.
  local function weighing(answers)
    local inner = require "mav.policy.cost_aware" { confidence = true }
    local machine = { cost_step = 1.0, cost_draft = { [0] = 0.0, 5.0, 10.0 }, cost_verify = {} }
    for T = 1, 64 do machine.cost_verify[T] = 100.0 + 35.0 * (T - 1) end
    machine.verify_us, machine.draft_us = 135.0, 5.0
    local stats = setmetatable({}, { __index = function(_, key) return machine[key] or answers.live[key] end })
    return { name = "weighing", needs = { confidence = true }, reset = function() inner:reset() end,
      ask = function(_, live)
        answers.live = live
        inner:ask(stats)
        return live.k_max
      end,
      trim = function(_, live, k)
        answers.live = live
        local v = inner:trim(stats, k)
        answers[v] = (answers[v] or 0) + 1
        return v
      end }
  end

  --- Keeps level 1 whatever it is, and level 2 when it is likely.
  local function second_level(answers)
    return { name = "second", needs = { confidence = true }, ask = function(_, live) return live.k_max end,
      trim = function(_, live, k)
        local v = k == 2 and live.confidence[2] < 0.3 and 1 or k
        if k == 2 then answers[v] = (answers[v] or 0) + 1 end
        return v
      end }
  end

  it("is kept by rejection where a policy trims by costs, or by the second level", function()
    for name, new in pairs { weighing = weighing, second = second_level } do
      for _, shape in ipairs { { k_max = 2 }, { tree = { 3, 2 } } } do
        local answers = {}
        shape.policy = new(answers)
        kept("filters", shape, { accept = "rejection" }, S.is_full and KEYS or 2 * KEYS)
        if name == "second" or shape.k_max then assert.is_true((answers[1] or 0) > 50 and (answers[2] or 0) > 50, name) end
      end
    end
  end)

  -- ---- the test finds what is wrong -------------------------------------------------------------------------------------------

  it("is not kept by rules that accept too much", function()
    local wrong = {
      always = function() return true end,
      likely = function(probs, id) return probs:get(id + 1) > 0.2 end, -- without a residual
      typical = { "typical", epsilon = 0.05, delta = 0.2 },
    }
    for name, accept in pairs(wrong) do
      local most = S.is_full and 4000 or KEYS
      local t = run(model, prompt, strategy("temperature", { policy = 2 }, { accept = accept }), most, exact.temperature)
      show(name, t)
      assert.is_true(t.p < P_MIN / 1000, text(name, t))
    end
    local other = run(model, prompt, strategy("temperature", { policy = 2 }, {}), KEYS, exact.filters) -- another chain's probabilities
    assert.is_true(other.p < P_MIN / 1000, text("another chain", other))
  end)
end)

if S.is_full then
  describe("the distribution of sampling with an EAGLE-3 head", function()
    it("is kept", function()
      local model = S.load(S.tiny)
      local prompt = S.heldout(model)[50]
      local s <close> = model:session {}
      s:complete(prompt, { max_tokens = 39 }) -- to where the model is uncertain
      prompt = table.move(s.ids, 1, #s, 1, {})
      local drafter = S.drafter(model, "eagle3=" .. S.head)
      for chain, options in pairs(CHAINS) do
        for _, rule in ipairs { "keyed", "rejection" } do
          for _, shape in ipairs { { policy = 2 }, { tree = { 3, 2 } } } do
            local t = run(model, prompt, S.strategy(drafter, shape, { accept = rule, sample = options }), KEYS // 20)
            local name = ("eagle3, %s, %s, %s"):format(rule, S.shape_text(shape), chain)
            show(name, t)
            assert.is_true(t.freedom > 20 and t.accepted > 0.05 and t.p > P_MIN, text(name, t))
          end
        end
      end
    end)
  end)
end
