local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local mav = require "mav"
local raises = support.raises
local DEVICE = os.getenv "MAV_TEST_DEVICE" or "ref"

describe("tensor", function()
  setup(support.runtime)

  it("is made of nested tables", function()
    local t = mav.tensor { { 1, 2, 3 }, { 4, 5, 6 } }
    assert.equal("f32", t.dtype)
    assert.same({ 2, 3 }, t.shape)
    assert.equal(2, t.dims)
    assert.equal(2, #t)
    assert.equal(6, t:count())
    assert.equal(6, t:get(2, 3))
    assert.same({ { 1, 2, 3 }, { 4, 5, 6 } }, t:totable())
    assert.is_true(t.is_contiguous)
    assert.is_false(t.is_planned)
  end)

  it("takes options in the table or beside it", function()
    assert.equal("bf16", mav.tensor({ { 1, 2 }, { 3, 4 }, dtype = "bf16" }).dtype)
    assert.equal("i32", mav.tensor({ 1, 2 }, { dtype = "i32" }).dtype)
    assert.same({ { 1, 2 }, { 3, 4 } }, mav.tensor({ 1, 2, 3, 4, shape = { 2, 2 } }):totable())
    assert.same({ 7, 7 }, mav.tensor(7, { shape = { 2 } }):totable())
    assert.equal(3.5, mav.tensor(3.5):totable())
    assert.same({}, mav.tensor(3.5).shape)
  end)

  it("is made of raw bytes, and gives them", function()
    local raw = string.pack("<i4i4", 7, -8)
    local t = mav.tensor(raw, { dtype = "i32" })
    assert.same({ 7, -8 }, t:totable())
    assert.equal(raw, t:bytes())
    assert.same({ { 7 }, { -8 } }, mav.tensor(raw, { dtype = "i32", shape = { 2, 1 } }):totable())
    raises("do not make the shape", mav.tensor, raw, { dtype = "i32", shape = { 3 } })
  end)

  it("holds every dtype", function()
    for _, dtype in ipairs { "f32", "bf16", "f16", "f8", "i32", "i64", "u8" } do
      local t = mav.tensor { 1, 2, 4, dtype = dtype }
      assert.equal(dtype, t.dtype)
      assert.same({ 1, 2, 4 }, t:totable())
      t:set(2, 8)
      assert.equal(8, t:get(2))
      assert.equal(dtype:find("^[iu]") and "integer" or "float", math.type(t:get(1)))
    end
    assert.equal("f8", mav.zeros({ 1, dtype = "fp8" }).dtype)
  end)

  it("refuses data that does not fit", function()
    raises("ragged", mav.tensor, { { 1, 2 }, { 3 } })
    raises("number expected, got string", mav.tensor, { 1, "2" })
    raises("does not fit into i32", mav.tensor, { 2 ^ 40, dtype = "i32" })
    raises("does not fit into u8", mav.tensor, { -1, dtype = "u8" })
    raises("does not fit into i32", mav.tensor, { 1.5, dtype = "i32" })
    raises("elements expected", mav.tensor, { 1, 2, 3, shape = { 4 } })
    raises("more than the 2 elements", mav.tensor, { 1, 2, 3, shape = { 2 } })
    raises("nested more than 4 deep", mav.tensor, { { { { { 1 } } } } })
    raises("number, table of numbers or string expected", mav.tensor)
    raises("table expected at depth 2", mav.tensor, { { 1 }, 2 })
  end)

  it("names the key that was meant", function()
    raises("unknown key 'dtpye' (did you mean 'dtype'?)", mav.tensor, { 1, dtpye = "f32" })
    raises("unknown key 'device'", mav.tensor, { 1 }, { device = "cpu" })
    raises("unknown dtype 'bf61' (did you mean 'bf16'?)", mav.zeros, { 1, dtype = "bf61" })
    raises("unknown key 'shape'", mav.zeros, { 1, shape = {} })
    raises("runtime: mav.runtime expected, got number", mav.zeros, { 1, runtime = 3 })
  end)

  it("charges errors to the caller's line", function()
    local line = debug.getinfo(1, "l").currentline + 1
    local ok, err = pcall(function() local t = mav.zeros { -1 } return t end)
    assert.is_false(ok)
    assert.truthy(tostring(err):find("tensor_spec.lua:" .. line .. ":", 1, true))
    ok, err = pcall(function() return mav.zeros { 2 } + mav.zeros { 3 } end)
    assert.is_false(ok)
    assert.truthy(tostring(err):find("tensor_spec.lua:" .. line + 3 .. ":", 1, true))
  end)

  it("checks indices", function()
    local t = mav.zeros { 2, 3 }
    raises("index 3 is outside 1..2", t.get, t, 3, 1)
    raises("index 0 is outside 1..3", t.get, t, 1, 0)
    raises("2 indices expected for shape (2, 3), got 1", t.get, t, 1)
    raises("2 indices expected", t.set, t, 1, 1)
    raises("number expected, got string", t.set, t, 1, 1, "x")
    raises("use t:get", function() return t[1] end)
    raises("has no field 'x'", function() t.x = 1 end)
    assert.is_nil(t.nothing)
    assert.equal(0, mav.tensor({ { 0 } }):get())
  end)

  it("slices and selects, sharing memory", function()
    local t = mav.tensor { { 1, 2, 3, 4 }, { 5, 6, 7, 8 } }
    assert.same({ { 2, 3 }, { 6, 7 } }, t:slice(2, 2, 3):totable())
    assert.same({ { 1, 3 }, { 5, 7 } }, t:slice(2, 1, 4, 2):totable())
    assert.same({ { 4 }, { 8 } }, t:slice(-1, -1, -1):totable())
    assert.same({ 5, 6, 7, 8 }, t:select(1, 2):totable())
    assert.same({ 4, 8 }, t:select(2, -1):totable())
    t:select(1, 2):set(1, 50)
    assert.equal(50, t:get(2, 1))
    raises("5 is outside 1..4", t.slice, t, 2, 1, 5)
    raises("last comes before first", t.slice, t, 2, 3, 2)
    raises("dimension is outside 1..2", t.select, t, 3, 1)
    raises("step must be at least 1", t.slice, t, 2, 1, 4, 0)
  end)

  it("reshapes and transposes", function()
    local t = mav.tensor { { 1, 2, 3 }, { 4, 5, 6 } }
    assert.same({ 1, 2, 3, 4, 5, 6 }, t:reshape({ 6 }):totable())
    assert.same({ 3, 2 }, t:reshape({ 3, -1 }).shape)
    local u = t:transpose(1, 2)
    assert.same({ { 1, 4 }, { 2, 5 }, { 3, 6 } }, u:totable())
    assert.is_false(u.is_contiguous)
    assert.is_true(u:contiguous().is_contiguous)
    assert.same(u:totable(), u:contiguous():totable())
    assert.equal(t, t:contiguous())
    raises("SHAPE", t.reshape, t, { 4 })
    raises("size expected", t.reshape, t, { -1, -1 })
    local ok = pcall(u.reshape, u, { 6 })
    assert.is_false(ok)
  end)

  it("converts and copies", function()
    local t = mav.tensor { 1.5, -2, 1000 }
    assert.same({ 1, -2, 1000 }, t:to("i32"):totable())
    assert.equal(t, t:to("f32"))
    assert.same({ 448 }, mav.tensor({ 1000 }):to("f8"):totable())
    local u = mav.zeros { 3, dtype = "bf16" }
    assert.equal(u, u:copy_from(t))
    assert.same({ 1.5, -2, 1000 }, u:totable())
    raises("unknown dtype 'f31'", t.to, t, "f31")
    raises("mav.tensor expected, got number", t.copy_from, t, 1)
  end)

  it("quantizes with a scale for every row", function()
    local q = mav.tensor({ { 448, 1 }, { 2, -1 } }):quantize()
    assert.equal("f8", q.dtype)
    assert.same({ 2 }, q.scale.shape)
    assert.equal(1, q.scale:get(1))
    assert.is_true(math.abs(q.scale:get(2) - 2 / 448) < 1e-9)
    assert.same({ 2 }, mav.tensor({ { 1, 2 }, { 3, 4 }, { 5, 6 } }):transpose(1, 2):quantize().scale.shape)
    assert.is_nil(mav.zeros({ 1 }).scale)
    local w = mav.zeros { 2, 2, dtype = "f8" }
    assert.equal(w, w:set_scale(mav.tensor { 1, 2 }, { act = "static", in_scale = 0.5 }))
    assert.same({ 1, 2 }, w.scale:totable())
    raises("did you mean 'static'?", w.set_scale, w, mav.tensor { 1, 2 }, { act = "statci" })
    raises("unknown key 'scale'", w.set_scale, w, mav.tensor { 1, 2 }, { scale = 1 })
  end)

  it("computes", function()
    local a, b = mav.tensor { { 1, 2 }, { 3, 4 } }, mav.tensor { 10, 20 }
    assert.same({ { 11, 22 }, { 13, 24 } }, (a + b):totable())
    assert.same({ { -9, -18 }, { -7, -16 } }, (a - b):totable())
    assert.same({ { 2, 4 }, { 6, 8 } }, (2 * a):totable())
    assert.same({ { 0.5, 1 }, { 1.5, 2 } }, (a / 2):totable())
    assert.same({ { -1, -2 }, { -3, -4 } }, (-a):totable())
    raises("mav.tensor expected, got string", function() return a + "x" end)
    raises("mav.tensor expected, got mav.rows", function() return a + mav.rows(1) end)
  end)

  it("says what it is", function()
    assert.equal("mav.tensor bf16 (8, 5) " .. DEVICE, tostring(mav.zeros { 8, 5, dtype = "bf16" }))
    assert.equal("mav.tensor f32 () " .. DEVICE, tostring(mav.tensor(1)))
  end)

  it("closes once, or twice", function()
    local t = mav.zeros { 2 }
    t:close()
    t:close()
    assert.equal("mav.tensor (closed)", tostring(t))
    raises("closed mav.tensor", t.get, t, 1)
    raises("closed mav.tensor", function() return #t end)
    local mt = getmetatable(t)
    assert.equal(mt.__gc, mt.__close)
    mt.__gc(t)
    mt.__gc(t)
    do local _ <close> = mav.zeros { 2 } end
    raises("mav.tensor expected", mt.__gc, io.stdout)
  end)

  it("gives its memory back", function()
    local rt = mav.default_runtime()
    collectgarbage()
    local before = rt:memory().device_bytes_live
    local t = mav.zeros { 1000 }
    assert.is_true(rt:memory().device_bytes_live >= before + 4000)
    t:close()
    assert.equal(before, rt:memory().device_bytes_live)
    for _ = 1, 100 do mav.zeros { 1000 } end
    collectgarbage()
    assert.equal(before, rt:memory().device_bytes_live)
  end)

  it("presses the collector, so that garbage cannot fill the device", function()
    local rt = mav.default_runtime()
    for _, mode in ipairs { "generational", "incremental" } do
      collectgarbage(mode)
      collectgarbage()
      local live = 0
      for _ = 1, 300 do
        mav.zeros { 1 << 20 }
        live = math.max(live, rt:memory().device_bytes_live)
      end
      assert.is_true(live < 400 << 20, ("%s: %d MiB live"):format(mode, live >> 20))
    end
    collectgarbage "generational"
    collectgarbage()
  end)

  it("reads and writes elements without allocating", function()
    local t = mav.zeros { 4, 4 }
    local get, set = t.get, t.set
    collectgarbage()
    collectgarbage "stop"
    local calls = mav.default_runtime():memory().host_allocs
    local before = collectgarbage "count"
    for i = 1, 100 do
      t:set(1, 2, i)
      local _ = t:get(1, 2)
    end
    local after = collectgarbage "count"
    collectgarbage "restart"
    assert.equal(before, after)
    assert.equal(calls, mav.default_runtime():memory().host_allocs)
    assert.truthy(get and set)
  end)
end)

describe("show", function()
  setup(support.runtime)

  local function text(t, options) return require("mav.show").text(t, options) end

  it("lays values out in columns", function()
    assert.equal("[[ 1.  2.]\n [-3. 40.]]\nmav.tensor f32 (2, 2) " .. DEVICE, text(mav.tensor { { 1, 2 }, { -3, 40 } }))
    assert.equal("[1.5000 2.0000]\nmav.tensor f32 (2) " .. DEVICE, text(mav.tensor { 1.5, 2 }))
    assert.equal("[1 2]\nmav.tensor i32 (2) " .. DEVICE, text(mav.tensor { 1, 2, dtype = "i32" }))
    assert.equal("7.\nmav.tensor f32 () " .. DEVICE, text(mav.tensor(7)))
    assert.equal("[[[1. 2.]]\n\n [[3. 4.]]]\nmav.tensor f32 (2, 1, 2) " .. DEVICE, text(mav.tensor { { { 1, 2 } }, { { 3, 4 } } }))
  end)

  it("shows what is not finite, and what is very small", function()
    assert.equal("[ inf  nan -inf   1.]\nmav.tensor f32 (4) " .. DEVICE, text(mav.tensor { 1 / 0, 0 / 0, -1 / 0, 1 }))
    assert.truthy(text(mav.tensor { 1e-6, 1 }):find("e%-06"))
    assert.truthy(text(mav.tensor { 1e12 }):find("e%+12"))
  end)

  it("summarizes large ones", function()
    local s = text(mav.zeros { 100, 100 })
    assert.truthy(s:find("...", 1, true))
    assert.is_true(#s < 500)
    assert.truthy(text(mav.zeros { 0 }):find("[]", 1, true))
  end)

  it("prints through t:print and mav.show", function()
    local out = {}
    local options = { write = function(...) out[#out + 1] = table.concat { ... } end }
    mav.tensor({ 1 }):print(options)
    mav.show(mav.tensor { 1 }, { write = options.write })
    assert.equal("[1.]\nmav.tensor f32 (1) " .. DEVICE .. "\n", out[1])
    assert.equal(out[1], out[2])
    raises("unknown key 'edges'", mav.show, mav.tensor { 1 }, { edges = 1 })
  end)
end)

describe("copies on the cpu", function()
  local devices
  setup(function() devices = { support.runtime(), assert(mav.runtime { device = "cpu", threads = 2 }) } end)

  --- The same bytes as the reference writes, for a view of (2, 150, 300): more than a tile on every side.
  local function same(from, to, view)
    local list, bytes = {}, {}
    for i = 1, 2 * 150 * 300 do list[i] = i * 7919 % 251 end
    for i, rt in ipairs(devices) do
      local x = view(mav.tensor(list, { dtype = from, shape = { 2, 150, 300 }, runtime = rt }))
      local y = mav.zeros { dtype = to, runtime = rt, table.unpack(x.shape) }
      y:copy_from(x)
      bytes[i] = y:bytes()
    end
    assert.is_true(bytes[1] == bytes[2], from .. " to " .. to)
  end

  it("turn matrices, and convert them on the way", function()
    local views = {
      function(t) return t:transpose(2, 3) end,
      function(t) return t:slice(3, 8, 299):transpose(2, 3) end,
      function(t) return t:transpose(1, 3) end,
      function(t) return t:slice(2, 1, 150, 7):transpose(2, 3) end,
      function(t) return t:slice(3, 1, 300, 2) end,
    }
    for _, view in ipairs(views) do
      for _, dtype in ipairs { "f32", "bf16", "f16", "f8", "u8" } do
        same(dtype, dtype, view)
        same(dtype, "f32", view)
        same(dtype, "f8", view)
        same(dtype, "bf16", view)
      end
    end
  end)
end)
