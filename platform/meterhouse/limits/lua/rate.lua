-- A rate's counter: number of the current window, what was counted in it and in the one before it, and the ms since it
-- began. A clock that goes back stands still at the start of the current window.
local function turn_rate(number, current, previous, window)
  local index = floor(now / window)
  number = tonumber(number)
  if not number or number < index - 1 then return index, 0, 0, now - index * window end
  if number > index then return number, tonumber(current), tonumber(previous), 0 end
  if number < index then return index, 0, tonumber(current), now - index * window end
  return index, tonumber(current), tonumber(previous), now - index * window
end
