-- uses: alive arithmetic calendar rate settled stand sizing
-- rarely: hold resolve stone reap slot refused companions
-- Holds a demand against all limits of its principal or none.
-- ARGV: {id, lease ms, 3 to 11 as sizing.lua, {model, attachments of key, project and
-- organization, plan...}, silence ms}.
-- Replies: {0 done, admitted at, allowance, held output, held nanos, states...}, {1 refused, index of the limit,
-- kind, used, demanded, wait ms, states...}, {2 learn, slots...}, {3 unknown}, {4 resolved before, now}.
local id, plan = a[1], a[12]
local PLAN = 5
-- In the order of how bad they are for the caller; the first two are equal.
local RESERVED, RATE, SPENT, TOO_LARGE = 0, 1, 2, 3

-- Why a bound refuses: kind, used, demanded and wait ms (-1: waiting does not help); nil if it does not.
local function judge(bound, rate_tokens, least_tokens, least_nanos)
  local type, amount = bound[2], bound[3]
  if type < 3 then
    local demanded, used = type == 2 and rate_tokens or 1, used_of_rate(bound)
    if used + demanded <= amount then return nil end
    if demanded > amount then return TOO_LARGE, used, demanded, -1 end
    return RATE, used, demanded, rarely().wait_of_rate(bound, demanded)
  elseif type == 3 then
    if bound[6] < amount then return nil end
    return RESERVED, bound[6], 1, 1000
  end
  local demanded = type == 6 and least_nanos or (type == 5 and least_tokens or 1)
  local used = bound[5] + bound[6]
  if used + demanded <= amount then return nil end
  if demanded > amount then return TOO_LARGE, used, demanded, -1 end
  if bound[5] + demanded > amount then return SPENT, bound[5], demanded, -1 end
  return RESERVED, used, demanded, 1000
end

local held = call('HGET', h, id)
if not held and (is_settled(id) or call('EXISTS', prefix .. 'z:' .. id) == 1) then return {4, now} end
local lease_now = now
local values, places = read(plan, PLAN, {plan[2], plan[3], plan[4]})
if not is_known(values) then return {3} end
local next_lease = not held and call('ZRANGE', l, '0', '0', 'WITHSCORES')[2]
if next_lease and tonumber(next_lease) <= lease_now then
  local rare = rarely()
  if rare.is_silence_over(a[13]) then rare.reap(50) end
  values, places = read(plan, PLAN, {plan[2], plan[3], plan[4]})
end
local bounds, missing = stand(plan, PLAN, values, places)
if #missing > 0 then return {2, unpack(missing)} end
if held then
  local hold = message(held)
  return add_states({0, hold[1], hold[2], hold[3], hold[4]}, bounds)
end

local budget_free, quota_free
for i = 1, #bounds do
  local bound = bounds[i]
  if bound[2] > 4 then
    local free = bound[3] - bound[5] - bound[6]
    if bound[2] == 6 then
      if not budget_free or free < budget_free then budget_free = free end
    elseif not quota_free or free < quota_free then
      quota_free = free
    end
  end
end
local rate_tokens, allowance, output, least_tokens, least_nanos, held_tokens, held_nanos =
  size_demand(a, budget_free, quota_free)

local worst, worst_kind, worst_used, worst_demanded, worst_wait
for i = 1, #bounds do
  local kind, used, demanded, wait = judge(bounds[i], rate_tokens, least_tokens, least_nanos)
  if kind then
    local more = worst and math.max(kind, RATE) - math.max(worst_kind, RATE)
    if not worst or more > 0 or (more == 0 and wait > worst_wait) then
      worst, worst_kind, worst_used, worst_demanded, worst_wait = i, kind, used, demanded, wait
    end
  end
end
if worst then return add_states({1, worst - 1, worst_kind, worst_used, worst_demanded, worst_wait}, bounds) end

local hold = {
  now, allowance, output, held_nanos, plan[2], plan[3], plan[1], a[4], a[9], a[10], a[11], a[5] * a[7], 0, 0, 0, {},
}
local writes = {'n', values[3] + 1, 'la', now}
local listed, size, at = {}, #hold, #writes
for i = 1, #bounds do
  local bound = bounds[i]
  local slot, type = bound[1], bound[2]
  listed[slot] = true
  hold[size + 1], hold[size + 2] = slot, type
  if type < 3 then
    local amount = type == 2 and rate_tokens or 1
    bound[5] = bound[5] + amount
    hold[size + 3], hold[size + 4], hold[size + 5] = bound[7], amount, bound[4]
    writes[at + 1], writes[at + 2] = slot .. '|c', bound[5]
    at = at + 2
    if tonumber(values[places[i]]) ~= bound[7] then
      writes[at + 1], writes[at + 2] = slot .. '|i', bound[7]
      writes[at + 3], writes[at + 4] = slot .. '|v', bound[6]
      at = at + 4
    end
  else
    local amount = type == 6 and held_nanos or (type == 5 and held_tokens or 1)
    bound[6] = bound[6] + amount
    hold[size + 3], hold[size + 4], hold[size + 5] = bound[7] or 0, amount, bound[3]
    writes[at + 1], writes[at + 2] = type == 3 and slot .. '|n' or slot .. '|' .. bound[7] .. '|r', bound[6]
    at = at + 2
  end
  size = size + 5
end
for i = 6, 8 do
  if values[i] then
    for slot in string.gmatch(values[i], '%S+') do
      if not listed[slot] then rarely().debit_companion(slot, plan[1], hold, writes) end
    end
  end
end
call('HSET', m, unpack(writes))
call('HSET', h, id, cmsgpack.pack(hold))
call('ZADD', l, lease_now + a[2], id)
return add_states({0, now, allowance, output, held_nanos}, bounds)
