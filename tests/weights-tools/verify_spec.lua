local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/printed.lua")(dofile(here .. "/support.lua"))
local mav = require "mav"
local calibrate = require "mav.weights_tools.calibrate"
local convert = require "mav.weights_tools.convert"
local diff = require "mav.weights_tools.diff"
local export = require "mav.weights_tools.export"
local inspect = require "mav.weights_tools.inspect"
local maverick = require "mav.maverick"
local reshard = require "mav.weights_tools.reshard"
local synth = require "mav.weights_tools.synth"
local verify = require "mav.weights_tools.verify"

--- Fails unless the problems of a directory are of this kind and one of them has the text.
local function has_problem(dir, kind, text, options)
  local report = assert(verify.verify(dir, options))
  assert.is_false(report.ok)
  for _, p in ipairs(report.problems) do
    if p.kind == kind and p.text:find(text, 1, true) then return report end
  end
  error(("no %s problem with '%s' in: %s"):format(kind, text, mav.json.encode(report.problems)), 2)
end

local function is_fine(dir, source)
  local report = assert(verify.verify(dir, { source = source }))
  assert(report.ok, mav.json.encode(report.problems))
  return report
end

--- Writes another byte into a file.
local function damage(path, at)
  local file = assert(io.open(path, "r+b"))
  file:seek("set", at)
  local byte = file:read(1):byte()
  file:seek("set", at)
  file:write(string.char(byte ~ 0x10))
  file:close()
end

--- Writes a pack again, with tensors that change(name, tensor) may replace (nil: left out).
local function rewrite(path, change)
  local pack, items, tensors = assert(mav.pack(path)), {}, {}
  for _, name in ipairs(pack:names()) do
    local info, t = pack:info(name), assert(pack:tensor(name, { copy = true }))
    t = change(name, t)
    if t then
      items[#items + 1] = { name = name, dtype = t.dtype, shape = t.shape, layout = info.layout, scale = info.scale, act = info.act,
        in_scale = info.in_scale }
      tensors[#tensors + 1] = t
    end
  end
  local writer = assert(mav.pack_writer(path, { meta = pack.meta, rank = pack.rank, ranks = pack.ranks, tensors = items, fresh = true }))
  for i, t in ipairs(tensors) do assert(writer:put(i, t)) end
  assert(writer:finish())
  writer:close()
  pack:close()
end

describe("mav weights verify", function()
  it("finds nothing wrong with conversions", function()
    for _, m in ipairs(support.models) do
      for _, dtype in ipairs { "keep", "fp8" } do
        local dir <close> = support.directory()
        local ranks = m.ranks[#m.ranks]
        assert(convert.convert(m.dir, dir.path, { dtype = dtype, ranks = ranks, compress = dtype == "fp8" and "lz4" or "none" }))
        local report = is_fine(dir.path, m.dir)
        assert.equal(ranks, #report.packs)
        if dtype == "keep" then
          for _, r in ipairs(report.source.tensors) do assert(r.exact, m.name .. " " .. r.name) end
        end
      end
    end
  end)

  it("knows what other types may cost", function()
    for _, dtype in ipairs { "bf16", "f32" } do
      for _, name in ipairs { "maverick", "maverick_ct_fp8", "maverick_modelopt_fp8" } do
        local dir <close> = support.directory()
        assert(convert.convert(support.model_dir(name), dir.path, { dtype = dtype }))
        is_fine(dir.path, support.model_dir(name))
      end
    end
  end)

  it("names a damaged tensor, and goes on", function()
    local dir <close> = support.directory()
    assert(convert.convert(support.tiny, dir.path, { dtype = "fp8", ranks = 2 }))
    local path = support.pack_path(dir.path, 1, 2)
    local file = assert(io.open(path, "rb"))
    local size = file:seek "end"
    file:close()
    damage(path, size - 20000) -- layers.7.expert_down
    damage(path, size - 200000)
    local report = has_problem(dir.path, "hashes", " is damaged (bytes ")
    assert.equal(2, #report.problems)
    assert(report.problems[1].text:find(path, 1, true))
    assert.is_true(assert(verify.verify(dir.path, { hashes = false })).ok)
    damage(path, 100)
    has_problem(dir.path, "ranks", path)
  end)

  it("finds damage that every other tool stops at, and writes nothing of it", function()
    local dir <close> = support.directory()
    local function stops(ok, err)
      assert.is_nil(ok)
      assert(tostring(err):find('model%-0000%d%-of%-0000%d%.mav: tensor "layers.1.expert_up": chunk %d+ is damaged'), tostring(err))
    end
    for _, ranks in ipairs { 1, 2 } do
      local p, q = dir.path .. "/p" .. ranks, dir.path .. "/q" .. ranks
      assert(convert.convert(support.tiny, p, { ranks = ranks }))
      support.damage(support.pack_path(p, ranks - 1, ranks), "layers.1.expert_up")
      has_problem(p, "hashes", 'tensor "layers.1.expert_up": chunk')
      assert.equal(1, #assert(verify.verify(p, { source = support.tiny })).problems)
      stops(reshard.reshard(p, q, { ranks = 3 - ranks }))
      assert.is_false(support.exists(support.pack_path(q, 0, 3 - ranks)))
      stops(export.export(p, q .. "x", { shards = 5 }))
      local out = support.shell(("ls '%s' | grep -e safetensors -e '^config.json'"):format(q .. "x"))
      assert.equal("", out)
      stops(inspect.tensor(p, "layers.1.expert_up"))
      assert(inspect.tensor(p, "layers.1.expert_down"))
      local report = assert(diff.diff(support.tiny, p))
      assert.is_false(report.same)
      assert(report.tensors[1].name == "layers.1.expert_up" and report.tensors[1].why:find("is damaged", 1, true))
      assert.equal(1, report.unread)
      assert.equal(1, select(2, support.printed(diff, support.tiny, p, "--match", "expert_up")))
    end
    support.write(dir.path .. "/prompts", "local a = 1\n")
    local text, err = support.printed(calibrate, dir.path .. "/p1", "--prompts", dir.path .. "/prompts", "-o", dir.path .. "/scales")
    stops(text, err)
  end)

  it("says nothing of hashes where no pack can be opened", function()
    local dir <close> = support.directory()
    support.write(support.pack_path(dir.path, 0, 1), "not a pack")
    local text, status = support.printed(verify, dir.path)
    assert.equal(1, status)
    assert.is_nil(text:find("hashes", 1, true), text)
  end)

  it("does not guess which of packs and safetensors are the model; nor do the others", function()
    local dir <close> = support.directory()
    support.copy_directory(support.tiny, dir.path)
    for _, ranks in ipairs { 1, 2 } do
      assert(convert.convert(support.tiny, dir.path .. "/p", { ranks = ranks }))
      os.rename(support.pack_path(dir.path .. "/p", 0, ranks), support.pack_path(dir.path, 0, ranks))
      for _, try in ipairs { { verify.verify, dir.path }, { inspect.inspect, dir.path }, { diff.diff, support.tiny, dir.path },
        { maverick.load, dir.path } } do
        local ok, err = try[1](table.unpack(try, 2))
        assert.is_nil(ok)
        assert(tostring(err):find(("packs (model-00000-of-0000%d.mav) and safetensors (model.safetensors) are both there"):format(ranks),
          1, true), tostring(err))
      end
      os.remove(support.pack_path(dir.path, 0, ranks))
      os.execute(("rm -r '%s/p'"):format(dir.path))
    end
    assert(maverick.load(dir.path))
  end)

  it("misses packs that are not there or not finished", function()
    local dir <close> = support.directory()
    assert(convert.convert(support.tiny, dir.path, { ranks = 2 }))
    os.rename(support.pack_path(dir.path, 0, 2), dir.path .. "/away")
    has_problem(dir.path, "ranks", support.pack_path(dir.path, 0, 2))
    os.rename(dir.path .. "/away", support.pack_path(dir.path, 0, 2) .. ".part")
    has_problem(dir.path, "ranks", "the conversion did not finish")
    local report, err = verify.verify(support.tiny)
    assert.is_nil(report)
    assert(tostring(err):find("no pack", 1, true))
  end)

  it("sees ranks of two conversions, and copies that differ", function()
    local dir <close> = support.directory()
    assert(convert.convert(support.tiny, dir.path .. "/a", { ranks = 2 }))
    assert(convert.convert(support.tiny, dir.path .. "/b", { ranks = 2, dtype = "fp8" }))
    os.rename(support.pack_path(dir.path .. "/b", 1, 2), support.pack_path(dir.path .. "/a", 1, 2))
    has_problem(dir.path .. "/a", "ranks", "is of another conversion")
    assert(convert.convert(support.tiny, dir.path .. "/a", { ranks = 2, fresh = true }))
    rewrite(support.pack_path(dir.path .. "/a", 1, 2), function(name, t)
      if name == "layers.2.attn_norm" then t:set(7, 9) end
      return t
    end)
    has_problem(dir.path .. "/a", "ranks", "tensor layers.2.attn_norm is not the same as in rank 0")
  end)

  it("asks for what config.json asks for", function()
    local dir <close> = support.directory()
    assert(convert.convert(support.tiny, dir.path, { dtype = "fp8" }))
    local path = support.pack_path(dir.path, 0, 1)
    rewrite(path, function(name, t) return name ~= "layers.3.router" and t or nil end)
    has_problem(dir.path, "complete", "layers.3.router, that config.json asks for, is missing")
    local config = support.read(dir.path .. "/config.json")
    support.write(dir.path .. "/config.json", (config:gsub('("num_hidden_layers": )8', "%17")))
    local report = has_problem(dir.path, "complete", "layers.7.qkv has no place in this model")
    has_problem(dir.path, "complete", "layers.7.qkv.scale has no place in this model")
    assert.is_true(#report.problems > 10)
    support.write(dir.path .. "/config.json", (config:gsub('("intermediate_size": )128', "%196")))
    has_problem(dir.path, "complete", "layers.1.gate has shape (128, 256); config.json asks for (96, 256)")
    support.write(dir.path .. "/config.json", "{")
    has_problem(dir.path, "complete", "config.json")
  end)

  it("finds scales that are no numbers", function()
    local dir <close> = support.directory()
    assert(convert.convert(support.tiny, dir.path, { dtype = "fp8" }))
    local path = support.pack_path(dir.path, 0, 1)
    rewrite(path, function(name, t)
      if name == "layers.1.expert_up.scale" then t:set(2, 3, 0 / 0) end
      if name == "layers.0.o.scale" then t:set(5, -1) end
      return t
    end)
    has_problem(dir.path, "scales", "layers.1.expert_up.scale: 1 of 1024 scales are infinite or not a number")
    has_problem(dir.path, "scales", "layers.0.o.scale: a scale is -1")
  end)

  it("compares every value with the source's", function()
    local dir <close> = support.directory()
    assert(convert.convert(support.tiny, dir.path, { ranks = 2 }))
    rewrite(support.pack_path(dir.path, 1, 2), function(name, t)
      if name == "layers.5.expert_down" then t:set(8, 256, 64, 0.5) end
      return t
    end)
    has_problem(dir.path, "source", "layers.5.expert_down (bf16): 1 of 262144 values differ from the source", { source = support.tiny })
    assert.is_true(assert(verify.verify(dir.path)).ok)

    assert(synth.write(dir.path .. "/a", { layers = 2, seed = 1, format = "hf-modelopt-fp8" }))
    assert(synth.write(dir.path .. "/b", { layers = 2, seed = 2, format = "hf-modelopt-fp8" }))
    assert(convert.convert(dir.path .. "/a", dir.path .. "/p", {}))
    is_fine(dir.path .. "/p", dir.path .. "/a")
    has_problem(dir.path .. "/p", "source", "layers.1.expert_gate (f8): ", { source = dir.path .. "/b" })
    assert(synth.write(dir.path .. "/c", { layers = 2, seed = 3 }))
    assert(synth.write(dir.path .. "/d", { layers = 2, seed = 4 }))
    assert(convert.convert(dir.path .. "/c", dir.path .. "/q", { dtype = "fp8" }))
    is_fine(dir.path .. "/q", dir.path .. "/c")
    has_problem(dir.path .. "/q", "source", "layers.0.gate (f8, from bf16): SQNR is -", { source = dir.path .. "/d" })
    has_problem(dir.path .. "/q", "source", "/nowhere", { source = "/nowhere" })
  end)

  it("knows that a recipe may change values", function()
    local dir <close> = support.directory()
    support.write(dir.path .. "/r.lua", [[return { { match = "^layers%.0%.attn_norm$", map = function(x) return x * 2 end } }]])
    assert(convert.convert(support.tiny, dir.path .. "/p", { recipe = dir.path .. "/r.lua" }))
    has_problem(dir.path .. "/p", "source", "layers.0.attn_norm", { source = support.tiny })
    local text, status = support.printed(verify, dir.path .. "/p", "--source", support.tiny)
    assert.equal(1, status)
    assert(text:find("were made with the recipe " .. dir.path .. "/r.lua", 1, true), text)
  end)

  it("prints a summary, and JSON", function()
    local dir <close> = support.directory()
    assert(convert.convert(support.tiny, dir.path, { dtype = "fp8", ranks = 4 }))
    local text, status = support.printed(verify, dir.path, "--source", support.tiny)
    assert.equal(0, status)
    assert(text:find("4 of 4 packs", 1, true))
    assert(text:find("GB/s, ok", 1, true))
    assert(text:find("23 tensors are equal; 68 differ, SQNR 31", 1, true), text)
    local report = assert(mav.json.decode((support.printed(verify, dir.path, "--source", support.tiny, "--json"))))
    assert.is_true(report.ok)
    assert.equal(91, #report.source.tensors)
    assert.is_nil(support.printed(verify, support.tiny))
  end)
end)
