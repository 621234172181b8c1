-- Moves the counters of holds' debits to the truth: `resolve` for each hold, then `write_resolved` once for all of them,
-- so that a counter is read once and written once, however many of the holds are in it.
-- A counter is {type, names of its fields..., what they say (false: nothing)...}. A rate's say the number of the current
-- window, what was counted in it and in the one before; and the next whether the first and the last must be written. A
-- gauge's says how many are in it; a period's say where the slot's newest one starts, what is spent and reserved; its own
-- start is the next.

-- All counters that were read, and each by the start of its period (0: it has none) and its slot.
local moved, by_start = {}, {[0] = {}}

-- By how much a rate's debit is moved: what is not reported gives nothing back; without a truth it stays as it is.
local function move_of_rate(debited, used, is_reported)
  local move = used and used - debited or 0
  return (move > 0 or is_reported) and move or 0
end

-- Of a live hold the debits hold; of a stone's they were counted before, and the difference counts. Afterwards the debits
-- say what is counted. Options: is_reported lets rates be given back, only_raises takes nothing off quotas and budgets.
local function resolve(hold, truth, is_live, is_reported, only_raises)
  local fields, size = {}, 0
  for i = HOLD_HEAD, #hold, 5 do
    local slot, type = hold[i], hold[i + 1]
    local start = type > 3 and hold[i + 2] or 0
    local counters = by_start[start]
    if not counters then
      counters = {}
      by_start[start] = counters
    end
    if not counters[slot] and (type > 2 or move_of_rate(hold[i + 3], truth[type], is_reported) ~= 0) then
      local counter
      if type == 3 then
        counter = {type, slot .. '|n', nil}
        size = size + 1
        fields[size] = counter[2]
      else
        if type < 3 then
          counter = {type, slot .. '|i', slot .. '|c', slot .. '|v', nil, 0, 0, false}
        else
          local period = slot .. '|' .. start
          counter = {type, slot .. '|p', period .. '|s', period .. '|r', nil, 0, 0, start}
        end
        fields[size + 1], fields[size + 2], fields[size + 3] = counter[2], counter[3], counter[4]
        size = size + 3
      end
      counters[slot] = counter
      moved[#moved + 1] = counter
    end
  end
  local values, at = size > 0 and call('HMGET', m, unpack(fields)), 1
  for i = HOLD_HEAD, #hold, 5 do
    local type, counted, before, amount = hold[i + 1], hold[i + 2], hold[i + 3], truth[hold[i + 1]]
    local counter = by_start[type > 3 and counted or 0][hold[i]]
    if type < 3 then
      local move = move_of_rate(before, amount, is_reported)
      if move ~= 0 then
        if counter[5] == nil then
          counter[5], counter[6], counter[7] = turn_rate(values[at], values[at + 1], values[at + 2], hold[i + 4])
          counter[8] = tonumber(values[at]) ~= counter[5]
          at = at + 3
        end
        local index = counter[5]
        if counted == index or (move > 0 and counted < index - 1) then
          counter[6] = counter[6] + move
        elseif counted == index - 1 then
          counter[7], counter[8] = counter[7] + move, true
        end
        hold[i + 3] = amount
      end
    elseif type == 3 then
      if counter[3] == nil then
        counter[3] = tonumber(values[at]) or false
        at = at + 1
      end
      if is_live and counter[3] then counter[3] = counter[3] - 1 end
    else
      if counter[5] == nil then
        counter[5], counter[6], counter[7] = values[at], tonumber(values[at + 1]), tonumber(values[at + 2])
        at = at + 3
      end
      if only_raises and amount < before then amount = before end
      if counter[6] and counter[7] then
        counter[6] = counter[6] + amount
        if is_live then counter[7] = counter[7] - before else counter[6] = counter[6] - before end
      end
      hold[i + 3] = amount
    end
  end
end

-- Writes what was moved; a period that is over goes once nothing is reserved in it.
local function write_resolved()
  local writes, size, gone = {}, 0, {}
  for i = 1, #moved do
    local counter = moved[i]
    local type = counter[1]
    if type == 3 then
      if counter[3] then
        writes[size + 1], writes[size + 2] = counter[2], counter[3]
        size = size + 2
      end
    elseif type < 3 then
      writes[size + 1], writes[size + 2] = counter[3], counter[6]
      size = size + 2
      if counter[8] then
        writes[size + 1], writes[size + 2] = counter[2], counter[5]
        writes[size + 3], writes[size + 4] = counter[4], counter[7]
        size = size + 4
      end
    elseif counter[6] and counter[7] then
      local newest = tonumber(counter[5]) -- none: the sweep dropped the slot, where the hold outlived later periods
      if counter[7] == 0 and (not newest or newest > counter[8]) then
        gone[#gone + 1], gone[#gone + 2] = counter[3], counter[4]
      else
        writes[size + 1], writes[size + 2] = counter[3], counter[6]
        writes[size + 3], writes[size + 4] = counter[4], counter[7]
        size = size + 4
      end
    end
  end
  for i = 1, size, 1000 do call('HSET', m, unpack(writes, i, math.min(i + 999, size))) end
  for i = 1, #gone, 1000 do call('HDEL', m, unpack(gone, i, math.min(i + 999, #gone))) end
  moved, by_start = {}, {[0] = {}}
end
