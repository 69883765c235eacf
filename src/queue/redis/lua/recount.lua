-- Puts counts that were taken anew in place of those that no longer agree.
-- ARGV: run, entries, then of each channel name, events, bytes.
local counts = KEYS[3]
local run = redis.call('HGET', counts, 'run')
if not run then return {'gone'} end
if run ~= ARGV[1] then return {'stranger', run} end
-- a first write that a full server takes: it takes the others behind it too
redis.call('HDEL', counts, '')
for _, field in ipairs(redis.call('HKEYS', counts)) do
  if string.find(field, '^[nb]:') then redis.call('HDEL', counts, field) end
end
local events = 0
for k = 3, #ARGV - 2, 3 do
  redis.call('HSET', counts, 'n:' .. ARGV[k], ARGV[k + 1], 'b:' .. ARGV[k], ARGV[k + 2])
  events = events + tonumber(ARGV[k + 1])
end
redis.call('HSET', counts, 'total', string.format('%.0f', events), 'entries', ARGV[2])
return {'recounted'}
