--- Greedy decoding with drafts gives the ids of greedy decoding without: every drafter, every depth, chains and trees, long texts,
--- long prompts, other storage, all oracle models. With MAV_FULL=1 over all held-out prompts.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local S = dofile(here .. "/speculation.lua")

local full = S.is_full

--- Names of drafters for tiny-maverick.
local function names()
  local list = { "ngram", "suffix", "echo", "self=2", "stop=4", "model=" .. S.tiny, "ngram,self=2" }
  if S.exists(S.head .. "/model.safetensors") then
    list[#list + 1] = "eagle3=" .. S.head
    list[#list + 1] = "ngram,eagle3=" .. S.head
  end
  return list
end

describe("greedy speculation", function()
  local model, prompts, drafters, pairs_
  setup(function()
    model = S.load(S.tiny)
    prompts, drafters, pairs_ = S.heldout(model), {}, {}
    for _, name in ipairs(names()) do
      local drafter = S.drafter(model, name)
      drafters[#drafters + 1] = drafter
      for _, shape in ipairs(S.chains) do pairs_[#pairs_ + 1] = { drafter, shape, name } end
      if S.makes_trees(drafter) then
        for _, shape in ipairs(S.trees) do pairs_[#pairs_ + 1] = { drafter, shape, name } end
      end
    end
  end)
  teardown(function() model, drafters, pairs_ = nil, nil, nil end)

  --- Texts of plain decoding, each made once.
  local function plain_texts(max_tokens, options)
    local cache = {}
    local s = model:session(options)
    return function(prompt)
      cache[prompt] = cache[prompt] or S.text(s, prompt, max_tokens)
      return cache[prompt]
    end
  end

  it("says what plain decoding says: every drafter, every shape", function()
    local tokens, per_prompt, chosen = full and 96 or 24, full and 3 or 1, {}
    if full then
      chosen = prompts
    else
      for i = 1, 12 do chosen[i] = prompts[17 * (i - 1) + 1] end
    end
    local plain, work, turn = plain_texts(tokens), {}, 0
    for i = 1, #pairs_ do work[i] = {} end
    repeat -- every pair gets a prompt, every prompt per_prompt pairs
      for _, prompt in ipairs(chosen) do
        for _ = 1, per_prompt do
          turn = turn + 1
          table.insert(work[(turn - 1) % #pairs_ + 1], prompt)
        end
      end
    until turn >= #pairs_
    local accepted, steps = 0, 0
    for i, list in ipairs(work) do
      local drafter, shape, name = table.unpack(pairs_[i])
      local s <close> = model:session { strategy = S.strategy(drafter, shape), context = 512 }
      for _, prompt in ipairs(list) do
        S.same(plain(prompt), S.text(s, prompt, tokens), "%s, %s", name, S.shape_text(shape))
        for _, step in ipairs(s.stats.steps) do accepted, steps = accepted + step.accepted, steps + 1 end
      end
    end
    assert.is_true(accepted > steps // 2) -- there was something to get wrong
  end)

  it("over chunks of the attention and over prompts longer than a prefill", function()
    local long = {}
    for i = 1, #prompts do
      if #long < 700 then table.move(prompts[i], 1, #prompts[i], #long + 1, long) end
    end
    local cases = { { prompts[3], full and 400 or 150 }, { { table.unpack(long, 1, 513) }, 40 }, { long, full and 200 or 40 } }
    for n, case in ipairs(cases) do
      local prompt, tokens = case[1], case[2]
      local expected = plain_texts(tokens)(prompt)
      for i, drafter in ipairs(drafters) do
        for m, shape in ipairs { S.chains[i % 8 + 1], S.trees[2] } do
          if (full or (i + m + n) % 4 == 0) and (not shape.tree or S.makes_trees(drafter)) then
            local s <close> = model:session { strategy = S.strategy(drafter, shape) }
            S.same(expected, S.text(s, prompt, tokens), "drafter %d, %s, prompt of %d", i, S.shape_text(shape), #prompt)
          end
        end
      end
    end
  end)

  it("with a bf16 cache, without fused ops", function()
    for _, options in ipairs { { kv_dtype = "bf16" }, { fused = false } } do
      local plain = plain_texts(48, options)
      for i, drafter in ipairs(drafters) do
        for m, shape in ipairs { S.chains[(3 * i) % 8 + 1], S.trees[3] } do
          if (full or (i + m) % 4 == 0) and (not shape.tree or S.makes_trees(drafter)) then
            local prompt = prompts[i + 20]
            local s <close> = model:session { strategy = S.strategy(drafter, shape), kv_dtype = options.kv_dtype, fused = options.fused }
            S.same(plain(prompt), S.text(s, prompt, 48), "%s, drafter %d, %s", next(options), i, S.shape_text(shape))
          end
        end
      end
    end
  end)

  it("with weights quantized to fp8, on two threads", function()
    local quantized = S.load(S.tiny, { dtype = "fp8", threads = 2 })
    local p <close> = quantized:session {}
    for i, name in ipairs(names()) do
      local drafter = S.drafter(quantized, name)
      for m, shape in ipairs { S.chains[i % 8 + 1], S.trees[1] } do
        if (full or (i + m) % 2 == 1) and (not shape.tree or S.makes_trees(drafter)) then
          local prompt = prompts[i + 40]
          local s <close> = quantized:session { strategy = S.strategy(drafter, shape) }
          S.same(S.text(p, prompt, 32), S.text(s, prompt, 32), "%s, %s", name, S.shape_text(shape))
        end
      end
    end
  end)
end)

describe("greedy speculation of oracle models", function()
  for _, name in ipairs(S.golden.models) do
    it("says what plain decoding says: " .. name, function()
      local model, g = S.load(S.support.model_dir(name)), S.golden.open(name)
      local drafters = { "ngram", "suffix", "self=2", "stop=1", "ngram,self=2", "model=" .. S.support.model_dir(name) }
      if name == "maverick" then
        drafters[#drafters + 1] = "eagle3=" .. S.support.model_dir "eagle3_full"
        drafters[#drafters + 1] = "suffix,eagle3=" .. S.support.model_dir "eagle3_d2t"
      end
      local tokens = full and 200 or 50
      for n, which in ipairs(g.prompts) do
        local prompt = g.get(which .. ".input_ids")
        local p <close> = model:session {}
        local expected = S.text(p, prompt, tokens)
        for i, spec in ipairs(drafters) do
          local drafter = S.drafter(model, spec)
          for k = 1, 8 do
            local shapes = { S.chains[k], S.trees[k] }
            for _, shape in ipairs(shapes) do
              local runs = full or (i + k + 7 * n) % 23 == 0
              if runs and (not shape.tree or S.makes_trees(drafter)) then
                local s <close> = model:session { strategy = S.strategy(drafter, shape) }
                S.same(expected, S.text(s, prompt, tokens), "%s, %s, %s", which, spec, S.shape_text(shape))
              end
            end
          end
        end
      end
    end)
  end
end)
