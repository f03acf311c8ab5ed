--- mav.spec and mav.guard. What the stepper does in which state is tests/core/test_spec.c's.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local mav = require "mav"
local op, raises = mav.op, support.raises

local VOCAB = 50

local function cache(options)
  local o = { layers = 1, kv_heads = 1, head_dim = 2, tokens = 128, page = 16, sequences = 4, dtype = "f32" }
  for key, value in pairs(options or {}) do o[key] = value end
  return assert(mav.kv(o))
end

--- A stepper with a graph for every depth and tensors for what was accepted.
local function loop(widths, options)
  local kv = cache(options)
  local l = { kv = kv, spec = mav.spec { kv = kv, widths = widths }, seq = assert(kv:sequence()), graphs = {}, ids = {} }
  local table_ = mav.zeros { VOCAB, 2 }
  for d = 0, #widths do
    l.graphs[d] = mav.graph({ rows = l.spec.tree:slice(1, l.spec:size(d)) }, function(rows) return op.embed { rows = rows, table = table_ } end)
  end
  l.accepted, l.choice = mav.zeros { #l.spec.tree, dtype = "i32" }, mav.zeros { #l.spec.tree, dtype = "i32" }
  function l:accept(rows) -- the path, one row after the other; row r is followed by 30 + r
    for i = 1, #self.spec.tree do
      self.accepted:set(i, i == 1 and 0 or -1)
      self.choice:set(i, 30 + i)
    end
    for place, row in ipairs(rows) do self.accepted:set(row, place) end
  end
  return l
end

describe("spec", function()
  local rt
  setup(function() rt = support.runtime() end)

  it("steps", function()
    local l = loop { 2, 1 }
    local spec, ids = l.spec, l.ids
    assert.equal("error", spec.state)
    assert.equal(2, spec.depth)
    assert.equal(5, #spec.tree)
    assert.equal(spec.tree, spec.tree)
    assert.same({ 1, 3, 5 }, { spec:size(0), spec:size(1), spec:size(2) })
    assert.equal("mav.spec 2 levels, 5 rows, error", tostring(spec))
    spec:begin(l.seq, 7)
    assert.equal("idle", spec.state)
    spec:draft(2, { 1, 2, 3, 4 })
    assert.equal("drafted", spec.state)
    assert.same({ 7, 1, 2, 3, 4 }, spec.tree.ids:totable())
    spec:verify(l.graphs[2])
    assert.equal("verifying", spec.state)
    spec:check()
    l:accept { 3, 5 }
    assert.equal(3, spec:commit(l.accepted, l.choice, false, ids, 0))
    assert.equal("committed", spec.state)
    assert.same({ 31, 33, 35 }, ids)
    assert.equal(3, #l.seq)
    spec:drafted(1)
    spec:verify(l.graphs[1])
    l:accept {}
    assert.equal(1, spec:commit(l.accepted, l.choice, false, ids, 3))
    assert.equal("rolled back", spec.state)
    assert.same({ 31, 33, 35, 31 }, ids)
    spec:draft(0, {})
    spec:verify(l.graphs[0])
    assert.equal(1, spec:commit(nil, l.choice, false, ids, 1)) -- over what is there
    assert.same({ 31, 31, 35, 31 }, ids)
    assert.same({ steps = 3, drafted = 3, accepted = 2, emitted = 5 }, spec:stats())
    assert.equal(5, #l.seq)
    spec:check()
  end)

  it("checks its options", function()
    local kv = cache()
    raises("unknown key 'width' (did you mean 'widths'?)", mav.spec, { kv = kv, width = {} })
    raises("kv: mav.kv expected, got nil", mav.spec, { widths = {} })
    raises("kv: mav.kv expected, got userdata", mav.spec, { kv = mav.rows(1), widths = {} })
    raises("widths: list expected, got nil", mav.spec, { kv = kv })
    raises("widths: level 2: an integer from 1 to 64 expected", mav.spec, { kv = kv, widths = { 1, 0 } })
    raises("widths: level 1: an integer from 1 to 64 expected", mav.spec, { kv = kv, widths = { 1.5 } })
    raises("widths: level 1: an integer from 1 to 64 expected", mav.spec, { kv = kv, widths = { 1 << 40 } })
    raises("level 2 of the draft tree: width 8", mav.spec, { kv = kv, widths = { 8, 8 } })
    local many = {}
    for i = 1, 64 do many[i] = 1 end
    raises("widths: at most 63 levels", mav.spec, { kv = kv, widths = many })
    many[64] = nil
    assert.equal(64, #mav.spec { kv = kv, widths = many }.tree)
    assert.equal(1, #mav.spec { kv = kv, widths = {} }.tree)
    kv:close()
    raises("kv: mav.kv expected, got a closed one", mav.spec, { kv = kv, widths = {} })
    raises("table expected", mav.spec)
  end)

  it("checks its arguments, and stays as it was", function()
    local l = loop { 2 }
    local spec = l.spec
    raises("mav.sequence expected, got nil", spec.begin, spec, nil, 1)
    raises("a token id expected", spec.begin, spec, l.seq, -1)
    raises("a token id expected", spec.begin, spec, l.seq, 1 << 32)
    raises("number expected, got no value", spec.begin, spec, l.seq)
    raises("a sequence of another cache", spec.begin, spec, assert(cache():sequence()), 1)
    spec:begin(l.seq, 1)
    raises("there is no such level", spec.size, spec, 2)
    raises("there is no such level", spec.size, spec, -1)
    raises("there is no such level", spec.draft, spec, 2, {})
    raises("there is no such level", spec.drafted, spec, 2)
    raises("there is no such level", spec.drafted, spec, 1 << 32)
    raises("table expected", spec.draft, spec, 1, 3)
    raises("draft 2 is nil: a token id expected", spec.draft, spec, 1, { 3 })
    raises("draft 1 is -3: a token id expected", spec.draft, spec, 1, { -3, 3 })
    raises("draft 1 is 1.5: a token id expected", spec.draft, spec, 1, { 1.5, 3 })
    raises("draft 1 is 4294967296: a token id expected", spec.draft, spec, 1, { 1 << 32, 3 })
    raises("mav.graph expected", spec.verify, spec, 1)
    raises("the graph was not captured for the first 1 rows", spec.verify, spec, l.graphs[1])
    raises("nothing was launched (state \"idle\")", spec.commit, spec, nil, l.choice, false, {}, 0)
    assert.equal("idle", spec.state)
    spec:draft(1, { 3, 4 })
    raises("drafts are not expected in the state \"drafted\"", spec.drafted, spec, 0)
    spec:verify(l.graphs[1])
    raises("mav.tensor expected", spec.commit, spec, 1, l.choice, false, {}, 0)
    raises("mav.tensor expected", spec.commit, spec, l.accepted)
    raises("table expected", spec.commit, spec, l.accepted, l.choice, false)
    raises("number expected", spec.commit, spec, l.accepted, l.choice, false, {})
    assert.equal("verifying", spec.state)
    raises("choice must be i32", spec.commit, spec, l.accepted, mav.zeros { 3 }, false, {}, 0)
    assert.equal("error", spec.state)
    spec:check()
    spec:begin(l.seq, 1)
    assert.equal("idle", spec.state)
    assert.is_nil(spec.nothing)
    raises("has no field 'state' that can be set", function() spec.state = "idle" end)
  end)

  it("says what does not hold", function()
    local l = loop { 1 }
    l.spec:begin(l.seq, 1)
    l.spec.tree:set(1, 1, l.seq, 5)
    raises("the root is not the token at its position", l.spec.check, l.spec)
    l.spec:begin(l.seq, 1)
    l.seq:close()
    raises("the sequence is closed", l.spec.check, l.spec)
    raises("begin again", l.spec.verify, l.spec, l.graphs[0])
    raises("closed mav.sequence", l.spec.begin, l.spec, l.seq, 1)
  end)

  it("finds room in what was lost", function()
    local l = loop({ 1 }, { tokens = 16, sequences = 2, context_max = 128 })
    l.spec:begin(l.seq, 1)
    l.spec:draft(1, { 2 })
    do
      local other = assert(l.kv:sequence())
      while other:reserve(16) do other:commit(16) end
      assert.equal(0, l.kv.pages_free)
      raises("FULL", l.spec.verify, l.spec, l.graphs[1]) -- held: nothing to find
      assert.equal("drafted", l.spec.state)
    end
    l.spec:verify(l.graphs[1])
    assert.equal("verifying", l.spec.state)
  end)

  it("is closed, and collected", function()
    local l = loop { 1 }
    local spec = l.spec
    local tree = spec.tree
    spec:begin(l.seq, 3)
    spec:close()
    spec:close()
    assert.equal("mav.spec (closed)", tostring(spec))
    raises("closed mav.spec", spec.begin, spec, l.seq, 3)
    raises("closed mav.spec", function() return spec.state end)
    raises("closed mav.spec", spec.stats, spec)
    assert.equal(2, #tree) -- the table lives on
    assert.equal(3, tree.ids:get(1))
    do
      local scoped <close> = mav.spec { kv = l.kv, widths = {} }
      assert.equal("error", scoped.state)
    end
    collectgarbage()
    collectgarbage()
    local before = rt:memory().host_bytes_live
    for _ = 1, 10 do mav.spec { kv = l.kv, widths = { 3, 3 } } end
    collectgarbage()
    collectgarbage()
    assert.equal(before, rt:memory().host_bytes_live)
  end)

  it("keeps the cache alive", function()
    local spec, seq, graph
    do
      local l = loop {}
      spec, seq, graph = l.spec, l.seq, l.graphs[0]
      l.kv:close()
    end
    collectgarbage()
    spec:begin(seq, 2)
    spec:verify(graph)
    assert.equal(1, spec:commit(nil, mav.tensor({ 9 }, { dtype = "i32" }), false, {}, 0))
    assert.equal(1, #seq)
  end)

  it("allocates nothing in a step", function()
    local l = loop { 1, 1 }
    local spec, drafts, ids, times = l.spec, { 5, 6 }, {}, 10
    l:accept { 2 }
    for i = 1, 2 * times + 4 do ids[i] = 0 end
    spec:begin(l.seq, 1)
    local function step(n)
      spec:draft(2, drafts)
      spec:verify(l.graphs[2])
      local _ = spec.state, spec.tree
      return spec:commit(l.accepted, l.choice, false, ids, n)
    end
    local n = step(0)
    collectgarbage()
    collectgarbage "stop"
    local calls, before = rt:memory().host_allocs, collectgarbage "count"
    for _ = 1, times do n = n + step(n) end
    local after = collectgarbage "count"
    collectgarbage "restart"
    assert.equal(before, after)
    assert.equal(calls, rt:memory().host_allocs)
    assert.equal(2 * times + 2, n)
    assert.equal(n, #l.seq)
  end)
end)

describe("guard", function()
  local function loops() while true do end end
  local function none() assert.is_nil((debug.gethook())) end
  local late = "the function ran longer than it may"

  it("returns what the function returns", function()
    assert.same({ n = 0 }, table.pack(mav.guard(1, function() end)))
    assert.same({ 1, nil, 3, n = 3 }, table.pack(mav.guard(1, function(...) return ... end, 1, nil, 3)))
    assert.equal(5, mav.guard(math.huge, function() return 5 end))
    assert.equal(3, mav.guard(1, setmetatable({}, { __call = function(_, x) return x end }), 3))
    assert.equal(250, select("#", mav.guard(1, function() return table.unpack({}, 1, 250) end)))
    none()
  end)

  it("stops what does not end", function()
    raises(late, mav.guard, 0.02, loops)
    none()
    raises(late, mav.guard, 0.02, function() while true do pcall(error) end end)
    none()
    raises(late, mav.guard, 0.02, function() pcall(loops) end)
    raises(late, mav.guard, 0.02, function() while true do pcall(loops) end end)
    raises(late, mav.guard, 0.02, function() repeat local ok = pcall(loops) until ok end)
    raises(late, mav.guard, 0.02, function() local function f() return f() end return f() end)
    raises(late, mav.guard, 0.02, function()
      while true do xpcall(loops, loops) end -- a message handler is not asked
    end)
    raises(late, mav.guard, 0.02, function()
      local _ <close> = setmetatable({}, { __close = loops })
      loops()
    end)
    raises(late, mav.guard, 0.02, function() table.sort({ 3, 1, 2 }, loops) end)
    none()
    assert.equal(1, mav.guard(1, function() return 1 end)) -- and goes on
    raises("tests/lua/spec_spec.lua:" .. debug.getinfo(loops, "S").linedefined .. ": stopped:", mav.guard, 0.02, loops)
  end)

  it("takes as long as it may, no longer", function()
    local started = mav.now()
    pcall(mav.guard, 0.05, loops)
    local took = mav.now() - started
    assert.is_true(took >= 0.05 and took < 5, took)
    raises(late, mav.guard, 0, loops)
    assert.equal(7, mav.guard(0, function() return 7 end)) -- nobody looked at the clock
    local sum = mav.guard(60, function()
      local s = 0
      for i = 1, 1000000 do s = s + i end
      return s
    end)
    assert.equal(500000500000, sum)
  end)

  it("passes errors through", function()
    local marker = {}
    local ok, err = pcall(mav.guard, 1, function() error(marker) end)
    assert.is_false(ok)
    assert.equal(marker, err)
    ok, err = pcall(mav.guard, 1, function() error() end)
    assert.is_false(ok)
    assert.is_nil(err)
    raises("spec_spec.lua", mav.guard, 1, function() error "told so" end)
    raises("attempt to call", mav.guard, 1, 5)
    none()
  end)

  it("nests: the outer one's time counts", function()
    assert.same({ 1, 2 }, { mav.guard(1, function() return mav.guard(1, function() return 1, 2 end) end) })
    raises(late, mav.guard, 0.02, function() mav.guard(60, loops) end)
    none()
    raises(late, mav.guard, 0.02, function()
      while true do pcall(mav.guard, 60, loops) end
    end)
    none()
  end)

  it("reaches into coroutines", function()
    raises(late, mav.guard, 0.02, function() coroutine.wrap(loops)() end)
    raises(late, mav.guard, 0.02, function()
      while true do coroutine.resume(coroutine.create(loops)) end
    end)
    none()
    raises("yield", mav.guard, 1, coroutine.yield)
    assert.same({ true, 4 }, { coroutine.resume(coroutine.create(function() return mav.guard(1, function() return 4 end) end)) })
    none()
  end)

  it("leaves a coroutine alone that was made inside", function()
    local co
    mav.guard(0.01, function()
      co = coroutine.create(function()
        while true do
          for _ = 1, 100000 do end
          coroutine.yield(1)
        end
      end)
      coroutine.resume(co)
    end)
    local started = mav.now()
    while mav.now() - started < 0.02 do end
    assert.same({ true, 1 }, { coroutine.resume(co) }) -- its time is not over: nobody guards it
    assert.is_nil((debug.gethook(co)))
    raises(late, mav.guard, 0.02, function()
      while true do coroutine.resume(co) end
    end)
  end)

  it("keeps the outer time when another coroutine is guarded within", function()
    local other = coroutine.create(function(seconds)
      while true do seconds = coroutine.yield(mav.guard(seconds, function() return "done" end)) end
    end)
    assert.equal("done", (select(2, coroutine.resume(other, 1)))) -- made outside: without the outer's hook
    mav.guard(60, function()
      assert.equal("done", (select(2, coroutine.resume(other, 0.001))))
      local started = mav.now()
      while mav.now() - started < 0.01 do end
    end)
    raises(late, mav.guard, 0.02, function()
      coroutine.resume(other, 60)
      loops()
    end)
    none()
  end)

  it("leaves the hooks of others", function()
    local hits = 0
    debug.sethook(function() hits = hits + 1 end, "", 100)
    local hook = debug.gethook()
    local ok, result = pcall(mav.guard, 1, function()
      for _ = 1, 1000 do end
      return "done"
    end)
    local after = debug.gethook()
    debug.sethook()
    assert.is_true(ok)
    assert.equal("done", result)
    assert.equal(hook, after)
    assert.is_true(hits > 0)
  end)

  it("checks its arguments", function()
    raises("number expected, got no value", mav.guard)
    raises("value expected", mav.guard, 1)
    raises("a time in seconds expected", mav.guard, -1, print)
    raises("a time in seconds expected", mav.guard, 0 / 0, print)
    none()
  end)
end)
