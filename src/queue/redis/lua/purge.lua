-- Clears settled dead letters away, a step at a time, but for those whose entry may still stand in the
-- stream: their events might come again, and must be known then.
-- ARGV: run, cursor ('0' to begin), the most events of an entry.
local stream, counts, dlq, states = KEYS[1], KEYS[3], KEYS[5], KEYS[6]
local run = redis.call('HGET', counts, 'run')
if not run then return {'gone'} end
if run ~= ARGV[1] then return {'stranger', run} end
local function may_stand(key)
  local seq = tonumber(key)
  -- an entry of another program left the stream with its letter
  if not seq then return false end
  local from = string.format('%d-0', math.max(seq - tonumber(ARGV[3]) + 1, 0))
  return redis.call('XRANGE', stream, from, key .. '-0', 'COUNT', 1)[1] ~= nil
end
local found = redis.call('HSCAN', states, ARGV[2], 'COUNT', 100)
for k = 1, #found[2] - 1, 2 do
  local word, id, size = string.match(found[2][k + 1], '^(%S+) (%S+) (%d+)')
  if (word == 'redriven' or word == 'discarded') and not may_stand(found[2][k]) then
    redis.call('XDEL', dlq, id)
    redis.call('HDEL', states, found[2][k])
    redis.call('HINCRBY', counts, 'dead_bytes', '-' .. size)
    redis.call('HINCRBY', counts, 'settled_bytes', '-' .. size)
  end
end
return {'purged', found[1]}
