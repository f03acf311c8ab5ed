--- Directories and checkpoints that the specs of the scripts make and break.
local mav = require "mav"

local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/../files.lua")

support.oracle = here .. "/../oracle/"
support.root = here .. "/../../"

function support.model_dir(name) return support.oracle .. "models/" .. name end

--- config.json of an oracle model, as a table to change.
function support.config(name) return assert(mav.json.decode(support.read(support.model_dir(name) .. "/config.json"))) end

--- Its tensors by name, to change; they are copies.
function support.tensors(name)
  local file, tensors = assert(mav.safetensors.open(support.model_dir(name) .. "/model.safetensors")), {}
  for _, key in ipairs(file:names()) do tensors[key] = assert(file:get(key)):contiguous() end
  return tensors
end

--- Writes a checkpoint directory.
function support.checkpoint(path, config, tensors)
  support.write(path .. "/config.json", mav.json.encode(config))
  if tensors then assert(mav.safetensors.write(path .. "/model.safetensors", tensors)) end
end

return support
