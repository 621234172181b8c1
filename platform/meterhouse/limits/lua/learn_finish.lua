-- uses: alive rate resolve settled stone correction
-- Corrects slots by what the ledger says, makes them known, and unlocks them. A slot that went on to a later period is
-- known already: everything in scope moved it since that period began. A start of -1 unlocks and changes nothing.
-- Reaped reservations count as what the ledger has of them, and nothing is taken off one that may still run; one that
-- cannot (nothing was heard of it since a moment, and nobody keeps a record back) is the ledger's from now on.
-- ARGV: {token, {slot, period's start, delta, whether it may be lowered, slot, ...}, {reaped id, requests, tokens,
-- nanos, id, ...}, moment (-1: none), {ids of the young corrections that the ledger's sums have}}. Replies: {0}, {3 unknown}, {5 a lock was lost}.
local head = call('HMGET', m, 'run', 'st', 'n', 'ck', 'o')
if not is_known(head) then return {3} end
local status, slots, reaped = 0, a[2], a[3]
local young, untold = {}, {}
for i = 1, #a[5] do
  young[a[5][i]] = true
  if not is_settled(a[5][i]) then untold[#untold + 1] = a[5][i] end
end
untold = ' ' .. table.concat(untold, ' ') .. ' '
for i = 1, #slots, 4 do
  local slot, start, delta = slots[i], slots[i + 1], slots[i + 2]
  local values = call('HMGET', m, slot .. '|t', slot .. '|p', slot .. '|k', slot .. '|w')
  if string.match(values[1] or '', '^(.*):%d+$') ~= a[1] then
    status = 5
  else
    delta = delta - corrected_twice(values[4], young)
    if tonumber(values[2]) == start and (values[3] ~= '1' or delta >= 0 or slots[i + 3]) then
      call('HINCRBY', m, slot .. '|' .. start .. '|s', delta)
      call('HSET', m, slot .. '|k', 1)
      note_corrections(slot, untold)
    end
    call('HDEL', m, slot .. '|t', slot .. '|w')
  end
end
for i = 1, #reaped, 4 do
  local id = reaped[i]
  local stone = find_stone(id, life(head[1], head[5]))
  if stone then
    -- No rates: what the ledger says may be hours old.
    local truth = {false, false, 0, reaped[i + 1], reaped[i + 2], reaped[i + 3]}
    local is_over = stone[2] <= a[4]
    resolve(stone[3], truth, false, false, not is_over)
    if is_over then
      drop_stone(id)
      call('SADD', settled_key(0), id)
      call('EXPIRE', settled_key(0), SETTLED_SECONDS)
    else
      keep_on(id, stone)
    end
  end
end
write_resolved()
return {status}
