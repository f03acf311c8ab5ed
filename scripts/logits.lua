--- mav logits: what the model computes for given tokens, as a safetensors file.
local cli = require "mav.cli"
local mav = require "mav"

local ROWS = 512

local EXAMPLE = [[
mav logits --ids 1,2,3 -o out.safetensors --hidden
python3 -c 'from safetensors.numpy import load_file; print(load_file("out.safetensors")["logits"].argmax(-1))']]

local function options()
  local p = cli.parser("logits", "Writes the float32 logits (T, V) of all positions, and with --hidden the residual stream "
    .. "(L+1, T, D): the embedding, then the state after each layer.", EXAMPLE)
  cli.model_options(p)
  p:mutex(
    p:option("--ids", "token ids, as they are"):argname("1,2,3"):convert(cli.ids),
    p:option("--prompt", "a text; it gets the begin-of-text id"):argname("TEXT"))
  p:option("-o --output", "the file to write"):argname("FILE"):count(1)
  p:flag("--hidden", "also the residual stream")
  p:flag("--unfused", "run the unfused ops")
  cli.kv_option(p)
  return p
end

--- logits (T, V) and, asked for, hidden (L+1, T, D) of one sequence, in chunks of ROWS.
local function compute(model, ids, args)
  local c, rt, T = model.config, model.runtime, #ids
  local kv = assert(model:kv { tokens = T, sequences = 1, dtype = args.kv })
  local seq <close> = assert(kv:sequence {})
  local out = { logits = mav.zeros { T, c.vocab, dtype = "f32", runtime = rt } }
  if args.hidden then out.hidden = mav.zeros { c.layers + 1, T, c.hidden, dtype = "f32", runtime = rt } end
  local taps = 0
  for first = 1, T, ROWS do
    local count = math.min(ROWS, T - first + 1)
    local rows = mav.rows(count, { runtime = rt })
    for i = 1, count do rows:set(i, ids[first + i - 1], seq, first + i - 2, i - 1) end
    assert(seq:reserve(count))
    local function tap(name, layer, t)
      if name ~= "embed" and name ~= "hidden" then return end
      taps = taps + count
      out.hidden:select(1, layer + 1):slice(1, first, first + count - 1):copy_from(t)
    end
    local logits = model:forward(rows, kv, { fused = not args.unfused, tap = args.hidden and tap or nil })
    out.logits:slice(1, first, first + count - 1):copy_from(logits)
    assert(seq:commit(count))
  end
  if args.hidden and taps ~= (c.layers + 1) * T then cli.fail("--hidden: this forward pass does not call options.tap for every layer") end
  return out
end

local function run(arg)
  local args = cli.parse(options(), arg)
  if not args.ids and not args.prompt then cli.fail("give --ids or a --prompt (see --help)") end
  if args.output == "" then cli.fail("--output: the file has no name") end
  local model = cli.load(args)
  local ids = args.ids
  if not ids then
    local err
    ids, err = model:encode(args.prompt)
    if not ids then cli.fail("%s", tostring(err)) end
  end
  if #ids == 0 then cli.fail("the prompt is empty") end
  for i, id in ipairs(ids) do
    if id >= model.config.vocab then cli.fail("id %d is %d; the vocabulary ends at %d", i, id, model.config.vocab - 1) end
  end
  assert(mav.safetensors.write(args.output, compute(model, ids, args)))
  return 0
end

return { summary = "write the logits of given tokens to a file", run = run }
