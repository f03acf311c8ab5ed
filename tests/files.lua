--- Files and directories that specs make: the base that tests/lua/support.lua and tests/scripts/support.lua add to.
local files = {}

function files.read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("a")
  file:close()
  return text
end

function files.write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

--- A new empty directory; it is removed when the variable is closed: local dir <close> = files.directory()
function files.directory()
  local path = os.tmpname()
  os.remove(path)
  assert(os.execute("mkdir -p '" .. path .. "'"))
  return setmetatable({ path = path }, { __close = function() os.execute("rm -rf '" .. path .. "'") end })
end

return files
