-- uses: alive
-- Makes an organization known once its live reservations are registered, if it is still as it was opened then.
-- ARGV: {when it was opened}. Replies: {0}, {3 it was lost or opened again meanwhile}.
local values = call('HMGET', m, 'run', 'st', 'o')
if values[1] ~= run_id() or tonumber(values[3]) ~= a[1] then return {3} end
if values[2] ~= 'k' then call('HSET', m, 'st', 'k') end
return {0}
