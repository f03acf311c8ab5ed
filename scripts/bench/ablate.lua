--- mav bench --shape NAME --ablate: the same measurement with one thing switched off at a time, each in a process of its own, so that
--- memory is free again and a failure is one line of the table.
local mav = require "mav"
local cli = require "mav.cli"

local ablate = {}

--- what; off: a word of MAV_CUDA_OFF; more: options; cuda: means nothing elsewhere.
local VARIANTS = {
  { what = "nothing", more = "" },
  { what = "fusion", more = "--unfused" },
  { what = "programmatic dependent launch", off = "pdl", cuda = true },
  { what = "graphs", off = "graphs", cuda = true },
  { what = "prefetch", off = "prefetch", cuda = true },
  { what = "shuffled weights", more = "--no-shuffle", cuda = true },
  { what = "tensor cores", off = "tensor", cuda = true },
  { what = "experts side by side", off = "spatial", cuda = true },
  { what = "cuBLASLt (more than 64 rows)", off = "blas", cuda = true },
  { what = "fp8 (bf16 instead)", more = "--dtype bf16" },
}

local function quote(text) return "'" .. tostring(text):gsub("'", "'\\''") .. "'" end

--- The path of this program.
local function program()
  local pipe = io.popen "readlink /proc/$PPID/exe"
  local path = pipe and pipe:read "l"
  if pipe then pipe:close() end
  return path or cli.fail "the path of this program cannot be told"
end

local function command(exe, args, v)
  local words = { v.off and "MAV_CUDA_OFF=" .. v.off or "", quote(exe), "bench", "--shape", args.shape, "--json", v.more or "" }
  local function add(name, value)
    if value ~= nil then words[#words + 1] = name .. " " .. quote(value) end
  end
  if not (v.more or ""):find("--dtype", 1, true) then add("--dtype", args.dtype) end
  add("--tp", args.tp)
  add("--layers", args.layers)
  add("--experts", args.experts)
  add("--vocab", args.vocab)
  add("--rows", table.concat(args.rows, ","))
  add("--context", args.context)
  add("--seconds", args.seconds)
  add("--seed", args.seed)
  add("--kv", args.kv)
  add("--rounding", args.rounding)
  add("--device", args.device)
  add("--threads", args.threads)
  return table.concat(words, " ")
end

--- The object that a run printed; or nil and the last line of what it said.
local function run(line)
  local pipe = assert(io.popen(line .. " 2>&1"))
  local text = pipe:read "a"
  pipe:close()
  local last = text:match "([^\n]*)\n*$"
  local ok, result = pcall(mav.json.decode, last)
  if ok and type(result) == "table" and result.steps then return result end
  return nil, last
end

--- A list: what was off, and what was measured (result) or why not (reason).
function ablate.measure(args)
  local exe, list = program(), {}
  for _, v in ipairs(VARIANTS) do
    local device = list[1] and list[1].result and list[1].result.device
    local entry = { off = v.what }
    if v.cuda and device ~= "cuda" then
      entry.reason = "only on cuda"
    else
      entry.result, entry.reason = run(command(exe, args, v))
    end
    list[#list + 1] = entry
    if #list == 1 and not entry.result then cli.fail("%s", entry.reason) end
  end
  return list
end

function ablate.print(list)
  local base = list[1].result
  local head = ("%-32s"):format("without")
  for _, s in ipairs(base.steps) do head = head .. (" %10s %8s"):format(("us, T=%d"):format(s.rows), "costs") end
  print(head)
  for _, entry in ipairs(list) do
    local line = ("%-32s"):format(entry.off)
    for i, s in ipairs(entry.result and entry.result.steps or {}) do
      line = line .. (" %10.1f %7.1f%%"):format(s.us_per_step, 100 * (s.us_per_step / base.steps[i].us_per_step - 1))
    end
    print(entry.result and line or line .. " not run: " .. entry.reason)
  end
end

return ablate
