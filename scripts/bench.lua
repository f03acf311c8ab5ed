--- mav bench: what a step costs here, and what it should cost.
---
--- decode   one row a step, through the whole session loop; every step feeds another random token, so that routing and memory
---          behave as with real text and not as in a caught loop
--- rows     the captured graph of n rows, as when verifying n - 1 drafts: launches only, median
--- prompt   prefill of 512 tokens
---
--- --shape measures a model's shape instead, with random weights: bench/layers.lua, and with --ablate bench/ablate.lua. Where some of
--- that fails, the rest is measured, printed and saved, what failed with its reason; the exit status is 1.
local cli = require "mav.cli"
local mav = require "mav"
local chain = require "mav.sample.chain"
local profile = require "mav.bench.profile"
local shape = require "mav.bench.shape"

local DESCRIPTION = [[
Measures decoding, verification of several rows and prompt processing; or steps of a shape, with random weights.

Columns, of a shape:
  us a step         median time of a step of so many rows
  us ends           of that: embedding, head and choice of a token, measured alone
  us a layer        the rest, by layers: (us a step - us ends) / layers
  kernels a layer   kernels that are started, those of the ends left out too
  experts a layer   different experts that the rows hit; mean of the layers that have experts
  MB a step         bytes that must be read: weights once, of experts those that are hit, and the cache
  GB/s, share       MB a step / us a step; and its share of the memory's GB/s, measured first by reading alone
  costs             of --ablate: how much longer a step is without it; below 0%, it is shorter
Of a model:
  of one row        time of a step over that of a step of one row
  Lua               of a step, what the scripts take
Of --profile:
  share             of the sum of all ops; they run one by one, and so take longer than in a step]]

local EXAMPLE = [[
mav bench --model DIR --dtype fp8 --threads 2
mav bench --json | jq .decode.tokens_per_s
mav bench --shape maverick --tp 8 --device cuda --profile
mav bench --shape maverick --tp 8 --device cuda --experts 16 --ablate]]

local SHARE_BYTES_MIN = require("mav.session.stats").SHARE_BYTES_MIN
local PROMPT = 512
local ROWS = { 1, 2, 4, 8, 16 }
local CONTEXT = 128
local SHAPE_ROWS, SHAPE_ROWS_MAX, SHAPE_CONTEXT = { 1, 2, 4, 8 }, 512, 1024

--- "1,2,4"
local function row_counts(text)
  local list = {}
  for word in (text .. ","):gmatch "([^,]*)," do
    local n = math.tointeger(tonumber(word))
    if not n or n < 1 or n > SHAPE_ROWS_MAX then
      return nil, ("'%s': numbers from 1 to %d, separated by commas, are allowed"):format(text, SHAPE_ROWS_MAX)
    end
    list[#list + 1] = n
  end
  return list
end

local function options()
  local p = cli.parser("bench", DESCRIPTION, EXAMPLE)
  cli.model_options(p)
  p:option("--context", ("tokens in the cache before the first step (default: %d; of shapes %d)"):format(CONTEXT, SHAPE_CONTEXT))
    :argname("N"):convert(cli.integer(1, 1 << 20))
  p:option("--seconds", "time for each measurement"):argname("S"):convert(cli.number):default("2")
  p:option("--seed", "of the random tokens"):argname("N"):convert(cli.integer(0)):default("1")
  cli.kv_option(p)
  p:flag("--profile", "time of each op: in a step of one row; of shapes, in the step of each of --rows")
  p:flag("--json", "print one object")
  p:option("--save", "write the object of --json to a file too"):argname("FILE")
  p:option("--shape", ("random weights of this shape instead of a model: %s; --dtype and --kv are fp8 then (default)"):format(
    table.concat(shape.names, ", "))):argname("NAME")
    :convert(cli.choice(table.unpack(shape.names)))
  p:option("--tp", "of shapes: ranks that share the model; one of them is measured (default: 1)"):argname("N"):convert(cli.integer(1, 64))
  p:option("--layers", "of shapes: fewer or more layers"):argname("N"):convert(cli.integer(1, 1024))
  p:option("--experts", "of shapes: fewer or more experts a layer"):argname("N"):convert(cli.integer(1, 4096))
  p:option("--vocab", "of shapes: another vocabulary"):argname("N"):convert(cli.integer(2, 1 << 24))
  p:option("--rows", ("of shapes: rows of a step, each from 1 to %d; hundreds are a prompt's (default: %s)"):format(SHAPE_ROWS_MAX,
    table.concat(SHAPE_ROWS, ","))):argname("LIST"):convert(row_counts)
  p:option("--rounding", "of shapes: how activations of fp8 weights are rounded: none, static, dynamic (default: static)")
    :argname("TYPE"):convert(cli.choice("none", "static", "dynamic"))
  p:flag("--unfused", "of shapes: the unfused ops")
  p:flag("--no-shuffle", "of shapes: weights row after row")
  p:flag("--ablate", "of shapes: one optimization switched off at a time, and what each is worth")
  return p
end

local function random_ids(model, n)
  local ids = {}
  for i = 1, n do ids[i] = math.random(0, model.config.vocab - 1) end
  return ids
end

local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2]
end

--- Steps of one row for about `seconds`.
local function bench_decode(model, s, args)
  local most = s.context - #s - 1
  s.times:begin()
  local started = mav.now()
  s:prefill()
  for step = 1, most do
    s:step()
    s.ids[#s] = math.random(0, model.config.vocab - 1)
    if step >= 16 and mav.now() - started > args.seconds then break end
  end
  local stats = s.stats
  return {
    tokens_per_s = stats.tokens_per_s, us_per_step = stats.step_us_median, us_per_step_p99 = stats.step_us_p99,
    bytes_per_step = stats.bytes_per_step, gb_per_s = stats.gb_per_s, steps = stats.output_tokens,
  }, stats.lua_us_per_step
end

--- The loop of a session on random text whose drafts are random tokens.
local function drafting_session(model, args)
  local strategy = { draft = function() return 0 end, k_max = ROWS[#ROWS] - 1 }
  local s = model:session { strategy = strategy, kv_dtype = args.kv, context = args.context + 64 }
  s:append(random_ids(model, args.context))
  s:prefill()
  return s
end

--- Median time of verifying n rows. Nothing is committed, so every launch does the same.
local function bench_rows(model, s, n, args)
  local shared, times = s.loop, {}
  local graph = shared:step_graph(n, 0).graph
  local started = mav.now()
  repeat
    shared:begin(s)
    shared.spec:draft(n - 1, random_ids(model, n - 1))
    local t = mav.now()
    shared.spec:verify(graph)
    graph:wait()
    times[#times + 1] = mav.now() - t
  until #times >= 5 and mav.now() - started > args.seconds / 2
  return median(times) * 1e6
end

local function bench_prompt(model, args)
  local times = {}
  local started = mav.now()
  repeat
    local s <close> = model:session { context = PROMPT + 32, kv_dtype = args.kv }
    s:append(random_ids(model, PROMPT + 1))
    s:prefill()
    times[#times + 1] = s.stats.prompt_s
  until #times >= 2 and mav.now() - started > args.seconds
  return { tokens = PROMPT, tokens_per_s = PROMPT / median(times) }
end

local function profile_row(s)
  s.loop:begin(s)
  assert(s.seq:reserve(1))
  return profile.of(s.loop:step_graph(1, 0).graph)
end

local function print_table(r)
  if r.profile then profile.print(r.profile, 1) end
  print(("model %s, dtype %s, %s %s, %d threads, memory %.1f GB/s"):format(r.model, r.dtype, r.device, r.isa, r.threads,
    r.bandwidth_gb_per_s))
  local d = r.decode
  local share = ("%.0f%% of the memory's%s"):format(100 * d.bandwidth_share, d.bytes_per_step < SHARE_BYTES_MIN and " (from caches)" or "")
  print(("decode   %9.1f tokens/s   %9.1f us a step (p99 %.1f)   %.2f MB a step   %.2f GB/s, %s   Lua %.2f us"):format(
    d.tokens_per_s, d.us_per_step, d.us_per_step_p99, d.bytes_per_step / 1e6, d.gb_per_s, share, r.lua_us_per_step))
  for _, n in ipairs(ROWS) do
    local us = r.rows[tostring(n)]
    print(("rows %-3d %9.1f us   %5.2f of one row"):format(n, us, us / r.rows["1"]))
  end
  print(("prompt   %9.1f tokens/s   (%d tokens)"):format(r.prompt.tokens_per_s, r.prompt.tokens))
end

--- Fails before measuring rather than after.
local function check_writable(path)
  if not path then return end
  local file, err = io.open(path, "ab")
  if not file then cli.fail("--save %s", err) end
  file:close()
end

local function save(path, text)
  local file, err = io.open(path, "wb")
  if not file then cli.fail("--save %s", err) end
  local ok, reason = file:write(text, "\n")
  local closed, late = file:close()
  if not ok or not closed then cli.fail("--save %s: %s", path, reason or late) end
end

--- Prints a result and then saves it: what cannot be saved has been seen.
local function report(result, args, print_result)
  local text = (args.json or args.save) and mav.json.encode(result)
  if args.json then
    io.write(text, "\n")
  else
    print_result(result, args)
  end
  io.flush()
  if args.save then save(args.save, text) end
end

local SHAPE_ONLY = { "tp", "layers", "experts", "vocab", "rows", "rounding", "unfused", "no_shuffle", "ablate" }
local MODEL_ONLY = { "activations", "copy" }
local NOT_ABLATED = { "unfused", "no_shuffle", "profile" }
local FP8_ONLY = { "rounding", "no_shuffle" }

--- Options without effect: refused, not ignored. why: a text for the option's name.
local function refuse(args, names, why)
  for _, name in ipairs(names) do
    if args[name] then cli.fail(why, (name:gsub("_", "-"))) end
  end
end

local function check_shape(args)
  if args.model then cli.fail "give --model or --shape, not both" end
  refuse(args, MODEL_ONLY, "--%s has no meaning with --shape: it is of models")
  if (args.dtype or "fp8") ~= "fp8" then refuse(args, FP8_ONLY, "--%s is of fp8 weights: leave it out, or give --dtype fp8") end
  if not args.ablate then return end
  refuse(args, NOT_ABLATED, "--%s has no meaning with --ablate: leave one of them out")
  local off = os.getenv "MAV_CUDA_OFF" or ""
  if off ~= "" then cli.fail("MAV_CUDA_OFF is '%s': unset it, --ablate switches things off itself", off) end
end

local function run_shape(args)
  check_shape(args)
  check_writable(args.save)
  args.context, args.rows = args.context or SHAPE_CONTEXT, args.rows or SHAPE_ROWS
  args.tp, args.rounding = args.tp or 1, args.rounding or "static"
  local part = require(args.ablate and "mav.bench.ablate" or "mav.bench.layers")
  local result = part.measure(args)
  report(result, args, part.print)
  local failure = part.failure(result)
  if failure then return nil, failure end
  return 0
end

local function run(arg)
  local args = cli.parse(options(), arg)
  math.randomseed(args.seed)
  if args.shape then return run_shape(args) end
  refuse(args, SHAPE_ONLY, "--%s needs a --shape")
  check_writable(args.save)
  args.context = args.context or CONTEXT
  local model = cli.load(args)
  local rt = model.runtime
  local bandwidth = model:measure_bandwidth()
  if args.context > model.config.positions then
    cli.fail("--context %d: the model has %d positions", args.context, model.config.positions)
  end
  local s <close> = model:session { sample = chain {}, kv_dtype = args.kv, context = args.context + 4096 }
  s:append(random_ids(model, args.context))
  local decode, lua_us = bench_decode(model, s, args)
  decode.bandwidth_share = decode.gb_per_s / bandwidth
  local rows, drafting <close> = {}, drafting_session(model, args)
  for _, n in ipairs(ROWS) do rows[tostring(n)] = bench_rows(model, drafting, n, args) end
  local result = {
    model = model.dir, decode = decode, rows = rows, prompt = bench_prompt(model, args), lua_us_per_step = lua_us, threads = rt.threads,
    isa = rt.isa, device = rt.device, context = args.context, kv = args.kv or model:kv_dtype(), bandwidth_gb_per_s = bandwidth,
    dtype = args.dtype or model.config.quant and model.config.quant.name or model.weights.layers[1].qkv.dtype,
    profile = args.profile and profile_row(drafting) or nil,
  }
  report(result, args, print_table)
  return 0
end

return { summary = "measure decoding, verification and prompt processing", run = run }
