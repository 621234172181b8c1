-- When a rate has room for a demand that does not fit now, if nothing else is counted (ms from now).
local function wait_of_rate(bound, demanded)
  local window = bound[4]
  local room = bound[3] - demanded - bound[5]
  if room >= 0 then
    if bound[6] <= room then return 0 end
    return math.max(0, window - muldiv(room, window, bound[6]) - bound[8])
  end
  return 2 * window - bound[8] - (muldiv(bound[3] - demanded, window, bound[5]))
end
