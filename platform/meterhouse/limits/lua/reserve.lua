-- uses: alive arithmetic calendar rate settled stand sizing
-- rarely: hold resolve stone reap slot refused companions
-- Holds demands one after another: each against all limits of its plan or none.
-- ARGV: {lease ms, silence ms, {plan, ...}, {the number of each demand's plan, ...}, {id, 2 to 10 as sizing.lua}, ...}. A
-- plan: {model, attachments of key, project and organization, limits as stand.lua...}. The reply has one for each
-- demand: {0 done, admitted at, allowance, held output, held nanos, states...}, {1 refused, index of the limit, kind,
-- used, demanded, wait ms, states...}, {2 learn, slots...}, {3 unknown}, {4 resolved before, now}.
local lease, silence, plans, plan_of = a[1], a[2], a[3], a[4]
local PLAN, DEMANDS = 5, 5
-- In the order of how bad they are for the caller; the first two are equal.
local RESERVED, RATE, SPENT, TOO_LARGE = 0, 1, 2, 3

-- Why a limit refuses: kind, used, demanded and wait ms (-1: waiting does not help); nil if it does not.
local function judge(counter, amount, rate_tokens, least_tokens, least_nanos)
  local type = counter[2]
  if type < 3 then
    local demanded, used = type == 2 and rate_tokens or 1, used_of_rate(counter)
    if used + demanded <= amount then return nil end
    if demanded > amount then return TOO_LARGE, used, demanded, -1 end
    return RATE, used, demanded, rarely().wait_of_rate(counter, amount, demanded)
  elseif type == 3 then
    if counter[5] < amount then return nil end
    return RESERVED, counter[5], 1, 1000
  end
  local demanded = type == 6 and least_nanos or (type == 5 and least_tokens or 1)
  local used = counter[4] + counter[5]
  if used + demanded <= amount then return nil end
  if demanded > amount then return TOO_LARGE, used, demanded, -1 end
  if counter[4] + demanded > amount then return SPENT, counter[4], demanded, -1 end
  return RESERVED, used, demanded, 1000
end

local ids = {}
for i = DEMANDS, #a do ids[i - DEMANDS + 1] = a[i][1] end

-- The holds of all, which of them were settled or reaped, and whether one is new; has_stones: whether any was reaped.
local function look_up(has_stones)
  local holds, is_any_new = call('HMGET', h, unpack(ids)), false
  local resolved, before = call('SMISMEMBER', settled_key(0), unpack(ids)), call('SMISMEMBER', settled_key(1), unpack(ids))
  for i = 1, #ids do
    resolved[i] = not holds[i]
      and (resolved[i] == 1 or before[i] == 1 or (has_stones and call('EXISTS', prefix .. 'z:' .. ids[i]) == 1))
    is_any_new = is_any_new or not (holds[i] or resolved[i])
  end
  return holds, resolved, is_any_new
end

local lease_now = now
local values, places = read(plans, PLAN)
local holds, resolved, is_any_new = look_up(values[6] and values[6] ~= '0')
-- Of each plan: the limits that judge, and the reply to what cannot be judged yet.
local bounds_of_plan, missing = {}, {}
if is_known(values) then
  local next_lease = is_any_new and call('ZRANGE', l, '0', '0', 'WITHSCORES')[2]
  if next_lease and tonumber(next_lease) <= lease_now then
    local rare = rarely()
    if rare.is_silence_over(silence) and rare.reap(50) > 0 then holds, resolved = look_up(true) end
    values, places = read(plans, PLAN)
  end
  for i, plan in ipairs(plans) do
    local bounds, slots = stand(plan, PLAN, values, places)
    bounds_of_plan[i], missing[i] = bounds, #slots > 0 and {2, unpack(slots)}
  end
  -- What one plan attached, the demands of others move too.
  if has_attached and #plans > 1 then values, places = read(plans, PLAN) end
else
  for i = 1, #plans do missing[i] = {3} end
end

-- The least that is free over all budgets, and over all quotas of tokens.
local function find_free(bounds)
  local budget_free, quota_free
  for i = 1, #bounds, 2 do
    local counter = bounds[i]
    if counter[2] > 4 then
      local free = bounds[i + 1] - counter[4] - counter[5]
      if counter[2] == 6 then
        if not budget_free or free < budget_free then budget_free = free end
      elseif not quota_free or free < quota_free then
        quota_free = free
      end
    end
  end
  return budget_free, quota_free
end

-- The worst refusal of a demand by one of the limits, as a reply; nil where all have room.
local function find_refusal(bounds, rate_tokens, least_tokens, least_nanos)
  local worst, worst_kind, worst_used, worst_demanded, worst_wait
  for i = 1, #bounds, 2 do
    local kind, used, demanded, wait = judge(bounds[i], bounds[i + 1], rate_tokens, least_tokens, least_nanos)
    if kind then
      local more = worst and math.max(kind, RATE) - math.max(worst_kind, RATE)
      if not worst or more > 0 or (more == 0 and wait > worst_wait) then
        worst, worst_kind, worst_used, worst_demanded, worst_wait = i, kind, used, demanded, wait
      end
    end
  end
  return worst and {1, (worst - 1) / 2, worst_kind, worst_used, worst_demanded, worst_wait}
end

-- The counters of slots that are attached in a plan's scope without being in it; what is held moves them too.
local function find_companions(plan, bounds)
  local listed, companions = {}, {}
  for i = 1, #bounds, 2 do listed[bounds[i][1]] = true end
  for i = 2, PLAN - 1 do
    for slot in string.gmatch(values[places[plan[i]]] or '', '%S+') do
      if not listed[slot] then companions[#companions + 1] = rarely().companion_of(slot, plan[1]) end
    end
  end
  return companions
end

local stored, leases, admitted, companions_of_plan, moved = {}, {}, {}, {}, {}

-- Holds a demand in all that its plan's demands move, unless a limit has no room; returns the hold, or nil and the refusal.
local function admit(demand, number)
  local plan, bounds, companions = plans[number], bounds_of_plan[number], companions_of_plan[number]
  local rate_tokens, allowance, output, least_tokens, least_nanos, held_tokens, held_nanos =
    size_demand(demand, find_free(bounds))
  local refusal = find_refusal(bounds, rate_tokens, least_tokens, least_nanos)
  if refusal then return nil, refusal end
  local hold = {
    now, allowance, output, held_nanos, plan[2], plan[3], plan[1], demand[3], demand[8], demand[9], demand[10],
    demand[4] * demand[6], 0, 0, 0, {},
  }
  local size = HOLD_HEAD - 1
  for i = 1, #bounds, 2 do
    local counter = bounds[i]
    local type = counter[2]
    hold[size + 1], hold[size + 2], hold[size + 3] = counter[1], type, counter[6]
    if type < 3 then
      local amount = type == 2 and rate_tokens or 1
      counter[4] = counter[4] + amount
      hold[size + 4], hold[size + 5] = amount, counter[3]
    else
      local amount = type == 6 and held_nanos or (type == 5 and held_tokens or 1)
      counter[5] = counter[5] + amount
      hold[size + 4], hold[size + 5] = amount, bounds[i + 1]
    end
    moved[counter] = true
    size = size + 5
  end
  if not companions then
    companions = find_companions(plan, bounds)
    companions_of_plan[number] = companions
  end
  for i = 1, #companions do
    rarely().debit_companion(companions[i], hold)
    moved[companions[i]] = true
  end
  local id, at = demand[1], #stored
  stored[at + 1], stored[at + 2] = id, cmsgpack.pack(hold)
  leases[at + 1], leases[at + 2] = lease_now + lease, id
  admitted[id] = hold
  return hold
end

local replies = {}
for i = 1, #ids do
  local number = plan_of[i]
  if resolved[i] then
    replies[i] = {4, now}
  elseif missing[number] then
    replies[i] = missing[number]
  else
    local hold, refusal = admitted[ids[i]] or (holds[i] and message(holds[i])), nil
    if not hold then hold, refusal = admit(a[DEMANDS + i - 1], number) end
    replies[i] = add_states(refusal or {0, hold[1], hold[2], hold[3], hold[4]}, bounds_of_plan[number])
  end
end
if #stored == 0 then return replies end

local writes, at = {'n', values[3] + #stored / 2, 'la', now}, 4
for counter in pairs(moved) do
  local slot, type = counter[1], counter[2]
  if type < 3 then
    writes[at + 1], writes[at + 2] = slot .. '|c', counter[4]
    at = at + 2
    if counter[8] ~= counter[6] then
      writes[at + 1], writes[at + 2] = slot .. '|i', counter[6]
      writes[at + 3], writes[at + 4] = slot .. '|v', counter[5]
      at = at + 4
    end
  else
    writes[at + 1], writes[at + 2] = type == 3 and slot .. '|n' or slot .. '|' .. counter[6] .. '|r', counter[5]
    at = at + 2
  end
end
call('HSET', m, unpack(writes))
call('HSET', h, unpack(stored))
call('ZADD', l, unpack(leases))
return replies
