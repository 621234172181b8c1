-- Settles expired leases at their last renewed use and leaves stones; returns how many.

-- All stones are read when something is learned: beyond so many a reaped hold is the ledger's to account for at once.
local MOST_STONES = 1000

-- Nothing is reaped for a while after a silence as long, in which nobody could renew because the server hung or was cut
-- off from all: whoever lives shall have renewed by then. Sweeps of any worker break a silence. 0: silence means
-- nothing; -1: nothing is reaped now, for a worker lives that cannot renew.
local function is_silence_over(silence)
  if silence == 0 then return true end
  local heard = call('HMGET', m, 'la', 'lr', 'gr')
  local last = math.max(tonumber(heard[1] or 0), tonumber(heard[2] or 0))
  call('HSET', m, 'lr', now)
  if silence < 0 or tonumber(heard[3] or 0) > now then return false end
  if last > 0 and now - last > silence then
    call('HSET', m, 'gr', now + silence)
    return false
  end
  return true
end

local function reap(most)
  local expired = call('ZRANGEBYSCORE', l, '-inf', now, 'LIMIT', 0, most)
  if #expired == 0 then return 0 end
  local raws = call('HMGET', h, unpack(expired))
  -- As in settle.lua: what cannot be read must not stop all who come after it, nor have the others resolved again.
  call('HDEL', h, unpack(expired))
  call('ZREM', l, unpack(expired))
  local known, stones = call('HMGET', m, 'run', 'o'), call('ZCARD', y)
  for i = 1, #expired do
    local raw = raws[i]
    if raw then
      local hold = message(raw)
      resolve(hold, use_of(hold), true)
      if stones < MOST_STONES then
        keep_stone(expired[i], hold, life(known[1], known[2]))
        stones = stones + 1
      else
        call('SADD', settled_key(0), expired[i])
        call('EXPIRE', settled_key(0), SETTLED_SECONDS)
      end
    end
  end
  write_resolved()
  call('HINCRBY', m, 'n', -#expired)
  return #expired
end
