-- examples/12_device.lua - where tensors live: a runtime for a device, the default runtime, weights in a device's own order.
-- Run it with `mav examples/12_device.lua [cuda|cpu|ref]`; without a word, on a GPU where there is one.
local mav = require "mav"
local op = mav.op

-- A device that is not there is nil and an error, which says what is missing. "auto" takes a GPU where there is one, else the processor,
-- and `fallback` says why.
local device, err = mav.runtime { device = arg and arg[1] or "auto" }
if not device then
  print(err)
  os.exit(1)
end
print(device, device.fallback or "")

-- Constructors take the runtime by name, or use the default one of this Lua state; it is made (device "auto") when first asked for.
local cpu = assert(mav.runtime { device = "cpu", threads = 1 })
local there = mav.tensor({ 1, 2, 3 }, { runtime = cpu })
mav.default_runtime(device)
local here = mav.tensor { 10, 20, 30 }
print(here, there)

-- An op takes tensors of one runtime. copy_from crosses, between contiguous tensors of one dtype.
assert(not pcall(function() return here + there end))
assert((here + mav.zeros({ 3 }):copy_from(there)):get(3) == 33)

-- shuffle gives FP8 weights the order in which the products of cuda read them; on other devices it returns the tensor itself, so a
-- script need not ask. What comes back can be a weight and nothing else.
local N, D = 32, 64
local values = { shape = { N, D } }
for i = 1, N * D do values[i] = math.sin(i) end
local w = mav.tensor(values):quantize()
local fast = w:shuffle()
assert(fast.is_shuffled == (device.device == "cuda"))

local x = mav.tensor(1, { shape = { 2, D } })
local y, plain = op.matmul { x = x, w = fast }, op.matmul { x = x, w = w }
for i = 1, N do assert(math.abs(y:get(1, i) - plain:get(1, i)) < 1e-4) end

-- Ops may return before the device is done; reading a value waits. A graph belongs to one runtime: the default one, or that of runtime =.
local step = mav.graph({ rows = 1, runtime = device }, function(_) return op.matmul { x = x, w = fast } end)
step:launch():wait()
assert(step[1]:get(2, N) == y:get(2, N))
print(y, y:get(2, N))
