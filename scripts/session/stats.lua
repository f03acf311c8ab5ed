--- Times of a session. Recording is arithmetic on fields and on a log made in the first step: no allocation in the others, and a
--- fork that makes no step costs nothing.
---
--- Between two waits for the device lie four parts. Lua's own share of a step is what the loop does: from a wait returning to its
--- tokens being there, and from the next step beginning to its launch. In between, text is made of the tokens, and the caller of the
--- iterator does what it likes (printing, say). What a host drafter takes counts as drafting, the capture of graphs by itself.
local stats = {}

local LOG = 8192 -- most steps that are remembered one by one
local SHARE_BYTES_MIN = 64 << 20 -- a step that reads less may live in caches: no share of the memory's bandwidth

local Times = {}
Times.__index = Times

--- The log holds FIELDS values a step, side by side, so that a step touches little memory.
local FIELDS = 11
local US, K, ACCEPTED, VERIFY, DRAFT, DRAFTED, SHARE, ENTROPY, EXPERTS, DRAFTER, LOOKUP = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11

--- speculates: there is a drafter. most: steps of a generation.
function stats.new(speculates, most)
  local self = setmetatable({ speculates = speculates, size = math.min(LOG, most), prompt_tokens = 0, prompt_s = 0.0 }, Times)
  self:begin()
  return self
end

function Times:make_log()
  local log = {}
  for i = 1, self.size * FIELDS do log[i] = 0.0 end
  for i = DRAFTER, self.size * FIELDS, FIELDS do log[i] = "none" end
  self.log = log
end

--- A new generation starts: only the prompt's figures of the prefill to come are kept.
function Times:begin()
  self.steps, self.lua_s, self.text_s, self.caller_s, self.capture_s, self.share = 0, 0.0, 0.0, 0.0, 0.0, 0.0
  self.tokens, self.first_tokens, self.drafted_sum, self.accepted_sum = 0, 0, 0, 0
  self.prompt_tokens, self.prompt_s, self.seen = 0, 0.0, 0 -- seen: steps that the live table has taken in
  self.began, self.first, self.last = 0.0, 0.0, 0.0
  self.launch, self.wait, self.done, self.away, self.left = 0.0, 0.0, 0.0, 0.0, 0.0
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

--- A step that began at `entered` launches now; until then a host drafter and the policy took `drafting` seconds, captures
--- `capturing`.
function Times:launched(entered, now, drafting, capturing)
  if not self.log then self:make_log() end
  local share = now - entered - drafting - capturing
  if self.steps > 0 then
    share = share + (self.done - self.wait)
    self.lua_s, self.caller_s = self.lua_s + share, self.caller_s + self.away
    self.text_s = self.text_s + (entered - self.done - self.away)
  end
  self.away, self.launch, self.share, self.capture_s = 0.0, now, share, self.capture_s + capturing
end

function Times:waited(now)
  local steps = self.steps + 1
  self.steps, self.wait, self.last = steps, now, now
  if steps == 1 then self.first = now end
  self.log[(steps - 1) % self.size * FIELDS + US] = (now - self.launch) * 1e6
end

--- Graphs were captured before the first step.
function Times:captured(seconds) self.capture_s = self.capture_s + seconds end

--- The tokens of the step are there.
function Times:finished(now) self.done = now end

--- A token is taken; those of the first step are not part of the speed.
function Times:token()
  self.tokens = self.tokens + 1
  if self.steps == 1 then self.first_tokens = self.tokens end
end

--- The last step verified k levels and accepted some of them, then drafted some. Times in microseconds.
function Times:speculated(k, accepted, verify_us, draft_us, drafted, entropy, experts, drafter, lookup)
  local log, at = self.log, (self.steps - 1) % self.size * FIELDS
  log[at + K], log[at + ACCEPTED], log[at + VERIFY], log[at + DRAFT], log[at + DRAFTED] = k, accepted, verify_us, draft_us, drafted
  log[at + SHARE], log[at + ENTROPY], log[at + EXPERTS], log[at + DRAFTER] = self.share * 1e6, entropy, experts, drafter
  log[at + LOOKUP] = lookup
  self.drafted_sum, self.accepted_sum = self.drafted_sum + k, self.accepted_sum + accepted
end

--- What was recorded of the n-th step, without allocation: k, accepted, us, verify_us, draft_us, drafted, share, entropy, experts,
--- drafter, lookup.
function Times:step(n)
  local log, at = self.log, (n - 1) % self.size * FIELDS
  return log[at + K], log[at + ACCEPTED], log[at + US], log[at + VERIFY], log[at + DRAFT], log[at + DRAFTED], log[at + SHARE],
    log[at + ENTROPY], log[at + EXPERTS], log[at + DRAFTER], log[at + LOOKUP]
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
  out[#out + 1] = line("step: %.1f us median, %.1f us p99; Lua %.1f us, text %.1f us, caller %.1f us", self.step_us_median,
    self.step_us_p99, self.lua_us_per_step, self.text_us_per_step, self.caller_us_per_step)
  if self.acceptance_length then
    out[#out + 1] = line("speculation: %.2f tokens a step (acceptance length), %.0f%% of %.1f drafts accepted",
      self.acceptance_length, 100 * self.accepted_share, self.drafted_per_step)
    out[#out + 1] = line("verify %.1f us, draft %.1f us, policy %.2f us; graphs captured in %.1f ms", self.verify_us_median,
      self.draft_us_median, self.policy_us_per_step, self.capture_ms)
  end
  if self.bytes_per_step then
    local read = line("read: %.2f MB a step, %.2f GB/s", self.bytes_per_step / 1e6, self.gb_per_s)
    if self.bandwidth_share then
      read = read .. line(", %.0f%% of the measured %.1f GB/s", 100 * self.bandwidth_share, self.bandwidth_gb_per_s)
    end
    out[#out + 1] = read
  end
  return table.concat(out, "\n")
end

local function quantile(sorted, q) return #sorted == 0 and 0.0 or sorted[math.max(1, math.ceil(q * #sorted))] end

--- A field of the steps that are remembered, in ascending order.
function Times:sorted(field)
  local list = {}
  for i = 1, math.min(self.steps, self.size) do list[i] = self.log[(i - 1) * FIELDS + field] end
  table.sort(list)
  return list
end

function Times:speculation(out, s)
  local kept = math.min(self.steps, self.size)
  out.acceptance_length = 1 + self.accepted_sum / self.steps
  out.accepted_share = self.drafted_sum > 0 and self.accepted_sum / self.drafted_sum or 0.0
  out.drafted_per_step = self.drafted_sum / self.steps
  out.verify_us_median, out.draft_us_median = quantile(self:sorted(VERIFY), 0.5), quantile(self:sorted(DRAFT), 0.5)
  out.policy_us_per_step, out.capture_ms = s.policy_s * 1e6 / self.steps, self.capture_s * 1e3
  out.steps = {}
  for n = self.steps - kept + 1, self.steps do -- oldest first
    local k, accepted, us, verify_us, draft_us, _, share, entropy, _, drafter = self:step(n)
    out.steps[#out.steps + 1] = { k = k, accepted = accepted, us = us, verify_us = verify_us, draft_us = draft_us, lua_us = share,
      entropy = s.loop.entropy and entropy or nil, drafter = drafter }
  end
end

--- What plain steps read, and how fast that is.
function Times:bandwidth(out, s, median)
  out.bytes_per_step = s.model:step_bytes(1, math.max(#s - self.steps // 2, 0), s.kv_dtype)
  out.gb_per_s = median > 0 and out.bytes_per_step / median / 1e9 or 0.0
  local bandwidth = s.model.bandwidth_gb_per_s
  if bandwidth and out.bytes_per_step >= SHARE_BYTES_MIN then
    out.bandwidth_gb_per_s, out.bandwidth_share = bandwidth, out.gb_per_s / bandwidth
  end
end

--- What `s.stats` shows: figures of the last generation.
---
---   tokens_per_s    output tokens after those of the first step, over the time from the first step to the last; nil with one step
---   acceptance_length, accepted_share, drafted_per_step, verify_us_median, draft_us_median, policy_us_per_step; steps: a list of
---                   { k =, accepted =, us =, verify_us =, draft_us =, lua_us =, entropy =, drafter = }: with a drafter. us is from
---                   launch to wait; capture_ms of all graphs captured
---   lua_us_per_step the loop's and the strategy's own; text_us_per_step: detokenizing, stop strings, on_token; caller_us_per_step
---   bytes_per_step, gb_per_s, bandwidth_share (of the bandwidth that model:measure_bandwidth measured, for steps too big for caches):
---                   of plain decoding
function Times:summary(s)
  local sorted = self.log and self:sorted(US) or {}
  local steps, span = self.steps, self.last - self.first
  local out = {
    prompt_tokens = self.prompt_tokens, prompt_s = self.prompt_s,
    prompt_tokens_per_s = self.prompt_s > 0 and self.prompt_tokens / self.prompt_s or 0.0,
    output_tokens = self.tokens, first_token_ms = steps > 0 and (self.first - self.began) * 1e3 or 0.0,
    tokens_per_s = steps > 1 and span > 0 and (self.tokens - self.first_tokens) / span or nil,
    step_us_median = quantile(sorted, 0.5), step_us_p99 = quantile(sorted, 0.99),
    lua_us_per_step = steps > 1 and self.lua_s / (steps - 1) * 1e6 or 0.0,
    text_us_per_step = steps > 1 and self.text_s / (steps - 1) * 1e6 or 0.0,
    caller_us_per_step = steps > 1 and self.caller_s / (steps - 1) * 1e6 or 0.0
  }
  if self.speculates then
    if steps > 0 then self:speculation(out, s) end
  else
    self:bandwidth(out, s, quantile(sorted, 0.5) * 1e-6)
  end
  return setmetatable(out, Summary)
end

stats.SHARE_BYTES_MIN = SHARE_BYTES_MIN

return stats
