--- Prompts of a sweep: a file of JSON lines { "prompt": text, "family": name }, a text file with blank lines between prompts, or a
--- few of our own.
local cli = require "mav.cli"
local mav = require "mav"

local prompts = {}

prompts.DEFAULT = {
  { family = "function", prompt = [[
-- returns the sum of the squares of the even numbers in the list
local function sum_even_squares(list)
]] },
  { family = "function", prompt = [[
-- counts the vowels in the string
local function count_vowels(s)
]] },
  { family = "edit", prompt = [[
-- before
local function largest(list)
  local best = nil
  for _, v in ipairs(list) do
    if best == nil or v > best then
      best = v
    end
  end
  return best
end

-- after: rename largest to maximum
]] },
  { family = "edit", prompt = [[
-- before
local function count_odd(list)
  local count = 0
  for _, v in ipairs(list) do
    if v % 2 == 1 then
      count = count + 1
    end
  end
  return count
end

-- after: rename the parameter list to values
]] },
}

local function json_lines(path, text)
  local list, number = {}, 0
  for line in text:gmatch "([^\n]*)\n?" do
    number = number + 1
    if line:find "%S" then
      local object, err = mav.json.decode(line)
      if err then cli.fail("%s: line %d: %s", path, number, tostring(err)) end
      if type(object) ~= "table" or type(object.prompt) ~= "string" or object.prompt == "" then
        cli.fail("%s: line %d: an object with a text \"prompt\" is expected", path, number)
      end
      local family = object.family
      if family ~= nil and type(family) ~= "string" then cli.fail("%s: line %d: \"family\" is no text", path, number) end
      list[#list + 1] = { prompt = object.prompt, family = family or "all" }
    end
  end
  return list
end

--- Blocks of lines; the last one of each keeps its end of line, as the models' prompts do.
local function plain_text(text)
  local list, block = {}, {}
  local function finish()
    if #block > 0 then list[#list + 1] = { prompt = table.concat(block, "\n") .. "\n", family = "all" } end
    block = {}
  end
  for line in (text:gsub("\r\n", "\n") .. "\n"):gmatch "([^\n]*)\n" do
    if line:find "%S" then block[#block + 1] = line else finish() end
  end
  finish()
  return list
end

--- The prompts of a file: a list of { prompt =, family = }.
function prompts.read(path)
  if not path then return prompts.DEFAULT end
  local text = cli.read_file(path)
  local list = text:find "^%s*{" and json_lines(path, text) or plain_text(text)
  if #list == 0 then cli.fail("%s: no prompts", path) end
  return list
end

--- Adds the ids of each: prompt.ids. Fails by number where one cannot be encoded or does not fit.
function prompts.encode(list, model, max_tokens)
  local positions = model.config.positions
  for i, entry in ipairs(list) do
    local ids, err = model:encode(entry.prompt)
    if not ids then cli.fail("prompt %d: %s", i, tostring(err)) end
    if #ids + max_tokens + 1 > positions then
      cli.fail("prompt %d has %d tokens, with %d more it does not fit the model's %d positions", i, #ids, max_tokens, positions)
    end
    entry.ids = ids
  end
  return list
end

return prompts
