local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/support.lua")
local mav = require "mav"
local json, raises = mav.json, support.raises

describe("json", function()
  it("decodes values", function()
    assert.same({ a = { 1, 2.5, true, false }, b = { c = "x" } }, json.decode '{"a":[1,2.5,true,false],"b":{"c":"x"}}')
    assert.equal(json.null, json.decode "null")
    assert.equal("null", tostring(json.null))
    assert.equal("é\u{1F600}\n/", json.decode [["\u00e9\ud83d\ude00\n\/"]])
    assert.equal("a\0b", json.decode [["a\u0000b"]])
    assert.equal(3, json.decode " \t\r\n3 ")
  end)

  it("keeps integers", function()
    assert.equal("integer", math.type(json.decode "12"))
    assert.equal("float", math.type(json.decode "12.0"))
    assert.equal("float", math.type(json.decode "1e2"))
    assert.equal(math.maxinteger, json.decode "9223372036854775807")
    assert.equal(math.mininteger, json.decode "-9223372036854775808")
    assert.equal(9223372036854775808.0, json.decode "9223372036854775808")
    assert.equal((1 << 53) + 1, json.decode "9007199254740993")
    assert.equal(1e300, json.decode("1" .. ("0"):rep(300)))
  end)

  it("tells arrays from objects", function()
    assert.equal('{"a":[],"b":{}}', json.encode(json.decode '{"b":{},"a":[]}'))
    assert.equal("[]", json.encode(json.array()))
    assert.equal("[]", json.encode(json.array {}))
    assert.equal("{}", json.encode {})
    assert.equal("[1,2]", json.encode { 1, 2 })
  end)

  it("encodes with sorted keys", function()
    assert.equal('{"a":1,"b":2.0,"c":null,"d":"x\\"\\\\\\n\\u0001é"}',
      json.encode { d = "x\"\\\n\1é", c = json.null, b = 2.0, a = 1 })
    assert.equal("{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {}\n}", json.encode({ a = { 1, 2 }, b = {} }, { indent = 2 }))
    assert.equal("0.1", json.encode(0.1))
    assert.equal("1e+300", json.encode(1e300))
    assert.equal(tostring(math.mininteger), json.encode(math.mininteger))
    for _, v in ipairs { 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 123456789.125 } do
      assert.equal(v, json.decode(json.encode(v)))
    end
  end)

  it("reports where text is wrong", function()
    local cases = {
      { "", "line 1, column 1: value expected, got the end" },
      { '{"a":\n tru}', "line 2, column 2: value expected" },
      { "[1,]", "line 1, column 4: digit expected" },
      { "[1 2]", "line 1, column 4: ',' or ']' expected" },
      { '{"a" 1}', "line 1, column 6: ':' expected" },
      { "{1:2}", "column 2: string expected as a key" },
      { '{"a":1,}', "column 8: string expected as a key" },
      { '"é\x01"', "column 3: control character" },
      { '"\xc3("', "column 2: invalid UTF-8" },
      { '"\xed\xa0\x80"', "invalid UTF-8" },
      { [["\ud800"]], "high surrogate" },
      { [["\udc00"]], "low surrogate" },
      { [["\x"]], "column 3: unknown escape" },
      { [["\u12"]], "four hexadecimal digits" },
      { '"abc', "unfinished string" },
      { "01", "leading zero" },
      { "-", "digit expected" },
      { "1.", "digit expected" },
      { "1e", "digit expected" },
      { "+1", "digit expected" },
      { "nan", "value expected" },
      { "1 1", "column 3: end of text expected" },
      { "\0", "digit expected" },
    }
    for _, case in ipairs(cases) do
      local value, err = json.decode(case[1])
      assert.is_nil(value)
      assert.equal("FORMAT", err.code)
      assert.truthy(err.message:find(case[2], 1, true), case[1] .. " -> " .. err.message)
    end
  end)

  it("limits nesting", function()
    local deep = ("["):rep(512) .. ("]"):rep(512)
    assert.is_table(json.decode(deep))
    assert.equal(deep, json.encode(json.decode(deep)))
    local _, err = json.decode("[" .. deep .. "]")
    assert.truthy(err.message:find("nested too deep", 1, true))
    _, err = json.decode("[[1]]", { depth = 2 })
    assert.truthy(err.message:find("nested too deep", 1, true))
    _, err = json.decode(("["):rep(1000000))
    assert.truthy(err.message:find("nested too deep", 1, true))
  end)

  it("refuses what JSON cannot hold", function()
    raises("nan cannot be written", json.encode, 0 / 0)
    raises("inf cannot be written", json.encode, 1 / 0)
    raises("a function cannot be written", json.encode, { print })
    raises("not UTF-8 (byte 2)", json.encode, "a\xff")
    raises("both a list part and named keys", json.encode, { 1, a = 2 })
    raises("gap", json.encode, { [1] = 1, [3] = 3 })
    raises("keys are strings", json.encode, { [true] = 1 })
    local cycle = {}
    cycle[1] = cycle
    raises("nested deeper", json.encode, cycle)
    raises("unknown key", json.encode, 1, { pretty = true })
    raises("value expected", json.encode)
  end)

  it("survives damaged text", function()
    local good = '{"a":[1,-2.5e3,"x\\u00e9",null,true],"b":{"c":{}}}'
    math.randomseed(7)
    for _ = 1, 20000 do
      local at = math.random(#good)
      local bad = good:sub(1, at - 1) .. string.char(math.random(0, 255)) .. good:sub(at + math.random(0, 2))
      local value, err = json.decode(bad)
      if value == nil then
        assert.equal("FORMAT", err.code)
      else
        assert.is_string(json.encode(value))
      end
    end
  end)
end)
