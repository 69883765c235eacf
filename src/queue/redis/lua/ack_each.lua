-- As ack.lua, of events of which Redis may have lost some: one by one.
-- ARGV: run, group, then of each event seq, channel, bytes.
local stream, counts, tries = KEYS[1], KEYS[3], KEYS[4]
local run = redis.call('HGET', counts, 'run')
if not run then return {'gone'} end
if run ~= ARGV[1] then return {'stranger', run} end
local deleted = 0
for i = 3, #ARGV - 2, 3 do
  local id = ARGV[i] .. '-0'
  redis.call('XACK', stream, ARGV[2], id)
  redis.call('HDEL', tries, ARGV[i])
  if redis.call('XDEL', stream, id) == 1 then
    redis.call('HINCRBY', counts, 'n:' .. ARGV[i + 1], -1)
    redis.call('HINCRBY', counts, 'b:' .. ARGV[i + 1], '-' .. ARGV[i + 2])
    redis.call('HINCRBY', counts, 'total', -1)
    redis.call('HINCRBY', counts, 'bytes', '-' .. ARGV[i + 2])
    deleted = deleted + 1
  end
end
return {'acked', deleted}
