-- Acknowledges, deletes and counts entries of which every event is resolved.
-- ARGV: run, group, the seq below which every entry may go (0: only these), number of channels, then of
-- each name, events, bytes; then the number of seqs that were tried more than once, and they; then the
-- first seq of each entry, in rising order.
local stream, counts, tries = KEYS[1], KEYS[3], KEYS[4]
local told = redis.call('HMGET', counts, 'run', 'entries')
if not told[1] then return {'gone'} end
if told[1] ~= ARGV[1] then return {'stranger', told[1]} end
local channels = tonumber(ARGV[4])
local at = 5 + 3 * channels
local tried = tonumber(ARGV[at])
for i = at + 1, at + tried do redis.call('HDEL', tries, ARGV[i]) end
local from = at + 1 + tried
local n = #ARGV - from + 1
if n == 0 then return {'acked', 0} end

local ids = {}
for i = from, #ARGV do ids[#ids + 1] = ARGV[i] .. '-0' end
-- a call takes only so many arguments
local function each(command, from, ...)
  local sum = 0
  for i = from, #ids, 1000 do
    local some = {...}
    for k = i, math.min(i + 999, #ids) do some[#some + 1] = ids[k] end
    sum = sum + redis.call(command, unpack(some))
  end
  return sum
end
each('XACK', 1, stream, ARGV[2])

local deleted, above = 0, 1
local needed = tonumber(ARGV[3])
if needed > 0 and redis.call('XLEN', stream) == tonumber(told[2] or '0') then
  -- up to the oldest entry that anybody still needs
  local bound = math.min(tonumber(ARGV[#ARGV]) + 1, needed)
  local pending = redis.call('XPENDING', stream, ARGV[2])
  if pending[1] > 0 then
    bound = math.min(bound, tonumber(string.match(pending[2], '^%d+')))
  end
  deleted = redis.call('XTRIM', stream, 'MINID', '=', string.format('%d-0', bound))
  while above <= n and tonumber(ARGV[from + above - 1]) < bound do above = above + 1 end
end
if above <= n then deleted = deleted + each('XDEL', above, stream) end

-- none where an answer was lost, and this is sent again
if deleted == 0 then return {'acked', 0} end
if deleted ~= n then return {'partly', deleted} end
local events = 0
for k = 5, 4 + 3 * channels, 3 do
  redis.call('HINCRBY', counts, 'n:' .. ARGV[k], '-' .. ARGV[k + 1])
  redis.call('HINCRBY', counts, 'b:' .. ARGV[k], '-' .. ARGV[k + 2])
  events = events + tonumber(ARGV[k + 1])
end
redis.call('HINCRBY', counts, 'total', string.format('%d', -events))
redis.call('HINCRBY', counts, 'entries', string.format('%d', -n))
return {'acked', deleted}
