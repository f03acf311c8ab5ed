--- mav sweep: what speculation brings, by drafter, depth, policy and temperature; traces of drafts, and policies scored on them.
local cli = require "mav.cli"
local mav = require "mav"
local lanes = require "mav.sweep.lanes"
local lists = require "mav.sweep.options"
local progress = require "mav.sweep.progress"
local prompts = require "mav.sweep.prompts"
local report = require "mav.sweep.report"
local run = require "mav.sweep.run"
local state = require "mav.sweep.state"
local summary = require "mav.sweep.summary"

local EXAMPLE = [[
mav sweep --draft ngram,eagle3=DIR --k 0..8 --prompts examples/prompts/families.jsonl --svg sweep.svg
mav sweep --draft ngram+self=2 --k 1,2,4 --policy auto,my_policy.lua --temperature 0,0.7 --repeats 3 --resume sweep.jsonl
mav sweep --draft eagle3=DIR --record trace.jsonl
mav sweep --replay trace.jsonl --policy auto,ema,3,my_policy.lua
mav sweep --replay trace.jsonl --policy auto --check]]

local DESCRIPTION = [[
Measures speculation: every drafter with every depth and policy, on every prompt, in turns with plain decoding.
A comma separates drafters that are compared; "+" joins those that draft together, the first that has anything to say.
--record writes what a drafter would draft at every position; --replay scores policies on that without the model.]]

local function options()
  local p = cli.parser("sweep", DESCRIPTION, EXAMPLE)
  cli.model_options(p)
  p:option("--draft", "drafters, each as for mav generate (default: ngram); may be repeated"):argname("A,B+C"):count("*")
  p:option("--k", "depths: 0..8 or 1,2,4 (default: 1,2,4; all of a tree); of a trace: the greatest (default: 8)")
    :argname("LIST"):convert(lists.depths)
  p:option("--policy", "policies: names, numbers, files that return one or a strategy that has one"):argname("LIST"):convert(lists.words)
  p:option("--temperature", "temperatures (default: 0)"):argname("LIST"):convert(lists.numbers)
  p:option("--accept", "keyed: the text of plain decoding (default); rejection: its distribution; typical: lossy"):argname("RULE")
    :convert(cli.choice("keyed", "greedy", "rejection", "typical"))
  p:option("--tree", "draft trees of these widths: 3,2,1"):argname("WIDTHS"):convert(cli.ids)
  p:option("--prompts", "JSON lines { \"prompt\":, \"family\": }, or text with blank lines between prompts (default: four small ones)")
    :argname("FILE")
  p:option("--max-tokens", "most tokens of an output (default: 128)"):argname("N"):convert(cli.integer(2, 1 << 20))
  p:option("--repeats", "times that each is measured (default: 1)"):argname("N"):convert(cli.integer(1, 1000))
  p:option("--seed", "of the noise (default: 0)"):argname("N"):convert(cli.integer(0))
  cli.kv_option(p)
  p:flag("--ignore-eos", "go on after an end-of-text token")
  p:option("--csv", "write the table as CSV"):argname("FILE")
  p:option("--svg", "draw it"):argname("FILE")
  p:option("--png", "draw it with gnuplot"):argname("FILE")
  p:flag("--json", "print the rows as one object instead of a table")
  p:option("--resume", "keep what is measured in this file, and do not measure it again"):argname("FILE")
  p:mutex(
    p:option("--record", "write a trace instead"):argname("FILE"),
    p:option("--replay", "score policies on a trace instead"):argname("FILE"))
  p:option("--costs", "for --replay: costs of a JSON file or of another trace"):argname("FILE")
  p:flag("--check", "for --replay: run each policy with the model too")
  return p
end

local function write_file(path, text)
  local file, err = io.open(path, "wb")
  if not file then cli.fail("%s", err) end
  local ok, reason = file:write(text)
  if not ok or not file:close() then cli.fail("%s: %s", path, tostring(reason)) end
end

--- Fails before hours of measuring rather than after.
local function check_writable(path)
  if not path then return end
  local file, err = io.open(path, "ab")
  if not file then cli.fail("%s", err) end
  file:close()
end

--- Options without effect: refused, not ignored.
local NO_MEANING = {
  replay = { "draft", "k", "temperature", "accept", "tree", "prompts", "max_tokens", "repeats", "seed", "kv", "ignore_eos", "resume" },
  record = { "policy", "repeats", "csv", "svg", "png", "json", "resume" },
  ["replay without --check"] = { "model", "dtype", "activations", "threads", "copy" },
}

local function refuse(args, mode)
  for _, name in ipairs(NO_MEANING[mode]) do
    local value = args[name]
    if value ~= nil and not (type(value) == "table" and #value == 0) then
      cli.fail("--%s has no meaning with --%s", name:gsub("_", "-"), mode)
    end
  end
end

local function load_drafters(model, entries)
  for _, entry in ipairs(entries) do
    local drafter, err = require("mav.draft").parse(entry.spec, model)
    if err then cli.fail("--draft %s: %s", entry.text, tostring(err)) end
    if not drafter then cli.fail("--draft %s: plain decoding is always measured", entry.text) end
    entry.drafter = drafter
  end
  return entries
end

local function load_policies(words)
  local list = {}
  for i, word in ipairs(words or {}) do
    local ok, policy = pcall(lanes.policy, word)
    if not ok then cli.fail("--policy %s: %s", word, tostring(policy)) end
    list[i] = policy
  end
  return list
end

--- Chains of the options by temperature.
local function chains(seed)
  return function(temperature) return cli.chain({ temperature = temperature, seed = seed }) end
end

--- The depths of the options; without them all levels of a tree, or some of a chain.
local function depths(args)
  if args.k or not args.tree then return args.k or { 1, 2, 4 } end
  local list = {}
  for d = 1, #args.tree do list[d] = d end
  return list
end

--- What sweep and record are made of.
local function setup(args)
  local policies = load_policies(args.policy)
  args.max_tokens, args.repeats, args.seed = args.max_tokens or 128, args.repeats or 1, args.seed or 0
  local model = cli.load(args)
  if #args.draft == 0 then args.draft = { "ngram" } end
  local drafters = load_drafters(model, lists.drafters(args.draft))
  return { model = model, drafters = drafters, policies = policies, depths = depths(args),
    prompts = prompts.encode(prompts.read(args.prompts), model, math.max(args.max_tokens, 32)), temperatures = args.temperature or { 0 },
    max_tokens = args.max_tokens, repeats = args.repeats, ignore_eos = args.ignore_eos, accept = args.accept, tree = args.tree,
    kv = args.kv, chain = chains(args.seed), seed = args.seed, dtype = args.dtype }
end

-- ---- sweep ------------------------------------------------------------------------------------------------------------------

--- What must be the same for cells to be put together. Grids may grow.
local function identity(args, model, list)
  local texts = {}
  for i, prompt in ipairs(list) do texts[i] = prompt.family .. "\0" .. prompt.prompt end
  local text, digest = table.concat(texts, "\0\0"), 0
  for i = 1, #text do digest = (digest * 31 + text:byte(i)) & 0xffffffffffff end
  return { model = model.dir, dtype = args.dtype or "stored", device = model.runtime.device, threads = model.runtime.threads,
    kv = args.kv or "default",
    max_tokens = args.max_tokens, seed = args.seed, accept = args.accept or "keyed", ignore_eos = args.ignore_eos == true,
    tree = args.tree and table.concat(args.tree, ",") or "chain", prompts = ("%d, %012x"):format(#list, digest) }
end

--- Writes the files that are asked for.
local function write_rows(args, rows, title)
  if args.csv then write_file(args.csv, report.csv(rows)) end
  if args.svg then write_file(args.svg, require("mav.sweep.svg").render(rows, title)) end
  if args.png then require("mav.sweep.png").write(rows, title, args.png) end
end

local function check_files(args)
  for _, name in ipairs { "csv", "svg", "png" } do check_writable(args[name]) end
end

local function finish(args, model, cells)
  local rows = summary.rows(cells)
  local threads = model.runtime.threads
  local title = ("%s, %s, %d thread%s"):format(model.dir:match "([^/]+)/*$", model.runtime.isa, threads, threads == 1 and "" or "s")
  if args.json then
    io.write(mav.json.encode { model = model.dir, title = title, rows = mav.json.array(rows) }, "\n")
  else
    io.write(report.table(rows))
  end
  write_rows(args, rows, title)
  for _, text in ipairs(summary.differing(rows)) do io.stderr:write("texts that differ from plain decoding: ", text, "\n") end
end

local function sweep(args)
  check_files(args)
  local options_ = setup(args)
  local saved <close> = state.open(args.resume, identity(args, options_.model, options_.prompts))
  options_.state = saved
  local settings = run.settings(options_)
  local bar = progress.new(run.count(settings))
  function settings.on_cell(cell)
    bar:step(("%s, k %s, temperature %g, %s"):format(cell.drafter, tostring(cell.k), cell.temperature, cell.family))
  end
  local ok, err = pcall(run.run, settings)
  bar:finish()
  if #saved.cells > 0 then finish(args, options_.model, saved.cells) end
  if not ok then
    if args.resume then io.stderr:write(("%d of %d cells are in %s\n"):format(bar.done, bar.total, args.resume)) end
    error(err, 0)
  end
  return 0
end

-- ---- traces -------------------------------------------------------------------------------------------------------------------

local function record(args)
  refuse(args, "record")
  local options_ = setup(args)
  if #options_.drafters ~= 1 or #options_.temperatures ~= 1 then cli.fail("--record takes one drafter and one temperature") end
  if args.accept and args.accept ~= "keyed" and args.accept ~= "greedy" then
    cli.fail("--record: with --accept %s what is accepted does not follow from the text", args.accept)
  end
  options_ = run.settings(options_)
  options_.path, options_.k_max = args.record, args.k and args.k[#args.k] or 8
  if not args.tree and options_.k_max < 1 then cli.fail("--record: --k 0 leaves nothing to draft") end
  local recorder = require "mav.sweep.record"
  local bar = progress.new(recorder.work(options_), 0)
  function options_.on_progress(what, tokens) bar:step(what, tokens) end
  local ok, points = pcall(recorder.run, options_)
  bar:finish()
  if not ok then error(points, 0) end
  io.write(("%s: %d requests, %d positions\n"):format(args.record, #options_.prompts, points))
  return 0
end

local function replay(args)
  local score = require "mav.sweep.score"
  refuse(args, "replay")
  if not args.check then
    refuse(args, "replay without --check")
    if args.device ~= "auto" then cli.fail "--device has no meaning with --replay without --check" end
  end
  check_files(args)
  local t = require("mav.sweep.trace").read(args.replay)
  local policies = load_policies(args.policy or { "auto" })
  local model
  if args.check then
    for _, name in ipairs { "model", "dtype", "threads" } do args[name] = args[name] or t.header[name] end
    model = cli.load(args)
  end
  local results = score.replay(t, policies, args.costs and score.costs(args.costs, t.header), model)
  if model then
    local drafter = load_drafters(model, { { text = t.header.drafter, spec = t.header.drafter } })[1].drafter
    for i, policy in ipairs(policies) do results[i].measured = score.measure(t, policy, model, drafter, chains(t.header.seed)) end
  end
  if args.json then
    for _, r in ipairs(results) do r.levels = nil end
    io.write(mav.json.encode { results = mav.json.array(results) }, "\n")
  else
    io.write(score.table(t, results))
  end
  write_rows(args, score.rows(t, results), ("%s, replayed"):format((t.header.model or "?"):match "([^/]*)/*$"))
  return 0
end

local function main(arg)
  local args = cli.parse(options(), arg)
  if args.replay then return replay(args) end
  if args.check or args.costs then cli.fail("--check and --costs belong to --replay") end
  return args.record and record(args) or sweep(args)
end

return { summary = "measure speculation, record drafts and score policies on them", run = main }
