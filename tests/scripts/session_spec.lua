local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local golden = dofile(support.oracle .. "golden.lua")
local maverick = require "mav.maverick"

local SAMPLED = { temperature = 1.2, top_k = 50, top_p = 0.95, min_p = 0.01, repetition_penalty = 1.1, seed = 3 }

local function tail(s, n) return { table.unpack(s.ids, #s - n + 1, #s) } end

describe("session", function()
  local model, g, prompt, expected
  setup(function()
    model, g = assert(maverick.load(support.model_dir "maverick", { device = "cpu", threads = 2 })), golden.open "maverick"
    prompt, expected = g.get "long.input_ids", g.get "long.greedy_ids"
  end)

  it("continues where it stopped", function()
    local s <close> = model:session {}
    s:complete(prompt, { max_tokens = 10, ignore_eos = true })
    s:complete(nil, { max_tokens = 5, ignore_eos = true })
    s:complete(nil, { max_tokens = #expected - 15, ignore_eos = true })
    assert.are.same(expected, tail(s, #expected))
  end)

  it("gives the text of its ids, in pieces", function()
    local text = golden.json("goldens/maverick/golden.json").prompts.short
    local s <close> = model:session {}
    assert.are.equal(text.greedy_text, s:complete(text.text, { max_tokens = 48, ignore_eos = true }))
    assert.are.equal(g.get("short.greedy_ids")[1], s.ids[#g.get("short.input_ids") + 1]) -- the prompt got its begin-of-text id
  end)

  it("can be truncated, reset and continued", function()
    local s <close> = model:session { sample = SAMPLED }
    s:complete(prompt, { max_tokens = 20 })
    local first = tail(s, s.generated)
    s:truncate(#prompt)
    assert.are.equal(#prompt, #s)
    s:complete(nil, { max_tokens = 20 })
    assert.are.same(first, tail(s, s.generated))
    s:truncate(#prompt + 7)
    s:complete(nil, { max_tokens = 13 })
    assert.are.same(first, { table.unpack(s.ids, #prompt + 1, #s) })
    s:reset()
    assert.are.equal(0, #s)
    s:complete(prompt, { max_tokens = 20 })
    assert.are.same(first, tail(s, s.generated))
  end)

  it("draws the same with the same seed, another text with another", function()
    local function draw(seed, key)
      local s <close> = model:session { sample = { temperature = 1.5, seed = seed }, key = key }
      s:complete(prompt, { max_tokens = 24, ignore_eos = true })
      return tail(s, 24)
    end
    assert.are.same(draw(1), draw(1))
    assert.are_not.same(draw(1), draw(2))
    assert.are_not.same(draw(1), draw(1, 5))
  end)

  it("does not depend on how the prompt came", function()
    local a <close> = model:session { sample = SAMPLED }
    local b <close> = model:session { sample = SAMPLED }
    a:complete(prompt, { max_tokens = 12 })
    for _, id in ipairs(prompt) do
      b:append { id }
    end
    b:complete(nil, { max_tokens = 12 })
    assert.are.same(tail(a, a.generated), tail(b, b.generated))
  end)

  it("takes long prompts, in chunks", function()
    local ids = {}
    for i = 1, 1200 do ids[i] = (i * 7919) % 2000 end
    local s <close> = model:session { sample = { repetition_penalty = 1.2, logprobs = 1 } }
    local entry
    s:complete(ids, { max_tokens = 1, on_token = function(_, e) entry = e end })
    local kv, seq = golden.sequence(model, #ids)
    local best = golden.feed(model, kv, seq, ids, { head = "last" }):totable()[1]
    local norm = 0
    for _, x in ipairs(best) do norm = norm + math.exp(x) end
    assert.is_true(math.abs(best[s.ids[1201] + 1] - math.log(norm) - entry.logprob) < 1e-3)
  end)

  it("takes a function in the place of a chain", function()
    local op = require("mav").op
    local s <close> = model:session { sample = function(logits) return op.argmax { x = logits } end }
    s:complete(prompt, { max_tokens = 9, ignore_eos = true })
    assert.are.same({ table.unpack(expected, 1, 9) }, tail(s, 9))
    local b <close> = model:session { sample = require "mav.sample.greedy" }
    b:complete(prompt, { max_tokens = 9, ignore_eos = true })
    assert.are.same({ table.unpack(expected, 1, 9) }, tail(b, 9))
  end)

  it("stops at eos, at max_tokens, at a full context and at strings", function()
    local s <close> = model:session { context = #prompt + 6 }
    s:complete(prompt, { max_tokens = 0 })
    assert.are.equal("length", s.stopped)
    assert.are.equal(0, s.generated)
    local text = s:complete(nil, { max_tokens = 100, ignore_eos = true })
    assert.are.equal("context", s.stopped)
    assert.are.equal(6, s.generated)
    local stop = text:sub(6, 9)
    local r <close> = model:session {}
    local got = r:complete(prompt, { max_tokens = 40, stop = { "never there", stop }, ignore_eos = true })
    assert.are.equal("stop", r.stopped)
    assert.are.equal(text:sub(1, text:find(stop, 1, true) - 1), got)
    local eos = {}
    for _, id in ipairs(model.config.eos) do eos[id] = 100 end -- make one certain
    local e <close> = model:session { sample = { logit_bias = eos } }
    assert.are.equal("", e:complete(prompt, { max_tokens = 5 }))
    assert.are.equal("eos", e.stopped)
    assert.are.equal(1, e.generated)
  end)

  it("streams what stop strings cannot change, holds back what they can", function()
    local stops = require("mav.session.stop_strings").new { "</s>", "STOP" }
    assert.are.equal("ab", stops:push "ab<")
    assert.are.equal("<x", stops:push "x")
    assert.are.equal("", stops:push "S")
    assert.are.equal("ST", stops:push "TST")
    assert.are.equal("", stops:push "OP after")
    assert.is_true(stops.found)
    stops = require("mav.session.stop_strings").new "end"
    assert.are.equal("x", stops:push "xe")
    assert.are.equal("e", stops:rest())
  end)

  it("survives an error in the loop's body and one inside a step", function()
    local s <close> = model:session {}
    assert.is_false(pcall(function()
      for _ in s:generate(prompt, { max_tokens = 30, ignore_eos = true }) do
        if s.generated == 5 then error "interrupted!" end
      end
    end))
    s:complete(nil, { max_tokens = #expected - 5, ignore_eos = true })
    assert.are.same(expected, tail(s, #expected))
  end)

  it("reports log probabilities by token", function()
    local s <close> = model:session { sample = { logprobs = 3 } }
    local entries = {}
    s:complete(prompt, { max_tokens = 4, on_token = function(id, entry) entries[#entries + 1] = { id, entry } end })
    for _, pair in ipairs(entries) do
      local id, entry = pair[1], pair[2]
      assert.are.equal(id, entry.id)
      assert.are.equal(id, entry.top[1][1]) -- greedy: the best
      assert.are.equal(entry.logprob, entry.top[1][2])
      assert.is_true(entry.logprob <= 0 and entry.top[2][2] <= entry.top[1][2])
    end
    assert.are.equal(4, #entries)
  end)

  it("runs unfused, and with a bf16 cache", function()
    local s <close> = model:session { fused = false }
    s:complete(prompt, { max_tokens = #expected, ignore_eos = true })
    assert.are.same(expected, tail(s, #expected))
    local b <close> = model:session { kv_dtype = "bf16" }
    b:complete(prompt, { max_tokens = #expected, ignore_eos = true })
    assert.are.same(expected, tail(b, #expected))
  end)

  it("names wrong options and ids", function()
    assert.has_error(function() model:session { temprature = 1 } end)
    local s <close> = model:session {}
    for _, case in ipairs { { { 99999 }, "99999" }, { { -1 }, "-1" }, { { 1.5 }, "1.5" } } do
      local ok, err = pcall(s.append, s, case[1])
      assert.is_false(ok)
      assert.is_truthy(tostring(err):find(case[2], 1, true))
    end
    assert.are.equal(0, #s)
    assert.has_error(function() s:generate({ 1 }, { max_token = 3 }) end)
    assert.has_error(function() s:generate({ 1 }, { max_tokens = -3 }) end)
    assert.has_error(function() s:reset(); s:complete() end)
    local function fails(text, f, ...)
      local ok, err = pcall(f, ...)
      assert.is_false(ok)
      assert.are.equal(text, tostring(err):sub(1, #text))
    end
    fails("the prompt is a number; a text or a list of ids is allowed", s.complete, s, 5)
    fails("generate: options are 5; a table is allowed", s.complete, s, "x", 5)
    fails("generate: unknown option 'max_token'", s.complete, s, "x", { max_token = 3 })
    fails("generate: max_tokens is -3", s.complete, s, "x", { max_tokens = -3 })
    fails("generate: on_token is a number", s.complete, s, "x", { on_token = 3 })
    s:close()
    for _, name in ipairs { "generate", "append", "truncate", "reset", "fork", "prefill", "step" } do
      fails(("session:%s: the session is closed"):format(name), s[name], s, name == "append" and "x" or nil)
    end
    fails("session:generate: the session is closed", s.complete, s, "x")
  end)

  for name, sample in pairs { greedy = {}, sampled = SAMPLED } do
    it(("replays without allocating, %s"):format(name), function()
      local s <close> = model:session { sample = sample, context = 1024 }
      s:append(prompt)
      s:prefill()
      for _ = 1, 8 do s:step() end
      collectgarbage()
      collectgarbage "stop"
      local host, before = model.runtime:memory().host_allocs, collectgarbage "count"
      for _ = 1, 100 do s:step() end
      local after = collectgarbage "count"
      local host_after = model.runtime:memory().host_allocs
      collectgarbage "restart"
      assert.are.equal(before, after)
      assert.are.equal(host, host_after)
    end)
  end

  it("has figures", function()
    local s <close> = model:session {}
    s:complete(prompt, { max_tokens = 30, ignore_eos = true })
    local stats = s.stats
    assert.are.equal(#prompt - 1, stats.prompt_tokens)
    assert.are.equal(30, stats.output_tokens)
    assert.is_true(stats.tokens_per_s > 0 and stats.step_us_median > 0 and stats.step_us_p99 >= stats.step_us_median)
    assert.is_true(stats.lua_us_per_step >= 0 and stats.bytes_per_step > 0)
    assert.is_truthy(tostring(stats):find("tokens/s/user", 1, true))
  end)
end)
