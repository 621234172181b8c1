-- The start and the end (Unix ms; -1: never) of the day, month or total that a moment lies in, by the UTC calendar.
local function bounds_of(calendar, at)
  if calendar == 0 then return 0, -1 end
  local day = at - fmod(at, 86400000)
  if calendar == 1 then return day, day + 86400000 end
  -- Months counted from March in eras of 400 years, so that the leap day is the last of a year.
  local days = day / 86400000 + 719468
  local era = floor(days / 146097)
  local of_era = days - era * 146097
  local year = floor((of_era - floor(of_era / 1460) + floor(of_era / 36524) - floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + floor(year / 4) - floor(year / 100))
  local month = floor((5 * of_year + 2) / 153)
  local first = floor((153 * month + 2) / 5)
  local length = floor((153 * (month + 1) + 2) / 5) - first
  if month == 11 then
    local leap = year + 1
    length = (leap % 4 == 0 and (leap % 100 ~= 0 or leap % 400 == 0)) and 29 or 28
  end
  local start = day - (of_year - first) * 86400000
  return start, start + length * 86400000
end
