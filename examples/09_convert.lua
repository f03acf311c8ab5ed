--- A conversion of your own: a checkpoint with foreign names, a LoRA adapter merged into it, some layers in FP8.
---
---     mav examples/09_convert.lua [MODEL_DIR]
---
--- A recipe is a table (or a function of the plan). In a file of its own, after `return`, it works with
--- `mav weights convert SRC OUT --recipe FILE.lua`, which also says with --plan what it would do.
local mav = require "mav"
local convert = require "mav.weights_tools.convert"
local maverick = require "mav.maverick"
local op = mav.op

local here = (arg and arg[0] or ""):match("^(.*)/[^/]*$") or "."
local model_dir = arg and arg[1] or here .. "/../models/tiny-maverick"
local work = os.tmpname()
os.remove(work)
assert(os.execute(("mkdir '%s' && cp '%s'/*.json '%s'"):format(work, model_dir, work)))

--- The checkpoint: its names begin with "base_model.model.", as adapters' tools write them.
local files, foreign = assert(mav.weights(model_dir)), {}
for _, name in ipairs(files:names()) do foreign["base_model.model." .. name] = files:get(name) end
assert(mav.safetensors.write(work .. "/model.safetensors", foreign))

--- The adapter: W + alpha B A for every output projection, of rank 4; A and B would come from a file.
local model = assert(maverick.load(model_dir))
local D, K = table.unpack(model.weights.layers[1].o.shape)
local RANK, ALPHA = 4, 0.5
local function random(rows, columns)
  local list = {}
  for i = 1, rows * columns do list[i] = (math.random() - 0.5) / 16 end
  return mav.tensor(list, { shape = { rows, columns } })
end
local A, B = random(RANK, K), random(D, RANK)
local At = A:transpose(1, 2):contiguous()

local recipe = {
  names = function(name) return (name:gsub("^base_model%.model%.", "")) end,
  { match = "expert_", dtype = "fp8" }, -- a scale for every row of every expert
  { match = "^head$", dtype = "f16" },
  -- Rows at.first to at.last of a weight, in f32; they become its dtype afterwards.
  { match = "%.o$", map = function(rows, at) return rows + ALPHA * op.matmul { x = B:slice(1, at.first, at.last), w = At } end },
}
local report = assert(convert.convert(work, work .. "/packs", { recipe = recipe, verify = true }))
print(require("mav.weights_tools.errors").table(report.errors, 4))

--- What came out: the packs are a model like any other.
local merged = assert(maverick.load(work .. "/packs"))
local old, new = model.weights.layers[1], merged.weights.layers[1]
local expected = (old.o:to "f32" + ALPHA * op.matmul { x = B, w = At }):to "bf16"
assert(new.o:bytes() == expected:bytes() and new.o:bytes() ~= old.o:bytes())
assert(new.gate:bytes() == old.gate:bytes() and merged.weights.head.dtype == "f16")
assert(merged.weights.layers[2].expert_down.dtype == "f8" and merged.weights.layers[2].down.dtype == "bf16")
local s <close> = merged:session {}
print((s:complete("-- returns the larger of a and b\n", { max_tokens = 24 })))
os.execute(("rm -r '%s'"):format(work))
