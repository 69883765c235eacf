-- After a loss: seqs go on above all that were ever given.
-- ARGV: run, last as it stands, last as it must be.
local counts = KEYS[3]
local told = redis.call('HMGET', counts, 'run', 'last')
if told[1] ~= ARGV[1] then return {'stranger', told[1] or ''} end
if told[2] == ARGV[3] then return {'raised'} end
if told[2] ~= ARGV[2] then return {'chain', told[2]} end
-- a first write that a full server takes: it takes the others behind it too
redis.call('HDEL', counts, '')
redis.call('HSET', counts, 'last', ARGV[3])
return {'raised'}
