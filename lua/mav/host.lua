-- lua/mav/host.lua - sub-commands of the host program: finding them, running them, describing them.
--
-- A command is a module `mav.<name>` (scripts/<name>.lua, or one on the user's own path) that returns
-- {summary = "one line", run = function(arg) ... return exit_status end}. `arg` is as in a script: arg[0] is "mav <name>".
-- Owns no state. Called by lua/mav.c, which passes the names of the scripts and a function that guesses what was meant.
local host = {}

local options = [[
usage: mav [options] [script.lua | command] [args]

options, those of lua(1):
  -e stat      execute string 'stat'
  -i           enter interactive mode after executing 'script'
  -l mod       require library 'mod' into global 'mod'
  -l g=mod     require library 'mod' into global 'g'
  -v           show version information
  -E           ignore environment variables
  -W           turn warnings on
  --           stop handling options
  -            stop handling options and execute stdin
  -h, --help   show this text
]]

local function module_name(word) return "mav." .. word:gsub("-", "_") end

--- Whether some searcher knows the module; does not load it.
local function is_module(name)
  if package.loaded[name] or package.preload[name] then return true end
  for _, searcher in ipairs(package.searchers) do
    if type(searcher(name)) == "function" then return true end
  end
  return false
end

--- The command behind a word, or nil.
local function find(word)
  local name = module_name(word)
  if not is_module(name) then return nil end
  local module = require(name)
  if type(module) == "table" and type(module.summary) == "string" and type(module.run) == "function" then return module end
  return nil
end

--- All commands among the scripts: a sorted list of {name, summary}.
local function list(names)
  local commands = {}
  for _, name in ipairs(names) do
    local ok, command = pcall(find, name)
    if not ok then
      commands[#commands + 1] = { (name:gsub("_", "-")), "(broken: " .. tostring(command):match("[^\n]*") .. ")" }
    elseif command then
      commands[#commands + 1] = { (name:gsub("_", "-")), command.summary }
    end
  end
  commands[#commands + 1] = { "help", "says more about a command: mav help NAME" }
  table.sort(commands, function(a, b) return a[1] < b[1] end)
  return commands
end

local function fail(word, message)
  io.stdout:flush()
  io.stderr:write("mav ", word, ": ", message, "\n")
end

local function is_error(e)
  local mt = type(e) == "table" and getmetatable(e)
  return mt and mt.__name == "mav.error"
end

--- One line for the user; the traceback only when it is asked for.
local function describe(e)
  local text, trace = tostring(e), nil
  if is_error(e) then trace = e.traceback end
  local at = text:find("\nstack traceback:", 1, true)
  if at then text, trace = text:sub(1, at - 1), text:sub(at + 1) end
  if os.getenv("MAV_TRACEBACK") == "1" then return text .. "\n" .. (trace or debug.traceback(nil, 3)) end
  return (text:gsub("%s*\n%s*", "; "))
end

local function exit_status(ok, err)
  if ok == nil and err ~= nil then return nil, err end
  if ok == nil or ok == true then return 0 end
  if math.type(ok) == "integer" then return ok end
  return 1
end

local function run(word, command, args)
  args[0] = "mav " .. word
  _G.arg = args
  local function handler(e) return { describe(e), tostring(e):find("interrupted!", 1, true) } end
  local ok, status, err = xpcall(function() return exit_status(command.run(args)) end, handler)
  if not ok then
    fail(word, status[1])
    return status[2] and 130 or 1
  elseif not status then
    fail(word, (tostring(err):gsub("%s*\n%s*", "; ")))
    return 1
  end
  return status
end

local function unknown(word, names, hint)
  local known = {}
  for i, command in ipairs(list(names)) do known[i] = command[1] end
  return ("no command and no file '%s' (%s)"):format(word, hint(word, known))
end

local function is_file(path)
  local file = io.open(path, "r")
  if file then file:close() end
  return file ~= nil
end

--- Runs `mav word args...`: returns its exit status, or nil when word is no command but a file.
function host.command(word, args, names, hint)
  if word == "help" and not is_file(word) then
    if not args[1] then
      host.help(names)
      return 0
    end
    local ok, command = pcall(find, args[1])
    if not ok then
      fail("help", describe(command))
      return 1
    elseif not command then
      fail("help", unknown(args[1], names, hint))
      return 1
    end
    return run(args[1], command, { "--help" })
  end
  local ok, command = xpcall(find, function(e) return describe(e) end, word)
  if not ok then
    fail(word, command)
    return 1
  elseif command then
    return run(word, command, args)
  elseif is_file(word) then
    return nil
  end
  io.stderr:write("mav: ", unknown(word, names, hint), "\n")
  return 1
end

--- Prints the interpreter's options and the commands.
function host.help(names)
  local commands, width = list(names), 0
  for _, command in ipairs(commands) do width = math.max(width, #command[1]) end
  io.write(options, "\ncommands:\n")
  for _, command in ipairs(commands) do io.write(("  %-" .. width .. "s   %s\n"):format(command[1], command[2])) end
end

return host
