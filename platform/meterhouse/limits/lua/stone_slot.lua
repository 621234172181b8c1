-- What stones count in the slots that a learner asks for.

-- Debits a slot by the use of every stone in its scope that was admitted from start to before finish; returns the sum.
local function debit_stones(stones, slot, start, finish)
  local owner, type, _, model = parse_slot(slot)
  local sum = 0
  for id, stone in pairs(stones) do
    local hold = stone[3]
    if is_in_scope(hold, slot, owner, model) and hold[1] >= start and (finish < 0 or hold[1] < finish) then
      local size, used = #hold, use_of(hold)[type]
      hold[size + 1], hold[size + 2], hold[size + 3], hold[size + 4], hold[size + 5] = slot, type, start, used, -1
      keep_on(id, stone)
      sum = sum + used
    end
  end
  return sum
end

-- What the stones count in a slot's period.
local function counted_in_stones(stones, slot, start)
  local sum = 0
  for _, stone in pairs(stones) do
    local hold = stone[3]
    for i = HOLD_HEAD, #hold, 5 do
      if hold[i] == slot and hold[i + 2] == start then sum = sum + hold[i + 3] end
    end
  end
  return sum
end
