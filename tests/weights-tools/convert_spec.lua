--- mav weights convert: every tensor against the loader's, for every dtype; ranks put together again by other code than cut them.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local S = dofile(here .. "/support.lua")
local config = require "mav.maverick.config"
local convert = require "mav.weights_tools.convert"
local mav = require "mav"
local reshard = require "mav.weights_tools.reshard"
local weights = require "mav.maverick.weights"

--- What the loader makes of the directory: { [name] = tensor }.
local function loaded(dir, dtype)
  local c = assert(config.read(dir))
  local W = assert(weights.load(dir, c, { runtime = mav.default_runtime(), dtype = dtype ~= "keep" and dtype or nil }))
  local list = { embed = W.embed, norm = W.norm, head = W.head ~= W.embed and W.head or nil }
  for i, L in ipairs(W.layers) do
    for key, t in pairs(L) do
      if type(t) == "userdata" and key ~= "rope" then list[("layers.%d.%s"):format(i - 1, key)] = t end
    end
  end
  return list, c
end

local function assert_same(expected, t, name)
  assert.are.equal(expected.dtype, t.dtype, name)
  assert.are.same(expected.shape, t.shape, name)
  assert.is_true(expected:contiguous():bytes() == t:contiguous():bytes(), name .. " differs")
end

describe("convert", function()
  for _, model in ipairs(S.models) do
    for _, dtype in ipairs { "keep", "bf16", "fp8" } do
      it(("%s to %s: what the loader makes of it"):format(model.name, dtype), function()
        local dir <close> = S.directory()
        local report = assert(convert.convert(model.dir, dir.path, { dtype = dtype, verify = true }))
        assert.are.same({ S.pack_path(dir.path, 0, 1) }, report.packs)
        local pack, expected = S.packs(dir.path, 1)[1], loaded(model.dir, dtype)
        local names = {}
        for _, name in ipairs(pack:names()) do
          if not name:find "%.scale$" then names[name] = true end
        end
        for name, t in pairs(expected) do
          assert.is_true(names[name], name .. " is missing")
          local own, scale = assert(pack:tensor(name)), t.scale
          assert_same(t, own, name)
          assert.are.equal(scale and name .. ".scale" or nil, pack:info(name).scale)
          if scale then assert_same(scale, assert(pack:tensor(name .. ".scale")), name .. ".scale") end
          names[name] = nil
        end
        assert.is_nil(next(names))
      end)
    end
  end

  it("keeps how activations are rounded, and the scales of the cache", function()
    local dir <close> = S.directory()
    local source = S.model_dir "maverick_modelopt_fp8"
    assert(convert.convert(source, dir.path))
    local pack, files = S.packs(dir.path, 1)[1], assert(mav.weights(source))
    local checked = 0
    for _, name in ipairs(files:names()) do
      local layer = name:match "layers%.(%d+)%.self_attn%.o_proj%.input_scale$"
      if layer then
        local value = files:get(name):to("f32"):reshape({ 1 }):get(1)
        local info = pack:info(("layers.%d.o"):format(layer))
        assert.are.equal("static", info.act)
        assert.are.equal(value, info.in_scale)
        checked = checked + 1
      end
      layer = name:match "layers%.(%d+)%.self_attn%.k_proj%.k_scale$"
      if layer then
        assert.are.equal(files:get(name):to("f32"):reshape({ 1 }):get(1), pack.meta.kv.k_scale[tonumber(layer) + 1])
        checked = checked + 1
      end
    end
    assert.is_true(checked > 1)
    assert(convert.convert(S.model_dir "scout_ct_fp8", dir.path .. "/ct"))
    assert.are.equal("dynamic", S.packs(dir.path .. "/ct", 1)[1]:info("layers.0.expert_down").act)
  end)

  it("brings what the model needs beside its tensors", function()
    local dir <close> = S.directory()
    assert(convert.convert(S.tiny, dir.path .. "/new/dir"))
    for _, name in ipairs { "config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja" } do
      assert.are.equal(S.read(S.tiny .. "/" .. name), S.read(dir.path .. "/new/dir/" .. name))
    end
    assert.is_false(S.exists(dir.path .. "/new/dir/conversion.part.json"))
  end)

  it("the logits of packs are those of the directory", function()
    local dir <close> = S.directory()
    local maverick = require "mav.maverick"
    local function logits(from, dtype)
      local model = assert(maverick.load(from, { dtype = dtype }))
      local kv = assert(model:kv { tokens = 64 })
      local seq <close> = assert(kv:sequence {})
      local rows = mav.rows(5)
      assert(seq:reserve(5))
      for i, id in ipairs { 3, 141, 59, 26, 53 } do rows:set(i, id, seq, i - 1, i - 1) end
      return model:forward(rows, kv):bytes()
    end
    for _, name in ipairs { "maverick", "maverick_ct_fp8", "maverick_modelopt_fp8", "scout_ct_fp8" } do
      assert(convert.convert(S.model_dir(name), dir.path .. name))
      assert.is_true(logits(S.model_dir(name)) == logits(dir.path .. name), name)
      os.execute("rm -rf '" .. dir.path .. name .. "'")
    end
    assert(convert.convert(S.tiny, dir.path, { dtype = "fp8", compress = "lz4" }))
    assert.is_true(logits(S.tiny, "fp8") == logits(dir.path))
  end)

  it("lz4: smaller, and the same tensors", function()
    local dir <close> = S.directory()
    local a, b = dir.path .. "/raw", dir.path .. "/lz4"
    assert(convert.convert(S.tiny, a))
    assert(convert.convert(S.tiny, b, { compress = "lz4", verify = true }))
    local raw, small = S.packs(a, 1)[1], S.packs(b, 1)[1]
    assert.is_true(small.bytes < raw.bytes)
    for _, name in ipairs(raw:names()) do assert_same(raw:tensor(name), small:tensor(name), name) end
  end)

  it("--plan says what comes, and writes nothing", function()
    local dir <close> = S.directory()
    local report = assert(convert.plan(S.tiny, { dtype = "fp8", ranks = 4 }))
    assert.are.equal("", (S.shell(("ls '%s'"):format(dir.path))))
    assert(convert.convert(S.tiny, dir.path, { dtype = "fp8", ranks = 4 }))
    for rank, pack in ipairs(S.packs(dir.path, 4)) do
      local bytes = 0
      for _, name in ipairs(pack:names()) do bytes = bytes + pack:info(name).bytes end
      assert.are.equal(report.packs[rank].bytes, bytes)
    end
    local pack = S.packs(dir.path, 4)[1]
    for _, t in ipairs(report.tensors) do
      assert.are.same(t.rank_shape, pack:info(t.name).shape)
      assert.are.equal(t.dtype, pack:info(t.name).dtype)
    end
    assert.is_true(report.seconds > 0)
  end)
end)

-- ---- ranks -------------------------------------------------------------------------------------------------------------------

--- A whole tensor from the ranks' parts, by its name.
local function put_together(packs, name, c)
  local key, R = name:gsub("%.scale$", ""):match "([^.]+)$", #packs
  local is_scale, parts = name:find "%.scale$" ~= nil, {}
  for i, pack in ipairs(packs) do parts[i] = assert(pack:tensor(name)) end
  local function join(dim, list)
    local shape = list[1].shape
    shape[dim] = 0
    for _, t in ipairs(list) do shape[dim] = shape[dim] + t.shape[dim] end
    local out, at = mav.zeros { dtype = list[1].dtype, table.unpack(shape) }, 0
    for _, t in ipairs(list) do
      out:slice(dim, at + 1, at + t.shape[dim]):copy_from(t)
      at = at + t.shape[dim]
    end
    return out
  end
  local dims = #parts[1].shape
  if is_scale and dims == 1 and parts[1].shape[1] == 1 then return parts[1] end
  if key == "qkv" or key == "q" or key == "k" or key == "v" then
    local heads = { q = c.heads, k = c.kv_heads, v = c.kv_heads }
    local list = {}
    for _, which in ipairs { "q", "k", "v" } do
      if key:find(which, 1, true) then
        local before = 0 -- rows of a rank that come before this part
        for _, other in ipairs { "q", "k", "v" } do
          if other == which then break end
          if key:find(other, 1, true) then before = before + math.max(heads[other] // R, 1) * c.head_dim end
        end
        local own = math.max(heads[which] // R, 1)
        for head = 0, heads[which] - 1 do
          local rank = head * R // heads[which] -- the first that has it
          local first = before + (head - rank * heads[which] // R) % own * c.head_dim
          list[#list + 1] = parts[rank + 1]:slice(1, first + 1, first + c.head_dim)
        end
      end
    end
    return join(1, list)
  end
  if key == "gate" or key == "up" or key == "head" then return join(1, parts) end
  if key == "expert_gate" or key == "expert_up" then return join(2, parts) end
  if (key == "o" or key == "down" or key == "expert_down") and not is_scale then return join(dims, parts) end
  for i = 2, R do assert_same(parts[1], parts[i], name .. " of rank " .. i - 1) end
  return parts[1]
end

describe("convert for ranks", function()
  for _, model in ipairs(S.models) do
    for _, dtype in ipairs { "keep", "fp8" } do
      if #model.ranks > 1 then
        it(("%s to %s: the parts are the whole"):format(model.name, dtype), function()
          local dir <close> = S.directory()
          local c = assert(config.read(model.dir))
          assert(convert.convert(model.dir, dir.path, { dtype = dtype }))
          local whole = S.packs(dir.path, 1)[1]
          for i = 2, #model.ranks do
            local R = model.ranks[i]
            assert(convert.convert(model.dir, dir.path, { dtype = dtype, ranks = R }))
            local packs = S.packs(dir.path, R)
            for rank, pack in ipairs(packs) do
              assert.are.same({ rank - 1, R }, { pack.rank, pack.ranks })
              assert.are.same(whole:names(), pack:names())
            end
            for _, name in ipairs(whole:names()) do
              assert_same(whole:tensor(name), put_together(packs, name, c), ("%s of %d"):format(name, R))
              local a, b = whole:info(name), packs[R]:info(name)
              assert.are.same({ a.act, a.in_scale, a.layout }, { b.act, b.in_scale, b.layout })
            end
          end
        end)
      end
    end
  end

  it("heads that cannot be shared are refused before anything is written", function()
    local dir <close> = S.directory()
    local ok, err = convert.convert(S.model_dir "maverick", dir.path .. "/out", { ranks = 4 })
    assert.is_nil(ok)
    assert.are.equal("UNSUPPORTED", err.code)
    assert.is_truthy(tostring(err):find("4 ranks: layers.0.qkv has 10 query heads", 1, true), tostring(err))
    assert.is_false(S.exists(dir.path .. "/out"))
  end)
end)

-- ---- reshard -------------------------------------------------------------------------------------------------------------------

describe("the directory for packs", function()
  local function refused(text, f, ...)
    local ok, err = f(...)
    assert.is_nil(ok)
    assert.is_truthy(tostring(err):find(text, 1, true), tostring(err))
  end

  it("is not that of the source, and has no safetensors", function()
    local dir <close> = S.directory()
    local m = dir.path .. "/m"
    S.copy_directory(S.tiny, m)
    refused("m: is the source itself; give another directory", convert.convert, m, m)
    refused("is the source itself", convert.convert, m, dir.path .. "/./m/")
    assert.is_false(S.exists(m .. "/conversion.part.json"))
    refused("m: model.safetensors is there: packs need a directory without safetensors", convert.convert, S.tiny, m)
    local p = dir.path .. "/p"
    assert(convert.convert(S.tiny, p))
    refused("p: is the source itself", reshard.reshard, p, p, { ranks = 2 })
    refused("packs need a directory without safetensors", reshard.reshard, p, m, { ranks = 2 })
  end)

  it("is a directory", function()
    local dir <close> = S.directory()
    S.write(dir.path .. "/f", "x")
    refused("f: is a file; a directory is expected", convert.convert, S.tiny, dir.path .. "/f")
    refused("f/g: the directory cannot be made: Not a directory", convert.convert, S.tiny, dir.path .. "/f/g")
    if S.binary then
      local out, status = S.shell(("'%s' weights convert '%s' '%s/f'"):format(S.binary, S.tiny, dir.path))
      assert.are.equal(1, status)
      assert.are.equal(("mav weights convert: %s/f: is a file; a directory is expected\n"):format(dir.path), out)
    end
  end)
end)

describe("reshard", function()
  local function check(model, dtype, options)
    local dir <close> = S.directory()
    for _, R in ipairs(model.ranks) do
      local o = { dtype = dtype, ranks = R }
      for key, value in pairs(options or {}) do o[key] = value end
      assert(convert.convert(model.dir, dir.path, o))
    end
    for _, from in ipairs(model.ranks) do
      local one = ("%s/from%d"):format(dir.path, from)
      os.execute(("mkdir '%s' && cp '%s'/*-of-%05d.mav '%s'/*.json '%s'"):format(one, dir.path, from, dir.path, one))
      for _, to in ipairs(model.ranks) do
        local out = ("%s/to%d"):format(one, to)
        assert(reshard.reshard(one, out, { ranks = to }))
        for rank = 0, to - 1 do S.assert_same_file(S.pack_path(dir.path, rank, to), S.pack_path(out, rank, to)) end
        assert.are.equal(S.read(model.dir .. "/config.json"), S.read(out .. "/config.json"))
      end
    end
  end
  local FEW = { maverick_mm = true, maverick_modelopt_fp8 = true }
  for _, model in ipairs(S.models) do
    if #model.ranks > 1 and (S.is_full or FEW[model.name]) then
      it(model.name .. ": any number of ranks to any other, to the byte", function() check(model, "fp8") end)
    end
  end
  it("more ranks than key and value heads", function() check({ dir = S.tiny, ranks = { 2, 8 } }, "fp8") end)
  it("bf16, compressed", function() check(S.models[3], "bf16", { compress = "lz4" }) end)
  it("compressed and not: as if converted so", function()
    local dir <close> = S.directory()
    for _, how in ipairs { "none", "lz4" } do
      local other = how == "none" and "lz4" or "none"
      assert(convert.convert(S.models[3].dir, dir.path .. "/" .. how, { ranks = 2, compress = how }))
      assert(convert.convert(S.models[3].dir, dir.path .. "/" .. other .. 1, { compress = other }))
      assert(reshard.reshard(dir.path .. "/" .. how, dir.path .. "/new" .. other, { ranks = 1, compress = other }))
      S.assert_same_file(S.pack_path(dir.path .. "/" .. other .. 1, 0, 1), S.pack_path(dir.path .. "/new" .. other, 0, 1))
    end
  end)
  it("other layouts", function()
    check({ dir = S.tiny, ranks = { 1, 4 } }, "fp8", { recipe = { { linear = true, layout = "m16n8k16" } } })
  end)

  it("packs that are missing or of different conversions", function()
    local dir <close> = S.directory()
    local ok, err = reshard.reshard(dir.path, dir.path .. "/out", { ranks = 2 })
    assert.is_nil(ok)
    assert.are.equal("NOTFOUND", err.code)
    assert(convert.convert(S.models[3].dir, dir.path .. "/a", { ranks = 2 }))
    assert(convert.convert(S.models[3].dir, dir.path .. "/b", { ranks = 2, dtype = "fp8" }))
    assert(os.execute(("cp '%s' '%s'"):format(S.pack_path(dir.path .. "/b", 1, 2), S.pack_path(dir.path .. "/a", 1, 2))))
    ok, err = reshard.reshard(dir.path .. "/a", dir.path .. "/out", { ranks = 1 })
    assert.is_nil(ok)
    assert.is_truthy(tostring(err):find("is of another conversion than rank 0", 1, true), tostring(err))
    os.remove(S.pack_path(dir.path .. "/a", 1, 2))
    ok, err = reshard.reshard(dir.path .. "/a", dir.path .. "/out", { ranks = 1 })
    assert.is_nil(ok)
    assert.is_truthy(tostring(err):find("model-00001-of-00002.mav", 1, true))
    assert.is_false(S.exists(S.pack_path(dir.path .. "/out", 0, 1)))
  end)
end)
