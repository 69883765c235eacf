-- Puts one dead letter back as a new event, an entry of its own, and notes it, at once.
-- ARGV: run, last seq before it, its new seq, the letter's seq, bytes counted beside a payload.
local stream, counts, dlq, states = KEYS[1], KEYS[3], KEYS[5], KEYS[6]
local told = redis.call('HMGET', counts, 'run', 'last', 'biggest')
if not told[1] then return {'gone'} end
if told[1] ~= ARGV[1] then return {'stranger', told[1]} end
local state = redis.call('HGET', states, ARGV[4])
if tonumber(told[2]) >= tonumber(ARGV[3]) then
  -- an answer was lost: the letter says whether it was put back
  if state and string.match(state, '^redriven %S+ %d+ ' .. ARGV[3] .. '$') then
    return {'there'}
  end
  return {'skipped'}
end
if told[2] ~= ARGV[2] then return {'chain', told[2]} end
if redis.call('EXISTS', stream) == 0 then return {'gone'} end

local id, size
if state then id, size = string.match(state, '^dead (%S+) (%d+)$') end
local entry = id and redis.call('XRANGE', dlq, id, id)[1]
local head, payload
if entry then
  for k = 1, #entry[2] - 1, 2 do
    if entry[2][k] == 'h' then head = entry[2][k + 1] end
    if entry[2][k] == 'p' then payload = entry[2][k + 1] end
  end
end
local channel = head and string.match(head, '^%S+ %S+ %S+ (%S+)$')
if not channel or not payload then
  -- the seq is void
  redis.call('HSET', counts, 'last', ARGV[3])
  return {'skipped'}
end
local added = redis.pcall('XADD', stream, ARGV[3] .. '-0', 'h', head, 'p', payload)
if type(added) == 'table' and added.err then
  local info = redis.call('XINFO', 'STREAM', stream)
  for k = 1, #info - 1, 2 do
    if info[k] == 'last-generated-id' then
      local top = tonumber(string.match(info[k + 1], '^%d+'))
      if top >= tonumber(ARGV[3]) then return {'above', info[k + 1]} end
    end
  end
  return added
end
local bytes = #payload + tonumber(ARGV[5])
redis.call('HINCRBY', counts, 'n:' .. channel, 1)
redis.call('HINCRBY', counts, 'b:' .. channel, bytes)
redis.call('HINCRBY', counts, 'total', 1)
redis.call('HINCRBY', counts, 'entries', 1)
redis.call('HINCRBY', counts, 'settled_bytes', size)
redis.call('HSET', states, ARGV[4], 'redriven ' .. id .. ' ' .. size .. ' ' .. ARGV[3])
redis.call('HSET', counts, 'last', ARGV[3])
if #payload > tonumber(told[3] or '0') then
  redis.call('HSET', counts, 'biggest', #payload)
end
return {'added'}
