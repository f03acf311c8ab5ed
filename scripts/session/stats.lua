--- Times of a session. Recording is arithmetic on fields and on a ring made in the first step: no allocation in the others, and a
--- fork that makes no step costs nothing.
---
--- Lua's own share of a step is the time from a wait returning to the next launch, less what the caller of the iterator did in
--- between (printing, say), which is counted by itself, and less what a host drafter took, which counts as drafting.
local stats = {}

local RING = 8192 -- most steps that median and 99th percentile look back on
local SHARE_BYTES_MIN = 64 << 20 -- a step that reads less may live in caches: no share of the memory's bandwidth

local Times = {}
Times.__index = Times

local function filled(n, value)
  local ring = {}
  for i = 1, n do ring[i] = value end
  return ring
end

--- speculates: there is a drafter, and its steps are recorded one by one. most: steps of a generation.
function stats.new(speculates, most)
  local self = setmetatable({ speculates = speculates, size = math.min(RING, most), prompt_tokens = 0, prompt_s = 0.0 }, Times)
  self:begin()
  return self
end

function Times:make_rings()
  local n = self.size
  self.ring = filled(n, 0.0)
  if not self.speculates then return end
  self.k, self.accepted, self.verify_us, self.draft_us = filled(n, 0), filled(n, 0), filled(n, 0.0), filled(n, 0.0)
  self.entropy, self.drafter = filled(n, 0.0), filled(n, "none")
end

--- A new generation starts: only the prompt's figures of the prefill to come are kept.
function Times:begin()
  self.steps, self.lua_s, self.caller_s, self.step_s = 0, 0.0, 0.0, 0.0
  self.tokens, self.first_tokens, self.drafted_sum, self.accepted_sum = 0, 0, 0, 0
  self.prompt_tokens, self.prompt_s = 0, 0.0
  self.began, self.first, self.last = 0.0, 0.0, 0.0
  self.launch, self.wait, self.away, self.left = 0.0, 0.0, 0.0, 0.0
end

function Times:prompt(tokens, seconds)
  self.prompt_tokens, self.prompt_s = self.prompt_tokens + tokens, self.prompt_s + seconds
end

--- The iterator is entered and left.
function Times:resume(now)
  if self.began == 0.0 then self.began = now end
  if self.left > 0.0 then
    self.away, self.left = self.away + (now - self.left), 0.0
  end
end

function Times:suspend(now) self.left = now end

--- drafting: seconds of a host drafter since the last wait. Returns Lua's share since then, in seconds.
function Times:launched(now, drafting)
  if not self.ring then self:make_rings() end
  local share = 0.0
  if self.steps > 0 then
    share = now - self.wait - self.away - drafting
    self.lua_s, self.caller_s = self.lua_s + share, self.caller_s + self.away
  end
  self.away, self.launch = 0.0, now
  return share
end

function Times:waited(now)
  local steps = self.steps + 1
  self.steps, self.wait, self.last = steps, now, now
  if steps == 1 then self.first = now end
  self.step_s = self.step_s + (now - self.launch)
  self.ring[(steps - 1) % self.size + 1] = now - self.launch
end

--- A token is taken; those of the first step are not part of the speed.
function Times:token()
  self.tokens = self.tokens + 1
  if self.steps == 1 then self.first_tokens = self.tokens end
end

--- The last step verified k levels and accepted some of them. Times in microseconds.
function Times:speculated(k, accepted, verify_us, draft_us, entropy, drafter)
  local i = (self.steps - 1) % self.size + 1
  self.k[i], self.accepted[i], self.verify_us[i], self.draft_us[i] = k, accepted, verify_us, draft_us
  self.entropy[i], self.drafter[i] = entropy, drafter
  self.drafted_sum, self.accepted_sum = self.drafted_sum + k, self.accepted_sum + accepted
end

local Summary = { __name = "mav.session.stats" }

function Summary:__tostring()
  local function line(...) return (...):format(select(2, ...)) end
  local out = {}
  if self.prompt_tokens > 0 then
    out[#out + 1] = line("prompt: %d tokens, %.1f tokens/s", self.prompt_tokens, self.prompt_tokens_per_s)
  end
  out[#out + 1] = line("output: %d tokens, %.1f tokens/s/user, first after %.1f ms", self.output_tokens,
    self.tokens_per_s or 0, self.first_token_ms)
  out[#out + 1] = line("step: %.1f us median, %.1f us p99; Lua %.1f us, caller %.1f us", self.step_us_median, self.step_us_p99,
    self.lua_us_per_step, self.caller_us_per_step)
  if self.acceptance_length then
    out[#out + 1] = line("speculation: %.2f tokens a step (acceptance length), %.0f%% of %.1f drafts accepted",
      self.acceptance_length, 100 * self.accepted_share, self.drafted_per_step)
    out[#out + 1] = line("verify %.1f us, draft %.1f us, policy %.2f us", self.verify_us_median, self.draft_us_median,
      self.policy_us_per_step)
  end
  local read = line("read: %.2f MB a step, %.2f GB/s", self.bytes_per_step / 1e6, self.gb_per_s)
  if self.bandwidth_share then
    read = read .. line(", %.0f%% of the measured %.1f GB/s", 100 * self.bandwidth_share, self.bandwidth_gb_per_s)
  end
  out[#out + 1] = read
  return table.concat(out, "\n")
end

local function quantile(sorted, q) return #sorted == 0 and 0.0 or sorted[math.max(1, math.ceil(q * #sorted))] end

local function median_of(ring, n)
  local sorted = table.move(ring, 1, n, 1, {})
  table.sort(sorted)
  return quantile(sorted, 0.5)
end

function Times:speculation(out, s)
  local kept = math.min(self.steps, self.size)
  out.acceptance_length = 1 + self.accepted_sum / self.steps
  out.accepted_share = self.drafted_sum > 0 and self.accepted_sum / self.drafted_sum or 0.0
  out.drafted_per_step = self.drafted_sum / self.steps
  out.verify_us_median, out.draft_us_median = median_of(self.verify_us, kept), median_of(self.draft_us, kept)
  out.policy_us_per_step = s.loop.policy_s * 1e6 / self.steps
  out.steps = {}
  for n = self.steps - kept, self.steps - 1 do -- oldest first
    local i = n % self.size + 1
    out.steps[#out.steps + 1] = { k = self.k[i], accepted = self.accepted[i], us = self.ring[i] * 1e6, verify_us = self.verify_us[i],
      draft_us = self.draft_us[i], entropy = s.loop.entropy and self.entropy[i] or nil, drafter = self.drafter[i] }
  end
end

--- What `s.stats` shows: figures of the last generation.
---
---   tokens_per_s    output tokens after those of the first step, over the time from the first step to the last (nil before there are two)
---   acceptance_length, accepted_share, drafted_per_step, verify_us_median, draft_us_median, policy_us_per_step; steps: a list of
---                   { k =, accepted =, us =, verify_us =, draft_us =, entropy =, drafter = }: with a drafter. us is all of it but Lua
---   bandwidth_share of the bandwidth measured on this runtime (session:measure_bandwidth), for steps too big for caches
function Times:summary(s)
  local sorted = self.ring and table.move(self.ring, 1, math.min(self.steps, self.size), 1, {}) or {}
  table.sort(sorted)
  local steps, span = self.steps, self.last - self.first
  local out = {
    prompt_tokens = self.prompt_tokens, prompt_s = self.prompt_s,
    prompt_tokens_per_s = self.prompt_s > 0 and self.prompt_tokens / self.prompt_s or 0.0,
    output_tokens = self.tokens, first_token_ms = steps > 0 and (self.first - self.began) * 1e3 or 0.0,
    tokens_per_s = steps > 1 and span > 0 and (self.tokens - self.first_tokens) / span or nil,
    step_us_median = quantile(sorted, 0.5) * 1e6, step_us_p99 = quantile(sorted, 0.99) * 1e6,
    lua_us_per_step = steps > 1 and self.lua_s / (steps - 1) * 1e6 or 0.0,
    caller_us_per_step = steps > 1 and self.caller_s / (steps - 1) * 1e6 or 0.0,
    bytes_per_step = s.model:step_bytes(1, math.max(#s - steps // 2, 0), s.kv_dtype),
  }
  if self.k and steps > 0 then self:speculation(out, s) end
  local median = quantile(sorted, 0.5)
  out.gb_per_s = median > 0 and out.bytes_per_step / median / 1e9 or 0.0
  local bandwidth = s.model.bandwidth_gb_per_s
  if bandwidth and out.bytes_per_step >= SHARE_BYTES_MIN then
    out.bandwidth_gb_per_s, out.bandwidth_share = bandwidth, out.gb_per_s / bandwidth
  end
  return setmetatable(out, Summary)
end

stats.SHARE_BYTES_MIN = SHARE_BYTES_MIN

return stats
