--- Directories and checkpoints that the specs of the scripts make and break.
local mav = require "mav"

local support = {}

local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
support.oracle = here .. "/../oracle/"
support.root = here .. "/../../"

function support.model_dir(name) return support.oracle .. "models/" .. name end

function support.read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("a")
  file:close()
  return text
end

function support.write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

--- A new empty directory; it is removed when the variable is closed: local dir <close> = support.directory()
function support.directory()
  local path = os.tmpname()
  os.remove(path)
  assert(os.execute("mkdir -p '" .. path .. "'"))
  return setmetatable({ path = path }, { __close = function() os.execute("rm -rf '" .. path .. "'") end })
end

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
