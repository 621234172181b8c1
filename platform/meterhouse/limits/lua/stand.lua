-- Where limits stand. A plan is {slot, type, amount, window's ms or calendar} for each limit, from `first` on; the
-- fields between its first element and that one list attachments.
-- A counter is {slot, type, window's ms or calendar, spent or current, reserved or previous or open, period's start or
-- window's number, period's end or ms since the window began, window's number as it is stored}. Plans that count on one
-- slot share its counter, so that each finds what was debited before.
-- A plan's bounds are {counter, amount} for each limit, in one row.

-- By slot; false: it must be learned first.
local counters = {}

-- Whether a gauge was attached, so that what was read of attachments is out of date.
local has_attached = false

-- The bounds of the periods that hold this moment, each worked out once.
local bounds_now, bounded_at = {}, now

local function period_now(calendar)
  if bounded_at ~= now then bounds_now, bounded_at = {}, now end
  local known = bounds_now[calendar]
  if not known then
    known = {bounds_of(calendar, now)}
    bounds_now[calendar] = known
  end
  return known[1], known[2]
end

-- Reads the head fields and the plans', at the moment that counts for admissions; returns the fields' values, and where
-- those of each slot begin and that of each list of attachments is.
local function read(plans, first)
  local fields, size, places = {'run', 'st', 'n', 'ck', 'b', 'z'}, 6, {}
  for _, plan in ipairs(plans) do
    for i = 2, first - 1 do
      if not places[plan[i]] then
        size = size + 1
        fields[size], places[plan[i]] = plan[i], size
      end
    end
    for i = first, #plan, 4 do
      local slot, type = plan[i], plan[i + 1]
      if not places[slot] then
        places[slot] = size + 1
        if type < 3 then
          fields[size + 1], fields[size + 2], fields[size + 3] = slot .. '|i', slot .. '|c', slot .. '|v'
          size = size + 3
        elseif type == 3 then
          size = size + 1
          fields[size] = slot .. '|n'
        else
          local period = slot .. '|' .. period_now(plan[i + 3])
          fields[size + 1], fields[size + 2] = slot .. '|p', slot .. '|k'
          fields[size + 3], fields[size + 4] = period .. '|s', period .. '|r'
          size = size + 4
        end
      end
    end
  end
  local values = call('HMGET', m, unpack(fields))
  local begin = tonumber(values[5] or 0)
  if begin > now then
    -- What is admitted after a learning began must say so, even within the same millisecond.
    now = begin
    return read(plans, first)
  end
  return values, places
end

-- The counter of a quota or budget, or false if its slot must be learned.
local function stand_period(slot, type, calendar, period, known, spent, reserved)
  local start, finish = period_now(calendar)
  period = tonumber(period)
  if not period or (known ~= '1' and period >= start) then return false end
  if period < start then
    rarely().turn_period(slot, period, start)
    spent, reserved = 0, 0
  elseif period > start then
    start, finish = bounds_of(calendar, period)
    local values = call('HMGET', m, slot .. '|' .. start .. '|s', slot .. '|' .. start .. '|r')
    spent, reserved = values[1], values[2]
  end
  return {slot, type, calendar, tonumber(spent), tonumber(reserved), start, finish}
end

local function stand_slot(slot, type, aux, values, at)
  if type < 3 then
    local number, current, previous, since = turn_rate(values[at], values[at + 1], values[at + 2], aux)
    return {slot, type, aux, current, previous, number, since, tonumber(values[at])}
  elseif type == 3 then
    has_attached = has_attached or not values[at]
    return {slot, type, aux, 0, tonumber(values[at] or rarely().attach_gauge(slot)), 0, -1}
  end
  return stand_period(slot, type, aux, values[at], values[at + 1], values[at + 2], values[at + 3])
end

-- The bounds of a plan; second, the slots that must be learned first.
local function stand(plan, first, values, places)
  local bounds, size, missing = {}, 0, {}
  for i = first, #plan, 4 do
    local slot = plan[i]
    local counter = counters[slot]
    if counter == nil then
      counter = stand_slot(slot, plan[i + 1], plan[i + 3], values, places[slot])
      counters[slot] = counter
    end
    if not counter then missing[#missing + 1] = slot end
    bounds[size + 1], bounds[size + 2] = counter, plan[i + 2]
    size = size + 2
  end
  return bounds, missing
end

local function used_of_rate(counter)
  if counter[5] == 0 then return counter[4] end
  local share, is_cut = muldiv(counter[5], counter[3] - counter[7], counter[3])
  return counter[4] + share + (is_cut and 1 or 0)
end

-- Adds spent, reserved and full again at (-1: unknown) of each bound to a reply.
local function add_states(reply, bounds)
  local size = #reply
  for i = 1, #bounds, 2 do
    local counter = bounds[i]
    if counter[2] < 3 then
      local full = now
      if counter[4] ~= 0 then
        full = (counter[6] + 2) * counter[3]
      elseif counter[5] ~= 0 then
        full = (counter[6] + 1) * counter[3]
      end
      reply[size + 1], reply[size + 2], reply[size + 3] = used_of_rate(counter), 0, full
    else
      reply[size + 1], reply[size + 2], reply[size + 3] = counter[4], counter[5], counter[7]
    end
    size = size + 3
  end
  return reply
end
