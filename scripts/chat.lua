--- mav chat: a conversation on the terminal.
local cli = require "mav.cli"
local mav = require "mav"

local EXAMPLE = [[
mav chat --temperature 0.6 --top-p 0.9 --system 'You answer in one sentence.'
In the conversation: /reset starts over, /save FILE keeps a transcript, /stats, /help, /quit. Ctrl-C stops an answer.]]

local HELP = [[
/reset       forget the conversation
/save FILE   write it to FILE as JSON, one list of messages
/stats       figures of the last answer
/quit        leave (so does end of input)
Ctrl-C stops an answer; the conversation goes on from there.
]]

local function options()
  local p = cli.parser("chat", "Talks with the model in its conversation format.", EXAMPLE)
  cli.model_options(p)
  p:option("--system", "a system message to begin with"):argname("TEXT")
  p:option("--context", "most tokens of the whole conversation"):argname("N"):convert(cli.integer(16)):default("4096")
  p:option("--max-tokens", "most tokens of an answer"):argname("N"):convert(cli.integer(1, 1 << 30)):default("1024")
  cli.sample_options(p)
  cli.strategy_options(p)
  cli.kv_option(p)
  return p
end

local Chat = {}
Chat.__index = Chat

function Chat:reset()
  self.messages = {}
  self.session:reset()
  if self.system then self.messages[1] = { role = "system", content = self.system } end
end

--- The ids that a new question adds to the session: what the format puts between the turns included.
function Chat:question_ids(text)
  local tok, s = self.model.tokenizer, self.session
  local question = { role = "user", content = text }
  if #s == 0 then
    local list = { table.unpack(self.messages) }
    list[#list + 1] = question
    return self.template.encode(tok, list, { add_generation_prompt = true }), question
  end
  local ids = self.template.encode(tok, { question }, { begin = false, add_generation_prompt = true })
  local eot = tok:find("<|eot|>")
  if s.ids[#s] ~= eot then table.insert(ids, 1, eot) end -- the answer was cut short: close its turn
  return ids, question
end

function Chat:answer(text)
  local s, parts = self.session, {}
  local sound, ids, question = pcall(self.question_ids, self, text)
  if not sound then return io.stderr:write(tostring(ids), "\n") end -- not UTF-8: the conversation goes on
  local before = #s
  -- the host turns Ctrl-C into an error; what was said so far stays in the session
  local ok, err = pcall(function()
    for piece in s:generate(ids, { max_tokens = self.max_tokens }) do
      parts[#parts + 1] = piece
      io.write(piece):flush()
    end
  end)
  io.write("\n"):flush()
  if not ok then
    if not tostring(err):find("interrupted!", 1, true) then
      s:truncate(before)
      io.stderr:write(tostring(err), "\n")
      return
    end
    io.stderr:write("[stopped]\n")
  elseif s.stopped == "context" then
    io.stderr:write("[the context is full: /reset]\n")
  end
  table.insert(self.messages, question)
  table.insert(self.messages, { role = "assistant", content = table.concat(parts) })
end

function Chat:save(path)
  if path == "" then return io.stderr:write("/save FILE\n") end
  local file, err = io.open(path, "wb")
  if not file then return io.stderr:write(err, "\n") end
  file:write(mav.json.encode(mav.json.array(self.messages)), "\n")
  file:close()
end

--- Runs a /command; false: leave.
function Chat:command(line)
  local name, rest = line:match("^/(%S*)%s*(.-)%s*$")
  if name == "quit" or name == "exit" then return false end
  if name == "reset" then
    self:reset()
  elseif name == "save" then
    self:save(rest)
  elseif name == "stats" then
    io.stderr:write(cli.device_line(self.model.runtime), "\n", tostring(self.session.stats), "\n")
  else
    if name ~= "help" then io.stderr:write(("unknown command '/%s'\n"):format(name)) end
    io.stderr:write(HELP)
  end
  return true
end

--- A line from the terminal; nil at the end of input. Ctrl-C at the prompt asks again.
local function read_line()
  io.write("> "):flush()
  local ok, line = pcall(io.read, "L")
  if not ok then
    io.write("\n")
    return ""
  end
  return line and line:gsub("\n$", "")
end

local function run(arg)
  local args = cli.parse(options(), arg)
  local chain = cli.chain(args)
  local model = cli.load(args)
  if not model.tokenizer then cli.fail("%s", tostring(model.tokenizer_error)) end
  local positions = model.config.positions
  if args.context and args.context > positions then cli.fail("--context %d: the model has %d positions", args.context, positions) end
  local s <close> = cli.session(args, model, { strategy = cli.strategy(args, model, chain), kv_dtype = args.kv, context = args.context })
  local chat = setmetatable({ model = model, session = s, system = args.system, max_tokens = args.max_tokens,
    template = require("mav.maverick").chat_template }, Chat)
  chat:reset()
  while true do
    local line = read_line()
    if not line then break end
    if line:find("^/") then
      if not chat:command(line) then break end
    elseif line:find("%S") then
      chat:answer(line)
    end
  end
  io.write("\n")
  return 0
end

return { summary = "talk with the model", run = run }
