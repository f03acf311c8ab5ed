--- Tensors on disk under the names they have there, whatever the files: a Hugging Face directory, a safetensors file, a pack, a directory
--- of packs (all ranks as one), a GGUF file. Opening reads headers only.
---
--- Every tensor is E groups of N rows of K columns, as in shard.lua; 0 to 2 dimensions are one group, more than 3 too.
---
---   kind      "hf", "safetensors", "pack", "packs", "gguf"
---   files     { { name =, bytes = }, ... }
---   names     in the order of the files
---   entries   by name: name, dtype, shape, layout, bytes, stored, scale (a name), act, in_scale, cut (shard.lua), copies,
---             is_scale (of another one, in packs), raw (nothing of it is compressed), file, unreadable (why no tensor can be made of it)
---   meta      of packs; metadata of a GGUF file
---   ranks     of packs
local fault = require "mav.maverick.fault"
local find_pack = require("mav.maverick.packs").find
local mav = require "mav"
local reader = require "mav.maverick.reader"
local whole = require "mav.weights_tools.whole"
local op = mav.op

local store = {}

local WIDTH = { f32 = 4, bf16 = 2, f16 = 2, f8 = 1, i32 = 4, i64 = 8, u8 = 1 }
local BLOCK, UNPACKED_BLOCK = 1 << 20, 8 << 20 -- elements; of compressed tensors, whose chunks are 16 MiB
local ROWS_MULTIPLE = 16 -- layouts want whole tiles

local Store = {}
Store.__index = Store

--- E, N, K.
function Store:geometry(name)
  local shape = self.entries[name].shape
  if #shape == 3 then return table.unpack(shape) end
  local N = 1
  for i = 1, #shape - 1 do N = N * shape[i] end
  return 1, N, shape[#shape] or 1
end

--- Calls f(group, first, last) for blocks of rows [first, last) of at most about `elements` elements; a false result ends it.
function Store:each_block(name, f, elements)
  local E, N, K = self:geometry(name)
  if K == 0 then return end
  local limit = math.max(1, (elements or (self.entries[name].raw and BLOCK or UNPACKED_BLOCK)) // K)
  if limit > ROWS_MULTIPLE then limit = limit // ROWS_MULTIPLE * ROWS_MULTIPLE end
  if self.entries[name].layout ~= "row" then limit = math.max(limit, ROWS_MULTIPLE) end
  for e = 1, E do
    for first = 0, N - 1, limit do
      if f(e, first, math.min(N, first + limit)) == false then return end
    end
  end
end

--- Rows [first, last) of a group as (n, K), in the type of the files; read only, perhaps on the file.
function Store:block(name, group, first, last)
  local entry = self.entries[name] or fault.raise("NOTFOUND", self.path, "no tensor %s", name)
  if entry.unreadable then fault.raise("UNSUPPORTED", self.path, "tensor %s: %s", name, entry.unreadable) end
  return self.read(self, entry, group, first, last)
end

--- Codes of a type as a tensor.
local function typed(bytes, dtype, n, K) return mav.tensor(bytes:bytes(), { dtype = dtype, shape = { n, K } }) end

--- What the rows of a block are multiplied by: f32, (n, 1), (1, K) or (1, 1); nil: nothing.
function Store:scales(name, group, first, last)
  local entry = self.entries[name]
  if not entry.scale then return nil end
  local E, N, K = self:geometry(name)
  self.scale_cache = self.scale_cache or {}
  local s = self.scale_cache[name]
  if not s then
    local of = self.entries[entry.scale] or fault.raise("NOTFOUND", self.path, "tensor %s: no scale %s is there", name, entry.scale)
    local groups, rows, columns = self:geometry(of.name)
    local all = mav.zeros { dtype = "f32", groups * rows, columns }
    self:each_block(of.name, function(e, a, b)
      local at = (e - 1) * rows
      all:slice(1, at + a + 1, at + b):copy_from(self:block(of.name, e, a, b))
    end)
    s = all:reshape { all:count() }
    self.scale_cache = { [name] = s } -- one at a time: tensors are read one after the other
  end
  local count, at = s:count(), (group - 1) * N + first
  if count == 1 then return s:reshape { 1, 1 } end
  if entry.scale_of == "columns" and count == E * K then return s:slice(1, (group - 1) * K + 1, group * K):reshape { 1, K } end
  if count == E * N then return s:slice(1, at + 1, at + last - first):reshape { last - first, 1 } end
  if count == E then return s:slice(1, group, group):reshape { 1, 1 } end
  fault.raise("SHAPE", self.path, "tensor %s has shape %s, its scale %s has %d elements", name, fault.shape(entry.shape), entry.scale,
    count)
end

--- The same rows as f32, (n, K): codes times scales. A new tensor.
function Store:values(name, group, first, last)
  local x = op.cast { x = self:block(name, group, first, last), dtype = "f32" }
  local scale = self:scales(name, group, first, last)
  return scale and op.mul { a = x, b = scale, out = x } or x
end

-- ---- safetensors -----------------------------------------------------------------------------------------------------------

local function size_of(path)
  local file = io.open(path, "rb")
  if not file then return 0 end
  local size = file:seek "end"
  file:close()
  return size
end

--- Which file of a directory holds which tensor; nil: model.safetensors holds all.
local function weight_map(dir)
  if reader.exists(dir .. "/model.safetensors") then return nil end
  local map = reader.read_json(dir .. "/model.safetensors.index.json").weight_map
  return type(map) == "table" and map or nil
end

--- The name of a weight's scale in compressed-tensors and in ModelOpt checkpoints.
local function scale_name(name) return (name:match "^(.*%.)weight$" or name .. "_") .. "weight_scale" end

local function open_safetensors(path, is_directory)
  local w = fault.check(mav.weights(path))
  local map = is_directory and weight_map(path) or nil
  local single = is_directory and "model.safetensors" or path:match "[^/]*$"
  local self = { kind = is_directory and "hf" or "safetensors", path = path, names = w:names(), entries = {}, files = {} }
  local seen = {}
  for _, name in ipairs(self.names) do
    local info = w:info(name)
    local scale = info.dtype == "f8" and w:info(scale_name(name)) or nil
    local file = map and map[name] or single
    self.entries[name] = { name = name, dtype = info.dtype, shape = info.shape, layout = "row", bytes = info.bytes, stored = info.bytes,
      scale = scale and scale_name(name), file = file, unreadable = info.unreadable, raw = true, copies = 1,
      scale_of = scale and #info.shape == 3 and #scale.shape == 3 and scale.shape[2] == 1 and "columns" or nil } -- experts (E, K, N)
    if not seen[file] then
      seen[file] = true
      table.insert(self.files, { name = file, bytes = size_of(is_directory and path .. "/" .. file or path) })
    end
  end
  table.sort(self.files, function(a, b) return a.name < b.name end)
  function self.read(s, entry, group, first, last)
    local t = fault.check(w:get(entry.name))
    local E, N, K = s:geometry(entry.name)
    t = t:reshape { E, N, K }:select(1, group)
    return t:slice(1, first + 1, last)
  end
  self.weights = w
  return self
end

-- ---- packs -------------------------------------------------------------------------------------------------------------------

local function open_packs(path, packs, kind)
  local items = whole.items(packs)
  local self = { kind = kind, path = path, names = {}, entries = {}, files = {}, meta = packs[1].meta, ranks = #packs, items = {} }
  for i, item in ipairs(items) do
    self.names[i], self.items[item.name] = item.name, item
    self.entries[item.name] = { name = item.name, dtype = item.dtype, shape = item.shape, layout = item.layout, bytes = item.bytes,
      stored = item.stored, scale = item.scale, act = item.act, in_scale = item.in_scale, cut = item.cut, raw = item.raw,
      is_scale = item.is_scale, copies = item.cut and 1 or #packs, file = #packs == 1 and packs[1].path:match "[^/]*$" or nil }
  end
  for i, pack in ipairs(packs) do self.files[i] = { name = pack.path:match "[^/]*$", bytes = pack.bytes } end
  function self.read(s, entry, group, first, last)
    local E, N, K = s:geometry(entry.name)
    if entry.raw and entry.layout == "row" and (#packs == 1 or not entry.cut) then
      local line = K * WIDTH[entry.dtype]
      fault.check(packs[1]:check(entry.name, ((group - 1) * N + first) * line, (last - first) * line)) -- mapped tensors are not
      local t = fault.check(packs[1]:tensor(entry.name))
      return t:reshape({ E, N, K }):select(1, group):slice(1, first + 1, last)
    end
    local width, item = WIDTH[entry.dtype], s.items[entry.name]
    local bytes = mav.zeros { dtype = "u8", last - first, K * width }
    if #item.shape < 2 or (item.is_scale and #item.shape == 2) then -- (N), (E, N): shard.lua calls each element a row
      for i = 1, last - first do whole.gather(packs, item, first + i, 0, K, bytes:select(1, i):reshape { K, width }) end
    else
      whole.gather(packs, item, group, first, last, bytes)
    end
    return typed(bytes, entry.dtype, last - first, K)
  end
  return self
end

--- One pack as it is: a part of a model, when it is one of several ranks.
local function open_pack(path)
  local pack = fault.check(mav.pack(path))
  local alone = setmetatable({ meta = { shards = {} } }, { __index = function(_, key)
    local value = pack[key]
    if type(value) ~= "function" then return value end
    return function(_, ...) return value(pack, ...) end
  end, __len = function() return #pack end })
  local self = open_packs(path, { alone }, "pack")
  self.meta, self.ranks, self.rank = pack.meta, pack.ranks, pack.rank
  return self
end

-- ---- GGUF --------------------------------------------------------------------------------------------------------------------

--- dtype is the type in the file ("q8_0"); blocks come in f32 where that is no type of tensors.
local function open_gguf(path)
  local file = fault.check(mav.gguf(path))
  local self = { kind = "gguf", path = path, names = file:names(), entries = {}, meta = {}, gguf = file,
    files = { { name = path:match "[^/]*$", bytes = size_of(path) } } }
  for _, key in ipairs(file:keys()) do
    local value, kind = file:value(key)
    self.meta[key] = kind == "array" and ("%d values"):format(#value) or value
  end
  for _, name in ipairs(self.names) do
    local info = file:info(name)
    self.entries[name] = { name = name, dtype = info.type, shape = info.shape, layout = "row", bytes = info.bytes, stored = info.bytes,
      unreadable = info.unreadable, raw = true, copies = 1, file = self.files[1].name }
  end
  function self.read(s, entry, group, first, last)
    local _, N = s:geometry(entry.name)
    local at = (group - 1) * N
    return fault.check(file:rows(entry.name, at + first + 1, at + last))
  end
  return self
end

-- ---- any ----------------------------------------------------------------------------------------------------------------------

local function is_directory(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local _, _, code = file:read(1)
  file:close()
  return code == 21 -- EISDIR
end

local function magic(path)
  local file = io.open(path, "rb")
  local text = file and file:read(8) or ""
  if file then file:close() end
  return text
end

--- Opens what is there. Raises conditions of the world.
---@param path string   a directory or a file
---@return table
function store.open(path)
  path = #path > 1 and path:gsub("/+$", "") or path
  local directory = is_directory(path)
  local self
  if directory == nil then fault.raise("NOTFOUND", path, "no such file or directory") end
  if directory then
    find_pack(path) -- refuses safetensors beside packs
    if whole.ranks(path) then
      self = open_packs(path, whole.open(path), "packs")
    elseif reader.exists(path .. "/model.safetensors") or reader.exists(path .. "/model.safetensors.index.json") then
      self = open_safetensors(path, true)
    else
      fault.raise("NOTFOUND", path, "neither packs (model-00000-of-NNNNN.mav) nor model.safetensors nor its index is there")
    end
  elseif magic(path) == "MAVPACK\n" then
    self = open_pack(path)
  elseif magic(path):sub(1, 4) == "GGUF" then
    self = open_gguf(path)
  else
    self = open_safetensors(path, false)
  end
  setmetatable(self, Store)
  self.bytes = 0
  for _, file in ipairs(self.files) do self.bytes = self.bytes + file.bytes end
  return self
end

return store
