-- examples/01_tensor.lua - tensors: make them, look at them, compute with them, quantize them.
-- Run it with `mav examples/01_tensor.lua`, or with a stock lua5.4 that finds mav.so.
local mav = require "mav"
local op = mav.op

-- A tensor is a typed view on device memory. Elements and dimensions count from 1.
local a = mav.tensor { { 1, 2, 3 }, { 4, 5, 6 } }
print(a, "rows:", #a, "element:", a:get(2, 3))
assert(a:get(2, 3) == 6)

-- Views share memory.
local column = a:select(2, 1)
column:set(1, 100)
assert(a:get(1, 1) == 100)
a:set(1, 1, 1)

-- Arithmetic broadcasts as in NumPy; ops take named arguments.
local scaled = a * 2 + mav.tensor { 10, 20, 30 }
scaled:print()
local probabilities = op.softmax { x = a }
probabilities:print()
assert(math.abs(op.sum({ x = probabilities }):get(1, 1) - 1) < 1e-6)

-- Ops with several results return them in order. What indexes a tensor on the device counts from 0.
local best, index = op.topk { x = mav.tensor { 3, 9, 7 }, k = 2 }
assert(best:get(1) == 9 and index:get(1) == 1)

-- Weights may be FP8 with a scale for every output row; ops read them as they are.
local w = mav.tensor { { 0.5, -1, 2 }, { 8, 4, -2 } }
local x = mav.tensor { { 1, 1, 1 } }
local exact = op.matmul { x = x, w = w }
local rounded = op.matmul { x = x, w = w:quantize() }
print(("f32: %.3f %.3f   fp8: %.3f %.3f"):format(exact:get(1, 1), exact:get(1, 2), rounded:get(1, 1), rounded:get(1, 2)))
for i = 1, 2 do assert(math.abs(exact:get(1, i) - rounded:get(1, i)) < 0.1 * math.abs(exact:get(1, i))) end

-- A mistake raises, at the line that made it; what the world lacks is nil and an error object.
print(pcall(function() return a + mav.zeros { 4 } end))
local weights, err = mav.weights "/no/such/directory"
assert(weights == nil and err.code == "NOTFOUND")
print(err)
