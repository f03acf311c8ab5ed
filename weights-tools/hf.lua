--- Writes safetensors files in the manner of a Hugging Face directory, tensor by tensor as they come: shards, and the index of them.
---
--- A tensor of a list is { name =, dtype = "BF16" (as the format calls it), shape =, bytes = }, and whatever its writer needs. A shard
--- appears under its name when it is whole.
local fault = require "mav.maverick.fault"
local mav = require "mav"
local reader = require "mav.maverick.reader"
local source = require "mav.weights_tools.source"

local hf = {}

hf.DTYPES = { f32 = "F32", bf16 = "BF16", f16 = "F16", f8 = "F8_E4M3", i32 = "I32", i64 = "I64", u8 = "U8" }
hf.WIDTH = { F32 = 4, BF16 = 2, F16 = 2, F8_E4M3 = 1, I32 = 4, I64 = 8, U8 = 1 }

--- Sets bytes of a tensor; returns it.
function hf.sized(t)
  t.bytes = hf.WIDTH[t.dtype]
  for _, size in ipairs(t.shape) do t.bytes = t.bytes * size end
  return t
end

-- ---- which tensor goes where --------------------------------------------------------------------------------------------

--- Cuts the list into runs of at most `limit` bytes, or of one tensor.
function hf.cut(list, limit)
  local shards, room = {}, -1
  for _, t in ipairs(list) do
    if t.bytes > room or #shards == 0 then shards[#shards + 1], room = {}, limit end
    table.insert(shards[#shards], t)
    room = room - t.bytes
  end
  return shards
end

--- Exactly `count` shards, the largest as small as may be.
function hf.partition(list, count)
  if count > #list then fault.raise("INVALID", "--shards " .. count, "there are %d tensors, and a tensor is not divided", #list) end
  local low, high = 0, 0
  for _, t in ipairs(list) do
    low, high = math.max(low, t.bytes), high + t.bytes
  end
  while low < high do
    local middle = (low + high) // 2
    if #hf.cut(list, middle) <= count then high = middle else low = middle + 1 end
  end
  local shards = hf.cut(list, low)
  while #shards < count do -- halve the one with the most tensors
    local most = 1
    for i, shard in ipairs(shards) do
      if #shard > #shards[most] then most = i end
    end
    local all = shards[most]
    local half = #all // 2
    shards[most] = table.move(all, 1, half, 1, {})
    table.insert(shards, most + 1, table.move(all, half + 1, #all, 1, {}))
  end
  return shards
end

--- The 8 bytes and the JSON before a shard's data. Sets the tensors' order: wide elements first, so that all are aligned.
local function header_of(shard)
  for i, t in ipairs(shard) do t.order = i end
  table.sort(shard, function(a, b)
    if hf.WIDTH[a.dtype] ~= hf.WIDTH[b.dtype] then return hf.WIDTH[a.dtype] > hf.WIDTH[b.dtype] end
    return a.order < b.order
  end)
  local entries, at = { __metadata__ = { format = "pt" } }, 0
  for _, t in ipairs(shard) do
    entries[t.name] = { dtype = t.dtype, shape = mav.json.array(t.shape), data_offsets = mav.json.array { at, at + t.bytes } }
    at = at + t.bytes
  end
  local text = mav.json.encode(entries)
  return ("<I8"):pack(#text + -#text % 8) .. text .. (" "):rep(-#text % 8)
end

-- ---- files ------------------------------------------------------------------------------------------------------------------

--- What writers of tensors write to.
local Out = {}
Out.__index = Out

local function fail(path, err) fault.raise("IO", path, "%s", (tostring(err):gsub("^.-: ", ""))) end

--- Appends a string.
function Out:write(text)
  local ok, err = self.file:write(text)
  if not ok then fail(self.path, err) end
  self.at, self.is_hole = self.at + #text, false
end

--- Leaves a hole of zeros, which takes no disk.
function Out:skip(bytes)
  if bytes == 0 then return end
  local ok, err = self.file:seek("cur", bytes)
  if not ok then fail(self.path, err) end
  self.at, self.is_hole = self.at + bytes, true
end

local function write_all(out, shard, put)
  out:write(header_of(shard))
  for _, t in ipairs(shard) do
    local begin = out.at
    put(out, t)
    assert(out.at - begin == t.bytes, t.name)
  end
  if out.is_hole then -- a file is as long as what was written last
    out.file:seek("cur", -1)
    out.at = out.at - 1
    out:write "\0"
  end
end

local function write_shard(path, shard, put)
  local part = path .. ".part"
  local file, err = io.open(part, "wb")
  if not file then fail(part, err) end
  local ok, why = pcall(write_all, setmetatable({ file = file, path = part, at = 0 }, Out), shard, put)
  local closed, reason = file:close() -- what could not be written may be told here
  if ok and not closed then ok, why = pcall(fail, part, reason) end
  if ok then
    local renamed, wrong = os.rename(part, path)
    if not renamed then ok, why = pcall(fail, path, wrong) end
  end
  if not ok then
    os.remove(part)
    error(why, 0)
  end
end

--- Writes shards into a directory: model.safetensors, or model-00001-of-000NN.safetensors and their index.
---@param put function   (out, t): out:write(bytes) or out:skip(count), until all t.bytes are there
---@return string[] files
function hf.write(dir, shards, put)
  local files, map, total = {}, {}, 0
  for i, shard in ipairs(shards) do
    files[i] = #shards == 1 and "model.safetensors" or ("model-%05d-of-%05d.safetensors"):format(i, #shards)
    local ok, err = pcall(write_shard, dir .. "/" .. files[i], shard, put)
    if not ok then
      for k = 1, i - 1 do os.remove(dir .. "/" .. files[k]) end -- a part of a model is none
      error(err, 0)
    end
    for _, t in ipairs(shard) do
      map[t.name], total = files[i], total + t.bytes
    end
  end
  if #shards > 1 then
    source.write(dir .. "/model.safetensors.index.json", mav.json.encode({ metadata = { total_size = total }, weight_map = map },
      { indent = 2 }) .. "\n")
  end
  return files
end

local OF_A_MODEL = { "config.json", "model.safetensors.index.json", "hf_quant_config.json", "model*.safetensors", "model-*-of-*.mav",
  "model-*-of-*.mav.part", "model-*-of-*.mav.journal", "conversion.part.json" } -- patterns of the shell

--- Makes a directory for a model; one that is there is replaced only with `force`: its safetensors, or packs, and config.json.
function hf.prepare(dir, force)
  local at = source.quoted(dir)
  if reader.exists(dir .. "/config.json") or os.execute(("ls -- %s/model-*-of-*.mav >/dev/null 2>&1"):format(at)) == true then
    if not force then fault.raise("STATE", dir, "a model is there already; give another directory, or --force to replace it") end
    local words = {}
    for i, pattern in ipairs(OF_A_MODEL) do words[i] = at .. "/" .. pattern end
    os.execute("rm -f -- " .. table.concat(words, " "))
  end
  source.make_directory(dir)
end

return hf
