-- Says that the owner lives, and what the stream holds.
-- ARGV: run, '1' where the owner leaves in order.
local stream, owner, counts = KEYS[1], KEYS[2], KEYS[3]
local told = redis.call('HMGET', counts, 'run', 'last', 'entries', 'foreign')
if not told[1] then return {'gone'} end
if told[1] ~= ARGV[1] then return {'stranger', told[1]} end
local now = redis.call('TIME')[1]
if ARGV[2] == '1' then now = '0' end
-- a first write that a full server takes: it takes the others behind it too
redis.call('HDEL', owner, '')
redis.call('HSET', owner, 'beat', now)
local head = ''
local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
if first and first[2][1] == 'h' then head = first[2][2] end
return {
  'here', told[2], told[3] or '0', redis.call('XLEN', stream), told[4] or '0', head,
  redis.call('EXISTS', stream),
}
