-- As ack.lua, of entries of which Redis may have lost some: one by one.
-- ARGV: run, group, the number of seqs that were tried more than once, and they; then of each entry its
-- first seq, channel, events, bytes.
local stream, counts, tries = KEYS[1], KEYS[3], KEYS[4]
local run = redis.call('HGET', counts, 'run')
if not run then return {'gone'} end
if run ~= ARGV[1] then return {'stranger', run} end
local tried = tonumber(ARGV[3])
for i = 4, 3 + tried do redis.call('HDEL', tries, ARGV[i]) end
local deleted = 0
for i = 4 + tried, #ARGV - 3, 4 do
  local id = ARGV[i] .. '-0'
  redis.call('XACK', stream, ARGV[2], id)
  if redis.call('XDEL', stream, id) == 1 then
    redis.call('HINCRBY', counts, 'n:' .. ARGV[i + 1], '-' .. ARGV[i + 2])
    redis.call('HINCRBY', counts, 'b:' .. ARGV[i + 1], '-' .. ARGV[i + 3])
    redis.call('HINCRBY', counts, 'total', '-' .. ARGV[i + 2])
    redis.call('HINCRBY', counts, 'entries', -1)
    deleted = deleted + 1
  end
end
return {'acked', deleted}
