-- Settles expired leases at their last renewed use and leaves tombstones of 48 h; returns how many.
-- A key goes in the millisecond after its last one.
local TOMBSTONE_MS = 172800000 - 1

-- Nothing is reaped for a while after a silence as long, in which nobody could renew because the server hung or was cut
-- off from all: whoever lives shall have renewed by then. Sweeps of any worker break a silence. 0: silence means nothing.
local function is_silence_over(silence)
  if silence == 0 then return true end
  local heard = call('HMGET', m, 'la', 'lr', 'gr')
  local last = math.max(tonumber(heard[1] or 0), tonumber(heard[2] or 0))
  call('HSET', m, 'lr', now)
  if tonumber(heard[3] or 0) > now then return false end
  if last > 0 and now - last > silence then
    call('HSET', m, 'gr', now + silence)
    return false
  end
  return true
end

local function reap(most)
  local expired = call('ZRANGEBYSCORE', l, '-inf', now, 'LIMIT', 0, most)
  if #expired == 0 then return 0 end
  local known = call('HMGET', m, 'run', 'o')
  for i = 1, #expired do
    local raw = call('HGET', h, expired[i])
    if raw then
      local hold = message(raw)
      local requests, tokens, nanos = hold[13], hold[14] * hold[13], hold[15] * hold[13]
      resolve(hold, HOLD_HEAD, true, {requests, tokens, 0, requests, tokens, nanos}, false)
      local stone = {life(known[1], known[2])}
      for j = HOLD_HEAD, #hold do stone[j - HOLD_HEAD + 2] = hold[j] end
      call('SET', prefix .. 'z:' .. expired[i], cmsgpack.pack(stone), 'PX', TOMBSTONE_MS)
    end
  end
  call('HDEL', h, unpack(expired))
  call('ZREM', l, unpack(expired))
  call('HINCRBY', m, 'n', -#expired)
  return #expired
end
