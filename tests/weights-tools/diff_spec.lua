local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/printed.lua")(dofile(here .. "/support.lua"))
local mav = require "mav"
local convert = require "mav.weights_tools.convert"
local diff = require "mav.weights_tools.diff"

--- Two safetensors files with one tensor each.
local function two(dir, a, b)
  assert(mav.safetensors.write(dir .. "/a.safetensors", { x = mav.tensor(a) }))
  assert(mav.safetensors.write(dir .. "/b.safetensors", { x = mav.tensor(b) }))
  return dir .. "/a.safetensors", dir .. "/b.safetensors"
end

local function close_to(expected, got) assert(math.abs(expected - got) <= 1e-5 * math.max(1, math.abs(expected)), got) end

describe("mav weights diff", function()
  it("measures differences", function()
    local dir <close> = support.directory()
    local a, b = { { 1, 2, -3 }, { 4, 0, 5 } }, { { 1, 2.5, -3 }, { 3, 0, 5 } }
    local r = assert(diff.diff(two(dir.path, a, b))).tensors[1]
    assert.equal("x", r.name)
    assert.is_false(r.exact)
    assert.same({ 6, 2, 1 }, { r.elements, r.different, r.max_abs })
    close_to(math.sqrt(1.25 / 55), r.relative)
    close_to(10 * math.log(55 / 1.25, 10), r.sqnr_db)
    close_to((1 + 5 + 9 + 12 + 25) / math.sqrt(55 * (1 + 6.25 + 9 + 9 + 25)), r.cosine)
    r = assert(diff.diff(two(dir.path, a, a)))
    assert.is_true(r.same and r.tensors[1].exact)
    r = assert(diff.diff(two(dir.path, { { 0, 0 } }, { { 0, 1 } }))).tensors[1]
    assert.equal(-math.huge, r.sqnr_db)
    assert.is_nil(r.cosine)
    r = assert(diff.diff(two(dir.path, { { 0, 0 / 0 } }, { { 0, 1 } }))).tensors[1]
    assert.equal("values that are infinite or not a number", r.why)
    assert.is_true(assert(diff.diff(two(dir.path, { { 0, 0 / 0 } }, { { 0, 0 / 0 } }))).same)
    r = assert(diff.diff(two(dir.path, { { 0, 1 } }, { { 0 }, { 1 } }))).tensors[1]
    assert.equal("(1, 2) and (2, 1)", r.why)
  end)

  it("has no cosine above 1, and sees how far below it is", function()
    local dir <close> = support.directory()
    for _, d in ipairs { 1e-7, 1e-6, 1e-4, 1e-2 } do
      local a, b = { {} }, { {} }
      for i = 1, 5000 do
        a[1][i] = 1 + i % 7 / 8
        b[1][i] = a[1][i] * (1 + (i % 2 == 0 and d or -d))
      end
      local r = assert(diff.diff(two(dir.path, a, b))).tensors[1]
      assert(r.cosine <= 1 and r.cosine > 0.9999, r.cosine)
      if d >= 1e-4 then assert(math.abs((1 - r.cosine) / (d * d / 2) - 1) < 0.01, 1 - r.cosine) end
    end
    local r = assert(diff.diff(two(dir.path, { { 1, 2 } }, { { -1, -2 } }))).tensors[1]
    assert.equal(-1, r.cosine)
    r = assert(diff.diff(two(dir.path, { { 1, 2 } }, { { 2, -1 } }))).tensors[1]
    close_to(0, r.cosine)
  end)

  it("counts zeros of both signs as equal values, not as the same bits", function()
    local dir <close> = support.directory()
    local report = assert(diff.diff(two(dir.path, { { 0.0, 1 } }, { { -0.0, 1 } })))
    assert.is_false(report.tensors[1].exact)
    assert.equal(0, report.tensors[1].different)
    assert.is_true(report.same)
  end)

  it("finds no difference between a checkpoint and its packs, in any layout", function()
    for _, m in ipairs(support.models) do
      for _, ranks in ipairs(m.ranks) do
        local dir <close> = support.directory()
        assert(convert.convert(m.dir, dir.path, { ranks = ranks, compress = ranks > 1 and "lz4" or "none" }))
        local report = assert(diff.diff(m.dir, dir.path))
        assert(report.same, m.name)
        for _, r in ipairs(report.tensors) do assert(r.exact, r.name) end
        assert.equal(m.name:find "mm" ~= nil or m.name == "maverick_ct_fp8", #report.beside > 0)
      end
    end
  end)

  it("holds FP8 against BF16, worst first", function()
    local dir <close> = support.directory()
    assert(convert.convert(support.tiny, dir.path .. "/1", { dtype = "fp8" }))
    assert(convert.convert(support.tiny, dir.path .. "/4", { dtype = "fp8", ranks = 4 }))
    assert.is_true(assert(diff.diff(dir.path .. "/1", dir.path .. "/4")).same)
    local report = assert(diff.diff(support.tiny, dir.path .. "/4"))
    assert.is_false(report.same)
    assert.equal(23, report.equal)
    for i = 2, 68 do assert.is_true(report.tensors[i - 1].sqnr_db <= report.tensors[i].sqnr_db) end
    for i = 1, 68 do
      assert.is_true(report.tensors[i].sqnr_db > 31 and report.tensors[i].sqnr_db < 32)
      assert.is_true(report.tensors[i].cosine > 0.999)
    end
    for i = 69, 91 do assert.is_true(report.tensors[i].exact) end
  end)

  it("compares what is asked for", function()
    local report = assert(diff.diff(support.tiny, support.tiny, { match = "^layers%.1%.expert" }))
    assert.equal(3, #report.tensors)
    local ok, err = diff.diff(support.tiny, support.tiny, { match = "^none$" })
    assert.is_nil(ok)
    assert(tostring(err):find("no tensor whose name matches ^none$ is there", 1, true))
    assert.has_error(function() diff.diff(support.tiny, support.tiny, { match = "%" }) end)
  end)

  it("tells what only one has", function()
    local dir <close> = support.directory()
    assert(mav.safetensors.write(dir.path .. "/a.safetensors", { x = mav.tensor { 1 }, y = mav.tensor { 1 } }))
    assert(mav.safetensors.write(dir.path .. "/b.safetensors", { x = mav.tensor { 1 }, z = mav.tensor { 1 } }))
    local report = assert(diff.diff(dir.path .. "/a.safetensors", dir.path .. "/b.safetensors"))
    assert.is_false(report.same)
    assert.same({ { "y" }, { "z" } }, { { table.unpack(report.only_a) }, { table.unpack(report.only_b) } })
    local text, status = support.printed(diff, dir.path .. "/a.safetensors", dir.path .. "/b.safetensors")
    assert.equal(2, status)
    assert(text:find("1 of 1 tensors are equal", 1, true))
    assert(text:find("only in " .. dir.path .. "/a.safetensors: y", 1, true))
  end)

  it("prints a table, JSON and a picture", function()
    local dir <close> = support.directory()
    assert(convert.convert(support.tiny, dir.path .. "/p", { dtype = "fp8" }))
    local text, status = support.printed(diff, support.tiny, dir.path .. "/p", "--svg", dir.path .. "/d.svg")
    assert.equal(2, status)
    assert(text:find("SQNR dB", 1, true))
    assert(text:find("23 of 91 tensors are equal", 1, true))
    assert(support.read(dir.path .. "/d.svg"):find("^<svg"))
    local json = assert(mav.json.decode((support.printed(diff, support.tiny, dir.path .. "/p", "--json"))))
    assert.equal(91, #json.tensors)
    text, status = support.printed(diff, support.tiny, support.tiny)
    assert.equal("91 of 91 tensors are equal\n", text)
    assert.equal(0, status)
    assert.is_nil(support.printed(diff, support.tiny, "/nowhere"))
  end)
end)
