-- Every script begins with this. KEYS: counters, holds, leases of one organization. ARGV[1]: one MessagePack array.
-- Amounts are integers below 2^53 in doubles: exact, also as arguments of redis.call, which writes 17 digits.
-- The statuses, payloads and types (1 requests/window, 2 tokens/window, 3 concurrent, 4 requests/period,
-- 5 tokens/period, 6 spend) are those of layout.py; calendars are 0 total, 1 day, 2 month.
local m, h, l = KEYS[1], KEYS[2], KEYS[3]
local call, fmod, floor, message = redis.call, math.fmod, math.floor, cmsgpack.unpack
local a = message(ARGV[1])
local time = call('TIME')
local now = time[1] * 1000 + floor(time[2] / 1000)
local prefix = string.sub(m, 1, -2)
-- Where the debits of a hold begin (hold.lua).
local HOLD_HEAD = 17
