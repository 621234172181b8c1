-- Exact integer arithmetic beyond 2^53 in between, as limits/sizing.py and money.hold_nanos have it.

-- floor(x * y / z), and whether something was cut off. x >= 0, 0 < z < 2^52, and the result < 2^53.
local function muldiv(x, y, z)
  local product = x * y
  if product < 9007199254740992 then
    local rest = fmod(product, z)
    return (product - rest) / z, rest > 0
  end
  local rest = fmod(x, z)
  local result = (x - rest) / z * y
  local bit, quotient, part = 1, 0, 0
  while bit * 2 <= y do bit = bit * 2 end
  while bit >= 1 do
    quotient, part = quotient * 2, part * 2
    if part >= z then quotient, part = quotient + 1, part - z end
    if y >= bit then
      y, part = y - bit, part + rest
      if part >= z then quotient, part = quotient + 1, part - z end
    end
    bit = bit / 2
  end
  return result + quotient, part > 0
end

local function hold_nanos(tokens, nanos_per_million)
  local product = tokens * nanos_per_million
  if product < 9007199254740992 then
    local rest = fmod(product, 1000000)
    return (product - rest) / 1000000 + (rest > 0 and 1 or 0)
  end
  local rest = fmod(nanos_per_million, 1000000)
  local product = tokens * rest
  local cut = fmod(product, 1000000)
  return tokens * ((nanos_per_million - rest) / 1000000) + (product - cut) / 1000000 + (cut > 0 and 1 or 0)
end
