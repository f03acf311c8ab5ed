--- The simple policies, what may be given for one, what may be answered, and that asking allocates nothing.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local simulator = dofile(here .. "/simulator.lua")
local live = require "mav.session.live"
local policies = require "mav.policy"
local replay = require "mav.sweep.replay"

--- Statistics as the loop makes them, with costs.
local function statistics(k_max)
  local stats = live.new { k_max = k_max, size = function(_, k) return k + 1 end }
  for k = 0, k_max do
    stats.cost_verify[k + 1], stats.cost_draft[k], stats.experts_mean[k + 1] = 400.0 + 50 * k, 20.0 * k, 8.0 + 3 * k
  end
  return stats
end

--- A log of one step, as statistics follow it.
local log = { size = 1 << 30 }
local session = { times = log, length = 0, given = 0, taken = 0 }

function log.step() return log.k, log.accepted, 420.0 + 50 * log.k, 400.0 + 50 * log.k, 20.0 * log.k, log.k, 3.0, 0.0, log.experts, "x" end

--- A finished step of k levels.
local function finish(stats, k, accepted, experts)
  log.steps, log.followed, log.seen = stats.steps + 1, stats.steps, stats.steps
  log.k, log.accepted, log.experts = k, accepted, experts or 0
  session.length = stats.length + accepted + 1
  live.follow(stats, session)
end

local function raises(text, f, ...)
  local ok, err = pcall(f, ...)
  assert.is_false(ok)
  assert.is_truthy(tostring(err):find(text, 1, true), tostring(err))
end

describe("policies", function()
  it("fixed: the same depth, or the deepest", function()
    assert.are.equal(3, policies.new(3):ask(statistics(8)))
    assert.are.equal(3, policies.new(3).fixed)
    assert.are.equal(8, policies.new(nil):ask(statistics(8)))
    assert.are.equal("fixed 3", tostring(policies.new(3)))
  end)

  it("schedule: stages of the length", function()
    local stats, p = statistics(8), require "mav.policy.schedule" { { 0, 4 }, { 100, 2 }, { 200, 0 } }
    for _, case in ipairs { { 0, 4 }, { 99, 4 }, { 100, 2 }, { 199, 2 }, { 200, 0 }, { 5000, 0 } } do
      stats.length = case[1]
      assert.are.equal(case[2], p:ask(stats))
    end
    local by = require "mav.policy.schedule" { by = "sequences", { 0, 12 }, { 4, 1 } }
    assert.are.equal(8, by:ask(stats)) -- no deeper than the strategy
    stats.sequences = 4
    assert.are.equal(1, by:ask(stats))
  end)

  it("schedule: says what is wrong", function()
    local schedule = require "mav.policy.schedule"
    raises("no stages", schedule, {})
    raises("stage 1: from is 10", schedule, { { 10, 4 } })
    raises("stage 3: from is 5", schedule, { { 0, 4 }, { 5, 2 }, { 5, 1 } })
    raises("by is batch", schedule, { by = "batch", { 0, 4 } })
    raises("stage 1: k is 1.5", schedule, { { 0, 1.5 } })
    raises("unknown option 'k'", schedule, { k = 3, { 0, 1 } })
  end)

  it("ema: up while drafts are accepted, down while they are not, neither in between", function()
    local stats, p = statistics(6), require "mav.policy.ema" { k = 2, hold = 3 }
    local function run(steps, accepted_share)
      local k
      for _ = 1, steps do
        k = p:ask(stats)
        finish(stats, k, math.floor(k * accepted_share + 0.5))
      end
      return k
    end
    assert.are.equal(6, run(100, 1))
    assert.are.equal(6, run(100, 0.6))
    assert.are.equal(1, run(100, 0))
    assert.are.equal(1, run(3, 1)) -- holds
    p:reset()
    live.request(stats)
    assert.are.equal(2, p:ask(stats))
  end)

  it("confidence: verifies while the product stays above the threshold", function()
    local stats, p = statistics(4), require "mav.policy.confidence" { threshold = 0.3 }
    assert.are.equal(4, p:ask(stats))
    for _, case in ipairs { { { 0.9, 0.9, 0.9, 0.9 }, 4 }, { { 0.9, 0.5, 0.5, 0.9 }, 2 }, { { 0.2, 1, 1, 1 }, 0 }, { { 0.9 }, 4 } } do
      stats.confidence = case[1]
      assert.are.equal(case[2], p:trim(stats, 4))
    end
    assert.is_true(p.needs.confidence)
  end)

  it("off: ends a request that does not pay, and only that", function()
    local off = require "mav.policy.off"
    local hopeless = simulator.trace { costs = "experts", requests = 1, { "geometric", 0.05 } }
    local good = simulator.trace { costs = "experts", requests = 1, { "geometric", 0.85 } }
    local p = off { policy = 4, window = 20 }
    local ended, stayed = replay.run(hopeless, { policy = p }), replay.run(good, { policy = p })
    assert.is_true(ended.levels[4] >= 15 and ended.levels[4] <= 20, ended.levels[4])
    assert.are.equal(stayed.steps - 1, stayed.levels[4]) -- all but the first, which has no drafts yet
    local stats = statistics(4)
    p:reset()
    for _ = 1, 30 do
      if p:ask(stats) == false then break end
      finish(stats, 4, 0)
    end
    assert.is_false(p:ask(stats))
    assert.is_false(p:ask(stats))
    p:reset()
    live.request(stats)
    assert.are.equal(4, p:ask(stats))
  end)

  it("off: passes on what the wrapped policy needs and does", function()
    local p = require "mav.policy.off" { policy = require "mav.policy.confidence" {} }
    assert.is_true(p.needs.confidence and p.needs.costs)
    local stats = statistics(2)
    stats.confidence = { 0.9, 0.1 }
    assert.are.equal(1, p:trim(stats, 2))
    assert.is_nil(require "mav.policy.off" { policy = 3 }.trim)
    assert.are.equal("off", policies.new("auto").name)
    raises("margin is 3", require "mav.policy.off", { margin = 3 })
  end)

  it("are made from numbers, functions, names, objects", function()
    assert.are.equal(5, policies.new(function(s) return s.k_max - 3 end):ask(statistics(8)))
    for _, name in ipairs { "auto", "confidence", "cost_aware", "ema", "fixed", "off" } do
      local p = policies.new(name)
      assert.is_true(policies.check_answer(p:ask(statistics(8)), 8) ~= nil, name)
      assert.is_table(p.needs)
      p:reset()
    end
    local own = policies.new { ask = function(self) return self.k end, k = 2 }
    assert.are.equal(2, own:ask(statistics(8)))
    assert.are.equal("table", own.name)
    own:reset()
  end)

  it("are refused when they are none", function()
    raises("unknown policy 'clever'", policies.new, "clever")
    raises("auto, confidence", policies.new, "clever")
    raises("no stages", policies.new, "schedule")
    raises("k is -1", policies.new, -1)
    raises("k is 2.5", policies.new, 2.5)
    raises("a boolean", policies.new, true)
    raises("no function ask", policies.new, { name = "x" })
    raises("trim is a number", policies.new, { name = "x", ask = print, trim = 1 })
    raises("unknown need 'gpu'", policies.new, { ask = print, needs = { gpu = true } })
    raises("k is 9; the strategy's deepest level is 4", policies.new, 9, 4)
    raises("unknown option 'steps'", require "mav.policy.ema", { steps = 1 })
    raises("policy ema: low is 2", require "mav.policy.ema", { low = 2 })
    raises("policy cost_aware: confidence is 1", require "mav.policy.cost_aware", { confidence = 1 })
    raises("policy fixed: k is 99", require "mav.policy.fixed", { k = 99 })
    for _, name in ipairs { "confidence", "cost_aware", "ema", "fixed", "off", "schedule" } do
      raises(("policy %s: options are 3; a table is allowed"):format(name), require("mav.policy." .. name), 3)
    end
  end)

  it("are told what was answered and what may be", function()
    assert.are.equal(3, policies.check_answer(3, 8))
    assert.are.equal("integer", math.type(policies.check_answer(3.0, 8)))
    assert.is_false(policies.check_answer(false, 8))
    local CASES = { { 9, "9" }, { -1, "-1" }, { 2.5, "2.5" }, { 0 / 0, tostring(0 / 0) }, { math.huge, "inf" }, { "3", '"3"' },
      { true, "true" }, { {}, "a table" } }
    for _, case in ipairs(CASES) do raises("ask returned " .. case[2], policies.check_answer, case[1], 8) end
    raises("ask returned nil; an integer from 0 to 8, or false, is allowed", policies.check_answer, nil, 8)
    raises("policy 'mine': ask returned 9", policies.check_answer, 9, 8, "mine")
    raises("trim returned 4; an integer from 0 to 3", policies.check_trim, 4, 3)
  end)

  it("allocate nothing when they are asked", function()
    local specs = { 3, "ema", "cost_aware", "auto", function(s) return s.accepted_mean > 2 and 5 or 2 end,
      require "mav.policy.schedule" { { 0, 4 }, { 500, 2 } }, require "mav.policy.confidence" {},
      require "mav.policy.cost_aware" { confidence = true, experts = true } }
    for _, spec in ipairs(specs) do
      local stats, p, waiting = statistics(8), policies.new(spec), 0
      p:reset()
      local function step(i)
        if waiting > 0 and p.trim then waiting = policies.check_trim(p:trim(stats, waiting), waiting) end
        local k = policies.check_answer(p:ask(stats), 8) or 0
        finish(stats, waiting, math.min(waiting, i % 5), 8 + 3 * waiting + i % 3)
        waiting = k
      end
      for i = 1, 300 do step(i) end
      collectgarbage()
      collectgarbage "stop"
      local before = collectgarbage "count"
      for i = 1, 4000 do step(i) end
      local grown = collectgarbage "count" - before
      collectgarbage "restart"
      assert.is_true(grown < 1, ("%s: %.2f KiB in 4000 steps"):format(tostring(p), grown))
    end
  end)
end)
