--- Drafters by name, as on a command line:
---
---     none                 no speculation
---     ngram[=N]            prompt lookup with matches of up to N tokens (4)
---     suffix               suffix lookup with frequencies
---     self=N               every N-th layer of the model drafts
---     model=DIR            a small model drafts
---     eagle3=DIR           an EAGLE-3 head drafts
---     FILE.lua             that of a file, which returns a drafter, a strategy or function(model)
---     ngram,eagle3=DIR     the first that has something to say
---
--- A drafter of your own is an object with the same methods (eagle3.lua, ngram.lua), or a function(ids, length, k, out) -> n that
--- writes proposals into out[1..n].
local file = require "mav.session.file"
local first = require "mav.draft.first"

local draft = {}

draft.names = { "none", "ngram[=N]", "suffix", "self=N", "model=DIR", "eagle3=DIR", "FILE.lua" }

local function integer(name, text)
  local n = math.tointeger(tonumber(text))
  if not n or n < 1 or n > 64 then return nil, ("%s=%s: an integer from 1 to 64 is allowed"):format(name, text) end
  return n
end

--- Each takes the text after "=" (nil without one), the model and the options; a drafter, or nil and what is wrong.
local MAKERS = {}

function MAKERS.ngram(text)
  if not text then return require "mav.draft.ngram" () end
  local n, err = integer("ngram", text)
  return n and require "mav.draft.ngram" { n_max = n }, err
end

function MAKERS.suffix(text)
  if text then return nil, "suffix takes no value" end
  return require "mav.draft.suffix" ()
end

function MAKERS.self(text)
  if not text then return nil, "self needs a number: self=2 drafts with every second layer" end
  local n, err = integer("self", text)
  return n and require "mav.draft.self"(n), err
end

local function from_directory(name)
  return function(text, model, options)
    if not text or text == "" then return nil, ("%s needs a directory: %s=DIR"):format(name, name) end
    return require("mav.draft." .. name).load(text, model, options)
  end
end
MAKERS.model, MAKERS.eagle3 = from_directory "model", from_directory "eagle3"

--- What is wrong with a module of drafters in the place of a drafter, as a text; nil: it is none.
function draft.uncalled(value)
  for name, module in pairs(package.loaded) do
    if module == value and type(name) == "string" and name:find "^mav%.draft%." then
      local maker = type(value) == "table" and value.load and ".load(DIR, model)" or " { ... }"
      return ("%s is a module, which makes drafters: call it, require(%q)%s"):format(name, name, maker)
    end
  end
  return nil
end

--- A drafter of a user's file: the file returns one, or a strategy, whose drafter is taken, or function(model) that returns either.
local function from_file(path, model)
  local ok, value = pcall(file.read, path, model, function(f) return not draft.uncalled(f) end)
  if not ok then return nil, value end
  if type(value) == "table" and value.kind == nil and value.draft ~= nil then value = value.draft end
  local uncalled = draft.uncalled(value)
  if uncalled then return nil, path .. ": " .. uncalled end
  if type(value) == "function" then return first.host(value, path:match "([^/]*)%.lua$") end
  if type(value) == "table" and value.kind then return value end
  local wrong = file.described(path, value)
  if type(value) == "table" then wrong = wrong .. " with neither kind (a drafter's) nor draft (a strategy's)" end
  return nil, wrong .. "; a drafter, a strategy that has one, or function(model) is expected"
end

--- The drafter that a text describes; nil without an error for "none".
---@param text string
---@param model table   whom it drafts for
---@param options table|nil   dtype, progress of the drafters that are loaded
---@return table|nil drafter
---@return any err
function draft.parse(text, model, options)
  if text == "none" then return nil end
  local list = {}
  for word in (text .. ","):gmatch "([^,]*)," do
    if word == "none" then return nil, "none stands alone: there is nothing to combine it with" end
    local name, value = word:match "^([^=]*)=(.*)$"
    local make = MAKERS[name or word]
    if not make and word:find "%.lua$" then make, value = from_file, word end
    if not make then
      return nil, ("'%s' is not a drafter; %s are, and lists with commas"):format(word, table.concat(draft.names, ", "))
    end
    local drafter, err = make(value, model, options)
    if not drafter then return nil, err end
    list[#list + 1] = drafter
  end
  if #list == 1 then return list[1] end
  local ok, result = pcall(first.new, list)
  if not ok then return nil, (tostring(result):gsub("^[^:]+:%d+: ", "")) end
  return result
end

return draft
