-- Corrections meet a comparison with the ledger, whose sums may have them already or not: it says which of the young ones
-- they have. A slot's w lists {id=amount} of those that moved it since its comparison began, its g the ids of those
-- that it has from the ledger and that nobody told it of yet.

-- Moves a slot of a period by a correction, unless it has it or will have it from the ledger; says whether it did.
local function correct(slot, start, id, amount)
  local values = call('HMGET', m, slot .. '|p', slot .. '|k', slot .. '|t', slot .. '|w', slot .. '|g')
  -- One that is not known and not being learned either is learned with it.
  if tonumber(values[1]) ~= start or not (values[2] == '1' or values[3]) then return false end
  if values[5] and string.find(values[5], ' ' .. id .. ' ', 1, true) then return false end
  call('HINCRBY', m, slot .. '|' .. start .. '|s', amount)
  if values[3] then call('HSET', m, slot .. '|w', string.format('%s%s=%.0f ', values[4] or '', id, amount)) end
  return true
end

-- The sum of those that moved a slot since its comparison began and that the ledger's sums have too.
local function corrected_twice(moved, young)
  local sum = 0
  for id, amount in string.gmatch(moved or '', '(%S+)=(%S+) ') do
    if young[id] then sum = sum + amount end
  end
  return sum
end

-- Notes which of the young ones a slot has from the ledger now, so that it is not moved by them again.
local function note_corrections(slot, untold)
  if untold == '  ' then call('HDEL', m, slot .. '|g') else call('HSET', m, slot .. '|g', untold) end
end
