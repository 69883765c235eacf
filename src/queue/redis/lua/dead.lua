-- Counts that the storage refused events, and moves them to the dead letters once it has done so
-- often enough: all of them, or none.
-- ARGV: run, group, how often is enough, most bytes of dead letters, then of each event seq, channel,
-- bytes counted, code, text, header, payload.
local stream, counts, tries, dlq, states = KEYS[1], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local told = redis.call('HMGET', counts, 'run', 'dead_bytes')
if not told[1] then return {'gone'} end
if told[1] ~= ARGV[1] then return {'stranger', told[1]} end
-- a first write that a full server takes: it takes the others behind it too
redis.call('HDEL', counts, '')
local enough, least, size = tonumber(ARGV[3]), nil, 0
local attempts, fresh = {}, {}
for i = 5, #ARGV - 6, 7 do
  if redis.call('HEXISTS', states, ARGV[i]) == 0 then
    fresh[#fresh + 1] = i
    attempts[i] = redis.call('HINCRBY', tries, ARGV[i], 1)
    if not least or attempts[i] < least then least = attempts[i] end
    size = size + #ARGV[i + 3] + #ARGV[i + 4] + #ARGV[i + 5] + #ARGV[i + 6]
  end
end
if #fresh == 0 then return {'dead'} end
if least < enough then return {'again', least} end
if tonumber(told[2] or '0') + size > tonumber(ARGV[4]) then return {'full'} end
for _, i in ipairs(fresh) do
  local id = redis.call('XADD', dlq, '*', 'seq', ARGV[i], 'code', ARGV[i + 3], 'text', ARGV[i + 4],
    'attempts', attempts[i], 'h', ARGV[i + 5], 'p', ARGV[i + 6])
  local source = ARGV[i] .. '-0'
  redis.call('XACK', stream, ARGV[2], source)
  -- it may be gone where Redis lost what was in hand
  if redis.call('XDEL', stream, source) == 1 then
    redis.call('HINCRBY', counts, 'n:' .. ARGV[i + 1], -1)
    redis.call('HINCRBY', counts, 'b:' .. ARGV[i + 1], '-' .. ARGV[i + 2])
    redis.call('HINCRBY', counts, 'total', -1)
    redis.call('HINCRBY', counts, 'bytes', '-' .. ARGV[i + 2])
  end
  local own = #ARGV[i + 3] + #ARGV[i + 4] + #ARGV[i + 5] + #ARGV[i + 6]
  redis.call('HSET', states, ARGV[i], 'dead ' .. id .. ' ' .. own)
  redis.call('HDEL', tries, ARGV[i])
  redis.call('HINCRBY', counts, 'dead', 1)
end
redis.call('HINCRBY', counts, 'dead_bytes', string.format('%.0f', size))
return {'dead'}
