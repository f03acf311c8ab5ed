--- Parity with Hugging Face transformers, on every device: logits, hidden states, router choices, greedy continuations.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local golden = dofile(here .. "/golden.lua")
local maverick = require "mav.maverick"

local LOGITS, HIDDEN = 1e-3, 1e-4 -- bounds of the largest difference over the largest magnitude

local function load(name, device)
  return assert(maverick.load(golden.model_dir(name), { device = device, threads = name == "maverick" and 2 or 1 }))
end

local function forward(model, ids, options)
  local kv, seq = golden.sequence(model, #ids)
  local y = golden.feed(model, kv, seq, ids, options)
  return y
end

for _, device in ipairs(golden.devices) do
  for _, name in ipairs(golden.models) do
    describe(("%s on %s"):format(name, device), function()
      local model, g
      setup(function() model, g = load(name, device), golden.open(name) end)
      teardown(function() model, g = nil, nil end)

      it("computes the golden logits", function()
        for _, prompt in ipairs(g.prompts) do
          local e = golden.error(forward(model, g.get(prompt .. ".input_ids")), g.get(prompt .. ".logits"))
          assert.is_true(e < LOGITS, ("%s: error %.3g"):format(prompt, e))
        end
      end)

      it("has the golden states in every layer", function()
        local taps = {}
        local function tap(what, layer, t) taps[what .. layer] = t:totable() end
        forward(model, g.get("short.input_ids"), { tap = tap })
        local function check(key, expected)
          local e = golden.error(taps[key], g.get("hidden." .. expected))
          assert.is_true(e < HIDDEN, ("%s: error %.3g"):format(expected, e))
        end
        check("embed0", "embed")
        for i = 1, model.config.layers do
          local layer = ("layer%d."):format(i - 1)
          check("q" .. i, layer .. "q")
          check("attention" .. i, layer .. "attn")
          check("hidden" .. i, layer .. "out")
        end
      end)

      it("chooses the golden experts", function()
        for _, prompt in ipairs(g.prompts) do
          local ids, chosen, moe = g.get(prompt .. ".input_ids"), {}, {}
          for _, id in ipairs(g.get(prompt .. ".greedy_ids")) do ids[#ids + 1] = id end
          forward(model, ids, { head = "none", tap = function(what, layer, t)
            if what == "router_index" then
              moe[#moe + 1] = layer
              chosen[#moe] = t:totable()
            end
          end })
          for t, by_layer in ipairs(g.get(prompt .. ".router_idx")) do
            for m, expected in ipairs(by_layer) do assert.are.same(expected, chosen[m][t]) end
          end
        end
      end)

      it("continues greedily as the oracle", function()
        for _, prompt in ipairs(g.prompts) do
          local ids, expected = g.get(prompt .. ".input_ids"), g.get(prompt .. ".greedy_ids")
          local s <close> = model:session { context = #ids + #expected + 1 }
          s:complete(ids, { max_tokens = #expected, ignore_eos = true })
          assert.are.same(expected, { table.unpack(s.ids, #ids + 1) })
          assert.are.equal("length", s.stopped)
        end
      end)

      it("gives the same from unfused ops", function()
        local ids = g.get("long.input_ids")
        local e = golden.error(forward(model, ids, { fused = false }), forward(model, ids))
        assert.is_true(e < 1e-4, ("error %.3g"):format(e))
      end)
    end)
  end
end
