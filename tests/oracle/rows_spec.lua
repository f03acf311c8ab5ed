--- Row independence: rows fed together give, bit for bit, what they give one at a time, whatever their number.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local golden = dofile(here .. "/golden.lua")
local mav = require "mav"
local maverick = require "mav.maverick"

local ROWS_MAX = 16

--- The runtimes of this machine: every instruction set that it has; or the device that is asked for.
local function runtimes()
  if golden.device ~= "cpu" then return { { name = golden.device, rt = assert(mav.runtime { device = golden.device }) } } end
  local list = {}
  for _, isa in ipairs { "avx2", "avx512" } do
    for threads = 1, 2 do
      local ok, rt = pcall(mav.runtime, { device = "cpu", isa = isa, threads = threads })
      if ok and rt then list[#list + 1] = { name = ("cpu %s, %d threads"):format(isa, threads), rt = rt } end
    end
  end
  list[#list + 1] = { name = "ref", rt = assert(mav.runtime { device = "ref" }) }
  return list
end

--- Logits of ids after `before`, fed in groups of n rows.
local function logits(model, before, ids, n)
  local kv, seq = golden.sequence(model, #before + #ids)
  golden.feed(model, kv, seq, before, { head = "none" })
  local out = {}
  for first = 1, #ids, n do
    local group = { table.unpack(ids, first, math.min(first + n - 1, #ids)) }
    for _, row in ipairs(golden.feed(model, kv, seq, group):totable()) do out[#out + 1] = row end
  end
  return out
end

local function same_bits(a, b)
  for t = 1, #a do
    for i = 1, #a[t] do
      if a[t][i] ~= b[t][i] then return false, ("row %d, id %d: %.17g and %.17g"):format(t, i - 1, a[t][i], b[t][i]) end
    end
  end
  return #a == #b
end

for _, entry in ipairs(runtimes()) do
  describe("rows on " .. entry.name, function()
    for _, case in ipairs { { "maverick" }, { "scout" }, { "top2" }, { "hd128", "fp8" }, { "maverick", "fp8" } } do
      local name, dtype = case[1], case[2]
      it(("are independent: %s %s"):format(name, dtype or ""), function()
        local model = assert(maverick.load(golden.model_dir(name), { runtime = entry.rt, dtype = dtype }))
        local all = golden.open(name).get("long.input_ids")
        local before, ids = { table.unpack(all, 1, 11) }, { table.unpack(all, 12, 11 + ROWS_MAX) }
        local alone = logits(model, before, ids, 1)
        for n = 2, ROWS_MAX do
          local ok, why = same_bits(alone, logits(model, before, ids, n))
          assert.is_true(ok, ("%d rows together: %s"):format(n, why))
        end
      end)
    end
  end)
end

describe("instruction sets", function()
  it("agree bit for bit", function()
    local results = {}
    for _, entry in ipairs(runtimes()) do
      if entry.rt.device == "cpu" then
        local model = assert(maverick.load(golden.model_dir "maverick", { runtime = entry.rt }))
        local ids = golden.open("maverick").get("short.input_ids")
        results[#results + 1] = logits(model, { table.unpack(ids, 1, 3) }, { table.unpack(ids, 4) }, 4)
      end
    end
    for i = 2, #results do assert.is_true(same_bits(results[1], results[i])) end
  end)
end)
