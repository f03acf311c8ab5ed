--- mav weights calibrate: how large the inputs of the linear layers get, over prompts: for static scales of activations.
---
--- The forward pass is that of scripts/maverick, from its unfused parts, with a look at what goes into every weight. The weights are used
--- as stored, without rounding of activations. `mav weights convert --activations` makes scales of the largest values: codes of e4m3
--- reach 448, so that in_scale = max / 448, and nothing that the prompts showed saturates.
local attention = require "mav.maverick.attention"
local cli = require "mav.cli"
local fault = require "mav.maverick.fault"
local mav = require "mav"
local moe = require "mav.maverick.moe"
local packs = require "mav.maverick.packs"
local progress = require "mav.sweep.progress"
local prompts = require "mav.sweep.prompts"
local source = require "mav.weights_tools.source"
local op = mav.op

local calibrate = {}

local ROWS = 128 -- of a forward pass

--- The largest |x|.
local function largest(x)
  local flat = x:contiguous():reshape { 1, x:count() }
  return math.max(op.max { x = flat }:get(1, 1), -op.min { x = flat }:get(1, 1))
end

--- The largest |score x| over rows of x (T, D), scores (T, A).
local function largest_scaled(x, score)
  local T, most = #x, 0.0
  for t = 1, T do
    local value = largest(x:slice(1, t, t))
    for a = 1, score.shape[2] do most = math.max(most, value * score:get(t, a)) end
  end
  return most
end

--- Experts of a layer: what they add to x is returned, (T, D) each.
local function experts(L, h, index, score, note)
  local T, D = table.unpack(h.shape)
  local each = h:reshape { T, 1, D }
  note("expert_gate", largest_scaled(h, score))
  note("expert_up", largest_scaled(h, score))
  local g = op.expert_matmul { x = each, w = L.expert_gate, index = index, score = score }
  local u = op.expert_matmul { x = each, w = L.expert_up, index = index, score = score }
  local z = op.swiglu { gate = g, up = u }
  note("expert_down", largest(z))
  return op.expert_matmul { x = z, w = L.expert_down, index = index } -- (T, top_k, D)
end

local function feed_forward(L, x, note)
  local h = op.rmsnorm { x = x, w = L.ffn_norm, eps = L.eps }
  note("gate", largest(h))
  note("up", largest(h))
  local z = op.swiglu { gate = op.matmul { x = h, w = L.gate }, up = op.matmul { x = h, w = L.up } }
  note("down", largest(z))
  local y = op.matmul { x = z, w = L.down }
  if L.router then
    local index, score = moe.route_unfused(L, x)
    local routed = experts(L, h, index, score, note)
    for a = 1, L.top_k do y = op.add { a = y, b = routed:select(2, a) } end
  end
  return op.add { a = x, b = y }
end

--- One pass: note(name, value) for the input of every linear layer. Returns the residual stream.
function calibrate.forward(W, rows, kv, note)
  local x = op.embed { rows = rows, table = W.embed }
  for i, L in ipairs(W.layers) do
    local function note_layer(key, value) note(("layers.%d.%s"):format(i - 1, key), value) end
    local h = op.rmsnorm { x = x, w = L.attn_norm, eps = L.eps }
    for _, key in ipairs(L.qkv and { "qkv" } or { "q", "k", "v" }) do note_layer(key, largest(h)) end
    local q = attention.queries_unfused(L, x, rows, kv:layer(i))
    local a = attention.attend(L, q, rows, kv:layer(i))
    note_layer("o", largest(a))
    x = feed_forward(L, attention.project_unfused(L, a, x), note_layer)
  end
  return x
end

--- Largest inputs over lists of ids: { [name] = number }.
---@param model table   maverick.load
---@param lists integer[][]
---@param done function|nil   called after every list
function calibrate.measure(model, lists, done)
  local most = {}
  local function note(name, value) most[name] = math.max(most[name] or 0.0, value) end
  for _, ids in ipairs(lists) do
    local kv = fault.check(model:kv { tokens = #ids, sequences = 1, dtype = "f32" })
    local seq <close> = fault.check(kv:sequence {})
    for first = 1, #ids, ROWS do
      local count = math.min(ROWS, #ids - first + 1)
      local rows = mav.rows(count, { runtime = model.runtime })
      for i = 1, count do rows:set(i, ids[first + i - 1], seq, first + i - 2, i - 1) end
      fault.check(seq:reserve(count))
      calibrate.forward(model.weights, rows, kv, note)
      fault.check(seq:commit(count))
    end
    if done then done() end
  end
  return most
end

--- Packs are mapped, which checks nothing; scales of damaged weights would be wrong and look right. Raises.
local function check_packs(dir)
  local path = packs.find(dir)
  if not path then return true end
  local pack = fault.check(mav.pack(path))
  for _, name in ipairs(pack:names()) do fault.check(pack:check(name)) end
  pack:close()
  return true
end

-- ---- the command ---------------------------------------------------------------------------------------------------------

local EXAMPLE = [[
mav weights calibrate models/tiny-maverick --prompts prompts.txt --out scales.json
mav weights convert models/tiny-maverick /tmp/tiny --dtype fp8 --activations scales.json]]

local function run(arg)
  local p = cli.parser("weights calibrate", "Runs prompts and writes the largest input of every linear layer, for mav weights convert "
    .. "--activations.", EXAMPLE)
  p:argument("model", "directory of the model"):argname("MODEL")
  p:option("--prompts", "JSON lines { \"prompt\": text }, or texts with blank lines between them"):argname("FILE"):count(1)
  p:option("-o --out", "the file to write"):argname("FILE.json"):count(1)
  p:option("--tokens", "of a prompt, at most (default: 2048)"):argname("N"):convert(cli.integer(1)):default("2048")
  p:option("--threads", "threads of the cpu team (default: one per processor)"):argname("N"):convert(cli.integer(1, 256))
  local args = cli.parse(p, arg)
  local list = prompts.read(args.prompts)
  local ok, wrong = fault.catch(check_packs, args.model)
  if not ok then cli.fail("%s", tostring(wrong)) end
  local model = cli.load { model = args.model, device = "auto", threads = args.threads, activations = "f32" }
  prompts.encode(list, model, 0)
  local lists, tokens = {}, 0
  for i, entry in ipairs(list) do
    lists[i] = table.move(entry.ids, 1, math.min(#entry.ids, args.tokens), 1, {})
    tokens = tokens + #lists[i]
  end
  local line = progress.new(#lists, 0)
  local most = calibrate.measure(model, lists, function() line:step "prompts" end)
  line:finish()
  source.write(args.out, mav.json.encode({ format = "mav.activations", model = args.model, prompts = #lists, tokens = tokens, max = most },
    { indent = 2 }) .. "\n")
  io.write(("%s: %d prompts, %d tokens\n"):format(args.out, #lists, tokens))
  return 0
end

calibrate.summary, calibrate.run = "the largest inputs of the linear layers, over prompts", run
return calibrate
