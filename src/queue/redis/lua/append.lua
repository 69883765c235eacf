-- Adds the entries of some requests, all or none.
-- ARGV: run, last seq before them, their first, their last, the bytes of the longest entry, number of
-- channels, then of each channel name, events, bytes; then of each entry its header, the number of its
-- events, and their payloads.
local call, format = redis.call, string.format
local stream, counts = KEYS[1], KEYS[3]
local told = call('HMGET', counts, 'run', 'last', 'biggest', 'total', 'entries')
if not told[1] then return {'gone'} end
if told[1] ~= ARGV[1] then return {'stranger', told[1]} end
-- an answer was lost, and this is sent again
if tonumber(told[2]) >= tonumber(ARGV[4]) then return {'there'} end
if told[2] ~= ARGV[2] then return {'chain', told[2]} end
if call('EXISTS', stream) == 0 then return {'gone'} end

local channels, size = tonumber(ARGV[6]), #ARGV
local seq, added, n = tonumber(ARGV[3]), 0, 0
-- one table for all of them: what an earlier entry left behind its end is not looked at
local words = {'XADD', stream, '', 'h', ''}
local at = 7 + 3 * channels
while at < size do
  n = tonumber(ARGV[at + 1])
  words[3], words[5] = format('%d-0', seq), ARGV[at]
  local to = 5
  for i = at + 2, at + 1 + n do
    words[to + 1], words[to + 2] = 'p', ARGV[i]
    to = to + 2
  end
  if added == 0 then
    -- what refuses the first refuses all: nothing was written
    local said = redis.pcall(unpack(words, 1, to))
    if type(said) == 'table' and said.err then
      local info = call('XINFO', 'STREAM', stream)
      for k = 1, #info - 1, 2 do
        if info[k] == 'last-generated-id' then
          local top = tonumber(string.match(info[k + 1], '^%d+'))
          if top >= seq then return {'above', info[k + 1]} end
        end
      end
      return said
    end
  else
    call(unpack(words, 1, to))
  end
  seq, added, at = seq + n, added + 1, at + 2 + n
end
-- the ids of an entry's further events are nobody else's; a server that refuses this keeps the rest
if n > 1 then redis.pcall('XSETID', stream, ARGV[4] .. '-0') end

local events = 0
for k = 7, 6 + 3 * channels, 3 do
  call('HINCRBY', counts, 'n:' .. ARGV[k], ARGV[k + 1])
  call('HINCRBY', counts, 'b:' .. ARGV[k], ARGV[k + 2])
  events = events + tonumber(ARGV[k + 1])
end
call('HSET', counts, 'last', ARGV[4],
  'total', format('%d', tonumber(told[4] or '0') + events),
  'entries', format('%d', tonumber(told[5] or '0') + added),
  'biggest', format('%d', math.max(tonumber(ARGV[5]), tonumber(told[3] or '0'))))
return {'added'}
