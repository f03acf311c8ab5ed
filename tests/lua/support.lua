--- What the specs of the bridge share.
local mav = require "mav"

local support = {}

support.here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
support.root = support.here .. "/../.."
support.model = support.root .. "/tests/oracle/models/maverick"

--- The default runtime of the specs: the reference, one thread.
function support.runtime()
  local rt = assert(mav.runtime { device = "ref" })
  mav.default_runtime(rt)
  return rt
end

--- The error that fn raises, as text; fails when it raises none.
function support.error(fn, ...)
  local ok, err = pcall(fn, ...)
  assert(not ok, "no error was raised")
  return tostring(err)
end

--- Fails unless fn raises an error that contains the plain text.
function support.raises(text, fn, ...)
  local message = support.error(fn, ...)
  assert(message:find(text, 1, true), ("'%s' expected in: %s"):format(text, message))
end

--- Path of a new temporary directory, removed when the value is closed.
function support.directory()
  local path = os.tmpname()
  os.remove(path)
  assert(os.execute("mkdir -p '" .. path .. "'"))
  return setmetatable({ path = path }, { __close = function() os.execute("rm -rf '" .. path .. "'") end })
end

function support.write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

function support.read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("a")
  file:close()
  return text
end

--- The program that runs the specs, or the host beside it.
function support.host() return os.getenv("MAV") or arg[-1] end

--- Runs a shell command: its output (both streams) and exit status.
function support.run(command)
  local pipe = assert(io.popen("( " .. command .. " ) 2>&1", "r"))
  local text = pipe:read("a")
  local _, _, code = pipe:close()
  return text, code
end

return support
