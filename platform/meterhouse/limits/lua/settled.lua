-- Settled ids are remembered for 10 to 20 minutes, in sets of 10 minutes.
local SETTLED_SECONDS = 1200
-- By the time of the server, even where what is admitted now must say that it was later (stand.lua).
local settled_now = floor(now / 600000)

local function settled_key(before)
  return prefix .. 's:' .. settled_now - before
end

local function is_settled(id)
  return call('SISMEMBER', settled_key(0), id) == 1 or call('SISMEMBER', settled_key(1), id) == 1
end
