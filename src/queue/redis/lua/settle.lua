-- Marks dead letters as discarded. ARGV: run, then the keys of their states.
local counts, states = KEYS[3], KEYS[6]
local run = redis.call('HGET', counts, 'run')
if not run then return {'gone'} end
if run ~= ARGV[1] then return {'stranger', run} end
-- a first write that a full server takes: it takes the others behind it too
redis.call('HDEL', counts, '')
local n = 0
for i = 2, #ARGV do
  local state = redis.call('HGET', states, ARGV[i])
  local id, size
  if state then id, size = string.match(state, '^dead (%S+) (%d+)$') end
  if id then
    redis.call('HSET', states, ARGV[i], 'discarded ' .. id .. ' ' .. size)
    redis.call('HINCRBY', counts, 'settled_bytes', size)
    n = n + 1
  end
end
return {'settled', n}
