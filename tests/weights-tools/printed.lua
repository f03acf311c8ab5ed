--- Adds to the support of specs what a tool prints.
return function(support)
  --- The text that `mav weights <tool> ...` prints, and its exit status; nil and the error when it fails.
  function support.printed(tool, ...)
    local path = os.tmpname()
    local file = assert(io.open(path, "w+"))
    local before = io.output()
    io.output(file)
    local ok, status = pcall(tool.run, { ... })
    io.output(before)
    file:seek "set"
    local text = file:read "a"
    file:close()
    os.remove(path)
    if ok then return text, status end
    return nil, status
  end
  return support
end
