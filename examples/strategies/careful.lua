-- Drafts deep, and verifies only what the drafter itself believes in: to where the product of its probabilities falls below a half.
return function(model)
  return {
    draft = assert(require("mav.draft.eagle3").load(model.dir .. "-eagle3", model)),
    policy = require "mav.policy.confidence" { threshold = 0.5 },
    k_max = 6,
  }
end
