local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local mav = require "mav"
local raises = support.raises

describe("tokenizer", function()
  local tok
  setup(function() tok = assert(mav.tokenizer(support.model)) end)
  teardown(function() tok = nil end)

  it("encodes and decodes", function()
    local text = "local t = { 1, 'é', \"\u{1F600}\" }\n"
    local ids = assert(tok:encode(text, { bos = false }))
    assert.equal(text, tok:decode(ids))
    local with = tok:encode(text)
    assert.equal(#ids + 1, #with)
    assert.equal(text, tok:decode(with, { skip_special = true }))
    assert.is_true(#tok > 100)
    assert.same({}, tok:encode("", { bos = false }))
    assert.equal("", tok:decode {})
  end)

  it("knows its tokens", function()
    local piece, special = tok:piece(tok:encode("a", { bos = false })[1])
    assert.equal("a", piece)
    assert.is_false(special)
    assert.is_nil(tok:piece(1 << 20))
    assert.is_nil(tok:piece(-1))
    local bos = tok:encode("")[1]
    piece, special = tok:piece(bos)
    assert.is_true(special)
    assert.equal(bos, tok:find(piece))
    assert.is_nil(tok:find "no such token at all")
    assert.same({ bos }, tok:encode(piece, { bos = false, special = true }))
    assert.is_true(#tok:encode(piece, { bos = false }) > 1)
  end)

  it("streams text as soon as it is complete", function()
    local text = "x = 'é\u{1F600}'"
    local stream, out = assert(tok:stream { skip_special = true }), {}
    for _, id in ipairs(tok:encode(text)) do
      local piece = stream:push(id)
      assert.is_truthy(utf8.len(piece))
      out[#out + 1] = piece
    end
    out[#out + 1] = stream:finish()
    assert.equal(text, table.concat(out))
    assert.equal("mav.stream", tostring(stream))
    stream:close()
    raises("closed mav.stream", stream.push, stream, 1)
  end)

  it("streams on when the tokenizer is closed", function()
    local other = assert(mav.tokenizer(support.model))
    local stream = other:stream()
    local ids = other:encode("abc", { bos = false })
    other:close()
    collectgarbage()
    local text = ""
    for _, id in ipairs(ids) do text = text .. stream:push(id) end
    assert.equal("abc", text .. stream:finish())
    raises("closed mav.tokenizer", other.encode, other, "x")
    assert.equal("mav.tokenizer (closed)", tostring(other))
  end)

  it("reports files and text that are wrong", function()
    local t, err = mav.tokenizer "/nowhere"
    assert.is_nil(t)
    assert.equal("NOTFOUND", err.code)
    local ids
    ids, err = tok:encode "\xff"
    assert.is_nil(ids)
    assert.is_string(err.code)
  end)

  it("checks its arguments", function()
    raises("unknown key 'skip' (valid: bos, special)", tok.encode, tok, "x", { skip = 1 })
    raises("bos: boolean expected, got number", tok.encode, tok, "x", { bos = 1 })
    raises("element 2: token id expected, got x", tok.decode, tok, { 1, "x" })
    raises("token id expected", function() return tok:stream():push(-1) end)
  end)
end)
