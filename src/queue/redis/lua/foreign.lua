-- Moves entries that are not ours to the dead letters, whole.
-- ARGV: run, group, most bytes of dead letters, then their ids.
local stream, counts, dlq, states = KEYS[1], KEYS[3], KEYS[5], KEYS[6]
local told = redis.call('HMGET', counts, 'run', 'dead_bytes')
if not told[1] then return {'gone'} end
if told[1] ~= ARGV[1] then return {'stranger', told[1]} end
-- a first write that a full server takes: it takes the others behind it too
redis.call('HDEL', counts, '')
local held, moved = tonumber(told[2] or '0'), 0
for i = 4, #ARGV do
  local entry = redis.call('XRANGE', stream, ARGV[i], ARGV[i])[1]
  if entry then
    local fields, size = entry[2], 80
    for _, part in ipairs(fields) do size = size + #part end
    if held + size > tonumber(ARGV[3]) then return {'full', moved} end
    local letter = {dlq, '*', 'id', ARGV[i], 'code', 'foreign entry', 'text',
      'another program wrote it into the stream'}
    if #fields <= 4000 then
      for _, part in ipairs(fields) do letter[#letter + 1] = part end
    else
      -- more than a call takes
      letter[#letter + 1] = 'msgpack'
      letter[#letter + 1] = cmsgpack.pack(fields)
    end
    local id = redis.call('XADD', unpack(letter))
    redis.call('HSET', states, ARGV[i], 'dead ' .. id .. ' ' .. string.format('%.0f', size))
    redis.call('XACK', stream, ARGV[2], ARGV[i])
    redis.call('XDEL', stream, ARGV[i])
    redis.call('HINCRBY', counts, 'foreign', 1)
    redis.call('HINCRBY', counts, 'dead_bytes', string.format('%.0f', size))
    held, moved = held + size, moved + 1
  else
    redis.call('XACK', stream, ARGV[2], ARGV[i])
  end
end
return {'moved', moved}
