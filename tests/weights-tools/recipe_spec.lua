--- Recipes: what rules and functions do to a conversion, what is wrong with them in words; layouts; reports of errors.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local S = dofile(here .. "/support.lua")
local convert = require "mav.weights_tools.convert"
local errors = require "mav.weights_tools.errors"
local layouts = require "mav.weights_tools.layouts"
local mav = require "mav"
local op = mav.op

local SOURCE = S.model_dir "maverick_mm"

--- The pack of SOURCE converted with a recipe.
local function pack_of(dir, recipe, options)
  local o = { recipe = recipe, fresh = true }
  for key, value in pairs(options or {}) do o[key] = value end
  local report = assert(convert.convert(SOURCE, dir, o))
  return S.packs(dir, 1)[1], report
end

describe("a recipe", function()
  it("changes dtypes, after --dtype has", function()
    local dir <close> = S.directory()
    local pack = pack_of(dir.path, { { match = "expert_", dtype = "keep" }, { match = "^head$", dtype = "fp8" },
      { match = function(entry) return entry.key == "o" end, dtype = "f32" } }, { dtype = "fp8" })
    assert.are.equal("bf16", pack:info("layers.1.expert_up").dtype)
    assert.are.equal("f8", pack:info("head").dtype)
    assert.are.same({ 352 }, pack:info("head.scale").shape)
    assert.are.equal("f32", pack:info("layers.0.o").dtype)
    assert.are.equal("f8", pack:info("layers.1.down").dtype)
    assert.are.equal("bf16", pack:info("layers.1.router").dtype)
  end)

  it("renames and merges, in blocks of rows", function()
    local dir <close> = S.directory()
    local plain = pack_of(dir.path .. "/plain")
    local seen = {}
    local pack, report = pack_of(dir.path .. "/new", function(plan)
      assert.are.equal(plan, plan)
      plan:rule { match = "^layers%.(%d+)%.expert_down$", rename = "block.%1.out", map = function(rows, at)
        seen[#seen + 1] = { at.name, at.expert, at.first, at.last, rows.dtype }
        return rows * 2
      end }
      plan:rule { match = "out$", map = function(rows) return rows + 1 end }
      plan:find("norm").name = "final_norm"
    end)
    assert.are.equal(0, #report.errors)
    assert.is_true(pack:has "final_norm" and not pack:has "norm" and not pack:has "layers.1.expert_down")
    local expected = (plain:tensor("layers.1.expert_down"):to "f32" * 2 + 1):to "bf16"
    assert.is_true(pack:tensor("block.1.out"):bytes() == expected:bytes())
    assert.are.same({ "block.1.out", 1, 1, 64, "f32" }, seen[1])
    assert.are.same({ "block.1.out", 2, 1, 64, "f32" }, seen[2])
  end)

  it("sees blocks that are smaller than a tensor", function()
    local slices, dir <close> = require "mav.weights_tools.slices", S.directory()
    local whole = pack_of(dir.path .. "/a", nil, { dtype = "fp8" })
    local old, blocks = slices.ELEMENTS, 0
    slices.ELEMENTS = 2048
    local ok, pack, report = pcall(pack_of, dir.path .. "/b", { { linear = true, map = function(rows)
      blocks = blocks + 1
      return rows
    end } }, { dtype = "fp8" })
    slices.ELEMENTS = old
    assert(ok, pack)
    assert.is_true(blocks > 50 and #report.errors > 5)
    for _, name in ipairs(whole:names()) do
      assert.is_true(whole:tensor(name):bytes() == pack:tensor(name):bytes(), name)
    end
  end)

  it("gives tensors of the files the names that the model asks for", function()
    local dir <close> = S.directory()
    local tensors = {}
    for name, t in pairs(S.tensors "maverick") do tensors["x." .. name] = t end
    tensors["adapter"] = mav.zeros { 1 }
    S.checkpoint(dir.path, S.config "maverick", tensors)
    local ok, err = convert.convert(dir.path, dir.path .. "/out")
    assert.is_nil(ok)
    assert.is_truthy(tostring(err):find("missing", 1, true))
    assert(convert.convert(dir.path, dir.path .. "/out", { recipe = { names = function(name) return name:match "^x%.(.*)$" end } }))
    assert(convert.convert(S.model_dir "maverick", dir.path .. "/plain"))
    local a, b = S.packs(dir.path .. "/out", 1)[1], S.packs(dir.path .. "/plain", 1)[1]
    for _, name in ipairs(b:names()) do assert.is_true(a:tensor(name):bytes() == b:tensor(name):bytes()) end
  end)

  it("may have its rules under a key, or return them from its function", function()
    local dir <close> = S.directory()
    for i, text in ipairs { "return { rules = { { match = 'head', dtype = 'f16' } } }",
      "return function(plan) return { { match = 'head', dtype = 'f16' } } end",
      "return function(plan) return { rules = { { match = 'head', dtype = 'f16' } } } end" } do
      S.write(dir.path .. "/r.lua", text)
      assert.are.equal("f16", pack_of(dir.path .. "/out" .. i, dir.path .. "/r.lua"):info("head").dtype)
    end
  end)

  it("in a file: its text is kept in the pack", function()
    local dir <close> = S.directory()
    local text = "return { { match = 'head', dtype = 'f16' } }\n"
    S.write(dir.path .. "/r.lua", text)
    local pack = pack_of(dir.path .. "/out", dir.path .. "/r.lua")
    assert.are.equal("f16", pack:info("head").dtype)
    assert.are.same({ name = dir.path .. "/r.lua", text = text }, pack.meta.recipe)
  end)
end)

describe("a wrong recipe", function()
  --- The message for a recipe file with this text.
  local function message(text)
    local dir <close> = S.directory()
    S.write(dir.path .. "/r.lua", text)
    local ok, value, err = pcall(convert.convert, SOURCE, dir.path .. "/out", { recipe = dir.path .. "/r.lua" })
    assert.is_true(not ok or value == nil)
    assert.is_false(S.exists(S.pack_path(dir.path .. "/out", 0, 1)))
    return (tostring(ok and err or value):gsub(dir.path .. "/", ""))
  end

  it("is said with file and line", function()
    for text, expected in pairs {
      ["return {\n  {\n"] = "r.lua:3: ",
      ["\n\nreturn function(plan)\n  plan.x.y = 1\nend"] = "r.lua:4: ",
      ["return function(plan)\n  plan:rule { match = 'haed', dtype = 'fp8' }\nend"] = "r.lua:2: rule \"haed\" matches no tensor",
      ["return function(plan)\n\n  plan:rule { match = 'head', dtpye = 'fp8' }\nend"] = "r.lua:3: unknown key 'dtpye'; act, compress,",
      ["return function(plan) plan:rule { match = 'head', dtype = 'int4' } end"] = "r.lua:1: dtype \"int4\": fp8, bf16, f16, f32 or",
      ["return function(plan) plan:rule { match = 'norm', dtype = 'fp8' } end"] = "r.lua:1: norm cannot be fp8: it is no matrix",
      ["return function(plan) plan:rule { match = '[', dtype = 'fp8' } end"] = "r.lua:1: match \"[\": malformed pattern",
      ["return function(plan) plan:rule { match = 'head', layout = 'col' } end"] = "r.lua:1: layout \"col\": row or m16n8k16 is allowed",
      ["return function(plan) plan:rule { match = 'o$', map = 1 } end"] = "r.lua:1: map is a number; a function is expected",
      ["return function(plan) plan:rule { match = 'o$', act = 'static' } end"] = "r.lua:1: act \"static\" needs an in_scale",
      ["return { { match = 'head', dtype = 'fp8' },\n  { match = 'haed' } }"] = "r.lua: rule 2: rule \"haed\" matches no tensor",
      ["return { nmaes = print }"] = "r.lua: unknown key 'nmaes'; rules, names and plan are allowed",
      ["return 5"] = "r.lua: returns a number; a recipe returns a table of rules (with names and plan, where needed), or function(plan)",
      ["return { rules = {}, { match = 'head' } }"] = "r.lua: rules are in the table and under 'rules'; keep one",
      ["return { rules = print }"] = "r.lua: rules is a function; a table is expected",
      ["return { rules = { { match = 'haed' } } }"] = "r.lua: rule 1: rule \"haed\" matches no tensor",
      ["return function() return { { match = 'haed' } } end"] = "r.lua: rule 1: rule \"haed\" matches no tensor",
      ["return function() return { names = print } end"] = "return a table from the file",
      ["return function() return true end"] = "r.lua: the function of the plan returned a boolean; nothing, or a table of rules, is",
      ["return function(plan) return plan end"] = "r.lua: the function of the plan returned the plan; nothing, or a table of rules, is",
      ["return { draft = print, policy = 3 }"] = "belongs to a decoding strategy, for --strategy; a recipe returns a table of rules",
      ["return function() return { k_max = 3 } end"] = "r.lua: 'k_max' belongs to a decoding strategy",
      [S.read(S.root .. "examples/strategies/copy_first.lua")] = "r.lua: a decoding strategy, for --strategy? a recipe returns a table",
      ["return { { match = 'o$', map = function(rows)\n  return rows.x.y\nend } }"] = "r.lua:2: ",
      ["return { { match = 'o$', map = function(rows) return rows:slice(1, 1, 2) end } }"] = "map of layers.0.o returned (2, ",
      ["return { { match = 'o$', map = function() return 7 end } }"] = "map of layers.0.o returned a number; a tensor is expected",
      ["return { names = function() return 'x' end }"] = "both became x",
      ["return function(plan)\n  plan:rule { match = 'layers.0.o', rename = 'head' }\nend"] = "two tensors are named head",
    } do
      local said = message(text)
      assert.is_truthy(said:find(expected, 1, true), said .. "\nexpected: " .. expected)
    end
  end)

  it("a layout that does not fit names the tensor", function()
    local dir <close> = S.directory()
    local ok, err = convert.convert(S.tiny, dir.path, { recipe = { { linear = true, layout = "m16n8k16" } } })
    assert.is_nil(ok)
    assert.is_truthy(tostring(err):find("layers.0.qkv: layout m16n8k16 is for fp8, not bf16", 1, true), tostring(err))
    ok, err = convert.convert(SOURCE, dir.path, { dtype = "fp8", recipe = { { linear = true, layout = "m16n8k16" } }, ranks = 4 })
    assert.is_nil(ok)
    assert.is_truthy(tostring(err):find("needs multiples of 16 rows and 32 columns", 1, true), tostring(err))
  end)
end)

describe("the layout m16n8k16", function()
  it("is that of kernels/layout.h", function()
    local N, K, bytes = 32, 64, {}
    for i = 1, N * K do bytes[i] = string.char((i * 7 + i // 256 * 13) % 256) end
    local rows = mav.tensor(table.concat(bytes), { dtype = "u8", shape = { N, K } })
    local laid = layouts.pack("m16n8k16", rows):bytes()
    for r = 0, N - 1 do
      for k = 0, K - 1 do
        local tile, i, j = r // 16 * (K // 32) + k // 32, r % 16, k % 32
        local at = tile * 512 + (4 * (i % 8) + j % 8 // 2) * 16 + 4 * (j // 8) + 2 * (j % 2) + i // 8
        assert.are.equal(bytes[r * K + k + 1], laid:sub(at + 1, at + 1))
      end
    end
  end)

  it("is undone, and what is packed so holds the codes of rows", function()
    local dir <close> = S.directory()
    assert(convert.convert(S.tiny, dir.path .. "/a", { dtype = "fp8" }))
    assert(convert.convert(S.tiny, dir.path .. "/b", { dtype = "fp8", recipe = { { linear = true, layout = "m16n8k16" } } }))
    local a, b = S.packs(dir.path .. "/a", 1)[1], S.packs(dir.path .. "/b", 1)[1]
    for _, name in ipairs(a:names()) do
      local info = b:info(name)
      local one, other = a:read(name, 0, info.bytes), b:read(name, 0, info.bytes)
      if info.layout ~= "row" then
        local K = info.shape[#info.shape]
        local shape = { info.bytes // K, K }
        assert.is_false(one:bytes() == other:bytes())
        other = layouts.unpack(info.layout, other:reshape(shape))
        assert.is_true(layouts.pack(info.layout, one:reshape(shape)):bytes() == b:read(name, 0, info.bytes):bytes())
      end
      assert.is_true(one:bytes() == other:bytes(), name)
    end
  end)
end)

describe("reports of errors", function()
  it("are what quantization does", function()
    local list, state = {}, 7
    for i = 1, 40 * 96 do
      state = (state * 1103515245 + 12345) % 2147483648
      list[i] = (state / 2147483648 - 0.5) * (i % 5 == 0 and 3 or 0.1)
    end
    local x = mav.tensor(list, { shape = { 40, 96 } })
    local codes = x:quantize()
    local stats = errors.new(40 * 96)
    stats:add(x:slice(1, 1, 16), codes:slice(1, 1, 16), codes.scale:slice(1, 1, 16), "x")
    stats:add(x:slice(1, 17, 40), codes:slice(1, 17, 40), codes.scale:slice(1, 17, 40), "x")
    local noise, signal, most = 0, 0, 0
    local y = op.cast { x = codes, dtype = "f32" } * codes.scale:reshape { 40, 1 }
    for i = 1, 40 do
      for j = 1, 96 do
        local d = x:get(i, j) - y:get(i, j)
        noise, signal, most = noise + d * d, signal + x:get(i, j) ^ 2, math.max(most, math.abs(d))
      end
    end
    local r = stats:result("x", "f32")
    assert.is_true(math.abs(r.max_abs - most) < 1e-7)
    assert.is_true(math.abs(r.relative / math.sqrt(noise / signal) - 1) < 1e-5)
    assert.is_true(math.abs(r.sqnr_db - 10 * math.log(signal / noise, 10)) < 1e-4)
    assert.are.equal(1.0, r.measured)
  end)

  it("can be read as a table, as JSON, and as a picture", function()
    local dir <close> = S.directory()
    local report = assert(convert.convert(S.tiny, dir.path, { dtype = "fp8" }))
    assert.are.equal(8 * 5 + 4 * 3, #report.errors)
    for _, r in ipairs(report.errors) do assert.is_true(r.sqnr_db > 28 and r.sqnr_db < 40, r.name) end
    local text = errors.table(report.errors, 5)
    assert.are.equal(7, select(2, text:gsub("\n", "\n")) + 1)
    local picture = errors.svg(report.errors, "a < b")
    assert.is_truthy(picture:find("^<svg ") and picture:find("a &lt; b", 1, true) and picture:find("</svg>\n$"))
    assert.are.equal(8 * 5 + 4 * 3 + 8, select(2, picture:gsub("<circle", "")))
    if S.binary then
      local out, status = S.shell(("'%s' weights convert '%s' '%s/x' --dtype fp8 --json --report '%s/r.json' --svg '%s/r.svg'"):format(
        S.binary, S.tiny, dir.path, dir.path, dir.path))
      assert.are.equal(0, status, out)
      assert.are.same(assert(mav.json.decode(out)).errors, assert(mav.json.decode(S.read(dir.path .. "/r.json"))).errors)
      assert.are.equal("<svg", S.read(dir.path .. "/r.svg"):sub(1, 4))
    end
  end)
end)
