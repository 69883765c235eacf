-- Clears settled dead letters away, a step at a time. ARGV: run, cursor ('0' to begin).
-- Their events left the stream with them, so nothing of them can come again.
local counts, dlq, states = KEYS[3], KEYS[5], KEYS[6]
local run = redis.call('HGET', counts, 'run')
if not run then return {'gone'} end
if run ~= ARGV[1] then return {'stranger', run} end
local found = redis.call('HSCAN', states, ARGV[2], 'COUNT', 500)
for k = 1, #found[2] - 1, 2 do
  local word, id, size = string.match(found[2][k + 1], '^(%S+) (%S+) (%d+)')
  if word == 'redriven' or word == 'discarded' then
    redis.call('XDEL', dlq, id)
    redis.call('HDEL', states, found[2][k])
    redis.call('HINCRBY', counts, 'dead_bytes', '-' .. size)
    redis.call('HINCRBY', counts, 'settled_bytes', '-' .. size)
  end
end
return {'purged', found[1]}
