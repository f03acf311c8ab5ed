local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local mav = require "mav"
local raises = support.raises

local function new(options)
  local o = { layers = 2, kv_heads = 1, head_dim = 4, tokens = 128, page = 32, sequences = 4, dtype = "f32" }
  for key, value in pairs(options or {}) do o[key] = value end
  return assert(mav.kv(o))
end

describe("kv", function()
  setup(support.runtime)

  it("has layer handles, always the same", function()
    local kv = new()
    assert.equal(2, kv.layers)
    assert.equal(kv:layer(1), kv:layer(1))
    assert.not_equal(kv:layer(1), kv:layer(2))
    assert.equal(2, kv:layer(2).layer)
    assert.equal("mav.kv.layer 2", tostring(kv:layer(2)))
    raises("layer 3 is outside 1..2", kv.layer, kv, 3)
    raises("layer 0 is outside 1..2", kv.layer, kv, 0)
  end)

  it("counts pages", function()
    local kv = new()
    local free = kv.pages_free
    assert.equal(0, kv.pages_live)
    local s = assert(kv:sequence { key = 7 })
    assert.is_true(s:reserve(40))
    assert.is_true(s:commit(33))
    assert.equal(33, #s)
    assert.equal(free - 2, kv.pages_free)
    assert.is_true(s:truncate(3))
    assert.equal(3, #s)
    assert.equal(0, s.floor)
    assert.is_true(math.type(s.id) == "integer")
    s:close()
    s:close()
    assert.equal(free, kv.pages_free)
    assert.equal(0, kv.pages_live)
    raises("closed mav.sequence", s.reserve, s, 1)
    raises("closed mav.sequence", function() return #s end)
    assert.equal("mav.sequence (closed)", tostring(s))
  end)

  it("forks", function()
    local kv = new()
    local a = assert(kv:sequence())
    a:reserve(10)
    a:commit(10)
    local b = assert(a:fork { key = 2 })
    assert.equal(10, #b)
    assert.not_equal(a.id, b.id)
    b:reserve(1)
    b:commit(1)
    assert.equal(10, #a)
    assert.equal(11, #b)
  end)

  it("closes sequences at the end of a block, and with the collector", function()
    local kv = new()
    do
      local s <close> = assert(kv:sequence())
      s:reserve(1)
      assert.is_true(kv.pages_live > 0)
    end
    assert.equal(0, kv.pages_live)
    for _ = 1, 20 do assert(kv:sequence()):reserve(1) end -- four at a time: lost ones are collected when room runs out
    collectgarbage()
    assert.equal(0, kv.pages_live)
  end)

  it("is full, which is no mistake", function()
    local kv = new { sequences = 2 }
    local held = { assert(kv:sequence()), assert(kv:sequence()) }
    local s, err = kv:sequence()
    assert.is_nil(s)
    assert.equal("FULL", err.code)
    s, err = held[1]:fork()
    assert.is_nil(s)
    assert.equal("FULL", err.code)
    assert.is_true(held[1]:reserve(128))
    s, err = held[2]:reserve(96)
    assert.is_nil(s)
    assert.equal("FULL", err.code)
    assert.truthy(tostring(err):find("FULL", 1, true))
  end)

  it("keeps the cache alive", function()
    local s
    do
      local kv = new()
      s = assert(kv:sequence())
      kv:close()
      raises("closed mav.kv", kv.sequence, kv)
    end
    collectgarbage()
    assert.is_true(s:reserve(1))
    assert.is_true(s:commit(1))
  end)

  it("takes chunks as a list or one number", function()
    new { chunk = { 0, 64 } }
    new { chunk = 64 }
    raises("2 layers need as many chunks, got 1", new, { chunk = { 64 } })
    raises("chunk: list or number expected", new, { chunk = "x" })
    raises("layer 2: a number of tokens expected", new, { chunk = { 0, -1 } })
  end)

  it("checks its options", function()
    raises("tokens: it is required", mav.kv, { layers = 1, kv_heads = 1, head_dim = 4 })
    raises("unknown key 'layer' (did you mean 'layers'?)", mav.kv, { layer = 1 })
    raises("kv_heads: integer expected, got a fraction", new, { kv_heads = 1.5 })
    raises("head_dim: 0 is out of range", new, { head_dim = 0 })
    local kv = new()
    raises("unknown key 'keys' (did you mean 'key'?)", kv.sequence, kv, { keys = 1 })
    local s = assert(kv:sequence())
    raises("a number of tokens expected", s.reserve, s, -1)
    raises("STATE", function() return s:commit(5) and error("RANGE STATE") end)
  end)
end)

describe("rows", function()
  setup(support.runtime)

  it("are filled by number", function()
    local rows = mav.rows(3)
    assert.equal(3, #rows)
    rows:set(1, 11, 0, 0)
    rows:set(2, 12, 0, 1, 1)
    rows:set(3, 13, 0, 2, 2, nil)
    assert.same({ 11, 12, 13 }, rows.ids:totable())
    assert.equal(rows.ids, rows.ids)
    assert.equal("mav.rows 3", tostring(rows))
  end)

  it("take sequences", function()
    local kv = new()
    local s = assert(kv:sequence())
    local rows = mav.rows(1)
    rows:set(1, 5, s, 0)
    s:close()
    raises("closed mav.sequence", rows.set, rows, 1, 5, s, 0)
    raises("mav.sequence expected", rows.set, rows, 1, 5, kv, 0)
  end)

  it("check numbers", function()
    local rows = mav.rows(2)
    raises("row 3 is outside 1..2", rows.set, rows, 3, 1, 0, 0)
    raises("row 0 is outside 1..2", rows.set, rows, 0, 1, 0, 0)
    raises("parent must be an earlier row", rows.set, rows, 2, 1, 0, 0, 2)
    raises("at least one row expected", mav.rows, 0)
    raises("out of range", rows.set, rows, 1, 1 << 40, 0, 0)
    raises("number expected, got nil", rows.set, rows, 1, 1, nil, 0)
    raises("unknown key", mav.rows, 1, { device = 1 })
  end)
end)
