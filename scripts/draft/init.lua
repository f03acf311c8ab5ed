--- Drafters by name, as on a command line:
---
---     none                 no speculation
---     ngram[=N]            prompt lookup with matches of up to N tokens (4)
---     suffix               suffix lookup with frequencies
---     self=N               every N-th layer of the model drafts
---     model=DIR            a small model drafts
---     eagle3=DIR           an EAGLE-3 head drafts
---     ngram,eagle3=DIR     the first that has something to say
---
--- A drafter of your own is an object with the same methods (eagle3.lua, ngram.lua), or a function(ids, length, k, out) -> n that
--- writes proposals into out[1..n].
local draft = {}

draft.names = { "none", "ngram[=N]", "suffix", "self=N", "model=DIR", "eagle3=DIR" }

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
    if not make then
      return nil, ("'%s' is not a drafter; %s are, and lists with commas"):format(word, table.concat(draft.names, ", "))
    end
    local drafter, err = make(value, model, options)
    if not drafter then return nil, err end
    list[#list + 1] = drafter
  end
  if #list == 1 then return list[1] end
  local ok, result = pcall(require("mav.draft.first").new, list)
  if not ok then return nil, (tostring(result):gsub("^[^:]+:%d+: ", "")) end
  return result
end

return draft
