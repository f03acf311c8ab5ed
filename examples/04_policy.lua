--- A policy of your own: how many drafts the next step shall bring.
---
---     mav examples/04_policy.lua [MODEL_DIR]
---
--- A policy is asked once a step, while the device works. It gets `stats`, one live table of numbers (docs/strategies.md lists
--- them all), and answers how deep to draft next: 0 to stats.k_max, or false: no more speculation in this request. It decides about
--- time and never about text: with every policy here the model says what it says without drafts.
require "mav"

local here = (arg and arg[0] or ""):match("^(.*)/[^/]*$") or "."
local model = assert(require("mav.maverick").load(arg and arg[1] or here .. "/../models/tiny-maverick"))
local draft = require "mav.draft.self"(2) -- every second layer of the model guesses for all of them

local PROMPT = "-- returns the sum of the squares of the even numbers in the list\nlocal function sum_even_squares(list)\n"
local TOKENS = 96

local function run(name, strategy)
  local s <close> = model:session { strategy = strategy }
  local text = s:complete(PROMPT, { max_tokens = TOKENS, ignore_eos = true })
  local stats = s.stats
  print(("%-20s %3d tokens in %3d steps"):format(name, stats.output_tokens, stats.steps and #stats.steps or stats.output_tokens))
  return text, stats
end

local plain = run("plain", {})

--- A function is enough. This one goes a level deeper after a step that was accepted whole, and otherwise to where it broke.
local function follow(stats)
  if stats.steps == 0 then return 2 end
  return math.min(stats.accepted + 1, stats.k_max)
end

local text, with_follow = run("follow (function)", { draft = draft, policy = follow, k_max = 6 })
assert(text == plain)
assert(#with_follow.steps < TOKENS, "a step gave more than one token now and then")

--- An object says what it needs to know, and may look at the drafts before they are verified. This one always drafts k_max levels,
--- and verifies the ones that the drafter itself was sure of. A request begins with reset.
local sure = { name = "sure", needs = { confidence = true }, least = 0.5 }

function sure:reset() self.dropped = 0 end

function sure:ask(stats) return stats.k_max end

function sure:trim(stats, k)
  for d = 1, k do
    if stats.confidence[d] < self.least then
      self.dropped = self.dropped + k - d + 1
      return d - 1
    end
  end
  return k
end

local with_sure
text, with_sure = run("sure (object)", { draft = draft, policy = sure, k_max = 6 })
assert(text == plain)
print(("  left out %d drafts; of those verified, %.0f%% were accepted (%.0f%% with follow)"):format(sure.dropped,
  100 * with_sure.accepted_share, 100 * with_follow.accepted_share))
assert(sure.dropped > 0 and with_sure.accepted_share > with_follow.accepted_share)

--- Costs are there for the asking: the loop measures them once, on this machine, and keeps them up to date. This policy answers false,
--- which ends speculation for the rest of the request, once its tokens have taken longer than they would have without drafts.
local frugal = { name = "frugal", needs = { costs = true } }

function frugal:reset() self.us, self.tokens = 0.0, 0 end

function frugal:ask(stats)
  self.us, self.tokens = self.us + stats.us, self.tokens + (stats.steps > 0 and stats.accepted + 1 or 0)
  if stats.steps < 10 then return math.min(2, stats.k_max) end
  local plain_us = stats.cost_verify[1] -- verifying one row is plain decoding
  return self.us <= self.tokens * plain_us and 2 or false
end

local with_frugal
text, with_frugal = run("frugal (costs)", { draft = draft, policy = frugal, k_max = 2 })
assert(text == plain)
local gave_up = with_frugal.steps[#with_frugal.steps].k == 0
print(("  %s here"):format(gave_up and "gave up" or "found that it pays"))

--- A wrong answer is an error that names the policy and what is allowed.
local ok, err = pcall(run, "wrong", { draft = draft, policy = function() return 7 end, k_max = 6 })
assert(not ok)
print(err)
assert(tostring(err):find("ask returned 7; an integer from 0 to 6", 1, true))
