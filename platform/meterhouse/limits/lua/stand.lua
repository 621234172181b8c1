-- Where limits stand. A plan is {slot, type, amount, window's ms or calendar} for each limit, from `first` on.
-- A bound is {slot, type, amount, window's ms or calendar, spent or current, reserved or previous or open,
-- period's start or window's number, period's end or ms since the window began}.

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

-- Reads the head fields, those in `more`, and the plan's, at the moment that counts for admissions; returns the fields'
-- values and the places where the plan's begin.
local function read(plan, first, more)
  local fields, size = {'run', 'st', 'n', 'ck', 'b'}, 5
  for i = 1, #more do fields[size + i] = more[i] end
  size = size + #more
  local places = {}
  for i = first, #plan, 4 do
    local slot, type = plan[i], plan[i + 1]
    places[#places + 1] = size + 1
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
  local values = call('HMGET', m, unpack(fields))
  local begin = tonumber(values[5] or 0)
  if begin > now then
    -- What is admitted after a learning began must say so, even within the same millisecond.
    now = begin
    return read(plan, first, more)
  end
  return values, places
end

-- The bound of a quota or budget, or nil if its slot must be learned.
local function stand_period(slot, calendar, period, known, spent, reserved)
  local start, finish = period_now(calendar)
  period = tonumber(period)
  if not period or (known ~= '1' and period >= start) then return nil end
  if period < start then
    rarely().turn_period(slot, period, start)
    return 0, 0, start, finish
  end
  if period > start then
    start, finish = bounds_of(calendar, period)
    local values = call('HMGET', m, slot .. '|' .. start .. '|s', slot .. '|' .. start .. '|r')
    spent, reserved = values[1], values[2]
  end
  return tonumber(spent), tonumber(reserved), start, finish
end

-- The bounds of a plan; second, the slots that must be learned first.
local function stand(plan, first, values, places)
  local bounds, missing = {}, {}
  for i = first, #plan, 4 do
    local slot, type, aux, at = plan[i], plan[i + 1], plan[i + 3], places[#bounds + 1]
    local bound = {slot, type, plan[i + 2], aux}
    if type < 3 then
      bound[7], bound[5], bound[6], bound[8] = turn_rate(values[at], values[at + 1], values[at + 2], aux)
    elseif type == 3 then
      bound[6] = tonumber(values[at] or rarely().attach_gauge(slot))
    else
      bound[5], bound[6], bound[7], bound[8] =
        stand_period(slot, aux, values[at], values[at + 1], values[at + 2], values[at + 3])
      if not bound[5] then missing[#missing + 1] = slot end
    end
    bounds[#bounds + 1] = bound
  end
  return bounds, missing
end

local function used_of_rate(bound)
  if bound[6] == 0 then return bound[5] end
  local share, is_cut = muldiv(bound[6], bound[4] - bound[8], bound[4])
  return bound[5] + share + (is_cut and 1 or 0)
end

-- Adds spent, reserved and full again at (-1: unknown) of each bound to a reply.
local function add_states(reply, bounds)
  local size = #reply
  for i = 1, #bounds do
    local bound = bounds[i]
    if bound[2] < 3 then
      local full = now
      if bound[5] ~= 0 then
        full = (bound[7] + 2) * bound[4]
      elseif bound[6] ~= 0 then
        full = (bound[7] + 1) * bound[4]
      end
      reply[size + 1], reply[size + 2], reply[size + 3] = used_of_rate(bound), 0, full
    elseif bound[2] == 3 then
      reply[size + 1], reply[size + 2], reply[size + 3] = 0, bound[6], -1
    else
      reply[size + 1], reply[size + 2], reply[size + 3] = bound[5], bound[6], bound[8]
    end
    size = size + 3
  end
  return reply
end
