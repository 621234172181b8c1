-- uses: alive arithmetic calendar rate settled stand sizing
-- rarely: hold resolve stone reap slot refused companions
-- Holds demands that the same limits judge, one after another: each against all of them or none.
-- ARGV: {lease ms, silence ms, {model, attachments of key, project and organization, plan...}, {id, 2 to 10 as
-- sizing.lua}, ...}. The reply has one for each demand: {0 done, admitted at, allowance, held output, held nanos,
-- states...}, {1 refused, index of the limit, kind, used, demanded, wait ms, states...}, {2 learn, slots...},
-- {3 unknown}, {4 resolved before, now}.
local lease, silence, plan = a[1], a[2], a[3]
local PLAN, DEMANDS = 5, 4
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

local ids = {}
for i = DEMANDS, #a do ids[i - DEMANDS + 1] = a[i][1] end

-- The holds of all, which of them are resolved, and whether one is neither held nor resolved.
local function look_up()
  local holds, resolved, is_any_new = call('HMGET', h, unpack(ids)), are_resolved(ids), false
  for i = 1, #ids do
    if holds[i] then resolved[i] = false end
    is_any_new = is_any_new or not (holds[i] or resolved[i])
  end
  return holds, resolved, is_any_new
end

local holds, resolved, is_any_new = look_up()
local lease_now = now
local values, places = read(plan, PLAN, {plan[2], plan[3], plan[4]})
local bounds, missing
if is_known(values) then
  local next_lease = is_any_new and call('ZRANGE', l, '0', '0', 'WITHSCORES')[2]
  if next_lease and tonumber(next_lease) <= lease_now then
    local rare = rarely()
    if rare.is_silence_over(silence) and rare.reap(50) > 0 then
      -- A learning that began later than now has moved now on, and with it the sets of settled ids that are looked at.
      local before = resolved
      holds, resolved = look_up()
      for i = 1, #ids do resolved[i] = resolved[i] or before[i] end
    end
    values, places = read(plan, PLAN, {plan[2], plan[3], plan[4]})
  end
  local slots
  bounds, slots = stand(plan, PLAN, values, places)
  if #slots > 0 then missing = {2, unpack(slots)} end
else
  missing = {3}
end

-- The least that is free over all budgets, and over all quotas of tokens.
local function find_free()
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
  return budget_free, quota_free
end

-- The worst refusal of a demand by one of the bounds, as a reply; nil where all have room.
local function find_refusal(rate_tokens, least_tokens, least_nanos)
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
  return worst and {1, worst - 1, worst_kind, worst_used, worst_demanded, worst_wait}
end

-- Slots that are attached in scope without being in the plan; what is held moves them too.
local companions

local function find_companions()
  local listed = {}
  companions = {}
  for i = 1, #bounds do listed[bounds[i][1]] = true end
  for i = 6, 8 do
    for slot in string.gmatch(values[i] or '', '%S+') do
      if not listed[slot] then companions[#companions + 1] = rarely().companion_of(slot, plan[1]) end
    end
  end
end

local stored, leases, admitted = {}, {}, {}

-- Holds a demand in the bounds, unless one of them has no room; returns the reply.
local function admit(demand)
  local rate_tokens, allowance, output, least_tokens, least_nanos, held_tokens, held_nanos =
    size_demand(demand, find_free())
  local refusal = find_refusal(rate_tokens, least_tokens, least_nanos)
  if refusal then return refusal end
  local hold = {
    now, allowance, output, held_nanos, plan[2], plan[3], plan[1], demand[3], demand[8], demand[9], demand[10],
    demand[4] * demand[6], 0, 0, 0, {},
  }
  local size = HOLD_HEAD - 1
  for i = 1, #bounds do
    local bound = bounds[i]
    local type = bound[2]
    hold[size + 1], hold[size + 2] = bound[1], type
    if type < 3 then
      local amount = type == 2 and rate_tokens or 1
      bound[5] = bound[5] + amount
      hold[size + 3], hold[size + 4], hold[size + 5] = bound[7], amount, bound[4]
    else
      local amount = type == 6 and held_nanos or (type == 5 and held_tokens or 1)
      bound[6] = bound[6] + amount
      hold[size + 3], hold[size + 4], hold[size + 5] = bound[7] or 0, amount, bound[3]
    end
    size = size + 5
  end
  if not companions then find_companions() end
  for i = 1, #companions do rarely().debit_companion(companions[i], hold) end
  local id, at = demand[1], #stored
  stored[at + 1], stored[at + 2] = id, cmsgpack.pack(hold)
  leases[at + 1], leases[at + 2] = lease_now + lease, id
  local reply = {0, now, allowance, output, held_nanos}
  admitted[id] = reply
  return reply
end

local replies = {}
for i = 1, #ids do
  local reply = admitted[ids[i]]
  if resolved[i] then
    reply = {4, now}
  elseif missing then
    reply = missing
  elseif not reply then
    if holds[i] then
      local hold = message(holds[i])
      reply = {0, hold[1], hold[2], hold[3], hold[4]}
    else
      reply = admit(a[DEMANDS + i - 1])
    end
    add_states(reply, bounds)
  end
  replies[i] = reply
end
if #stored == 0 then return replies end

local writes, at = {'n', values[3] + #stored / 2, 'la', now}, 4
for i = 1, #bounds do
  local bound = bounds[i]
  local slot, type = bound[1], bound[2]
  if type < 3 then
    writes[at + 1], writes[at + 2] = slot .. '|c', bound[5]
    at = at + 2
    if tonumber(values[places[i]]) ~= bound[7] then
      writes[at + 1], writes[at + 2] = slot .. '|i', bound[7]
      writes[at + 3], writes[at + 4] = slot .. '|v', bound[6]
      at = at + 4
    end
  else
    writes[at + 1], writes[at + 2] = type == 3 and slot .. '|n' or slot .. '|' .. bound[7] .. '|r', bound[6]
    at = at + 2
  end
end
for i = 1, #companions do
  writes[at + 1], writes[at + 2] = companions[i][4], companions[i][5]
  at = at + 2
end
call('HSET', m, unpack(writes))
call('HSET', h, unpack(stored))
call('ZADD', l, unpack(leases))
return replies
