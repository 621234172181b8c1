-- A slot's name says whose it is and what it counts: owner|kind|window|multiple|model.
local TYPES = {concurrent = 3, requests = 4, tokens = 5, spend = 6}
local CALENDARS = {total = 0, day = 1, month = 2}

-- Its owner, type, calendar and model ('' for all models); only of period slots and gauges.
local function parse_slot(slot)
  local owner, kind, window, model = string.match(slot, '^([^|]*)|([^|]*)|([^|]*)|[^|]*|(.*)$')
  return owner, TYPES[kind], CALENDARS[window], model
end

-- A client token's cap has an owner of its own, beside the key's: key:root/token/end. No list of a hold names it.
local function is_cap(owner)
  return string.sub(owner, 1, 4) == 'key:' and string.find(owner, '/', 5, true) ~= nil
end

-- Whether a hold counts in a slot; in a cap's, if that is among the limits that bind it.
local function is_in_scope(hold, slot, owner, model)
  if model ~= '' and model ~= hold[7] then return false end
  local list = 'a|' .. owner
  if list == hold[5] or list == hold[6] or string.sub(owner, 1, 13) == 'organization:' then return true end
  if is_cap(owner) then
    for i = 1, #hold[16], 2 do
      if hold[16][i] == slot then return true end
    end
  end
  return false
end

-- Lets a slot be moved by everything in its owner's scope from now on.
local function attach(slot, owner)
  local slots = call('HGET', m, 'a|' .. owner)
  call('HSET', m, 'a|' .. owner, slots and slots ~= '' and slots .. ' ' .. slot or slot)
end

-- Debits a slot by every live hold in its scope that was admitted from start to before finish; returns their sum.
local names, holds

local function debit_live(slot, start, finish)
  local owner, type, _, model = parse_slot(slot)
  local sum = 0
  if not holds then
    local all = call('HGETALL', h)
    names, holds = {}, {}
    for i = 1, #all, 2 do names[#names + 1], holds[#holds + 1] = all[i], message(all[i + 1]) end
  end
  for i = 1, #holds do
    local hold = holds[i]
    if is_in_scope(hold, slot, owner, model) and hold[1] >= start and (finish < 0 or hold[1] < finish) then
      local held, amount, has = held_of(type, hold, output_of(hold)), -1, false
      for j = 1, #hold[16], 2 do
        if hold[16][j] == slot then amount = hold[16][j + 1] end
      end
      for j = HOLD_HEAD, #hold, 5 do has = has or (hold[j] == slot and (type == 3 or hold[j + 2] == start)) end
      if not has then
        local size = #hold
        hold[size + 1], hold[size + 2], hold[size + 3] = slot, type, start
        hold[size + 4], hold[size + 5] = held, amount
        call('HSET', h, names[i], cmsgpack.pack(hold))
        sum = sum + held
      end
    end
  end
  return sum
end

-- Counts a gauge that nobody was in when it was met: every live hold in its scope is in it.
local function attach_gauge(slot)
  local open = debit_live(slot, 0, -1)
  attach(slot, (parse_slot(slot)))
  call('HSET', m, slot .. '|n', open)
  return open
end

-- Begins a later period of an attached slot: with zeros, for whatever is in scope moved it since the period began.
local function turn_period(slot, old, start)
  local past = slot .. '|' .. old
  if tonumber(call('HGET', m, past .. '|r') or 0) == 0 then call('HDEL', m, past .. '|s', past .. '|r') end
  local period = slot .. '|' .. start
  call('HSET', m, slot .. '|p', start, slot .. '|k', 1, period .. '|s', 0, period .. '|r', 0)
  -- What the ledger had of corrections went into the period before.
  call('HDEL', m, slot .. '|g')
end
