--- Records a trace: what a drafter would draft at every position of the model's own text.
---
--- A drafter on the device is asked for k_max levels in every step and none of them is verified, so that each position is the root
--- of a step. A drafter on the host needs no model at all: it is asked again at every position of the finished text.
local calibrate = require "mav.sweep.calibrate"
local lanes = require "mav.sweep.lanes"
local lookup = require "mav.session.lookup"
local strategy = require "mav.session.strategy"
local trace = require "mav.sweep.trace"

local record = {}

local Recorder = { name = "recorder", needs = { confidence = true, entropy = true } }
Recorder.__index = Recorder

function Recorder:ask(stats) return stats.k_max end

function Recorder:reset() end

--- After a step: the drafts that wait for the next one.
function Recorder:note(s)
  local drafts, live = {}, s.live
  local n = s:drafts(drafts)
  if n == 0 then return end
  self.points[live.length] = { offered = live.k_max, drafts = drafts, entropy = live.entropy, device = true, by = self.drafter.name }
end

--- Before the next one: their probabilities. None is verified.
function Recorder:trim(stats, k)
  local point, confidence = self.points[stats.length], {}
  for d = 1, k do confidence[d] = stats.confidence[d] end
  if point then point.confidence = confidence end
  return 0
end

--- Levels of a tree of drafts that the text agrees with. text[i + 1] follows the root; widths: children of the nodes of each level.
function record.agreement(drafts, widths, offered, text, i)
  local before, node, size = 0, 0, 1 -- drafts above the level; the node above, within its level; nodes of its level
  for d = 1, offered do
    local width, found = widths[d], nil
    for child = node * width, node * width + width - 1 do
      if drafts[before + child + 1] == text[i + d] then
        found = child
        break
      end
    end
    if not found then return d - 1 end
    before, node, size = before + size * width, found, size * width
  end
  return offered
end

--- Proposals of host drafters at every position, in the place of those that are there. They see the text up to there and no more.
local function ask_hosts(hosts, s, points, first, k_max)
  local states, ids, vocab = {}, table.move(s.ids, 1, first - 1, 1, {}), s.model.config.vocab
  for i, host in ipairs(hosts) do states[i] = host:start(s) end
  for length = first, #s - 1 do
    ids[length] = s.ids[length]
    for i, host in ipairs(hosts) do
      local drafts, who = {}, ("drafter '%s'"):format(tostring(host.name))
      local n = lookup.ask(states[i], who, ids, length, k_max, drafts, vocab, strategy.caller(states[i]))
      if n > 0 then
        points[length] = { offered = n, drafts = table.move(drafts, 1, n, 1, {}), by = host.name,
          entropy = points[length] and points[length].entropy }
        break
      end
    end
  end
end

local function parts(drafter)
  if drafter.kind == "host" then return { drafter }, nil end
  if drafter.kind == "device" then return {}, drafter end
  return drafter.hosts, drafter.device
end

--- One request: generates, then compares. Writes the request and its points.
local function request(out, setup, s, recorder, hosts, index)
  local prompt, widths = setup.prompts[index], setup.widths
  recorder.points = {}
  s:reset()
  s:complete(prompt.ids, { max_tokens = setup.max_tokens, ignore_eos = setup.ignore_eos,
    on_step = recorder.drafter and function() recorder:note(s) end })
  local first = #prompt.ids
  ask_hosts(hosts, s, recorder.points, first, setup.k_max)
  out:write { request = index, family = prompt.family, prompt = prompt.ids, tokens = #s - first }
  for length = first, #s - 1 do
    local point = recorder.points[length] or { offered = 0, drafts = {} }
    point.at = length - first + 1
    point.agree = record.agreement(point.drafts, widths, point.offered, s.ids, length)
    out:write(point)
  end
  return #s - first
end

--- Tokens that a recording takes at most, those of its costs included: what on_progress is told of adds up to them.
function record.work(setup) return calibrate.tokens(setup.tree and #setup.tree or setup.k_max) + #setup.prompts * setup.max_tokens end

--- Records into a file.
---
---   setup   as for mav.sweep.run, with one drafter; k_max or tree; path; on_progress(what, tokens)
--- Returns how many points were written.
function record.run(setup)
  local entry, temperature, points = setup.drafters[1], setup.temperatures[1], 0
  local on_progress = setup.on_progress or function() end
  setup.widths = setup.tree
  if not setup.tree then
    setup.widths = {}
    for d = 1, setup.k_max do setup.widths[d] = 1 end
  end
  setup.k_max = #setup.widths
  setup.depths, setup.policies = { setup.k_max }, {}
  local all <close> = lanes.new(setup)
  local costs = calibrate.costs(all, entry.text, temperature, setup.prompts, setup.k_max, on_progress)
  local live = all:open({ drafter = entry.text, k = setup.k_max }, temperature).live
  local header = { model = setup.model.dir, drafter = entry.spec or entry.text, k_max = setup.k_max, widths = setup.widths, rows = {},
    kind = entry.drafter.kind == "device" and "device" or "host", temperature = temperature, seed = setup.seed, dtype = setup.dtype,
    max_tokens = setup.max_tokens, ignore_eos = setup.ignore_eos, kv = setup.kv,
    device = setup.model.runtime.device, threads = setup.model.runtime.threads, is_tree = setup.tree ~= nil, costs = costs }
  for k = 0, setup.k_max do header.rows[k + 1] = live.rows(k) end
  local hosts, device = parts(entry.drafter)
  local recorder = setmetatable({ drafter = device }, Recorder)
  local s <close> = setup.model:session { kv_dtype = setup.kv, context = setup.context, strategy = {
    draft = device, policy = device and recorder, sample = setup.chain(temperature), tree = device and setup.tree,
    k_max = device and not setup.tree and setup.k_max or nil } }
  local out = trace.create(setup.path, header)
  for index = 1, #setup.prompts do
    points = points + request(out, setup, s, recorder, hosts, index)
    on_progress(("prompt %d"):format(index), setup.max_tokens)
  end
  out:close()
  return points
end

return record
