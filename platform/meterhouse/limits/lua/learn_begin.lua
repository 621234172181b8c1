-- uses: alive arithmetic calendar hold slot stone stone_slot
-- Locks slots for a learner, and attaches those that are new: from the reply's moment on, these counters account for
-- the reservations that are live now, for those that were reaped, and for all that are admitted later; the ledger
-- accounts for all others.
-- ARGV: {token, lock ms, slots...}. Replies: {0, begin ms, (1 if known, spent by the others, period's start) of each
-- slot, how many are live, live ids..., reaped ids...}, {3 unknown}, {5 another learner has one of the slots}.
local head = call('HMGET', m, 'run', 'st', 'n', 'ck', 'la', 'b', 'o')
if not is_known(head) then return {3} end
for i = 3, #a do
  local token, ends = string.match(call('HGET', m, a[i] .. '|t') or '', '^(.*):(%d+)$')
  if token and token ~= a[1] and tonumber(ends) > now then return {5} end
end
local begin = math.max(now, tonumber(head[5] or 0) + 1, tonumber(head[6] or 0))
local reply = {0, begin}
local stones = find_stones(life(head[1], head[7]))
for i = 3, #a do
  local slot = a[i]
  local owner, _, calendar = parse_slot(slot)
  local start, finish = bounds_of(calendar, begin)
  local values = call('HMGET', m, slot .. '|p', slot .. '|k')
  local period, is_known_slot = tonumber(values[1]), values[2] == '1'
  if not period then
    local reserved, counted = debit_live(slot, start, finish), debit_stones(stones, slot, start, finish)
    attach(slot, owner)
    call('HSET', m, slot .. '|p', start, slot .. '|k', 0, slot .. '|' .. start .. '|s', counted,
      slot .. '|' .. start .. '|r', reserved)
  elseif period < start then
    turn_period(slot, period, start)
    is_known_slot = true
  else
    start = period
  end
  call('HSET', m, slot .. '|t', a[1] .. ':' .. now + a[2])
  call('HDEL', m, slot .. '|w')
  reply[#reply + 1] = is_known_slot and 1 or 0
  reply[#reply + 1] = tonumber(call('HGET', m, slot .. '|' .. start .. '|s')) - counted_in_stones(stones, slot, start)
  reply[#reply + 1] = start
end
call('HSET', m, 'b', begin)
local live = call('HKEYS', h)
reply[#reply + 1] = #live
for i = 1, #live do reply[#reply + 1] = live[i] end
for id in pairs(stones) do reply[#reply + 1] = id end
return reply
