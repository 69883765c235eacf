-- Counts that the storage refused events, and keeps them as dead letters once it has done so often
-- enough: all of them, or none. Their entries leave the stream as any other, when all of them is
-- resolved.
-- ARGV: run, how often is enough, most bytes of dead letters, then of each event seq, code, text,
-- header, payload.
local counts, tries, dlq, states = KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local told = redis.call('HMGET', counts, 'run', 'dead_bytes')
if not told[1] then return {'gone'} end
if told[1] ~= ARGV[1] then return {'stranger', told[1]} end
-- a first write that a full server takes: it takes the others behind it too
redis.call('HDEL', counts, '')
local enough, least, size = tonumber(ARGV[2]), nil, 0
local attempts, sizes, fresh = {}, {}, {}
for i = 4, #ARGV - 4, 5 do
  if redis.call('HEXISTS', states, ARGV[i]) == 0 then
    fresh[#fresh + 1] = i
    attempts[i] = redis.call('HINCRBY', tries, ARGV[i], 1)
    if not least or attempts[i] < least then least = attempts[i] end
    sizes[i] = #ARGV[i + 1] + #ARGV[i + 2] + #ARGV[i + 3] + #ARGV[i + 4]
    size = size + sizes[i]
  end
end
if #fresh == 0 then return {'dead'} end
if least < enough then return {'again', least} end
if tonumber(told[2] or '0') + size > tonumber(ARGV[3]) then return {'full'} end
for _, i in ipairs(fresh) do
  local id = redis.call('XADD', dlq, '*', 'seq', ARGV[i], 'code', ARGV[i + 1], 'text', ARGV[i + 2],
    'attempts', attempts[i], 'h', ARGV[i + 3], 'p', ARGV[i + 4])
  redis.call('HSET', states, ARGV[i], 'dead ' .. id .. ' ' .. sizes[i])
  redis.call('HDEL', tries, ARGV[i])
end
redis.call('HINCRBY', counts, 'dead_bytes', string.format('%d', size))
return {'dead'}
