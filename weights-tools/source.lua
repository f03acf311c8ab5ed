--- The files of a conversion's source, and whether they are still what they were when it began.
local fault = require "mav.maverick.fault"
local packs = require "mav.maverick.packs"
local reader = require "mav.maverick.reader"

local source = {}

local function quoted(text) return "'" .. text:gsub("'", "'\\''") .. "'" end
source.quoted = quoted

--- Copied beside the packs where they are there.
source.SIDE_FILES = { "config.json", "generation_config.json", "hf_quant_config.json", "tokenizer.json", "tokenizer_config.json",
  "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
  "preprocessor_config.json", "processor_config.json", "LICENSE", "LICENSE.txt", "USE_POLICY.md" }

--- Names of the files that hold the tensors of a Hugging Face directory.
local function tensor_files(dir)
  local index = dir .. "/model.safetensors.index.json"
  if reader.exists(dir .. "/model.safetensors") or not reader.exists(index) then return { "model.safetensors" } end
  local seen, list = {}, { "model.safetensors.index.json" }
  local map = reader.read_json(index).weight_map
  for _, name in pairs(type(map) == "table" and map or {}) do
    if type(name) == "string" and not seen[name] then
      seen[name], list[#list + 1] = true, name
    end
  end
  table.sort(list)
  return list
end

--- Size and time of last change of every file: { [name] = { bytes =, changed = "seconds" } }.
function source.stamps(dir, names)
  local words = {}
  for i, name in ipairs(names) do words[i] = quoted(dir .. "/" .. name) end
  local stamps = {}
  for first = 1, #words, 500 do
    local pipe = io.popen("stat -L -c '%s %.9Y' -- " .. table.concat(words, " ", first, math.min(first + 499, #words)) .. " 2>/dev/null")
    for i = first, math.min(first + 499, #words) do
      local bytes, changed = (pipe:read "l" or ""):match "^(%d+) ([%d.]+)$"
      if not bytes then
        pipe:close()
        for _, name in ipairs(names) do
          if not reader.exists(dir .. "/" .. name) then fault.raise("NOTFOUND", dir .. "/" .. name, "no such file") end
        end
        fault.raise("IO", dir, "size and time of %s cannot be read", names[i])
      end
      stamps[names[i]] = { bytes = math.tointeger(tonumber(bytes)), changed = changed }
    end
    pipe:close()
  end
  return stamps
end

--- meta.source of a directory.
function source.describe(dir)
  local names = tensor_files(dir)
  names[#names + 1] = "config.json"
  return { dir = dir, files = source.stamps(dir, names) }
end

--- Raises when a file differs from its description.
---@param when string   for the message: "since the conversion began"
function source.check(described, when, advice)
  local names = {}
  for name in pairs(described.files) do names[#names + 1] = name end
  table.sort(names)
  local now = source.stamps(described.dir, names)
  for _, name in ipairs(names) do
    local was, is = described.files[name], now[name]
    if was.bytes ~= is.bytes or was.changed ~= is.changed then
      local function time(stamp) return os.date("%F %T", math.tointeger(tonumber(stamp.changed) // 1)) end
      local how = was.bytes ~= is.bytes and ("%d bytes, before %d"):format(is.bytes, was.bytes)
        or ("last on %s, before on %s"):format(time(is), time(was))
      fault.raise("STATE", described.dir .. "/" .. name, "changed %s (%s)%s", when, how, advice or "")
    end
  end
end

--- Makes a directory, and those above it.
function source.make_directory(dir)
  local pipe = io.popen(("LC_ALL=C mkdir -p -- %s 2>&1"):format(quoted(dir)))
  local said = pipe:read "a"
  if pipe:close() then return end
  local why = said:match ": ([^:\n]+)%s*$"
  fault.raise("IO", dir, "%s", why == "File exists" and "is a file; a directory is expected"
    or ("the directory cannot be made%s"):format(why and ": " .. why or ""))
end

--- Are both paths there, and the same file or directory?
function source.is_same(a, b) return os.execute(("test %s -ef %s"):format(quoted(a), quoted(b))) == true end

--- Makes the directory for packs of what is in `from`. Packs have a directory of their own: beside safetensors nobody could tell which of
--- them are the model.
function source.make_packs_directory(from, out)
  if source.is_same(from, out) then fault.raise("INVALID", out, "is the source itself; give another directory") end
  local name = packs.safetensors(out)
  if name then fault.raise("STATE", out, "%s is there: packs need a directory without safetensors; give another", name) end
  source.make_directory(out)
end

--- Copies the files beside the tensors, each by way of a temporary name.
function source.copy_side_files(from, to)
  for _, name in ipairs(source.SIDE_FILES) do
    local file = io.open(from .. "/" .. name, "rb")
    if file then
      local text = file:read "a"
      file:close()
      if text then source.write(to .. "/" .. name, text) end
    end
  end
end

--- Writes a file whole or not at all.
function source.write(path, text)
  local temporary = path .. ".part"
  local file, err = io.open(temporary, "wb")
  if not file then fault.raise("IO", path, "%s", (err:gsub("^.-: ", ""))) end
  local ok, why = file:write(text)
  if ok then ok, why = file:close() else file:close() end
  if ok then ok, why = os.rename(temporary, path) end
  if not ok then
    os.remove(temporary)
    fault.raise("IO", path, "%s", tostring(why):gsub("^.-: ", "") .. "")
  end
end

return source
