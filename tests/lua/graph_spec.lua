local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local mav = require "mav"
local op, raises = mav.op, support.raises

for _, device in ipairs { "ref", "cpu", os.getenv "MAV_TEST_DEVICE" } do
  describe("graph on " .. device, function()
    local rt
    setup(function()
      rt = assert(mav.runtime { device = device, threads = 2 })
      mav.default_runtime(rt)
    end)
    teardown(function() rt = nil end)

    it("replays what was captured", function()
      local x = mav.tensor { 1, 2, 3 }
      local g = mav.graph({ rows = 1 }, function(rows)
        assert.equal(1, #rows)
        local y = x * 2
        assert.is_true(y.is_planned)
        raises("STATE", y.get, y, 1)
        return y + 1, -y
      end)
      assert.equal(2, #g)
      assert.equal(2, #g.outputs)
      assert.equal(g[1], g.outputs[1])
      assert.is_nil(g[3])
      assert.equal(g, g:launch())
      assert.equal(g, g:wait())
      assert.is_true(g:poll())
      assert.same({ 3, 5, 7 }, g[1]:totable())
      assert.same({ -2, -4, -6 }, g[2]:totable())
      x:set(1, 10)
      g:launch():wait()
      assert.equal(21, g[1]:get(1))
      assert.equal(2, g:stats().launches)
      assert.equal(3, g:stats().ops)
      assert.is_number(g:stats().last_us)
    end)

    it("reads rows that the host fills", function()
      local rows = mav.rows(2)
      local table_ = mav.tensor { { 1, 2 }, { 3, 4 }, { 5, 6 } }
      local g = mav.graph({ rows = rows }, function(r)
        assert.equal(rows, r)
        return op.embed { rows = r, table = table_ }
      end)
      assert.equal(rows, g.rows)
      rows:set(1, 2, 0, 0)
      rows:set(2, 1, 0, 1, 1)
      g:launch():wait()
      assert.same({ { 5, 6 }, { 3, 4 } }, g[1]:totable())
    end)

    it("keeps what is marked, and nothing else", function()
      local kept, lost
      local g = mav.graph({ rows = 1 }, function()
        kept = mav.keep(mav.tensor { 1, 2 } + 1)
        lost = kept * 2
        return lost + 1
      end)
      g:launch():wait()
      assert.same({ 2, 3 }, kept:totable())
      raises("STATE", lost.get, lost, 1)
      raises("STATE", lost.totable, lost)
      raises("no capture is open", mav.keep, kept)
    end)

    it("gives a capture up that fails, and goes on", function()
      local before = rt:memory().arena_bytes
      local ok, err = pcall(mav.graph, { rows = 1 }, function() error("told so") end)
      assert.is_false(ok)
      assert.truthy(err:find("told so", 1, true))
      assert.truthy(err:find("stack traceback", 1, true))
      ok, err = pcall(mav.graph, { rows = 1 }, function() return mav.zeros { 2 } + mav.zeros { 3 } end)
      assert.is_false(ok)
      assert.equal("SHAPE", err.code)
      assert.truthy(err.traceback:find("graph_spec.lua", 1, true))
      raises("tensors expected", mav.graph, { rows = 1 }, function() return 1 end)
      raises("a capture is open", mav.graph, { rows = 1 }, function() return mav.graph({ rows = 1 }, print) end)
      local marker = {}
      ok, err = pcall(mav.graph, { rows = 1 }, function() error(marker) end)
      assert.is_false(ok)
      assert.equal(marker, err)
      raises("attempt to yield", coroutine.wrap(function() mav.graph({ rows = 1 }, coroutine.yield) end))
      assert.is_true(collectgarbage "isrunning")
      assert.equal(before, rt:memory().arena_bytes)
      assert.same({ 2 }, (mav.tensor { 1 } + 1):totable())
    end)

    it("stops the collector while it captures", function()
      mav.graph({ rows = 1 }, function()
        assert.is_false(collectgarbage "isrunning")
        return mav.tensor { 1 } + 1
      end)
      assert.is_true(collectgarbage "isrunning")
      collectgarbage "stop"
      mav.graph({ rows = 1 }, function() return mav.tensor { 1 } + 1 end)
      assert.is_false(collectgarbage "isrunning")
      collectgarbage "restart"
    end)

    it("outlives what it was made of", function()
      local g = mav.graph({ rows = 1 }, function()
        local x = mav.tensor { 1, 2 }
        return x + 1
      end)
      collectgarbage()
      collectgarbage()
      g:launch():wait()
      local y = g[1]
      g:close()
      g:close()
      raises("closed mav.graph", g.launch, g)
      assert.same({ 2, 3 }, y:totable())
      assert.equal("mav.graph (closed)", tostring(g))
    end)

    it("times its ops", function()
      local g = mav.graph({ rows = 1 }, function() return (mav.tensor { 1, 2 } + 1) * 2 end)
      local profile = g:profile()
      assert.equal(2, #profile)
      assert.equal("add", profile[1].op)
      assert.equal("mul", profile[2].op)
      assert.is_number(profile[1].us)
      assert.equal("mav.graph 1 rows, 2 ops", tostring(g))
    end)

    it("allocates nothing in a replay", function()
      local rows = mav.rows(1)
      local kv = assert(mav.kv { layers = 1, kv_heads = 1, head_dim = 4, tokens = 64, dtype = "f32", page = 32 })
      local seq = assert(kv:sequence())
      local layer, w = kv:layer(1), mav.zeros { 12, 4 }
      local norm, embeddings = mav.tensor { 1, 1, 1, 1 }, mav.zeros { 3, 4 }
      local g = mav.graph({ rows = rows }, function(r)
        local x = op.embed { rows = r, table = embeddings }
        local q = op.norm_qkv { x = x, norm = norm, w = w, rows = r, kv = layer }
        return op.attention { q = q, rows = r, kv = layer }
      end)
      local function step(pos)
        seq:reserve(1)
        rows:set(1, 1, seq, pos)
        g:launch()
        g:wait()
        g:poll()
        seq:commit(1)
        return g[1]:get(1, 1)
      end
      step(0)
      collectgarbage()
      collectgarbage "stop"
      local calls = rt:memory().host_allocs
      local before = collectgarbage "count"
      for pos = 1, 40 do step(pos) end
      local after = collectgarbage "count"
      collectgarbage "restart"
      assert.equal(before, after)
      assert.equal(calls, rt:memory().host_allocs)
      assert.equal(41, #seq)
    end)

    it("checks its arguments", function()
      raises("at least one row expected", mav.graph, { rows = 0 }, print)
      raises("number or mav.rows expected, got nil", mav.graph, {}, print)
      raises("unknown key 'row' (did you mean 'rows'?)", mav.graph, { row = 1 }, print)
      raises("function expected", mav.graph, { rows = 1 })
      local other = assert(mav.runtime { device = "ref" })
      raises("it is not the runtime of the rows", mav.graph, { rows = mav.rows(1), runtime = other }, print)
    end)
  end)
end
