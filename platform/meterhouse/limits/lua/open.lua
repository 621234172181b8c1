-- uses: alive
-- Begins an organization anew whose counters are lost or of another run, so that its live reservations can be
-- registered. Replies: {0 opened, when}, {7 it is open, since when}, {4 it is known}.
local values = call('HMGET', m, 'run', 'st', 'n', 'o')
local run, count = run_id(), tonumber(values[3])
if values[1] == run and count and count == call('HLEN', h) and count == call('ZCARD', l) then
  return {values[2] == 'k' and 4 or 7, tonumber(values[4])}
end
call('DEL', m, h, l, prefix .. 'y')
call('HSET', m, 'run', run, 'st', 'o', 'n', 0, 'la', now, 'o', now)
return {0, now}
