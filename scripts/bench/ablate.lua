--- mav bench --shape NAME --ablate: the same measurement with one thing switched off at a time, each in a process of its own, so that
--- memory is free again and a failure is one line of the table.
---
--- Each process gets its MAV_CUDA_OFF from here alone: the command refuses to begin where one is set.
local mav = require "mav"
local cli = require "mav.cli"
local layers = require "mav.bench.layers"
local progress = require "mav.sweep.progress"
local shape = require "mav.bench.shape"

local ablate = {}

local BLAS_ROWS = 64 -- products of more rows are cuBLASLt's

--- what; off: a word of MAV_CUDA_OFF, which means nothing elsewhere; cuda: the same of an option; more: options; fp8: of such weights;
--- rows: only steps of more have it.
local VARIANTS = {
  { what = "nothing" },
  { what = "fusion", more = "--unfused" },
  { what = "programmatic dependent launch", off = "pdl" },
  { what = "graphs", off = "graphs" },
  { what = "prefetch", off = "prefetch" },
  { what = "shuffled weights", more = "--no-shuffle", cuda = true, fp8 = true },
  { what = "tensor cores", off = "tensor" },
  { what = "experts side by side", off = "spatial" },
  { what = "cuBLASLt (more than 64 rows)", off = "blas", rows = BLAS_ROWS },
  { what = "fp8 (bf16 instead)", more = "--dtype bf16", fp8 = true },
}

local function quote(text) return "'" .. tostring(text):gsub("'", "'\\''") .. "'" end

--- The path of this program.
local function program()
  local pipe = io.popen "readlink /proc/$PPID/exe"
  local path = pipe and pipe:read "l"
  if pipe then pipe:close() end
  return path or cli.fail "the path of this program cannot be told"
end

--- The device that the processes will find; where there is none, this fails once for all of them.
local function find_device(args)
  local rt <close> = assert(cli.runtime(args))
  return rt.device
end

--- Why a variant would be the same as nothing; nil where it is not.
local function left_out(v, args, device)
  local most = math.max(table.unpack(args.rows))
  if (v.off or v.cuda) and device ~= "cuda" then return "only on cuda" end
  if v.fp8 and (args.dtype or "fp8") ~= "fp8" then return "no fp8 weights" end
  if v.rows and most <= v.rows then return ("no more than %d rows"):format(v.rows) end
end

local function command(exe, args, v)
  local words = { v.off and "MAV_CUDA_OFF=" .. v.off or "", quote(exe), "bench", "--shape", args.shape, "--json", v.more or "" }
  local function add(name, value)
    if value ~= nil then words[#words + 1] = name .. " " .. quote(value) end
  end
  local is_bf16 = (v.more or ""):find("--dtype", 1, true)
  if not is_bf16 then add("--dtype", args.dtype) end
  if not is_bf16 and (args.dtype or "fp8") == "fp8" then add("--rounding", args.rounding) end
  add("--tp", args.tp)
  add("--layers", args.layers)
  add("--experts", args.experts)
  add("--vocab", args.vocab)
  add("--rows", table.concat(args.rows, ","))
  add("--context", args.context)
  add("--seconds", args.seconds)
  add("--seed", args.seed)
  add("--kv", args.kv)
  add("--device", args.device)
  add("--threads", args.threads)
  return table.concat(words, " ")
end

--- The object that a run of a shell's line printed; or nil and what it said instead.
function ablate.run(line)
  local pipe = assert(io.popen(line .. " 2>&1"))
  local text = pipe:read "a"
  local _, how, code = pipe:close()
  local object, last = ("\n" .. text):match "\n({[^\n]*)", text:match "([^\n]*)\n*$"
  local ok, result = pcall(mav.json.decode, object or "")
  if ok and type(result) == "table" and result.steps then return result end
  if last == "" then last = ("it ended with %s %s and said nothing"):format(how, code) end
  return nil, text:match "mav bench: ([^\n]*)" or last
end

--- A list: what was off, and what was measured (result) or why not (reason; failed: although it should have been).
function ablate.measure(args)
  shape.config(args.shape, args) -- what no process could do fails here, once
  local exe, device, list, count = program(), find_device(args), {}, 0
  for i, v in ipairs(VARIANTS) do
    list[i] = { off = v.what, reason = left_out(v, args, device) }
    count = count + (list[i].reason and 0 or 1)
  end
  local bar, done = progress.new(count, 0), 0
  local ok, err = pcall(function()
    for i, v in ipairs(VARIANTS) do
      local entry = list[i]
      if not entry.reason then
        bar:step("without " .. v.what, math.min(done, 1))
        entry.result, entry.reason = ablate.run(command(exe, args, v))
        entry.failed, done = not entry.result or nil, done + 1
      end
    end
  end)
  bar:finish()
  if not ok then error(err, 0) end
  return list
end

--- What should have been measured and was not; nil where all was.
function ablate.failure(list)
  local names = {}
  for _, entry in ipairs(list) do
    names[#names + 1] = (entry.failed or entry.result and layers.failure(entry.result)) and entry.off or nil
  end
  return #names > 0 and ("failed, wholly or in part, without %s; the result says why"):format(table.concat(names, ", ")) or nil
end

--- A line of the table; base: the steps with everything on, as far as there are any.
local function line_of(entry, base)
  local line = ("%-32s"):format(entry.off)
  if entry.reason then return ("%s %s: %s"):format(line, entry.failed and "failed" or "not run", entry.reason) end
  for i, s in ipairs(entry.result.steps) do
    local us, whole = s.us_per_step, base[i] and base[i].us_per_step
    local costs = us and whole and ("%.1f%%"):format(100 * (us / whole - 1))
    line = line .. (" %10s %8s"):format(us and ("%.1f"):format(us) or "-", costs or "-")
  end
  return line
end

--- Why steps are missing, every reason once.
local function print_reasons(list)
  local said = {}
  for _, entry in ipairs(list) do
    for _, s in ipairs(entry.result and entry.result.steps or {}) do
      local line = s.reason and ("T=%d failed: %s"):format(s.rows, s.reason)
      if line and not said[line] then print(line) end
      said[line or ""] = true
    end
  end
end

function ablate.print(list, args)
  print "costs: how much longer a step of T rows takes without it; below 0%, it is shorter"
  local head = ("%-32s"):format("without")
  for _, rows in ipairs(args.rows) do head = head .. (" %10s %8s"):format(("us, T=%d"):format(rows), "costs") end
  print(head)
  for _, entry in ipairs(list) do print(line_of(entry, list[1].result and list[1].result.steps or {})) end
  print_reasons(list)
end

return ablate
