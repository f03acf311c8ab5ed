--- How a tensor is cut among ranks (tensor parallel), and where a part of it goes.
---
--- Every tensor is E groups of N rows of K columns: (E, N, K), (N, K), (N). A cut is
---
---   nil                        every rank has all of it
---   { by = "rows", parts }     parts = {{ rows =, pieces = }, ...}: stacked parts, each cut into equal pieces; with fewer pieces than
---                              ranks, neighbouring ranks have the same one. A rank has its pieces stacked in this order
---   { by = "columns", pieces } equal column ranges
---
--- Heads stay whole: q, k and v are cut by heads, o by the columns of heads; gate and up by rows of the intermediate width, down by its
--- columns; head by rows of the vocabulary. embed, norms and the router are everywhere.
local fault = require "mav.maverick.fault"

local shard = {}

local ROWS = { gate = true, up = true, expert_gate = true, expert_up = true }
local COLUMNS = { down = true, expert_down = true }

--- E, N, K. A scale is (E, N) or (N) where its weight is (E, N, K) or (N, K).
function shard.geometry(shape, is_scale)
  if #shape == 3 then return shape[1], shape[2], shape[3] end
  if is_scale and #shape == 2 then return shape[1], shape[2], 1 end
  return 1, shape[1] or 1, shape[2] or 1
end

--- The dimension of rows.
local function row_dim(shape, is_scale) return is_scale and #shape or math.max(#shape - 1, 1) end

--- The cut of an entry of a model with the config c.
function shard.of(key, shape, c)
  local _, N, _ = shard.geometry(shape)
  local C = c.head_dim
  local q, kv = { rows = c.heads * C, pieces = c.heads }, { rows = c.kv_heads * C, pieces = c.kv_heads }
  if key == "qkv" then return { by = "rows", parts = { q, kv, kv } } end
  if key == "q" then return { by = "rows", parts = { q } } end
  if key == "k" or key == "v" then return { by = "rows", parts = { kv } } end
  if key == "o" then return { by = "columns", pieces = c.heads } end
  if ROWS[key] then return { by = "rows", parts = { { rows = N, pieces = N } } } end
  if COLUMNS[key] then return { by = "columns", pieces = shape[#shape] } end
  if key == "head" then return { by = "rows", parts = { { rows = N, pieces = N } } } end
  return nil
end

--- Raises when a cut does not fit so many ranks. heads may be repeated only where `parts` has fewer pieces than ranks.
function shard.check(cut, ranks, name, where)
  if not cut or ranks == 1 then return end
  for i, part in ipairs(cut.parts or { { pieces = cut.pieces } }) do
    local pieces = part.pieces
    local repeated = #(cut.parts or {}) > 1 and i > 1 or name:find "%.[kv]$" -- k and v
    if pieces % ranks ~= 0 and not (repeated and pieces < ranks and ranks % pieces == 0) then
      fault.raise("UNSUPPORTED", where, "%d ranks: %s has %d %s, which they cannot share evenly", ranks, name, pieces,
        name:find "qkv$" and (i == 1 and "query heads" or "key and value heads") or name:find "%.o$" and "query heads"
        or cut.by == "columns" and "columns" or "rows")
    end
  end
end

--- Of rank r: a list of row ranges { first, last, at } within a group, from 0, last exclusive, `at` its place in the rank's stack; or the
--- column range first, last.
function shard.rows(cut, N, rank, ranks)
  if not cut or cut.by ~= "rows" then return { { first = 0, last = N, at = 0 } } end
  local list, begin, at = {}, 0, 0
  for i, part in ipairs(cut.parts) do
    local count = part.pieces >= ranks and part.rows // ranks or part.rows // part.pieces
    local first = begin + (part.pieces >= ranks and rank * count or rank * part.pieces // ranks * count)
    list[i] = { first = first, last = first + count, at = at }
    begin, at = begin + part.rows, at + count
  end
  return list
end

function shard.columns(cut, K, rank, ranks)
  if not cut or cut.by ~= "columns" then return 0, K end
  return K // ranks * rank, K // ranks * (rank + 1)
end

--- The shape of a rank's part.
function shard.shape(cut, shape, ranks, is_scale)
  local own = { table.unpack(shape) }
  if not cut or ranks == 1 then return own end
  if cut.by == "columns" then
    own[#own] = own[#own] // ranks
  else
    local rows, dim = 0, row_dim(shape, is_scale)
    for _, range in ipairs(shard.rows(cut, shape[dim], 0, ranks)) do rows = rows + range.last - range.first end
    own[dim] = rows
  end
  return own
end

--- The cut of a weight's scale: with its rows.
function shard.of_scale(cut, shape)
  if not cut or cut.by ~= "rows" or (#shape == 1 and shape[1] == 1) then return nil end
  return cut
end

--- As it stands in meta.shards: dim (output-major, from 1), and parts with rows and pieces, or pieces.
function shard.describe(cut, shape, is_scale)
  if not cut then return nil end
  local parts
  for i, part in ipairs(cut.parts or {}) do
    parts = parts or {}
    parts[i] = { rows = part.rows, pieces = part.pieces }
  end
  return { dim = cut.by == "columns" and #shape or row_dim(shape, is_scale), parts = parts, pieces = cut.pieces }
end

--- And back.
function shard.parse(described)
  if not described then return nil end
  if described.parts then return { by = "rows", parts = described.parts } end
  return { by = "columns", pieces = described.pieces }
end

return shard
