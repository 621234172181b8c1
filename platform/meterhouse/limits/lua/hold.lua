-- A hold, as it is kept: 1 admitted at, 2 allowance per choice, 3 held output, 4 held nanos, 5 attachments of its key,
-- 6 of its project, 7 model, 8 held input, 9 input price, 10 output price, 11 nanos per request, 12 whole output,
-- 13 sent, 14 tokens and 15 nanos used so far, 16 limits {slot, amount, ...} that bind it on slots which were not
-- attached when it was registered. From 17 on five for each debit: slot, type, period's start or rate's window number,
-- amount (held; debited of a rate), limit's amount (-1: none; of a rate its window's length in ms). In 2 and 3, -1
-- stands for none.

local function spend_of(hold, output)
  return hold_nanos(hold[8], hold[9]) + hold_nanos(output, hold[10]) + hold[11]
end

local function held_of(type, hold, output)
  if type == 6 then return spend_of(hold, output) end
  if type == 5 then return hold[8] + output end
  return 1
end

-- The output that bounds a request: the whole answer where nothing was held or clamped.
local function output_of(hold)
  return hold[3] < 0 and hold[12] or hold[3]
end
