-- Takes the stream for one connection of one start of a node, and says what it holds. What an earlier
-- connection still has under way is a stranger's from then on.
-- ARGV: run (`<start>.<connection>`), origin, node id, seconds of silence after which another may take over, group, starts that
-- were ours.
local stream, owner, counts, dlq, states = KEYS[1], KEYS[2], KEYS[3], KEYS[5], KEYS[6]
local now = tonumber(redis.call('TIME')[1])
local own = redis.call('HMGET', owner, 'origin', 'node_id', 'run', 'beat')
if own[1] and own[1] ~= ARGV[2] then return {'origin', own[1]} end
if own[1] and own[3] ~= ARGV[1] then
  local silent = now - tonumber(own[4] or '0')
  local ours = own[3] and string.find(ARGV[6], string.match(own[3], '^[^.]+'), 1, true)
  if not ours and silent >= 0 and silent < tonumber(ARGV[4]) then
    return {'alive', own[2], tostring(silent)}
  end
end
-- a first write that a full server takes: it takes the others behind it too
redis.call('HDEL', counts, '')
local made = redis.pcall('XGROUP', 'CREATE', stream, ARGV[5], '0', 'MKSTREAM')
if type(made) == 'table' and made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
  return made
end
local known = own[1] and redis.call('HEXISTS', counts, 'last') == 1
redis.call('HSET', owner, 'origin', ARGV[2], 'node_id', ARGV[3], 'run', ARGV[1], 'beat', now)
redis.call('HSET', counts, 'run', ARGV[1])
redis.call('HSETNX', counts, 'last', '0')
redis.call('HSETNX', counts, 'entries', '0')

local top = '0-0'
local info = redis.call('XINFO', 'STREAM', stream)
for k = 1, #info - 1, 2 do
  if info[k] == 'last-generated-id' then top = info[k + 1] end
end
local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
local handed = '0-0'
for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local name, at
  for k = 1, #group - 1, 2 do
    if group[k] == 'name' then name = group[k + 1] end
    if group[k] == 'last-delivered-id' then at = group[k + 1] end
  end
  if name == ARGV[5] then handed = at end
end
return {
  'claimed', known and 'known' or 'new', top, first and first[1] or '', handed,
  redis.call('XLEN', stream), redis.call('HLEN', states), redis.call('HGETALL', counts),
}
