--- mav generate: continue a prompt.
local cli = require "mav.cli"
local mav = require "mav"
local check = require "mav.session.check"

local EXAMPLE = [[
mav generate --prompt '-- returns the sum of the list t' --max-tokens 64
mav generate --model DIR --prompt-file p.txt --temperature 0.7 --top-p 0.95 --seed 1
mav generate --draft eagle3=models/tiny-maverick-eagle3 --k 3 --check --prompt '-- returns the sum of the list t'
mav generate --draft ngram --k auto --prompt-file p.txt
mav generate -s my_strategy.lua --prompt '-- reverses s'
mav generate --ids 1,2,3 --json | jq .stats.tokens_per_s]]

local function options()
  local p = cli.parser("generate", "Continues a prompt. The text goes to stdout as it comes, statistics to stderr.", EXAMPLE)
  cli.model_options(p)
  p:mutex(
    p:option("--prompt", "the text to continue; special tokens in it count as such"):argname("TEXT"),
    p:option("--prompt-file", "read it from a file; -: from stdin"):argname("FILE"),
    p:option("--ids", "continue these token ids, as they are"):argname("1,2,3"):convert(cli.ids))
  p:option("--max-tokens", "most tokens to add"):argname("N"):convert(cli.integer(0, 1 << 30)):default("256")
  cli.sample_options(p)
  cli.strategy_options(p)
  p:flag("--check", "decode again without drafts; report the first token that differs")
  p:option("--logprobs", "log probabilities of each token and of the N best"):argname("N"):convert(cli.integer(1, 1024))
  p:option("--stop", "end before this text; may be repeated"):argname("TEXT"):count("*")
  p:flag("--ignore-eos", "go on after an end-of-text token")
  cli.kv_option(p)
  p:flag("--json", "print one object: ids, text, stop, stats")
  p:flag("--quiet -q", "no statistics")
  return p
end

local function prompt_ids(model, args)
  if args.ids then return args.ids end
  local text = args.prompt
  if args.prompt_file then text = cli.read_file(args.prompt_file) end
  if not text then cli.fail("give a --prompt, a --prompt-file or --ids (see --help)") end
  local ids, err = model:encode(text)
  if not ids then cli.fail("%s", tostring(err)) end
  if #ids == 0 then cli.fail("the prompt is empty") end
  return ids
end

local function logprobs_line(model, entry)
  local function name(id) return ("%q"):format(model.tokenizer and model.tokenizer:piece(id) or id) end
  local best = {}
  for i, pair in ipairs(entry.top) do best[i] = ("%s %.4f"):format(name(pair[1]), pair[2]) end
  return ("%s %.4f   best: %s\n"):format(name(entry.id), entry.logprob, table.concat(best, ", "))
end

local function run(arg)
  local args = cli.parse(options(), arg)
  local chain = cli.chain(args, { logprobs = args.logprobs })
  local model = cli.load(args)
  local ids = prompt_ids(model, args)
  local positions = model.config.positions
  if #ids > positions then cli.fail("the prompt has %d tokens; the model has %d positions", #ids, positions) end
  local strategy = cli.strategy(args, model, chain)
  local s <close> = cli.session(args, model,
    { strategy = strategy, kv_dtype = args.kv, context = math.min(#ids + args.max_tokens + 1, positions) })
  local out, texts, logprobs = {}, {}, {}
  local function on_token(id, entry)
    out[#out + 1] = id
    if not entry then return end
    logprobs[#logprobs + 1] = { id = entry.id, logprob = entry.logprob, top = entry.top }
    if not args.json then io.stderr:write(logprobs_line(model, entry)) end
  end
  for piece in s:generate(ids, { max_tokens = args.max_tokens, ignore_eos = args.ignore_eos, stop = args.stop, on_token = on_token }) do
    texts[#texts + 1] = piece
    if not args.json then io.write(piece):flush() end
  end
  local checked
  if args.check then
    checked = check.against_plain(s, { sample = strategy.sample, kv_dtype = args.kv, ignore_eos = args.ignore_eos, prompt = ids })
  end
  if (s.stats.bytes_per_step or 0) >= require("mav.session.stats").SHARE_BYTES_MIN and not args.quiet then model:measure_bandwidth() end
  if args.json then
    local stats = {}
    for key, value in pairs(s.stats) do stats[key] = value end
    stats.threads, stats.isa, stats.device = model.runtime.threads, model.runtime.isa, model.runtime.device
    if stats.steps then stats.steps = mav.json.array(stats.steps) end
    io.write(mav.json.encode { ids = mav.json.array(out), text = table.concat(texts), stop = s.stopped, stats = stats, check = checked,
      logprobs = args.logprobs and mav.json.array(logprobs) or nil }, "\n")
  else
    io.write("\n"):flush()
    if not args.quiet then io.stderr:write(cli.device_line(model.runtime), "\n", tostring(s.stats), "\n") end
    if checked then io.stderr:write(check.text(model, checked), "\n") end
  end
  return checked and checked.token and check.is_promised(checked) and 1 or 0
end

return { summary = "continue a prompt", run = run }
