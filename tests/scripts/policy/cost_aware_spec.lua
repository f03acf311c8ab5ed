--- Policies on drafters that do not exist (simulator.lua): against every fixed depth, with the loop's own statistics.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local simulator = dofile(here .. "/simulator.lua")
local replay = require "mav.sweep.replay"
local cost_aware = require "mav.policy.cost_aware"
local live = require "mav.session.live"

local SEEDS = { 11, 22 }

--- Mean speed-up over the seeds of a policy's constructor, and of the best fixed depth.
local function compare(options, new)
  local fixed, own, best = {}, 0, 0
  for _, seed in ipairs(SEEDS) do
    options.seed = seed
    local trace = simulator.trace(options)
    for k = 0, 8 do fixed[k] = (fixed[k] or 0) + replay.run(trace, { policy = k }).speedup / #SEEDS end
    own = own + replay.run(trace, { policy = new() }).speedup / #SEEDS
  end
  for k = 0, 8 do best = math.max(best, fixed[k]) end
  return own, best
end

describe("policy cost_aware", function()
  local FAMILIES = {
    ["good drafts, cheap rows"] = { costs = "memory", { "geometric", 0.85 } },
    ["fair drafts, cheap rows"] = { costs = "memory", { "geometric", 0.6 } },
    ["bad drafts, cheap rows"] = { costs = "memory", { "geometric", 0.1 } },
    ["good drafts, dear rows"] = { costs = "experts", { "geometric", 0.85 } },
    ["fair drafts, dear rows"] = { costs = "experts", { "geometric", 0.6 } },
    ["hopeless drafts, dear rows"] = { costs = "experts", { "geometric", 0.05 } },
    ["drafts that get worse with depth"] = { costs = "memory", { "geometric", 0.9, 0.85 } },
    ["easy and hard stretches, cheap rows"] = { costs = "memory", { "piecewise", 0.95, 0.3, 40 } },
    ["easy and hard stretches, dear rows"] = { costs = "experts", { "piecewise", 0.95, 0.3, 40 } },
    ["search that finds nothing"] = { kind = "host", costs = "host", { "lookup", 0, 20 } },
    ["search in text with a few copies"] = { kind = "host", costs = "host", { "lookup", 0.1, 12 } },
    ["search in text with many copies"] = { kind = "host", costs = "host", { "lookup", 0.8, 20 } },
  }
  for name, options in pairs(FAMILIES) do
    it("is within 5% of the best fixed depth: " .. name, function()
      local own, best = compare(options, cost_aware)
      assert.is_true(own > 0.95 * best, ("%.3f, best fixed %.3f"):format(own, best))
    end)
  end

  it("learns from lookups that cost no row: copies after dear rows had seemed not to pay", function()
    for lookup, deep in pairs { [live.RIGHT] = true, [live.WRONG] = false, [live.UNKNOWN] = false } do
      local policy, stats = cost_aware { explore = 0 }, { k_max = 8, k = 0, accepted = 0, steps = 0, lookup = lookup, verify_us = 400,
        draft_us = 0, cost_step = 3, cost_plain = 400, cost_verify = {}, cost_draft = { [0] = 0 } }
      for k = 0, 8 do stats.cost_verify[k + 1], stats.cost_draft[k] = 400 + 420 * k ^ 0.65, 0 end
      function stats.rows(k) return k + 1 end
      local k
      for n = 1, 24 do
        stats.steps = n
        k = policy:ask(stats)
        if k > 0 then break end
      end
      assert.are.equal(deep, k > 2)
    end
  end)

  local MIXED = {
    ["drafter, cheap rows"] = { costs = "memory", { "geometric", 0.92 }, { "geometric", 0.15 }, { "geometric", 0.6 } },
    ["drafter, dear rows"] = { costs = "experts", { "geometric", 0.92 }, { "geometric", 0.15 }, { "geometric", 0.6 } },
    ["search"] = { kind = "host", costs = "host", { "lookup", 0.8, 20 }, { "lookup", 0, 1 }, { "lookup", 0.4, 12 } },
  }
  for name, options in pairs(MIXED) do
    it("beats every fixed depth where requests differ: " .. name, function()
      local own, best = compare(options, cost_aware)
      assert.is_true(own > best, ("%.3f, best fixed %.3f"):format(own, best))
      local off, _ = compare(options, function() return require("mav.policy").new "auto" end)
      assert.is_true(off > best, ("auto: %.3f, best fixed %.3f"):format(off, best))
    end)
  end

  it("costs less than 2% where nothing can be won", function()
    local own = compare({ costs = "experts", { "geometric", 0.0 } }, cost_aware)
    assert.is_true(own > 0.98, own)
  end)

  it("finds back from k = 0 when drafts become good within a request", function()
    local bad = simulator.trace { costs = "experts", requests = 1, tokens = 400, { "geometric", 0.0 } }
    local good = simulator.trace { costs = "experts", requests = 1, tokens = 600, { "geometric", 0.9 } }
    table.move(good.requests[1].points, 1, 600, 401, bad.requests[1].points)
    local late = {}
    replay.run(bad, { policy = cost_aware(), on_step = function(stats, k)
      if stats.length > 900 then late[#late + 1] = k end
    end })
    local sum = 0
    for _, k in ipairs(late) do sum = sum + k end
    assert.is_true(sum / #late > 2.5, sum / #late)
  end)

  it("executes few Lua instructions in most steps", function()
    local inner, count, calls = cost_aware(), 0, 0
    local function hook() count = count + 1 end
    local counted = { name = "counted", needs = inner.needs, reset = function() inner:reset() end }
    function counted.ask(_, stats)
      calls = calls + 1
      debug.sethook(hook, "", 1)
      local k = inner:ask(stats)
      debug.sethook()
      return k
    end
    local trace = simulator.trace { costs = "memory", { "geometric", 0.92 }, { "geometric", 0.15 }, { "geometric", 0.6 } }
    replay.run(trace, { policy = counted })
    assert.is_true(count / calls < 550, count / calls)
  end)

  it("serves a loop of other depths afterwards, also one of none", function()
    local policy = cost_aware()
    for _, k_max in ipairs { 8, 2, 0, 5 } do
      local stats = { k_max = k_max, k = 0, accepted = 0, steps = 0, verify_us = 400, draft_us = 0, cost_step = 3, cost_verify = {},
        cost_draft = { [0] = 0 }, rows = function(k) return k + 1 end }
      for k = 0, k_max do stats.cost_verify[k + 1] = 400 + k end
      for n = 1, 30 do
        local k = policy:ask(stats)
        assert.is_true(k >= 0 and k <= k_max)
        stats.steps, stats.k, stats.accepted = n, k, k
        stats.lookup = k > 0 and live.UNKNOWN or n % 3 == 0 and live.NOTHING or live.RIGHT
      end
      assert.are.equal(k_max, stats.k)
    end
  end)

  it("looks at the drafts' probabilities when told to", function()
    for _, costs in ipairs { "memory", "experts" } do
      local options = { costs = costs, confidence = true, { "geometric", 0.6 } }
      local own, best = compare(options, function() return cost_aware { confidence = true } end)
      assert.is_true(own > best, ("%s: %.3f, best fixed %.3f"):format(costs, own, best))
    end
  end)

  --- As the loop does where it must not see too much: levels one by one, until one is not kept.
  local function level_by_level(inner)
    return { name = "levels", needs = inner.needs, reset = function() inner:reset() end,
      ask = function(_, stats) return inner:ask(stats) end,
      trim = function(_, stats, k)
        local confidence = {}
        stats = setmetatable({ confidence = confidence }, { __index = stats, confidence = stats.confidence })
        for d = 1, k do
          confidence[d] = getmetatable(stats).confidence[d]
          if inner:trim(stats, d) < d then return d - 1 end
        end
        return k
      end }
  end

  it("looks at them level by level", function()
    for _, costs in ipairs { "memory", "experts" } do
      local options = { costs = costs, confidence = true, { "geometric", 0.6 } }
      local whole, best = compare(options, function() return cost_aware { confidence = true } end)
      local own = compare(options, function() return level_by_level(cost_aware { confidence = true }) end)
      assert.is_true(own > best and own > 0.97 * whole, ("%s: %.3f, best fixed %.3f, whole %.3f"):format(costs, own, best, whole))
    end
  end)

  it("stops at the first level that is not worth its time, and learns each level once", function()
    local trimmer = require("mav.policy.parts.trimmer").new()
    trimmer:resize(4)
    local cost = { [0] = 100.0, 110.0, 120.0, 130.0, 140.0 } -- a token is worth 100
    local stats = { confidence = { 0.9, 0.9, 0.01, 0.9 }, acceptance = { 0.6, 0.6, 0.6, 0.6 } }
    for step = 1, 3 do
      assert.are.equal(1, trimmer:trim(stats, cost, 1, step, 4))
      assert.are.equal(2, trimmer:trim(stats, cost, 2, step, 4))
      assert.are.equal(2, trimmer:trim(stats, cost, 3, step, 4))
      assert.are.same({ step, step, step, step }, trimmer.count)
    end
    assert.is_true(trimmer.gain[2] > 0.3 and trimmer.gain[4] < 0.1)
  end)

  it("corrects costs by the experts that the text hits", function()
    local experts = require "mav.policy.parts.experts"
    local rows = { [0] = 1, 2, 3, 4, 5 }
    local stats = { k = 2, k_max = 4, rows = function(k) return rows[k] end, cost_verify = {}, experts_mean = {} }
    for T = 1, 5 do stats.cost_verify[T], stats.experts_mean[T] = 300 + 10 * (8 * T ^ 0.5), 8 * T ^ 0.5 end
    local e = experts.new()
    for i = 1, 200 do -- text that hits more: 8 T^0.8 experts at 10 us each, with noise that has nothing to do with them
      stats.experts = 8 * 3 ^ 0.8 + (i % 5 - 2)
      stats.verify_us = 300 + 10 * stats.experts + (i % 3 - 1) * 4
      e:learn(stats)
    end
    local slope = e:slope(stats)
    assert.is_true(math.abs(slope - 10) < 1.5, slope)
    local expected = 10 * (8 * 5 ^ 0.8 - 8 * 5 ^ 0.5)
    assert.is_true(math.abs(e:correction(stats, 5, slope) - expected) < 0.2 * expected)
    assert.are.equal(0.0, e:correction(stats, 1, slope))
  end)

  it("does without costs, experts or confidences that are not there", function()
    local stats = { steps = 0, length = 1, k_max = 4, k = 0, accepted = 0, us = 1.0, verify_us = 1.0, draft_us = 0.0,
      acceptance = { 0.6, 0.6, 0.6, 0.6 }, rows = function(k) return k + 1 end, cost_verify = {}, cost_draft = {}, cost_step = 0.0,
      confidence = {} }
    local p = cost_aware { confidence = true, experts = true }
    assert.are.equal(1, p:ask(stats))
    for T = 1, 3 do stats.cost_verify[T] = 100.0 end
    for i = 1, 20 do
      stats.steps, stats.k, stats.accepted = i, 2, 2
      assert.is_true(p:trim(stats, 2) <= 2)
      assert.is_true(p:ask(stats) <= 2) -- no deeper than costs are known
    end
  end)
end)
