-- Ends the consumer of a channel that has drained. It would take what is pending with it, so only one
-- that has nothing.
-- ARGV: run, group, consumer.
local stream, counts = KEYS[1], KEYS[3]
local run = redis.call('HGET', counts, 'run')
if not run then return {'gone'} end
if run ~= ARGV[1] then return {'stranger', run} end
if redis.call('XPENDING', stream, ARGV[2], '-', '+', 1, ARGV[3])[1] then return {'held'} end
redis.call('XGROUP', 'DELCONSUMER', stream, ARGV[2], ARGV[3])
return {'drained'}
