local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local mav = require "mav"
local raises = support.raises

describe("weights", function()
  setup(support.runtime)

  it("come by name from a directory", function()
    local w = assert(mav.weights(support.model))
    local names = w:names()
    assert.equal(#names, #w)
    assert.is_true(#names > 10)
    local name = names[1]
    assert.is_true(w:has(name))
    assert.is_false(w:has "nothing")
    local info, t = w:info(name), assert(w:get(name))
    assert.equal(info.dtype, t.dtype)
    assert.same(info.shape, t.shape)
    assert.equal(info.bytes, #t:bytes())
    assert.is_nil(w:info "nothing")
    w:close()
    collectgarbage()
    assert.equal(info.bytes, #t:bytes()) -- the mapping lives as long as the tensor
    raises("closed mav.weights", w.names, w)
  end)

  it("come from one file too", function()
    local dir <close> = support.directory()
    local path = dir.path .. "/some.safetensors"
    support.write(path, support.read(support.root .. "/tests/oracle/models/eagle3_d2t/model.safetensors"))
    local w = assert(mav.weights(path))
    assert.same({ 80, 240 }, assert(w:get "fc.weight").shape)
    local err
    support.write(path, "no tensors")
    w, err = mav.weights(path)
    assert.is_nil(w)
    assert.truthy(tostring(err):find("some.safetensors", 1, true))
  end)

  it("of a type that no tensor has are told", function()
    local dir <close> = support.directory()
    local header = '{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}  '
    support.write(dir.path .. "/model.safetensors", ("<I8"):pack(#header) .. header .. ("\0"):rep(8))
    local w = assert(mav.weights(dir.path))
    assert.equal("dtype F64 is not supported", w:info("a").unreadable)
  end)

  it("that are not there are nil, err", function()
    local w, err = mav.weights "/nowhere"
    assert.is_nil(w)
    assert.equal("NOTFOUND", err.code)
    assert.truthy(tostring(err):find("/nowhere", 1, true))
    w = assert(mav.weights(support.model))
    local t
    t, err = w:get "nothing"
    assert.is_nil(t)
    assert.equal("NOTFOUND", err.code)
  end)
end)

describe("safetensors", function()
  setup(support.runtime)

  it("are written and read", function()
    local dir <close> = support.directory()
    local path = dir.path .. "/x.safetensors"
    local a, b = mav.tensor { { 1, 2 }, { 3, 4 } }, mav.tensor { 1, 2, 3, dtype = "bf16" }
    assert.is_true(mav.safetensors.write(path, { b = b, a = a }))
    local s = assert(mav.safetensors.open(path))
    assert.equal(2, #s)
    local names = s:names()
    table.sort(names)
    assert.same({ "a", "b" }, names)
    assert.is_true(s:has "a")
    assert.is_false(s:has "c")
    assert.same({ dtype = "bf16", shape = { 3 }, bytes = 6 }, s:info "b")
    assert.is_nil(s:info "c")
    assert.same(a:totable(), s:get("a"):totable())
    local t, err = s:get "c"
    assert.is_nil(t)
    assert.equal("NOTFOUND", err.code)
    assert.equal("mav.safetensors 2 tensors", tostring(s))
    s:close()
    s:close()
    raises("closed mav.safetensors", s.names, s)
  end)

  it("that are broken are nil, err", function()
    local dir <close> = support.directory()
    support.write(dir.path .. "/bad.safetensors", "not a header at all")
    local s, err = mav.safetensors.open(dir.path .. "/bad.safetensors")
    assert.is_nil(s)
    assert.equal("FORMAT", err.code)
    s, err = mav.safetensors.open(dir.path .. "/none.safetensors")
    assert.is_nil(s)
    assert.equal("NOTFOUND", err.code)
    s, err = mav.safetensors.write("/nowhere/x.safetensors", { a = mav.zeros { 1 } })
    assert.is_nil(s)
    assert.is_string(err.code)
  end)

  it("checks what is written", function()
    raises("open mav.tensor expected", mav.safetensors.write, "/tmp/x", { a = 1 })
    raises("names of tensors are strings", mav.safetensors.write, "/tmp/x", { mav.zeros { 1 } })
  end)
end)
