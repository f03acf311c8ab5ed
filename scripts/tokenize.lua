--- mav tokenize: text to ids and back.
local cli = require "mav.cli"
local mav = require "mav"

local EXAMPLE = [[
mav tokenize 'local t = {}'                 # 1234,17,88
mav tokenize --json < file.lua              # {"ids":[...]}
mav tokenize --decode 1234,17,88            # local t = {}]]

local function options()
  local p = cli.parser("tokenize", "Turns text into token ids, or with --decode ids into text. Reads stdin when none is given.", EXAMPLE)
  cli.model_options(p, false)
  p:argument("input", "the text, or with --decode the ids"):args("*")
  p:flag("--decode -d", "ids to text")
  p:flag("--bos", "begin with the begin-of-text id")
  p:flag("--plain", "special tokens in the text are plain text")
  p:flag("--skip-special", "with --decode: leave special tokens out")
  p:flag("--pieces", "a line for every id, with its bytes")
  p:flag("--json", "print one object: ids, or with --decode text")
  return p
end

local function print_pieces(tok, ids)
  for _, id in ipairs(ids) do
    io.write(("%d\t%s\n"):format(id, (("%q"):format(tok:piece(id) or "?"):gsub("\\\n", "\\n"))))
  end
end

local function decode(tok, args, input)
  local ids, why = cli.ids((input:gsub("[%[%]]", " ")))
  if not ids then
    if input:find("%S") then cli.fail("%s", why) end
    ids = {}
  end
  for i, id in ipairs(ids) do
    if not tok:piece(id) then cli.fail("id %d is %d, which is no token of this model", i, id) end
  end
  if args.pieces then return print_pieces(tok, ids) end
  local text = assert(tok:decode(ids, { skip_special = args.skip_special }))
  io.write(args.json and mav.json.encode { text = text } or text, "\n")
end

local function encode(tok, args, input)
  local ids = assert(tok:encode(input, { bos = args.bos or false, special = not args.plain }))
  if args.pieces then return print_pieces(tok, ids) end
  if args.json then
    io.write(('{"ids":[%s]}\n'):format(table.concat(ids, ",")))
  else
    io.write(table.concat(ids, ","), "\n")
  end
end

local function run(arg)
  local args = cli.parse(options(), arg)
  local tok, err = mav.tokenizer(cli.model_dir(args) .. "/tokenizer.json")
  if not tok then cli.fail("%s", tostring(err)) end
  local input = #args.input > 0 and table.concat(args.input, args.decode and "," or " ") or io.read("a");
  (args.decode and decode or encode)(tok, args, input)
  return 0
end

return { summary = "text to token ids and back", run = run }
