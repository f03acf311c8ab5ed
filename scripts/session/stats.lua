--- Times of a session. Recording is arithmetic on fields and on a ring made beforehand: no allocation in a step.
---
--- Lua's own share of a step is the time from a wait returning to the next launch, less what the caller of the iterator did in
--- between (printing, say), which is counted by itself.
local stats = {}

local RING = 8192 -- steps that median and 99th percentile look back on
local SHARE_BYTES_MIN = 64 << 20 -- a step that reads less may live in caches: no share of the memory's bandwidth

local Times = {}
Times.__index = Times

function stats.new()
  local ring = {}
  for i = 1, RING do ring[i] = 0.0 end
  local self = setmetatable({ ring = ring, prompt_tokens = 0, prompt_s = 0.0 }, Times)
  self:begin()
  return self
end

--- A new generation starts: only the prompt's figures of the prefill to come are kept.
function Times:begin()
  self.steps, self.lua_s, self.caller_s, self.step_s = 0, 0.0, 0.0, 0.0
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

function Times:launched(now)
  if self.steps > 0 then
    self.lua_s = self.lua_s + (now - self.wait - self.away)
    self.caller_s = self.caller_s + self.away
  end
  self.away, self.launch = 0.0, now
end

function Times:waited(now)
  local steps = self.steps + 1
  self.steps, self.wait, self.last = steps, now, now
  if steps == 1 then self.first = now end
  self.step_s = self.step_s + (now - self.launch)
  self.ring[(steps - 1) % RING + 1] = now - self.launch
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
  local read = line("read: %.2f MB a step, %.2f GB/s", self.bytes_per_step / 1e6, self.gb_per_s)
  if self.bandwidth_share then
    read = read .. line(", %.0f%% of the measured %.1f GB/s", 100 * self.bandwidth_share, self.bandwidth_gb_per_s)
  end
  out[#out + 1] = read
  return table.concat(out, "\n")
end

local function quantile(sorted, q) return #sorted == 0 and 0.0 or sorted[math.max(1, math.ceil(q * #sorted))] end

--- What `s.stats` shows: figures of the last generation.
---
---   tokens_per_s    output tokens after the first, over the time from the first to the last (nil before there are two)
---   bandwidth_share of the bandwidth measured on this runtime (session:measure_bandwidth), for steps too big for caches
function Times:summary(s)
  local sorted = table.move(self.ring, 1, math.min(self.steps, RING), 1, {})
  table.sort(sorted)
  local steps, span = self.steps, self.last - self.first
  local out = {
    prompt_tokens = self.prompt_tokens, prompt_s = self.prompt_s,
    prompt_tokens_per_s = self.prompt_s > 0 and self.prompt_tokens / self.prompt_s or 0.0,
    output_tokens = steps, first_token_ms = steps > 0 and (self.first - self.began) * 1e3 or 0.0,
    tokens_per_s = steps > 1 and span > 0 and (steps - 1) / span or nil,
    step_us_median = quantile(sorted, 0.5) * 1e6, step_us_p99 = quantile(sorted, 0.99) * 1e6,
    lua_us_per_step = steps > 1 and self.lua_s / (steps - 1) * 1e6 or 0.0,
    caller_us_per_step = steps > 1 and self.caller_s / (steps - 1) * 1e6 or 0.0,
    bytes_per_step = s.model:step_bytes(1, math.max(#s - steps // 2, 0), s.kv_dtype),
  }
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
