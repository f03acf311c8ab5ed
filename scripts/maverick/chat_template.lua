--- The Llama 4 conversation format:
---
---   <|begin_of_text|> then per message <|header_start|>ROLE<|header_end|>\n\nTEXT<|eot|>, and to let the model speak
---   <|header_start|>assistant<|header_end|>\n\n
---
--- The text of a system message that comes first is trimmed; all other text is kept as it is. The tool messages of the
--- public template are not covered.
local chat_template = {}

local BEGIN, HEADER, HEADER_END, END = "<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>"

--- White space beyond ASCII's, which a template's trim removes too.
local WIDE_SPACES = {}
for _, c in ipairs { 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000 } do WIDE_SPACES[#WIDE_SPACES + 1] = utf8.char(c) end
for c = 0x2000, 0x200A do WIDE_SPACES[#WIDE_SPACES + 1] = utf8.char(c) end

local function trim(text)
  local before
  repeat
    before, text = #text, text:match("^[%s\x1c-\x1f]*(.-)[%s\x1c-\x1f]*$")
    for _, space in ipairs(WIDE_SPACES) do
      if text:sub(1, #space) == space then text = text:sub(#space + 1) end
      if text:sub(-#space) == space then text = text:sub(1, -#space - 1) end
    end
  until #text == before
  return text
end

local function text_of(message, i)
  local content = message.content
  if type(content) == "string" then return content end
  if type(content) ~= "table" then error(("message %d: content must be a string or a list of parts"):format(i), 0) end
  local texts = {}
  for _, part in ipairs(content) do
    if part.type == "text" then texts[#texts + 1] = part.text end
  end
  return table.concat(texts)
end

--- Calls emit(text, is_format) for the pieces of a rendering: the format's own, and the messages' words.
local function pieces(messages, options, emit)
  if options.begin ~= false then emit(BEGIN, true) end
  for i, message in ipairs(messages) do
    if type(message.role) ~= "string" then error(("message %d: role must be a string"):format(i), 0) end
    local text = text_of(message, i)
    if i == 1 and message.role == "system" then text = trim(text) end
    emit(HEADER, true)
    emit(message.role, false)
    emit(HEADER_END, true)
    emit("\n\n" .. text, false)
    emit(END, true)
  end
  if options.add_generation_prompt then
    emit(HEADER, true)
    emit("assistant", false)
    emit(HEADER_END, true)
    emit("\n\n", false)
  end
end

--- The rendered text. options.add_generation_prompt: open the assistant's turn; options.begin = false: without
--- <|begin_of_text|>, to continue a conversation.
---@param messages table[]   each { role =, content = string or list of { type = "text", text = } }
---@return string
function chat_template.render(messages, options)
  local out = {}
  pieces(messages, options or {}, function(text) out[#out + 1] = text end)
  return table.concat(out)
end

--- Ids of the rendering. What a message says stays plain text: "<|eot|>" typed by a user does not end the turn. With
--- options.special = true it does, as in Hugging Face's apply_chat_template.
---@param tok userdata   mav.tokenizer
---@return integer[]
function chat_template.encode(tok, messages, options)
  options = options or {}
  if options.special then return assert(tok:encode(chat_template.render(messages, options), { bos = false, special = true })) end
  local ids = {}
  pieces(messages, options, function(text, is_format)
    for _, id in ipairs(assert(tok:encode(text, { bos = false, special = is_format }))) do ids[#ids + 1] = id end
  end)
  return ids
end

return chat_template
