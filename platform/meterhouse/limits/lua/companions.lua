-- Holds in a slot that is attached in scope without being in the plan, if it covers the model.
local function debit_companion(slot, asked, hold, writes)
  local _, type, calendar, model = parse_slot(slot)
  if model ~= '' and model ~= asked then return end
  local size, at = #hold, #writes
  hold[size + 1], hold[size + 2], hold[size + 5] = slot, type, -1
  if type == 3 then
    hold[size + 3], hold[size + 4] = 0, 1
    writes[at + 1], writes[at + 2] = slot .. '|n', call('HGET', m, slot .. '|n') + 1
    return
  end
  local period, start = tonumber(call('HGET', m, slot .. '|p')), bounds_of(calendar, now)
  if period < start then turn_period(slot, period, start) else start = period end
  local field, held = slot .. '|' .. start .. '|r', held_of(type, hold, output_of(hold))
  hold[size + 3], hold[size + 4] = start, held
  writes[at + 1], writes[at + 2] = field, call('HGET', m, field) + held
end
