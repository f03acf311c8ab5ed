--- mav weights calibrate: it sees what the model computes; conversions get static scales of it.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local S = dofile(here .. "/support.lua")
local calibrate = require "mav.weights_tools.calibrate"
local convert = require "mav.weights_tools.convert"
local mav = require "mav"
local maverick = require "mav.maverick"
local op = mav.op

local TEXT = "-- returns the sum of the squares of the list\nlocal function sum_squares(list)\n  local sum = 0\n"

local function rows_of(model, ids)
  local kv = assert(model:kv { tokens = #ids, sequences = 1, dtype = "f32" })
  local seq = assert(kv:sequence {})
  assert(seq:reserve(#ids))
  local rows = mav.rows(#ids, { runtime = model.runtime })
  for i, id in ipairs(ids) do rows:set(i, id, seq, i - 1, i - 1) end
  return rows, kv, seq
end

local function largest(t)
  local flat = t:contiguous():reshape { 1, t:count() }
  return math.max(op.max { x = flat }:get(1, 1), -op.min { x = flat }:get(1, 1))
end

describe("calibrate", function()
  for _, dir in ipairs { S.tiny, S.model_dir "scout", S.model_dir "top2" } do
    it("runs the same model: " .. dir:match "[^/]+$", function()
      local model = assert(maverick.load(dir))
      local ids = {}
      for i = 1, 40 do ids[i] = i * 7 % 300 end
      local expected = {}
      local rows, kv, seq = rows_of(model, ids)
      local x = model:forward(rows, kv, { fused = false, head = "none", tap = function(name, layer, t)
        if name == "attention" then expected[("layers.%d.o"):format(layer - 1)] = largest(t) end
      end })
      local seen, count = {}, 0
      seq:close()
      rows, kv, seq = rows_of(model, ids)
      local y = calibrate.forward(model.weights, rows, kv, function(name, value) seen[name] = value end)
      assert.is_true(x:bytes() == y:bytes())
      seq:close()
      for name, value in pairs(expected) do assert.are.equal(value, seen[name]) end
      for i, L in ipairs(model.weights.layers) do
        for _, key in ipairs { "qkv", "o", "gate", "up", "down", "expert_gate", "expert_up", "expert_down" } do
          local value = seen[("layers.%d.%s"):format(i - 1, key)]
          assert.are.equal(L[key] ~= nil, value ~= nil)
          assert.is_true(value == nil or value > 0 and value < 1e4)
          count = count + (value and 1 or 0)
        end
      end
      assert.is_true(count >= 10)
    end)
  end

  it("takes long texts in pieces, to the same numbers", function()
    local model = assert(maverick.load(S.tiny))
    local ids = {}
    for i = 1, 300 do ids[i] = i * 13 % 1000 end
    local whole, seen = calibrate.measure(model, { ids }), {}
    local rows, kv, seq = rows_of(model, ids)
    calibrate.forward(model.weights, rows, kv, function(name, value) seen[name] = value end)
    seq:close()
    assert.are.same(seen, whole)
    assert.are.same(whole, calibrate.measure(model, { { table.unpack(ids, 1, 50) }, ids }))
  end)

  local it_runs = S.binary and it or pending
  it_runs("gives conversions static scales, and the model still says the same", function()
    local dir <close> = S.directory()
    S.write(dir.path .. "/prompts.txt", TEXT .. "\n-- joins two strings\n")
    local out, status = S.shell(("'%s' weights calibrate '%s' --prompts '%s/prompts.txt' --out '%s/scales.json'"):format(S.binary, S.tiny,
      dir.path, dir.path))
    assert.are.equal(0, status, out)
    local scales = assert(mav.json.decode(S.read(dir.path .. "/scales.json")))
    assert.are.equal(2, scales.prompts)
    out, status = S.shell(("'%s' weights convert '%s' '%s/out' --dtype fp8 --activations '%s/scales.json'"):format(S.binary, S.tiny,
      dir.path, dir.path))
    assert.are.equal(0, status, out)
    local pack = S.packs(dir.path .. "/out", 1)[1]
    for name, value in pairs(scales.max) do
      local info = pack:info(name)
      assert.are.equal("static", info.act)
      assert.is_true(math.abs(info.in_scale * 448 / value - 1) < 1e-6)
    end
    assert.are.equal("none", pack:info("layers.1.router").act)
    local function logits(from)
      local model = assert(maverick.load(from))
      local rows, kv, seq = rows_of(model, assert(model:encode(TEXT)))
      local t = model:forward(rows, kv)
      seq:close()
      return t
    end
    local a, b = logits(S.tiny), logits(dir.path .. "/out")
    local signal, noise = op.mean { x = op.mul { a = a, b = a }:reshape { 1, a:count() } }:get(1, 1), a - b
    noise = op.mean { x = op.mul { a = noise, b = noise }:reshape { 1, a:count() } }:get(1, 1)
    assert.is_true(noise / signal < 0.03, ("%.4f"):format(noise / signal))
  end)

  it("files that do not belong to the model are refused", function()
    local dir <close> = S.directory()
    local path = dir.path .. "/s.json"
    local function message(text, dtype)
      S.write(path, text)
      local ok, err = convert.convert(S.tiny, dir.path .. "/out", { dtype = dtype or "fp8", activations = path })
      assert.is_nil(ok)
      return tostring(err)
    end
    assert.is_truthy(message("{}"):find("is no file of mav weights calibrate", 1, true))
    assert.is_truthy(message('{"format":"mav.activations","max":{}}'):find("has no largest input of layers.0.qkv", 1, true))
    assert.is_truthy(message('{"format":"mav.activations","max":{}}', "keep"):find("convert with --dtype fp8", 1, true))
  end)
end)
