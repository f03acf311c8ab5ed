--- The commands, run as a user runs them. The environment variable MAV names the program under test.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local golden = dofile(support.oracle .. "golden.lua")
local mav = require "mav"

local BINARY = os.getenv "MAV"

--- Runs `mav ARGS`: its output, its diagnostics, its exit status.
local function run(args, input)
  local dir <close> = support.directory()
  support.write(dir.path .. "/in", input or "")
  local _, _, status = os.execute(("'%s' %s <'%s/in' >'%s/out' 2>'%s/err'"):format(BINARY, args, dir.path, dir.path, dir.path))
  return support.read(dir.path .. "/out"), support.read(dir.path .. "/err"), status
end

local function ids_text(ids) return table.concat(ids, ",") end

local describe_commands = BINARY and describe or pending
describe_commands("commands", function()
  local model, g = "--model '" .. support.model_dir "maverick" .. "'", nil
  setup(function() g = golden.open "maverick" end)

  it("generate: streams text, statistics apart", function()
    local summary = golden.json("goldens/maverick/golden.json").prompts.short
    local out, err, status = run(("generate %s --prompt '%s' --max-tokens 48 --ignore-eos"):format(model, summary.text))
    assert.are.equal(0, status)
    assert.are.equal(summary.greedy_text .. "\n", out)
    assert.is_truthy(err:find("tokens/s/user", 1, true))
  end)

  it("take texts that begin with a dash", function()
    local out, err, status = run(("generate %s --prompt '-- a comment' --max-tokens 2 --stop '-- x'"):format(model))
    assert.are.equal(0, status, err)
    assert.is_true(#out > 0)
    assert.are.equal(run("tokenize " .. model, "-- a = b"), run(("tokenize '-- a = b' %s"):format(model)))
  end)

  it("generate --json: one object", function()
    local out, _, status = run(("generate %s --ids %s --max-tokens 20 --ignore-eos --json --logprobs 2 --kv bf16"):format(model,
      ids_text(g.get "short.input_ids")))
    assert.are.equal(0, status)
    local object = assert(mav.json.decode(out))
    assert.are.same({ table.unpack(g.get "short.greedy_ids", 1, 20) }, object.ids)
    assert.are.equal("length", object.stop)
    assert.are.equal("string", type(object.text))
    assert.is_true(object.stats.tokens_per_s > 0)
    assert.are.equal(20, #object.logprobs)
  end)

  it("generate: the seed decides, sampling options apply", function()
    local function ids(options)
      local out, err, status = run(("generate %s --prompt x --max-tokens 12 --ignore-eos --json %s"):format(model, options))
      assert.are.equal(0, status, err)
      return assert(mav.json.decode(out)).ids
    end
    assert.are.same(ids "--temperature 2 --seed 1", ids "--temperature 2 --seed 1")
    assert.are_not.same(ids "--temperature 2 --seed 1", ids "--temperature 2 --seed 2")
    assert.are.same(ids "", ids "--temperature 2 --top-k 1 --seed 9")
    for _, id in ipairs(ids "--logit-bias 65=100") do assert.are.equal(65, id) end
    for _, id in ipairs(ids "--logit-bias 65=100 --logit-bias 66=200 --repetition-penalty 1.0 --min-p 0.1 --top-p 0.9") do
      assert.are.equal(66, id)
    end
  end)

  it("logits: the golden ones, and the residual stream", function()
    local dir <close> = support.directory()
    for _, device in ipairs { "cpu", "ref" } do
      local _, err, status = run(("logits %s --ids %s -o '%s/x.safetensors' --hidden --device %s"):format(model,
        ids_text(g.get "short.input_ids"), dir.path, device))
      assert.are.equal(0, status, err)
      local file = assert(mav.safetensors.open(dir.path .. "/x.safetensors"))
      assert.is_true(golden.error(file:get "logits", g.get "short.logits") < 1e-3)
      local hidden = file:get "hidden"
      assert.are.same({ 9, 10, 80 }, hidden.shape)
      assert.is_true(golden.error(hidden:select(1, 1):contiguous(), g.get "hidden.embed") < 1e-6)
      for i = 0, 7 do
        assert.is_true(golden.error(hidden:select(1, i + 2):contiguous(), g.get("hidden.layer" .. i .. ".out")) < 1e-4)
      end
    end
  end)

  it("tokenize: there and back", function()
    local case = golden.json("tokenizer_cases.json").cases[20]
    local out = run("tokenize " .. model, case.text)
    assert.are.equal(ids_text(case.ids) .. "\n", out)
    assert.are.equal(case.decoded .. "\n", run(("tokenize %s --decode %s"):format(model, ids_text(case.ids))))
    assert.are.same(case.ids, mav.json.decode((run(("tokenize %s --json"):format(model), case.text))).ids)
    assert.are.equal("2048,39\n", run("tokenize " .. model .. " --bos H"))
    assert.are.equal("2056\n", run("tokenize " .. model .. " '<|eot|>'"))
    assert.are_not.equal("2056\n", run("tokenize " .. model .. " --plain '<|eot|>'"))
  end)

  it("chat: several turns, commands, the end of input", function()
    local out, err, status = run("chat --max-tokens 4 --system 'Be brief.' " .. model,
      "Hello!\nAgain.\n/reset\nOnce more.\n/help\n/quit\nnot read\n")
    assert.are.equal(0, status, err)
    assert.is_truthy(err:find("/reset", 1, true))
    assert.is_nil(err:find("unknown command", 1, true))
    assert.is_truthy(select(2, run("chat " .. model, "/foo\n")):find("unknown command '/foo'\n/reset", 1, true))
    assert.are.equal(6, select(2, out:gsub("> ", "> ")))
  end)

  it("bench: a table, or one object", function()
    local out, err, status = run(("bench %s --seconds 0.05 --json --dtype fp8 --threads 1"):format(model))
    assert.are.equal(0, status, err)
    local r = assert(mav.json.decode(out))
    for _, key in ipairs { "tokens_per_s", "us_per_step", "bytes_per_step", "gb_per_s", "bandwidth_share" } do
      assert.is_true(r.decode[key] > 0, key)
    end
    for _, n in ipairs { "1", "2", "4", "8", "16" } do assert.is_true(r.rows[n] > 0) end
    assert.are.equal(512, r.prompt.tokens)
    assert.are.equal("fp8", r.dtype)
    assert.are.equal(1, r.threads)
    out, err, status = run(("bench %s --seconds 0.05 --profile"):format(model))
    assert.are.equal(0, status, err)
    assert.is_truthy(out:find("attention", 1, true) and out:find("tokens/s", 1, true))
  end)

  it("are interrupted in one word", function()
    local dir <close> = support.directory()
    local _, _, status = os.execute(("'%s' generate %s --prompt x --ignore-eos --max-tokens 100000000 >'%s/out' 2>'%s/err' & pid=$!; "
      .. "i=0; while [ $i -lt 1000 ] && [ ! -s '%s/out' ]; do sleep 0.01; i=$((i+1)); done; kill -INT $pid; wait $pid")
      :format(BINARY, model, dir.path, dir.path, dir.path))
    assert.are.equal("mav generate: interrupted\n", support.read(dir.path .. "/err"))
    assert.are.equal(130, status)
  end)

  it("take a strategy from a file, and a drafter", function()
    local dir <close> = support.directory()
    local path = dir.path .. "/mine.lua"
    local function generate(text, options)
      support.write(path, text)
      return run(("generate %s --prompt x --max-tokens 6 --ignore-eos --json %s'%s'"):format(model, options, path))
    end
    local STRATEGY = "return { draft = require 'mav.draft.self'(2), policy = 2 %s }"
    for _, options in ipairs { "-s ", "--check -s ", "--draft ", "--k 2 --draft ngram," } do
      local out, err, status = generate(STRATEGY:format "", options)
      assert.are.equal(0, status, err)
      assert.is_true(#assert(mav.json.decode(out)).stats.steps > 0)
    end
    for _, case in ipairs {
      { STRATEGY:format ", depth = 3", "-s ", "mav generate: %s: strategy: unknown option 'depth'" },
      { "return { policy = 3 }", "-s ", "mav generate: %s: strategy: policy without draft has no effect" },
      { "return { sample = {} }", "--seed 3 -s ", "mav generate: --seed has no meaning here: %s chooses the sampler" },
      { "return { sample = {} }", "--logit-bias 3=1 -s ", "mav generate: --logit-bias has no meaning here" },
      { "return { sample = {} }", "--logprobs 2 -s ", "mav generate: --logprobs has no meaning here" },
      { "", "-s ", "mav generate: %s returned nothing (a program is run by: mav " },
      { "return arg", "-s ", "mav generate: %s returned nothing" },
      { "return function(model) return arg end", "-s ", "mav generate: %s returned nothing" },
      { "error 'no luck'", "-s ", "mav generate: %s:1: no luck" },
      { "return { draft = function(ids, n) ids[n + 1] = 1 return 0 end }", "-s ", "mav generate: drafter 'function' wrote to ids" },
      { "return { draft = function(ids, n) ids[n + 1] = 1 return 0 end }", "--draft ", "mav generate: drafter 'mine' wrote to ids" },
      { "return 5", "--draft ", "mav generate: --draft: %s returned a number" },
    } do
      local out, err, status = generate(case[1], case[2])
      assert.are.equal("", out)
      assert.are.equal(1, status)
      assert.are.equal(case[3]:gsub("%%s", path), err:sub(1, #case[3]:gsub("%%s", path)))
      assert.are.equal(1, select(2, err:gsub("\n", "\n")), err)
    end
  end)

  it("fail in one line that says what and where", function()
    local CASES = {
      { "generate --model /nowhere --prompt x", "/nowhere/config.json" },
      { "generate " .. model, "--prompt" },
      { "generate " .. model .. " --prompt x --max-tokens -1", "-1" },
      { "generate " .. model .. " --prompt x --ids 1", "--ids" },
      { "generate " .. model .. " --ids 1,99999", "99999" },
      { "generate " .. model .. " --prompt x --top-p 1.5", "top_p is 1.5" },
      { "generate " .. model .. " --prompt x --logit-bias 7", "ID=VALUE" },
      { "generate " .. model .. " --prompt x --unknown", "--unknown" },
      { "generate " .. model .. " --prompt x --k 2", "--k needs a --draft" },
      { "generate " .. model .. " --prompt x --accept typical --draft none", "--accept needs a --draft" },
      { "generate " .. model .. " --prompt x --draft none,ngram", "--draft: none stands alone" },
      { "logits " .. model .. " --ids 5", "-o" },
      { "logits " .. model .. " --ids 5000 -o /tmp/never", "5000" },
      { "logits " .. model .. " --ids 5 -o /nowhere/x.safetensors", "/nowhere" },
      { "tokenize --decode " .. model .. " 1,x", "x" },
      { "bench " .. model .. " --dtype int3", "int3" },
    }
    for _, case in ipairs(CASES) do
      local out, err, status = run(case[1])
      assert.are.equal(1, status, case[1] .. "\n" .. err)
      assert.are.equal("", out)
      assert.is_truthy(err:find(case[2], 1, true), ("%s: %s"):format(case[1], err))
      assert.are.equal(1, select(2, err:gsub("\n", "\n")), case[1] .. "\n" .. err)
      assert.is_truthy(err:find("^mav " .. case[1]:match("^%w+") .. ": "), err)
    end
  end)

  it("teach with an example", function()
    for _, name in ipairs { "generate", "chat", "logits", "tokenize", "bench" } do
      local out, _, status = run(name .. " --help")
      assert.are.equal(0, status)
      assert.is_truthy(out:find("Example:\n  mav " .. name, 1, true), out)
    end
    for _, name in ipairs { "generate", "chat", "sweep", "bench", "weights convert", "weights calibrate" } do
      local out = (run(name .. " --help"):gsub("%s+", " "))
      assert.is_nil(out:find("%(default: [^()]*%) %(default"), out)
    end
    assert.is_truthy((run "generate --help"):find("most tokens to add (default: 256)", 1, true))
  end)
end)
