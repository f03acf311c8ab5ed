--- Every Lua block of docs/strategies.md runs, and every file of examples/strategies returns a strategy. Strategies whose text must be
--- that of plain decoding are compared with it.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local S = dofile(here .. "/speculation.lua")

local MAX_TOKENS = 32
local PROMPTS = { "-- returns the sum of the list t\n", "function max(a, b)\n" }

--- The document's Lua blocks: { line =, text = }.
local function blocks()
  local list, block, number = {}, nil, 0
  for line in io.lines(S.support.root .. "docs/strategies.md") do
    number = number + 1
    if block and line == "```" then
      list[#list + 1] = { line = block.line, text = table.concat(block, "\n") }
      block = nil
    elseif block then
      block[#block + 1] = line
    elseif line == "```lua" then
      block = { line = number }
    end
  end
  assert(not block, "a block does not end")
  return list
end

--- Runs a block as a file of its own; what it returns, and what it printed.
local function run(block)
  local printed = {}
  local env = setmetatable({ print = function(...) printed[#printed + 1] = tostring((...)) end }, { __index = _G })
  return assert(load(block.text, "@docs/strategies.md:" .. block.line, "t", env))(), printed
end

local function is_lossless(strategy)
  return strategy.accept == nil or strategy.accept == "keyed" or strategy.accept == "greedy"
end

describe("docs/strategies.md", function()
  local model
  setup(function() model = S.load(S.tiny) end)
  teardown(function() model = nil end)

  local list, strategies, lossy, programs = blocks(), 0, 0, 0

  local function compare(strategy)
    local plain <close> = model:session { sample = strategy.sample, context = 256 }
    local s <close> = model:session { strategy = strategy, context = 256 }
    for _, text in ipairs(PROMPTS) do
      local prompt = assert(model:encode(text))
      local said = S.text(s, prompt, MAX_TOKENS)
      assert.are.equal(MAX_TOKENS, #said)
      if is_lossless(strategy) then S.same(S.text(plain, prompt, MAX_TOKENS), said, "%q", text) end
    end
  end

  for _, block in ipairs(list) do
    it(("runs: the block at line %d"):format(block.line), function()
      local strategy, printed = run(block)
      if strategy == nil then
        programs = programs + 1
        assert.is_true(#printed > 0)
        return
      end
      if type(strategy) == "function" then strategy = strategy(model) end
      strategies, lossy = strategies + 1, lossy + (is_lossless(strategy) and 0 or 1)
      compare(strategy)
    end)
  end

  it("is true to examples/strategies: each file returns a strategy", function()
    local found = 0
    for path in io.popen("ls " .. S.support.root .. "examples/strategies/*.lua"):lines() do
      found = found + 1
      local strategy = require("mav.session.file").read(path, model)
      assert.is_table(strategy, path)
      local s <close> = model:session { strategy = strategy, context = 64 }
      assert.is_truthy(s.loop.strategy.drafter, path)
    end
    assert.is_true(found >= 6)
  end)

  it("says in the README too that what loads may fail", function()
    for line in io.lines(S.support.root .. "README.md") do
      if line:find("eagle3\").load", 1, true) then assert.is_truthy(line:find("assert(", 1, true), line) end
    end
  end)

  it("has strategies, one with a rule of its own, and a program", function()
    assert.is_true(strategies >= 10 and lossy >= 1 and programs >= 1,
      ("%d strategies, %d lossy, %d programs"):format(strategies, lossy, programs))
  end)
end)
