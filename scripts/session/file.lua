--- Lua files of users that return a strategy, a drafter or a policy, or a function that makes one for a model.
local file = {}

--- Whether a function wants the model rather than statistics: its parameter is called so.
function file.takes_model(f) return debug.getlocal(f, 1) == "model" end

--- What a file returns. A function among that is called with the model when `calls` says so; nil: every one. The global arg, which
--- holds the arguments of the command, is not there meanwhile.
---@param path string
---@param model table|nil
---@param calls nil|fun(f: function): boolean
---@return any
function file.read(path, model, calls)
  local chunk, err = loadfile(path, "t")
  if not chunk then error(err, 0) end
  local restored <close> = setmetatable({ arg = _G.arg }, { __close = function(saved) _G.arg = saved.arg end }) -- luacheck: ignore
  _G.arg = nil
  local value = chunk()
  if type(value) == "function" and (not calls or calls(value)) then value = value(model) end
  return value
end

--- What a file returned, in words. One that returns nothing may be a program.
function file.described(path, value)
  if value == nil then return ("%s returned nothing (a program is run by: mav %s)"):format(path, path) end
  return ("%s returned a %s"):format(path, type(value))
end

return file
