-- The model's own greedy continuation of every prompt: `mav eagle3_rollout.lua MODEL IN OUT [MOST TOKENS]`.
-- A line of IN is { kind, ids }; the line of OUT also has `new`, the ids that follow. Goes on where OUT ends.
local mav = require "mav"
local folder, input, output, most = arg[1], arg[2], arg[3], tonumber(arg[4] or 160)
local model = assert(require("mav.maverick").load(folder, { threads = 1 }))
local s <close> = model:session { context = 1024 }
local ends = {}
for _, id in ipairs(model.config.eos) do ends[id] = true end

local done, old = 0, io.open(output)
if old then
  for _ in old:lines() do done = done + 1 end
  old:close()
end
local out <close> = assert(io.open(output, "a"))
out:setvbuf("line") -- an interrupt leaves whole lines
local n, tokens, start = 0, 0, mav.now()
for line in assert(io.open(input)):lines() do
  n = n + 1
  if n > done then
    local prompt, new = mav.json.decode(line), {}
    s:reset()
    s:append(prompt.ids)
    s:prefill()
    repeat
      new[#new + 1] = s:step()
    until ends[new[#new]] or #new == most
    prompt.new = new
    out:write(mav.json.encode(prompt), "\n")
    tokens = tokens + #new
  end
end
io.stderr:write(("%d prompts, %d new tokens, %.0f tokens/s\n"):format(n, tokens, tokens / (mav.now() - start)))
