--- mav bench --shape: a step of a model's shape with random weights, as one of several ranks would run it, without communication.
---
--- For every number of rows a graph of the forward pass and the choice of a token is captured and replayed; one of embedding, head and
--- choice alone is taken off for the time of a layer. Bytes are those that must be read: weights once, of the experts those that the rows
--- hit (counted), the cache once. Their share is of what the device's memory gives when it is only read.
local mav = require "mav"
local cli = require "mav.cli"
local op = mav.op
local profile = require "mav.bench.profile"
local random_model = require "mav.bench.random_model"
local shape = require "mav.bench.shape"

local layers = {}

local PROMPT_ROWS = 512
local TIMES_MIN, LAUNCHES_WARM = 10, 3

local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2]
end

--- Replays for about `seconds`; median microseconds.
local function time(graph, seconds)
  for _ = 1, LAUNCHES_WARM do graph:launch():wait() end
  local times, started = {}, mav.now()
  repeat
    local t = mav.now()
    graph:launch():wait()
    times[#times + 1] = mav.now() - t
  until #times >= TIMES_MIN and mav.now() - started > seconds
  return median(times) * 1e6
end

--- A sequence that holds `context` random tokens.
local function fill_context(model, kv, context)
  local seq = assert(kv:sequence())
  local done = 0
  while done < context do
    local n = math.min(PROMPT_ROWS, context - done)
    local rows = mav.rows(n, { runtime = model.runtime })
    assert(seq:reserve(n))
    for i = 1, n do rows:set(i, math.random(0, model.config.vocab - 1), seq, done + i - 1, i - 1) end
    model:forward(rows, kv, { head = "none" })
    assert(seq:commit(n))
    done = done + n
  end
  return seq
end

local function random_rows(model, seq, n, context)
  local rows = mav.rows(n, { runtime = model.runtime })
  for i = 1, n do rows:set(i, math.random(0, model.config.vocab - 1), seq, context + i - 1, i - 1) end
  return rows
end

--- Different experts that the rows hit, a MoE layer.
local function count_experts(model, kv, rows, options)
  local c, moe = model.config, 0
  for i = 1, c.layers do moe = moe + (c.is_moe[i] and 1 or 0) end
  if moe == 0 then return 0, 0 end
  local total = mav.zeros { c.layers, dtype = "i32", runtime = model.runtime }
  model:forward(rows, kv, { head = "none", fused = options.fused, tap = function(name, layer, t)
    if name == "router_index" then op.count_distinct { index = t, total = total, at = layer - 1 } end
  end })
  local sum = 0
  for i = 1, c.layers do sum = sum + total:get(i) end
  return sum / moe, moe
end

local function measure(model, kv, seq, n, options)
  local rt, rows = model.runtime, random_rows(model, seq, n, options.context)
  local function capture(list)
    return mav.graph({ rows = rows, runtime = rt }, function(r)
      return op.argmax { x = model:forward(r, kv, { fused = options.fused, layers = list }) }
    end)
  end
  local graph, ends, L = capture(), capture {}, model.config.layers
  local us, us_ends = time(graph, options.seconds), time(ends, options.seconds / 4)
  local stats, stats_ends = graph:stats(), ends:stats()
  local experts = count_experts(model, kv, rows, options)
  local bytes = model:step_bytes(n, options.context + n, kv.dtype, experts)
  return { rows = n, us_per_step = us, us_per_layer = (us - us_ends) / L, us_ends = us_ends, experts_per_layer = experts,
    kernels = stats.kernels, kernels_per_layer = (stats.kernels - stats_ends.kernels) / L,
    bytes_per_step = bytes, gb_per_s = bytes / us / 1e3, share = bytes / us / 1e3 / options.bandwidth, profile = profile.of(graph) }
end

--- As measure; where the core fails, which takes no other number of rows with it, a step of { rows, reason }.
local function try(model, kv, seq, n, options)
  local ok, step = pcall(measure, model, kv, seq, n, options)
  if ok then return step end
  if type(step) ~= "table" or not step.code then error(step, 0) end
  return { rows = n, reason = ("%s: %s (%s)"):format(step.op, step.message, step.code) }
end

--- Everything that was measured, as one table. args: the options of the command.
function layers.measure(args, runtime)
  local c = shape.config(args.shape, args)
  local rt = runtime or assert(cli.runtime(args))
  mav.default_runtime(rt)
  local dtype = ({ fp8 = "f8" })[args.dtype or "fp8"] or args.dtype
  local off, started = os.getenv "MAV_CUDA_OFF", mav.now()
  local model = random_model.new(c, { name = args.shape, runtime = rt, dtype = dtype, activations = args.rounding,
    by_rows = args.no_shuffle })
  local context = args.context
  local most = args.rows[1]
  for _, n in ipairs(args.rows) do most = math.max(most, n) end
  local kv = assert(model:kv { tokens = context + most, context_max = context + most, sequences = 1, dtype = args.kv or "fp8" })
  local seq = fill_context(model, kv, context)
  assert(seq:reserve(most))
  local bandwidth = model:measure_bandwidth()
  local ready = mav.now() - started
  local result = { shape = args.shape, tp = args.tp, layers = c.layers, experts = c.experts, vocab = c.vocab, context = context,
    dtype = args.dtype or "fp8", activations = dtype == "f8" and args.rounding or "none", kv = kv.dtype, fused = not args.unfused,
    shuffled = model.weights.layers[1].qkv.is_shuffled, off = off ~= "" and off or nil, device = rt.device, isa = rt.isa,
    device_bytes = rt:memory().device_bytes_live, bandwidth_gb_per_s = bandwidth, ready_s = ready, steps = {} }
  for _, n in ipairs(args.rows) do
    result.steps[#result.steps + 1] = try(model, kv, seq, n,
      { context = context, seconds = args.seconds, fused = not args.unfused, bandwidth = bandwidth })
  end
  return result
end

--- What of a result could not be measured; nil where all was.
function layers.failure(r)
  local list = {}
  for _, s in ipairs(r.steps) do list[#list + 1] = s.reason and tostring(s.rows) or nil end
  return #list > 0 and ("steps of %s rows failed; the result says why"):format(table.concat(list, ", ")) or nil
end

function layers.print(r, args)
  for _, s in ipairs(args.profile and r.steps or {}) do
    if s.profile then profile.print(s.profile, s.rows) end
  end
  print(("%s, one of %d ranks: %d layers, %d experts, %s (activations %s), cache %s of %d tokens"):format(r.shape, r.tp, r.layers,
    r.experts, r.dtype, r.activations, r.kv, r.context))
  print(("%s %s, %.1f GB in use, memory %.1f GB/s%s%s%s"):format(r.device, r.isa, r.device_bytes / 1e9, r.bandwidth_gb_per_s,
    r.fused and "" or ", unfused", r.shuffled and ", shuffled" or "", r.off and ", without " .. r.off or ""))
  print "ends: embedding, head and choice, which a layer's columns leave out; share: of the memory's GB/s (more in mav bench --help)"
  print(("%5s %10s %10s %9s %14s %14s %12s %9s %7s"):format("rows", "us a step", "us a layer", "us ends", "kernels a layer",
    "experts a layer", "MB a step", "GB/s", "share"))
  for _, s in ipairs(r.steps) do
    if s.reason then
      print(("%5d failed: %s"):format(s.rows, s.reason))
    else
      print(("%5d %10.1f %10.2f %9.1f %14.2f %14.2f %12.2f %9.2f %6.1f%%"):format(s.rows, s.us_per_step, s.us_per_layer, s.us_ends,
        s.kernels_per_layer, s.experts_per_layer, s.bytes_per_step / 1e6, s.gb_per_s, 100 * s.share))
    end
  end
end

return layers
