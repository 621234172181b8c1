-- The counter of a slot that is attached in scope without being in the plan: {slot, type, period's start, field, what is
-- counted}; nil if it does not cover the model.
local function companion_of(slot, asked)
  local _, type, calendar, model = parse_slot(slot)
  if model ~= '' and model ~= asked then return nil end
  local start, field = 0, slot .. '|n'
  if type ~= 3 then
    local period = tonumber(call('HGET', m, slot .. '|p'))
    start = bounds_of(calendar, now)
    if period < start then turn_period(slot, period, start) else start = period end
    field = slot .. '|' .. start .. '|r'
  end
  return {slot, type, start, field, tonumber(call('HGET', m, field))}
end

-- Holds in it.
local function debit_companion(companion, hold)
  local size, held = #hold, held_of(companion[2], hold, output_of(hold))
  hold[size + 1], hold[size + 2], hold[size + 3] = companion[1], companion[2], companion[3]
  hold[size + 4], hold[size + 5] = held, -1
  companion[5] = companion[5] + held
end
