--- What `mav weights convert` does without a recipe: the linear layers in the asked dtype (fp8), or everything in it (bf16); the rest
--- as it is stored. A recipe of your own comes after this one.
return function(plan)
  if plan.dtype == "fp8" then
    plan:rule { linear = true, dtype = "fp8" }
  elseif plan.dtype ~= "keep" then
    plan:rule { dtype = plan.dtype }
  end
end
