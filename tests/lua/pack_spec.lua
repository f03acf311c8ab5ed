local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local mav = require "mav"
local raises = support.raises

local function ramp(n, dtype)
  local list = {}
  for i = 1, n do list[i] = i % 101 end
  return mav.tensor(list, { dtype = dtype })
end

--- Writes {name, tensor, options}... as a pack.
local function write(path, list, options)
  options = options or {}
  options.tensors = {}
  for i, entry in ipairs(list) do
    local item = { name = entry[1], dtype = entry[2].dtype, shape = entry[2].shape }
    for k, v in pairs(entry[3] or {}) do item[k] = v end
    options.tensors[i] = item
  end
  local w <close> = assert(mav.pack_writer(path, options))
  local first, begin = w:next()
  for i = first, #list do
    assert(w:put(i, list[i][2], i == first and begin or 0))
  end
  assert(w:finish())
end

describe("a pack", function()
  local dir, path
  setup(support.runtime)
  before_each(function()
    dir = support.directory()
    path = dir.path .. "/x.mav"
  end)
  after_each(function() local _ <close> = dir end)

  it("gives back what was written", function()
    local a, b = ramp(6), ramp(5000, "bf16")
    write(path, { { "a", a:reshape { 2, 3 } }, { "b", b, { compress = true } }, { "none", mav.zeros { 0, 4 } } },
      { meta = { recipe = "test", list = { 1, 2 } }, rank = 1, ranks = 2, chunk_bytes = 4096 })
    local p = assert(mav.pack(path))
    assert.equal(3, #p)
    assert.same({ "a", "b", "none" }, p:names())
    assert.same({ recipe = "test", list = { 1, 2 } }, p.meta)
    assert.equal(p.meta, p.meta)
    assert.same({ 1, 2, path }, { p.rank, p.ranks, p.path })
    assert.equal(#support.read(path), p.bytes)
    assert.is_nil(p.nothing)
    assert.equal("mav.pack 3 tensors, rank 1 of 2", tostring(p))
    local expected = { dtype = "f32", shape = { 2, 3 }, layout = "row", act = "none", bytes = 24, stored = 24, chunks = 1, raw = true }
    assert.same(expected, p:info "a")
    local info = p:info "b"
    assert.same({ 10000, 3, false }, { info.bytes, info.chunks, info.raw })
    assert.is_true(info.stored < info.bytes)
    assert.is_true(p:info("none").raw)
    assert.is_nil(p:info "c")
    assert.is_true(p:has "a")
    assert.is_false(p:has "c")
    for _, name in ipairs(p:names()) do assert.is_true(p:verify(name, 2)) end
    local t, u = assert(p:tensor "a"), assert(p:tensor "b")
    assert.same({ { 1, 2, 3 }, { 4, 5, 6 } }, t:totable())
    assert.equal(b:bytes(), u:bytes())
    assert.same({ 0, 4 }, p:tensor("none").shape)
    local copied = assert(p:tensor("a", { copy = true }))
    assert.equal(t:bytes(), copied:bytes())
    local part = assert(p:read("b", 4090, 12))
    assert.equal("u8", part.dtype)
    assert.equal(b:bytes():sub(4091, 4102), part:bytes())
    assert.same({ 0 }, p:read("b", 10000, 0).shape)
    p:close()
    p:close()
    collectgarbage()
    assert.same({ { 1, 2, 3 }, { 4, 5, 6 } }, t:totable()) -- the mapping lives as long as the tensor
    raises("closed mav.pack", p.names, p)
    raises("closed mav.pack", function() return p.meta end)
    assert.equal("mav.pack (closed)", tostring(p))
  end)

  it("keeps scales and activations with their weights", function()
    local q = mav.tensor({ { 1, -2 }, { 300, 4 } }):quantize()
    write(path, { { "w", q, { scale = "w.scale", act = "static", in_scale = 0.5 } }, { "w.scale", q.scale } })
    local p = assert(mav.pack(path))
    local info = p:info "w"
    assert.same({ "f8", "w.scale", "static", 0.5 }, { info.dtype, info.scale, info.act, info.in_scale })
    for _, copy in ipairs { false, true } do
      local t = assert(p:tensor("w", { copy = copy }))
      assert.equal(q:bytes(), t:bytes())
      assert.same(q.scale:totable(), t.scale:totable())
      assert.same(q:to("f32"):totable(), t:to("f32"):totable())
    end
  end)

  it("that is missing, damaged or unfinished is nil, err", function()
    local p, err = mav.pack(path)
    assert.is_nil(p)
    assert.equal("NOTFOUND", err.code)
    write(path, { { "a", ramp(2000), { compress = true } }, { "b", ramp(10) } }, { chunk_bytes = 4096 })
    p = assert(mav.pack(path))
    for _, try in ipairs { "tensor", "verify", "check", "read" } do
      local v
      v, err = p[try](p, "c", try == "read" and 0 or nil, try == "read" and 0 or nil)
      assert.is_nil(v)
      assert.equal("NOTFOUND", err.code)
      assert.truthy(tostring(err):find("'c'", 1, true))
    end
    p:close()
    local text = support.read(path)
    support.write(path, text:sub(1, 4100) .. string.char(text:byte(4101) ~ 1) .. text:sub(4102))
    p = assert(mav.pack(path))
    for _, try in ipairs { "tensor", "verify" } do
      local v
      v, err = p[try](p, "a")
      assert.is_nil(v)
      assert.equal("FORMAT", err.code)
    end
    assert.is_true(p:verify "b")
    support.write(path, text:sub(1, -2))
    p, err = mav.pack(path)
    assert.is_nil(p)
    assert.equal("FORMAT", err.code)
  end)

  it("checks the hash of a raw chunk when it is first read, not when it is mapped", function()
    write(path, { { "a", ramp(3000) } }, { chunk_bytes = 4096 }) -- chunks of 1024 numbers
    local text = support.read(path)
    local at = #text - 3000 * 4 + 8000 -- in the second
    support.write(path, text:sub(1, at) .. string.char(text:byte(at + 1) ~ 1) .. text:sub(at + 2))
    local p <close> = assert(mav.pack(path))
    assert(p:tensor "a")
    assert(p:read("a", 0, 4096))
    assert(p:check("a", 8192))
    for _, try in ipairs { { p.read, "a", 0, 4097 }, { p.read, "a", 5000, 1 }, { p.check, "a" }, { p.check, "a", 8191, 1 },
      { p.tensor, "a", { copy = true } } } do
      local v, err = try[1](p, table.unpack(try, 2))
      assert.is_nil(v)
      assert.equal("FORMAT", err.code)
      assert.truthy(tostring(err):find('tensor "a": chunk 1 is damaged', 1, true), tostring(err))
    end
  end)

  it("checks its arguments", function()
    write(path, { { "a", ramp(10) } })
    local p = assert(mav.pack(path))
    raises("outside the tensor", p.read, p, "a", 41, 0)
    raises("outside the tensor", p.read, p, "a", -1, 0)
    raises("more than the tensor has", p.read, p, "a", 1, 40)
    raises("outside the tensor", p.check, p, "a", 41)
    raises("more than the tensor has", p.check, p, "a", 1, 40)
    raises("did you mean 'copy'", p.tensor, p, "a", { copi = true })
    raises("0 to 4096 threads", p.verify, p, "a", -1)
  end)
end)

describe("a writer of packs", function()
  local dir, path
  setup(support.runtime)
  before_each(function()
    dir = support.directory()
    path = dir.path .. "/x.mav"
  end)
  after_each(function() local _ <close> = dir end)

  local t
  local function plan(more)
    t = ramp(9000, "i32")
    local options = { chunk_bytes = 4096, sync_bytes = 1, tensors = { { name = "a", dtype = "i32", shape = { 9000 } },
      { name = "b", dtype = "u8", shape = { 4 } } } }
    for k, v in pairs(more or {}) do options[k] = v end
    return options
  end

  it("takes bytes in pieces, and takes up what another left", function()
    local whole = dir.path .. "/whole.mav"
    write(whole, { { "a", plan() and t }, { "b", mav.tensor({ 1, 2, 3, 4 }, { dtype = "u8" }) } }, { chunk_bytes = 4096 })
    local w = assert(mav.pack_writer(path, plan()))
    assert.same({ 1, 0 }, { w:next() })
    assert.is_true(w:put(1, t, 0, 5000))
    assert.same({ 1, 5000 }, { w:next() })
    assert.equal("mav.pack_writer at tensor 1, byte 5000", tostring(w))
    local ok, err = mav.pack_writer(path, plan())
    assert.is_nil(ok)
    assert.truthy(tostring(err):find("another writer", 1, true))
    w:close()
    w:close()
    raises("closed mav.pack_writer", w.next, w)
    assert.equal("mav.pack_writer (closed)", tostring(w))

    ok, err = mav.pack_writer(path, plan { meta = { other = true } })
    assert.is_nil(ok)
    assert.truthy(tostring(err):find("another plan", 1, true))

    local calls = 0
    w = assert(mav.pack_writer(path, plan { progress = function(done, total)
      calls = calls + 1
      assert(math.type(done) == "integer" and done <= total)
    end }))
    assert.is_true(calls > 0)
    local index, begin = w:next()
    assert.same({ 1, 4096 }, { index, begin })
    assert.is_true(w:put(1, t, begin))
    assert.same({ 2, 0 }, { w:next() })
    assert.is_true(w:put(2, mav.tensor({ 1, 2 }, { dtype = "u8" })))
    raises("not complete", w.finish, w)
    assert.is_true(w:put(2, mav.tensor({ 1, 2, 3, 4 }, { dtype = "u8" }):slice(1, 3, 4)))
    assert.same({ 3, 0 }, { w:next() })
    assert.is_true(w:finish())
    w:close()
    assert.equal(support.read(whole), support.read(path))
    assert.is_nil(io.open(path .. ".part"))
    assert.is_nil(io.open(path .. ".journal"))
  end)

  it("stops when progress says so", function()
    do
      local w <close> = assert(mav.pack_writer(path, plan()))
      assert(w:put(1, t))
    end
    local w, err = mav.pack_writer(path, plan { progress = function() return false end })
    assert.is_nil(w)
    assert.truthy(tostring(err):find("stopped", 1, true))
    raises("my own", mav.pack_writer, path, plan { progress = function() error "my own" end })
    local calls = 0
    w = assert(mav.pack_writer(path, plan { fresh = true, progress = function() calls = calls + 1 end }))
    assert.same({ 1, 0 }, { w:next() })
    assert.equal(0, calls)
    w:close()
  end)

  it("is nil, err where nothing can be written", function()
    local w, err = mav.pack_writer("/nowhere/x.mav", plan())
    assert.is_nil(w)
    assert.equal("IO", err.code)
  end)

  it("checks its arguments", function()
    local function tensors(item) return function() return mav.pack_writer(path, { tensors = { item } }) end end
    raises("tensors: list expected, got nil", mav.pack_writer, path, {})
    raises("tensors[1]: table expected, got number", tensors(1))
    raises("tensors[1] has no name", tensors {})
    raises("dtype and shape are needed", tensors { name = "a", dtype = "f32" })
    raises("did you mean 'bf16'", tensors { name = "a", dtype = "bf6", shape = { 1 } })
    raises("did you mean 'static'", tensors { name = "a", dtype = "f8", shape = { 1 }, act = "statik" })
    raises("did you mean 'compress'", tensors { name = "a", dtype = "f8", shape = { 1 }, compres = true })
    raises("is not an f32 tensor of the pack", tensors { name = "a", dtype = "f8", shape = { 1 }, scale = "b" })
    raises("zero byte", tensors { name = "a\0b", dtype = "f8", shape = { 1 } })
    raises("meta: table expected", mav.pack_writer, path, { tensors = {}, meta = 1 })
    raises("meta", mav.pack_writer, path, { tensors = {}, meta = { 1 } })
    raises("rank", mav.pack_writer, path, { tensors = {}, rank = 1 })
    raises("progress: function expected", mav.pack_writer, path, { tensors = {}, progress = 1 })
    local w <close> = assert(mav.pack_writer(path, plan()))
    raises("\"a\" is next", w.put, w, 2, mav.zeros { 1 })
    raises("tensor 2 of 2", w.put, w, 3, mav.zeros { 1 })
    raises("index of a tensor", w.put, w, 0, mav.zeros { 1 })
    raises("but only 36000 are missing", w.put, w, 1, mav.zeros { 9001 })
    raises("outside the tensor", w.put, w, 1, t, 36001)
    raises("more than the tensor has", w.put, w, 1, t, 1, 36000)
    raises("strided view", w.put, w, 1, mav.zeros({ 2, 2 }):transpose(1, 2))
  end)
end)
