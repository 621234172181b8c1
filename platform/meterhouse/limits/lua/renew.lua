-- uses: alive
-- rarely: stone
-- Moves the leases of live reservations with what each has used so far. One that was reaped meanwhile goes on without
-- a hold until it is settled; that it was heard of is noted.
-- ARGV: {lease ms, id, 1 if sent, tokens, nanos, id, ...}. Reply: {0, ids that are neither live nor reaped...}.
local known, unknown = call('HMGET', m, 'run', 'o'), {0}
local is_mine = known[1] and known[1] == run_id()
if is_mine then call('HSET', m, 'lr', now) end
for i = 2, #a, 4 do
  local id = a[i]
  local raw = is_mine and call('HGET', h, id)
  if raw then
    local hold = message(raw)
    hold[13], hold[14], hold[15] = a[i + 1], a[i + 2], a[i + 3]
    call('HSET', h, id, cmsgpack.pack(hold))
    call('ZADD', l, now + a[1], id)
  else
    local rare = is_mine and rarely()
    local stone = rare and rare.find_stone(id, life(known[1], known[2]))
    if stone then
      stone[2] = now
      rare.keep_on(id, stone)
    else
      unknown[#unknown + 1] = id
    end
  end
end
return unknown
