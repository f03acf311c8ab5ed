-- The plainest strategy: an EAGLE-3 head, three drafts a step.
--     mav generate -s examples/strategies/fixed_eagle3.lua --prompt '-- reverses s'
-- The head lies beside the model: tiny-maverick, tiny-maverick-eagle3. It is for one model, trained on its hidden states.
return function(model)
  return {
    draft = assert(require("mav.draft.eagle3").load(model.dir .. "-eagle3", model)),
    policy = 3,
  }
end
