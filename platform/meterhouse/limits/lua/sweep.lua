-- uses: alive arithmetic calendar hold rate resolve settled stone reap slot
-- Reaps expired leases, and on one page of the counters drops what cannot matter again: idle rates, gauges that nobody
-- is in, periods that are over, caps whose client token has expired. A page at a time, because a large organization's
-- counters would hold up all others.
-- ARGV: {most leases, cursor, silence ms}. Replies: {0, how many were reaped, next cursor ('0': the last page), known period slots
-- of the page...}, {3 unknown}.
local LATE_MS = 172800000
local PAGE_FIELDS = 500
-- A gauge that is met again looks at every live hold: where there are more, an empty one stays.
local FEW_HOLDS = 200
local WINDOWS = {second = 1000, minute = 60000, hour = 3600000}

local known = call('HMGET', m, 'run', 'st', 'n', 'ck')
if not is_known(known) then return {3} end
local reaped = 0
if is_silence_over(a[3]) then
  repeat
    local some = reap(math.min(500, a[1] - reaped))
    reaped = reaped + some
  until some < 500 or reaped >= a[1]
end

local page = call('HSCAN', m, a[2], 'COUNT', PAGE_FIELDS)
local reply, gone = {0, reaped, page[1]}, {}

-- When a client token's cap ends: its owner's name says so. -1: it is no cap.
local function cap_end(owner)
  local seconds = string.match(owner, '^key:[^/]*/[^/]*/(%d+)$')
  return seconds and seconds * 1000 or -1
end

-- Drops the fields of a slot that nothing in scope need move any more.
local function detach(slot, names)
  local list = 'a|' .. (parse_slot(slot))
  local kept = {}
  for other in string.gmatch(call('HGET', m, list) or '', '%S+') do
    if other ~= slot then kept[#kept + 1] = other end
  end
  if #kept == 0 then gone[#gone + 1] = list else call('HSET', m, list, table.concat(kept, ' ')) end
  for _, name in ipairs(names) do gone[#gone + 1] = slot .. name end
end

for i = 1, #page[2], 2 do
  local field, value = page[2][i], page[2][i + 1]
  local slot, suffix = string.match(field, '^(%a+:.*)|(%a)$')
  if suffix == 'i' then
    local window, multiple = string.match(slot, '^[^|]*|[^|]*|(%a+)|(%d+)|')
    if floor(now / (WINDOWS[window] * multiple)) >= value + 2 then
      gone[#gone + 1], gone[#gone + 2], gone[#gone + 3] = field, slot .. '|c', slot .. '|v'
    end
  elseif suffix == 'n' and tonumber(value) == 0 and tonumber(known[3]) < FEW_HOLDS then
    detach(slot, {'|n'})
  elseif suffix == 'p' then
    local owner, _, calendar = parse_slot(slot)
    local _, finish = bounds_of(calendar, tonumber(value))
    if finish < 0 then finish = cap_end(owner) end
    local period = '|' .. value
    local values = call('HMGET', m, slot .. '|k', slot .. period .. '|r')
    if finish >= 0 and finish + LATE_MS <= now and tonumber(values[2]) == 0 then
      detach(slot, {'|p', '|k', '|t', '|w', '|g', period .. '|s', period .. '|r'})
    elseif values[1] == '1' then
      reply[#reply + 1] = slot
    end
  end
end
for i = 1, #gone, 1000 do call('HDEL', m, unpack(gone, i, math.min(i + 999, #gone))) end
return reply
