--- Static scales of activations for a plan, from a file of `mav weights calibrate`.
local fault = require "mav.maverick.fault"
local reader = require "mav.maverick.reader"

local activations = {}

local CODE_MAX = 448 -- of e4m3

--- Gives every FP8 weight of the plan that was quantized here a static scale. Raises where the file has none for it.
function activations.apply(plan, path)
  local file = reader.read_json(path)
  if file.format ~= "mav.activations" or type(file.max) ~= "table" then
    fault.raise("FORMAT", path, "is no file of mav weights calibrate")
  end
  local count = 0
  for _, entry in ipairs(plan) do
    if entry.linear and entry.dtype == "f8" and not entry.parts[1].scale then
      local most = file.max[entry.name]
      if type(most) ~= "number" or not (most >= 0 and most < math.huge) then
        fault.raise("NOTFOUND", path, "has no largest input of %s; calibrate the model that is converted", entry.name)
      end
      entry.act, entry.in_scale = "static", math.max(most, 1e-30) / CODE_MAX
      count = count + 1
    end
  end
  if count == 0 then fault.raise("INVALID", path, "scales of activations are for weights in FP8; convert with --dtype fp8") end
end

return activations
