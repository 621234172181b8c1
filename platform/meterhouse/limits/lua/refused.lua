-- When a rate has room for a demand that does not fit now, if nothing else is counted (ms from now).
local function wait_of_rate(counter, amount, demanded)
  local window = counter[3]
  local room = amount - demanded - counter[4]
  if room >= 0 then
    if counter[5] <= room then return 0 end
    return math.max(0, window - muldiv(room, window, counter[5]) - counter[7])
  end
  return 2 * window - counter[7] - (muldiv(amount - demanded, window, counter[4]))
end
