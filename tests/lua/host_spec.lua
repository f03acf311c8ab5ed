local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local mav = require "mav"

local host = support.host()
local clean = "env -u LUA_INIT -u LUA_INIT_5_4 -u LUA_PATH -u LUA_CPATH "

--- Output and exit status of the host with these shell arguments.
local function run(arguments, environment) return support.run(clean .. (environment or "") .. " " .. host .. " " .. arguments) end

describe("host", function()
  local dir
  setup(function() dir = support.directory() end)
  teardown(function() getmetatable(dir).__close() end)

  local function file(name, text)
    support.write(dir.path .. "/" .. name, text)
    return dir.path .. "/" .. name
  end

  local function is(text, status, arguments, environment)
    local out, code = run(arguments, environment)
    assert.equal(text, out)
    assert.equal(status, code)
  end

  local function has(text, status, arguments, environment)
    local out, code = run(arguments, environment)
    assert.truthy(out:find(text, 1, true), ("'%s' expected in: %s"):format(text, out))
    assert.equal(status, code)
  end

  it("runs strings", function()
    is("3\n", 0, "-e 'print(1 + 2)'")
    is("1\n2\n", 0, "-e 'x = 1 print(x)' -e 'print(x + 1)'")
    is("1\n", 0, "-e'print(1)'")
    has("mav: (command line):1:", 1, "-e 'x ='")
    has("'-e' needs argument", 1, "-e")
  end)

  it("runs scripts with arg and ...", function()
    local path = file("args.lua", "print(arg[0], #arg, arg[1], arg[2], ...) print(arg[-1] ~= nil)")
    is(path .. "\t2\ta\tb c\ta\tb c\ntrue\n", 0, path .. " a 'b c'")
    is("-\t1\tx\tnil\tx\ntrue\n", 0, "- x < " .. path)
    is(path .. "\t0\tnil\tnil\ntrue\n", 0, "-- " .. path)
    has("cannot open", 1, "/nowhere/x.lua")
    has("#!", 0, "-e 'print \"#!\"'")
    file("shebang.lua", "#!/usr/bin/env mav\nprint 'ok'")
    is("ok\n", 0, dir.path .. "/shebang.lua")
  end)

  it("runs stdin when it is no terminal", function()
    is("5\n", 0, "", "echo 'print(5)' |")
    is("4\n", 0, "-", "echo 'print(4)' |")
  end)

  it("requires libraries", function()
    is("table\n", 0, "-l mav -e 'print(type(mav))'")
    is("table\n", 0, "-lm=mav -e 'print(type(m))'")
    has("module 'nothing' not found", 1, "-l nothing")
    is("nil\n", 0, "-e 'print(mav)'")
    is("function\n", 0, "-e 'print(type(require \"argparse\"().parse))'")
    is("function\n", 0, "-e 'print(type(require \"mav.maverick\".load))'") -- without mav before it
    is("function\n", 0, file("modules.lua", "print(type(require 'mav.draft.ngram'))"))
  end)

  it("loads C modules", function()
    is("true\n", 0, "-e 'print(pcall(require, \"lfs\"))' | cut -c1-4")
  end)

  it("heeds LUA_INIT, unless told not to", function()
    is("init\n1\n", 0, "-e 'print(1)'", "LUA_INIT='print \"init\"'")
    is("init54\n", 0, "-e ''", "LUA_INIT=x LUA_INIT_5_4='print \"init54\"'")
    is("1\n", 0, "-E -e 'print(1)'", "LUA_INIT='print \"init\"'")
    local path = file("init.lua", "print 'from file'")
    is("from file\n", 0, "-e ''", "LUA_INIT=@" .. path)
    has("LUA_INIT:1:", 1, "-e 'print(1)'", "LUA_INIT='error()x'")
  end)

  it("has versions and warnings", function()
    has("mav " .. mav.version, 0, "-v")
    has("Lua 5.4", 0, "--version")
    has("Lua warning: care", 0, "-W -e 'warn \"care\"'")
    is("", 0, "-e 'warn \"care\"'")
    has("unrecognized option '-x'", 1, "-x")
    has("unrecognized option '--hlep'", 1, "--hlep")
    has("unrecognized option '-vv'", 1, "-vv")
  end)

  it("reports errors with a traceback", function()
    local path = file("bad.lua", "local function f() error('oops') end\nf()")
    has("mav: " .. path .. ":1: oops\nstack traceback:", 1, path)
    has("mav: custom", 1, "-e \"error(setmetatable({}, {__tostring = function() return 'custom' end}))\"")
    has("(error object is a table value)", 1, "-e 'error {}'")
    has("add: shapes (2) and (3) do not broadcast (SHAPE)\nstack traceback:", 1,
      [[-l mav -e 'mav.default_runtime(mav.runtime{device="ref"}) return mav.zeros{2} + mav.zeros{3}']])
    is("", 7, "-e 'os.exit(7)'")
    has("attempt to compare", 1, "-e 'return 1 < {}'")
  end)

  it("lists its commands", function()
    local out, code = run "--help"
    assert.equal(0, code)
    assert.truthy(out:find("usage: mav", 1, true))
    assert.truthy(out:find("\n  help ", 1, true))
    assert.falsy(out:find("broken", 1, true))
    assert.equal(out, (run "help"))
    assert.equal(out, (run "-h"))
  end)

  it("names the command that was meant", function()
    has("mav: no command and no file 'hepl' (did you mean 'help'?)\n", 1, "hepl")
    has("mav help: no command and no file 'hepl'", 1, "help hepl")
    has("no command and no file 'show'", 1, "show") -- a module, no command
  end)

  describe("runs commands", function()
    local environment
    setup(function()
      assert(os.execute("mkdir -p " .. dir.path .. "/mav"))
      environment = "LUA_PATH='" .. dir.path .. "/?.lua;;'"
      file("mav/try_out.lua", [[
        local actions = {
          status = function() return 3 end,
          yes = function() return true end,
          no = function() return false end,
          err = function() return nil, "told\nso" end,
          fail = function() error("went wrong\non two lines", 0) end,
          world = function() assert(require("mav").weights "/nowhere") end,
          arg = function(arg) print(arg[0], #arg, arg[2], _G.arg == arg) end,
          exit = function() os.exit(4) end,
          none = function() end,
          ["--help"] = function() print "the help" end,
        }
        return { summary = "tries things", run = function(arg) return actions[arg[1] ](arg) end }
      ]])
    end)

    it("and returns their exit status", function()
      is("", 3, "try-out status", environment)
      is("", 0, "try_out yes", environment)
      is("", 1, "try-out no", environment)
      is("", 0, "try-out none", environment)
      is("", 4, "try-out exit", environment)
      is("mav try-out\t2\tb\ttrue\n", 0, "try-out arg b", environment)
    end)

    it("and prints one line when they fail", function()
      is("mav try-out: told; so\n", 1, "try-out err", environment)
      is("mav try-out: went wrong; on two lines\n", 1, "try-out fail", environment)
      is("mav try-out: weights_open: /nowhere: no such directory (NOTFOUND)\n", 1, "try-out world", environment)
      has("mav try-out: went wrong\non two lines\nstack traceback:", 1, "try-out fail", environment .. " MAV_TRACEBACK=1")
    end)

    it("and helps with them", function()
      is("the help\n", 0, "help try-out", environment)
      file("mav/bad_one.lua", "x =")
      has("mav bad-one:", 1, "bad-one", environment)
    end)
  end)

  it("runs the commands of a group", function()
    assert(os.execute("mkdir -p " .. dir.path .. "/mav/weights_tools"))
    local environment = "LUA_PATH='" .. dir.path .. "/?.lua;;'"
    file("mav/weights_tools/try_out.lua", [[
      return { summary = "tries things", run = function(arg)
        if arg[1] == "fail" then error("went wrong", 0) end
        print(arg[0], #arg, arg[1])
        return 3
      end }
    ]])
    is("mav weights try-out\t2\ta\n", 3, "weights try-out a b", environment)
    is("mav weights try-out\t1\t--help\n", 3, "weights help try-out", environment)
    is("mav weights try-out\t1\t--help\n", 3, "help weights try-out", environment)
    is("mav weights try-out: went wrong\n", 1, "weights try-out fail", environment)
    has("mav weights: no command 'nothing'", 1, "weights nothing")
    has("mav weights: no command 'convert.x'", 1, "weights convert.x")
    local out, code = run "weights --help"
    assert.equal(0, code)
    assert.truthy(out:find("usage: mav weights NAME", 1, true))
    assert.falsy(out:find("broken", 1, true))
    assert.equal(out, (run "help weights"))
    has("usage: mav weights NAME", 1, "weights")
  end)

  it("is quiet about a closed pipe", function()
    local out = support.run(host .. " -e 'for i = 1, 1e5 do print(i) end' | head -1")
    assert.equal("1\n", out)
    is("", 0, "-e 'print(1)' >&-")
    is("", 0, "-e 'io.stderr:write(\"x\")' 2>&-")
    has("mav: cannot write to stdout", 1, "-e 'print(1)' > /dev/full")
    local path = file("fd.lua", "local f = io.open(arg[0]) print('lost') io.write(f:read('l'):sub(1, 5))")
    is("", 0, path .. " >&-")
  end)

  it("reads, evaluates and prints", function()
    local function repl(lines) return (run("-i 2>&1", "printf '%s\\n' " .. lines .. " |"):gsub("^[^\n]*\n", "")) end
    assert.equal("> 3\n> \n", repl "'1 + 2'")
    assert.equal("> 3\t4\n> \n", repl "'=1 + 2, 4'")
    assert.equal("> >> >> 7\n> \n", repl "'for i = 7, 7 do' 'print(i)' 'end'")
    assert.equal("> > 5\n> \n", repl "'x = 5' 'x'")
    assert.truthy(repl("'error \"e1\"' '2'"):find("e1\nstack traceback:.*> 2\n"))
    assert.truthy(repl("'x = = 1'"):find("unexpected symbol", 1, true))
    assert.truthy(repl("'for i = 1,'"):find("<eof>", 1, true))
    assert.equal("? \n", repl("'_PROMPT = \"? \"'"):gsub("^> ", ""))
    assert.truthy(repl("'print = nil' '1'"):find("error calling 'print'", 1, true))
    assert.equal("> nil\n> \n", repl "'nil'")
  end)

  it("makes no history when it is not interactive", function()
    run("-i", "XDG_STATE_HOME=" .. dir.path .. "/state echo 1 |")
    run("-e 'x = 1'", "XDG_STATE_HOME=" .. dir.path .. "/state")
    assert.is_nil(io.open(dir.path .. "/state/mav/history"))
  end)
end)

describe("a stock Lua", function()
  it("requires the module", function()
    local module = os.getenv "MAV_MODULE"
    if not module then return pending("MAV_MODULE is not set") end
    local out, code = support.run(("LUA_CPATH='%s/?.so' lua5.4 -e 'local mav = require \"mav\" " ..
      "mav.default_runtime(mav.runtime{device=\"ref\"}) print(mav.version, mav.tensor{1} + 1) mav.show(mav.tensor{1})'"):format(module))
    assert.equal(mav.version .. "\tmav.tensor f32 (1) ref\n[1.]\nmav.tensor f32 (1) ref\n", out)
    assert.equal(0, code)
  end)

  it("sees one symbol of it", function()
    local module = os.getenv "MAV_MODULE"
    if not module then return pending("MAV_MODULE is not set") end
    local out = support.run("nm -D --defined-only " .. module .. "/mav.so")
    assert.truthy(out:match("^%x+ T luaopen_mav\n$"))
  end)
end)
