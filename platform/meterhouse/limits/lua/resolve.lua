-- Moves the counters of a hold's debits to the truth. Of a live hold the debits hold; of a stone's they were counted
-- before, and the difference counts. Afterwards the debits say what is counted. Without a truth of its type a rate stays
-- as it is. Options: is_reported lets rates be given back, only_raises takes nothing off quotas and budgets.
local function resolve(hold, truth, is_live, is_reported, only_raises)
  if #hold < HOLD_HEAD then return end
  local fields, size = {}, 0
  for i = HOLD_HEAD, #hold, 5 do
    local slot, type = hold[i], hold[i + 1]
    if type < 3 then
      local difference = truth[type] and truth[type] - hold[i + 3] or 0
      if difference > 0 or (difference < 0 and is_reported) then
        fields[size + 1], fields[size + 2], fields[size + 3] = slot .. '|i', slot .. '|c', slot .. '|v'
        size = size + 3
      end
    elseif type == 3 then
      size = size + 1
      fields[size] = slot .. '|n'
    else
      local period = slot .. '|' .. hold[i + 2]
      fields[size + 1], fields[size + 2], fields[size + 3] = slot .. '|p', period .. '|s', period .. '|r'
      size = size + 3
    end
  end
  local values = size > 0 and call('HMGET', m, unpack(fields)) or {}
  local at, writes, gone, written = 1, {}, {}, 0
  for i = HOLD_HEAD, #hold, 5 do
    local type, before, amount = hold[i + 1], hold[i + 3], truth[hold[i + 1]]
    if type < 3 then
      local difference = amount and amount - before or 0
      if difference > 0 or (difference < 0 and is_reported) then
        local index, current, previous = turn_rate(values[at], values[at + 1], values[at + 2], hold[i + 4])
        local counted = hold[i + 2]
        if counted == index or (difference > 0 and counted < index - 1) then
          current = current + difference
        elseif counted == index - 1 then
          previous = previous + difference
        end
        writes[written + 1], writes[written + 2] = fields[at + 1], current
        written = written + 2
        if counted == index - 1 or tonumber(values[at]) ~= index then
          writes[written + 1], writes[written + 2] = fields[at], index
          writes[written + 3], writes[written + 4] = fields[at + 2], previous
          written = written + 4
        end
        hold[i + 3] = amount
        at = at + 3
      end
    elseif type == 3 then
      if is_live and values[at] then
        writes[written + 1], writes[written + 2] = fields[at], values[at] - 1
        written = written + 2
      end
      at = at + 1
    else
      local spent, reserved = tonumber(values[at + 1]), tonumber(values[at + 2])
      if only_raises and amount < before then amount = before end
      if spent and reserved then
        spent = spent + amount
        if is_live then reserved = reserved - before else spent = spent - before end
        if reserved == 0 and tonumber(values[at]) > hold[i + 2] then
          gone[#gone + 1], gone[#gone + 2] = fields[at + 1], fields[at + 2]
        else
          writes[written + 1], writes[written + 2] = fields[at + 1], spent
          writes[written + 3], writes[written + 4] = fields[at + 2], reserved
          written = written + 4
        end
      end
      hold[i + 3] = amount
      at = at + 3
    end
  end
  if written > 0 then call('HSET', m, unpack(writes)) end
  if #gone > 0 then call('HDEL', m, unpack(gone)) end
end
