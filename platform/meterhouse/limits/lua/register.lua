-- uses: alive arithmetic calendar hold settled slot stone
-- Stores live reservations that these counters lost or never saw, as a reserve would, without judging them; those that
-- are live, settled or reaped are left alone. Counters of another run of the server begin anew.
-- ARGV: {lease ms, {id, 1 to 16 of a hold}, ...}. Reply: {0, how many were stored}.
local run = run_id()
local opened = call('HGET', m, 'o')
if call('HGET', m, 'run') ~= run then
  opened = tostring(now)
  call('DEL', m, h, l, prefix .. 'y')
  call('HSET', m, 'run', run, 'st', 'o', 'n', 0, 'la', now, 'o', now)
end

local function debit(slot, hold)
  local owner, type, calendar, model = parse_slot(slot)
  if not is_in_scope(hold, slot, owner, model) then return end
  local size, amount = #hold, -1
  if type == 3 then
    hold[size + 1], hold[size + 2], hold[size + 3], hold[size + 4], hold[size + 5] = slot, 3, 0, 1, -1
    call('HINCRBY', m, slot .. '|n', 1)
    return
  end
  local start = bounds_of(calendar, hold[1])
  if tonumber(call('HGET', m, slot .. '|p')) ~= start then return end
  for i = 1, #hold[16], 2 do
    if hold[16][i] == slot then amount = hold[16][i + 1] end
  end
  local held = held_of(type, hold, output_of(hold))
  hold[size + 1], hold[size + 2], hold[size + 3], hold[size + 4], hold[size + 5] = slot, type, start, held, amount
  call('HINCRBY', m, slot .. '|' .. start .. '|r', held)
end

local stored = 0
for i = 2, #a do
  local id = table.remove(a[i], 1)
  local hold = a[i]
  if call('HEXISTS', h, id) == 0 and not is_settled(id) and not find_stone(id, life(run, opened)) then
    local organization = string.match(m, '{(.*)}')
    for _, list in ipairs({hold[5], hold[6], 'a|organization:' .. organization}) do
      for slot in string.gmatch(call('HGET', m, list) or '', '%S+') do debit(slot, hold) end
    end
    for j = 1, #hold[16], 2 do
      if is_cap((parse_slot(hold[16][j]))) then debit(hold[16][j], hold) end
    end
    call('HSET', h, id, cmsgpack.pack(hold))
    call('ZADD', l, now + a[1], id)
    stored = stored + 1
  end
end
if stored > 0 then call('HINCRBY', m, 'n', stored) end
return {0, stored}
