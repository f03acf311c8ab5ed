--- Conversions that are killed, that meet a full disk, whose source changes: what is there afterwards, and that the same command ends it.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local S = dofile(here .. "/support.lua")
local convert = require "mav.weights_tools.convert"
local mav = require "mav"
local reshard = require "mav.weights_tools.reshard"

local KILLS = tonumber(os.getenv "MAV_KILLS") or S.is_full and 20 or 5

local describe_processes = S.binary and describe or pending
describe_processes("kill -9", function()
  --- Kills `mav weights ARGS` after random times until it has been killed `kills` times, and with something to go on with, then lets it
  --- end. Returns how often there was something.
  local function torment(args, out, kills)
    local resumed, killed, tries = 0, 0, 0
    local longest = 0.6 -- seconds; shrinks when the command is faster
    while killed < kills or resumed == 0 do
      tries = tries + 1
      assert.is_true(tries < 20 * kills, "the command ends before it is killed")
      local seconds = longest * math.random()
      local _, status = S.shell(("'%s' weights %s >/dev/null & sleep %.3f; kill -9 $! 2>/dev/null; wait $!"):format(S.binary, args,
        seconds))
      if status == 137 then
        killed = killed + 1
        if S.exists(out .. ".journal") then resumed = resumed + 1 else longest = longest * 1.1 end -- a busy machine starts slowly
        assert.is_false(S.exists(out) and S.exists(out .. ".journal"))
      else
        assert.are.equal(0, status)
        longest = longest * 0.7
        os.execute(("rm -rf '%s'"):format(out:match "^(.*)/"))
      end
    end
    local text, status = S.shell(("'%s' weights %s"):format(S.binary, args))
    assert.are.equal(0, status, text)
    return resumed
  end

  it("a conversion goes on to the same bytes", function()
    local dir <close> = S.directory()
    local a, b = dir.path .. "/a", dir.path .. "/b"
    assert(convert.convert(S.tiny, a, { dtype = "fp8", ranks = 2 }))
    local resumed = torment(("convert '%s' '%s' --dtype fp8 --ranks 2 --sync 1"):format(S.tiny, b), S.pack_path(b, 0, 2), KILLS)
    for rank = 0, 1 do S.assert_same_file(S.pack_path(a, rank, 2), S.pack_path(b, rank, 2)) end
    assert.is_true(resumed > 0)
    assert.is_false(S.exists(S.pack_path(b, 0, 2) .. ".part"))
    assert.is_false(S.exists(b .. "/conversion.part.json"))
  end)

  it("a reshard too", function()
    local dir <close> = S.directory()
    local a, b, c = dir.path .. "/a", dir.path .. "/b", dir.path .. "/c"
    assert(convert.convert(S.tiny, a, { dtype = "fp8", ranks = 4 }))
    assert(convert.convert(S.tiny, b, { dtype = "fp8", ranks = 2 }))
    torment(("reshard '%s' '%s' --ranks 2"):format(a, c), S.pack_path(c, 0, 2), KILLS)
    for rank = 0, 1 do S.assert_same_file(S.pack_path(b, rank, 2), S.pack_path(c, rank, 2)) end
  end)
end)

describe("Ctrl-C", function()
  it("is told that the same command goes on", function()
    local show = require "mav.weights_tools.show"
    local ok, err = pcall(show.resumable, function() error "interrupted!" end)
    assert.is_false(ok)
    assert.is_truthy(err:find("interrupted!", 1, true))
    ok, err = pcall(show.resumable, function() error({ code = "IO" }, 0) end)
    assert.are.same({ false, { code = "IO" } }, { ok, err })
    assert.are.same({ 1, 2 }, { show.resumable(function(...) return ... end, 1, 2) })
    if not S.binary then return end
    local dir <close> = S.directory()
    S.write(dir.path .. "/r.lua", "return function() io.popen('kill -INT $PPID'):close() for _ = 1, 1e7 do end end")
    local out, status = S.shell(("'%s' weights convert '%s' '%s/out' --recipe '%s/r.lua'"):format(S.binary, S.tiny, dir.path, dir.path))
    assert.are.equal(130, status, out)
    assert.is_truthy(out:find("^\nThe same command goes on where this one was.\nmav weights convert: .*interrupted"), out)
  end)
end)

--- Stops a conversion inside: at every block in turn, at tensors and their scales, by an error out of its progress.
describe("stopped", function()
  it("at any block, it goes on to the same bytes and the same report", function()
    local dir <close> = S.directory()
    local source, a, b = S.model_dir "maverick_mm", dir.path .. "/a", dir.path .. "/b"
    local options = { dtype = "fp8", ranks = 2, chunk_bytes = 4096, sync_bytes = 1 }
    local whole = assert(convert.convert(source, a, options))
    local stops = 0
    for stop = 1, S.is_full and 1000 or 30 do
      local count = 0
      options.progress = function()
        count = count + 1
        if count == stop * (S.is_full and 1 or 7) then error({ code = "STATE" }) end
      end
      local report, err = convert.convert(source, b, options)
      if report then
        assert.are.same(whole.errors, report.errors)
        break
      end
      assert.are.same({ code = "STATE" }, err)
      stops = stops + 1
    end
    options.progress = nil
    assert(convert.convert(source, b, options))
    assert.is_true(stops > 5)
    for rank = 0, 1 do S.assert_same_file(S.pack_path(a, rank, 2), S.pack_path(b, rank, 2)) end
  end)

  it("between the names of two packs, it goes on", function()
    local dir <close> = S.directory()
    local a, b = dir.path .. "/a", dir.path .. "/b"
    assert(convert.convert(S.model_dir "maverick_mm", a, { ranks = 2 }))
    assert(convert.convert(S.model_dir "maverick_mm", b, { ranks = 2 }))
    os.remove(S.pack_path(b, 1, 2))
    local report = assert(convert.convert(S.model_dir "maverick_mm", b, { ranks = 2 }))
    assert.is_true(report.resumed)
    S.assert_same_file(S.pack_path(a, 1, 2), S.pack_path(b, 1, 2))
  end)
end)

describe("what is there", function()
  it("of another conversion is not touched, unless --fresh", function()
    local dir <close> = S.directory()
    local source = S.model_dir "maverick_mm"
    assert(convert.convert(source, dir.path, { dtype = "fp8" }))
    local before = S.read(S.pack_path(dir.path, 0, 1))
    local ok, err = convert.convert(source, dir.path, { dtype = "bf16" })
    assert.is_nil(ok)
    assert.are.equal("STATE", err.code)
    assert.is_truthy(tostring(err):find("model-00000-of-00001.mav: is there already", 1, true), tostring(err))
    assert.are.equal(before, S.read(S.pack_path(dir.path, 0, 1)))
    assert(convert.convert(source, dir.path, { dtype = "bf16", fresh = true }))
    assert.are.equal("bf16", S.packs(dir.path, 1)[1]:info("layers.0.gate").dtype)
  end)

  it("unfinished, of another conversion: says so", function()
    local dir <close> = S.directory()
    local source = S.model_dir "maverick_mm"
    local options = { dtype = "fp8", progress = function(done) if done > 1e5 then error { code = "STATE" } end end }
    assert.is_nil((convert.convert(source, dir.path, options)))
    local ok, err = convert.convert(source, dir.path, { dtype = "bf16" })
    assert.is_nil(ok)
    assert.is_truthy(tostring(err):find("model-00000-of-00001.mav", 1, true), tostring(err))
    assert.is_truthy(tostring(err):find("give --fresh to start over", 1, true), tostring(err))
    assert(convert.convert(source, dir.path, { dtype = "bf16", fresh = true }))
  end)
end)

describe("the source", function()
  --- A copy of a model, to change.
  local function copy(dir)
    S.copy_directory(S.model_dir "maverick_mm", dir)
    return dir
  end

  it("without a shard: names it, makes nothing", function()
    local dir <close> = S.directory()
    local source = copy(dir.path .. "/m")
    os.remove(source .. "/model-00003-of-00007.safetensors")
    local ok, err = convert.convert(source, dir.path .. "/out")
    assert.is_nil(ok)
    assert.is_truthy(tostring(err):find("model-00003-of-00007.safetensors", 1, true), tostring(err))
    assert.is_false(S.exists(dir.path .. "/out"))
  end)

  it("changed between two runs: says what, and that --fresh starts over", function()
    local dir <close> = S.directory()
    local source, out = copy(dir.path .. "/m"), dir.path .. "/out"
    local options = { dtype = "fp8", chunk_bytes = 4096, sync_bytes = 1,
      progress = function(done) if done > 1e5 then error { code = "STATE" } end end }
    assert.is_nil((convert.convert(source, out, options)))
    assert(os.execute(("touch -d '2001-02-03 04:05:06' '%s/model-00003-of-00007.safetensors'"):format(source)))
    options.progress = nil
    local ok, err = convert.convert(source, out, options)
    assert.is_nil(ok)
    local text = tostring(err)
    assert.is_truthy(text:find("model-00003-of-00007.safetensors: changed since the conversion", 1, true), text)
    assert.is_truthy(text:find("2001-02-03 04:05:06", 1, true), text)
    assert.is_truthy(text:find("--fresh", 1, true), text)
    assert.is_false(S.exists(S.pack_path(out, 0, 1)))
    options.fresh = true
    assert(convert.convert(source, out, options))
  end)

  it("changed while it is converted: nothing gets the final name", function()
    local dir <close> = S.directory()
    local source, out, done = copy(dir.path .. "/m"), dir.path .. "/out", false
    local ok, err = convert.convert(source, out, { ranks = 2, progress = function(bytes)
      if done or bytes < 1e5 then return end
      done = true
      assert(os.execute(("touch '%s/model-00003-of-00007.safetensors'"):format(source)))
    end })
    assert.is_nil(ok)
    assert.is_truthy(tostring(err):find("model-00003-of-00007.safetensors: changed while it was converted", 1, true), tostring(err))
    for rank = 0, 1 do assert.is_false(S.exists(S.pack_path(out, rank, 2))) end
  end)

  it("with values that FP8 has no code for: says where", function()
    local dir <close> = S.directory()
    local tensors = S.tensors "maverick"
    for i, value in ipairs { math.huge, -math.huge, 0 / 0 } do
      local name = "model.layers.0.feed_forward.gate_proj.weight"
      local t = tensors[name]:contiguous()
      local old = t:get(3, 5)
      t:set(3, 5, value)
      S.checkpoint(dir.path, S.config "maverick", tensors)
      t:set(3, 5, old)
      local ok, err = convert.convert(dir.path, dir.path .. "/out" .. i, { dtype = "fp8" })
      assert.is_nil(ok)
      assert.are.equal("RANGE", err.code)
      assert.is_truthy(tostring(err):find("gate_proj.weight: a value in row 2 is", 1, true), tostring(err))
      assert(convert.convert(dir.path, dir.path .. "/keep" .. i, { dtype = "keep" })) -- as it is, it may stay
    end
  end)
end)

describe_processes("a full disk", function()
  it("is said, leaves no pack, and the command goes on when there is room", function()
    local dir <close> = S.directory()
    local out = dir.path .. "/out"
    local command = ("'%s' weights convert '%s' '%s' --ranks 2 --sync 1"):format(S.binary, S.tiny, out)
    local text, status = S.shell(("trap '' XFSZ; ulimit -f 8000; %s"):format(command)) -- 512 or 1024 bytes each
    assert.are.equal(1, status, text)
    assert.is_truthy(text:find("mav weights convert: ", 1, true), text)
    assert.is_truthy(text:find("model%-0000%d%-of%-00002%.mav"), text)
    for rank = 0, 1 do assert.is_false(S.exists(S.pack_path(out, rank, 2))) end
    text, status = S.shell(command)
    assert.are.equal(0, status, text)
    assert(convert.convert(S.tiny, dir.path .. "/b", { ranks = 2 }))
    for rank = 0, 1 do S.assert_same_file(S.pack_path(dir.path .. "/b", rank, 2), S.pack_path(out, rank, 2)) end
  end)
end)

--- The parts that only packs of several ranks have.
describe("reshard, stopped", function()
  it("goes on to the same bytes", function()
    local dir <close> = S.directory()
    local a, b, c = dir.path .. "/a", dir.path .. "/b", dir.path .. "/c"
    assert(convert.convert(S.model_dir "maverick_mm", a, { ranks = 4 }))
    assert(convert.convert(S.model_dir "maverick_mm", b, { ranks = 2, chunk_bytes = 4096 }))
    for stop = 10, 100, 30 do
      local count = 0
      local ok, err = reshard.reshard(a, c, { ranks = 2, chunk_bytes = 4096, sync_bytes = 1, progress = function()
        count = count + 1
        if count == stop then error { code = "STATE" } end
      end })
      assert.is_true(ok ~= nil or err.code == "STATE", tostring(err))
    end
    assert(reshard.reshard(a, c, { ranks = 2, chunk_bytes = 4096 }))
    for rank = 0, 1 do S.assert_same_file(S.pack_path(b, rank, 2), S.pack_path(c, rank, 2)) end
    assert.is_truthy(mav.pack(S.pack_path(c, 1, 2)):verify "embed")
  end)
end)
