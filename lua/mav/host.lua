-- lua/mav/host.lua - sub-commands of the host program: finding them, running them, describing them.
--
-- A command is a module `mav.<name>` (scripts/<name>.lua, or one on the user's own path) that returns
-- {summary = "one line", run = function(arg) ... return exit_status end}. `arg` is as in a script: arg[0] is "mav <name>".
-- A group is a command with commands of its own: host.group.
-- Called by lua/mav.c, which passes the names of the scripts and a function that guesses what was meant; it stays in host.hint.
local mav = require "mav"

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

--- All commands among the scripts: a sorted list of {name, summary}. prefix: of their modules ("weights_tools.").
local function list(names, prefix)
  local commands = {}
  for _, name in ipairs(names) do
    local ok, command = pcall(find, (prefix or "") .. name)
    if not ok then
      commands[#commands + 1] = { (name:gsub("_", "-")), "(broken: " .. tostring(command):match("[^\n]*") .. ")" }
    elseif command then
      commands[#commands + 1] = { (name:gsub("_", "-")), command.summary }
    end
  end
  if not prefix then commands[#commands + 1] = { "help", "says more about a command: mav help NAME" } end
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
  if text:find("interrupted!", 1, true) then text = "interrupted" end
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

local function names_of(commands)
  local names = {}
  for i, command in ipairs(commands) do names[i] = command[1] end
  return names
end

local function unknown(word, names)
  return ("no command and no file '%s' (%s)"):format(word, host.hint(word, names_of(list(names))))
end

--- Until lua/mav.c has passed its own.
function host.hint(_, known) return "valid: " .. table.concat(known, ", ") end

local function write_list(commands)
  local width = 0
  for _, command in ipairs(commands) do width = math.max(width, #command[1]) end
  for _, command in ipairs(commands) do io.write(("  %-" .. width .. "s   %s\n"):format(command[1], command[2])) end
end

local function is_file(path)
  local file = io.open(path, "r")
  if file then file:close() end
  return file ~= nil
end

--- Runs `mav word args...`: returns its exit status, or nil when word is no command but a file.
function host.command(word, args, names, hint)
  host.hint = hint
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
      fail("help", unknown(args[1], names))
      return 1
    end
    local word_of = table.remove(args, 1)
    args[#args + 1] = "--help"
    return run(word_of, command, args)
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
  io.stderr:write("mav: ", unknown(word, names), "\n")
  return 1
end

--- A command that runs those of a group of scripts, the modules mav.<group>.<name>: mav WORD NAME args...
---@param word string   its own name
---@param group string   as of mav.scripts
---@param summary string   one line
---@return table command
function host.group(word, group, summary)
  local prefix = group .. "."
  local function run_one(args)
    local name = table.remove(args, 1)
    if name == "help" then
      name = table.remove(args, 1)
      args[#args + 1] = "--help"
    end
    if not name or name == "--help" or name == "-h" then
      io.write("usage: mav ", word, " NAME [args]\n\n", summary, "\n\ncommands (mav ", word, " NAME --help says more):\n")
      write_list(list(mav.scripts(group), prefix))
      return name and 0 or 1
    end
    local command = not name:find "[^%w_-]" and find(prefix .. name)
    if not command then
      local known = names_of(list(mav.scripts(group), prefix))
      error(("no command '%s' (%s)"):format(name, host.hint(name, known)), 0)
    end
    return run(word .. " " .. name, command, args)
  end
  return { summary = summary, run = run_one }
end

--- Prints the interpreter's options and the commands.
function host.help(names)
  io.write(options, "\ncommands:\n")
  write_list(list(names))
end

return host
