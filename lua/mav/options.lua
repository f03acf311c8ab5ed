--- Checks an options table: another value, or a key that is not known, is a mistake of the caller's caller.
---@param options table
---@param known table<string, boolean>
---@param what string   the function that takes them, for the message
return function(options, known, what)
  if type(options) ~= "table" then error(("%s: options are %s; a table is allowed"):format(what, tostring(options)), 3) end
  for key in pairs(options) do
    if not known[key] then error(("%s: unknown option '%s'"):format(what, tostring(key)), 3) end
  end
end
