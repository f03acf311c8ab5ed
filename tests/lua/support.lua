--- What the specs of the bridge share.
local mav = require "mav"

local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/../files.lua")

support.here = here
support.root = support.here .. "/../.."
support.model = support.root .. "/tests/oracle/models/maverick"

--- The default runtime of the specs: the reference, one thread; or MAV_TEST_DEVICE.
function support.runtime()
  local rt = assert(mav.runtime { device = os.getenv "MAV_TEST_DEVICE" or "ref" })
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
