-- Copies what the text repeats, where it repeats; a head drafts the rest. A lookup costs next to nothing, so its drafts may be long,
-- and the policy need not be the same for both: stats.drafter says who drafted last.
return function(model)
  local lookup = require "mav.draft.ngram" { n_min = 3, n_max = 6 }
  local head = assert(require("mav.draft.eagle3").load(model.dir .. "-eagle3", model))
  return {
    draft = require "mav.draft.first" { lookup, head },
    policy = function(stats)
      if stats.drafter == "ngram" and stats.accepted == stats.k then return stats.k_max end -- in the middle of a copy
      return math.min(3, stats.k_max)
    end,
    k_max = 12,
  }
end
