--- Conversions of the models here, and what is in their packs.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local mav = require "mav"
local support = dofile(here .. "/../scripts/support.lua")

support.is_full = (os.getenv "MAV_FULL" or "") ~= ""
support.binary = os.getenv "MAV"
support.tiny = support.root .. "models/tiny-maverick"

--- Models that convert for every dtype; the largest number of ranks that they can be cut into.
support.models = {
  { name = "tiny-maverick", dir = support.tiny, ranks = { 1, 2, 4, 8 } },
  { name = "maverick", ranks = { 1, 2 } },
  { name = "maverick_mm", ranks = { 1, 2, 4 } },
  { name = "maverick_ct_fp8", ranks = { 1, 2, 4 } },
  { name = "maverick_modelopt_fp8", ranks = { 1, 2, 4 } },
  { name = "scout_ct_fp8", ranks = { 1 } },
  { name = "tied", ranks = { 1 } },
  { name = "hd128", ranks = { 1 } },
  { name = "top2", ranks = { 1, 2, 4 } },
}
for _, m in ipairs(support.models) do m.dir = m.dir or support.model_dir(m.name) end

function support.pack_path(dir, rank, ranks) return ("%s/model-%05d-of-%05d.mav"):format(dir, rank, ranks) end

function support.packs(dir, ranks)
  local list = {}
  for rank = 0, ranks - 1 do list[rank + 1] = assert(mav.pack(support.pack_path(dir, rank, ranks))) end
  return list
end

function support.exists(path)
  local file = io.open(path, "rb")
  if file then file:close() end
  return file ~= nil
end

--- A copy of a directory's files.
function support.copy_directory(from, to) assert(os.execute(("mkdir -p '%s' && cp -p '%s'/*.* '%s'"):format(to, from, to))) end

--- Changes a byte of a tensor in a pack, of the first chunk.
function support.damage(path, name)
  local pack = assert(mav.pack(path))
  local begin = assert(pack:read(name, 0, math.min(4096, pack:info(name).bytes))):bytes()
  pack:close()
  local text = support.read(path)
  local at = assert(text:find(begin, 1, true)) + 10
  support.write(path, text:sub(1, at - 1) .. string.char(text:byte(at) ~ 4) .. text:sub(at + 1))
end

--- Runs a shell command line: its output and exit status.
function support.shell(line)
  local pipe = io.popen(line .. " 2>&1; echo \" $?\"")
  local text = pipe:read "a"
  pipe:close()
  local out, status = text:match "^(.*) (%d+)\n$"
  return out, tonumber(status)
end

--- Fails unless two files are the same to the byte.
function support.assert_same_file(a, b)
  local out, status = support.shell(("cmp '%s' '%s'"):format(a, b))
  if status ~= 0 then error(out, 2) end
end

return support
