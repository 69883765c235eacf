-- Hands entries to a consumer: what it was handed before and did not acknowledge, behind an id, or what
-- nobody was handed. What an earlier connection still has under way hands out nothing.
-- ARGV: run, group, consumer, how many at most, the id behind which; or '>', the last seq that is confirmed,
-- and the last id that this node was handed.
local stream, counts = KEYS[1], KEYS[3]
local told = redis.call('HMGET', counts, 'run', 'last', 'entries')
if not told[1] then return {'gone'} end
if told[1] ~= ARGV[1] then return {'stranger', told[1]} end
-- whoever goes on behind what is missing would take it for read
if redis.call('XLEN', stream) < tonumber(told[3] or '0') then return {'short'} end
local function read()
  local answer = redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4], 'STREAMS', stream, ARGV[5])
  return answer and answer[1][2] or {}
end
if ARGV[5] ~= '>' then
  local entries = read()
  for _, entry in ipairs(entries) do
    -- it was deleted, though it was pending
    if not entry[2] then redis.call('XACK', stream, ARGV[2], entry[1]) end
  end
  return {'read', entries}
end

if redis.call('EXISTS', stream) == 0 then return {'gone'} end
if tonumber(told[2]) < tonumber(ARGV[6]) then return {'chain', told[2]} end
local function above(a, b)
  local a1, a2 = string.match(a, '^(%d+)-(%d+)$')
  local b1, b2 = string.match(b, '^(%d+)-(%d+)$')
  if tonumber(a1) ~= tonumber(b1) then return tonumber(a1) > tonumber(b1) end
  return tonumber(a2) > tonumber(b2)
end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local name, at
  for k = 1, #group - 1, 2 do
    if group[k] == 'name' then name = group[k + 1] end
    if group[k] == 'last-delivered-id' then at = group[k + 1] end
  end
  -- another consumer was handed what is ours to store: it is handed out once more
  if name == ARGV[2] and above(at, ARGV[7]) then
    redis.call('XGROUP', 'SETID', stream, ARGV[2], ARGV[7])
  end
end
return {'read', read()}
