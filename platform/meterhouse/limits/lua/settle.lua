-- uses: rate resolve settled
-- rarely: alive stone
-- Resolves reservations with the truth: live ones, and once those that were reaped; others change nothing. Each id is
-- remembered, so that a reservation which arrives after its settlement holds nothing.
-- ARGV: {id, requests, tokens, nanos, 1 if reported, id, ...}. Reply: {0, how many were live}.
local ids, live, holds = {}, {}, {}
for i = 1, #a, 5 do ids[#ids + 1] = a[i] end
local raws = call('HMGET', h, unpack(ids))
for i = 1, #ids do
  if raws[i] and not holds[ids[i]] then
    live[#live + 1], holds[ids[i]] = ids[i], raws[i]
  end
end
if #live > 0 then
  -- They go first and are counted last: if one of them cannot be read, those before it are not resolved again when all
  -- are told again, and the count, which is wrong then, has the organization recovered.
  call('HDEL', h, unpack(live))
  call('ZREM', l, unpack(live))
end
for i = 1, #a, 5 do
  local id, truth = a[i], {a[i + 1], a[i + 2], 0, a[i + 1], a[i + 2], a[i + 3]}
  local raw = holds[id]
  if raw then
    resolve(message(raw), truth, true, a[i + 4] == 1)
    holds[id] = false -- what is told twice is resolved once
  elseif raw == nil and call('EXISTS', prefix .. 'z:' .. id) == 1 then
    local known, rare = call('HMGET', m, 'run', 'o'), rarely()
    if known[1] and known[1] == rare.run_id() then
      local stone = rare.find_stone(id, rare.life(known[1], known[2]))
      if stone then resolve(stone[3], truth, false, a[i + 4] == 1) end
    end
    rare.drop_stone(id)
  end
end
write_resolved()
if #live > 0 then call('HINCRBY', m, 'n', -#live) end
local settled = settled_key(0)
call('SADD', settled, unpack(ids))
if call('TTL', settled) < 0 then call('EXPIRE', settled, SETTLED_SECONDS) end
return {0, #live}
