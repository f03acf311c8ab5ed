-- A tree of drafts instead of a chain: three guesses for the next token, two after each of them, one after each of those. 1 + 3 + 6 + 6
-- rows are verified at once; the path that the model agrees with longest becomes text.
return function(model)
  return {
    draft = assert(require("mav.draft.eagle3").load(model.dir .. "-eagle3", model)),
    tree = { 3, 2, 1 },
  }
end
