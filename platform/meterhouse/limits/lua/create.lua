-- uses: alive
-- Makes a new organization known with nothing. Replies: {0}, {3 there was one already}.
local run = run_id()
if call('HGET', m, 'run') == run then return {3} end
call('DEL', m, h, l, prefix .. 'y')
call('HSET', m, 'run', run, 'st', 'k', 'n', 0, 'o', now)
return {0}
