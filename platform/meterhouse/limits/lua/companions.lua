-- The counter of a slot that is attached in scope without being in the plan; nil if it does not cover the model.
local function companion_of(slot, asked)
  local _, type, calendar, model = parse_slot(slot)
  if model ~= '' and model ~= asked then return nil end
  if counters[slot] then return counters[slot] end
  local start, field = 0, slot .. '|n'
  if type ~= 3 then
    local period = tonumber(call('HGET', m, slot .. '|p'))
    start = period_now(calendar)
    if period < start then turn_period(slot, period, start) else start = period end
    field = slot .. '|' .. start .. '|r'
  end
  counters[slot] = {slot, type, calendar, 0, tonumber(call('HGET', m, field)), start}
  return counters[slot]
end

-- Holds in it.
local function debit_companion(counter, hold)
  local size, held = #hold, held_of(counter[2], hold, output_of(hold))
  hold[size + 1], hold[size + 2], hold[size + 3], hold[size + 4] = counter[1], counter[2], counter[6], held
  hold[size + 5] = -1
  counter[5] = counter[5] + held
end
