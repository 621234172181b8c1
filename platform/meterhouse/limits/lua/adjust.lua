-- uses: alive calendar settled slot correction
-- Moves what is spent by a correction: on slots for all models whose current period holds the moment and that do not
-- have it from the ledger yet. Its id is remembered, so that one which is sent again, because its answer was lost,
-- moves nothing. With the first that comes in a later period than a slot's, that period begins, as with a request.
-- ARGV: {id, moment, nanos, tokens, attachments of its owners...}. Reply: {0, how many slots moved}.
if is_settled(a[1]) then return {0, 0} end
call('SADD', settled_key(0), a[1])
call('EXPIRE', settled_key(0), SETTLED_SECONDS)
local values = call('HMGET', m, 'run', 'st', 'ck')
if values[2] ~= 'k' or not is_mine(values[1], values[3]) then return {0, 0} end
local moved = 0
for i = 5, #a do
  for slot in string.gmatch(call('HGET', m, a[i]) or '', '%S+') do
    local _, type, calendar, model = parse_slot(slot)
    local amount = type == 6 and a[3] or (type == 5 and a[4] or 0)
    local start = bounds_of(calendar, a[2])
    if amount ~= 0 and model == '' then
      local period = tonumber(call('HGET', m, slot .. '|p'))
      if period and period < start and start <= now then turn_period(slot, period, start) end
      if correct(slot, start, a[1], amount) then moved = moved + 1 end
    end
  end
end
return {0, moved}
