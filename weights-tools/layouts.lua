--- Orders of a matrix's elements in a pack. kernels/layout.h has the same as index functions, for kernels.
---
---   row          rows, one after the other
---   m16n8k16     8-bit codes in the order of A fragments of mma.m16n8k16: tiles of 16 rows x 32 columns (two k16 steps), a tile after the
---                other along a row of tiles. In a tile, row r and column k belong to lane 4 (r % 8) + k % 8 / 2, which has 16 bytes; of
---                these it is byte 4 (k / 8) + 2 (k % 2) + r / 8. So a 32-bit word is e0, e2, e1, e3 of two registers (e0, e1) and
---                (e2, e3), and w & 0x00ff00ff, w >> 8 & 0x00ff00ff are the two pairs, ready to be widened to f16
---
--- Sixteen rows of a layout are as many bytes as sixteen rows in order, so that blocks of rows can be written one by one.
local mav = require "mav"

local layouts = {}

layouts.known = { row = true, m16n8k16 = true }
layouts.row_multiple, layouts.column_multiple = 16, 32

--- Is a matrix of N rows and K columns of this dtype allowed? nil, or what is wrong.
function layouts.wrong(layout, dtype, N, K)
  if layout == "row" then return nil end
  if dtype ~= "f8" then return ("layout %s is for fp8, not %s"):format(layout, dtype) end
  if N % layouts.row_multiple ~= 0 or K % layouts.column_multiple ~= 0 then
    return ("layout %s needs multiples of %d rows and %d columns, not (%d, %d)"):format(layout, layouts.row_multiple,
      layouts.column_multiple, N, K)
  end
end

--- Calls move(codes of a sub-lattice in row order, their place in the layout) for each of the 128 lattices.
local function each(rows, packed, move)
  local N, K = table.unpack(rows.shape)
  local tiles = packed:reshape { N // 16, K // 32, 32, 16 }
  local r4 = rows:reshape { N // 16, 16, K // 32, 32 }
  for g = 0, 7 do
    local lanes = tiles:slice(3, 4 * g + 1, 4 * g + 4) -- (i, j, t, byte)
    for half = 0, 1 do
      local line = r4:select(2, 8 * half + g + 1) -- (i, j, 32 columns)
      for word = 0, 3 do
        for odd = 0, 1 do
          move(line:slice(3, 8 * word + odd + 1, 8 * word + 8, 2), lanes:select(4, 4 * word + 2 * odd + half + 1))
        end
      end
    end
  end
end

--- (N, K) codes in rows -> the same bytes in the layout, as a tensor of that shape.
function layouts.pack(layout, t)
  if layout == "row" then return t end
  local out = mav.zeros { dtype = t.dtype, table.unpack(t.shape) }
  each(t:contiguous(), out, function(from, place) place:copy_from(from) end)
  return out
end

--- And back.
function layouts.unpack(layout, t)
  if layout == "row" then return t end
  local out = mav.zeros { dtype = t.dtype, table.unpack(t.shape) }
  each(out, t:contiguous(), function(place, from) place:copy_from(from) end)
  return out
end

return layouts
