--- Names of modules against the patterns of quantization configs: shell globs, and as much of Python's regular expressions as
--- such patterns use: . classes \d \w \s | ( ) (?: ) (?= ) (?! ) ^ $ and the quantifiers * + ? {m,n}, also lazy ones.
---
--- The patterns are a stranger's. One that is not understood, or that takes too many steps, says nothing: nil, neither true nor
--- false.
local pattern = {}

local STEPS_MAX = 100000
local DEPTH_MAX = 32    -- of parentheses
local REPEAT_MAX = 1000 -- in {m,n}

-- A matcher is a function(text, i, next): does it match from i on, and then `next` from where it ends?

local steps

local function tick()
  steps = steps + 1
  if steps > STEPS_MAX then error("too many steps", 0) end
end

local function byte_matcher(is_in)
  return function(text, i, next)
    tick()
    local c = text:byte(i)
    return c ~= nil and is_in(c) and next(i + 1)
  end
end

local function sequence(items)
  return function(text, i, next)
    local function from(n, at)
      if n > #items then return next(at) end
      return items[n](text, at, function(after) return from(n + 1, after) end)
    end
    return from(1, i)
  end
end

local function alternatives(list)
  if #list == 1 then return list[1] end
  return function(text, i, next)
    for _, item in ipairs(list) do
      if item(text, i, next) then return true end
    end
    return false
  end
end

local function repeated(item, least, most, lazy)
  return function(text, i, next)
    local function from(n, at)
      tick()
      local function more()
        return n < most and item(text, at, function(after) return (after > at or n < least) and from(n + 1, after) end)
      end
      if n < least then return more() end
      if lazy then return next(at) or more() end
      return more() or next(at)
    end
    return from(0, i)
  end
end

local function ahead(item, wanted)
  return function(text, i, next) return (item(text, i, function() return true end) or false) == wanted and next(i) end
end

local SETS = { d = "%d", w = "[%w_]", s = "%s" }

--- A test of bytes for the escape \c, or the byte that it stands for.
local function escape(c)
  local set = SETS[c:lower()]
  if set then
    local wanted = c:lower() == c
    return function(b) return (string.char(b):find("^" .. set) ~= nil) == wanted end
  end
  if c:find "%w" then error("\\" .. c, 0) end
  return c:byte()
end

local function is_byte(b)
  return function(c) return c == b end
end

local Parser = {}
Parser.__index = Parser

function Parser:peek(n) return self.text:sub(self.at, self.at + (n or 1) - 1) end

function Parser:take(word)
  if self:peek(#word) ~= word then return false end
  self.at = self.at + #word
  return true
end

function Parser:class()
  local wanted, tests = not self:take "^", {}
  repeat
    local c = self:peek()
    if c == "" then error("[ without ]", 0) end
    self.at = self.at + 1
    local low = c:byte()
    if c == "\\" then
      low = escape(self:peek())
      self.at = self.at + 1
    end
    if type(low) == "function" then
      tests[#tests + 1] = low
    elseif self:peek() == "-" and self:peek(2) ~= "-]" then
      self.at = self.at + 1
      local high = self:peek():byte()
      self.at = self.at + 1
      if not high or high == 92 or high < low then error("range", 0) end
      tests[#tests + 1] = function(b) return b >= low and b <= high end
    else
      tests[#tests + 1] = is_byte(low)
    end
  until self:take "]"
  return byte_matcher(function(b)
    for _, test in ipairs(tests) do
      if test(b) then return wanted end
    end
    return not wanted
  end)
end

function Parser:group()
  self.depth = self.depth + 1
  if self.depth > DEPTH_MAX then error("too deep", 0) end
  local kind = self:take "?:" and "plain" or self:take "?=" and "ahead" or self:take "?!" and "not ahead" or "plain"
  if self:peek() == "?" then error("(" .. self:peek(2), 0) end
  local item = self:alternation()
  if not self:take ")" then error("( without )", 0) end
  self.depth = self.depth - 1
  return kind == "plain" and item or ahead(item, kind == "ahead")
end

function Parser:item()
  local c = self:peek()
  self.at = self.at + 1
  if c == "(" then return self:group() end
  if c == "[" then return self:class() end
  if c == "." then return byte_matcher(function(b) return b ~= 10 end) end
  if c == "^" then return function(_, i, next) return i == 1 and next(i) end end
  if c == "$" then return function(text, i, next) return i == #text + 1 and next(i) end end
  if c:find "[*+?{]" then error("nothing to repeat", 0) end
  local b = c:byte()
  if c == "\\" then
    b = escape(self:peek())
    self.at = self.at + 1
  end
  return byte_matcher(type(b) == "function" and b or is_byte(b))
end

--- least and most of a quantifier, or nil.
function Parser:quantifier()
  if self:take "*" then return 0, math.huge end
  if self:take "+" then return 1, math.huge end
  if self:take "?" then return 0, 1 end
  local low, comma, high, after = self.text:match("^{(%d*)(,?)(%d*)}()", self.at)
  if not low then return nil end
  if low == "" and high == "" then error("{}", 0) end
  self.at = after
  local least = tonumber(low) or 0
  local most = comma == "" and least or tonumber(high) or math.huge
  if least > REPEAT_MAX or (most ~= math.huge and most > REPEAT_MAX) then error("{}", 0) end
  return least, most
end

function Parser:sequence()
  local items = {}
  while self.at <= #self.text and not self:peek():find "[|)]" do
    local item = self:item()
    local least, most = self:quantifier()
    if least then item = repeated(item, least, most, self:take "?") end
    items[#items + 1] = item
  end
  return sequence(items)
end

function Parser:alternation()
  local list = {}
  repeat list[#list + 1] = self:sequence() until not self:take "|"
  return alternatives(list)
end

--- The common ones need no backtracking: a word, behind `.*` or at the beginning.
local function simple(text)
  local body = text:gsub("%$$", "")
  local rest = body:gsub("%.%*$", "")
  if body ~= text and rest == body then return nil end -- the word ends the name
  local word = rest:gsub("^%.%*", "")
  local literal = word:gsub("\\%.", "")
  if literal:find "[^%w_%-]" then return nil end
  local plain, is_first = word:gsub("\\%.", "."), word == rest
  return function(name)
    local at = name:find(plain, 1, true)
    return at ~= nil and (at == 1 or not is_first)
  end
end

--- A test of names from a regular expression that must match at their beginning, as Python's re.match.
---@param text string
---@return fun(name: string): boolean|nil   nil: it cannot be told
function pattern.regex(text)
  local plain = simple(text)
  if plain then return plain end
  local parser = setmetatable({ text = text, at = 1, depth = 0 }, Parser)
  local ok, matcher = pcall(function()
    local m = parser:alternation()
    if parser.at <= #text then error("unbalanced", 0) end
    return m
  end)
  if not ok then return function() return nil end end
  return function(name)
    steps = 0
    local done, found = pcall(matcher, name, 1, function() return true end)
    if not done then return nil end
    return found or false
  end
end

--- A test of names from a shell glob, which must match all of them: * ? [abc] [!abc].
---@param text string
---@return fun(name: string): boolean|nil
function pattern.glob(text)
  local regex = text:gsub("[%^%$%(%)%%%.%+%-|{}\\]", "\\%0"):gsub("%*", ".*"):gsub("%?", "."):gsub("%[!", "[^")
  regex = regex:gsub("%[(.-)%]", function(set) return "[" .. set:gsub("\\%-", "-") .. "]" end)
  return pattern.regex(regex .. "$")
end

return pattern
