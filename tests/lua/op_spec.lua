local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local mav = require "mav"
local op, raises = mav.op, support.raises

describe("op", function()
  setup(support.runtime)

  it("exists for every description", function()
    local ops = mav.ops()
    assert.is_true(#ops > 40)
    for _, d in ipairs(ops) do
      assert.is_function(rawget(op, d.name))
      assert.is_string(d.doc)
      assert.is_true(#d.args > 0)
      for _, a in ipairs(d.args) do assert.is_string(a.kind) end
    end
  end)

  it("returns its results in order", function()
    local values, index = op.topk { x = mav.tensor { 3, 1, 2 }, k = 2 }
    assert.same({ 3, 2 }, values:totable())
    assert.same({ 0, 2 }, index:totable())
    assert.same({ 2 }, op.argmax({ x = mav.tensor { { 1, 2, 3 } } }):totable())
  end)

  it("takes numbers for tensors", function()
    assert.same({ 2, 3 }, op.add({ a = mav.tensor { 1, 2 }, b = 1 }):totable())
    assert.equal(5, op.add({ a = 2, b = 3 }):totable())
    raises("x: mav.tensor expected, got number", op.rmsnorm, { x = 1 })
  end)

  it("writes into out", function()
    local y = mav.zeros { 2 }
    assert.equal(y, op.neg { x = mav.tensor { 1, 2 }, out = y })
    assert.same({ -1, -2 }, y:totable())
    assert.equal(y, op.neg { x = mav.tensor { 3, 4 }, y = y })
    assert.same({ -3, -4 }, y:totable())
    local values, index = mav.zeros { 1 }, mav.zeros { 1, dtype = "i32" }
    local v, i = op.topk { x = mav.tensor { 5, 6 }, k = 1, out = { values, index } }
    assert.equal(values, v)
    assert.equal(index, i)
    assert.equal(6, values:get(1))
    v, i = op.topk { x = mav.tensor { 5, 6 }, k = 1, index = index }
    assert.equal(index, i)
    assert.equal(6, v:get(1))
    raises("both out and y are given", op.neg, { x = y, out = y, y = y })
    raises("list of 2 tensors expected", op.topk, { x = y, k = 1, out = y })
    raises("SHAPE", op.neg, { x = mav.zeros { 3 }, out = y })
    local seen = mav.zeros { 1, 4, dtype = "u8" }
    raises("the op has no result", op.mark_seen, { seen = seen, rows = mav.rows(1), out = seen })
  end)

  it("checks names and kinds", function()
    local x = mav.zeros { 1, 2 }
    raises("unknown key 'ep' (did you mean 'eps'?)", op.rmsnorm, { x = x, ep = 1 })
    raises("unknown key 'zzzz' (valid: x, w, eps, y, out)", op.rmsnorm, { x = x, zzzz = 1 })
    raises("x is required", op.rmsnorm, {})
    raises("k is required", op.topk, { x = x })
    raises("arguments are named", op.neg, { x })
    raises("table expected, got mav.tensor", op.neg, x)
    raises("eps: number expected, got string", op.rmsnorm, { x = x, eps = "1" })
    raises("k: integer expected, got number", op.topk, { x = x, k = 1.5 })
    raises("rows: mav.rows expected, got number", op.mark_seen, { seen = x, rows = 1 })
    raises("mav.kv.layer (kv:layer(i)) expected", op.sample, { x = x, rows = mav.rows(1), kv = 1 })
    raises("dtype: name of a dtype expected", op.cast, { x = x, dtype = 1 })
    raises("unknown dtype 'f3'", op.cast, { x = x, dtype = "f3" })
    raises("no op 'rmsnrom' (did you mean 'rmsnorm'?)", function() return op.rmsnrom end)
  end)

  it("lets optional arguments be false", function()
    local x = mav.tensor { { 3, 4 } }
    assert.same(op.rmsnorm({ x = x }):totable(), op.rmsnorm({ x = x, w = false }):totable())
    raises("x: mav.tensor expected, got boolean", op.rmsnorm, { x = false })
  end)

  it("raises the core's errors as objects", function()
    local ok, err = pcall(op.matmul, { x = mav.zeros { 2, 3 }, w = mav.zeros { 2, 4 } })
    assert.is_false(ok)
    assert.equal("SHAPE", err.code)
    assert.equal("matmul", err.op)
    assert.is_string(err.message)
    assert.truthy(err.where:find("^core/.*:%d+$"))
    assert.equal(mav.errors[err.code], "shapes do not agree")
    assert.truthy(tostring(err):find("matmul: ", 1, true))
  end)
end)
