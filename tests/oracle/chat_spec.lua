--- Chat renderings equal those of transformers' apply_chat_template: the text, and the ids.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local golden = dofile(here .. "/golden.lua")
local mav = require "mav"
local chat_template = require "mav.maverick.chat_template"

for file, model in pairs { ["tokenizer_cases.json"] = "maverick", ["tokenizer_cases_mini.json"] = "maverick_mm" } do
  describe("chat template, " .. file, function()
    local cases, tok
    setup(function()
      cases = golden.json(file).chat_cases
      tok = assert(mav.tokenizer(golden.model_dir(model) .. "/tokenizer.json"))
    end)

    it("renders the golden text", function()
      for _, case in ipairs(cases) do
        assert.are.equal(case.text, chat_template.render(case.messages, { add_generation_prompt = case.add_generation_prompt }))
      end
    end)

    it("gives the golden ids, special tokens in messages parsed", function()
      for _, case in ipairs(cases) do
        local options = { add_generation_prompt = case.add_generation_prompt, special = true }
        assert.are.same(case.ids, chat_template.encode(tok, case.messages, options))
      end
    end)

    it("gives the golden ids by default where no message contains special tokens", function()
      local eot, count = tok:find("<|eot|>"), 0
      for _, case in ipairs(cases) do
        local ids = chat_template.encode(tok, case.messages, { add_generation_prompt = case.add_generation_prompt })
        local injected = mav.json.encode(case.messages):find("<|", 1, true)
        if injected then
          local ends = 0
          for _, id in ipairs(ids) do ends = ends + (id == eot and 1 or 0) end
          assert.are.equal(#case.messages, ends) -- what a user types does not end a turn
        else
          count = count + 1
          assert.are.same(case.ids, ids)
        end
      end
      assert.is_true(count > 10)
    end)
  end)
end

describe("chat template", function()
  it("trims the first system message as Python does", function()
    for _, case in ipairs { { "\u{3000} \n\u{A0}a b\u{2003}\t", "a b" }, { " \u{85} ", "" }, { "\xff x ", "\xff x" }, { "\x1ca", "a" } } do
      local text = chat_template.render({ { role = "system", content = case[1] } }, { begin = false })
      assert.are.equal("<|header_start|>system<|header_end|>\n\n" .. case[2] .. "<|eot|>", text)
    end
  end)
end)
