--- mav sweep: its parts, and the command on a small model.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local mav = require "mav"
local replay = require "mav.sweep.replay"
local trace = require "mav.sweep.trace"

local BINARY = os.getenv "MAV"
local MODEL = support.root .. "models/tiny-maverick"
local PROMPT = "-- returns the sum of the list\nlocal function sum(list)\n"

local function raises(text, f, ...)
  local ok, err = pcall(f, ...)
  assert.is_false(ok)
  assert.is_truthy(tostring(err):find(text, 1, true), tostring(err))
end

describe("sweep", function()
  it("reads lists", function()
    local options = require "mav.sweep.options"
    assert.are.same({ 0, 1, 2, 5 }, options.depths "5,0..2,1")
    for _, text in ipairs { "", "a", "3..1", "-1", "1,,2", "0..99" } do assert.is_nil(options.depths(text)) end
    assert.are.same({ 0, 0.7 }, options.numbers "0,0.7")
    assert.is_nil(options.numbers "0,x")
    local list = options.drafters { "ngram,self=2", "ngram+self=2", "ngram" }
    assert.are.equal(3, #list)
    assert.are.equal("ngram,self=2", list[3].spec)
    assert.are.equal("ngram+self=2", list[3].text)
  end)

  it("reads prompts, and says which line is wrong", function()
    local prompts = require "mav.sweep.prompts"
    local dir <close> = support.directory()
    local function read(text)
      support.write(dir.path .. "/p", text)
      return prompts.read(dir.path .. "/p")
    end
    assert.are.same({ { prompt = "a", family = "x" }, { prompt = "b", family = "all" } },
      read '{"prompt":"a","family":"x"}\n\n{"prompt":"b"}')
    assert.are.same({ { prompt = "a\nb\n", family = "all" }, { prompt = "c\n", family = "all" } }, read "a\nb\n\n\nc")
    raises("/p: line 2: ", read, '{"prompt":"a"}\n{"prompt":\n')
    raises("/p: line 1: an object with a text", read, '{"text":"a"}')
    raises("/p: line 3: \"family\"", read, '{"prompt":"a"}\n\n{"prompt":"a","family":3}')
    raises("no prompts", read, "\n \n")
    raises("/nowhere", prompts.read, "/nowhere")
    local families = {}
    for _, entry in ipairs(prompts.read(support.root .. "examples/prompts/families.jsonl")) do families[entry.family] = true end
    assert.is_true(families["function"] and families.edit and families["chat edit"] and families.repetitive)
  end)

  it("keeps its state through anything", function()
    local state = require "mav.sweep.state"
    local dir <close> = support.directory()
    local path, settings = dir.path .. "/state", { model = "m", seed = 1 }
    local function cell(k, repetition)
      return { drafter = "ngram", k = k, temperature = 0.7, prompt = 1, ["repeat"] = repetition, us = 3.5 }
    end
    local first = state.open(path, settings)
    for i = 1, 3 do first:add(cell(i, 1)) end
    first:add(cell("auto", 1))
    first:close()
    local whole = support.read(path)
    for cut = 0, #whole, 7 do -- killed anywhere
      support.write(path, whole:sub(1, cut))
      local s = state.open(path, settings)
      local had = #s.cells
      for i = 1, 3 do
        if not s:find(cell(i, 1)) then s:add(cell(i, 1)) end
      end
      if not s:find(cell("auto", 1)) then s:add(cell("auto", 1)) end
      s:close()
      assert.is_true(had <= 4)
      local again = state.open(path, settings)
      assert.are.equal(4, #again.cells)
      assert.are.equal(3.5, again:find(cell("auto", 1)).us)
      assert.is_nil(again:find(cell(2, 2)))
      again:close()
    end
    raises("seed was 1 and is 2", state.open, path, { model = "m", seed = 2 })
    support.write(path, whole:gsub('"k":2', '"k":'))
    raises("/state: line 3: ", state.open, path, settings)
    support.write(path, "{}\n")
    raises("no state of a sweep", state.open, path, settings)
    raises("/nowhere/", state.open, "/nowhere/x", settings)
  end)

  it("says how long it will take", function()
    local progress = require "mav.sweep.progress"
    assert.are.equal("7s", progress.duration(7.2))
    assert.are.equal("3m20s", progress.duration(200))
    assert.are.equal("1h02m", progress.duration(3720))
    local bar = progress.new(10, 2, false)
    bar:step "x"
    assert.is_truthy(bar:line(bar.started + 5, "ngram"):find("3 of 10  35s left  ngram", 1, true))
  end)

  -- ---- tables and pictures ------------------------------------------------------------------------------------------

  local function cells()
    local list = {}
    for prompt = 1, 4 do
      for _, k in ipairs { 1, 2, 4, "auto" } do
        for _, drafter in ipairs { "ngram", 'odd "name", <&>' } do
          local depth = k == "auto" and 3 or k
          list[#list + 1] = { drafter = drafter, k = k, temperature = 0, prompt = prompt, ["repeat"] = 1,
            family = prompt < 3 and "a" or "b", tokens = 20, steps = 10,
            acceptance_length = 2 + depth / 10, us = 400 - 20 * depth - prompt, plain_us = 400, verify_us = 500.0,
            draft_us = 1.0, policy_us = 0.5, predicted = 1.1, is_same = prompt ~= 4 or k ~= 2 }
        end
      end
    end
    return list
  end

  it("sums up", function()
    local summary = require "mav.sweep.summary"
    local rows = summary.rows(cells())
    assert.are.equal(2 * 4 * 3, #rows)
    local r = rows[3]
    assert.are.same({ "ngram", 1, "all", 4 }, { r.drafter, r.k, r.family, r.cells })
    assert.is_true(math.abs(r.acceptance_length - 2.1) < 1e-9)
    assert.is_true(math.abs(r.speedup - 400 / 377.5) < 1e-3)
    assert.is_true(r.speedup_low < r.speedup and r.speedup < r.speedup_high)
    assert.are.equal("auto", rows[12].k)
    assert.are.same({ "ngram k 2: 1 of 4", 'odd "name", <&> k 2: 1 of 4' }, summary.differing(rows))
  end)

  it("writes CSV", function()
    local text = require("mav.sweep.report").csv(require("mav.sweep.summary").rows(cells()))
    local columns, lines = nil, 0
    for line in text:gmatch "[^\n]+" do
      local bare = line:gsub('"[^"]*"', ""):gsub('"[^"]*"', "")
      local n = select(2, bare:gsub(",", ","))
      columns = columns or n
      assert.are.equal(columns, n, line)
      lines = lines + 1
    end
    assert.are.equal(25, lines)
    assert.is_truthy(text:find('"odd ""name"", <&>",auto,0,all,4,', 1, true))
  end)

  --- Checks that tags are balanced and attributes quoted; returns how many elements there were.
  local function check_xml(text)
    local open, count = {}, 0
    text = text:gsub("<style>.-</style>", "")
    for slash, name, attributes, alone in text:gmatch "<(/?)([%w]+)([^<>]-)(/?)>" do
      count = count + 1
      assert.are.equal("", (attributes:gsub('%s+[%w%-:]+="[^"<>]*"', "")), attributes)
      if slash == "/" then
        assert.are.equal(name, table.remove(open))
      elseif alone == "" then
        open[#open + 1] = name
      end
    end
    assert.are.equal(0, #open)
    assert.are.equal(nil, text:gsub("<[^<>]*>", ""):find "[<>]")
    assert.is_nil(text:gsub("&%a+;", ""):find "&")
    assert.is_nil(text:find "nan" or text:find "inf")
    return count
  end

  it("draws", function()
    local svg, rows = require "mav.sweep.svg", require("mav.sweep.summary").rows(cells())
    local text = svg.render(rows, "a <model> & more")
    assert.is_true(check_xml(text) > 60)
    assert.are.equal(2 * 2, select(2, text:gsub("<polygon", "")))
    for _, part in ipairs { { 1 }, { "auto" }, { 1, "auto" } } do -- a single depth, policies alone
      local some = {}
      for _, r in ipairs(rows) do
        for _, k in ipairs(part) do
          if r.k == k then some[#some + 1] = r end
        end
      end
      check_xml(svg.render(some, "x"))
    end
    local script = require("mav.sweep.png").script(rows, 'a "title"', "x.png")
    assert.is_truthy(script:find('title "a \\"title\\""', 1, true))
    assert.are.equal(4, select(2, script:gsub("<< EOD", "")))
  end)
end)

-- ---- traces -------------------------------------------------------------------------------------------------------------

--- A trace of one request: agree of each point; offered: of each, or 4.
local function hand_made(kind, agree, offered)
  local t = { header = { mav_trace = 1, kind = kind, k_max = 4, rows = { 1, 2, 3, 4, 5 }, costs = { plain_us = 90, step_us = 2,
    verify_us = { ["1"] = 100, ["2"] = 110, ["3"] = 120, ["4"] = 140, ["5"] = 200 }, draft_us = { ["1"] = 5, ["2"] = 10, ["3"] = 15,
      ["4"] = 20 } } }, requests = { { request = 1, prompt = { 1, 2, 3 }, prompt_tokens = 3, tokens = #agree, points = {} } } }
  for i, a in ipairs(agree) do
    t.requests[1].points[i] = { at = i, agree = a, offered = offered and offered[i] or 4, drafts = {}, confidence = { 0.9, 0.9, 0.5, 0.5 } }
  end
  return t
end

local AGREE = { 0, 3, 0, 1, 4, 0, 2, 2, 0, 0, 4, 4, 1, 0, 3, 2, 1, 0, 4, 0 }

describe("sweep replay", function()
  --- The same by hand: device drafts are a step late, host drafts come at once.
  local function direct(t, k)
    local costs, at, steps, us, waiting = t.header.costs, 1, 0, 0, 0
    local points = t.requests[1].points
    while at <= #points do
      local v = t.header.kind == "device" and waiting or math.min(k, points[at].offered)
      us = us + costs.step_us + costs.verify_us[tostring(v + 1)] + (costs.draft_us[tostring(k)] or 0)
      at = at + math.min(v, points[at].agree) + 1
      steps, waiting = steps + 1, k
    end
    return steps, us
  end

  it("of a fixed depth is what one gets by hand", function()
    local offered = { 0, 3, 4, 1, 4, 0, 2, 2, 0, 0, 4, 4, 1, 0, 3, 2, 1, 0, 4, 0 }
    for _, t in ipairs { hand_made("device", AGREE), hand_made("host", AGREE, offered) } do
      for k = 0, 4 do
        local steps, us = direct(t, k)
        local r = replay.run(t, { policy = k })
        assert.are.equal(steps, r.steps)
        assert.is_true(math.abs(us - r.us) < 1e-6)
        assert.are.equal(20, r.tokens)
        assert.is_true(math.abs(r.speedup - 20 * 92 / us) < 1e-9)
      end
    end
  end)

  it("drives the policy as the loop does", function()
    local asked, trimmed = {}, 0
    local policy = { name = "probe", needs = {}, reset = function() asked[#asked + 1] = "reset" end,
      ask = function(_, stats)
        asked[#asked + 1] = stats.steps
        return 2
      end,
      trim = function(_, stats, k)
        trimmed = trimmed + 1
        return stats.confidence[2] > 0.5 and k or 0
      end }
    local r = replay.run(hand_made("device", { 0, 2, 0, 0, 2, 0, 0 }), { policy = policy })
    assert.are.same({ "reset", 0, 0, 1, 2 }, asked) -- once before the first step, then while each step runs
    assert.are.equal(3, r.steps)
    assert.are.equal(2, trimmed)
    assert.are.same({ [0] = 1, 0, 2, 0, 0 }, r.levels)
  end)

  it("stops speculating when the policy says so", function()
    local t = hand_made("host", AGREE)
    local r = replay.run(t, { policy = function(stats) return stats.steps < 2 and 4 end })
    local after = r.us
    assert.are.equal(r.steps - 3, r.levels[0])
    assert.is_true(after < replay.run(t, { policy = 0 }).us) -- plain steps cost less here than steps without drafts
    raises("ask returned 7; an integer from 0 to 4", replay.run, t, { policy = function() return 7 end })
  end)

  it("refuses what a trace does not hold", function()
    local t = hand_made("host", AGREE)
    raises("policy 9: the trace has 4 levels", replay.run, t, { policy = 9 })
    raises("policy mine: the trace has 4 levels", replay.run, t, { policy = 5, name = "mine" })
    raises("policy cost_aware needs experts", replay.run, t, { policy = require "mav.policy.cost_aware" { experts = true } })
    local curious = { name = "curious", needs = { entropy = true }, ask = function() return 1 end }
    raises("policy curious needs entropy", replay.run, t, { policy = curious })
    t.requests[1].points[1].entropy = 0.5
    assert.are.equal(20, replay.run(t, { policy = curious }).tokens)
  end)

  it("stops a policy that does not come back", function()
    local function hang() while true do end end
    local t = hand_made("device", AGREE)
    for name, policy in pairs { ask = { ask = hang }, trim = { ask = function() return 2 end, trim = hang },
      reset = { ask = function() return 2 end, reset = hang } } do
      policy.name = name
      raises(("policy '%s' took longer than 1 s (at "):format(name), replay.run, t, { policy = policy })
    end
  end)

  it("makes rows for files and pictures", function()
    local score = require "mav.sweep.score"
    local t = hand_made("host", AGREE)
    local list = { { name = "2", make = function() return require("mav.policy").new(2) end },
      { name = "ema", make = function() return require("mav.policy").new "ema" end } }
    local results = score.replay(t, list)
    local rows = score.rows(t, results)
    assert.are.same({ 2, "ema", "all" }, { rows[1].k, rows[2].k, rows[1].family })
    assert.are.equal(results[1].speedup, rows[1].speedup)
    assert.is_true(math.abs(rows[1].speedup - rows[1].tokens_per_s / rows[1].plain_tokens_per_s) < 0.2)
    results[2].measured = { tokens = 20, us = 10.0, plain_us = 15.0, acceptance_length = 2, speedup = 1.5, tokens_per_s = 2e6 }
    rows = score.rows(t, results)
    assert.are.same({ 1.5, results[2].speedup }, { rows[2].speedup, rows[2].predicted })
  end)

  it("takes other costs", function()
    local t = hand_made("host", AGREE)
    local costs = { plain_us = 50, step_us = 0, draft_us = {}, verify_us = { 50, 50, 50, 50, 50 } }
    local r = replay.run(t, { policy = 4, costs = costs })
    assert.are.equal(50 * r.steps, r.us)
  end)

  local function write(path, t)
    local out = trace.create(path, t.header)
    for _, request in ipairs(t.requests) do
      out:write { request = 1, prompt = request.prompt, tokens = request.tokens }
      for _, point in ipairs(request.points) do out:write(point) end
    end
    out:close()
  end

  it("reads what was written, and says which line is wrong", function()
    local dir <close> = support.directory()
    local path = dir.path .. "/t.jsonl"
    local t = hand_made("device", AGREE)
    write(path, t)
    assert.are.equal(replay.run(t, { policy = "ema" }).us, replay.run(trace.read(path), { policy = "ema" }).us)
    local text = support.read(path)
    local CASES = {
      { text:gsub('"mav_trace":1', '"mav_trace":7'), "line 1: no trace" },
      { text:gsub('"4":140,', ""), "line 1: costs: no verify_us of 4 rows" },
      { text:gsub('"step_us":2', '"step_us":"x"'), "line 1: costs: no step_us" },
      { text:gsub('"at":3,', '"at":4,'), "line 5: point 4 is out of order" },
      { text:gsub('"agree":3', '"agree":5', 1), "line 4: offered and agree do not fit" },
      { text:gsub("\n[^\n]*\n$", "\n"), "request 1 has 19 of 20 points" },
      { text:sub(1, -9), "line 22: " },
      { text:match "^[^\n]*\n", "no requests" },
      { "", "is empty" },
    }
    for _, case in ipairs(CASES) do
      support.write(path, case[1])
      raises(case[2] or case[3], trace.read, path)
    end
  end)

  it("knows how far a tree agrees with the text", function()
    local agreement = require("mav.sweep.record").agreement
    local text = { 5, 6, 7, 8 } -- the root is text[1]
    assert.are.equal(2, agreement({ 6, 7, 9 }, { 1, 1, 1 }, 3, text, 1))
    assert.are.equal(0, agreement({ 1, 7, 9 }, { 1, 1, 1 }, 3, text, 1))
    assert.are.equal(3, agreement({ 6, 7, 8 }, { 1, 1, 1 }, 3, text, 1))
    assert.are.equal(1, agreement({ 8, 7 }, { 1, 1 }, 2, text, 3)) -- the text ends
    -- levels of 2, 4 and 4 nodes: the second child of the root, then its first, then its only one
    assert.are.equal(3, agreement({ 1, 6, 7, 7, 7, 2, 8, 8, 8, 9 }, { 2, 2, 1 }, 3, text, 1) + 0)
    assert.are.equal(2, agreement({ 1, 6, 7, 7, 7, 2, 8, 8, 9, 8 }, { 2, 2, 1 }, 3, text, 1))
    assert.are.equal(1, agreement({ 1, 6, 7, 7, 2, 2, 8, 8, 8, 8 }, { 2, 2, 1 }, 3, text, 1))
  end)
end)

-- ---- with a model -------------------------------------------------------------------------------------------------------

local function has_model()
  local file = io.open(MODEL .. "/model.safetensors")
  if file then file:close() end
  return file ~= nil
end

local describe_model = has_model() and describe or pending
describe_model("sweep with a model", function()
  local model, prompts
  setup(function()
    model = assert(require("mav.maverick").load(MODEL, { threads = 1 }))
    local list = { { prompt = PROMPT, family = "a" }, { prompt = "-- reverses s\n", family = "b" } }
    prompts = require("mav.sweep.prompts").encode(list, model, 32)
  end)

  local function record(path, text)
    local drafter = assert(require("mav.draft").parse(text, model))
    local settings = require("mav.sweep.run").settings { model = model, prompts = prompts,
      drafters = { { text = text, drafter = drafter } }, max_tokens = 24, ignore_eos = true, kv = "f32" }
    settings.path, settings.k_max = path, 4
    local done, recorder = 0, require "mav.sweep.record"
    function settings.on_progress(what, tokens)
      assert.is_string(what)
      done = done + tokens
    end
    recorder.run(settings)
    assert.are.equal(recorder.work(settings), done)
    return trace.read(path), drafter
  end

  it("shows drafters no more than the text before them when it records", function()
    local dir <close> = support.directory()
    support.write(dir.path .. "/peeks.lua", [[return { draft = function(ids, length, k, out)
      assert(#ids == length)
      out[1] = ids[length]
      return 1
    end }]])
    local t = record(dir.path .. "/t", dir.path .. "/peeks.lua")
    assert.are.equal(24, t.requests[1].tokens)
    assert.are.equal("peeks", t.requests[1].points[1].by)
  end)

  it("finds a policy in a file: itself, of a strategy, of function(model)", function()
    local lanes = require "mav.sweep.lanes"
    local dir <close> = support.directory()
    local path = dir.path .. "/mine.lua"
    local function policy(text)
      support.write(path, text)
      return lanes.policy(path)
    end
    assert.are.equal("mine", policy("return 3").name)
    assert.are.equal(3, policy("return 3").make(model).fixed)
    assert.are.equal("function", policy("return function(stats) return stats.k_max end").make(model).name)
    assert.are.equal("off", policy("return require 'mav.policy.off' { policy = 3 }").make().name)
    assert.are.equal(5, policy("return { draft = require 'mav.draft.ngram' {}, policy = 5 }").make().fixed)
    assert.are.equal("ema", policy("return { draft = require 'mav.draft.ngram' {}, policy = 'ema' }").make().name)
    local of_model = policy "return function(model) return { policy = model.config.layers } end"
    assert.are.equal(model.config.layers, of_model.make(model).fixed)
    assert.are.equal(2, policy("return function(model) return 2 end").make(model).fixed)
    raises("mine.lua returns function(model), and there is no model here", of_model.make)
    raises("mine.lua returned a strategy without a policy", policy, "return { draft = require 'mav.draft.ngram' {} }")
    raises("mine.lua returned nothing", policy, "local x = 1")
    raises("no function ask", policy, "return {}")
    raises("mine.lua:1: lost", policy, "error 'lost'")
  end)

  it("opens every lane before it measures one", function()
    local function sweep(options)
      local cells = 0
      options.model, options.prompts, options.max_tokens, options.context = model, prompts, 8, 128
      function options.on_cell() cells = cells + 1 end
      local run = require "mav.sweep.run"
      local ok, err = pcall(run.run, run.settings(options))
      return ok and cells or tostring(err), cells
    end
    local drafters = { { text = "self=2", drafter = require "mav.draft.self"(2) } }
    local five = require("mav.sweep.lanes").policy "5"
    local message, cells = sweep { drafters = drafters, tree = { 2, 1 }, depths = { 1 }, policies = { five } }
    assert.are.equal("self=2, k 5: policy: k is 5; the strategy's deepest level is 2", message)
    assert.are.equal(0, cells)
    message, cells = sweep { drafters = drafters, tree = { 2, 1 }, depths = { 1, 2, 3 } }
    assert.are.equal("self=2, k 3: the strategy's deepest level is 2", message)
    assert.are.equal(0, cells)
    assert.are.equal(2, (sweep { drafters = drafters, tree = { 2, 1 }, depths = { 2 } }))
  end)

  for _, text in ipairs { "ngram", "self=2", "suffix,self=2" } do
    it("replays the steps that the loop makes: " .. text, function()
      local dir <close> = support.directory()
      local t, drafter = record(dir.path .. "/t", text)
      local policies = { 0, 1, 4, "ema", function(stats) return stats.accepted_mean > 1.5 and 4 or 1 end,
        require "mav.policy.schedule" { { 0, 3 }, { 30, 1 } } }
      if drafter.kind == "device" then policies[#policies + 1] = require "mav.policy.confidence" { threshold = 0.5 } end
      for _, spec in ipairs(policies) do
        local s <close> = model:session { context = 128, strategy = { draft = drafter, policy = spec, k_max = 4 } }
        local made, replayed = {}, {}
        for i, prompt in ipairs(prompts) do
          s:reset()
          s:complete(prompt.ids, { max_tokens = 24, ignore_eos = true })
          for _, step in ipairs(s.stats.steps) do made[#made + 1] = step.k .. ":" .. step.accepted end
          made[#made] = "end of " .. i -- the last step may go beyond the text, where a trace knows nothing
        end
        local ends, tokens = 0, 0
        replay.run(t, { policy = spec, on_step = function(stats, k, count)
          replayed[#replayed + 1], tokens = k .. ":" .. stats.accepted, tokens + count
          if tokens == 24 then
            ends, tokens = ends + 1, 0
            replayed[#replayed] = "end of " .. ends
          end
        end })
        assert.are.same(made, replayed, tostring(spec))
      end
    end)
  end
end)

local describe_command = BINARY and has_model() and describe or pending
describe_command("mav sweep", function()
  local SMALL = ("--model '%s' --threads 1 --max-tokens 12"):format(MODEL)

  local function run(args)
    local dir <close> = support.directory()
    local _, _, status = os.execute(("'%s' sweep %s >'%s/out' 2>'%s/err'"):format(BINARY, args, dir.path, dir.path))
    return support.read(dir.path .. "/out"), support.read(dir.path .. "/err"), status
  end

  it("prints a table, writes CSV and SVG", function()
    local dir <close> = support.directory()
    local args = ("%s --draft ngram --k 0..2 --policy auto --csv '%s/a.csv' --svg '%s/a.svg'"):format(SMALL, dir.path, dir.path)
    local out, err, status = run(args)
    assert.are.equal(0, status, err)
    assert.are.equal("", err)
    assert.are.equal(1 + 4 * 3, select(2, out:gsub("\n", "\n")))
    assert.is_truthy(out:find "^drafter +k +temp +family +accepted +draft us +verify us +tokens/s +speed%-up")
    assert.are.equal(1 + 4 * 3, select(2, support.read(dir.path .. "/a.csv"):gsub("\n", "\n")))
    assert.is_truthy(support.read(dir.path .. "/a.svg"):find "</svg>\n$")
  end)

  it("goes on after it was killed", function()
    local dir <close> = support.directory()
    local state = dir.path .. "/state"
    local args = ("%s --draft ngram --k 1,2 --repeats 3 --json --resume '%s'"):format(SMALL, state)
    local script = "{ '%s' sweep %s >/dev/null 2>&1 & pid=$!; i=0; while [ $i -lt 400 ] && [ \"$(cat '%s' | wc -l)\" -lt %d ]; do "
      .. "sleep 0.01; i=$((i+1)); done; kill -%s $pid; wait $pid; } 2>/dev/null"
    for lines, signal in pairs { [3] = "KILL", [6] = "INT" } do os.execute(script:format(BINARY, args, state, lines, signal)) end
    local out, err, status = run(args)
    assert.are.equal(0, status, err)
    local cells = 0
    for _, r in ipairs(assert(mav.json.decode(out)).rows) do
      if r.family == "all" then cells = cells + r.cells end
    end
    assert.are.equal(2 * 4 * 3, cells)
    assert.are.equal(1 + 2 * 4 * 3, select(2, support.read(state):gsub("\n", "\n")))
    local before = support.read(state)
    assert.are.equal(out, (run(args))) -- nothing is left to measure
    assert.are.equal(before, support.read(state))
    out, err, status = run(args:gsub("%-%-max%-tokens 12", "--max-tokens 13"))
    assert.are.equal(1, status)
    assert.are.equal("", out)
    assert.is_truthy(err:find("max_tokens was 12 and is 13", 1, true), err)
  end)

  it("records, replays without the model, and checks with it", function()
    local dir <close> = support.directory()
    local path = dir.path .. "/trace.jsonl"
    local out, err, status = run(("%s --draft ngram --k 4 --record '%s'"):format(SMALL, path))
    assert.are.equal(0, status, err)
    assert.is_truthy(out:find("4 requests", 1, true))
    local args = ("--replay '%s' --policy 0,2,ema --json"):format(path)
    local first = assert(mav.json.decode((run(args))))
    support.write(path, (support.read(path):gsub('"model":"[^"]*"', '"model":"/nowhere"')))
    local second = assert(mav.json.decode((run(args))))
    for i, r in ipairs(first.results) do
      assert.are.equal(r.us, second.results[i].us)
      assert.are.equal(r.steps, second.results[i].steps)
    end
    out, err, status = run(("--replay '%s' --policy 2 --check --model '%s'"):format(path, MODEL))
    assert.are.equal(0, status, err)
    assert.is_truthy(out:find("error of the prediction", 1, true), out)
    support.write(dir.path .. "/mine.lua", "return function(stats) return stats.accepted_mean > 1.5 and 4 or 1 end")
    out, err, status = run(("--replay '%s' --policy '%s/mine.lua' --csv '%s/a.csv' --svg '%s/a.svg'"):format(path, dir.path, dir.path,
      dir.path))
    assert.are.equal(0, status, err)
    assert.is_truthy(out:find "\nmine +%d")
    assert.is_truthy(support.read(dir.path .. "/a.csv"):find("\nngram,mine,0,all,4,", 1, true))
    assert.is_truthy(support.read(dir.path .. "/a.svg"):find "</svg>\n$")
    for _, case in ipairs { { "--k 2", "k" }, { "--draft ngram", "draft" }, { "--max-tokens 128", "max-tokens" }, { "--seed 0", "seed" },
      { "--temperature 0", "temperature" }, { "--prompts x", "prompts" }, { "--resume x", "resume" }, { "--ignore-eos", "ignore-eos" },
      { "--model x", "model" }, { "--threads 1", "threads" }, { "--device cpu", "device" } } do
      out, err, status = run(("--replay '%s' %s"):format(path, case[1]))
      assert.are.same({ "", 1 }, { out, status })
      assert.are.equal(("mav sweep: --%s has no meaning with --replay"):format(case[2]), err:match "^(.-%-%-replay)")
    end
    for _, case in ipairs { { "--svg x", "svg" }, { "--csv x", "csv" }, { "--json", "json" }, { "--policy 2", "policy" },
      { "--repeats 1", "repeats" }, { "--resume x", "resume" } } do
      out, err, status = run(("%s --record '%s' %s"):format(SMALL, path, case[1]))
      assert.are.same({ "", 1, ("mav sweep: --%s has no meaning with --record\n"):format(case[2]) }, { out, status, err })
    end
  end)

  it("measures drafters of files", function()
    local dir <close> = support.directory()
    support.write(dir.path .. "/mine.lua", "return function(model) return { draft = require 'mav.draft.self'(2), policy = 1 } end")
    local out, err, status = run(("%s --draft ngram+'%s/mine.lua' --k 1 --policy '%s/mine.lua'"):format(SMALL, dir.path, dir.path))
    assert.are.equal(0, status, err)
    assert.is_truthy(out:find "\nngram%+mine.lua +1 ")
    assert.is_truthy(out:find "\nngram%+mine.lua +mine ")
  end)

  it("fails in one line that says what is wrong", function()
    local dir <close> = support.directory()
    local bad = dir.path .. "/bad.jsonl"
    support.write(bad, '{"prompt":"a"}\n{"prompt":\n')
    local CASES = {
      { "--model /nowhere", "/nowhere/config.json" },
      { SMALL .. " --draft clever", "'clever' is not a drafter" },
      { SMALL .. " --draft none", "plain decoding is always measured" },
      { SMALL .. " --draft eagle3=/nowhere", "/nowhere" },
      { SMALL .. " --policy clever", "unknown policy 'clever'" },
      { SMALL .. " --policy /nowhere.lua", "/nowhere.lua" },
      { SMALL .. " --k 3..1", "3..1" },
      { SMALL .. " --prompts /nowhere", "/nowhere" },
      { SMALL .. (" --prompts '%s'"):format(bad), "bad.jsonl: line 2: " },
      { SMALL .. " --svg /nowhere/x.svg", "/nowhere/x.svg" },
      { SMALL .. " --check", "--replay" },
      { SMALL .. " --record /tmp/never --draft ngram,suffix", "one drafter" },
      { SMALL .. " --record /tmp/never --accept rejection", "--accept rejection" },
      { ("--replay '%s'"):format(bad), "bad.jsonl: line 1: " },
      { "--replay /nowhere", "/nowhere" },
    }
    for _, case in ipairs(CASES) do
      local out, err, status = run(case[1])
      assert.are.equal(1, status, case[1] .. "\n" .. err)
      assert.are.equal("", out)
      assert.is_truthy(err:find(case[2], 1, true), ("%s: %s"):format(case[1], err))
      assert.are.equal(1, select(2, err:gsub("\n", "\n")), case[1] .. "\n" .. err)
      assert.is_truthy(err:find "^mav sweep: ", err)
    end
  end)
end)
