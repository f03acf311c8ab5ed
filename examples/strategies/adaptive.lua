-- As many drafts as pay on this machine: verification and drafting are measured first, acceptance as the text goes. Where nothing pays,
-- speculation ends for the rest of the request: "off" wraps the policy that weighs costs.
return function(model)
  return {
    draft = assert(require("mav.draft.eagle3").load(model.dir .. "-eagle3", model)),
    policy = require "mav.policy.off" { policy = require "mav.policy.cost_aware" {}, window = 48 },
    k_max = 8,
  }
end
