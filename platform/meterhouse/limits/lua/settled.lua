-- Settled ids are remembered for 10 to 20 minutes, in sets of 10 minutes.
local SETTLED_SECONDS = 1200

local function settled_key(before)
  return prefix .. 's:' .. (floor(now / 600000) - before)
end

local function is_settled(id)
  return call('SISMEMBER', settled_key(0), id) == 1 or call('SISMEMBER', settled_key(1), id) == 1
end

-- Whether each of some ids was settled or reaped before.
local function are_resolved(ids)
  local resolved, before, stones = {}, call('SMISMEMBER', settled_key(1), unpack(ids)), {}
  for i, is_settled_now in ipairs(call('SMISMEMBER', settled_key(0), unpack(ids))) do
    resolved[i] = is_settled_now == 1 or before[i] == 1
    stones[i] = prefix .. 'z:' .. ids[i]
  end
  if call('EXISTS', unpack(stones)) > 0 then
    for i = 1, #ids do resolved[i] = resolved[i] or call('EXISTS', stones[i]) == 1 end
  end
  return resolved
end
