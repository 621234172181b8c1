-- uses: alive arithmetic hold
-- Holds up to so much output over all choices, against every budget and token quota of the reservation or none.
-- ARGV: {id, output}; asking again changes nothing. Replies: {0 done, held output, held nanos}, {1 refused},
-- {2 learn, slots...}, {3 unknown}, {6 not live}.
local raw = call('HGET', h, a[1])
local known = call('HMGET', m, 'run', 'st', 'ck')
if known[2] ~= 'k' or not is_mine(known[1], known[3]) then return {3} end
if not raw then return {6} end
local hold, output = message(raw), a[2]
if hold[3] < 0 or output <= hold[3] then return {0, hold[3], hold[4]} end

local fields, debits = {}, {}
for i = 1, #hold[16], 2 do fields[(i + 1) / 2] = hold[16][i] .. '|k' end
if #fields > 0 then
  local values, missing = call('HMGET', m, unpack(fields)), {}
  for i = 1, #fields do
    if values[i] ~= '1' then missing[#missing + 1] = hold[16][2 * i - 1] end
  end
  if #missing > 0 then return {2, unpack(missing)} end
end

fields = {}
for i = HOLD_HEAD, #hold, 5 do
  if hold[i + 1] > 3 then
    local period = hold[i] .. '|' .. hold[i + 2]
    debits[#debits + 1] = i
    fields[#fields + 1], fields[#fields + 2] = period .. '|s', period .. '|r'
  end
end
if #debits > 0 then
  local values, writes, is_budgeted = call('HMGET', m, unpack(fields)), {}, false
  for j = 1, #debits do
    local i, spent, reserved = debits[j], tonumber(values[2 * j - 1]), tonumber(values[2 * j])
    local held = held_of(hold[i + 1], hold, output)
    local more = held - hold[i + 3]
    if hold[i + 4] >= 0 and spent and more > 0 and more > hold[i + 4] - spent - reserved then return {1} end
    hold[i + 3] = held
    if spent then writes[#writes + 1], writes[#writes + 2] = fields[2 * j], reserved + more end
    is_budgeted = is_budgeted or (hold[i + 1] == 6 and hold[i + 4] >= 0)
  end
  if is_budgeted then hold[4] = spend_of(hold, output) end
  if #writes > 0 then call('HSET', m, unpack(writes)) end
end
hold[3] = output
call('HSET', h, a[1], cmsgpack.pack(hold))
return {0, output, hold[4]}
