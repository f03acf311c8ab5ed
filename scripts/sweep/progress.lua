--- A line on a terminal's stderr: how much of a sweep is done and how long the rest will take. Elsewhere nothing is written.
local mav = require "mav"

local progress = {}

local EVERY = 0.2 -- seconds
local WIDTH = 24

local Progress = {}
Progress.__index = Progress

--- total: cells; done: those that need not be measured. is_terminal: nil finds out.
function progress.new(total, done, is_terminal)
  if is_terminal == nil then is_terminal = os.execute "test -t 2" == true end
  return setmetatable({ total = total, done = done, before = done, started = mav.now(), due = 0.0, is_terminal = is_terminal }, Progress)
end

--- Seconds as "1h02m", "3m20s" or "7s".
function progress.duration(seconds)
  local s = math.floor(seconds + 0.5)
  if s >= 3600 then return ("%dh%02dm"):format(s // 3600, s % 3600 // 60) end
  return s >= 60 and ("%dm%02ds"):format(s // 60, s % 60) or ("%ds"):format(s)
end

--- The line for a moment `now`.
function Progress:line(now, what)
  local share = self.total > 0 and self.done / self.total or 1.0
  local fresh = self.done - self.before
  local left = fresh > 0 and progress.duration((now - self.started) / fresh * (self.total - self.done)) .. " left" or ""
  local filled = math.floor(share * WIDTH)
  return ("[%s%s] %d of %d  %s  %s"):format(("="):rep(filled), (" "):rep(WIDTH - filled), self.done, self.total, left, what)
end

--- Another cell is done; what: the one that begins.
function Progress:step(what, count)
  self.done = self.done + (count or 1)
  local now = mav.now()
  if not self.is_terminal or now < self.due then return end
  self.due = now + EVERY
  io.stderr:write("\r", self:line(now, what):sub(1, 120), "\27[K"):flush()
end

function Progress:finish()
  if self.is_terminal then io.stderr:write "\r\27[K" end
end

return progress
