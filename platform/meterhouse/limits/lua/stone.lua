-- A tombstone, here a stone, is what is left of a reaped hold for 48 h: {life of these counters, when it was heard of last, hold}. The
-- amounts of its debits are those that count as spent, so that whoever tells the truth later (a settlement, renewals,
-- the ledger) moves the counters by the difference. y lists the stones of this life by their ends; z of m counts them. y does
-- not end by itself, or z would count what is not there any more.

-- A key goes in the millisecond after its last one.
local STONE_MS = 172800000
local y = prefix .. 'y'

local function keep_stone(id, hold, whose)
  call('SET', prefix .. 'z:' .. id, cmsgpack.pack({whose, now, hold}), 'PX', STONE_MS - 1)
  call('ZADD', y, now + STONE_MS, id)
  call('HINCRBY', m, 'z', 1)
end

local function keep_on(id, stone)
  call('SET', prefix .. 'z:' .. id, cmsgpack.pack(stone), 'KEEPTTL')
end

local function drop_stone(id)
  call('DEL', prefix .. 'z:' .. id)
  if call('ZREM', y, id) == 1 then call('HINCRBY', m, 'z', -1) end
end

-- The stone of an id, or nil; whose: the life of these counters.
local function find_stone(id, whose)
  local raw = call('GET', prefix .. 'z:' .. id)
  local stone = raw and message(raw)
  if stone and stone[1] == whose then return stone end
end

-- All stones of this life, by id. Where the list does not hold what it should, another life begins: what is left of
-- them is the ledger's to account for, and means nothing here any more.
local function find_stones(whose)
  local over = call('ZREMRANGEBYSCORE', y, '-inf', now)
  local counted = tonumber(call('HGET', m, 'z') or 0) - over
  if over > 0 then call('HSET', m, 'z', counted) end
  local ids, stones = call('ZRANGE', y, 0, -1), {}
  if #ids ~= counted then
    call('DEL', y)
    call('HSET', m, 'z', 0, 'o', math.max(now, tonumber(call('HGET', m, 'o') or 0) + 1))
    return stones
  end
  for i = 1, #ids do
    local stone = find_stone(ids[i], whose)
    if stone then stones[ids[i]] = stone else drop_stone(ids[i]) end
  end
  return stones
end

local function use_of(hold)
  local sent = hold[13]
  return {sent, hold[14] * sent, 0, sent, hold[14] * sent, hold[15] * sent}
end
