-- Takes over what another consumer was handed and did not acknowledge, a step at a time.
-- ARGV: run, group, the other consumer, ours, from which id ('-' to begin, then '(' and an id), how many
-- at most.
local stream, counts = KEYS[1], KEYS[3]
local run = redis.call('HGET', counts, 'run')
if not run then return {'gone'} end
if run ~= ARGV[1] then return {'stranger', run} end
local pending = redis.call('XPENDING', stream, ARGV[2], ARGV[5], '+', ARGV[6], ARGV[3])
if #pending == 0 then return {'taken', 0, ''} end
local claim = {stream, ARGV[2], ARGV[4], '0'}
for _, entry in ipairs(pending) do claim[#claim + 1] = entry[1] end
claim[#claim + 1] = 'JUSTID'
redis.call('XCLAIM', unpack(claim))
return {'taken', #pending, pending[#pending][1]}
