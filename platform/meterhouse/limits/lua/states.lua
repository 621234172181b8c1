-- uses: alive arithmetic calendar rate stand
-- rarely: hold slot
-- Where limits stand now. ARGV: a plan. Replies: {0, states...}, {2 learn, slots...}, {3 unknown}.
local values, places = read({a}, 1)
if not is_known(values) then return {3} end
local bounds, missing = stand(a, 1, values, places)
if #missing > 0 then return {2, unpack(missing)} end
return add_states({0}, bounds)
