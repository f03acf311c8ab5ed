--- What the commands share: options of models and samplers, their checks, and the default model.
---
--- A command fails by raising one line; the host prints it after `mav NAME: ` and exits with status 1.
local argparse = require "argparse"
local user_file = require "mav.session.file"
local mav = require "mav"

local cli = {}

local DEFAULT_MODEL = "models/tiny-maverick"

function cli.fail(text, ...)
  error(select("#", ...) > 0 and text:format(...) or text, 0)
end

function cli.parser(name, description, example)
  local parser = argparse("mav " .. name):description(description):epilog("Example:\n" .. example:gsub("([^\n]+)", "  %1"))
  local add = parser.option
  function parser:option(option, text, ...) -- argparse shows a default beside the text, which may have said it
    return add(self, option, text, ...):show_default(not (text and text:find("(default", 1, true)))
  end
  return parser
end

--- Options whose value may begin with a dash, as Lua's comments do.
local TEXTS = { ["--prompt"] = true, ["--stop"] = true, ["--system"] = true }

--- arg, with such values made part of their option, and other words that begin with a dash but hold a space put last.
local function protect_texts(arg)
  local list, words, i = {}, {}, 1
  while i <= #arg do
    local word = arg[i]
    if TEXTS[word] and arg[i + 1] then
      list[#list + 1] = word .. "=" .. arg[i + 1]
      i = i + 1
    elseif word:find "^%-%-" and (arg[i + 1] or ""):find "^%-[%d.]" then -- a negative number
      list[#list + 1] = word .. "=" .. arg[i + 1]
      i = i + 1
    elseif word:find "^%-[^=]*%s" then
      words[#words + 1] = word
    else
      list[#list + 1] = word
    end
    i = i + 1
  end
  if #words > 0 then
    list[#list + 1] = "--"
    table.move(words, 1, #words, #list + 1, list)
  end
  return list
end

--- The parsed options; a wrong one fails with what was wrong and where help is.
---@param arg string[]
function cli.parse(parser, arg)
  local list = protect_texts(arg)
  local ok, args = parser:pparse(list)
  if not ok then cli.fail("%s (see --help)", args) end
  return args
end

-- ---- converters ---------------------------------------------------------------------------------------------------------

--- An option's value as an integer or number in a range.
function cli.integer(least, most)
  return function(text)
    local n = math.tointeger(tonumber(text))
    if not n or n < least or (most and n > most) then
      return nil, ("'%s': an integer from %d%s is allowed"):format(text, least, most and (" to %d"):format(most) or " on")
    end
    return n
  end
end

function cli.number(text)
  local n = tonumber(text)
  if not n then return nil, ("'%s': a number is allowed"):format(text) end
  return n
end

--- "1,2,3" or "1 2 3"
function cli.ids(text)
  local ids = {}
  for word in text:gmatch("[^%s,]+") do
    local n = math.tointeger(tonumber(word))
    if not n or n < 0 then return nil, ("'%s': token ids are integers from 0 on, separated by commas"):format(word) end
    ids[#ids + 1] = n
  end
  if #ids == 0 then return nil, "no token id given" end
  return ids
end

function cli.choice(...)
  local words = { ... }
  return function(text)
    for _, word in ipairs(words) do
      if text == word then return text end
    end
    return nil, ("'%s': %s is allowed"):format(text, table.concat(words, ", "))
  end
end

function cli.read_file(path)
  if path == "-" then return io.read("a") end
  local file, err = io.open(path, "rb")
  if not file then cli.fail("%s", err) end
  local text, reason = file:read("a")
  file:close()
  if not text then cli.fail("%s: %s", path, reason) end
  return text
end

-- ---- models ---------------------------------------------------------------------------------------------------------------

local function is_model(dir)
  local file = io.open(dir .. "/config.json", "rb")
  if file then file:close() end
  return file ~= nil
end

--- models/tiny-maverick here, or beside the scripts; nil when there is none.
function cli.default_model()
  if is_model(DEFAULT_MODEL) then return DEFAULT_MODEL end
  local root = debug.getinfo(1, "S").source:match("^@(.*)scripts/cli/init%.lua$")
  return root and is_model(root .. DEFAULT_MODEL) and root .. DEFAULT_MODEL or nil
end

--- Adds --model, and unless `device` is false the options of the runtime.
function cli.model_options(parser, device)
  parser:option("--model", "directory with config.json, safetensors or packs, and tokenizer.json"):argname("DIR")
  if device == false then return end
  parser:option("--dtype", "fp8: quantize linear layers while loading; bf16, f32: convert (default: as stored)"):argname("TYPE")
    :convert(cli.choice("fp8", "bf16", "f32"))
  parser:option("--activations", "f32: do not round the activations of quantized checkpoints (default: as the checkpoint asks)")
    :argname("TYPE"):convert(cli.choice("f32"))
  parser:option("--device", "auto: a GPU where there is one, else the processor; or cuda, cpu, ref"):argname("NAME")
    :convert(cli.choice("ref", "cpu", "cuda", "auto")):default("auto")
  parser:flag("--copy", "copy the weights of a pack into memory, instead of mapping the file")
  parser:option("--threads", "threads of the cpu team (default: one per processor)"):argname("N"):convert(cli.integer(1, 256))
end

--- Adds --kv; absent: what the checkpoint asks for.
function cli.kv_option(parser)
  parser:option("--kv", "type of the cache: f32, bf16 or fp8 (default: as the checkpoint asks, else f32)"):argname("TYPE")
    :convert(cli.choice("f32", "bf16", "fp8"))
end

function cli.model_dir(args)
  return args.model or cli.default_model() or cli.fail("no --model given, and no %s here", DEFAULT_MODEL)
end

--- "cpu avx2, 2 threads", and why it is not a GPU where there seems to be one.
function cli.device_line(rt)
  local why = rt.fallback and not rt.fallback:find("not beside this program", 1, true) and (" (not cuda: %s)"):format(rt.fallback) or ""
  return ("device: %s %s, %d threads%s"):format(rt.device, rt.isa, rt.threads, why)
end

function cli.runtime(args) return mav.runtime { device = args.device, threads = args.threads } end

local PROGRESS_AFTER, PROGRESS_EVERY = 2, 0.2 -- seconds

--- The model of the options. Big ones report their progress when stderr is a terminal.
function cli.load(args)
  local dir, shown = cli.model_dir(args), false
  local due, is_terminal = mav.now() + PROGRESS_AFTER, nil
  local function progress(done, bytes)
    if is_terminal == false or mav.now() < due then return end
    if is_terminal == nil then is_terminal = os.execute("test -t 2") == true end
    if not is_terminal then return end
    due, shown = mav.now() + PROGRESS_EVERY, true
    io.stderr:write(("\rloading %s: %3.0f%%"):format(dir, 100 * done / bytes))
  end
  local model, err = require("mav.maverick").load(dir,
    { device = args.device or "auto", threads = args.threads, dtype = args.dtype, activations = args.activations,
      mapped = not args.copy, progress = progress })
  if shown then io.stderr:write("\r\27[K") end
  if not model then cli.fail("%s", tostring(err)) end
  return model
end

-- ---- sampling -------------------------------------------------------------------------------------------------------------

--- "ID=VALUE"
local function bias(text)
  local id, value = text:match("^(%d+)=(.+)$")
  id, value = math.tointeger(tonumber(id)), tonumber(value) or (value == "-inf" and -math.huge or nil)
  if not id or not value then return nil, ("'%s': ID=VALUE is allowed, for example 17=-2.5 or 17=-inf"):format(text) end
  return { id, value }
end

function cli.sample_options(parser)
  parser:option("--temperature", "0: greedy (default)"):argname("T"):convert(cli.number)
  parser:option("--top-k", "keep the K most likely tokens"):argname("K"):convert(cli.integer(0))
  parser:option("--top-p", "keep the most likely tokens that add up to P"):argname("P"):convert(cli.number)
  parser:option("--min-p", "drop tokens less likely than P times the best"):argname("P"):convert(cli.number)
  parser:option("--repetition-penalty", "above 1: ids that occurred become less likely"):argname("X"):convert(cli.number)
  parser:option("--logit-bias", "add VALUE to a token's logit; -inf forbids it; may be repeated"):argname("ID=VALUE"):count("*")
    :convert(bias)
  parser:option("--seed", "of the noise; the same seed gives the same text (default: 0)"):argname("N"):convert(cli.integer(0))
end

--- The chain of the options; wrong values fail by name.
function cli.chain(args, more)
  local options = { temperature = args.temperature, top_k = args.top_k, top_p = args.top_p, min_p = args.min_p,
    repetition_penalty = args.repetition_penalty, seed = args.seed }
  for _, pair in ipairs(args.logit_bias or {}) do
    options.logit_bias = options.logit_bias or {}
    options.logit_bias[pair[1]] = pair[2]
  end
  for key, value in pairs(more or {}) do options[key] = value end
  local ok, chain = pcall(require "mav.sample.chain", options)
  if not ok then cli.fail("%s", (tostring(chain):gsub("^[^:]+:%d+: ", ""))) end
  return chain
end

-- ---- speculation ----------------------------------------------------------------------------------------------------------

--- "3" or "auto"
local function depth(text)
  if text == "auto" then return text end
  local n = math.tointeger(tonumber(text))
  if not n or n < 0 or n > 63 then return nil, ("'%s': a number of drafts from 0 to 63, or auto, is allowed"):format(text) end
  return n
end

local function widths(text)
  local list = {}
  for word in (text .. ","):gmatch "([^,]*)," do
    local n = math.tointeger(tonumber(word))
    if not n or n < 1 or n > 63 then return nil, ("'%s': widths are integers from 1 on, separated by commas: 3,2,1"):format(text) end
    list[#list + 1] = n
  end
  return list
end

function cli.strategy_options(parser)
  parser:option("-s --strategy", "a Lua file that returns a strategy, or function(model) that does (examples/strategies)")
    :argname("FILE.lua")
  parser:option("--draft", "who drafts: none, ngram[=N], suffix, self=N, model=DIR, eagle3=DIR, FILE.lua; with commas: the first that "
    .. "has anything"):argname("DRAFTER")
  parser:option("--k", "drafts a step; auto: what pays, from measured costs (default: 3)"):argname("N"):convert(depth)
  parser:option("--tree", "draft a tree: children of every node, level by level, as 3,2,1"):argname("WIDTHS"):convert(widths)
  parser:option("--accept", "keyed: the text of plain decoding (default); rejection: its distribution; typical: lossy"):argname("RULE")
    :convert(cli.choice("keyed", "greedy", "rejection", "typical"))
end

--- Options that make the sampler of the command line.
local SAMPLER = { "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "logit_bias", "seed", "logprobs" }

local function is_given(value) return value ~= nil and not (type(value) == "table" and next(value) == nil) end

local function read_strategy(args, model)
  local path = args.strategy
  local strategy = user_file.read(path, model)
  if type(strategy) ~= "table" then
    cli.fail("%s; a strategy table, or a function that makes one, is expected", user_file.described(path, strategy))
  end
  for _, name in ipairs(strategy.sample ~= nil and SAMPLER or {}) do
    if is_given(args[name]) then
      cli.fail("--%s has no meaning here: %s chooses the sampler (its strategy has sample)", name:gsub("_", "-"), path)
    end
  end
  return strategy
end

--- The strategy of the options; nil when they name none. chain: the sampler of the options, used where the strategy has none.
function cli.strategy(args, model, chain)
  if args.strategy then
    for _, name in ipairs { "draft", "k", "tree", "accept" } do
      if args[name] then cli.fail("give --strategy or --%s, not both", name) end
    end
    local strategy, copy = read_strategy(args, model), {}
    for key, value in pairs(strategy) do copy[key] = value end
    if copy.sample == nil then copy.sample = chain end
    return copy
  end
  local drafter, err = require("mav.draft").parse(args.draft or "none", model)
  if err then cli.fail("--draft: %s", tostring(err)) end
  if not drafter then
    for _, name in ipairs { "k", "tree", "accept" } do
      if args[name] then cli.fail("--%s needs a --draft", name) end
    end
    return { sample = chain }
  end
  local strategy = { draft = drafter, sample = chain, accept = args.accept, tree = args.tree, policy = args.k }
  if args.tree and math.type(args.k) == "integer" and args.k > #args.tree then
    cli.fail("--k %d: the tree has %d levels", args.k, #args.tree)
  end
  return strategy
end

--- A session with the strategy of the options. What is wrong with one of a file is said with the file's name.
---@param args table
---@param model table
---@param options table   as for model:session
function cli.session(args, model, options)
  if not args.strategy then return model:session(options) end
  local ok, made = xpcall(model.session, function(err)
    if type(err) ~= "string" or err:find(args.strategy, 1, true) then return err end
    return debug.traceback(args.strategy .. ": " .. err, 2)
  end, model, options)
  if not ok then error(made, 0) end
  return made
end

return cli
