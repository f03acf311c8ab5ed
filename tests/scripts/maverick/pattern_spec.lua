local _ = require "mav" -- finds the scripts
local pattern = require "mav.maverick.pattern"

local function check(make, cases)
  for _, case in ipairs(cases) do
    local text, name, expected = table.unpack(case, 1, 3)
    assert.are.equal(expected, make(text)(name), ("%s on %s"):format(text, name))
  end
end

describe("patterns of module names", function()
  it("are Python's regular expressions, which match at the beginning", function()
    check(pattern.regex, {
      { ".*lm_head", "language_model.lm_head", true }, { ".*lm_head", "lm_hea", false }, { ".*lm_head", "lm_head.x", true },
      { "vision_model.*", "vision_model.x", true }, { "vision_model.*", "x.vision_model", false }, { "", "x", true },
      { ".*self_attn.*", "layers.1.self_attn.q_proj", true }, { "a\\.b", "a.bc", true }, { "a\\.b", "axb", false }, { "a.b", "axb", true },
      { ".*lm_head$", "lm_head.x", false }, { ".*lm_head$", "x.lm_head", true }, { "ab\\.", "xab.ab.", false },
      { "model\\.layers\\.(0|1[0-9])\\.", "model.layers.12.x", true }, { "model\\.layers\\.(0|1[0-9])\\.", "model.layers.2.x", false },
      { "^(?!.*experts).*$", "a.experts.b", false }, { "^(?!.*experts).*$", "a.expert.b", true }, { "a(?=b)", "ab", true },
      { "a{2,3}$", "aaaa", false }, { "a{2,3}$", "aaa", true }, { "a{2}$", "aa", true }, { "a{,2}$", "aaa", false },
      { "(a*)*$", "aaab", false }, { "[^.]+\\.\\w+?$", "ab.cd", true }, { "(?:ab|cd)+$", "abcdab", true }, { "\\d+\\D", "12x", true },
    })
  end)

  it("are shell globs, which match all of a name", function()
    check(pattern.glob, {
      { "*router*", "model.layers.1.feed_forward.router", true }, { "lm_head", "lm_headx", false }, { "lm_head", "lm_head", true },
      { "layers.?.x", "layers.1.x", true }, { "layers.?.x", "layers.11.x", false }, { "layers.[0-3].x", "layers.2.x", true },
      { "layers.[!0-3].x", "layers.2.x", false }, { "a.b", "axb", false }, { "a-b(c)+", "a-b(c)+", true },
      { "vision_model*", "x.vision_model.y", false }, { "*a.b*", "x.axb.c", false }, { "*.o_proj", "layers.0.self_attn.o_proj", true },
    })
  end)

  it("say nothing when they are not understood, or take too long", function()
    check(pattern.regex, {
      { "(?i)x", "x", nil }, { "(?P<n>x)", "x", nil }, { "a(", "a", nil }, { "a)", "a", nil }, { "[a", "a", nil }, { "*", "a", nil },
      { "a{9999}", "a", nil }, { "\\bx", "x", nil }, { ("("):rep(100) .. (")"):rep(100), "x", nil },
      { "(a|aa)+$", ("a"):rep(60) .. "b", nil }, { "((a*)*)*b", ("a"):rep(60), nil },
    })
  end)
end)
