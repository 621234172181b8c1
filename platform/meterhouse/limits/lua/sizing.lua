-- What a demand asks, given the least that is free over all budgets and token quotas (nil: there is none): limits/
-- sizing.py, division by division. A negative quotient is only ever compared with 0 or more, so -1 stands for all.
-- demand: 3 rate input, 4 held input, 5 output, 6 rate output, 7 choices, 8 is sliced, 9 input price, 10 output price,
-- 11 nanos per request. Tokens and nanos are whole; prices are nanos per million tokens.
local FLOOR_TOKENS, SLICE_TOKENS, SHARE = 1024, 2048, 4

local function divide(x, y)
  if x < 0 then return -1 end
  return (x - fmod(x, y)) / y
end

-- How many tokens an amount buys, or at least `most` where it buys that many.
local function bought_with(nanos, rate, most)
  if nanos < 0 then return -1 end
  if nanos / rate * 1000000 > most * 1.000001 + 1 then return most end
  return (muldiv(nanos, 1000000, rate))
end

local function spend_on(demand, output)
  return hold_nanos(demand[4], demand[9]) + hold_nanos(output, demand[10]) + demand[11]
end

-- Returns what rates of tokens are debited, the allowance, the held output, the least that can be held in tokens and
-- in nanos, and what is held in tokens and in nanos.
local function size_demand(demand, budget_free, quota_free)
  local choices, asked = demand[7], demand[5]
  if not budget_free and not quota_free then return demand[3] + demand[6] * choices, -1, -1, 0, 0, 0, 0 end
  local least, bought = math.min(asked, FLOOR_TOKENS), asked
  if quota_free then
    bought = math.min(bought, divide(quota_free, SHARE * choices), divide(quota_free - demand[4], choices))
  end
  if budget_free and demand[10] > 0 then
    local rate = demand[10] * choices
    bought = math.min(bought, bought_with(budget_free, SHARE * rate, asked))
    bought = math.min(bought, bought_with(budget_free - spend_on(demand, 0), rate, asked))
  end
  local allowance = math.min(asked, math.max(least, bought))
  local output = (demand[8] == 1 and math.min(allowance, SLICE_TOKENS) or allowance) * choices
  local rate_tokens = demand[3] + math.min(demand[6], allowance) * choices
  local least_nanos, held_nanos = 0, 0
  if budget_free then
    least_nanos, held_nanos = spend_on(demand, least * choices), spend_on(demand, output)
  end
  return rate_tokens, allowance, output, demand[4] + least * choices, least_nanos, demand[4] + output, held_nanos
end
