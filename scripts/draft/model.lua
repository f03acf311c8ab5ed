--- A small model of the same vocabulary drafts for a large one. Device drafter.
---
---     local draft = assert(require("mav.draft.model").load("models/small", model))
---
--- Its layers' keys and values lie behind the model's in the same cache, so sequences, forks and truncation are shared. Drafting a
--- chain leaves the keys of all rows but the last, which is read when it has been verified. Of a tree, or when another drafter may
--- have drafted, all rows that the model verified are read again, and keys of a side branch move to their positions.
---
--- Sources: arXiv 2211.17192, 2302.01318.
local mav = require "mav"
local check_keys = require "mav.options"
local op = mav.op

local model_drafter = {}

local OPTIONS = { dtype = true, progress = true }

local Drafter = { __name = "mav.draft.model", name = "model", kind = "device" }
Drafter.__index = Drafter

function Drafter:__tostring() return "model (" .. tostring(self.model) .. ")" end

function Drafter:layers()
  local c, list = self.model.config, {}
  for i = 1, c.layers do list[i] = { kv_heads = c.kv_heads, head_dim = c.head_dim, chunk = c.chunks[i] } end
  return list
end

local Bound = {}
Bound.__index = Bound

function Drafter:bind(loop)
  local cache = { layer = function(_, i) return loop.kv:layer(loop.first_layer + i - 1) end }
  local is_chain = true
  for _, width in ipairs(loop.widths) do is_chain = is_chain and width == 1 end
  return setmetatable({ loop = loop, model = self.model, cache = cache, is_chain = is_chain, is_alone = #(loop.hosts or {}) == 0,
    fill = { head = "none", fused = loop.fused }, logits = { fused = loop.fused } }, Bound)
end

--- The same prompt, for what it leaves in the cache.
function Bound:prompt(rows) self.model:forward(rows, self.cache, self.fill) end

--- After acceptance: keys of accepted rows that drafting did not leave.
function Bound:observe(step)
  local rows, T = step.rows, #step.rows
  if self.is_chain then -- slots are positions
    self.model:forward(self.is_alone and rows:slice(T, T) or rows, self.cache, self.fill)
    return
  end
  self.model:forward(rows, self.cache, self.fill)
  if T == 1 then return end
  for i = 1, self.model.config.layers do op.kv_move { rows = rows, accepted = step.accepted, kv = self.cache:layer(i) } end
end

function Bound:draft(step, k)
  for d = 1, k do
    local rows = self.loop:level(d - 1)
    step:choose(self.model:forward(rows, self.cache, self.logits), rows, d)
  end
end

--- Loads the drafter for `model`, on its device.
---
---   options.dtype, progress   as of the model's loader
---@param dir string   a Hugging Face directory
---@param model table
---@param options table|nil
---@return table|nil drafter
---@return any err
function model_drafter.load(dir, model, options)
  options = options or {}
  check_keys(options, OPTIONS, "draft.model")
  if type(model) ~= "table" or not model.config then error("draft.model: load(dir, model): the model is missing", 2) end
  local small, err = require("mav.maverick").load(dir,
    { runtime = model.runtime, dtype = options.dtype, progress = options.progress })
  if not small then return nil, err end
  local have, want = small.config.vocab, model.config.vocab
  if have ~= want then return nil, ("%s: vocab_size is %d; a drafter needs the model's, %d"):format(dir, have, want) end
  return setmetatable({ model = small }, Drafter)
end

return model_drafter
