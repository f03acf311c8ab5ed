local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local mav = require "mav"
local raises = support.raises

describe("the module", function()
  it("has a version and a clock", function()
    assert.truthy(mav.version:match("^%d+%.%d+%.%d+$"))
    local before = mav.now()
    assert.equal("float", math.type(before))
    assert.is_true(mav.now() >= before)
    assert.is_string(mav.errors.NOMEM)
  end)

  it("makes no global and prints nothing", function()
    local script = [[
      local before = {}
      for key in pairs(_G) do before[key] = true end
      local mav = require "mav"
      mav.default_runtime(mav.runtime { device = "ref" })
      local t = mav.tensor { 1, 2 } + 1
      require("mav.show").text(t)
      mav.graph({ rows = 1 }, function() return mav.tensor { 1 } + 1 end):launch()
      for key in pairs(_G) do if not before[key] then io.write("global ", key, "\n") end end
    ]]
    local dir <close> = support.directory()
    support.write(dir.path .. "/x.lua", script)
    local out, code = support.run(support.host() .. " " .. dir.path .. "/x.lua")
    assert.equal("", out)
    assert.equal(0, code)
  end)

  it("names its scripts", function()
    local function has(list, name)
      for _, n in ipairs(list) do
        if n == name then return true end
      end
      return false
    end
    assert.is_true(has(mav.scripts(), "tokenize"))
    assert.is_false(has(mav.scripts(), "cli")) -- a folder
    assert.is_false(has(mav.scripts "weights_tools", "tokenize"))
    raises("invalid option 'nothing'", mav.scripts, "nothing")
  end)

  it("finds its Lua half, after the user's own path", function()
    assert.is_function(require("mav.show").text)
    local ok, err = pcall(require, "mav.no.such.module")
    assert.is_false(ok)
    assert.truthy(err:find("no script 'scripts/no/such/module.lua'", 1, true))
    ok, err = pcall(require, "mav.weights_tools.no_tool")
    assert.is_false(ok)
    assert.truthy(err:find("no script 'weights-tools/no_tool.lua'", 1, true))
    local dir <close> = support.directory()
    assert(os.execute("mkdir " .. dir.path .. "/mav"))
    support.write(dir.path .. "/mav/show.lua", "return 'mine'")
    support.write(dir.path .. "/mav/other.lua", "return ...")
    local path, loaded = package.path, package.loaded["mav.show"]
    package.path = dir.path .. "/?.lua;" .. path
    package.loaded["mav.show"] = nil
    assert.equal("mine", require "mav.show")
    assert.equal("mav.other", require "mav.other")
    package.path, package.loaded["mav.show"], package.loaded["mav.other"] = path, loaded, nil
  end)

  it("does not leave its folders", function()
    for _, name in ipairs { "mav.../etc/passwd", "mav....x", "mav.", "mav.%", "mav.a\nb" } do
      assert.is_false((pcall(require, name)))
    end
  end)

  it("reports a script that does not compile", function()
    local dir <close> = support.directory()
    assert(os.execute("mkdir " .. dir.path .. "/mav"))
    support.write(dir.path .. "/mav/broken.lua", "x =")
    local path = package.path
    package.path = dir.path .. "/?.lua;" .. path
    raises("unexpected symbol near <eof>", require, "mav.broken")
    package.path = path
  end)

  it("has methods that refuse other objects", function()
    support.runtime()
    local objects = { mav.zeros { 1 }, mav.rows(1), assert(mav.comm()), mav.default_runtime() }
    for _, object in ipairs(objects) do
      for key, f in pairs(getmetatable(object)) do
        if type(f) == "function" and key ~= "__tostring" and key ~= "__newindex" then
          assert.is_false((pcall(f, io.stdout)), key)
          assert.is_false((pcall(f)), key)
        end
      end
    end
  end)
end)
