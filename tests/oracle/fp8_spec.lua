--- Quantized checkpoints against stored numbers: with f32 activations (w8), rounded ones (w8a8) and an FP8 cache too (w8a8kv8).
---
--- Whole models: a code that lies between two values may go either way, and everything after it moves; so w8a8 has the bounds that
--- the reference measured for itself. Single layers (unit) are exact but for elements whose x / scale lies in the middle.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local golden = dofile(here .. "/golden.lua")
local mav = require "mav"
local maverick = require "mav.maverick"
local op = mav.op

local MODELS = { "maverick_ct_fp8", "maverick_modelopt_fp8", "scout_ct_fp8" }
local MODES = { { "w8", "f32", "f32" }, { "w8a8", nil, "f32" }, { "w8a8kv8", nil, "fp8" } } -- name, activations, cache
local LOGITS, HIDDEN, UNIT = 1e-3, 1e-4, 1e-5
local ROWS_MAX = 16

local function load(name, options)
  options.threads = options.device == "cpu" and 2 or nil
  return assert(maverick.load(golden.model_dir(name), options))
end

local function forward(model, ids, kv_dtype, options)
  local kv, seq = golden.sequence(model, #ids, { dtype = kv_dtype })
  return golden.feed(model, kv, seq, ids, options)
end

local function mean_difference(actual, expected)
  local a, b, sum = golden.flat(actual), golden.flat(expected), 0
  assert.are.equal(#b, #a)
  for i = 1, #a do sum = sum + math.abs(a[i] - b[i]) end
  return sum / #a
end

local function is_below(bound, value, what)
  assert.is_true(value < bound, ("%s: %.3g; below %.3g expected"):format(what, value, bound))
end

-- ---- single layers -------------------------------------------------------------------------------------------------------

--- Does a value lie within a few float steps of the middle between two e4m3 values?
local function is_tie(x)
  x = math.abs(x)
  if x >= 448 then return false end
  local step = 2.0 ^ (math.floor(math.log(math.max(x, 2 ^ -6), 2)) - 3) -- below 2^-6 codes are evenly spaced
  local f = x / step
  return math.abs(f - math.floor(f) - 0.5) * step < 4e-6 * x
end

--- Rows of x that a weight may round either way. scale: of static activations; nil: per row.
local function tied_rows(x, scale)
  local rows = {}
  for t, row in ipairs(x:totable()) do
    local most = 0
    for _, v in ipairs(row) do most = math.max(most, math.abs(v)) end
    for _, v in ipairs(row) do rows[t] = rows[t] or is_tie(v / (scale or (most > 0 and most / 448 or 1))) end
  end
  return rows
end

--- The weight of a module of the checkpoint, as it was loaded.
local function weight_of(model, module)
  local c, layer, name = model.config, module:match "^model%.layers%.(%d+)%.(.*)$"
  local L = model.weights.layers[layer + 1]
  name = name:match "([^.]*)_proj$"
  local q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
  if name == "q" then return L.q or L.qkv:slice(1, 1, q) end
  if name == "k" then return L.k or L.qkv:slice(1, q + 1, q + kv) end
  if name == "v" then return L.v or L.qkv:slice(1, q + kv + 1, q + 2 * kv) end
  return L[name]
end

local function expert(model, layer, e, x)
  local L = model.weights.layers[layer + 1]
  local function project(key, input) return op.matmul { x = input, w = L[key]:select(1, e + 1) } end
  local h = op.swiglu { gate = project("expert_gate", x), up = project("expert_up", x) }
  return project("expert_down", h), h
end

--- y of a unit case, and the inputs of every rounding on the way, with the names of their scales.
local function unit(model, module, x)
  local layer, e = module:match "^model%.layers%.(%d+)%.feed_forward%.experts%.(%d+)$"
  if not layer then return op.matmul { x = x, w = weight_of(model, module) }, { { x, module .. ".input_scale" } } end
  local y, h = expert(model, math.tointeger(layer), math.tointeger(e), x)
  local base = module:match "^(.*)%.%d+$"
  return y, { { x, base .. ".gate_up_proj_input_scale" }, { h, base .. ".down_proj_input_scale" } }
end

for _, device in ipairs(golden.devices) do
  for _, name in ipairs(MODELS) do
    describe(("%s on %s"):format(name, device), function()
      local g, summary, models, files
      setup(function()
        g, summary = golden.open(name), golden.json("goldens/" .. name .. "/golden.json").prompts
        models = { w8a8 = load(name, { device = device }) }
        models.w8 = load(name, { runtime = models.w8a8.runtime, activations = "f32" })
        models.w8a8kv8 = models.w8a8
        files = assert(mav.weights(golden.model_dir(name)))
      end)
      teardown(function() g, models, files = nil, nil, nil end)

      for _, mode in ipairs(MODES) do
        local key, _, kv = table.unpack(mode, 1, 3)
        if key ~= "w8a8kv8" or name:find "modelopt" then
          it("computes the golden logits: " .. key, function()
            for _, p in ipairs(g.prompts) do
              local logits, expected = forward(models[key], g.get(p .. ".input_ids"), kv), g.get(("%s.%s.logits"):format(p, key))
              if key == "w8" then
                is_below(LOGITS, golden.error(logits, expected), p)
              else
                is_below(math.max(0.02, 3 * summary[p][key].sensitivity.mean_abs), mean_difference(logits, expected), p)
              end
            end
          end)

          it("continues greedily: " .. key, function()
            for _, p in ipairs(g.prompts) do
              local ids, expected = g.get(p .. ".input_ids"), g.get(("%s.%s.greedy_ids"):format(p, key))
              local s <close> = models[key]:session { context = #ids + #expected + 1, kv_dtype = kv }
              s:complete(ids, { max_tokens = #expected, ignore_eos = true })
              local margin = g.get(("%s.%s.greedy_margin"):format(p, key))
              for i = 1, #expected do
                if margin[i] <= 1 then break end
                assert.are.equal(expected[i], s.ids[#ids + i], ("%s, token %d"):format(p, i))
              end
            end
          end)
        end
      end

      it("has the golden states with f32 activations", function()
        local outputs = {}
        forward(models.w8, g.get "short.input_ids", "f32",
          { tap = function(what, layer, t) if what == "hidden" then outputs[layer] = t:totable() end end })
        for i, t in ipairs(outputs) do is_below(HIDDEN, golden.error(t, g.get(("hidden.w8.layer%d.out"):format(i - 1))), "layer " .. i) end
      end)

      it("follows forced ids with f32 activations", function()
        for _, p in ipairs(g.prompts) do
          local logits = forward(models.w8, g.get(p .. ".forced_ids"), "f32"):totable()
          local best, top = g.get(p .. ".w8.forced_top5_ids"), g.get(p .. ".w8.forced_top5_logits")
          for t, ids in ipairs(best) do
            for i, id in ipairs(ids) do is_below(LOGITS * 10, math.abs(logits[t][id + 1] - top[t][i]), ("%s, row %d"):format(p, t)) end
          end
        end
      end)

      it("computes single layers exactly", function()
        local cases, elements, ties = 0, 0, 0
        for _, key in ipairs(g.names()) do
          local module = key:match "^unit%.(.*)%.x$"
          if module then
            local x = mav.tensor(g.get(key), { dtype = "f32", runtime = models.w8.runtime })
            cases = cases + 1
            is_below(UNIT, golden.error(unit(models.w8, module, x), g.get(("unit.%s.y_w8"):format(module))), module)
            local y, roundings = unit(models.w8a8, module, x)
            local expected, largest = g.get(("unit.%s.y_w8a8"):format(module)), 0
            for _, v in ipairs(golden.flat(expected)) do largest = math.max(largest, math.abs(v)) end
            local tied
            for t, row in ipairs(y:totable()) do
              for i, v in ipairs(row) do
                elements = elements + 1
                local is_near = math.abs(v - expected[t][i]) < UNIT * largest
                if not is_near then
                  if not tied then
                    tied = {}
                    for _, r in ipairs(roundings) do
                      local scale = files:has(r[2]) and assert(files:get(r[2])):to("f32"):reshape({ 1 }):get(1) or nil
                      for n, is in pairs(tied_rows(r[1], scale)) do tied[n] = tied[n] or is end
                    end
                  end
                  assert.is_true(tied[t], ("%s, row %d, element %d: %.9g, expected %.9g"):format(module, t, i, v, expected[t][i]))
                  ties = ties + 1
                end
              end
            end
          end
        end
        assert.is_true(cases >= 2)
        is_below(elements / 100 + 1, ties, "elements on a rounding tie")
        if os.getenv "VERBOSE" then print(name, device, cases, elements, ties) end
      end)

      it("rounds activations as the unfused ops do", function()
        local ids = g.get "long.input_ids"
        local fused, unfused = forward(models.w8, ids, "f32"), forward(models.w8, ids, "f32", { fused = false })
        is_below(1e-4, golden.error(unfused, fused), "w8")
        fused, unfused = forward(models.w8a8, ids, "f32"), forward(models.w8a8, ids, "f32", { fused = false })
        is_below(math.max(0.02, 3 * summary.long.w8a8.sensitivity.mean_abs), mean_difference(unfused, fused), "w8a8")
      end)

      it("keeps rows independent", function()
        local all, model = g.get "long.input_ids", models.w8a8
        local before, ids = { table.unpack(all, 1, 11) }, { table.unpack(all, 12, 11 + ROWS_MAX) }
        local function logits(n)
          local kv, seq = golden.sequence(model, #before + #ids) -- the checkpoint's own type of cache
          golden.feed(model, kv, seq, before, { head = "none" })
          local out = {}
          for first = 1, #ids, n do
            local group = { table.unpack(ids, first, math.min(first + n - 1, #ids)) }
            for _, row in ipairs(golden.feed(model, kv, seq, group):totable()) do out[#out + 1] = row end
          end
          return out
        end
        local alone = logits(1)
        for n = 2, ROWS_MAX do assert.are.same(alone, logits(n), ("%d rows together"):format(n)) end
      end)
    end)
  end
end

describe("quantized checkpoints", function()
  it("are stored as they came", function()
    local model = load("maverick_modelopt_fp8", { device = "cpu" })
    local W = model.weights
    for _, key in ipairs { "qkv", "o", "gate", "up", "down", "expert_gate", "expert_up", "expert_down" } do
      assert.are.equal("f8", W.layers[2][key].dtype, key)
    end
    for _, t in ipairs { W.embed, W.head, W.norm, W.layers[2].router, W.layers[2].ffn_norm } do assert.are.equal("bf16", t.dtype) end
    assert.are.equal(1, W.layers[2].expert_down.scale:count()) -- one number stays one
    assert.are.equal("f8", model:kv({ tokens = 16 }).dtype)
    assert.are.equal("f32", model:kv({ tokens = 16, dtype = "f32" }).dtype)
    model = load("maverick_ct_fp8", { device = "cpu" })
    assert.are.equal("bf16", model.weights.layers[2].qkv.dtype)
    assert.are.equal("f8", model.weights.layers[2].expert_gate.dtype)
    assert.are.same({ 4, 48 }, model.weights.layers[2].expert_gate.scale.shape)
    assert.are.equal("f32", model:kv({ tokens = 16 }).dtype)
  end)

  it("can be widened; activations are rounded all the same", function()
    for _, name in ipairs(MODELS) do
      local g = golden.open(name)
      local ids = g.get "short.input_ids"
      local model = load(name, { device = "cpu", dtype = "f32" })
      assert.are.equal("f32", model.weights.layers[2].expert_gate.dtype)
      is_below(0.2, mean_difference(forward(model, ids, "f32"), g.get "short.w8a8.logits"), name)
      model = load(name, { device = "cpu", dtype = "f32", activations = "f32" })
      is_below(LOGITS, golden.error(forward(model, ids, "f32"), g.get "short.w8.logits"), name)
    end
  end)
end)
