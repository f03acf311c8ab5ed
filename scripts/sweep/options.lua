--- Lists on the command line of a sweep.
local options = {}

--- "a,b": the parts, without empty ones.
function options.words(text)
  local list = {}
  for word in text:gmatch "[^,]+" do list[#list + 1] = word end
  if #list == 0 then return nil, "an empty list" end
  return list
end

--- "0..8", "1,2,4", "0..4,8": depths, ascending, each once.
function options.depths(text)
  local seen, list = {}, {}
  for word in (text .. ","):gmatch "([^,]*)," do
    local first, last = word:match "^(%d+)%.%.(%d+)$"
    first, last = math.tointeger(tonumber(first or word)), math.tointeger(tonumber(last or word))
    if not first or not last or first < 0 or last < first or last > 63 then
      return nil, ("'%s': depths from 0 to 63 are allowed, as 0..8 or 1,2,4"):format(text)
    end
    for k = first, last do
      if not seen[k] then list[#list + 1] = k end
      seen[k] = true
    end
  end
  table.sort(list)
  return list
end

--- "0,0.7": numbers from 0 on.
function options.numbers(text)
  local list = {}
  for word in (text .. ","):gmatch "([^,]*)," do
    local x = tonumber(word)
    if not x or x < 0 or x == math.huge then return nil, ("'%s': numbers from 0 on are allowed, separated by commas"):format(text) end
    list[#list + 1] = x
  end
  return list
end

--- "ngram,self=2+..." in several options: a list of drafters, each as mav.draft.parse takes it. A comma separates drafters of the
--- sweep; "+" joins those that draft together ("ngram+self=2": self drafts when ngram has nothing).
function options.drafters(texts)
  local list, seen = {}, {}
  for _, text in ipairs(texts) do
    for word in text:gmatch "[^,]+" do
      if not seen[word] then list[#list + 1] = { text = word, spec = (word:gsub("%+", ",")) } end
      seen[word] = true
    end
  end
  return list
end

return options
