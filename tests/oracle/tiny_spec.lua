--- The embedded model against the numbers that its training left beside it (models/tiny-maverick/README.md).
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local golden = dofile(here .. "/golden.lua")
local mav = require "mav"
local maverick = require "mav.maverick"

local DIR, LAST = here .. "/../../models/tiny-maverick", 16

describe("tiny-maverick", function()
  local model, file
  setup(function()
    model = assert(maverick.load(DIR, { device = golden.device, threads = 1 }))
    file = assert(mav.safetensors.open(DIR .. "/golden.safetensors"))
  end)

  for _, prompt in ipairs { "short", "long" } do
    it("has the golden logits and continuation: " .. prompt, function()
      local ids, expected = file:get(prompt .. ".input_ids"):totable(), file:get(prompt .. ".greedy_ids"):totable()
      local kv, seq = golden.sequence(model, #ids)
      local last = golden.feed(model, kv, seq, ids):slice(1, #ids - LAST + 1, #ids):contiguous()
      local e = golden.error(last, file:get(prompt .. ".logits_last"))
      assert.is_true(e < 1e-3, ("error %.3g"):format(e))
      local s <close> = model:session { context = #ids + #expected + 1 }
      s:complete(ids, { max_tokens = #expected, ignore_eos = true })
      assert.are.same(expected, { table.unpack(s.ids, #ids + 1) })
    end)
  end
end)
