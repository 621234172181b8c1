-- uses: alive
-- Corrects slots by what the ledger says, makes them known, and unlocks them. A slot that went on to a later period is
-- known already: everything in scope moved it since that period began. A start of -1 unlocks and changes nothing.
-- ARGV: {token, slot, period's start, delta, whether it may be lowered, slot, ...}. Replies: {0}, {3 unknown},
-- {5 a lock was lost}.
local head = call('HMGET', m, 'run', 'st', 'n', 'ck')
if not is_known(head) then return {3} end
local status = 0
for i = 2, #a, 4 do
  local slot, start, delta = a[i], a[i + 1], a[i + 2]
  local values = call('HMGET', m, slot .. '|t', slot .. '|p', slot .. '|k')
  if string.match(values[1] or '', '^(.*):%d+$') ~= a[1] then
    status = 5
  else
    if tonumber(values[2]) == start and (values[3] ~= '1' or delta > 0 or a[i + 3]) then
      call('HINCRBY', m, slot .. '|' .. start .. '|s', delta)
      call('HSET', m, slot .. '|k', 1)
    end
    call('HDEL', m, slot .. '|t')
  end
end
return {status}
