-- Whether an organization's counters can be relied on.

local function run_id()
  return string.match(call('INFO', 'server'), 'run_id:(%x+)')
end

-- Whether these counters were left by this run of the server. Asking for its id costs as much as many commands, so it
-- is asked again only after a time in which no server can have been replaced by another.
local CHECK_MS = 10

local function is_mine(run, checked)
  checked = tonumber(checked)
  if run and checked and checked <= now and now - checked < CHECK_MS then return true end
  if not run or run ~= run_id() then return false end
  call('HSET', m, 'ck', now)
  return true
end

-- Whether they are what they were left as: of this run, registered, and no key evicted. head: run, st, n, ck.
local function is_known(head)
  local count = tonumber(head[3])
  return head[2] == 'k' and is_mine(head[1], head[4]) and count == call('HLEN', h) and count == call('ZCARD', l)
end

-- Names the life of these counters: a tombstone of another life means nothing.
local function life(run, opened)
  return run .. '@' .. (opened or '')
end
