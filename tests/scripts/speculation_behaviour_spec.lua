--- What else a session with drafts must do: planted divergences are found, bad answers of policies, drafters and rules are named
--- and leave the session usable, texts end in the middle of accepted tokens, sessions are forked, cut and continued anywhere.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local S = dofile(here .. "/speculation.lua")
local check = require "mav.session.check"

local K = 4
local PENALTY = { temperature = 0.9, repetition_penalty = 1.5, seed = 11 }

describe("a session with drafts", function()
  local model, prompt, expected, drafters
  setup(function()
    model = S.load(S.support.model_dir "maverick")
    prompt = S.golden.open("maverick").get "mid.input_ids"
    local p <close> = model:session {}
    expected = S.text(p, prompt, 120)
    drafters = { prophet = S.prophet(expected, #prompt), ["self"] = S.drafter(model, "self=1"), -- both are always right
      eagle3 = S.drafter(model, "eagle3=" .. S.support.model_dir "eagle3_full"), ngram = S.drafter(model, "ngram"),
      both = S.drafter(model, "ngram,self=1") }
  end)
  teardown(function() model, drafters = nil, nil end)

  --- A session with a drafter by name.
  local function session(name, more, options)
    local strategy = S.strategy(drafters[name], not (more and more.tree) and { policy = K } or {}, more)
    local o = { strategy = strategy }
    for key, value in pairs(options or {}) do o[key] = value end
    return model:session(o)
  end

  --- f for every drafter: f(new, name), new(more, options) making sessions.
  local function for_all(f)
    for name in pairs(drafters) do
      f(function(more, options) return session(name, more, options) end, name)
    end
  end

  --- The first n tokens of the plain text.
  local function head(n) return table.move(expected, 1, n, 1, {}) end

  local function said(s) return S.after(s, #prompt) end

  -- ---- where texts end ----------------------------------------------------------------------------------------------------

  it("ends at max_tokens, wherever that falls in a step, and goes on from there", function()
    for_all(function(new, name)
      local s <close> = new()
      s:complete(prompt, { max_tokens = 1, ignore_eos = true })
      local n = 1
      for more = 1, 11 do
        assert.are.equal(0, #s.ids - #s)
        s:complete(nil, { max_tokens = more, ignore_eos = true })
        n = n + more
        assert.are.equal("length", s.stopped)
        assert.are.equal(more, s.generated)
        assert.are.equal(#prompt + n, #s)
        S.same(head(n), said(s), name)
      end
    end)
  end)

  it("goes on after a cut as without one, with a penalty on what was said", function()
    local p <close> = model:session { sample = PENALTY }
    local whole = S.text(p, prompt, 66)
    drafters.seer = S.prophet(whole, #prompt) -- its drafts are accepted, so tokens are dropped
    for_all(function(new, name)
      local s <close> = new { sample = PENALTY }
      s:append(prompt)
      for more = 1, 11 do
        s:complete(nil, { max_tokens = more, ignore_eos = true })
        s:append {} -- also drops
      end
      S.same(whole, said(s), name)
    end)
    drafters.seer = nil
  end)

  it("goes on after steps longer than chunks of the attention", function()
    for _, sample in ipairs { {}, PENALTY } do
      local p <close> = model:session { sample = sample }
      local whole = S.text(p, prompt, 110)
      local o = { draft = S.prophet(whole, #prompt), policy = 40, sample = sample } -- steps of 41 tokens, chunks of 16
      local s <close> = model:session { strategy = o }
      s:append(prompt)
      for _, n in ipairs { 2, 1, 5, 39, 3, 60 } do
        s:complete(nil, { max_tokens = n, ignore_eos = true })
        local other <close> = s:fork {}
        other:complete(nil, { max_tokens = math.min(20, 110 - (#s - #prompt)), ignore_eos = true })
        S.same({ table.unpack(whole, 1, #other - #prompt) }, said(other))
        local n_before = #s
        other:truncate(n_before)
        if n == 39 then -- a fork in the middle of an iteration, with more given than taken
          local forks = {}
          for _ in other:generate(nil, { max_tokens = 30, ignore_eos = true }) do
            if #other == n_before + 4 or #other == n_before + 9 then forks[#forks + 1] = other:fork() end
          end
          S.same({ table.unpack(whole, 1, #other - #prompt) }, said(other))
          for _, fork in ipairs(forks) do fork:close() end
        end
      end
      S.same(whole, said(s))
    end
  end)

  it("says that the cache is full, and goes on when there is room again", function()
    local s <close> = session("self", nil, { context = #prompt + 60 })
    s:complete(prompt, { max_tokens = 2, ignore_eos = true })
    local forks, message = {}, nil
    for i = 1, 3 do
      forks[i] = s:fork {}
      local ok, err = pcall(forks[i].complete, forks[i], nil, { max_tokens = 58, ignore_eos = true })
      message = ok and message or tostring(err)
    end
    assert.is_truthy(message:find("pages of 32 tokens are in use", 1, true), message)
    for i = 1, 3 do
      S.same(head(#forks[i] - #prompt), said(forks[i]))
      forks[i]:close()
    end
    s:complete(nil, { max_tokens = 58, ignore_eos = true })
    S.same(head(60), said(s))
  end)

  it("ends at the context, whatever was drafted beyond", function()
    for_all(function(new, name)
      for room = 1, 9 do
        local s <close> = new(nil, { context = #prompt + room })
        s:complete(prompt, { max_tokens = 100, ignore_eos = true })
        assert.are.equal("context", s.stopped)
        S.same(head(room), said(s), "%s, room for %d", name, room)
        s:truncate(#prompt)
        s:complete(nil, { max_tokens = 100, ignore_eos = true })
        S.same(head(room), said(s), "%s, again", name)
      end
    end)
  end)

  it("ends at an end-of-text token among accepted ones", function()
    local old = model.config.eos
    for _, at in ipairs { 2, 3, 4, 5, 6, 7, 13 } do
      local id, first = expected[at], at
      for i = at - 1, 1, -1 do first = expected[i] == id and i or first end
      model.config.eos = { id }
      for_all(function(new, name)
        local s <close> = new()
        s:complete(prompt, { max_tokens = 50 })
        assert.are.equal("eos", s.stopped)
        S.same(head(first), said(s), "%s, end at %d", name, at)
        s:complete(nil, { max_tokens = 6, ignore_eos = true })
        S.same(head(first + 6), said(s), "%s, after the end at %d", name, at)
      end)
    end
    model.config.eos = old
  end)

  it("ends at stop strings as plain decoding does", function()
    local p <close> = model:session {}
    p:complete(prompt, { max_tokens = 40, ignore_eos = true })
    local text = model.tokenizer:decode(head(40))
    for at = 3, 30, 4 do
      local o = { max_tokens = 40, ignore_eos = true, stop = text:sub(at, at + 2) }
      p:reset()
      local piece = p:complete(prompt, o)
      for_all(function(new, name)
        local s <close> = new()
        assert.are.equal(piece, s:complete(prompt, o), name)
        assert.are.equal(p.stopped, s.stopped)
        S.same(said(p), said(s), name)
      end)
    end
  end)

  -- ---- timelines ----------------------------------------------------------------------------------------------------------

  it("takes turns as a chat does", function()
    local turns, p = { { 5, 6, 7 }, { 300 }, { 9, 9, 9, 9, 10, 11 } }, model:session {}
    local plain = {}
    p:append(prompt)
    for i, turn in ipairs(turns) do
      p:complete(turn, { max_tokens = 7 + i, ignore_eos = true })
      plain[i] = table.move(p.ids, 1, #p, 1, {})
    end
    for_all(function(new, name)
      local s <close> = new()
      s:append(prompt)
      for i, turn in ipairs(turns) do
        s:complete(turn, { max_tokens = 7 + i, ignore_eos = true })
        S.same(plain[i], table.move(s.ids, 1, #s, 1, {}), "%s, turn %d", name, i)
      end
    end)
  end)

  it("can be cut anywhere and goes on", function()
    for_all(function(new, name)
      local s <close> = new()
      for _, keep in ipairs { 33, 30, 17, 5, 1, 0, 40 } do
        s:reset()
        s:complete(prompt, { max_tokens = 40, ignore_eos = true })
        s:truncate(#prompt + keep)
        s:complete(nil, { max_tokens = 40, ignore_eos = true })
        S.same(head(40 + keep), said(s), "%s, cut at %d", name, keep)
      end
      s:truncate(#prompt + 20)
      s:complete({ 7, 8 }, { max_tokens = 5, ignore_eos = true }) -- another text
      s:truncate(#prompt + 20)
      s:complete(nil, { max_tokens = 20, ignore_eos = true })
      S.same(head(40), said(s), name)
    end)
  end)

  it("can be forked in the middle of a step, and both go on", function()
    for_all(function(new, name)
      for at = 1, 9 do
        local s <close> = new()
        local other
        local n = 0
        for _ in s:generate(prompt, { max_tokens = 30, ignore_eos = true, on_token = function() n = n + 1 end }) do
          if n >= at and not other then other = s:fork() end
        end
        S.same(head(30), said(s), "%s, forked at %d", name, at)
        other:complete(nil, { max_tokens = 30 - (#other - #prompt), ignore_eos = true })
        S.same(head(30), said(other), "%s, fork at %d", name, at)
        other:close()
      end
    end)
  end)

  it("takes text in the middle of an iteration", function()
    local p <close> = model:session {}
    for_all(function(new, name)
      local s <close> = new()
      local at
      for _ in s:generate(prompt, { max_tokens = 26, ignore_eos = true }) do
        if not at and s.generated >= 6 then
          at = s.generated
          s:append { 8, 9 }
        end
      end
      p:reset()
      p:complete(prompt, { max_tokens = at, ignore_eos = true })
      p:complete({ 8, 9 }, { max_tokens = 26 - at, ignore_eos = true })
      S.same(said(p), said(s), name)
    end)
  end)

  for _, sample in ipairs { {}, PENALTY } do
    it("keeps forks apart that step in turns" .. (sample.seed and ", sampling" or ""), function()
      for_all(function(new, name)
        local texts, plain = {}, {}
        for key = 1, 3 do
          local p <close> = model:session { sample = sample, key = key }
          plain[key] = S.text(p, { table.unpack(prompt, 1, #prompt - key) }, 24)
        end
        local s <close> = new { sample = sample }
        s:append(prompt)
        s:prefill()
        local forks, iterators = {}, {}
        for key = 1, 3 do
          forks[key] = s:fork { key = key }
          forks[key]:truncate(#prompt - key)
          iterators[key] = forks[key]:generate(nil, { max_tokens = 24, ignore_eos = true })
        end
        local alive = 3
        while alive > 0 do
          alive = 0
          for key = 1, 3 do
            if iterators[key]() then alive = alive + 1 end
          end
        end
        for key = 1, 3 do
          texts[key] = S.after(forks[key], #prompt - key)
          S.same(plain[key], texts[key], "%s, fork %d", name, key)
          forks[key]:close()
        end
      end)
    end)
  end

  -- ---- what is reported ---------------------------------------------------------------------------------------------------

  it("calls on_token for every token and on_step for every step, and its figures add up", function()
    for_all(function(new, name)
      local s <close> = new()
      local tokens, steps, emitted, out = {}, 0, 0, {}
      local function on_step(x)
        assert.are.equal(s, x)
        steps, emitted = steps + 1, emitted + 1 + s.live.accepted
        assert.are.equal(steps, s.live.steps)
        local n = s:drafts(out)
        local device = S.makes_trees(drafters[name])
        assert.are.equal(device and K or 0, n)
        for i = 1, n do assert.are.equal("integer", math.type(out[i])) end
      end
      s:complete(prompt, { max_tokens = 50, ignore_eos = true, on_token = function(id) tokens[#tokens + 1] = id end, on_step = on_step })
      S.same(head(50), tokens, name)
      local stats, sum = s.stats, 0
      assert.are.equal(steps, #stats.steps)
      for _, step in ipairs(stats.steps) do
        sum = sum + 1 + step.accepted
        assert.is_true(step.accepted <= step.k and step.k <= K)
        assert.is_true(step.us > 0 and step.verify_us > 0 and step.draft_us >= 0)
        assert.are.equal(step.k == 0, step.drafter == "none")
      end
      assert.are.equal(emitted, sum)
      assert.is_true(sum >= 50 and sum < 50 + K + 1, name) -- the last step may have given more than was taken
      assert.are.equal(50, stats.output_tokens)
      assert.is_true(math.abs(stats.acceptance_length - sum / steps) < 1e-9)
      if name == "self" then assert.is_true(stats.acceptance_length > 4) end
      if name == "prophet" then assert.are.equal(1 + K, stats.steps[2].accepted + 1) end
      assert.are.equal(0, s:drafts(out)) -- dropped, or taken to the end: nothing of another text may wait
    end)
  end)

  it("shows live figures", function()
    local s <close> = session("self", { policy = function(t) return t.steps % 5 end, k_max = 4 }, { entropy = true, confidence = true })
    s:complete(prompt, { max_tokens = 60, ignore_eos = true, on_step = function()
      local t = s.live
      assert.are.equal(4, t.k_max)
      assert.are.equal(#s + 1 + t.accepted, t.length)
      assert.is_true(t.entropy >= 0 and t.entropy <= math.log(model.config.vocab))
      assert.is_true(t.accepted <= t.k and t.k <= 4 and t.accepted_mean >= 1)
      assert.is_true(t.us > 0)
      for d = 1, 4 do assert.is_true(t.acceptance[d] >= 0 and t.acceptance[d] <= 1) end
      assert.are.equal(3, t.rows(2))
      assert.are.equal(1, t.sequences)
    end })
    assert.is_true(s.live.acceptance[1] > 0.6) -- the model itself drafted
    assert.is_true(s.live.confidence[1] == nil or s.live.confidence[1] <= 1)
    for k = 0, 4 do assert.is_true(s.live.cost_verify[s.live.rows(k)] > 0) end
  end)

  it("shows the figures of the fork that is asked", function()
    local s <close> = session("self")
    s:append(prompt)
    s:prefill()
    local forks, steps = {}, { 0, 0 }
    for i = 1, 2 do forks[i] = s:fork {} end
    for turn = 1, 40 do
      local i = turn % 3 == 0 and 1 or 2
      local f = forks[i]
      local is_new = f.taken == f.given
      if is_new then steps[i] = steps[i] + 1 end
      f:step()
      assert.are.equal(steps[i], f.live.steps)
      if is_new then assert.are.equal(f.given - 1, f.live.accepted) end
    end
    for i = 1, 2 do forks[i]:close() end
  end)

  it("gives the log probabilities of plain decoding", function()
    for _, sample in ipairs { { logprobs = 5 }, { logprobs = 3, temperature = 1.2, seed = 8, repetition_penalty = 1.1 } } do
      local function entries(options)
        local s <close> = model:session(options)
        local list = {}
        s:complete(prompt, { max_tokens = 40, ignore_eos = true, on_token = function(_, e) list[#list + 1] = e end })
        return list
      end
      local plain = entries { sample = sample }
      for _, name in ipairs { "prophet", "self", "eagle3", "both" } do
        for _, shape in ipairs { { policy = K }, { tree = { 2, 2, 1 } } } do
          if not shape.tree or S.makes_trees(drafters[name]) then
            local list = entries { strategy = S.strategy(drafters[name], shape, { sample = sample }) }
            assert.are.equal(#plain, #list)
            for i, e in ipairs(plain) do
              assert.are.equal(e.id, list[i].id)
              assert.is_true(math.abs(e.logprob - list[i].logprob) < 1e-5)
              assert.are.equal(#e.top, #list[i].top)
              for j, top in ipairs(e.top) do
                assert.are.equal(top[1], list[i].top[j][1])
                assert.is_true(math.abs(top[2] - list[i].top[j][2]) < 1e-5)
              end
            end
          end
        end
      end
    end
  end)

  it("gives each fork its own log probabilities, stepping in turns", function()
    local sample, plain = { logprobs = 2, temperature = 1, seed = 4 }, {}
    local function note(list) return function(_, e) list[#list + 1] = { e.id, e.logprob, e.top[2][1], e.top[2][2] } end end
    for key = 1, 2 do
      local p <close> = model:session { sample = sample, key = key }
      plain[key] = {}
      p:complete(prompt, { max_tokens = 20, ignore_eos = true, on_token = note(plain[key]) })
    end
    local s <close> = session("self", { sample = sample })
    s:append(prompt)
    local forks, iterators, lists = {}, {}, { {}, {} }
    for key = 1, 2 do
      forks[key] = s:fork { key = key }
      iterators[key] = forks[key]:generate(nil, { max_tokens = 20, ignore_eos = true, on_token = note(lists[key]) })
    end
    repeat
      local a, b = iterators[1](), iterators[2]()
    until not a and not b
    assert.are.same(plain, lists)
    forks[1]:close()
    forks[2]:close()
  end)

  it("gives the log probability of what a function accepted", function()
    local s <close> = session("ngram", { sample = { logprobs = 1 }, draft = function(_, _, k, out)
      for j = 1, k do out[j] = 40 + j end
      return k
    end, accept = function() return true end })
    local list, p = {}, model:session {}
    s:complete(prompt, { max_tokens = 12, ignore_eos = true, on_token = function(_, e) list[#list + 1] = e end })
    for i, e in ipairs(list) do
      p:reset()
      local ids = table.move(s.ids, 1, #prompt + i - 1, 1, {})
      local kv, seq = S.golden.sequence(model, #ids)
      local logits = S.golden.feed(model, kv, seq, ids, { head = "last" }):totable()[1]
      local norm = 0
      for _, x in ipairs(logits) do norm = norm + math.exp(x) end
      assert.is_true(math.abs(logits[e.id + 1] - math.log(norm) - e.logprob) < 1e-4, "token " .. i)
    end
  end)

  -- ---- planted divergences ------------------------------------------------------------------------------------------------

  it("is found out when its rule changes the text", function()
    local wrong = S.prophet(expected, #prompt, 7) -- every seventh draft is wrong, and the rule below takes it
    local calls = 0
    local function accept(probs, id, info)
      calls = calls + 1
      assert.are.equal(model.config.vocab, probs.shape[1])
      assert.is_true(info.row == info.level + 1 and info.parent == info.row - 1)
      return id >= 0
    end
    local s <close> = session("ngram", { draft = wrong, accept = accept })
    s:complete(prompt, { max_tokens = 30, ignore_eos = true })
    assert.is_true(calls > 10)
    local result = check.against_plain(s, { ignore_eos = true })
    local at = result.token
    assert.are.equal(0, at % 7)
    S.same(head(at - 1), { table.unpack(said(s), 1, at - 1) })
    assert.are.equal(expected[at], result.plain_id)
    assert.are.equal(s.ids[#prompt + at], result.id)
    assert.is_true(result.margin > 0)
    local emitted, step = 0, 0
    while emitted < at do
      step = step + 1
      emitted = emitted + 1 + s.stats.steps[step].accepted
    end
    assert.are.equal(step, result.step)
    local line = check.text(model, result)
    for _, part in ipairs { "token " .. at, "step " .. step, tostring(result.id), tostring(result.plain_id), "margin" } do
      assert.is_truthy(line:find(part, 1, true), line)
    end
    for name, strategy in pairs { keyed = { policy = 3 }, tree = { tree = { 2, 1 } } } do
      local good <close> = session("self", strategy)
      good:complete(prompt, { max_tokens = 30, ignore_eos = true })
      good.ids[1] = good.ids[1] + 1 -- as a drafter may do that writes to ids
      result = check.against_plain(good, { ignore_eos = true, prompt = prompt })
      assert.are.same({ tokens = 30, rule = "keyed" }, result, name)
      assert.is_truthy(check.text(model, result):find("all 30 tokens", 1, true))
    end
  end)

  it("can decide on the host as the chain does", function()
    local chosen -- a rule that takes the most likely token: greedy acceptance by hand
    local function accept(probs, id)
      chosen = require("mav").op.argmax { x = probs:reshape { 1, probs.shape[1] } }:get(1)
      return chosen == id
    end
    for _, name in ipairs { "prophet", "self", "eagle3", "both" } do
      local s <close> = session(name, { accept = accept })
      S.same(head(40), S.text(s, prompt, 40), name)
      assert.is_true(s.stats.acceptance_length > 1)
    end
    local t <close> = model:session { strategy = { draft = drafters.eagle3, tree = { 2, 2, 1 }, accept = accept } }
    S.same(head(40), S.text(t, prompt, 40), "tree")
  end)

  -- ---- bad answers ----------------------------------------------------------------------------------------------------------

  --- A session whose part fails while `state.bad` is true: the error names it, then the right text follows.
  local function recovers(s, state, pattern, sample)
    local p <close> = model:session { sample = sample }
    local right = S.text(p, prompt, 30)
    s:complete(prompt, { max_tokens = 9, ignore_eos = true })
    for _ = 1, 3 do
      state.bad = true
      local message = S.failure(s.complete, s, nil, { max_tokens = 5, ignore_eos = true })
      assert.is_truthy(message:find(pattern, 1, true), message)
      state.bad = false
      S.same({ table.unpack(right, 1, #s - #prompt) }, said(s), "after: %s", pattern)
      if #s < #prompt + 20 then s:complete(nil, { max_tokens = 2, ignore_eos = true }) end
    end
    s:complete(nil, { max_tokens = 30 - (#s - #prompt), ignore_eos = true })
    S.same(right, said(s), "in the end: %s", pattern)
  end

  it("names bad answers of a policy and stays usable", function()
    local state = {}
    local answers = { { -1, "ask returned -1" }, { 5, "ask returned 5" }, { 1.5, "ask returned 1.5" }, { "3", 'ask returned "3"' },
      { {}, "ask returned a table" }, { true, "ask returned true" } }
    for _, sample in ipairs { {}, PENALTY } do
      for i, case in ipairs(answers) do
        for _, name in ipairs { "self", "prophet" } do
          local late = 0
          local s <close> = session(name, { sample = sample, k_max = K, policy = function()
            late = state.bad and late + 1 or 0
            if late == 2 + i % 2 then return case[1] end -- not before the first step but in it, or in one that accepts drafts
            return 3
          end })
          recovers(s, state, case[2], sample)
        end
      end
    end
    local s <close> = session("self", { k_max = K, policy = function()
      if state.bad then error "no idea" end
      return 2
    end })
    recovers(s, state, "no idea")
  end)

  it("stops functions that do not come back", function()
    local state = {}
    local function spin() while state.bad do end end
    local s <close> = session("self", { k_max = K, policy = function()
      spin()
      return 2
    end })
    state.bad = true
    local message = S.failure(s.complete, s, prompt, { max_tokens = 5 })
    assert.is_truthy(message:find("policy 'function' took longer than 1 s (at ", 1, true), message)
    state.bad = false
    s:complete(nil, { max_tokens = 20, ignore_eos = true })
    S.same(head(20), said(s))
  end)

  it("names bad trims of a policy", function()
    local state = {}
    for answer, text in pairs { [-1] = "trim returned -1", [9] = "trim returned 9", [0.5] = "trim returned 0.5" } do
      local policy = { name = "mine", ask = function() return 3 end, trim = function(_, _, k) return state.bad and answer or k end }
      local s <close> = session("self", { policy = policy, k_max = K })
      recovers(s, state, text)
    end
  end)

  it("names bad proposals of a drafter", function()
    local state = {}
    local cases = {
      { function(k, out) out[k + 1] = 1 return k + 1 end, "proposed 5 tokens; at most 4" },
      { function(_, out) out[1] = -1 return 1 end, "proposal 1 is -1" },
      { function(_, out) out[1], out[2] = 3, 2080 return 2 end, "proposal 2 is 2080" },
      { function(_, out) out[1] = 1.5 return 1 end, "proposal 1 is 1.5" },
      { function(_, out) out[1] = "x" return 1 end, "proposal 1 is x" },
      { function(_, out) out[1] = nil return 1 end, "proposal 1 is nil" },
      { function() return 1.5 end, "proposed 1.5 tokens" },
      { function() return "2" end, "proposed 2 tokens" },
      { function() return {} end, "proposed table" },
      { function() return -3 end, "proposed -3 tokens" },
      { function() error "lost" end, "lost" },
    }
    for _, case in ipairs(cases) do
      local s <close> = session("ngram", { draft = function(ids, length, k, out)
        if state.bad then return case[1](k, out) end
        return S.echo(ids, length, k, out)
      end })
      recovers(s, state, case[2])
    end
    for _, write in ipairs {
      function(ids, length) ids[length + 1] = 3 end,
      function(ids, length) ids[length + 1], ids[length + 2] = 3, 4 end,
      function(ids, length) ids[length] = 3 end,
      function(ids, length) ids[length] = nil end,
      function(ids) ids[1] = 3 end,
    } do
      local s <close> = session("ngram", { draft = function(ids, length, k, out)
        if state.bad then write(ids, length) end
        return S.echo(ids, length, k, out)
      end })
      recovers(s, state, "drafter 'function' wrote to ids")
    end
    local s <close> = session("ngram", { draft = function() return nil end }) -- nothing to say
    S.same(head(10), S.text(s, prompt, 10))
  end)

  it("passes errors of a rule on and stays usable", function()
    for _, sample in ipairs { {}, PENALTY } do
      for _, name in ipairs { "self", "prophet", "eagle3" } do
        local state = {}
        local s <close> = session(name, { sample = sample, accept = function()
          if state.bad then error "cannot decide" end
          return false
        end, draft = name == "prophet" and S.echo or nil })
        recovers(s, state, "cannot decide", sample)
      end
    end
  end)

  it("can be stepped on after an error", function()
    local state = {}
    local s <close> = session("self", { accept = function()
      if state.bad then error "cannot decide" end
      return false
    end })
    s:append(prompt)
    s:prefill()
    for i = 1, 30 do
      state.bad = i % 3 == 0
      pcall(s.step, s)
    end
    local n = #s - #prompt
    assert.is_true(n > 10)
    S.same(head(n), said(s))
  end)

  it("stops speculating when the policy says so", function()
    for_all(function(new, name)
      local asked = 0
      local s <close> = new { k_max = K, policy = function(t)
        asked = asked + 1
        if t.steps >= 4 then return false end
        return 3
      end }
      s:complete(prompt, { max_tokens = 40, ignore_eos = true })
      S.same(head(40), said(s), name)
      assert.is_true(asked <= 6)
      local steps = s.stats.steps
      for i = 6, #steps do assert.are.equal(0, steps[i].k) end
      s:complete(nil, { max_tokens = 40, ignore_eos = true }) -- the next request begins anew
      S.same(head(80), said(s), name)
      assert.is_true(asked > 6)
    end)
    local s <close> = session("self", { policy = function() return false end, k_max = 2 })
    S.same(head(20), S.text(s, prompt, 20))
  end)

  it("checks strategies", function()
    for text, strategy in pairs {
      ["tree or k_max"] = { draft = drafters.self, tree = { 2, 1 }, k_max = 3 },
      ["level 2 has width 0"] = { draft = drafters.self, tree = { 2, 0 } },
      ["only drafters on the device"] = { draft = drafters.ngram, tree = { 2 } },
      ["k is 5"] = { draft = drafters.self, policy = 5, k_max = 3 },
      ["'lucky'"] = { draft = drafters.self, accept = "lucky" },
      ["epsilon is -1"] = { draft = drafters.self, accept = { "typical", epsilon = -1 } },
      ["a sampler that is a plain function"] = { draft = drafters.self, accept = "rejection", sample = function() end },
      ["unknown option 'depth'"] = { draft = drafters.self, depth = 3 },
      ["a drafter (mav.draft.*) or a function"] = { draft = "ngram" },
      ["strategy.tree is a string"] = { draft = drafters.self, tree = "3,2" },
      ["policy without draft"] = { draft = nil, policy = 3 },
      ["tree without draft"] = { tree = { 2 } },
      ["accept without draft"] = { accept = "keyed" },
      ["k_max without draft"] = { k_max = 3 },
      ["mav.draft.ngram is a module, which makes drafters: call it"] = { draft = require "mav.draft.ngram" },
      ['mav.draft.eagle3 is a module, which makes drafters: call it, require("mav.draft.eagle3").load'] = {
        draft = require "mav.draft.eagle3" },
      ["strategy.sample: temperature is -1"] = { sample = { temperature = -1 } },
      ["strategy.sample is a string"] = { sample = "greedy" },
    } do
      local message = S.failure(model.session, model, { strategy = strategy })
      assert.is_truthy(message:find(text, 1, true), message)
      assert.is_nil(message:find "%.lua:%d", message) -- the strategy is at fault, not a place in the session
    end
    local message = S.failure(require "mav.draft.first", { require "mav.draft.suffix" })
    assert.is_truthy(message:find("entry 1: mav.draft.suffix is a module", 1, true), message)
  end)

  it("checks what the functions of a sampler return", function()
    local op = require("mav").op
    for text, sample in pairs {
      ["sample: step 1 returned nil; a tensor (1, %d) is expected"] = { function() end },
      ["sample: step 2 returned a number"] = { function(logits) return logits end, function() return 1 end },
      ["sample: step 1 returned mav.tensor f32 (1, 5)"] = { function(logits) return logits:slice(2, 1, 5) end },
      ["sample: the function returned nil; a tensor (1) is expected"] = function() end,
      ["sample: the function returned mav.tensor f32 (1, %d)"] = function(logits) return op.tanh { x = logits } end,
    } do
      local s <close> = model:session { sample = sample }
      local message = S.failure(s.complete, s, prompt, { max_tokens = 2 })
      assert.is_truthy(message:find(text:format(model.config.vocab), 1, true), message)
    end
  end)
end)
