-- What a demand asks, given the least that is free over all budgets and token quotas (nil: there is none): limits/
-- sizing.py, division by division. A negative quotient is only ever compared with 0 or more, so -1 stands for all.
-- demand: 2 rate input, 3 held input, 4 output, 5 rate output, 6 choices, 7 is sliced, 8 input price, 9 output price,
-- 10 nanos per request. Tokens and nanos are whole; prices are nanos per million tokens.
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
  return hold_nanos(demand[3], demand[8]) + hold_nanos(output, demand[9]) + demand[10]
end

-- Returns what rates of tokens are debited, the allowance, the held output, the least that can be held in tokens and
-- in nanos, and what is held in tokens and in nanos.
local function size_demand(demand, budget_free, quota_free)
  local choices, asked = demand[6], demand[4]
  if not budget_free and not quota_free then return demand[2] + demand[5] * choices, -1, -1, 0, 0, 0, 0 end
  local least, bought = math.min(asked, FLOOR_TOKENS), asked
  if quota_free then
    bought = math.min(bought, divide(quota_free, SHARE * choices), divide(quota_free - demand[3], choices))
  end
  if budget_free and demand[9] > 0 then
    local rate = demand[9] * choices
    bought = math.min(bought, bought_with(budget_free, SHARE * rate, asked))
    bought = math.min(bought, bought_with(budget_free - spend_on(demand, 0), rate, asked))
  end
  local allowance = math.min(asked, math.max(least, bought))
  local output = (demand[7] == 1 and math.min(allowance, SLICE_TOKENS) or allowance) * choices
  local rate_tokens = demand[2] + math.min(demand[5], allowance) * choices
  local least_nanos, held_nanos = 0, 0
  if budget_free then
    least_nanos, held_nanos = spend_on(demand, least * choices), spend_on(demand, output)
  end
  return rate_tokens, allowance, output, demand[3] + least * choices, least_nanos, demand[3] + output, held_nanos
end
