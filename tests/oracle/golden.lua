--- Access to the golden numbers of tests/oracle, for the specs.
local mav = require "mav"

local golden = {}

golden.dir = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
golden.models = { "maverick", "maverick_mm", "scout", "top2", "tied", "notemp", "hd128" }

--- Where the specs run: MAV_TEST_DEVICE (cuda, or its emulation), else on the processor and on the reference.
golden.devices = { os.getenv "MAV_TEST_DEVICE" or "cpu", not os.getenv "MAV_TEST_DEVICE" and "ref" or nil }
golden.device = golden.devices[1]

function golden.model_dir(name) return golden.dir .. "/models/" .. name end

function golden.json(path)
  local file = assert(io.open(golden.dir .. "/" .. path, "rb"))
  local text = file:read("a")
  file:close()
  return assert(mav.json.decode(text))
end

--- The tensors of a model's goldens: get(name) -> nested table, has(name), names(); prompts: their names.
function golden.open(name)
  local file = assert(mav.safetensors.open(golden.dir .. "/goldens/" .. name .. "/golden.safetensors"))
  local self = { prompts = {} }
  for _, prompt in ipairs { "short", "long", "mid" } do
    if file:has(prompt .. ".input_ids") then table.insert(self.prompts, prompt) end
  end
  function self.has(key) return file:has(key) end
  function self.names() return file:names() end
  function self.get(key) return assert(file:get(key)):totable() end
  return self
end

local function flatten(value, out)
  if type(value) ~= "table" then
    out[#out + 1] = value
    return out
  end
  for _, entry in ipairs(value) do flatten(entry, out) end
  return out
end

--- A tensor or nested table as one list.
function golden.flat(value)
  return flatten(type(value) == "userdata" and value:totable() or value, {})
end

--- Largest difference over the largest magnitude of `expected`; inf when a value is not finite or the sizes differ.
function golden.error(actual, expected)
  local a, b = golden.flat(actual), golden.flat(expected)
  if #a ~= #b or #a == 0 then return math.huge end
  local largest, scale = 0, 0
  for i = 1, #a do
    local d = math.abs(a[i] - b[i])
    if d ~= d then return math.huge end
    if d > largest then largest = d end
    if math.abs(b[i]) > scale then scale = math.abs(b[i]) end
  end
  return largest / math.max(scale, 1e-30)
end

--- A new sequence that holds nothing, with room for n tokens.
function golden.sequence(model, n, options)
  local kv = assert(model:kv { tokens = n, sequences = 2, dtype = options and options.dtype })
  local seq = assert(kv:sequence {})
  return kv, seq
end

--- Feeds ids as one batch that continues seq; commits them. Results of model:forward.
function golden.feed(model, kv, seq, ids, options)
  local rows = mav.rows(#ids, { runtime = model.runtime })
  local at = #seq
  assert(seq:reserve(#ids))
  for i, id in ipairs(ids) do rows:set(i, id, seq, at + i - 1, i - 1) end
  local y = model:forward(rows, kv, options)
  assert(seq:commit(#ids))
  return y
end

return golden
