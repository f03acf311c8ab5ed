-- Speculative sampling: a draft is accepted with probability min(1, p / q). At a temperature more drafts may be accepted than where they
-- must equal what the model chooses by itself. The distribution is the same; the text with a seed is not. Greedy it is exact.
--     mav generate -s examples/strategies/rejection.lua --temperature 0.8 --seed 1 --prompt '-- reverses s'
return function(model)
  return {
    draft = assert(require("mav.draft.eagle3").load(model.dir .. "-eagle3", model)),
    policy = 3,
    accept = "rejection",
  }
end
