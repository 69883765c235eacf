-- Clears settled dead letters away, but for those whose entry may still stand in the stream: their events
-- might come again, and must be known then.
-- ARGV: run, the most events of an entry, then the keys of the letters. Returns those that went.
local stream, counts, dlq, states = KEYS[1], KEYS[3], KEYS[5], KEYS[6]
local run = redis.call('HGET', counts, 'run')
if not run then return {'gone'} end
if run ~= ARGV[1] then return {'stranger', run} end
local function may_stand(key)
  local seq = tonumber(key)
  -- an entry of another program left the stream with its letter
  if not seq then return false end
  local from = string.format('%d-0', math.max(seq - tonumber(ARGV[2]) + 1, 0))
  return redis.call('XRANGE', stream, from, key .. '-0', 'COUNT', 1)[1] ~= nil
end
local purged = {'purged'}
for i = 3, #ARGV do
  local state = redis.call('HGET', states, ARGV[i])
  local word, id, size
  if state then word, id, size = string.match(state, '^(%S+) (%S+) (%d+)') end
  if (word == 'redriven' or word == 'discarded') and not may_stand(ARGV[i]) then
    redis.call('XDEL', dlq, id)
    redis.call('HDEL', states, ARGV[i])
    redis.call('HINCRBY', counts, 'dead_bytes', '-' .. size)
    redis.call('HINCRBY', counts, 'settled_bytes', '-' .. size)
    purged[#purged + 1] = ARGV[i]
  end
end
return purged
