--- Traces: for every position of a text, what a drafter would have drafted from there and how much of it the text agrees with.
---
--- A file of JSON lines. The first is the header:
---   { mav_trace = 1, model, drafter, kind = "device" | "host", k_max, rows = [rows(0), ..., rows(k_max)], widths, temperature, seed,
---     accept, max_tokens, ignore_eos, costs = { verify_us = { "rows": us }, draft_us = { "k": us }, plain_us, step_us } }
--- (plain_us: of a step of plain decoding) then for every prompt a request, followed by its points, one for each token of the output:
---   { request = i, family, prompt = [ids], tokens = n }
---   { at = p, offered = levels that were drafted, agree = levels of them that the text agrees with, drafts = [ids, level by level],
---     confidence = [by level], entropy = nats, by = name of the drafter, device = true: by one on the device }
--- At point p (from 1 on) the root is the token before the p-th of the output.
local cli = require "mav.cli"
local mav = require "mav"

local trace = {}

local VERSION = 1

local function is_list_of(list, length, kind)
  if type(list) ~= "table" or #list < length then return false end
  for i = 1, length do
    if type(list[i]) ~= "number" or kind and math.type(list[i]) ~= kind then return false end
  end
  return true
end

--- What is wrong with costs for a tree of these rows; nil: nothing.
function trace.check_costs(costs, rows)
  if type(costs) ~= "table" then return "no costs" end
  for _, name in ipairs { "verify_us", "draft_us" } do
    if type(costs[name]) ~= "table" then return ("costs: no %s"):format(name) end
    for key, us in pairs(costs[name]) do
      if not math.tointeger(tonumber(key)) or type(us) ~= "number" or us < 0 then
        return ("costs: %s of %s is %s"):format(name, tostring(key), tostring(us))
      end
    end
  end
  for _, name in ipairs { "plain_us", "step_us" } do
    if type(costs[name]) ~= "number" then return ("costs: no %s"):format(name) end
  end
  for _, T in ipairs(rows) do
    if not (costs.verify_us[tostring(T)] or costs.verify_us[T]) then return ("costs: no verify_us of %d rows"):format(T) end
  end
end

local function check_header(h)
  if type(h) ~= "table" or h.mav_trace ~= VERSION then return "no trace of mav sweep --record" end
  if math.type(h.k_max) ~= "integer" or h.k_max < 1 then return "k_max is no depth" end
  if not is_list_of(h.rows, h.k_max + 1, "integer") then return "rows: a number for each of 0 to k_max is expected" end
  if h.kind ~= "device" and h.kind ~= "host" then return "kind is neither device nor host" end
  return trace.check_costs(h.costs, h.rows)
end

local function check_request(r)
  if type(r.prompt) ~= "table" or math.type(r.tokens) ~= "integer" then return "a request without prompt or tokens" end
end

local function check_point(p, request, k_max)
  if not request then return "a point before any request" end
  if p.at ~= #request.points + 1 then return ("point %s is out of order"):format(tostring(p.at)) end
  local is_sound = math.type(p.offered) == "integer" and math.type(p.agree) == "integer" and p.agree >= 0 and p.agree <= p.offered
    and p.offered <= k_max
  if not is_sound then return "offered and agree do not fit" end
end

--- Reads a trace: { header =, requests = { { prompt =, family =, tokens =, prompt_tokens =, points = { ... } } } }
function trace.read(path)
  local text, number, t = cli.read_file(path), 0, { requests = {} }
  for line in text:gmatch "([^\n]*)\n?" do
    number = number + 1
    if line ~= "" then
      local object, err = mav.json.decode(line)
      if object == nil then cli.fail("%s: line %d: %s", path, number, tostring(err)) end
      local wrong
      if not t.header then
        wrong = check_header(object)
        t.header = object
      elseif type(object) ~= "table" then
        wrong = "no object"
      elseif object.request then
        wrong = check_request(object)
        object.points, object.prompt_tokens = {}, #(object.prompt or {})
        t.requests[#t.requests + 1] = object
      else
        local request = t.requests[#t.requests]
        wrong = check_point(object, request, t.header.k_max)
        if not wrong then request.points[#request.points + 1] = object end
      end
      if wrong then cli.fail("%s: line %d: %s", path, number, wrong) end
    end
  end
  if not t.header then cli.fail("%s is empty", path) end
  for i, request in ipairs(t.requests) do
    if #request.points ~= request.tokens then cli.fail("%s: request %d has %d of %d points", path, i, #request.points, request.tokens) end
  end
  if #t.requests == 0 then cli.fail("%s: no requests", path) end
  return t
end

--- Writes a trace as it is recorded: open(path, header), then request(...) and point(...).
local Writer = {}
Writer.__index = Writer

function trace.create(path, header)
  local file, err = io.open(path, "wb")
  if not file then cli.fail("%s", err) end
  local self = setmetatable({ file = file, path = path }, Writer)
  header.mav_trace = VERSION
  self:write(header)
  return self
end

function Writer:write(object)
  local ok, err = self.file:write(mav.json.encode(object), "\n")
  if not ok then cli.fail("%s: %s", self.path, err) end
end

function Writer:close() self.file:close() end

return trace
